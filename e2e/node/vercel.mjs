// The Vercel AI SDK with its OpenAI, Anthropic and OpenAI-compatible providers.
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { APICallError, embedMany, generateImage, generateSpeech, generateText, Output, stepCountIs, streamText, tool, transcribe } from 'ai'
import { z } from 'zod'
import { check, cluster, forecast, itinerary, itineraryAnswer, must, question, reachesProvider, same, thrown, waitingLeaves, weather } from './kit.mjs'

globalThis.AI_SDK_LOG_WARNINGS = false

const runs = ({ description }) => tool({ description, inputSchema: z.object({ city: z.string(), days: z.int() }), execute: async () => 'sunny' })
const tools = { [weather.name]: runs(weather) }

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
  const compatible = createOpenAICompatible({ ...key, name: 'ringmain', includeUsage: true, supportsStructuredOutputs: true })
  const store = { openai: { store: false } }
  const kinds = {
    'openai chat': { model: openai.chat(cluster.model) },
    'openai responses': { model: openai.responses(cluster.model), providerOptions: store },
    'anthropic messages': { model: anthropic(cluster.messages_model) },
    'openai-compatible': { model: compatible(cluster.model) },
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
  for (const [kind, ask] of Object.entries({
    'openai chat': { model: kinds['openai chat'].model, providerOptions: { openai: { parallelToolCalls: true } } },
    'openai responses': { model: kinds['openai responses'].model, providerOptions: { openai: { ...store.openai, parallelToolCalls: true } } },
    'anthropic messages': { model: kinds['anthropic messages'].model, toolChoice: 'auto', providerOptions: { anthropic: { disableParallelToolUse: false } } },
    'openai-compatible': { model: kinds['openai-compatible'].model, providerOptions: { ringmain: { parallel_tool_calls: true } } },
  })) {
    await check(`${name}: ai, ${kind}, calls in parallel and their results, plain and streamed`, async () => {
      const params = { prompt: question, maxRetries: 0, tools: { ...tools, [forecast.name]: runs(forecast) }, stopWhen: stepCountIs(3), ...ask }
      const plain = await generateText(params)
      const stream = streamText({ ...params, onError: () => {} })
      await stream.consumeStream()
      for (const steps of [plain.steps, await stream.steps]) {
        same([steps.length, steps[0].toolCalls.map((c) => [c.toolName, c.input]), steps[0].toolResults.length],
          [2, [[weather.name, weather.arguments], [forecast.name, weather.arguments]], 2], 'steps')
      }
    })
  }
  for (const [kind, ask] of Object.entries(kinds)) {
    await check(`${name}: ai, ${kind}, structured, plain and streamed`, async () => {
      const params = { prompt: question, maxRetries: 0, output: Output.object({ schema: itinerary }), ...ask }
      same((await generateText(params)).output, itineraryAnswer, 'output')
      const stream = streamText(params)
      await stream.consumeStream()
      same(await stream.output, itineraryAnswer, 'streamed output')
    })
    await check(`${name}: ai, ${kind}, our header fields`, async () => {
      const stream = streamText({ prompt: question, maxRetries: 0, ...ask })
      await stream.consumeStream()
      for (const { headers } of [(await generateText({ prompt: question, maxRetries: 0, ...ask })).response, await stream.response]) {
        must(headers['idc-request-id']?.startsWith('req_') && headers['idc-entry-region'] === name, JSON.stringify(headers))
      }
    })
  }
  for (const model of [openai.embedding('e2e-embed'), compatible.embeddingModel('e2e-embed')]) {
    await check(`${name}: ai, embeddings (${model.provider})`, async () => {
      const { embeddings, usage } = await embedMany({ model, values: ['one two', 'three'], maxRetries: 0 })
      same([embeddings.length, embeddings[0].length, usage.tokens], [2, 64, 3], 'embeddings')
    })
  }
  await check(`${name}: ai, speech, transcription and images`, async () => {
    const { audio } = await generateSpeech({ model: openai.speech('e2e-speech'), text: question, maxRetries: 0 })
    same([audio.uint8Array.length, audio.uint8Array[0]], [8196, 255], 'sound')
    must((await transcribe({ model: openai.transcription('e2e-ear'), audio: audio.uint8Array, maxRetries: 0 })).text.length > 10, 'no transcript')
    for (const model of [openai.image('e2e-image'), compatible.imageModel('e2e-image')]) {
      const { image } = await generateImage({ model, prompt: question, maxRetries: 0 })
      same(Buffer.from(image.uint8Array).subarray(1, 4).toString(), 'PNG', 'image')
    }
  })
  await check(`${name}: ai, taking back a plain request, or its deadline, reaches the provider`, async () => {
    const err = await waitingLeaves('sim-abort', (abortSignal) => generateText({ model: compatible('e2e-abort'), prompt: question, maxRetries: 0, abortSignal }))
    same(err.name, 'AbortError', 'error')
    const late = await waitingLeaves('sim-abort-messages', () => generateText({ model: anthropic('e2e-abort-messages'), prompt: question, maxRetries: 0, abortSignal: AbortSignal.timeout(1500) }))
    same(late.name, 'TimeoutError', 'error')
  })
  for (const [model, seen] of [[openai.chat('e2e-abort'), 'sim-abort'], [anthropic('e2e-abort-messages'), 'sim-abort-messages'], [compatible('e2e-abort'), 'sim-abort']]) {
    await check(`${name}: ai, an abort reaches the provider (${model.provider})`, () => reachesProvider(seen, async () => {
      const gone = new AbortController()
      const result = streamText({ model, prompt: question, maxRetries: 0, abortSignal: gone.signal })
      for await (const _ of result.textStream) gone.abort()
    }))
  }
  for (const [what, model, status, retryable] of [
    ['unknown model', openai.chat('no-such-model'), [404], false],
    ['unknown model', anthropic('no-such-model'), [404], false],
    ['too long a prompt', openai.chat('e2e-context'), [400], false],
    ['unknown model', compatible('no-such-model'), [404], false],
    ['another org\'s project', createOpenAI({ ...key, headers: { 'idc-project-id': 'prj_nobody' } }).chat(cluster.model), [403], false],
    ['what the provider cannot process', openai.chat('e2e-status-422'), [422], false],
    ['what the provider cannot process', anthropic('e2e-status-422-messages'), [422], false],
    ['an overloaded provider', compatible('e2e-status-529'), [503], true],
    ['a conflict at the provider', compatible('e2e-status-409'), [409], true], // by its own rule: it does not look at x-should-retry
    ['a body over the provider\'s limit', anthropic('e2e-status-413-messages'), [413], false],
    ['a failing provider', openai.chat('e2e-503'), [502, 503], true],
    ['a failing provider', anthropic('e2e-503-messages'), [502, 503], true],
    ['a wrong key', createOpenAI({ ...key, apiKey: 'idc_live_any_nonsense' }).chat(cluster.model), [401], false],
  ]) {
    await check(`${name}: ai, ${what} (${model.provider})`, async () => {
      const err = await thrown(generateText({ model, prompt: question, maxRetries: 0 }))
      must(APICallError.isInstance(err) && status.includes(err.statusCode) && err.isRetryable === retryable, `${err.name} ${err.statusCode} ${err.isRetryable} ${err.message}`)
      must(err.responseHeaders['idc-request-id']?.startsWith('req_') && err.message.length > 20, `${err.message} ${JSON.stringify(err.responseHeaders)}`)
    })
  }
  for (const model of [openai.chat('e2e-late-error'), openai.responses('e2e-late-error'), anthropic('e2e-late-error-messages'), compatible('e2e-late-error'), compatible('e2e-cut')]) {
    await check(`${name}: ai, an error in the middle of a stream is raised (${model.provider} ${model.modelId})`, async () => {
      const err = await thrown(read({ model, ...(model.provider === 'openai.responses' && { providerOptions: store }) }))
      // Told in the stream (or by its breaking off, after a 200); 503 where the circuit is open by now.
      must(!APICallError.isInstance(err) || [200, 503].includes(err.statusCode), `${err} ${err.statusCode}`)
    })
  }
}
