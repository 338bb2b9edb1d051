// What the checks share: the cluster, a verdict per check, and a fetch that
// notes what really went over the wire.
import { readFileSync } from 'node:fs'

export const cluster = JSON.parse(readFileSync(process.argv[2], 'utf8'))
export const question = 'Which region feeds the ring when one is cut?'
export const messages = [{ role: 'user', content: question }]
export const score = { passed: 0, failed: 0 }

export async function check(name, body, limit = 30_000) {
  const began = Date.now()
  try {
    await within(limit, body())
    score.passed++
    console.log(`ok    ${name}${Date.now() - began > 2000 ? ` (${Date.now() - began} ms)` : ''}`)
  } catch (err) {
    score.failed++
    console.log(`FAIL  ${name}: ${err?.stack?.split('\n').slice(0, 3).join(' | ') ?? err}`)
  }
}

export async function within(ms, promise) {
  let timer
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`not within ${ms} ms`)), ms) })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

export function must(condition, message) {
  if (!condition) throw new Error(message)
}

export function same(got, want, what) {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)]
  must(a === b, `${what}: ${a}, want ${b}`)
}

// thrown gives the error of a call that must fail.
export async function thrown(promise) {
  const err = await promise.then(() => undefined, (e) => e)
  must(err, 'the call was answered')
  return err
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

export async function eventually(what, ms, ok) {
  for (const deadline = Date.now() + ms; !(await ok()); await sleep(50)) {
    must(Date.now() < deadline, `not within ${ms} ms: ${what}`)
  }
}

// recorder gives a fetch and the list of calls made with it.
export function recorder() {
  const calls = []
  const fetch = async (url, init) => {
    const call = { at: Date.now() }
    calls.push(call)
    const response = await globalThis.fetch(url, init)
    Object.assign(call, { status: response.status, headers: response.headers })
    return response
  }
  return { calls, fetch }
}

// aborted is how often clients of model left a stream that was going on, as the
// provider of the first region counted.
export async function aborted(model) {
  const counts = await (await fetch(`${cluster.upstreams[0].url}/sim/counts`)).json()
  return counts.models[model]?.aborted ?? 0
}

// reachesProvider runs leave, which must break off one stream of model.
export async function reachesProvider(model, leave) {
  const before = await aborted(model)
  await leave()
  await eventually('the provider sees its client leave', 5000, async () => (await aborted(model)) === before + 1)
}

// weather is a tool, with what the simulated provider calls it with.
export const weather = {
  name: 'weather',
  description: 'The weather in a city',
  parameters: { type: 'object', properties: { city: { type: 'string' }, days: { type: 'integer' } }, required: ['city', 'days'], additionalProperties: false },
  arguments: { city: 'Zürich', days: 7 },
}
