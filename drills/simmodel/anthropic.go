package simmodel

import (
	"fmt"
	"strings"
)

// anthropic is the messages format.
type anthropic struct{}

func (anthropic) requestIDHeader() string { return "request-id" }

func (anthropic) errorBody(e apiError) any {
	return object{"type": "error", "error": object{"type": e.kind, "message": e.message}}
}

func (anthropic) models(names []string, _ string) any {
	data := make([]object, len(names))
	for i, n := range names {
		data[i] = object{"type": "model", "id": n, "display_name": n, "created_at": "2026-01-01T00:00:00Z"}
	}
	return object{"data": data, "has_more": false, "first_id": names[0], "last_id": names[len(names)-1]}
}

func (anthropic) stopReason(c *call, refused bool) string {
	switch {
	case refused:
		return "refusal"
	case c.whole:
		return "end_turn"
	default:
		return "max_tokens"
	}
}

func (anthropic) usage(c *call, output int) object {
	return object{
		"input_tokens": c.prompt, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
		"output_tokens": output, "service_tier": "standard",
	}
}

func (d anthropic) message(c *call, content []object, stop any, output int) object {
	return object{
		"id": fmt.Sprintf("msg_%s_%d", c.provider, c.serial), "type": "message", "role": "assistant", "model": c.model,
		"content": content, "stop_reason": stop, "stop_sequence": nil, "usage": d.usage(c, output),
	}
}

func (d anthropic) plain(c *call, refused bool) any {
	content := []object{{"type": "text", "text": strings.Join(c.tokens, "")}}
	return d.message(c, content, d.stopReason(c, refused), len(c.tokens))
}

// event writes the name and repeats it as the type of the data, as the real one does.
func (anthropic) event(name string, data object) []byte {
	data["type"] = name
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, mustJSON(data))
}

func (d anthropic) start(c *call) []byte {
	out := d.event("message_start", object{"message": d.message(c, []object{}, nil, 1)})
	out = append(out, d.event("content_block_start", object{"index": 0, "content_block": object{"type": "text", "text": ""}})...)
	return append(out, d.event("ping", object{})...)
}

func (d anthropic) delta(_ *call, token string, _ bool) []byte {
	return d.event("content_block_delta", object{"index": 0, "delta": object{"type": "text_delta", "text": token}})
}

func (d anthropic) end(c *call, refused bool) []byte {
	out := d.event("content_block_stop", object{"index": 0})
	out = append(out, d.event("message_delta", object{
		"delta": object{"stop_reason": d.stopReason(c, refused), "stop_sequence": nil},
		"usage": object{"input_tokens": c.prompt, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": len(c.tokens)},
	})...)
	return append(out, d.event("message_stop", object{})...)
}

func (d anthropic) errorEvent(e apiError) []byte {
	return fmt.Appendf(nil, "event: error\ndata: %s\n\n", mustJSON(d.errorBody(e)))
}
