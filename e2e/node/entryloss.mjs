// The region through which streams entered dies in the middle of them: each
// client raises an error of its kind, and its next request enters elsewhere.
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import Anthropic from '@anthropic-ai/sdk'
import { ChatAnthropic } from '@langchain/anthropic'
import { ChatOpenAI } from '@langchain/openai'
import { generateText, streamText } from 'ai'
import OpenAI from 'openai'
import { check, cluster, eventually, messages, must, question, thrown, within } from './kit.mjs'
import { kill, supervisor } from './regionloss.mjs'

// clients: stream reads an answer and calls began at its first text; next asks
// again. Both give the region where they entered, if the client shows it.
function clients(base) {
  const key = { baseURL: `${base}/v1`, apiKey: cluster.api_key }
  const openai = new OpenAI(key)
  const anthropic = new Anthropic({ ...key, baseURL: base })
  const [chat, said] = [{ model: 'e2e-slow', messages }, { model: 'e2e-slow-messages', max_tokens: 64, messages }]
  const entry = async (call) => (await call.asResponse()).headers.get('idc-entry-region')
  const all = {
    openai: {
      stream: async (began) => {
        const { data, response } = await openai.chat.completions.create({ ...chat, stream: true }).withResponse()
        for await (const chunk of data) if (chunk.choices[0]?.delta?.content) began(response.headers.get('idc-entry-region'))
      },
      next: () => entry(openai.chat.completions.create({ model: cluster.model, messages })),
    },
    'openai responses': {
      stream: (began) => openai.responses.stream({ model: 'e2e-slow', input: question, store: false }).on('response.output_text.delta', () => began()).finalResponse(),
      next: () => entry(openai.responses.create({ model: cluster.model, input: question, store: false })),
    },
    anthropic: {
      stream: (began) => anthropic.messages.stream(said).on('text', () => began()).finalMessage(),
      next: () => entry(anthropic.messages.create({ ...said, model: cluster.messages_model })),
    },
  }
  for (const [kind, provider, slow, quick] of [
    ['openai', createOpenAI(key).chat, chat.model, cluster.model],
    ['anthropic', createAnthropic(key), said.model, cluster.messages_model],
    ['openai-compatible', createOpenAICompatible({ ...key, name: 'ringmain' }), chat.model, cluster.model],
  ]) {
    all[`ai (${kind})`] = {
      stream: async (began) => {
        let failed
        for await (const _ of streamText({ model: provider(slow), prompt: question, onError: ({ error }) => { failed = error } }).textStream) began()
        if (failed) throw failed
      },
      next: async () => (await generateText({ model: provider(quick), prompt: question })).response.headers['idc-entry-region'],
    }
  }
  for (const [kind, model, slow, quick] of [
    ['openai', (name) => new ChatOpenAI({ model: name, apiKey: key.apiKey, configuration: { baseURL: key.baseURL } }), chat.model, cluster.model],
    ['anthropic', (name) => new ChatAnthropic({ model: name, apiKey: key.apiKey, anthropicApiUrl: base, maxTokens: 64 }), said.model, cluster.messages_model],
  ]) {
    all[`langchain (${kind})`] = {
      stream: async (began) => { for await (const chunk of await model(slow).stream(question)) if (chunk.text) began() },
      next: async () => { must((await model(quick).invoke(question)).text.length > 10, 'no answer') },
    }
  }
  return all
}

export async function entryLossChecks() {
  const all = Object.entries(clients(cluster.front_door))
  const lost = await all[0][1].next()
  const api = cluster.regions.find((r) => r.name === lost).api
  const streams = all.map(([client, { stream, next }]) => {
    const one = { client, next, begun: false, done: false }
    one.end = stream((entry) => Object.assign(one, { begun: true, entry })).finally(() => { one.done = true })
    one.end.catch(() => {}) // awaited below
    return one
  })
  const control = supervisor()
  try {
    await check(`entry loss: ${lost} dies under a stream of every client`, async () => {
      await eventually('every stream is going on', 10_000, () => streams.every((s) => s.begun))
      must(!streams.some((s) => s.done), 'a stream was over before')
      must(streams.every((s) => (s.entry ?? lost) === lost), `a stream entered elsewhere: ${JSON.stringify(streams.map((s) => s.entry))}`)
      await control.ask('hold', lost)
      await kill(control, lost, (p) => p.worker_pid > 0)
    })
    await Promise.all(streams.map(async ({ client, next, end }) => {
      const err = await within(5000, thrown(end)).catch((e) => e)
      await check(`entry loss: ${client} sees ${err.name}: ${err.message}`, async () => {
        must(err instanceof Error && !/the call was answered|not within/.test(err.message), `${err}`)
      })
      const began = performance.now()
      const entry = await next().catch((e) => e)
      await check(`entry loss: ${client}'s next request enters ${entry ?? 'elsewhere'}, after ${Math.round(performance.now() - began)} ms`, async () => {
        must(entry === undefined || cluster.regions.some((r) => r.name === entry && r.name !== lost), `${entry}`)
      })
    }))
  } finally {
    control.close()
  }
  await check(`entry loss: ${lost} comes back`, () => eventually('it answers', 30_000, async () => (await fetch(`${api}/readyz`).catch(() => undefined))?.ok))
}
