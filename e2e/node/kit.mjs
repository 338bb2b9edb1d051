// What the checks share: the cluster, a verdict per check, and a fetch that
// notes what really went over the wire.
import { readFileSync } from 'node:fs'
import { z } from 'zod'

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

// weather is a tool, with what the simulated provider calls it with.
export const weather = {
  name: 'weather',
  description: 'The weather in a city',
  parameters: { type: 'object', properties: { city: { type: 'string' }, days: { type: 'integer' } }, required: ['city', 'days'], additionalProperties: false },
  arguments: { city: 'Zürich', days: 7 },
}

// forecast is a second tool, for calls in parallel; itinerary the shape of an
// answer; both with what the simulated provider makes of them.
export const forecast = { ...weather, name: 'forecast', description: 'The weather to come in a city' }
export const itinerary = z.object({ city: z.string(), days: z.int(), rail: z.boolean(), stops: z.array(z.string()) })
export const itineraryAnswer = { city: 'Zürich', days: 7, rail: true, stops: ['Zürich'] }

// counts is what the provider of the first region served of model.
async function counts(model) {
  return (await (await fetch(`${cluster.upstreams[0].url}/sim/counts`)).json()).models[model] ?? {}
}

// alone runs body while no other that reads the provider's counts does: the
// clients' checks run side by side.
let last = Promise.resolve()
function alone(body) {
  const mine = last.then(body)
  last = mine.catch(() => {}) // whoever called has it
  return mine
}

// waitingLeaves gives the error of leave, which must give up one request for model
// that the provider has begun to serve: by the signal, or by a deadline of its own.
export const waitingLeaves = (model, leave) => alone(async () => {
  const before = await counts(model)
  const gone = new AbortController()
  const left = leave(gone.signal)
  left.catch(() => {}) // awaited below
  await eventually('the provider is asked', 5000, async () => ((await counts(model)).requests ?? 0) === (before.requests ?? 0) + 1)
  gone.abort()
  const err = await thrown(left)
  await eventually('the provider sees its client leave', 5000, async () => ((await counts(model)).client_gone ?? 0) === (before.client_gone ?? 0) + 1)
  return err
})

// reachesProvider runs leave, which must break off one stream of model that goes
// on.
export const reachesProvider = (model, leave) => alone(async () => {
  const before = await counts(model)
  await leave()
  await eventually('the provider sees its client leave', 5000, async () => ((await counts(model)).aborted ?? 0) === (before.aborted ?? 0) + 1)
})
