// Package stream reads the events of a streamed answer, each once, in one of five
// grammars: what it is to who forwards it, what it says of usage and refusal, and
// whether the answer is complete. A Transcript notes what the client was given, and
// a Replay continues it from another stream of the same answer.
package stream

import (
	"bytes"
	"math/bits"
	"strconv"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

// Kind says what one event of a stream is, to the one who forwards it.
type Kind uint8

// Kinds of event.
const (
	KindIdle    Kind = iota // a comment or ping: forwarded, says nothing yet
	KindContent             // forwarded
	KindHidden              // the usage chunk of a client that did not ask for it
	KindLast                // the answer is complete with it
	KindError               // the upstream says that it failed, or that it declines
	KindGarbage             // no event of this stream: what it should have said is lost
	KindSkip                // malformed, but nothing can be lost with it: not forwarded
	KindClosing             // the answer is complete with it; a mark that says so may follow
)

// MaxEvent bounds one event, in bytes, as a plain answer is: models that talk draw
// pictures, too.
const MaxEvent = 32 << 20

// Splitter finds where events end in a growing buffer.
type Splitter struct {
	line int // where the present line begins
	seen int // no line ends before
}

// Next gives the length of the first whole event of b, its closing blank line
// included, or 0 if more bytes are needed. Lines end in LF or CRLF. Between
// calls that give 0, b may only grow.
func (s *Splitter) Next(b []byte) int {
	for {
		k := bytes.IndexByte(b[s.seen:], '\n')
		if k < 0 {
			s.seen = len(b)
			return 0
		}
		line := b[s.line : s.seen+k]
		s.line = s.seen + k + 1
		s.seen = s.line
		if len(line) == 0 || len(line) == 1 && line[0] == '\r' {
			end := s.line
			*s = Splitter{}
			return end
		}
	}
}

// grammar is one of the five event languages.
type grammar uint8

const (
	grammarChat        grammar = iota // chat.completion.chunk, [DONE]
	grammarCompletions                // text_completion, [DONE]
	grammarResponses                  // events named by type, the last one holds the whole response
	grammarMessages                   // events named by type, message_stop
	grammarMedia                      // events named by type; the last one, or [DONE] after it, ends it
)

// Stream watches the events of one streamed answer.
type Stream struct {
	Dialect    dialect.Dialect
	Endpoint   *dialect.Endpoint // nil = the dialect's chat endpoint
	WantsUsage bool              // the client asked for the usage chunk itself
	Choices    int               // how many choices the answer will have; 0 = not known
	// Transcript, if set, is told what each event adds to the answer.
	Transcript *Transcript

	Usage    dialect.Usage
	Refused  bool
	Problem  dialect.Problem // what the error event says that ended it
	Done     bool            // the answer is complete, closing event included
	Text     int64           // bytes of text seen in deltas, for an estimate
	Sequence int64           // sequence_number seen last, where events carry one
	numbered bool

	progress
}

// progress is how far an answer has come.
type progress struct {
	seen, ended uint64 // choices below 64 that spoke, and that gave a reason to finish
	many        bool   // there are more choices than that
	tallied     bool   // the usage chunk came: it follows every choice
	open        int    // content blocks begun and not closed
	stopped     bool   // a reason to stop was given, or what came last may be the end
	closed      int    // events that close an answer, or a picture of it
}

func (s *Stream) grammar() grammar {
	switch {
	case s.Endpoint == nil && s.Dialect == dialect.Anthropic, s.Endpoint != nil && s.Endpoint.Dialect == dialect.Anthropic:
		return grammarMessages
	case s.Endpoint == nil:
		return grammarChat
	case s.Endpoint.Path == "/v1/responses":
		return grammarResponses
	case s.Endpoint.Path == "/v1/completions":
		return grammarCompletions
	case s.Endpoint.Media:
		return grammarMedia
	}
	return grammarChat
}

// Complete reports whether the answer itself is complete, though its closing
// event may be missing: every choice has finished, or every block is closed and
// the reason to stop given. Nothing that follows can be part of the answer.
func (s *Stream) Complete() bool {
	switch s.grammar() {
	case grammarMessages:
		return s.stopped && s.open == 0
	case grammarResponses:
		return s.Done // the closing event is the answer
	case grammarMedia:
		return s.Choices > 0 && s.closed >= s.Choices
	default:
		all := s.tallied || s.Choices > 0 && bits.OnesCount64(s.ended) == s.Choices
		return all && s.seen != 0 && s.ended == s.seen && !s.many
	}
}

// Ends reports whether the answer is complete if its stream ends well here. Of
// several pictures each may be closed by an event of its own, or all by one.
func (s *Stream) Ends() bool {
	return s.Complete() || s.grammar() == grammarMedia && s.stopped
}

// Closing is the event that closes a complete answer whose upstream did not;
// nil where what the upstream said closes it.
func (s *Stream) Closing() []byte {
	switch s.grammar() {
	case grammarMedia:
		return nil
	case grammarMessages:
		return []byte("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
	}
	return []byte("data: [DONE]\n\n")
}

// AppendFailure appends e as the event that ends this stream before it is
// complete. Official clients raise an error on it: those of the OpenAI dialect
// look for an error member, also where events have types.
func (s *Stream) AppendFailure(dst []byte, e *dialect.Error, requestID string) []byte {
	switch s.grammar() {
	case grammarMessages:
		return e.AppendEvent(dst, dialect.Anthropic, requestID)
	case grammarChat, grammarCompletions, grammarMedia:
		return e.AppendEvent(dst, dialect.OpenAI, requestID)
	}
	dst = append(dst, "event: error\ndata: {\"type\":\"error\",\"code\":"...)
	dst = jsontext.AppendString(dst, string(e.Code))
	dst = append(dst, `,"message":`...)
	dst = jsontext.AppendString(dst, e.Message)
	dst = append(dst, `,"param":null,"sequence_number":`...)
	next := s.Sequence + 1
	if !s.numbered {
		next = 0
	}
	dst = append(strconv.AppendInt(dst, next, 10), ',')
	at := len(dst)
	dst = e.AppendBody(dst, dialect.OpenAI, requestID)
	dst = append(dst[:at], dst[at+1:]...) // the members of that object, in this one
	return append(dst, "\n\n"...)
}

// Event reads one event, as cut by a Splitter.
func (s *Stream) Event(event []byte) Kind {
	s.Transcript.begin()
	progress, usage := s.progress, s.Usage
	kind := s.event(event)
	switch kind {
	case KindGarbage:
		s.progress, s.Usage = progress, usage // what it said before it turned out to be none
		if s.Complete() {
			return KindSkip
		}
	case KindContent, KindLast, KindIdle:
		s.Transcript.note()
	}
	return kind
}

func (s *Stream) event(event []byte) Kind {
	name, data, kind := fields(event)
	switch {
	case kind == KindIdle && len(name) > 0:
		return KindSkip // a name and no data: no event to most clients, an error to some
	case kind != KindContent:
		return kind
	case nothing(data):
		return KindSkip // says nothing, and some clients fail on it
	}
	s.Transcript.reading(data)
	if string(name) == "error" { // clients of both dialects raise an error on it
		s.failed(data)
		return KindError
	}
	switch s.grammar() {
	case grammarMessages:
		return s.message(name, data)
	case grammarResponses:
		return s.response(name, data)
	case grammarMedia:
		return s.media(name, data)
	default:
		return s.chunk(data)
	}
}

// failed notes what an error, alone or in its event, says.
func (s *Stream) failed(data []byte) {
	s.Problem = dialect.ReadProblem(data)
	s.Refused = s.Refused || s.Problem.Refused
}

// ErrorBody is what an error event says, as the body of an answer of its own.
func ErrorBody(event []byte) []byte {
	_, data, _ := fields(event)
	c := jsontext.Cursor{Data: data}
	own, inner := false, jsontext.Span{End: len(data)}
	c.ObjectOr(func(key []byte) {
		switch string(key) {
		case "error":
			own = own || c.Peek() == '{'
			c.Value()
		case "response": // that failed
			c.ObjectOr(func(key []byte) {
				if v := c.Span(); string(key) == "error" {
					inner = v
				}
			})
		default:
			c.Value()
		}
	})
	if own {
		return data
	}
	return append(append([]byte(`{"error":`), inner.Of(data)...), '}')
}

// nothing reports whether data provably holds nothing.
func nothing(data []byte) bool {
	switch string(bytes.TrimSpace(data)) {
	case "", "null", "{}", "[]", `""`:
		return true
	}
	return false
}

// fields cuts an event into its name and data. Several data lines are joined.
func fields(event []byte) (name, data []byte, kind Kind) {
	kind = KindIdle
	joined := false
	for len(event) > 0 {
		k := bytes.IndexByte(event, '\n')
		if k < 0 {
			return nil, nil, KindGarbage
		}
		line := event[:k]
		event = event[k+1:]
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		if bytes.IndexByte(line, '\r') >= 0 { // ends a line to some clients, which would see other events
			return nil, nil, KindGarbage
		}
		if len(line) == 0 || line[0] == ':' {
			continue
		}
		field, value, ok := bytes.Cut(line, []byte{':'})
		if !ok { // allowed, and never seen but where a line was torn
			return nil, nil, KindGarbage
		}
		if len(value) > 0 && value[0] == ' ' {
			value = value[1:]
		}
		switch string(field) {
		case "data":
			switch {
			case kind != KindContent:
				data = value
			case !joined: // once: the rest is no longer than the event
				data, joined = append(make([]byte, 0, len(data)+1+len(value)+len(event)), data...), true
				fallthrough
			default:
				data = append(append(data, '\n'), value...)
			}
			kind = KindContent
		case "event":
			name = value
		case "id", "retry":
		default:
			return nil, nil, KindGarbage
		}
	}
	return name, data, kind
}

// marks reports whether data is the mark at the end of a stream.
func marks(data []byte) bool { return string(bytes.TrimSpace(data)) == "[DONE]" }

// chunk reads a chat or text completion chunk.
func (s *Stream) chunk(data []byte) Kind {
	if marks(data) {
		s.Done = true
		return KindLast
	}
	c := jsontext.Cursor{Data: data}
	if c.Peek() != '{' {
		return KindGarbage
	}
	t := s.Transcript
	failed, usage, empty := false, false, true
	var told dialect.Told
	c.Object(func(key []byte) {
		switch string(key) {
		case "error":
			failed = failed || !c.IsNull()
			c.Value()
		case "usage":
			usage = !c.IsNull()
			told = dialect.ReadUsage(dialect.OpenAI, &c, &s.Usage)
		case "choices":
			if c.Peek() != '[' {
				c.Value()
				return
			}
			t.once(memberChoices)
			c.Array(func() {
				empty = false
				s.choice(&c)
			})
		case "id":
			t.mark(markID, c.Span())
		case "created":
			t.mark(markCreated, c.Span())
		case "model":
			t.mark(markModel, c.Span())
		case "system_fingerprint":
			t.mark(markFingerprint, c.Span())
		default:
			t.other(key, c.Span())
		}
	})
	switch {
	case !c.End():
		return KindGarbage
	case failed:
		s.failed(data)
		return KindError
	}
	if usage {
		s.Usage.Final = s.Usage.Final || told.Closes(true) && s.Usage.Costs()
		if empty {
			s.tallied = true
		}
		if empty && !s.WantsUsage {
			return KindHidden
		}
	}
	return KindContent
}

// choice takes one element of choices.
func (s *Stream) choice(c *jsontext.Cursor) {
	t := s.Transcript
	from := t.pieces()
	var index int64
	var finish jsontext.Span
	var once uint32
	finished := false
	c.ObjectOr(func(key []byte) {
		switch string(key) {
		case "index":
			t.only(&once, 1)
			index = c.Count()
		case "finish_reason":
			t.only(&once, 2)
			if c.Peek() != '"' {
				c.Value()
				return
			}
			at := c.Quoted()
			finish, finished = at, true
			if jsontext.Says(c.Data, at, "content_filter") {
				s.Refused = true
			}
		case "delta", "message":
			t.only(&once, 4)
			if string(key) == "message" {
				t.doubt()
			}
			var members uint32
			c.ObjectOr(func(key []byte) { s.chatDelta(c, key, &members) })
		case "text":
			t.only(&once, 8)
			s.said(c, opText, 0)
		case "content_filter_results", "content_filter_result":
			at := c.Span()
			t.other(key, at)
			if in := jsontext.Inside(c.Data, at); dialect.Filtered(&in) {
				s.Refused = true
			}
		default:
			t.other(key, c.Span())
		}
	})
	if finished {
		t.piece(opFinish, 0, finish)
	}
	t.belong(from, index)
	if index != 0 {
		t.doubt() // how choices take turns is nothing that two streams share
	}
	if index >= 64 {
		s.many = true
		return
	}
	s.seen |= 1 << index
	if finished {
		s.ended |= 1 << index
	}
}

// said takes a value that is a piece of text, or null.
func (s *Stream) said(c *jsontext.Cursor, o op, part int64) {
	if c.Peek() != '"' {
		at := c.Span()
		if string(at.Of(c.Data)) != "null" {
			s.Text += int64(at.End - at.Start)
			s.Transcript.doubt()
		}
		return
	}
	at := c.Quoted()
	if c.Bad {
		return
	}
	s.Text += int64(at.End - at.Start - 2)
	s.Transcript.piece(o, part, at)
}

// chatDelta takes one member of a chat delta.
func (s *Stream) chatDelta(c *jsontext.Cursor, key []byte, once *uint32) {
	t := s.Transcript
	switch string(key) {
	case "role":
		t.only(once, 1)
		if at := c.Span(); t != nil && string(at.Of(c.Data)) != `"assistant"` && string(at.Of(c.Data)) != "null" {
			t.doubt()
		}
	case "content":
		t.only(once, 2)
		s.said(c, opText, 0)
	case "tool_calls":
		t.only(once, 4)
		at := c.Span()
		if n := at.End - at.Start; n > len("null") {
			s.Text += int64(n)
		}
		t.toolCalls(at)
	case "refusal":
		at := c.Span()
		if n := at.End - at.Start; n > len(`""`) && c.Data[at.Start] == '"' {
			s.Refused = true
			s.Text += int64(n - 2)
		}
	default:
		at := c.Span()
		if n := at.End - at.Start; n > len("null") && c.Data[at.Start] == '"' {
			s.Text += int64(n - 2)
		} else if n > len("null") {
			s.Text += int64(n)
		}
		t.other(key, at)
	}
}
