// Without a client: fetch as Node has it, and what a page in a browser would meet.
import { check, cluster, messages, must, same } from './kit.mjs'

export async function rawChecks(name, base) {
  const url = `${base}/v1/chat/completions`
  const headers = { authorization: `Bearer ${cluster.api_key}`, 'content-type': 'application/json' }
  const body = JSON.stringify({ model: cluster.model, messages })

  await check(`${name}: fetch, a body sent in pieces, of no stated length`, async () => {
    const pieces = new ReadableStream({
      async start(to) {
        for (let at = 0; at < body.length; at += 16) to.enqueue(new TextEncoder().encode(body.slice(at, at + 16)))
        to.close()
      },
    })
    const response = await fetch(url, { method: 'POST', headers, body: pieces, duplex: 'half' })
    must(response.ok && (await response.json()).choices[0].message.content.length > 10, `${response.status}`)
  })
  await check(`${name}: fetch, a stream read event by event`, async () => {
    const response = await fetch(url, { method: 'POST', headers, body: JSON.stringify({ model: cluster.model, messages, stream: true }) })
    let text = ''
    let reads = 0
    for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
      text += piece
      reads++
    }
    must(text.endsWith('data: [DONE]\n\n') && reads > 3, `${reads} reads: ${text}`)
  })
  await check(`${name}: fetch, a form where JSON is wanted says what to send`, async () => {
    const response = await fetch(url, { method: 'POST', headers: { authorization: headers.authorization }, body: new URLSearchParams({ model: cluster.model }) })
    const { error } = await response.json()
    must(response.status === 400 && /content-type: application\/json/.test(error.message), `${response.status} ${error.message}`)
  })
  await check(`${name}: a page's preflight is refused in words`, async () => {
    const response = await fetch(url, { method: 'OPTIONS', headers: { origin: 'https://shop.example', 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization,content-type' } })
    const { error } = await response.json()
    same([response.status, error.code, response.headers.get('access-control-allow-origin')], [405, 'method_not_allowed', null], 'answer')
    must(/browser/.test(error.message) && /server/.test(error.message), error.message)
  })
}
