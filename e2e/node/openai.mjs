// The official OpenAI client.
import OpenAI, { toFile } from 'openai'
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod'
import { check, cluster, forecast, itinerary, itineraryAnswer, messages, must, question, reachesProvider, recorder, same, thrown, waitingLeaves, weather } from './kit.mjs'

const chatTool = ({ name, description, parameters }) => ({ type: 'function', function: { name, description, parameters } })
const responsesTool = ({ name, parameters }) => ({ type: 'function', name, parameters, strict: true })
const both = [[weather.name, weather.arguments], [forecast.name, weather.arguments]]

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
  await check(`${name}: openai, the request's id and our header fields, on every kind of answer`, async () => {
    for (const [kind, call] of Object.entries({
      plain: () => openai.chat.completions.create({ model, messages }),
      stream: () => openai.chat.completions.create({ model, messages, stream: true }),
      embeddings: () => openai.embeddings.create({ model: 'e2e-embed', input: question }),
      speech: () => openai.audio.speech.create({ model: 'e2e-speech', voice: 'alloy', input: question }),
      model: () => openai.models.retrieve(model),
    })) {
      const { data, response, request_id } = await call().withResponse()
      const h = response.headers
      must(request_id === h.get('idc-request-id') && request_id === h.get('x-request-id') && request_id.startsWith('req_'), `${kind}: request_id ${request_id}`)
      must(['stream', 'speech'].includes(kind) || data._request_id === request_id, `${kind}: _request_id ${data._request_id}`)
      must(h.get('idc-entry-region') === name && h.get('idc-route').startsWith(`${name}/`) && h.get('idc-retention') && h.get('idc-residency'), `${kind}: ${[...h.keys()]}`)
      if (kind === 'stream') for await (const _ of data);
    }
    const raw = await openai.chat.completions.create({ model, messages, stream: true }).asResponse()
    must((await raw.text()).endsWith('data: [DONE]\n\n') && raw.headers.get('content-type').startsWith('text/event-stream'), 'the raw stream')
  })
  await check(`${name}: openai, one model by its name`, async () => {
    const m = await openai.models.retrieve(model)
    same([m.id, m.object], [model, 'model'], 'model')
    must((await thrown(openai.models.retrieve('no-such-model'))) instanceof OpenAI.NotFoundError, 'an unknown model')
  })
  await check(`${name}: openai chat, streaming equals plain`, async () => same(await text({}), plain, 'text'))
  await check(`${name}: openai chat, spliced where the nearest replica breaks off`, async () =>
    same(await text({ model: 'e2e-splice', temperature: 0 }), plain, 'text'))
  await check(`${name}: openai chat, tools and their result`, async () => {
    const params = { model, messages, tools: [chatTool(weather)] }
    const whole = await openai.chat.completions.create(params)
    const call = whole.choices[0].message.tool_calls[0]
    same([whole.choices[0].finish_reason, call.function.name, JSON.parse(call.function.arguments)], ['tool_calls', weather.name, weather.arguments], 'call')
    const streamed = await openai.chat.completions.stream(params).finalChatCompletion()
    same(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments, 'streamed arguments')
    const after = await openai.chat.completions.create({ ...params, messages: [...messages, whole.choices[0].message, { role: 'tool', tool_call_id: call.id, content: 'sunny' }] })
    must(after.choices[0].message.content.length > 10, 'no answer after the result')
  })
  await check(`${name}: openai chat, calls in parallel, plain and streamed, and their results`, async () => {
    const params = { model, messages, tools: [chatTool(weather), chatTool(forecast)], parallel_tool_calls: true }
    const calls = (message) => message.tool_calls.map((c) => [c.function.name, JSON.parse(c.function.arguments)])
    const whole = (await openai.chat.completions.create(params)).choices[0].message
    same(calls(whole), both, 'calls')
    const seen = []
    const stream = openai.chat.completions.stream(params).on('tool_calls.function.arguments.done', (e) => seen.push([e.name, JSON.parse(e.arguments)]))
    const streamed = (await stream.finalChatCompletion()).choices[0].message
    same([calls(streamed), seen], [both, both], 'streamed calls')
    const results = whole.tool_calls.map((c) => ({ role: 'tool', tool_call_id: c.id, content: 'sunny' }))
    const after = await openai.chat.completions.create({ ...params, messages: [...messages, whole, ...results] })
    must(after.choices[0].message.content.length > 10, 'no answer after the results')
  })
  await check(`${name}: openai chat, the client runs the tools by itself`, async () => {
    const run = openai.chat.completions.runTools({ model, messages, stream: true, tools: [{ type: 'function', function: { ...chatTool(weather).function, parse: JSON.parse, function: ({ city }) => `sunny in ${city}` } }] })
    must((await run.finalContent()).length > 10, 'no answer after the tool')
    same(run.messages.map((m) => m.role), ['user', 'assistant', 'tool', 'assistant'], 'messages')
  })
  await check(`${name}: openai chat, structured, plain and streamed`, async () => {
    const params = { model, messages, response_format: zodResponseFormat(itinerary, 'itinerary') }
    same((await openai.chat.completions.parse(params)).choices[0].message.parsed, itineraryAnswer, 'parsed')
    same((await openai.chat.completions.stream(params).finalChatCompletion()).choices[0].message.parsed, itineraryAnswer, 'parsed stream')
  })
  await check(`${name}: openai responses, structured, plain and streamed`, async () => {
    const params = { model, input: question, store: false, text: { format: zodTextFormat(itinerary, 'itinerary') } }
    same((await openai.responses.parse(params)).output_parsed, itineraryAnswer, 'parsed')
    same((await openai.responses.stream(params).finalResponse()).output_parsed, itineraryAnswer, 'parsed stream')
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
  await check(`${name}: openai responses, the helper's events`, async () => {
    const seen = []
    const note = (e) => seen.push(e.type)
    const stream = openai.responses.stream({ model, input: question, store: false }).on('response.created', note).on('response.output_text.done', note).on('response.completed', note)
    let snapshot
    stream.on('response.output_text.delta', (e) => { snapshot = e.snapshot })
    await stream.done()
    same([seen, snapshot], [['response.created', 'response.output_text.done', 'response.completed'], plain], 'events')
  })
  await check(`${name}: openai responses, calls in parallel and their results`, async () => {
    const params = { model, store: false, tools: [responsesTool(weather), responsesTool(forecast)], parallel_tool_calls: true }
    const { output } = await openai.responses.stream({ ...params, input: question }).finalResponse()
    same(output.map((c) => [c.name, JSON.parse(c.arguments)]), both, 'calls')
    const results = output.map((c) => ({ type: 'function_call_output', call_id: c.call_id, output: 'sunny' }))
    const after = await openai.responses.create({ ...params, input: [{ role: 'user', content: question }, ...output, ...results] })
    must(after.output_text.length > 10, 'no answer after the results')
  })
  await check(`${name}: openai responses, tools`, async () => {
    const last = await openai.responses.stream({ model, input: question, store: false, tools: [responsesTool(weather)] }).finalResponse()
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
    const subtitles = await openai.audio.transcriptions.create({ model: 'e2e-ear', file: await toFile(speech, 'a.mp3'), response_format: 'text' })
    same(subtitles, `${heard.text}\n`, 'the same as plain text')
    const png = (made) => same(Buffer.from(made.data[0].b64_json, 'base64').subarray(1, 4).toString(), 'PNG', 'image')
    png(await openai.images.generate({ model: 'e2e-image', prompt: question }))
    png(await openai.images.edit({ model: 'e2e-image', prompt: question, image: [await toFile(speech, 'a.png'), await toFile(speech, 'b.png')] }))
  })
  await check(`${name}: openai audio and images pass through as streams`, async () => {
    const all = async (stream) => {
      const events = []
      for await (const event of await stream) events.push(event)
      return events
    }
    const ask = { model: 'e2e-speech', voice: 'alloy', input: question }
    const speech = Buffer.from(await (await openai.audio.speech.create(ask)).arrayBuffer())
    const raw = await (await openai.audio.speech.create({ ...ask, stream_format: 'sse' })).text() // the client does not read these
    const said = raw.split('\n\n').filter(Boolean).map((event) => JSON.parse(event.replace(/^data: /, '')))
    must(Buffer.concat(said.slice(0, -1).map((event) => Buffer.from(event.audio, 'base64'))).equals(speech), 'other sound')
    same([said.at(-1).type, said.at(-1).usage.total_tokens > 0], ['speech.audio.done', true], 'the end of the speech')
    const file = await toFile(speech, 'a.mp3')
    const heard = await all(openai.audio.transcriptions.create({ model: 'e2e-ear', file, stream: true }))
    const text = heard.filter((event) => event.type === 'transcript.text.delta').map((event) => event.delta).join('')
    same([heard.at(-1).type, heard.at(-1).text, text], ['transcript.text.done', text, (await openai.audio.transcriptions.create({ model: 'e2e-ear', file })).text], 'transcript')
    const made = await all(openai.images.generate({ model: 'e2e-image', prompt: question, stream: true, partial_images: 2 }))
    same(made.map((event) => event.type.split('.')[1]), ['partial_image', 'partial_image', 'completed'], 'pictures')
    same(made.at(-1).b64_json, (await openai.images.generate({ model: 'e2e-image', prompt: question })).data[0].b64_json, 'the last picture')
    const edited = await all(openai.images.edit({ model: 'e2e-image', prompt: question, image: [await toFile(speech, 'a.png')], stream: true, partial_images: 1 }))
    same(edited.map((event) => event.type), ['image_edit.partial_image', 'image_edit.completed'], 'edits')
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

  await check(`${name}: openai, taking back a plain request reaches the provider`, async () => {
    const err = await waitingLeaves('sim-abort', (signal) => openai.chat.completions.create({ model: 'e2e-abort', messages }, { signal }))
    must(err instanceof OpenAI.APIUserAbortError, `${err}`)
  })

  await check(`${name}: openai, a refusal by status is final`, async () => {
    const err = await thrown(openai.chat.completions.create({ model: 'e2e-refusal-400', messages }))
    // What a provider refused keeps the provider's own code in the body.
    must(err instanceof OpenAI.BadRequestError && err.code === 'content_filter', `${err.status} ${err.code}`)
    same([err.headers.get('idc-error-code'), err.headers.get('x-should-retry')], ['invalid_request', 'false'], 'header fields')
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
    const err = await waitingLeaves('sim-abort', () => openai.chat.completions.create({ model: 'e2e-abort', messages }, { timeout: 1500 }))
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
