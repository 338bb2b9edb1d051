package stream

import (
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

// typeOf is the type of an event: what its data says, or else its name. ok is
// false where there is none, or two.
func typeOf(name, given []byte) (kind []byte, ok bool) {
	if string(name) == "message" { // what an event without a name is called
		name = nil
	}
	switch {
	case len(given) == 0:
		return name, len(name) > 0
	case len(name) == 0:
		return given, true
	}
	return given, string(name) == string(given)
}

// typed says of which type an event is whose data c has walked. One that is not
// KindContent needs no more reading.
func (s *Stream) typed(c *jsontext.Cursor, name, given []byte, failed bool) (kind []byte, is Kind) {
	kind, ok := typeOf(name, given)
	switch {
	case !c.End() || !ok:
		return nil, KindGarbage
	case failed || string(kind) == "error":
		s.failed(c.Data)
		return nil, KindError
	}
	return kind, KindContent
}

// message reads an event of the Messages API.
// https://docs.claude.com/en/docs/build-with-claude/streaming
func (s *Stream) message(name, data []byte) Kind {
	c := jsontext.Cursor{Data: data}
	if c.Peek() != '{' {
		return KindGarbage
	}
	t := s.Transcript
	var given []byte
	var index int64
	var start, block, delta jsontext.Span
	failed, usage := false, false
	c.Object(func(key []byte) {
		switch string(key) {
		case "type":
			t.once(memberType)
			given, _ = c.Text()
		case "error":
			failed = !c.IsNull()
			c.Value()
		case "usage": // message_delta
			usage = dialect.ReadUsage(dialect.Anthropic, &c, &s.Usage).Closes(true)
		case "index":
			t.once(memberIndex)
			index = c.Count()
		case "message": // message_start
			start = t.take(memberStart, &c)
		case "content_block": // content_block_start
			block = t.take(memberBlock, &c)
		case "delta": // content_block_delta, message_delta
			delta = t.take(memberDelta, &c)
		default:
			t.other(key, c.Span())
		}
	})
	kind, is := s.typed(&c, name, given, failed)
	if is != KindContent {
		return is
	}
	switch string(kind) {
	case "ping":
		return KindIdle
	case "message_stop":
		s.Done = true
		return KindLast
	case "message_start":
		t.act(opHead, 0)
		s.messageStart(data, start)
	case "content_block_start":
		s.open++
		s.blockStart(data, block)
	case "content_block_stop":
		s.open--
		t.act(opClose, 0)
	case "content_block_delta", "message_delta":
		s.messageDelta(data, delta)
	default:
		t.doubt()
	}
	s.Usage.Final = s.Usage.Final || usage && s.Usage.Costs()
	t.belong(0, index)
	return KindContent
}

func (s *Stream) messageStart(data []byte, where jsontext.Span) {
	c, t := jsontext.Inside(data, where), s.Transcript
	c.ObjectOr(func(key []byte) {
		switch string(key) {
		case "usage":
			dialect.ReadUsage(dialect.Anthropic, &c, &s.Usage)
		case "content", "container":
			t.blank(c.Span())
		default:
			c.Value()
		}
	})
}

func (s *Stream) blockStart(data []byte, where jsontext.Span) {
	t := s.Transcript
	if t == nil {
		return
	}
	c := jsontext.Inside(data, where)
	var kind, name, text jsontext.Span
	c.ObjectOr(func(key []byte) {
		switch v := c.Span(); string(key) {
		case "type":
			kind = v
		case "name":
			name = v
		case "text":
			text = v
		case "id":
		case "caller":
			t.direct(v)
		default: // input, citations, and what may come to be
			t.blank(v)
		}
	})
	switch string(kind.Of(data)) {
	case `"text"`:
		t.piece(opOpen, 0, kind)
		t.blank(text)
	case `"tool_use"`:
		t.piece(opOpen, 0, kind)
		t.piece(opName, 0, name)
	default: // thinking, what providers' own tools say, what is not known
		t.doubt()
	}
}

func (s *Stream) messageDelta(data []byte, where jsontext.Span) {
	c, t := jsontext.Inside(data, where), s.Transcript
	var finish jsontext.Span
	c.ObjectOr(func(key []byte) {
		switch string(key) {
		case "text":
			s.said(&c, opText, 0)
		case "partial_json":
			s.said(&c, opArguments, 0)
		case "thinking":
			v := c.Span()
			s.Text += int64(max(0, v.End-v.Start-2))
			t.doubt()
		case "stop_reason":
			v := c.Span()
			if v.End-v.Start > len("null") {
				finish, s.stopped = v, true
			}
			if jsontext.Says(data, v, "refusal") {
				s.Refused = true
			}
		case "type", "stop_sequence", "stop_details":
			c.Value()
		default: // signature, citation, container
			t.blank(c.Span())
		}
	})
	if finish.Present() {
		t.piece(opFinish, 0, finish)
	}
}

// response reads an event of the Responses API. The list of types is that of
// the official clients (openai-go v3, ResponseStreamEventUnion).
func (s *Stream) response(name, data []byte) Kind {
	c := jsontext.Cursor{Data: data, More: 1} // it repeats the request's tools, one level deeper
	if c.Peek() != '{' {
		return KindGarbage
	}
	t := s.Transcript
	var given []byte
	var output, content int64
	var whole, item, part, delta jsontext.Span
	failed := false
	c.Object(func(key []byte) {
		switch string(key) {
		case "type":
			t.once(memberType)
			given, _ = c.Text()
		case "error":
			failed = !c.IsNull()
			c.Value()
		case "sequence_number":
			at := t.take(memberSequence, &c)
			t.mark(markSequence, at)
			n := jsontext.Inside(data, at)
			s.Sequence, s.numbered = n.Count(), true
		case "output_index":
			t.once(memberIndex)
			output = c.Count()
		case "content_index":
			t.once(memberContent)
			content = c.Count()
		case "item_id":
			t.mark(markItem, t.take(memberItem, &c))
		case "response":
			whole = t.take(memberStart, &c)
		case "item":
			item = t.take(memberBlock, &c)
		case "part":
			part = t.take(memberPart, &c)
		case "delta":
			delta = t.take(memberDelta, &c)
		case "logprobs", "annotation":
			t.blank(c.Span())
		case "text", "arguments", "input", "name", "obfuscation": // text and the like, whole, when done
			c.Value()
		default:
			t.other(key, c.Span())
		}
	})
	kind, is := s.typed(&c, name, given, failed)
	if is != KindContent {
		return is
	}
	last := KindContent
	switch string(kind) {
	case "keepalive":
		return KindIdle
	case "response.created", "response.queued", "response.in_progress":
		t.act(opHead, int64(len(kind))) // which of them
		s.wholeResponse(data, whole)
	case "response.completed", "response.incomplete":
		s.wholeResponse(data, whole)
		s.Done, last = true, KindLast
	case "response.failed":
		s.wholeResponse(data, whole)
		return KindError
	case "response.output_item.added":
		s.outputItem(data, item, true)
	case "response.output_item.done":
		t.act(opClose, 0)
		s.outputItem(data, item, false)
	case "response.content_part.added":
		s.contentPart(data, part, content)
	case "response.content_part.done":
		t.act(opPartClose, content)
		s.contentPart(data, part, content)
	case "response.output_text.delta":
		d := jsontext.Inside(data, delta)
		s.said(&d, opText, content)
	case "response.function_call_arguments.delta", "response.custom_tool_call_input.delta":
		d := jsontext.Inside(data, delta)
		s.said(&d, opArguments, 0)
	case "response.output_text.done", "response.function_call_arguments.done", "response.custom_tool_call_input.done":
		t.act(opDone, content)
	case "response.refusal.delta", "response.refusal.done":
		s.Refused = true
		s.Text += int64(max(0, delta.End-delta.Start-2))
	default: // reasoning, providers' own tools, what is not known
		if d := delta.Of(data); len(d) > 2 && d[0] == '"' {
			s.Text += int64(len(d) - 2)
		}
		t.doubt()
	}
	t.belong(0, output)
	return last
}

// wholeResponse reads the response object that the first and last events hold.
func (s *Stream) wholeResponse(data []byte, where jsontext.Span) {
	c, t := jsontext.Inside(data, where), s.Transcript
	c.ObjectOr(func(key []byte) {
		switch string(key) {
		case "id":
			t.mark(markID, c.Span())
		case "created_at":
			t.mark(markCreated, c.Span())
		case "usage":
			told := dialect.ReadUsage(dialect.OpenAI, &c, &s.Usage)
			s.Usage.Final = s.Usage.Final || told.Closes(true) && s.Usage.Costs()
		case "error":
			v := c.Span()
			s.failed(v.Of(data))
		case "incomplete_details":
			c.ObjectOr(func(key []byte) {
				v := c.Span()
				if string(key) == "reason" && jsontext.Says(data, v, "content_filter") {
					s.Refused = true
				}
			})
		case "previous_response_id", "conversation":
			t.blank(c.Span())
		case "output":
			if c.Peek() != '[' {
				c.Value()
				return
			}
			var i int64
			c.Array(func() {
				s.wholeItem(&c, i)
				i++
			})
		default:
			c.Value()
		}
	})
}

// wholeItem takes an output item of a whole response: the names by which a
// client knows it, and whether it refuses.
func (s *Stream) wholeItem(c *jsontext.Cursor, index int64) {
	t := s.Transcript
	c.ObjectOr(func(key []byte) {
		v := c.Span()
		switch string(key) {
		case "id":
			t.markAt(markItem, index, v)
		case "call_id":
			t.markAt(markCall, index, v)
		case "content":
			s.refuses(c.Data, v)
		}
	})
}

// refuses notes a refusal among the parts of an item's content.
func (s *Stream) refuses(data []byte, content jsontext.Span) {
	if c := jsontext.Inside(data, content); dialect.RefusalPart(&c) {
		s.Refused = true
	}
}

func (s *Stream) outputItem(data []byte, where jsontext.Span, begins bool) {
	t := s.Transcript
	c := jsontext.Inside(data, where)
	var kind, name jsontext.Span
	c.ObjectOr(func(key []byte) {
		v := c.Span()
		switch string(key) {
		case "type":
			kind = v
		case "name":
			name = v
		case "id":
			t.mark(markItem, v)
		case "call_id":
			t.mark(markCall, v)
		case "content", "arguments", "input":
			if begins {
				t.blank(v)
			}
			if string(key) == "content" {
				s.refuses(data, v)
			}
		}
	})
	switch string(kind.Of(data)) {
	case `"message"`:
		if begins {
			t.piece(opOpen, 0, kind)
		}
	case `"function_call"`, `"custom_tool_call"`:
		if begins {
			t.piece(opOpen, 0, kind)
			t.piece(opName, 0, name)
		}
	default: // reasoning, providers' own tools, what is not known
		t.doubt()
	}
}

func (s *Stream) contentPart(data []byte, where jsontext.Span, content int64) {
	t := s.Transcript
	c := jsontext.Inside(data, where)
	begins := t.pieces() == 0
	var kind jsontext.Span
	c.ObjectOr(func(key []byte) {
		v := c.Span()
		switch string(key) {
		case "type":
			kind = v
		case "text":
			if begins {
				t.blank(v)
			}
		default: // annotations, logprobs
			t.blank(v)
		}
	})
	switch string(kind.Of(data)) {
	case `"output_text"`:
		if begins {
			t.piece(opPart, content, kind)
		}
	case `"refusal"`:
		s.Refused = true
		t.doubt()
	default: // reasoning
		t.doubt()
	}
}
