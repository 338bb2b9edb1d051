package dialect

// quoted takes a string and gives its range, quotes included.
func (c *cursor) quoted() Span {
	c.space()
	start := c.i
	c.str()
	return Span{start, c.i}
}

// inside gives a cursor at a range that was taken before. It sees nothing behind it.
func inside(data []byte, s Span) cursor { return cursor{b: data[:s.End], i: s.Start} }

// says reports whether the value at a range is the string word, however it is
// written.
func says(data []byte, at Span, word string) bool {
	c := inside(data, at)
	s, ok := c.text()
	return ok && string(s) == word
}

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

// message reads an event of the Messages API.
// https://docs.claude.com/en/docs/build-with-claude/streaming
func (s *Stream) message(name, data []byte) Kind {
	c := cursor{b: data}
	if c.peek() != '{' {
		return KindGarbage
	}
	t := s.Transcript
	var given []byte
	var index int64
	var start, block, delta Span
	failed, usage := false, false
	c.object(func(key []byte) {
		switch string(key) {
		case "type":
			t.once(memberType)
			given, _ = c.text()
		case "error":
			failed = !c.isNull()
			c.value()
		case "usage": // message_delta
			usage = readUsage(Anthropic, &c, &s.Usage).closes(true)
		case "index":
			t.once(memberIndex)
			index = c.count()
		case "message": // message_start
			t.once(memberStart)
			start = c.span()
		case "content_block": // content_block_start
			t.once(memberBlock)
			block = c.span()
		case "delta": // content_block_delta, message_delta
			t.once(memberDelta)
			delta = c.span()
		default:
			t.other(key, c.span())
		}
	})
	kind, ok := typeOf(name, given)
	if !c.end() || !ok {
		return KindGarbage
	}
	if failed || string(kind) == "error" {
		s.declined(data)
		return KindError
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
	s.Usage.Final = s.Usage.Final || usage && s.Usage.costs()
	t.belong(0, index)
	return KindContent
}

func (s *Stream) messageStart(data []byte, where Span) {
	c, t := inside(data, where), s.Transcript
	c.objectOr(func(key []byte) {
		switch string(key) {
		case "usage":
			readUsage(Anthropic, &c, &s.Usage)
		case "content", "container":
			t.blank(c.span())
		default:
			c.value()
		}
	})
}

func (s *Stream) blockStart(data []byte, where Span) {
	t := s.Transcript
	if t == nil {
		return
	}
	c := inside(data, where)
	var kind, name, text Span
	c.objectOr(func(key []byte) {
		switch v := c.span(); string(key) {
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
	switch string(kind.of(data)) {
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

func (s *Stream) messageDelta(data []byte, where Span) {
	c, t := inside(data, where), s.Transcript
	var finish Span
	c.objectOr(func(key []byte) {
		switch string(key) {
		case "text":
			s.said(&c, opText, 0)
		case "partial_json":
			s.said(&c, opArguments, 0)
		case "thinking":
			v := c.span()
			s.Text += int64(max(0, v.End-v.Start-2))
			t.doubt()
		case "stop_reason":
			v := c.span()
			if v.End-v.Start > len("null") {
				finish, s.stopped = v, true
			}
			if says(data, v, "refusal") {
				s.Refused = true
			}
		case "type", "stop_sequence", "stop_details":
			c.value()
		default: // signature, citation, container
			t.blank(c.span())
		}
	})
	if finish.Present() {
		t.piece(opFinish, 0, finish)
	}
}

// response reads an event of the Responses API. The list of types is that of
// the official clients (openai-go v3, ResponseStreamEventUnion).
func (s *Stream) response(name, data []byte) Kind {
	c := cursor{b: data}
	if c.peek() != '{' {
		return KindGarbage
	}
	t := s.Transcript
	var given []byte
	var output, content int64
	var whole, item, part, delta Span
	failed := false
	c.object(func(key []byte) {
		switch string(key) {
		case "type":
			t.once(memberType)
			given, _ = c.text()
		case "error":
			failed = !c.isNull()
			c.value()
		case "sequence_number":
			t.once(memberSequence)
			at := c.span()
			t.mark(markSequence, at)
			n := inside(data, at)
			s.Sequence, s.numbered = n.count(), true
		case "output_index":
			t.once(memberIndex)
			output = c.count()
		case "content_index":
			t.once(memberContent)
			content = c.count()
		case "item_id":
			t.once(memberItem)
			t.mark(markItem, c.span())
		case "response":
			t.once(memberStart)
			whole = c.span()
		case "item":
			t.once(memberBlock)
			item = c.span()
		case "part":
			t.once(memberPart)
			part = c.span()
		case "delta":
			t.once(memberDelta)
			delta = c.span()
		case "logprobs", "annotation":
			t.blank(c.span())
		case "text", "arguments", "input", "name", "obfuscation": // text and the like, whole, when done
			c.value()
		default:
			t.other(key, c.span())
		}
	})
	kind, ok := typeOf(name, given)
	if !c.end() || !ok {
		return KindGarbage
	}
	if failed || string(kind) == "error" {
		s.declined(data)
		return KindError
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
		d := inside(data, delta)
		s.said(&d, opText, content)
	case "response.function_call_arguments.delta", "response.custom_tool_call_input.delta":
		d := inside(data, delta)
		s.said(&d, opArguments, 0)
	case "response.output_text.done", "response.function_call_arguments.done", "response.custom_tool_call_input.done":
		t.act(opDone, content)
	case "response.refusal.delta", "response.refusal.done":
		s.Refused = true
		s.Text += int64(max(0, delta.End-delta.Start-2))
	default: // reasoning, providers' own tools, what is not known
		if d := delta.of(data); len(d) > 2 && d[0] == '"' {
			s.Text += int64(len(d) - 2)
		}
		t.doubt()
	}
	t.belong(0, output)
	return last
}

// wholeResponse reads the response object that the first and last events hold.
func (s *Stream) wholeResponse(data []byte, where Span) {
	c, t := inside(data, where), s.Transcript
	c.objectOr(func(key []byte) {
		switch string(key) {
		case "id":
			t.mark(markID, c.span())
		case "created_at":
			t.mark(markCreated, c.span())
		case "usage":
			told := readUsage(OpenAI, &c, &s.Usage)
			s.Usage.Final = s.Usage.Final || told.closes(true) && s.Usage.costs()
		case "error":
			v := c.span()
			s.declinedAs(data, v)
		case "incomplete_details":
			c.objectOr(func(key []byte) {
				v := c.span()
				if string(key) == "reason" && says(data, v, "content_filter") {
					s.Refused = true
				}
			})
		case "previous_response_id", "conversation":
			t.blank(c.span())
		case "output":
			if t == nil || c.peek() != '[' {
				c.value()
				return
			}
			var i int64
			c.array(func() {
				itemNames(&c, t, i)
				i++
			})
		default:
			c.value()
		}
	})
}

// declinedAs notes an error object by which the provider's safety system refuses.
func (s *Stream) declinedAs(data []byte, where Span) {
	c := inside(data, where)
	c.objectOr(func(key []byte) {
		v, ok := c.text()
		if ok && string(key) == "code" && refusalCode(v) {
			s.Refused = true
		}
	})
}

func refusalCode(code []byte) bool {
	for _, known := range refusalCodes {
		if string(code) == known {
			return true
		}
	}
	return false
}

// itemNames marks the names by which a client knows an output item.
func itemNames(c *cursor, t *Transcript, index int64) {
	c.objectOr(func(key []byte) {
		v := c.span()
		switch string(key) {
		case "id":
			t.markAt(markItem, index, v)
		case "call_id":
			t.markAt(markCall, index, v)
		}
	})
}

func (s *Stream) outputItem(data []byte, where Span, begins bool) {
	t := s.Transcript
	if t == nil {
		return
	}
	c := inside(data, where)
	var kind, name Span
	c.objectOr(func(key []byte) {
		v := c.span()
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
		}
	})
	switch string(kind.of(data)) {
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

func (s *Stream) contentPart(data []byte, where Span, content int64) {
	t := s.Transcript
	if t == nil {
		return
	}
	c := inside(data, where)
	begins := t.pieces() == 0
	var kind Span
	c.objectOr(func(key []byte) {
		v := c.span()
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
	switch string(kind.of(data)) {
	case `"output_text"`:
		if begins {
			t.piece(opPart, content, kind)
		}
	default: // a refusal, reasoning
		t.doubt()
	}
}
