package simmodel

import (
	"fmt"
	"net/http"
	"strings"
)

// openAI is the chat completions format.
type openAI struct{}

type object = map[string]any

func (openAI) requestIDHeader() string { return "x-request-id" }

func (openAI) errorBody(e apiError) any {
	kind := "invalid_request_error"
	switch {
	case e.status == http.StatusTooManyRequests:
		kind = "rate_limit_error"
	case e.status >= 500:
		kind = "server_error"
	}
	return object{"error": object{"message": e.message, "type": kind, "param": nil, "code": e.code}}
}

func (openAI) models(names []string, owner string) any {
	data := make([]object, len(names))
	for i, n := range names {
		data[i] = object{"id": n, "object": "model", "created": 1767225600, "owned_by": owner}
	}
	return object{"object": "list", "data": data}
}

func (openAI) id(c *call) string { return fmt.Sprintf("chatcmpl-%s-%d", c.provider, c.serial) }

func (openAI) finish(c *call) string {
	if c.whole {
		return "stop"
	}
	return "length"
}

func (openAI) usage(c *call) object {
	return object{
		"prompt_tokens": c.prompt, "completion_tokens": len(c.tokens), "total_tokens": c.prompt + len(c.tokens),
		"prompt_tokens_details":     object{"cached_tokens": 0},
		"completion_tokens_details": object{"reasoning_tokens": 0},
	}
}

func (d openAI) plain(c *call, refused bool) any {
	text := strings.Join(c.tokens, "")
	message := object{"role": "assistant", "content": text, "refusal": nil}
	if refused {
		message["content"], message["refusal"] = nil, text
	}
	return object{
		"id": d.id(c), "object": "chat.completion", "created": c.created, "model": c.model,
		"choices": []object{{"index": 0, "message": message, "logprobs": nil, "finish_reason": d.finish(c)}},
		"usage":   d.usage(c), "service_tier": "default", "system_fingerprint": "fp_sim",
	}
}

// chunk is one event. With usage asked for, every chunk but the last carries a
// null usage, as the real one does; else the field is absent.
func (d openAI) chunk(c *call, choices []object, usage any) []byte {
	o := object{
		"id": d.id(c), "object": "chat.completion.chunk", "created": c.created, "model": c.model,
		"service_tier": "default", "system_fingerprint": "fp_sim", "choices": choices,
	}
	if c.usage {
		o["usage"] = usage
	}
	return fmt.Appendf(nil, "data: %s\n\n", mustJSON(o))
}

func (d openAI) choice(delta object, finish any) []object {
	return []object{{"index": 0, "delta": delta, "logprobs": nil, "finish_reason": finish}}
}

func (d openAI) start(c *call) []byte {
	return d.chunk(c, d.choice(object{"role": "assistant", "content": "", "refusal": nil}, nil), nil)
}

func (d openAI) delta(c *call, token string, refused bool) []byte {
	field := "content"
	if refused {
		field = "refusal"
	}
	return d.chunk(c, d.choice(object{field: token}, nil), nil)
}

func (d openAI) end(c *call, _ bool) []byte {
	out := d.chunk(c, d.choice(object{}, d.finish(c)), nil)
	if c.usage {
		out = append(out, d.chunk(c, []object{}, d.usage(c))...)
	}
	return append(out, "data: [DONE]\n\n"...)
}

func (d openAI) errorEvent(e apiError) []byte {
	return fmt.Appendf(nil, "data: %s\n\n", mustJSON(d.errorBody(e)))
}
