// The official Anthropic client.
import Anthropic from '@anthropic-ai/sdk'
import { betaZodTool } from '@anthropic-ai/sdk/helpers/beta/zod'
import { zodOutputFormat } from '@anthropic-ai/sdk/helpers/zod'
import { z } from 'zod'
import { check, cluster, forecast, itinerary, itineraryAnswer, messages, must, reachesProvider, same, thrown, waitingLeaves, weather } from './kit.mjs'

const tool = ({ name, description, parameters }) => ({ name, description, input_schema: parameters })
const both = [[weather.name, weather.arguments], [forecast.name, weather.arguments]]

export async function anthropicChecks(name, base) {
  const key = { baseURL: base, apiKey: cluster.api_key }
  const anthropic = new Anthropic({ ...key, maxRetries: 0 })
  const params = { model: cluster.messages_model, max_tokens: 64, messages }
  let plain

  await check(`${name}: anthropic messages, plain`, async () => {
    const { data, response } = await anthropic.messages.create(params).withResponse()
    plain = data.content[0].text
    must(plain.length > 10 && data.usage.output_tokens > 0, JSON.stringify(data))
    must(!response.headers.has('anthropic-organization-id'), 'the provider\'s organization came through')
  })
  await check(`${name}: anthropic messages, streaming by bearer equals plain`, async () => {
    const bearer = new Anthropic({ ...key, apiKey: null, authToken: cluster.api_key, maxRetries: 0 })
    const msg = await bearer.messages.stream(params).finalMessage()
    same([msg.content[0].text, msg.stop_reason], [plain, 'end_turn'], 'message')
  })
  await check(`${name}: anthropic messages, spliced where the nearest replica breaks off`, async () => {
    const msg = await anthropic.messages.stream({ ...params, model: 'e2e-splice-messages', temperature: 0 }).finalMessage()
    same([msg.content[0].text, msg.stop_reason], [plain, 'end_turn'], 'message')
  })
  await check(`${name}: anthropic tools after thinking, and their result`, async () => {
    const ask = { ...params, max_tokens: 2048, tools: [tool(weather)], thinking: { type: 'enabled', budget_tokens: 1024 } }
    const msg = await anthropic.messages.stream(ask).finalMessage()
    same([msg.content.map((c) => c.type), msg.content[1].input, msg.stop_reason], [['thinking', 'tool_use'], weather.arguments, 'tool_use'], 'message')
    must(msg.content[0].signature, 'no signature')
    const result = { role: 'user', content: [{ type: 'tool_result', tool_use_id: msg.content[1].id, content: 'sunny' }] }
    const after = await anthropic.messages.create({ ...ask, messages: [...messages, { role: 'assistant', content: msg.content }, result] })
    same(after.stop_reason, 'end_turn', 'stop_reason')
  })
  await check(`${name}: anthropic count_tokens is what is billed`, async () => {
    const counted = await anthropic.messages.countTokens({ model: params.model, messages })
    same(counted.input_tokens, (await anthropic.messages.create(params)).usage.input_tokens, 'tokens')
  })
  await check(`${name}: anthropic, an abort reaches the provider`, () => reachesProvider('sim-abort-messages', async () => {
    const stream = anthropic.messages.stream({ ...params, model: 'e2e-abort-messages' })
    stream.on('text', () => stream.abort())
    const err = await thrown(stream.finalMessage())
    must(err instanceof Anthropic.APIUserAbortError, `${err}`)
  }))

  await check(`${name}: anthropic, taking back a plain request reaches the provider`, async () => {
    const err = await waitingLeaves('sim-abort-messages', (signal) => anthropic.messages.create({ ...params, model: 'e2e-abort-messages' }, { signal }))
    must(err instanceof Anthropic.APIUserAbortError, `${err}`)
  })
  await check(`${name}: anthropic, calls in parallel, plain and streamed, and their results`, async () => {
    const ask = { ...params, tools: [tool(weather), tool(forecast)], tool_choice: { type: 'auto', disable_parallel_tool_use: false } }
    const calls = (msg) => msg.content.map((c) => [c.name, c.input])
    const whole = await anthropic.messages.create(ask)
    same(calls(whole), both, 'calls')
    same(calls(await anthropic.messages.stream(ask).finalMessage()), both, 'streamed calls')
    const results = whole.content.map((c) => ({ type: 'tool_result', tool_use_id: c.id, content: 'sunny' }))
    const after = await anthropic.messages.create({ ...ask, messages: [...messages, { role: 'assistant', content: whole.content }, { role: 'user', content: results }] })
    same(after.stop_reason, 'end_turn', 'stop_reason')
  })
  await check(`${name}: anthropic beta, the client runs the tools by itself`, async () => {
    const run = betaZodTool({ name: weather.name, description: weather.description, inputSchema: z.object({ city: z.string(), days: z.int() }), run: ({ city }) => `sunny in ${city}` })
    const last = await anthropic.beta.messages.toolRunner({ ...params, tools: [run], stream: true }).runUntilDone()
    same([last.content[0].type, last.stop_reason], ['text', 'end_turn'], 'message')
  })
  await check(`${name}: anthropic, structured, plain and streamed`, async () => {
    const ask = { ...params, output_config: { format: zodOutputFormat(itinerary) } }
    same((await anthropic.messages.parse(ask)).parsed_output, itineraryAnswer, 'parsed')
    same((await anthropic.messages.stream(ask).finalMessage()).parsed_output, itineraryAnswer, 'parsed stream')
  })
  await check(`${name}: anthropic, the helper's events`, async () => {
    const seen = []
    const stream = anthropic.messages.stream(params)
    for (const event of ['connect', 'contentBlock', 'message', 'finalMessage', 'end']) stream.on(event, () => seen.push(event))
    let snapshot
    stream.on('text', (_, so_far) => { snapshot = so_far })
    await stream.done()
    same([seen, snapshot], [['connect', 'contentBlock', 'message', 'finalMessage', 'end'], plain], 'events')
    must(stream.request_id?.startsWith('req_'), `request_id ${stream.request_id}`)
  })
  await check(`${name}: anthropic, the request's id and our header fields`, async () => {
    for (const call of [() => anthropic.messages.create(params), () => anthropic.beta.messages.create(params), () => anthropic.messages.countTokens({ model: params.model, messages }), () => anthropic.models.retrieve(params.model)]) {
      const { data, response, request_id } = await call().withResponse()
      must(request_id === response.headers.get('idc-request-id') && data._request_id === request_id, `request_id ${request_id}`)
      same(response.headers.get('idc-entry-region'), name, 'idc-entry-region')
    }
  })
  await check(`${name}: anthropic, all models page by page, and one by its name`, async () => {
    const ids = []
    for await (const m of anthropic.models.list({ limit: 2 })) ids.push(m.id)
    must(new Set(ids).size === ids.length && ids.includes(params.model), `models ${ids}`)
    const one = await anthropic.models.retrieve(params.model)
    same([one.id, one.type, one.display_name], [params.model, 'model', params.model], 'model')
    must(!Number.isNaN(Date.parse(one.created_at)), one.created_at)
  })
  await check(`${name}: anthropic, a refusal is passed on`, async () => {
    same((await anthropic.messages.stream({ ...params, model: 'e2e-refusal-messages' }).finalMessage()).stop_reason, 'refusal', 'stop_reason')
  })
  for (const broken of ['e2e-cut-messages', 'e2e-late-error-messages']) {
    await check(`${name}: anthropic, ${broken} raises in the middle of a stream`, async () => {
      const err = await thrown(anthropic.messages.stream({ ...params, model: broken }).finalMessage())
      must(err instanceof Anthropic.APIError && ['api_error', 'overloaded_error'].includes(err.error?.error?.type ?? err.type), `${err} ${JSON.stringify(err)}`)
    })
  }
}
