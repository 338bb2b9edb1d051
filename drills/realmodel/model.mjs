// The model side: loads a GGUF file once and answers chat prompts with it, up
// to `sequences` at a time; the rest wait in line.
import { getLlama } from 'node-llama-cpp';

const CONTEXT = 1024; // tokens, prompt and answer together

export class PromptTooLong extends Error {}

export async function openModel({ path, sequences }) {
  const llama = await getLlama({ gpu: false, build: 'never', logLevel: 'error' });
  const model = await llama.loadModel({ modelPath: path });
  const context = await model.createContext({ contextSize: CONTEXT, sequences, threads: 1 });
  const free = Array.from({ length: sequences }, () => context.getSequence());
  const waiting = [];

  const take = () => (free.length ? Promise.resolve(free.pop()) : new Promise((resolve) => waiting.push(resolve)));
  const give = async (sequence) => {
    await sequence.clearHistory();
    const next = waiting.shift();
    if (next) next(sequence);
    else free.push(sequence);
  };

  // tokensOf renders messages in the format the model was trained on. Only the
  // markers are special tokens: a marker inside a message stays plain text.
  function tokensOf(messages) {
    const marker = (text) => model.tokenize(text, true);
    const plain = (text) => model.tokenize(text, false);
    const tokens = [model.tokens.bos];
    for (const { role, text } of messages) {
      tokens.push(...marker('<|im_start|>'), ...plain(`${role}\n${text}`), ...marker('<|im_end|>'), ...plain('\n'));
    }
    tokens.push(...marker('<|im_start|>'), ...plain('assistant\n'));
    return tokens;
  }

  // answer calls begin when the model starts and said with each new piece of
  // text; it resolves to the whole answer, or early once signal is aborted.
  async function answer({ messages, maxTokens, temperature, topP, seed }, { begin, said, signal }) {
    const length = messages.reduce((sum, m) => sum + m.text.length, 0);
    if (length > CONTEXT * 16) {
      throw new PromptTooLong('the prompt is over the context length'); // tokenizing megabytes crashes the process
    }
    const prompt = tokensOf(messages);
    if (prompt.length + maxTokens > CONTEXT) {
      throw new PromptTooLong(`a prompt of ${prompt.length} tokens is over the context of ${CONTEXT}`);
    }
    const result = { text: '', finish: 'stop', promptTokens: prompt.length, completionTokens: 0 };
    const out = [];
    const sequence = await take();
    try {
      if (signal.aborted) return result;
      begin();
      for await (const token of sequence.evaluate(prompt, { temperature, topP, seed })) {
        if (signal.aborted || model.isEogToken(token)) break;
        out.push(token);
        const now = model.detokenize(out, false);
        if (!now.endsWith('\uFFFD') && now.length > result.text.length) { // else half a character: hold it back
          said(now.slice(result.text.length));
          result.text = now;
        }
        if (out.length >= maxTokens) {
          result.finish = 'length';
          break;
        }
      }
      result.completionTokens = out.length;
      return result;
    } finally {
      await give(sequence);
    }
  }

  return { answer, load: () => ({ busy: sequences - free.length, waiting: waiting.length }) };
}
