// Every error class of the official clients that ringmain can bring about: the
// class, the status, our code, the message and the request's id, as their users
// read them.
import Anthropic from '@anthropic-ai/sdk'
import OpenAI from 'openai'
import { check, cluster, messages, must, same, thrown, waitingLeaves } from './kit.mjs'

// Larger than any request body that is taken.
const huge = 'x'.repeat(34 << 20)

const nowhere = { headers: { 'idc-region-hint': 'nowhere' } }
const foreign = { headers: { 'idc-project-id': 'prj_nobody' } }
// Where a circuit is open by now, its users read 503.
const open = [503, 'no_healthy_route', 'overloaded_error']

// what, fields of the request, options, status, code (OpenAI), type (Anthropic), and where the circuit may be open
const table = [
  ['no model', { model: '' }, {}, 400, 'invalid_request', 'invalid_request_error'],
  ['an unknown hint', {}, nowhere, 400, 'unknown_region_hint', 'invalid_request_error'],
  ['a prompt too long', { model: 'e2e-context' }, {}, 400, 'context_length_exceeded', 'invalid_request_error'],
  ['a wrong key', {}, { headers: { authorization: 'Bearer idc_live_any_nonsense', 'x-api-key': null } }, 401, 'invalid_api_key', 'authentication_error'],
  ['another org\'s project', {}, foreign, 403, 'project_forbidden', 'permission_error'],
  ['an unknown model', { model: 'no-such-model' }, {}, 404, 'model_not_found', 'not_found_error'],
  ['a conflict at the provider', { model: 'e2e-status-409' }, {}, 409, 'invalid_request', 'invalid_request_error'],
  ['a body over our limit', { messages: [{ role: 'user', content: huge }] }, {}, 413, 'request_too_large', 'request_too_large'],
  ['a body over the provider\'s limit', { model: 'e2e-status-413' }, {}, 413, 'request_too_large', 'request_too_large'],
  ['what the provider cannot process', { model: 'e2e-status-422' }, {}, 422, 'invalid_request', 'invalid_request_error'],
  ['a failing provider', { model: 'e2e-status-500' }, {}, 502, 'upstream_error', 'api_error', open],
  ['a provider that refuses our account', { model: 'e2e-status-401' }, {}, 502, 'upstream_error', 'api_error', open],
  ['a busy provider', { model: 'e2e-429' }, {}, 503, 'upstream_saturated', 'overloaded_error', open],
  ['an overloaded provider', { model: 'e2e-status-529' }, {}, 503, 'upstream_saturated', 'overloaded_error', open],
  ['a silent provider', { model: 'e2e-silence' }, {}, 504, 'upstream_timeout', 'timeout_error', open],
]

const openaiClass = { 400: OpenAI.BadRequestError, 401: OpenAI.AuthenticationError, 403: OpenAI.PermissionDeniedError, 404: OpenAI.NotFoundError, 409: OpenAI.ConflictError, 413: OpenAI.APIError, 422: OpenAI.UnprocessableEntityError, 502: OpenAI.InternalServerError, 503: OpenAI.InternalServerError, 504: OpenAI.InternalServerError }
const anthropicClass = { ...Object.fromEntries([400, 401, 403, 404, 409, 413, 422, 502, 503, 504].map((s) => [s, Anthropic.APIError])), 400: Anthropic.BadRequestError, 401: Anthropic.AuthenticationError, 403: Anthropic.PermissionDeniedError, 404: Anthropic.NotFoundError, 409: Anthropic.ConflictError, 422: Anthropic.UnprocessableEntityError, 502: Anthropic.InternalServerError, 503: Anthropic.InternalServerError, 504: Anthropic.InternalServerError }

// readable: what whoever has only the error needs to ask us about it.
function readable(err, status) {
  const id = err.headers.get('idc-request-id')
  must(id?.startsWith('req_') && err.requestID === id, `requestID ${err.requestID}, idc-request-id ${id}`)
  same(err.headers.get('x-should-retry'), `${status === 503}`, 'x-should-retry')
  must(status !== 503 || Number(err.headers.get('retry-after-ms')) > 0, 'no retry-after-ms')
  must(!/undefined|\[object|no body/.test(err.message) && err.message.length > 20, `message ${err.message}`)
}

export async function errorChecks(name, base) {
  const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: cluster.api_key, maxRetries: 0 })
  const anthropic = new Anthropic({ baseURL: base, apiKey: cluster.api_key, maxRetries: 0 })
  for (const [what, over, options, status, code, type, or = []] of table) {
    await check(`${name}: openai, ${what} is ${status} ${code}`, async () => {
      const err = await thrown(openai.chat.completions.create({ model: cluster.model, messages, ...over }, options))
      const want = err.status === or[0] ? { status: or[0], code: [or[1], code] } : { status, code: [code] }
      must(err.status === want.status && want.code.includes(err.code), `${err.constructor.name} ${err.status} ${err.code} ${err.message}`)
      must(err.constructor === openaiClass[err.status], `${err.constructor.name}, want ${openaiClass[err.status].name}`)
      readable(err, err.status)
    })
    await check(`${name}: anthropic, ${what} is ${status} ${type}`, async () => {
      const model = over.model === undefined ? cluster.messages_model : over.model.startsWith('e2e-') ? `${over.model}-messages` : over.model
      const err = await thrown(anthropic.messages.create({ max_tokens: 16, messages, ...over, model }, options))
      const want = err.status === or[0] ? { status: or[0], type: [or[2], type] } : { status, type: [type] }
      must(err.status === want.status && want.type.includes(err.error?.error?.type), `${err.constructor.name} ${err.status} ${JSON.stringify(err.error)} ${err.message}`)
      must(err instanceof anthropicClass[err.status], `${err.constructor.name}, want ${anthropicClass[err.status].name}`)
      readable(err, err.status)
      must(!err.error.request_id || err.error.request_id === err.requestID || err.status < 500, `request_id ${err.error.request_id} in the body`)
    })
  }
  await check(`${name}: openai and anthropic, nobody there is a connection error`, async () => {
    const gone = 'https://127.0.0.1:9'
    const o = await thrown(openai.withOptions({ baseURL: `${gone}/v1` }).chat.completions.create({ model: cluster.model, messages }))
    const a = await thrown(anthropic.withOptions({ baseURL: gone }).messages.create({ model: cluster.messages_model, max_tokens: 16, messages }))
    must(o instanceof OpenAI.APIConnectionError && a instanceof Anthropic.APIConnectionError, `${o} ${a}`)
  })
  await check(`${name}: anthropic, a client's own deadline`, async () => {
    const err = await waitingLeaves('sim-abort-messages', () => anthropic.messages.create({ model: 'e2e-abort-messages', max_tokens: 64, messages }, { timeout: 1500 }))
    must(err instanceof Anthropic.APIConnectionTimeoutError, `${err}`)
  })
  await check(`${name}: openai, what is kept at a provider is not offered, and says so`, async () => {
    for (const call of [() => openai.files.list(), () => openai.batches.list(), () => openai.vectorStores.list(), () => openai.responses.retrieve('resp_1'), () => openai.fineTuning.jobs.list()]) {
      const err = await thrown(Promise.resolve().then(call))
      must(err instanceof OpenAI.NotFoundError && err.code === 'not_found', `${err.constructor.name} ${err.code} ${err.message}`)
      readable(err, 404)
    }
    const err = await thrown(Promise.resolve().then(() => anthropic.messages.batches.list()))
    must(err instanceof Anthropic.NotFoundError, `${err}`)
  })
}
