// A real language model behind the OpenAI chat format: llama.cpp (prebuilt CPU
// build, through node-llama-cpp) over the tiny model beside this file.
// Settings by environment, see README.md. This file is the HTTP side;
// model.mjs is the model side.
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { fileURLToPath } from 'node:url';

import { openModel, PromptTooLong } from './model.mjs';

const MAX_BODY = 1 << 20; // bytes
const name = process.env.MODEL || 'tiny-drill';
const model = await openModel({
  path: process.argv[2] || fileURLToPath(new URL('tiny.gguf', import.meta.url)),
  sequences: Number(process.env.SEQUENCES || 8),
});

class RequestError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

function sendJSON(res, status, value) {
  const body = JSON.stringify(value);
  res.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) });
  res.end(body);
}

function sendError(res, { status = 500, code = 'server_error', message }) {
  const type = status < 500 ? 'invalid_request_error' : 'server_error';
  sendJSON(res, status, { error: { message, type, param: null, code } });
}

async function readBody(req) {
  const chunks = [];
  let size = 0;
  for await (const chunk of req) {
    size += chunk.length;
    if (size > MAX_BODY) throw new RequestError(413, 'request_too_large', `the body is over ${MAX_BODY} bytes`);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks));
  } catch {
    throw new RequestError(400, 'invalid_json', 'the body is not JSON');
  }
}

// textOf joins the text parts of a message; a plain string is its own text.
function textOf(content) {
  if (typeof content === 'string') return content;
  return Array.isArray(content) ? content.map((part) => part.text ?? '').join('') : '';
}

function check(body) {
  if (body?.model !== name) throw new RequestError(404, 'model_not_found', `model '${body?.model}' not found`);
  if (!Array.isArray(body.messages)) throw new RequestError(400, 'missing_required_parameter', 'messages is required');
  return {
    messages: body.messages.map((m) => ({ role: String(m?.role), text: textOf(m?.content) })),
    maxTokens: Math.min(body.max_tokens ?? body.max_completion_tokens ?? 256, 512),
    temperature: body.temperature ?? 0.7,
    topP: body.top_p,
    seed: body.seed,
  };
}

async function chat(req, res) {
  const body = await readBody(req);
  const prompt = check(body);
  const left = new AbortController();
  res.on('close', () => left.abort());

  const base = { id: `chatcmpl-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model: name };
  const event = (choices, extra) =>
    res.write(`data: ${JSON.stringify({ ...base, object: 'chat.completion.chunk', choices, ...extra })}\n\n`);
  const delta = (d, finish_reason = null) => event([{ index: 0, delta: d, finish_reason }]);

  const begin = () => {
    if (!body.stream) return;
    res.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' });
    delta({ role: 'assistant', content: '' });
  };
  const said = (text) => body.stream && delta({ content: text });
  const answer = await model.answer(prompt, { begin, said, signal: left.signal });
  if (left.signal.aborted) return;

  const usage = {
    prompt_tokens: answer.promptTokens,
    completion_tokens: answer.completionTokens,
    total_tokens: answer.promptTokens + answer.completionTokens,
  };
  if (!body.stream) {
    const message = { role: 'assistant', content: answer.text };
    const choices = [{ index: 0, message, logprobs: null, finish_reason: answer.finish }];
    return sendJSON(res, 200, { ...base, object: 'chat.completion', choices, usage });
  }
  delta({}, answer.finish);
  if (body.stream_options?.include_usage) event([], { usage });
  res.end('data: [DONE]\n\n');
}

async function handle(req, res) {
  try {
    switch (`${req.method} ${req.url}`) {
      case 'GET /health':
        return sendJSON(res, 200, { status: 'ok', ...model.load() });
      case 'GET /v1/models':
        return sendJSON(res, 200, {
          object: 'list',
          data: [{ id: name, object: 'model', created: 1767225600, owned_by: 'local' }],
        });
      case 'POST /v1/chat/completions':
        return await chat(req, res);
      default:
        throw new RequestError(404, 'unknown_url', `nothing is served at ${req.method} ${req.url}`);
    }
  } catch (err) {
    if (res.destroyed) return; // the client left; nothing to tell it
    if (res.headersSent) return void res.destroy(); // mid-stream: a cut, never a clean end
    if (err instanceof PromptTooLong) return sendError(res, { status: 400, code: 'context_length_exceeded', message: err.message });
    sendError(res, err);
  }
}

const { TLS_CERT, TLS_KEY } = process.env;
const server =
  TLS_CERT && TLS_KEY
    ? https.createServer({ cert: readFileSync(TLS_CERT), key: readFileSync(TLS_KEY), minVersion: 'TLSv1.3' }, handle)
    : http.createServer(handle);

server.listen(Number(process.env.PORT || 0), '127.0.0.1', () => {
  const scheme = TLS_CERT && TLS_KEY ? 'https' : 'http';
  console.log(`listening ${scheme}://127.0.0.1:${server.address().port}`);
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(0));
