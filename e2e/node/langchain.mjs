// LangChain with its OpenAI and Anthropic models.
import { ChatAnthropic } from '@langchain/anthropic'
import { HumanMessage, ToolMessage } from '@langchain/core/messages'
import { tool } from '@langchain/core/tools'
import { ChatOpenAI, OpenAIEmbeddings } from '@langchain/openai'
import { z } from 'zod'
import { check, cluster, must, question, reachesProvider, same, thrown, weather } from './kit.mjs'

const weatherTool = tool(async () => 'sunny', { name: weather.name, description: weather.description, schema: z.object({ city: z.string(), days: z.int() }) })

async function read(model, options) {
  let text = ''
  for await (const chunk of await model.stream(question, options)) text += chunk.text
  return text
}

export async function langchainChecks(name, base) {
  const openai = (model, more) => new ChatOpenAI({ model, apiKey: cluster.api_key, maxRetries: 0, configuration: { baseURL: `${base}/v1` }, ...more })
  const anthropic = (model) => new ChatAnthropic({ model, apiKey: cluster.api_key, anthropicApiUrl: base, maxRetries: 0, maxTokens: 64 })
  for (const [kind, model] of [
    ['openai chat', openai(cluster.model)],
    ['openai responses', openai(cluster.model, { useResponsesApi: true, zdrEnabled: true })],
    ['anthropic messages', anthropic(cluster.messages_model)],
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
  }
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
