package wire

import "fmt"

// Responses is the responses format, with its typed events
// (https://platform.openai.com/docs/api-reference/responses-streaming).
type Responses struct{ OpenAI }

// event writes the name and repeats it as the type of the data, numbered.
func (Responses) event(c *Answer, name string, o Object) []byte {
	o["type"], o["sequence_number"] = name, c.events
	c.events++
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, MustJSON(o))
}

// ErrorEvent nests what the documentation shows flat: so does the real one, and
// the official clients raise an error for nothing else.
func (d Responses) ErrorEvent(c *Answer, e Error) []byte {
	return d.event(c, "error", Object{"error": Object{"type": e.Kind, "code": e.Code, "message": e.Message, "param": e.Param}})
}

func (Responses) id(c *Answer) string { return fmt.Sprintf("resp_%s_%d", c.Provider, c.Serial) }

func itemID(c *Answer, i int) string {
	prefix := map[Kind]string{Thinking: "rs", Call: "fc"}[c.Parts[i].Kind]
	if prefix == "" {
		prefix = "msg"
	}
	return c.callID(prefix, i)
}

// content is the part of a message that p is.
func (Responses) content(p Part, text string) Object {
	if p.Kind == Refusal {
		return Object{"type": "refusal", "refusal": text}
	}
	return Object{"type": "output_text", "text": text, "annotations": []Object{}, "logprobs": []Object{}}
}

// item is part i as an item of the output, so far as it is there.
func (d Responses) item(c *Answer, i int, whole bool) Object {
	p, status := c.Parts[i], "in_progress"
	text := ""
	if whole {
		text, status = p.Text, d.status(c)
	}
	switch p.Kind {
	case Thinking:
		summary := []Object{}
		if whole {
			summary = append(summary, Object{"type": "summary_text", "text": text})
		}
		return Object{"id": itemID(c, i), "type": "reasoning", "summary": summary}
	case Call:
		return Object{"id": itemID(c, i), "type": "function_call", "status": status, "call_id": c.callID("call", i), "name": p.Name, "arguments": text}
	default:
		content := []Object{}
		if whole {
			content = append(content, d.content(p, text))
		}
		return Object{"id": itemID(c, i), "type": "message", "role": "assistant", "status": status, "content": content}
	}
}

func (Responses) status(c *Answer) string {
	if c.Stop == CutShort || c.Stop == Filtered {
		return "incomplete"
	}
	return "completed"
}

// body is the response, with its output and usage once it is whole.
func (d Responses) body(c *Answer, whole bool) Object {
	o := Object{
		"id": d.id(c), "object": "response", "created_at": c.Created, "status": "in_progress", "model": c.Model, "output": []Object{},
		"error": nil, "incomplete_details": nil, "instructions": nil, "metadata": Object{}, "parallel_tool_calls": true, "temperature": 1,
		"top_p": 1, "tool_choice": "auto", "tools": []Object{}, "usage": nil, "store": false, "previous_response_id": nil, "truncation": "disabled",
	}
	if !whole {
		return o
	}
	var output []Object
	for i := range c.Parts {
		output = append(output, d.item(c, i, true))
	}
	o["output"], o["status"] = output, d.status(c)
	switch c.Stop {
	case CutShort:
		o["incomplete_details"] = Object{"reason": "max_output_tokens"}
	case Filtered:
		o["incomplete_details"] = Object{"reason": "content_filter"}
	}
	o["usage"] = Object{
		"input_tokens": c.Prompt, "input_tokens_details": Object{"cached_tokens": 0}, "output_tokens": c.Output,
		"output_tokens_details": Object{"reasoning_tokens": c.reasoning()}, "total_tokens": c.Prompt + c.Output,
	}
	return o
}

func (d Responses) Plain(c *Answer) any { return d.body(c, true) }

func (d Responses) Start(c *Answer) []byte {
	out := d.event(c, "response.created", Object{"response": d.body(c, false)})
	return append(out, d.event(c, "response.in_progress", Object{"response": d.body(c, false)})...)
}

func (d Responses) Open(c *Answer, i int) []byte {
	out := d.event(c, "response.output_item.added", Object{"output_index": i, "item": d.item(c, i, false)})
	at := Object{"item_id": itemID(c, i), "output_index": i}
	switch c.Parts[i].Kind {
	case Thinking:
		at["summary_index"], at["part"] = 0, Object{"type": "summary_text", "text": ""}
		out = append(out, d.event(c, "response.reasoning_summary_part.added", at)...)
	case Text, Refusal:
		at["content_index"], at["part"] = 0, d.content(c.Parts[i], "")
		out = append(out, d.event(c, "response.content_part.added", at)...)
	}
	return out
}

func (d Responses) Piece(c *Answer, i int, text string) []byte {
	o := Object{"item_id": itemID(c, i), "output_index": i, "delta": text}
	switch c.Parts[i].Kind {
	case Thinking:
		o["summary_index"] = 0
		return d.event(c, "response.reasoning_summary_text.delta", o)
	case Call:
		return d.event(c, "response.function_call_arguments.delta", o)
	case Refusal:
		o["content_index"] = 0
		return d.event(c, "response.refusal.delta", o)
	default:
		o["content_index"], o["logprobs"] = 0, []Object{}
		return d.event(c, "response.output_text.delta", o)
	}
}

func (d Responses) Close(c *Answer, i int) []byte {
	p, at := c.Parts[i], func(name string, value any) Object {
		return Object{"item_id": itemID(c, i), "output_index": i, name: value}
	}
	inPart := func(o Object, index string) Object { o[index] = 0; return o }
	var out []byte
	switch p.Kind {
	case Thinking:
		out = append(d.event(c, "response.reasoning_summary_text.done", inPart(at("text", p.Text), "summary_index")),
			d.event(c, "response.reasoning_summary_part.done", inPart(at("part", Object{"type": "summary_text", "text": p.Text}), "summary_index"))...)
	case Call:
		o := at("arguments", p.Text)
		o["name"] = p.Name
		out = d.event(c, "response.function_call_arguments.done", o)
	case Refusal:
		out = d.event(c, "response.refusal.done", inPart(at("refusal", p.Text), "content_index"))
	default:
		o := inPart(at("text", p.Text), "content_index")
		o["logprobs"] = []Object{}
		out = d.event(c, "response.output_text.done", o)
	}
	if p.Kind == Text || p.Kind == Refusal {
		out = append(out, d.event(c, "response.content_part.done", inPart(at("part", d.content(p, p.Text)), "content_index"))...)
	}
	return append(out, d.event(c, "response.output_item.done", Object{"output_index": i, "item": d.item(c, i, true)})...)
}

// End is the event that carries the whole response: it is also the end mark.
func (d Responses) End(c *Answer) (out, mark []byte) {
	return nil, d.event(c, "response."+d.status(c), Object{"response": d.body(c, true)})
}
