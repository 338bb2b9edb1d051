// The Vercel AI SDK with its OpenAI and Anthropic providers.
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { APICallError, embedMany, generateText, stepCountIs, streamText, tool } from 'ai'
import { z } from 'zod'
import { check, cluster, must, question, reachesProvider, same, thrown, weather } from './kit.mjs'

globalThis.AI_SDK_LOG_WARNINGS = false

const tools = {
  [weather.name]: tool({ description: weather.description, inputSchema: z.object({ city: z.string(), days: z.int() }), execute: async () => 'sunny' }),
}

// read gives the text of a stream, or throws what the stream ended with.
async function read(params) {
  let failed
  const result = streamText({ prompt: question, maxRetries: 0, ...params, onError: ({ error }) => { failed = error } })
  let text = ''
  for await (const part of result.textStream) text += part
  if (failed) throw failed
  return text
}

export async function vercelChecks(name, base) {
  const key = { baseURL: `${base}/v1`, apiKey: cluster.api_key }
  const openai = createOpenAI(key)
  const anthropic = createAnthropic(key)
  const store = { openai: { store: false } }
  const kinds = {
    'openai chat': { model: openai.chat(cluster.model) },
    'openai responses': { model: openai.responses(cluster.model), providerOptions: store },
    'anthropic messages': { model: anthropic(cluster.messages_model) },
  }
  for (const [kind, ask] of Object.entries(kinds)) {
    await check(`${name}: ai, ${kind}, streaming equals plain`, async () => {
      const { text, usage } = await generateText({ prompt: question, maxRetries: 0, ...ask })
      must(text.length > 10 && usage.outputTokens > 0, `${JSON.stringify(text)} ${JSON.stringify(usage)}`)
      same(await read(ask), text, 'text')
    })
    await check(`${name}: ai, ${kind}, a tool and the answer after it`, async () => {
      const result = streamText({ prompt: question, maxRetries: 0, tools, stopWhen: stepCountIs(3), onError: () => {}, ...ask })
      await result.consumeStream()
      const steps = await result.steps
      same([steps.length, steps[0].toolCalls[0].input, steps[0].toolResults[0].output], [2, weather.arguments, 'sunny'], 'steps')
      must((await result.text).length > 10, 'no answer after the result')
    })
  }
  await check(`${name}: ai, embeddings`, async () => {
    const { embeddings, usage } = await embedMany({ model: openai.embedding('e2e-embed'), values: ['one two', 'three'], maxRetries: 0 })
    same([embeddings.length, embeddings[0].length, usage.tokens], [2, 64, 3], 'embeddings')
  })
  for (const [model, seen] of [[openai.chat('e2e-abort'), 'sim-abort'], [anthropic('e2e-abort-messages'), 'sim-abort-messages']]) {
    await check(`${name}: ai, an abort of ${model.modelId} reaches the provider`, () => reachesProvider(seen, async () => {
      const gone = new AbortController()
      const result = streamText({ model, prompt: question, maxRetries: 0, abortSignal: gone.signal })
      for await (const _ of result.textStream) gone.abort()
    }))
  }
  for (const [what, model, status, retryable] of [
    ['unknown model', openai.chat('no-such-model'), [404], false],
    ['unknown model', anthropic('no-such-model'), [404], false],
    ['too long a prompt', openai.chat('e2e-context'), [400], false],
    ['a failing provider', openai.chat('e2e-503'), [502, 503], true],
    ['a failing provider', anthropic('e2e-503-messages'), [502, 503], true],
    ['a wrong key', createOpenAI({ ...key, apiKey: 'idc_live_any_nonsense' }).chat(cluster.model), [401], false],
  ]) {
    await check(`${name}: ai, ${what} (${model.provider})`, async () => {
      const err = await thrown(generateText({ model, prompt: question, maxRetries: 0 }))
      must(APICallError.isInstance(err) && status.includes(err.statusCode) && err.isRetryable === retryable, `${err.name} ${err.statusCode} ${err.isRetryable} ${err.message}`)
    })
  }
  for (const model of [openai.chat('e2e-late-error'), openai.responses('e2e-late-error'), anthropic('e2e-late-error-messages')]) {
    await check(`${name}: ai, an error in the middle of a stream is raised (${model.provider})`, async () => {
      const err = await thrown(read({ model, ...(model.provider === 'openai.responses' && { providerOptions: store }) }))
      // Told in the stream (or by its breaking off, after a 200); 503 where the circuit is open by now.
      must(!APICallError.isInstance(err) || [200, 503].includes(err.statusCode), `${err} ${err.statusCode}`)
    })
  }
}
