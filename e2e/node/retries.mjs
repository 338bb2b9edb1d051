// A client repeats a request only where x-should-retry says so, and not before
// retry-after-ms is over. At all entries at once: the pauses are long.
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import Anthropic from '@anthropic-ai/sdk'
import { ChatAnthropic } from '@langchain/anthropic'
import { ChatOpenAI } from '@langchain/openai'
import { generateText, RetryError } from 'ai'
import OpenAI from 'openai'
import { check, cluster, messages, must, question, recorder, same, thrown } from './kit.mjs'
import { openProvider } from './provider.mjs'

// What the provider asks for: other than what any client waits by itself.
const pause = 2500

// callers are the clients that repeat, each as a function of model and fetch.
const callers = (api, maxRetries) => {
  const key = { baseURL: `${api}/v1`, apiKey: cluster.api_key }
  return {
    openai: (model, fetch) => new OpenAI({ ...key, fetch, maxRetries }).chat.completions.create({ model, messages }),
    anthropic: (model, fetch) => new Anthropic({ ...key, baseURL: api, fetch, maxRetries }).messages.create({ model: `${model}-messages`, max_tokens: 8, messages }),
    'ai (openai)': (model, fetch) => generateText({ model: createOpenAI({ ...key, fetch }).chat(model), prompt: question, maxRetries }),
    'ai (anthropic)': (model, fetch) => generateText({ model: createAnthropic({ ...key, fetch })(`${model}-messages`), prompt: question, maxRetries }),
    'ai (openai-compatible)': (model, fetch) => generateText({ model: createOpenAICompatible({ ...key, name: 'ringmain', fetch })(model), prompt: question, maxRetries }),
  }
}

export async function retryChecks(entries) {
  const all = []
  for (const { name, api } of entries) {
    for (const [client, call] of Object.entries(callers(api, 1))) {
      all.push(check(`${name}: ${client} repeats after retry-after-ms`, async () => {
        const wire = recorder()
        const err = await thrown(call('e2e-429', wire.fetch))
        must(RetryError.isInstance(err) || err.status === 503, `${err}`)
        same(wire.calls.length, 2, 'calls')
        const asked = Number(wire.calls[0].headers.get('retry-after-ms'))
        const waited = wire.calls[1].at - wire.calls[0].at
        same(wire.calls[0].headers.get('x-should-retry'), 'true', 'x-should-retry')
        must(asked > 0 && waited >= asked && Number(wire.calls[0].headers.get('retry-after')) * 1000 >= asked, `waited ${waited} ms, asked for ${asked}`)
      }, 70_000))
    }
    for (const [client, call] of Object.entries(callers(api, 2)).slice(0, 2)) { // the AI SDK does not look at x-should-retry
      all.push(check(`${name}: ${client} does not repeat a conflict, which x-should-retry forbids`, async () => {
        const wire = recorder()
        same([(await thrown(call('e2e-status-409', wire.fetch))).status, wire.calls.length], [409, 1], 'status and calls')
      }))
    }
    for (const [client, call] of Object.entries(callers(api, 0))) {
      all.push(check(`${name}: ${client} repeats nothing when told not to`, async () => {
        const wire = recorder()
        await thrown(call('e2e-429', wire.fetch))
        same(wire.calls.length, 1, 'calls')
      }))
    }
  }
  const { api } = entries[0]
  const provider = await openProvider(pause)
  for (const [i, [client, call]] of Object.entries(callers(api, 2)).entries()) {
    all.push(check(`${client} gives the answer that its repetition brings, when the provider asked for it`, async () => {
      await call(`e2e-busy-${i}`, fetch)
      const seen = provider.seen(`busy-${i}`)
      same(seen.length, 2, 'requests at the provider')
      const waited = seen[1].at - seen[0].at
      must(waited >= pause && waited < 20_000, `the provider saw a pause of ${waited} ms, after asking for ${pause}`)
    }, 70_000))
  }
  all.push(...headerChecks(entries[0], provider))
  await Promise.all(all)
  provider.close()
}

// headerChecks: what a client says of itself, and for itself, ends here.
function headerChecks({ name, api }, provider) {
  const key = { baseURL: `${api}/v1`, apiKey: cluster.api_key, maxRetries: 0 }
  const own = { 'x-team': 'search', 'idc-region-hint': name }
  const ai = async (model) => (await generateText({ model, prompt: question, maxRetries: 0 })).response.headers
  const asks = {
    openai: async (model) => (await new OpenAI({ ...key, organization: 'org-theirs', defaultHeaders: own }).chat.completions.create({ model, messages }, { headers: { 'x-one': '1' } }).asResponse()).headers,
    anthropic: async (model) => (await new Anthropic({ ...key, baseURL: api, defaultHeaders: own }).beta.messages.create({ model: `${model}-messages`, max_tokens: 8, messages, betas: ['context-1m-2025-08-07'] }).asResponse()).headers,
    'ai (openai)': (model) => ai(createOpenAI({ ...key, headers: own }).chat(model)),
    'ai (anthropic)': (model) => ai(createAnthropic({ ...key, headers: own })(`${model}-messages`)),
    'ai (openai-compatible)': (model) => ai(createOpenAICompatible({ ...key, name: 'ringmain', headers: own })(model)),
    'langchain (openai)': async (model) => void await new ChatOpenAI({ ...key, model, configuration: { baseURL: key.baseURL, defaultHeaders: own } }).invoke(question),
    'langchain (anthropic)': async (model) => void await new ChatAnthropic({ ...key, model: `${model}-messages`, anthropicApiUrl: api, maxTokens: 8, clientOptions: { defaultHeaders: own } }).invoke(question),
  }
  const personal = /^(x-stainless|x-team|x-one|idc-|openai-organization|x-api-key|authorization|cookie|origin)/
  return Object.entries(asks).map(([client, ask], i) => check(`${client}: its own header fields are heard here, and stay here`, async () => {
    const headers = await ask(`e2e-plain-${i}`)
    if (headers) same(new Headers(headers).get('idc-region-hint-result'), 'honoured', 'idc-region-hint-result')
    const seen = provider.seen(`plain-${i}`)
    same(seen.length, 1, 'requests at the provider')
    const told = Object.entries(seen[0].headers)
    same(told.filter(([field, value]) => personal.test(field) || value.includes(cluster.api_key) || /stainless|openai|ai-sdk|langchain|anthropic\//i.test(value)), [], 'fields that reached the provider')
    if (client === 'anthropic') same(seen[0].headers['anthropic-beta'], 'context-1m-2025-08-07', 'anthropic-beta')
  }))
}
