// The official Node clients, unchanged, with only base URL, key and CA set.
//   NODE_EXTRA_CA_CERTS=<ca> node sdk.mjs <cluster.json>
// Prints one line per check and, last, "N passed, N failed".
import { readFileSync } from 'node:fs'
import OpenAI from 'openai'
import Anthropic from '@anthropic-ai/sdk'

const cluster = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const messages = [{ role: 'user', content: 'Which region feeds the ring when one is cut?' }]
let passed = 0
let failed = 0

async function check(name, body) {
  try {
    await body()
    passed++
    console.log(`ok    ${name}`)
  } catch (err) {
    failed++
    console.log(`FAIL  ${name}: ${err.message}`)
  }
}

function must(condition, message) {
  if (!condition) throw new Error(message)
}

async function refused(promise, status, code) {
  const err = await promise.then(() => undefined, (e) => e)
  must(err, 'the call was answered')
  must(err.status === status, `status ${err.status}, want ${status}`)
  must(err.headers.get('idc-error-code') === code, `idc-error-code ${err.headers.get('idc-error-code')}, want ${code}`)
  return err
}

for (const entry of [...cluster.regions.map((r) => [r.name, r.api]), ['front door', cluster.front_door]]) {
  const [name, base] = entry
  const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: cluster.api_key, maxRetries: 0 })
  const anthropic = new Anthropic({ baseURL: base, apiKey: cluster.api_key, maxRetries: 0 })
  const bearer = new Anthropic({ baseURL: base, apiKey: null, authToken: cluster.api_key, maxRetries: 0 })

  let plain
  await check(`${name}: openai chat, plain`, async () => {
    const { data, response } = await openai.chat.completions.create({ model: cluster.model, messages }).withResponse()
    plain = data.choices[0].message.content
    must(plain.length > 10, `answer ${JSON.stringify(plain)}`)
    must(data.usage.total_tokens === data.usage.prompt_tokens + data.usage.completion_tokens, 'usage does not add up')
    must(response.headers.get('idc-request-id')?.startsWith('req_'), 'no idc-request-id')
    if (name !== 'front door') must(response.headers.get('idc-entry-region') === name, 'wrong idc-entry-region')
  })
  await check(`${name}: openai chat, streaming equals plain`, async () => {
    const stream = await openai.chat.completions.create({ model: cluster.model, messages, stream: true })
    let text = ''
    let usage = false
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? ''
      usage ||= Boolean(chunk.usage)
    }
    must(text === plain, `stream ${JSON.stringify(text)} is not ${JSON.stringify(plain)}`)
    must(!usage, 'usage was shown to a client that did not ask for it')
  })
  await check(`${name}: openai chat, streaming with usage`, async () => {
    const stream = await openai.chat.completions.create({ model: cluster.model, messages, stream: true, stream_options: { include_usage: true } })
    let usage
    for await (const chunk of stream) usage = chunk.usage ?? usage
    must(usage?.completion_tokens > 0, 'no usage chunk')
  })
  await check(`${name}: openai chat, forwarded to the model's only region`, async () => {
    const { response } = await openai.chat.completions.create({ model: cluster.remote_model, messages }).withResponse()
    const last = cluster.regions.at(-1).name
    must(response.headers.get('idc-region') === last, `idc-region ${response.headers.get('idc-region')}, want ${last}`)
  })
  await check(`${name}: openai models`, async () => {
    const ids = []
    for await (const m of openai.models.list()) ids.push(m.id)
    must(ids.includes(cluster.model) && ids.includes(cluster.messages_model), `models ${ids}`)
  })
  await check(`${name}: anthropic messages, plain`, async () => {
    const msg = await anthropic.messages.create({ model: cluster.messages_model, max_tokens: 64, messages })
    must(msg.content[0].text.length > 10 && msg.usage.output_tokens > 0, JSON.stringify(msg))
  })
  await check(`${name}: anthropic messages, streaming by bearer`, async () => {
    const msg = await bearer.messages.stream({ model: cluster.messages_model, max_tokens: 64, messages }).finalMessage()
    must(msg.content[0].text.length > 10 && msg.usage.output_tokens > 0, JSON.stringify(msg))
  })
  await check(`${name}: wrong key is 401 in both dialects`, async () => {
    await refused(new OpenAI({ baseURL: `${base}/v1`, apiKey: 'idc_live_any_nonsense', maxRetries: 0 }).models.list(), 401, 'invalid_api_key')
    const err = await refused(new Anthropic({ baseURL: base, apiKey: 'idc_live_any_nonsense', maxRetries: 0 })
      .messages.create({ model: cluster.messages_model, max_tokens: 8, messages }), 401, 'invalid_api_key')
    must(err.error?.error?.type === 'authentication_error', JSON.stringify(err.error))
  })
  await check(`${name}: unknown model is 404`, () =>
    refused(openai.chat.completions.create({ model: 'no-such-model', messages }), 404, 'model_not_found'))
}

console.log(`${passed} passed, ${failed} failed`)
process.exit(failed ? 1 : 0)
