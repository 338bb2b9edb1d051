// The official Anthropic client.
import Anthropic from '@anthropic-ai/sdk'
import { check, cluster, messages, must, reachesProvider, same, thrown, weather } from './kit.mjs'

const tool = { name: weather.name, description: weather.description, input_schema: weather.parameters }

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
    const ask = { ...params, max_tokens: 2048, tools: [tool], thinking: { type: 'enabled', budget_tokens: 1024 } }
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

  const refused = async (what, over, Class, status, type, options) => check(`${name}: anthropic, ${what}`, async () => {
    const err = await thrown(anthropic.messages.create({ ...params, ...over }, options))
    must(err instanceof Class, `${err.constructor.name} ${err.message}, want ${Class.name}`)
    must(status.includes(err.status) && type.includes(err.error?.error?.type), `${err.status} ${JSON.stringify(err.error)}, want ${status} ${type}`)
    must(['true', 'false'].includes(err.headers.get('x-should-retry')), 'no x-should-retry')
  })
  await refused('unknown model is 404', { model: 'no-such-model' }, Anthropic.NotFoundError, [404], ['not_found_error'])
  await refused('unknown hint is 400', {}, Anthropic.BadRequestError, [400], ['invalid_request_error'], { headers: { 'idc-region-hint': 'nowhere' } })
  await refused('too long a prompt is 400', { model: 'e2e-context-messages' }, Anthropic.BadRequestError, [400], ['invalid_request_error'])
  await refused('another org\'s project is 403', {}, Anthropic.PermissionDeniedError, [403], ['permission_error'], { headers: { 'idc-project-id': 'prj_nobody' } })
  await refused('a failing provider is 502 or 503', { model: 'e2e-503-messages' }, Anthropic.InternalServerError, [502, 503], ['api_error', 'overloaded_error'])
  await refused('a silent provider is 504 or 503', { model: 'e2e-silence-messages' }, Anthropic.InternalServerError, [504, 503], ['timeout_error', 'overloaded_error'])
  await check(`${name}: anthropic, a wrong key is 401`, async () => {
    const err = await thrown(new Anthropic({ ...key, apiKey: 'idc_live_any_nonsense', maxRetries: 0 }).messages.create(params))
    must(err instanceof Anthropic.AuthenticationError && err.error?.error?.type === 'authentication_error', `${err}`)
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
