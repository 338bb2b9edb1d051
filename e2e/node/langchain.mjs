// LangChain with its OpenAI and Anthropic models.
import { ChatAnthropic } from '@langchain/anthropic'
import { HumanMessage, ToolMessage } from '@langchain/core/messages'
import { tool } from '@langchain/core/tools'
import { ChatOpenAI, OpenAIEmbeddings } from '@langchain/openai'
import { z } from 'zod'
import { check, cluster, forecast, itinerary, itineraryAnswer, must, question, reachesProvider, same, thrown, waitingLeaves, weather } from './kit.mjs'

const [weatherTool, forecastTool] = [weather, forecast].map(({ name, description }) => tool(async () => 'sunny', { name, description, schema: z.object({ city: z.string(), days: z.int() }) }))

async function read(model, options) {
  let text = ''
  for await (const chunk of await model.stream(question, options)) text += chunk.text
  return text
}

export async function langchainChecks(name, base) {
  const openai = (model, more) => new ChatOpenAI({ model, apiKey: cluster.api_key, maxRetries: 0, configuration: { baseURL: `${base}/v1` }, ...more })
  const anthropic = (model) => new ChatAnthropic({ model, apiKey: cluster.api_key, anthropicApiUrl: base, maxRetries: 0, maxTokens: 64 })
  for (const [kind, model, parallel] of [
    ['openai chat', openai(cluster.model), { parallel_tool_calls: true }],
    ['openai responses', openai(cluster.model, { useResponsesApi: true, zdrEnabled: true }), { parallel_tool_calls: true }],
    ['anthropic messages', anthropic(cluster.messages_model), { tool_choice: { type: 'auto', disable_parallel_tool_use: false } }],
  ]) {
    await check(`${name}: langchain, ${kind}, streaming equals plain`, async () => {
      const plain = await model.invoke(question)
      must(plain.text.length > 10 && plain.usage_metadata.output_tokens > 0, JSON.stringify(plain))
      same(await read(model), plain.text, 'text')
    })
    await check(`${name}: langchain, ${kind}, a tool and the answer after it`, async () => {
      const bound = model.bindTools([weatherTool])
      const asked = await bound.invoke(question)
      same([asked.tool_calls[0].name, asked.tool_calls[0].args], [weather.name, weather.arguments], 'call')
      const after = await bound.invoke([new HumanMessage(question), asked, new ToolMessage({ content: 'sunny', tool_call_id: asked.tool_calls[0].id })])
      must(after.text.length > 10, 'no answer after the result')
    })
    await check(`${name}: langchain, ${kind}, calls in parallel, plain and streamed`, async () => {
      const bound = model.bindTools([weatherTool, forecastTool], parallel)
      let streamed
      for await (const chunk of await bound.stream(question)) streamed = streamed ? streamed.concat(chunk) : chunk
      for (const asked of [await bound.invoke(question), streamed]) {
        same(asked.tool_calls.map((c) => [c.name, c.args]), [[weather.name, weather.arguments], [forecast.name, weather.arguments]], 'calls')
      }
    })
    await check(`${name}: langchain, ${kind}, structured`, async () => {
      same(await model.withStructuredOutput(itinerary, { method: 'jsonSchema' }).invoke(question), itineraryAnswer, 'output')
    })
  }
  await check(`${name}: langchain, a client's own deadline, and what it takes back`, async () => {
    const late = await waitingLeaves('sim-abort', () => openai('e2e-abort', { timeout: 1500 }).invoke(question))
    must(/time(d )?out/i.test(`${late.name} ${late.message}`), `${late.name} ${late.message}`)
    const gone = await waitingLeaves('sim-abort', (signal) => openai('e2e-abort').invoke(question, { signal }))
    must(/abort/i.test(`${gone.name} ${gone.message}`), `${gone.name} ${gone.message}`)
  })
  await check(`${name}: langchain, embeddings`, async () => {
    const embed = new OpenAIEmbeddings({ model: 'e2e-embed', apiKey: cluster.api_key, maxRetries: 0, configuration: { baseURL: `${base}/v1` } })
    const vectors = await embed.embedDocuments(['one two', 'three'])
    same([vectors.length, vectors[0].length], [2, 64], 'vectors')
  })
  for (const [model, seen] of [[openai('e2e-abort'), 'sim-abort'], [anthropic('e2e-abort-messages'), 'sim-abort-messages']]) {
    await check(`${name}: langchain, an abort of ${seen} reaches the provider`, () => reachesProvider(seen, async () => {
      const gone = new AbortController()
      await thrown((async () => {
        for await (const chunk of await model.stream(question, { signal: gone.signal })) if (chunk.text) gone.abort()
      })())
    }))
  }
  for (const [what, model, status] of [
    ['unknown model', openai('no-such-model'), [404]],
    ['unknown model', anthropic('no-such-model'), [404]],
    ['too long a prompt', openai('e2e-context'), [400]],
    ['a wrong key', openai(cluster.model, { apiKey: 'idc_live_any_nonsense' }), [401]],
    ['what the provider cannot process', openai('e2e-status-422'), [422]],
    ['what the provider cannot process', anthropic('e2e-status-422-messages'), [422]],
    ['an overloaded provider', anthropic('e2e-status-529-messages'), [503]],
    ['a failing provider', openai('e2e-503'), [502, 503]],
    ['a failing provider', anthropic('e2e-503-messages'), [502, 503]],
  ]) {
    await check(`${name}: langchain, ${what} (${model.constructor.name})`, async () => {
      const err = await thrown(model.invoke(question))
      must(status.includes(err.status) || err.name === 'ContextOverflowError' && model.model === 'e2e-context', `${err.name} ${err.status} ${err.message}`)
    })
  }
  for (const model of [openai('e2e-late-error'), anthropic('e2e-late-error-messages')]) {
    await check(`${name}: langchain, an error in the middle of a stream is raised (${model.constructor.name})`, async () => {
      const err = await thrown(read(model))
      must(!/connection/i.test(err.message), `${err}`)
    })
  }
}
