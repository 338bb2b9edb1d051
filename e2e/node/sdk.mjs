// The clients people use, unchanged, with only base URL, key and CA set.
//   NODE_EXTRA_CA_CERTS=<ca> TLS_CERT=<pem> TLS_KEY=<pem> node sdk.mjs <cluster.json> [entries,openai,anthropic,errors,ai,langchain,retries,raw,regionloss,entryloss]
// routes.yaml must have been applied, and the cluster trust TLS_CERT, which is for
// 127.0.0.1, with its upstreams. Prints one line per check and, last, "N passed, N
// failed".
import { anthropicChecks } from './anthropic.mjs'
import { entryChecks } from './entries.mjs'
import { errorChecks } from './errors.mjs'
import { entryLossChecks } from './entryloss.mjs'
import { cluster, score } from './kit.mjs'
import { langchainChecks } from './langchain.mjs'
import { openaiChecks } from './openai.mjs'
import { rawChecks } from './raw.mjs'
import { regionLossChecks } from './regionloss.mjs'
import { retryChecks } from './retries.mjs'
import { vercelChecks } from './vercel.mjs'

const only = process.argv[3]?.split(',')
const wanted = (part) => !only || only.includes(part)

if (wanted('entries')) await entryChecks()
const parts = { openai: openaiChecks, anthropic: anthropicChecks, errors: errorChecks, ai: vercelChecks, langchain: langchainChecks }
for (const { name, api } of cluster.regions.slice(0, 2)) {
  await Promise.all(Object.entries(parts).map(([part, checks]) => wanted(part) && checks(name, api)))
}
if (wanted('retries')) await retryChecks(cluster.regions.slice(0, 2))
if (wanted('raw')) await rawChecks(cluster.regions[0].name, cluster.regions[0].api)
if (wanted('regionloss')) await regionLossChecks()
// Only where asked for: connections kept from what went before may lead elsewhere.
if (only?.includes('entryloss')) await entryLossChecks()

console.log(`${score.passed} passed, ${score.failed} failed`)
process.exit(score.failed ? 1 : 0)
