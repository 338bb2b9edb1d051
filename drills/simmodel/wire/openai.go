package wire

import (
	"fmt"
	"net/http"
)

// OpenAI is what OpenAI's formats share; by itself it answers what has no text
// and no stream.
type OpenAI struct{}

func (OpenAI) RequestIDHeader() string { return "x-request-id" }

func (OpenAI) ErrorBody(e Error) any {
	kind := "invalid_request_error"
	switch {
	case e.Status == http.StatusTooManyRequests:
		kind = "rate_limit_error"
	case e.Status >= 500:
		kind = "server_error"
	}
	o := Object{"message": e.Message, "type": kind, "param": e.Param, "code": e.Code}
	if e.Inner != nil {
		o["type"], o["status"], o["innererror"] = nil, e.Status, e.Inner
	}
	return Object{"error": o}
}

func (OpenAI) Models(names []string, owner string) any {
	data := make([]Object, len(names))
	for i, n := range names {
		data[i] = Object{"id": n, "object": "model", "created": 1767225600, "owned_by": owner}
	}
	return Object{"object": "list", "data": data}
}

func (OpenAI) Plain(*Answer) any                 { return Object{} }
func (OpenAI) Start(*Answer) []byte              { return nil }
func (OpenAI) Open(*Answer, int) []byte          { return nil }
func (OpenAI) Piece(*Answer, int, string) []byte { return nil }
func (OpenAI) Close(*Answer, int) []byte         { return nil }
func (OpenAI) End(*Answer) (out, mark []byte)    { return nil, nil }

func (d OpenAI) ErrorEvent(_ *Answer, e Error) []byte { return data(d.ErrorBody(e)) }

// data is an event without a name.
func data(v any) []byte { return fmt.Appendf(nil, "data: %s\n\n", MustJSON(v)) }

func (OpenAI) finish(c *Answer) string {
	switch c.Stop {
	case CutShort:
		return "length"
	case Called:
		return "tool_calls"
	case Filtered:
		return "content_filter"
	default:
		return "stop"
	}
}

func (OpenAI) usage(c *Answer) Object {
	return Object{
		"prompt_tokens": c.Prompt, "completion_tokens": c.Output, "total_tokens": c.Prompt + c.Output,
		"prompt_tokens_details":     Object{"cached_tokens": 0},
		"completion_tokens_details": Object{"reasoning_tokens": c.reasoning()},
	}
}

// withUsage gives a chunk its usage. Where it was asked for, every chunk but the
// last carries a null, as the real ones do; else the field is absent.
func (OpenAI) withUsage(c *Answer, o Object, usage any) []byte {
	if c.Usage {
		o["usage"] = usage
	}
	return data(o)
}

// Chat is the chat completions format. Thoughts are not shown in it.
type Chat struct{ OpenAI }

func (Chat) head(c *Answer, kind string, choices []Object) Object {
	return Object{
		"id": fmt.Sprintf("chatcmpl-%s-%d", c.Provider, c.Serial), "object": kind, "created": c.Created, "model": c.Model,
		"service_tier": "default", "system_fingerprint": "fp_sim", "choices": choices,
	}
}

func (d Chat) Plain(c *Answer) any {
	message := Object{"role": "assistant", "content": c.TextOf(Text), "refusal": nil}
	switch c.Stop {
	case Refused:
		message["content"], message["refusal"] = nil, c.TextOf(Refusal)
	case Called:
		message["content"] = nil
		var calls []Object
		for i, p := range c.Parts {
			if p.Kind == Call {
				calls = append(calls, Object{"id": c.callID("call", i), "type": "function", "function": Object{"name": p.Name, "arguments": p.Text}})
			}
		}
		message["tool_calls"] = calls
	}
	o := d.head(c, "chat.completion", []Object{{"index": 0, "message": message, "logprobs": nil, "finish_reason": d.finish(c)}})
	o["usage"] = d.usage(c)
	return o
}

func (d Chat) delta(c *Answer, delta Object, finish any) []byte {
	choices := []Object{{"index": 0, "delta": delta, "logprobs": nil, "finish_reason": finish}}
	return d.withUsage(c, d.head(c, "chat.completion.chunk", choices), nil)
}

func (d Chat) Start(c *Answer) []byte {
	return d.delta(c, Object{"role": "assistant", "content": "", "refusal": nil}, nil)
}

// callIndex counts the calls before part i.
func callIndex(c *Answer, i int) int {
	n := 0
	for _, p := range c.Parts[:i] {
		if p.Kind == Call {
			n++
		}
	}
	return n
}

func (d Chat) Open(c *Answer, i int) []byte {
	if c.Parts[i].Kind != Call {
		return nil
	}
	return d.delta(c, Object{"tool_calls": []Object{{"index": callIndex(c, i), "id": c.callID("call", i), "type": "function",
		"function": Object{"name": c.Parts[i].Name, "arguments": ""}}}}, nil)
}

func (d Chat) Piece(c *Answer, i int, text string) []byte {
	switch c.Parts[i].Kind {
	case Text:
		return d.delta(c, Object{"content": text}, nil)
	case Refusal:
		return d.delta(c, Object{"refusal": text}, nil)
	case Call:
		return d.delta(c, Object{"tool_calls": []Object{{"index": callIndex(c, i), "function": Object{"arguments": text}}}}, nil)
	default:
		return nil
	}
}

func (d Chat) End(c *Answer) (out, mark []byte) {
	out = d.delta(c, Object{}, d.finish(c))
	if c.Usage {
		out = append(out, d.withUsage(c, d.head(c, "chat.completion.chunk", []Object{}), d.usage(c))...)
	}
	return out, []byte("data: [DONE]\n\n")
}

// Completions is the older text completions format: text and nothing else.
type Completions struct{ OpenAI }

func (d Completions) body(c *Answer, choices []Object) Object {
	return Object{
		"id": fmt.Sprintf("cmpl-%s-%d", c.Provider, c.Serial), "object": "text_completion", "created": c.Created,
		"model": c.Model, "system_fingerprint": "fp_sim", "choices": choices,
	}
}

func (Completions) choice(text string, finish any) []Object {
	return []Object{{"index": 0, "text": text, "logprobs": nil, "finish_reason": finish}}
}

func (d Completions) Plain(c *Answer) any {
	o := d.body(c, d.choice(c.TextOf(Text)+c.TextOf(Refusal), d.finish(c)))
	o["usage"] = d.usage(c)
	return o
}

func (d Completions) Piece(c *Answer, i int, text string) []byte {
	if k := c.Parts[i].Kind; k != Text && k != Refusal {
		return nil
	}
	return d.withUsage(c, d.body(c, d.choice(text, nil)), nil)
}

func (d Completions) End(c *Answer) (out, mark []byte) {
	out = d.withUsage(c, d.body(c, d.choice("", d.finish(c))), nil)
	if c.Usage {
		out = append(out, d.withUsage(c, d.body(c, []Object{}), d.usage(c))...)
	}
	return out, []byte("data: [DONE]\n\n")
}
