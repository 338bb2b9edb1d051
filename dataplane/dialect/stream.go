package dialect

import (
	"bytes"
	"unicode/utf8"
)

// Kind says what one event of a stream is, to the one who forwards it.
type Kind uint8

// Kinds of event.
const (
	KindIdle    Kind = iota // a comment or ping: forwarded, says nothing yet
	KindContent             // forwarded
	KindHidden              // the usage chunk of a client that did not ask for it
	KindLast                // [DONE] or message_stop: the answer is complete
	KindError               // the upstream says that it failed
	KindGarbage             // no event of this dialect
)

// MaxEvent bounds one event, in bytes; a longer one is garbage.
const MaxEvent = 8 << 20

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

// Stream watches the events of one streamed answer.
type Stream struct {
	Dialect    Dialect
	WantsUsage bool // the client asked for the usage chunk itself

	Usage   Usage
	Refused bool
	Done    bool  // the closing event was seen
	Text    int64 // bytes of text seen in deltas, for an estimate
}

// Event reads one event, as cut by a Splitter.
func (s *Stream) Event(event []byte) Kind {
	name, data, kind := fields(event)
	if kind != KindContent {
		return kind
	}
	if string(name) == "error" { // clients of both dialects raise an error on it
		return KindError
	}
	if s.Dialect == Anthropic {
		return s.anthropic(name, data)
	}
	return s.openAI(data)
}

// fields cuts an event into its name and data. Several data lines are joined.
func fields(event []byte) (name, data []byte, kind Kind) {
	kind = KindIdle
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
		field, value, _ := bytes.Cut(line, []byte{':'})
		if len(value) > 0 && value[0] == ' ' {
			value = value[1:]
		}
		switch string(field) {
		case "data":
			if kind == KindContent {
				data = append(append(bytes.Clone(data), '\n'), value...)
			} else {
				data = value
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

func (s *Stream) openAI(data []byte) Kind {
	if string(bytes.TrimSpace(data)) == "[DONE]" {
		s.Done = true
		return KindLast
	}
	c := cursor{b: data}
	if c.peek() != '{' {
		return KindGarbage
	}
	failed, usage, empty := false, false, true
	c.object(func(key []byte) {
		switch string(key) {
		case "error":
			failed = failed || !c.isNull()
			c.value()
		case "usage":
			usage = !c.isNull()
			readUsage(OpenAI, &c, &s.Usage)
		case "choices":
			if c.peek() != '[' {
				c.value()
				return
			}
			c.array(func() {
				empty = false
				if readChoice(&c, &s.Text) {
					s.Refused = true
				}
			})
		default:
			c.value()
		}
	})
	switch {
	case !c.end() || !utf8.Valid(data):
		return KindGarbage
	case failed:
		return KindError
	}
	if usage {
		s.Usage.Final = true
		if empty && !s.WantsUsage {
			return KindHidden
		}
	}
	return KindContent
}

func (s *Stream) anthropic(name, data []byte) Kind {
	c := cursor{b: data}
	if c.peek() != '{' {
		return KindGarbage
	}
	var kind []byte
	failed, usage := false, false
	c.object(func(key []byte) {
		switch string(key) {
		case "type":
			kind, _ = c.text()
		case "error":
			failed = !c.isNull()
			c.value()
		case "usage": // message_delta
			usage = !c.isNull()
			readUsage(Anthropic, &c, &s.Usage)
		case "message": // message_start
			c.objectOr(func(key []byte) {
				if string(key) == "usage" {
					readUsage(Anthropic, &c, &s.Usage)
				} else {
					c.value()
				}
			})
		case "delta": // content_block_delta, message_delta
			c.objectOr(func(key []byte) { s.anthropicDelta(&c, key) })
		default:
			c.value()
		}
	})
	if len(kind) == 0 {
		kind = name
	}
	switch {
	case !c.end() || !utf8.Valid(data) || len(kind) == 0:
		return KindGarbage
	case failed || string(kind) == "error":
		return KindError
	case string(kind) == "ping":
		return KindIdle
	case string(kind) == "message_stop":
		s.Done = true
		return KindLast
	}
	if usage {
		s.Usage.Final = true
	}
	return KindContent
}

func (s *Stream) anthropicDelta(c *cursor, key []byte) {
	if c.peek() != '"' {
		c.value()
		return
	}
	raw, _ := c.str()
	switch string(key) {
	case "stop_reason":
		if string(raw) == "refusal" {
			s.Refused = true
		}
	case "text", "partial_json", "thinking":
		s.Text += int64(len(raw))
	}
}
