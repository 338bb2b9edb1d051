// Every client goes on asking while a region dies and comes back: each call ends
// in the whole answer or in an error of its own, never in part of an answer.
import net from 'node:net'
import { createInterface } from 'node:readline'
import { ChatAnthropic } from '@langchain/anthropic'
import { ChatOpenAI } from '@langchain/openai'
import Anthropic from '@anthropic-ai/sdk'
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, streamText } from 'ai'
import OpenAI from 'openai'
import { check, cluster, eventually, messages, must, question, sleep } from './kit.mjs'

// supervisor talks to `ringmain dev`; a hold ends with the connection.
export function supervisor() {
  const socket = net.connect(cluster.supervisor)
  const answers = createInterface({ input: socket })[Symbol.asyncIterator]()
  return {
    async ask(op, region = '') {
      socket.write(`${JSON.stringify({ op, region })}\n`)
      const answer = JSON.parse((await answers.next()).value)
      must(answer.ok, `${op} ${region}: ${answer.error}`)
      return answer.processes ?? []
    },
    close: () => socket.destroy(),
  }
}

// kill ends the processes of those nodes of region that which picks.
export async function kill(control, region, which) {
  const pids = (await control.ask('status')).filter((p) => p.region === region && which(p)).flatMap((p) => [p.pid, p.worker_pid]).filter((pid) => pid > 0)
  must(pids.length > 0, 'nothing to kill')
  for (const pid of pids) {
    try { process.kill(pid, 'SIGKILL') } catch (err) { must(err.code === 'ESRCH', `${err}`) } // a worker may go with its keeper
  }
}

// clients are the calls that go on; each gives the text that its client made of
// the answer, or throws what its client throws.
function clients(base, far) {
  const key = { baseURL: `${base}/v1`, apiKey: cluster.api_key }
  const openai = new OpenAI({ ...key, maxRetries: 1 })
  const anthropic = new Anthropic({ baseURL: base, apiKey: cluster.api_key, maxRetries: 1 })
  const vercel = createOpenAI(key)
  const compatible = createOpenAICompatible({ ...key, name: 'ringmain' })
  const ask = { model: cluster.messages_model, max_tokens: 64, messages }
  const all = {
    'openai stream': async (model) => {
      let text = ''
      for await (const chunk of await openai.chat.completions.create({ model, messages, stream: true })) text += chunk.choices[0]?.delta?.content ?? ''
      return text
    },
    'openai plain': async (model) => (await openai.chat.completions.create({ model, messages })).choices[0].message.content,
    'openai responses': async (model) => (await openai.responses.stream({ model, input: question, store: false }).finalResponse()).output_text,
    'ai stream': async (model) => {
      let failed
      const result = streamText({ model: vercel.chat(model), prompt: question, maxRetries: 1, onError: ({ error }) => { failed = error } })
      let text = ''
      for await (const part of result.textStream) text += part
      if (failed) throw failed
      return text
    },
    'ai compatible': async (model) => (await generateText({ model: compatible(model), prompt: question, maxRetries: 1 })).text,
    'langchain stream': async (model) => {
      let text = ''
      const chat = new ChatOpenAI({ model, apiKey: cluster.api_key, maxRetries: 1, configuration: { baseURL: `${base}/v1` } })
      for await (const chunk of await chat.stream(question)) text += chunk.text
      return text
    },
  }
  const messagesClients = far ? {} : {
    'anthropic stream': async () => (await anthropic.messages.stream(ask).finalMessage()).content[0].text,
    'ai anthropic': async () => (await generateText({ model: createAnthropic(key)(ask.model), prompt: question, maxOutputTokens: 64, maxRetries: 1 })).text,
    'langchain anthropic': async () => {
      let text = ''
      const chat = new ChatAnthropic({ model: ask.model, apiKey: cluster.api_key, anthropicApiUrl: base, maxRetries: 1, maxTokens: 64 })
      for await (const chunk of await chat.stream(question)) text += chunk.text
      return text
    },
  }
  return { all, messagesClients }
}

export async function regionLossChecks() {
  const lost = cluster.regions.at(-1).name
  // Through the front door and a surviving region; the model that only the lost
  // region has is executed there.
  const entries = [['front door', cluster.front_door, cluster.model], [cluster.regions[0].name, cluster.regions[0].api, cluster.model], [`${cluster.regions[0].name}, forwarded`, cluster.regions[0].api, cluster.remote_model]]
  const calls = []
  for (const [entry, base, model] of entries) {
    const { all, messagesClients } = clients(base, model === cluster.remote_model)
    for (const [client, call] of Object.entries({ ...all, ...messagesClients })) calls.push({ name: `${client} at ${entry}`, call: () => call(model), far: model === cluster.remote_model, wrong: [], failed: [], good: { before: 0, during: 0, recovering: 0, after: 0 } })
  }
  let phase = 'before'
  let over = false
  const loops = calls.map(async (c) => {
    let want // all is well: this is the answer
    try {
      want = await c.call()
    } catch (err) {
      c.failed.push(`before, the first: ${err}`)
    }
    while (want !== undefined && !over) {
      const began = phase
      try {
        const got = await c.call()
        if (got === want) c.good[began]++
        else c.wrong.push(got)
      } catch (err) {
        // What was under way when the region died belongs to the loss.
        c.failed.push(`${began === 'before' ? phase : began}: ${err?.name} ${err?.status ?? ''} ${err?.message}`)
        if (!(err instanceof Error)) c.wrong.push(`threw ${err}`)
      }
      await sleep(100)
    }
  })
  const control = supervisor()
  await check(`region loss: ${lost} dies under every client, and comes back`, async () => {
    await eventually('every client had an answer', 20_000, () => calls.every((c) => c.good.before > 0))
    await control.ask('hold', lost)
    phase = 'during'
    await kill(control, lost, () => true)
    await sleep(6000)
    phase = 'recovering'
    await control.ask('release', lost)
    await eventually('the lost region answers', 30_000, async () => (await fetch(`${cluster.regions.at(-1).api}/readyz`).catch(() => undefined))?.ok)
    await sleep(2000)
    phase = 'after'
    await eventually('every client has answers again', 20_000, () => calls.every((c) => c.good.after > 0))
  })
  over = true
  control.close()
  await Promise.all(loops)
  for (const c of calls) {
    await check(`region loss: ${c.name}: ${c.good.before + c.good.during + c.good.recovering + c.good.after} whole answers (${c.good.during} meanwhile), ${c.failed.length} errors`, async () => {
      must(c.wrong.length === 0, `not the answer, and no error: ${JSON.stringify(c.wrong.slice(0, 2))}`)
      must(c.far || c.good.during > 0, `no answer while the region was gone: ${c.failed.slice(0, 3).join('; ')}`)
      must(!c.far || c.failed.length > 0, 'no error while the only region with this model was gone')
      must(!c.failed.some((f) => f.startsWith('before')), `failed while all was well: ${c.failed.slice(0, 3).join('; ')}`)
    })
  }
}
