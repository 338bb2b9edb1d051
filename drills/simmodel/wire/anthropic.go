package wire

import (
	"encoding/json"
	"fmt"
)

// Anthropic is the messages format.
type Anthropic struct{}

func (Anthropic) RequestIDHeader() string { return "request-id" }

func (Anthropic) ErrorBody(e Error) any {
	return Object{"type": "error", "error": Object{"type": e.Kind, "message": e.Message}}
}

func (Anthropic) Models(names []string, _ string) any {
	data := make([]Object, len(names))
	for i, n := range names {
		data[i] = Object{"type": "model", "id": n, "display_name": n, "created_at": "2026-01-01T00:00:00Z"}
	}
	return Object{"data": data, "has_more": false, "first_id": names[0], "last_id": names[len(names)-1]}
}

func (Anthropic) stopReason(c *Answer) string {
	switch c.Stop {
	case Refused, Filtered:
		return "refusal"
	case CutShort:
		return "max_tokens"
	case Called:
		return "tool_use"
	default:
		return "end_turn"
	}
}

func (Anthropic) usage(c *Answer, output int) Object {
	return Object{
		"input_tokens": c.Prompt, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
		"output_tokens": output, "service_tier": "standard",
	}
}

func (d Anthropic) message(c *Answer, content []Object, stop any, output int) Object {
	return Object{
		"id": fmt.Sprintf("msg_%s_%d", c.Provider, c.Serial), "type": "message", "role": "assistant", "model": c.Model,
		"content": content, "stop_reason": stop, "stop_sequence": nil, "usage": d.usage(c, output),
	}
}

// block is part i of the answer, empty where a stream opens it.
func (Anthropic) block(c *Answer, i int, whole bool) Object {
	p, text, input, signature := c.Parts[i], "", json.RawMessage("{}"), ""
	if whole {
		text, signature = p.Text, thoughtSignature
	}
	switch p.Kind {
	case Thinking:
		return Object{"type": "thinking", "thinking": text, "signature": signature}
	case Call:
		if whole {
			input = json.RawMessage(p.Text)
		}
		return Object{"type": "tool_use", "id": c.callID("toolu", i), "name": p.Name, "input": input}
	default:
		return Object{"type": "text", "text": text}
	}
}

// thoughtSignature stands for the provider's proof that it thought what it says.
const thoughtSignature = "c2ltdWxhdGVkIHNpZ25hdHVyZQ=="

func (d Anthropic) Plain(c *Answer) any {
	content := make([]Object, len(c.Parts))
	for i := range c.Parts {
		content[i] = d.block(c, i, true)
	}
	return d.message(c, content, d.stopReason(c), c.Output)
}

// event writes the name and repeats it as the type of the data, as the real one does.
func (Anthropic) event(name string, data Object) []byte {
	data["type"] = name
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, MustJSON(data))
}

func (d Anthropic) Start(c *Answer) []byte {
	return d.event("message_start", Object{"message": d.message(c, []Object{}, nil, 1)})
}

func (d Anthropic) Open(c *Answer, i int) []byte {
	out := d.event("content_block_start", Object{"index": i, "content_block": d.block(c, i, false)})
	if i == 0 {
		out = append(out, d.event("ping", Object{})...)
	}
	return out
}

func (d Anthropic) Piece(c *Answer, i int, text string) []byte {
	delta := Object{"type": "text_delta", "text": text}
	switch c.Parts[i].Kind {
	case Thinking:
		delta = Object{"type": "thinking_delta", "thinking": text}
	case Call:
		delta = Object{"type": "input_json_delta", "partial_json": text}
	}
	return d.event("content_block_delta", Object{"index": i, "delta": delta})
}

func (d Anthropic) Close(c *Answer, i int) []byte {
	var out []byte
	if c.Parts[i].Kind == Thinking {
		out = d.event("content_block_delta", Object{"index": i, "delta": Object{"type": "signature_delta", "signature": thoughtSignature}})
	}
	return append(out, d.event("content_block_stop", Object{"index": i})...)
}

func (d Anthropic) End(c *Answer) (out, mark []byte) {
	usage := d.usage(c, c.Output)
	delete(usage, "service_tier")
	out = d.event("message_delta", Object{"delta": Object{"stop_reason": d.stopReason(c), "stop_sequence": nil}, "usage": usage})
	return out, d.event("message_stop", Object{})
}

func (d Anthropic) ErrorEvent(_ *Answer, e Error) []byte {
	return fmt.Appendf(nil, "event: error\ndata: %s\n\n", MustJSON(d.ErrorBody(e)))
}
