// A client repeats a request only where x-should-retry says so, and not before
// retry-after-ms is over. At all entries at once: the pauses are long.
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import Anthropic from '@anthropic-ai/sdk'
import { generateText, RetryError } from 'ai'
import OpenAI from 'openai'
import { check, cluster, messages, must, question, recorder, same, thrown } from './kit.mjs'

export async function retryChecks(entries) {
  const all = []
  for (const { name, api } of entries) {
    const key = { baseURL: `${api}/v1`, apiKey: cluster.api_key }
    const clients = {
      openai: (fetch) => new OpenAI({ ...key, fetch, maxRetries: 1 }).chat.completions.create({ model: 'e2e-429', messages }),
      anthropic: (fetch) => new Anthropic({ ...key, baseURL: api, fetch, maxRetries: 1 }).messages.create({ model: 'e2e-429-messages', max_tokens: 8, messages }),
      'ai (openai)': (fetch) => generateText({ model: createOpenAI({ ...key, fetch }).chat('e2e-429'), prompt: question, maxRetries: 1 }),
      'ai (anthropic)': (fetch) => generateText({ model: createAnthropic({ ...key, fetch })('e2e-429-messages'), prompt: question, maxRetries: 1 }),
    }
    for (const [client, call] of Object.entries(clients)) {
      all.push(check(`${name}: ${client} repeats after retry-after-ms`, async () => {
        const wire = recorder()
        const err = await thrown(call(wire.fetch))
        must(RetryError.isInstance(err) || err.status === 503, `${err}`)
        same(wire.calls.length, 2, 'calls')
        const asked = Number(wire.calls[0].headers.get('retry-after-ms'))
        const waited = wire.calls[1].at - wire.calls[0].at
        same(wire.calls[0].headers.get('x-should-retry'), 'true', 'x-should-retry')
        must(asked > 0 && waited >= asked && Number(wire.calls[0].headers.get('retry-after')) * 1000 >= asked, `waited ${waited} ms, asked for ${asked}`)
      }, 70_000))
    }
  }
  await Promise.all(all)
}
