// The official OpenAI client.
import OpenAI, { toFile } from 'openai'
import { check, cluster, messages, must, question, reachesProvider, recorder, same, thrown, weather } from './kit.mjs'

const chatTool = { type: 'function', function: { name: weather.name, description: weather.description, parameters: weather.parameters } }
const responsesTool = { type: 'function', name: weather.name, parameters: weather.parameters, strict: true }

export async function openaiChecks(name, base) {
  const key = { baseURL: `${base}/v1`, apiKey: cluster.api_key }
  const openai = new OpenAI({ ...key, maxRetries: 0 })
  const model = cluster.model
  let plain

  await check(`${name}: openai chat, plain`, async () => {
    const { data, response } = await openai.chat.completions.create({ model, messages }).withResponse()
    plain = data.choices[0].message.content
    must(plain.length > 10, `answer ${JSON.stringify(plain)}`)
    must(data.usage.total_tokens === data.usage.prompt_tokens + data.usage.completion_tokens, 'usage does not add up')
    must(response.headers.get('idc-request-id')?.startsWith('req_'), 'no idc-request-id')
    for (const account of ['openai-organization', 'openai-project', 'set-cookie', 'cf-ray', 'x-ms-region']) {
      must(!response.headers.has(account), `the provider's ${account} came through`)
    }
  })
  const text = async (params) => {
    let out = ''
    for await (const chunk of await openai.chat.completions.create({ model, messages, stream: true, ...params })) {
      out += chunk.choices[0]?.delta?.content ?? ''
    }
    return out
  }
  await check(`${name}: openai chat, streaming equals plain`, async () => same(await text({}), plain, 'text'))
  await check(`${name}: openai chat, spliced where the nearest replica breaks off`, async () =>
    same(await text({ model: 'e2e-splice', temperature: 0 }), plain, 'text'))
  await check(`${name}: openai chat, tools and their result`, async () => {
    const params = { model, messages, tools: [chatTool] }
    const whole = await openai.chat.completions.create(params)
    const call = whole.choices[0].message.tool_calls[0]
    same([whole.choices[0].finish_reason, call.function.name, JSON.parse(call.function.arguments)], ['tool_calls', weather.name, weather.arguments], 'call')
    const streamed = await openai.chat.completions.stream(params).finalChatCompletion()
    same(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments, 'streamed arguments')
    const after = await openai.chat.completions.create({ ...params, messages: [...messages, whole.choices[0].message, { role: 'tool', tool_call_id: call.id, content: 'sunny' }] })
    must(after.choices[0].message.content.length > 10, 'no answer after the result')
  })
  await check(`${name}: openai completions`, async () => {
    const whole = await openai.completions.create({ model, prompt: question })
    let streamed = ''
    for await (const chunk of await openai.completions.create({ model, prompt: question, stream: true })) streamed += chunk.choices[0]?.text ?? ''
    same([whole.choices[0].text, streamed], [plain, plain], 'texts')
  })
  await check(`${name}: openai responses, plain and streamed`, async () => {
    const whole = await openai.responses.create({ model, input: question, store: false })
    must(whole.usage.output_tokens > 0 && whole.status === 'completed', JSON.stringify(whole.usage))
    const stream = openai.responses.stream({ model, input: question, store: false })
    let deltas = ''
    for await (const event of stream) if (event.type === 'response.output_text.delta') deltas += event.delta
    const last = await stream.finalResponse()
    same([whole.output_text, deltas, last.output_text], [plain, plain, plain], 'texts')
    same(last.usage.total_tokens, whole.usage.total_tokens, 'usage')
  })
  await check(`${name}: openai responses, tools`, async () => {
    const last = await openai.responses.stream({ model, input: question, store: false, tools: [responsesTool] }).finalResponse()
    same([last.output[0].name, JSON.parse(last.output[0].arguments)], [weather.name, weather.arguments], 'call')
  })
  await check(`${name}: openai embeddings, base64 and float`, async () => {
    const ask = { model: 'e2e-embed', input: ['one two', 'three'], dimensions: 8 }
    const coded = await openai.embeddings.create(ask) // the client asks for base64 and decodes it
    const float = await openai.embeddings.create({ ...ask, encoding_format: 'float' })
    same(coded.data.length, 2, 'vectors')
    same(coded.data.map((d) => d.embedding.map((x) => x.toFixed(6))), float.data.map((d) => d.embedding.map((x) => x.toFixed(6))), 'vectors')
    same(coded.usage, float.usage, 'usage')
  })
  await check(`${name}: openai audio and images pass through`, async () => {
    const speech = Buffer.from(await (await openai.audio.speech.create({ model: 'e2e-speech', voice: 'alloy', input: question })).arrayBuffer())
    same([speech.length, speech[0]], [8196, 255], 'sound')
    const heard = await openai.audio.transcriptions.create({ model: 'e2e-ear', file: await toFile(speech, 'a.mp3') })
    must(heard.text.length > 10, JSON.stringify(heard))
    const image = await openai.images.generate({ model: 'e2e-image', prompt: question })
    same(Buffer.from(image.data[0].b64_json, 'base64').subarray(1, 4).toString(), 'PNG', 'image')
  })
  await check(`${name}: openai, an abort reaches the provider`, () => reachesProvider('sim-abort', async () => {
    const stream = await openai.chat.completions.create({ model: 'e2e-abort', messages, stream: true })
    for await (const chunk of stream) if (chunk.choices[0]?.delta?.content) break // leaves the loop: the client aborts
  }))
  await check(`${name}: openai responses, an abort reaches the provider`, () => reachesProvider('sim-abort', async () => {
    const gone = new AbortController()
    const stream = await openai.responses.create({ model: 'e2e-abort', input: question, store: false, stream: true }, { signal: gone.signal })
    for await (const event of stream) if (event.type === 'response.output_text.delta') gone.abort()
  }))

  const refused = async (what, params, Class, status, codes, options) => check(`${name}: openai, ${what}`, async () => {
    const err = await thrown(openai.chat.completions.create({ model, messages, ...params }, options))
    must(err instanceof Class, `${err.constructor.name} ${err.message}, want ${Class.name}`)
    must(status.includes(err.status) && codes.includes(err.code), `${err.status} ${err.code}, want ${status} ${codes}`)
    // What a provider refused keeps the provider's own code in the body.
    same(err.headers.get('idc-error-code'), err.code === 'content_filter' ? 'invalid_request' : err.code, 'idc-error-code')
    must(['true', 'false'].includes(err.headers.get('x-should-retry')), 'no x-should-retry')
  })
  await refused('unknown model is 404', { model: 'no-such-model' }, OpenAI.NotFoundError, [404], ['model_not_found'])
  await refused('no messages is 400', { model: '' }, OpenAI.BadRequestError, [400], ['invalid_request'])
  await refused('unknown hint is 400', {}, OpenAI.BadRequestError, [400], ['unknown_region_hint'], { headers: { 'idc-region-hint': 'nowhere' } })
  await refused('too long a prompt is 400', { model: 'e2e-context' }, OpenAI.BadRequestError, [400], ['context_length_exceeded'])
  await refused('another org\'s project is 403', {}, OpenAI.PermissionDeniedError, [403], ['project_forbidden'], { headers: { 'idc-project-id': 'prj_nobody' } })
  await refused('a refusal by status is final', { model: 'e2e-refusal-400' }, OpenAI.BadRequestError, [400], ['content_filter'])
  await refused('a failing provider is 502 or 503', { model: 'e2e-503' }, OpenAI.InternalServerError, [502, 503], ['upstream_error', 'no_healthy_route'])
  await refused('a silent provider is 504 or 503', { model: 'e2e-silence' }, OpenAI.InternalServerError, [504, 503], ['upstream_timeout', 'no_healthy_route'])
  await check(`${name}: openai, a wrong key is 401`, async () => {
    const err = await thrown(new OpenAI({ ...key, apiKey: 'idc_live_any_nonsense', maxRetries: 0 }).chat.completions.create({ model, messages }))
    must(err instanceof OpenAI.AuthenticationError && err.code === 'invalid_api_key', `${err}`)
  })
  await check(`${name}: openai, storage is refused under zero retention`, async () => {
    const err = await thrown(openai.responses.create({ model, input: question, previous_response_id: 'resp_1' }, { headers: { 'idc-no-retention': 'true' } }))
    must(err instanceof OpenAI.BadRequestError && err.code === 'storage_not_allowed' ||
      err instanceof OpenAI.InternalServerError && err.code === 'zero_retention_unavailable', `${err.status} ${err.code}`)
  })
  await check(`${name}: openai, refusals in the answer`, async () => {
    const said = await openai.chat.completions.create({ model: 'e2e-refusal', messages })
    must(said.choices[0].message.refusal, JSON.stringify(said.choices))
    const streamed = await openai.chat.completions.stream({ model: 'e2e-refusal', messages }).finalChatCompletion()
    same(streamed.choices[0].message.refusal, said.choices[0].message.refusal, 'refusal')
    const cut = await openai.chat.completions.create({ model: 'e2e-refusal-finish', messages })
    same(cut.choices[0].finish_reason, 'content_filter', 'finish_reason')
  })
  // inBand: told in the stream, by us or by the provider, or before it where the model's circuit is open by now.
  const inBand = (err) => must(err instanceof OpenAI.APIError && (err.status === undefined && ['upstream_error', 'overloaded'].includes(err.code) || err.status === 503 && err.code === 'no_healthy_route'), `${err} ${err.status} ${err.code}`)
  for (const broken of ['e2e-cut', 'e2e-late-error']) {
    await check(`${name}: openai, ${broken} raises in the middle of a stream`, async () => {
      inBand(await thrown(text({ model: broken })))
    })
    await check(`${name}: openai responses, ${broken} raises in the middle of a stream`, async () => {
      inBand(await thrown(openai.responses.stream({ model: broken, input: question, store: false }).finalResponse()))
    })
  }
  await check(`${name}: openai, a client's own deadline`, async () => {
    const err = await thrown(openai.chat.completions.create({ model: 'e2e-abort', messages }, { timeout: 300 }))
    must(err instanceof OpenAI.APIConnectionTimeoutError, `${err}`)
  })
  await check(`${name}: openai does not repeat where x-should-retry forbids`, async () => {
    const wire = recorder()
    await thrown(new OpenAI({ ...key, fetch: wire.fetch, maxRetries: 2 }).chat.completions.create({ model: 'e2e-cut', messages }))
    const last = wire.calls.at(-1)
    must(wire.calls.length === 1 && last.headers.get('x-should-retry') === 'false' || last.status === 503 && last.headers.get('x-should-retry') === 'true',
      `${wire.calls.length} calls, ${last.status} ${last.headers.get('x-should-retry')}`)
  })
}
