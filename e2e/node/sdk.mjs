// The clients people use, unchanged, with only base URL, key and CA set.
//   NODE_EXTRA_CA_CERTS=<ca> node sdk.mjs <cluster.json> [entries,openai,anthropic,ai,langchain,retries,regionloss]
// routes.yaml must have been applied. Prints one line per check and, last, "N
// passed, N failed".
import { anthropicChecks } from './anthropic.mjs'
import { entryChecks } from './entries.mjs'
import { cluster, score } from './kit.mjs'
import { langchainChecks } from './langchain.mjs'
import { openaiChecks } from './openai.mjs'
import { regionLossChecks } from './regionloss.mjs'
import { retryChecks } from './retries.mjs'
import { vercelChecks } from './vercel.mjs'

const only = process.argv[3]?.split(',')
const wanted = (part) => !only || only.includes(part)

if (wanted('entries')) await entryChecks()
for (const region of cluster.regions.slice(0, 2)) {
  if (wanted('openai')) await openaiChecks(region.name, region.api)
  if (wanted('anthropic')) await anthropicChecks(region.name, region.api)
  if (wanted('ai')) await vercelChecks(region.name, region.api)
  if (wanted('langchain')) await langchainChecks(region.name, region.api)
}
if (wanted('retries')) await retryChecks(cluster.regions.slice(0, 2))
if (wanted('regionloss')) await regionLossChecks()

console.log(`${score.passed} passed, ${score.failed} failed`)
process.exit(score.failed ? 1 : 0)
