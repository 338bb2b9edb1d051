// What must hold at every way in: each region's and the front door.
import Anthropic from '@anthropic-ai/sdk'
import OpenAI from 'openai'
import { check, cluster, messages, must } from './kit.mjs'

export async function entryChecks() {
  for (const [name, base] of [...cluster.regions.map((r) => [r.name, r.api]), ['front door', cluster.front_door]]) {
    const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: cluster.api_key, maxRetries: 0 })
    await check(`${name}: entered here`, async () => {
      const { response } = await openai.chat.completions.create({ model: cluster.model, messages }).withResponse()
      const entry = response.headers.get('idc-entry-region')
      must(name === 'front door' ? cluster.regions.some((r) => r.name === entry) : entry === name, `idc-entry-region ${entry}`)
    })
    await check(`${name}: usage is streamed only to who asks`, async () => {
      const usage = async (more) => {
        let seen
        for await (const chunk of await openai.chat.completions.create({ model: cluster.model, messages, stream: true, ...more })) seen = chunk.usage ?? seen
        return seen
      }
      must(!(await usage({})), 'usage was shown to a client that did not ask for it')
      must((await usage({ stream_options: { include_usage: true } }))?.completion_tokens > 0, 'no usage chunk')
    })
    await check(`${name}: forwarded to the model's only region`, async () => {
      const { response } = await openai.chat.completions.create({ model: cluster.remote_model, messages }).withResponse()
      const last = cluster.regions.at(-1).name
      must(response.headers.get('idc-region') === last, `idc-region ${response.headers.get('idc-region')}, want ${last}`)
    })
    await check(`${name}: models`, async () => {
      const ids = []
      for await (const m of openai.models.list()) ids.push(m.id)
      must(ids.includes(cluster.model) && ids.includes(cluster.messages_model), `models ${ids}`)
    })
    await check(`${name}: messages`, async () => {
      const msg = await new Anthropic({ baseURL: base, apiKey: cluster.api_key, maxRetries: 0 }).messages.create({ model: cluster.messages_model, max_tokens: 64, messages })
      must(msg.content[0].text.length > 10 && msg.usage.output_tokens > 0, JSON.stringify(msg))
    })
  }
}
