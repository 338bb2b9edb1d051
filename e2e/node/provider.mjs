// A provider of our own, for what only a provider sees: when a request came,
// under which header fields, how often.
import { readFileSync } from 'node:fs'
import https from 'node:https'

// Where the upstreams of routes.yaml expect it, with the certificate (PEM files
// that TLS_CERT and TLS_KEY name) that the cluster trusts.
const port = 29480

const good = {
  '/v1/chat/completions': (model) => ({ id: 'chatcmpl-1', object: 'chat.completion', created: 1, model, choices: [{ index: 0, message: { role: 'assistant', content: 'at last' }, finish_reason: 'stop' }], usage: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 } }),
  '/v1/messages': (model) => ({ id: 'msg_1', type: 'message', role: 'assistant', model, content: [{ type: 'text', text: 'at last' }], stop_reason: 'end_turn', stop_sequence: null, usage: { input_tokens: 3, output_tokens: 2 } }),
}

// openProvider listens. seen(model) are its requests for model so far. The first
// request for a model that begins with "busy" is turned away, for pause.
export async function openProvider(pause) {
  const calls = []
  const seen = (model) => calls.filter((c) => c.model === model)
  const server = https.createServer({ cert: readFileSync(process.env.TLS_CERT), key: readFileSync(process.env.TLS_KEY) }, async (req, res) => {
    const at = performance.now()
    const chunks = []
    for await (const chunk of req) chunks.push(chunk)
    const { model } = JSON.parse(Buffer.concat(chunks))
    calls.push({ at, model, headers: req.headers })
    const busy = model.startsWith('busy') && seen(model).length === 1
    res.writeHead(busy ? 429 : 200, { 'content-type': 'application/json', ...(busy && { 'retry-after-ms': `${pause}` }) })
    res.end(JSON.stringify(busy ? { error: { type: 'rate_limit_error', message: 'slow down' } } : good[req.url](model)))
  })
  await new Promise((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve))
  return { seen, close: () => { server.close(); server.closeAllConnections() } }
}
