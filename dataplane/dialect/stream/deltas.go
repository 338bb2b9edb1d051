package stream

import (
	"bytes"
	"encoding/binary"
	"unicode/utf16"
	"unicode/utf8"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

// op says what a piece of an event does to the answer.
type op byte

const (
	opHead      op = iota + 1 // the answer begins
	opOpen                    // a block or output item begins; its type
	opPart                    // a part of an item begins; its type
	opName                    // a tool is called; its name
	opDone                    // the text of a part, or a call's arguments, are complete
	opPartClose               // a part ends
	opClose                   // a block or item ends
	opFinish                  // why the choice or message ended
	opText                    // text
	opArguments               // of a tool call, as JSON text
)

// piece is one thing that an event adds.
type piece struct {
	op     op
	choice uint32        // choice, content block or output item
	part   uint32        // tool call of a choice, part of an item
	text   jsontext.Span // a JSON string in the event's data, quotes included
	size   int           // bytes that it added to the canonical form
	said   int           // of these, text; they come last
	had    int           // of these, what the client has already; they come first
}

// what a mark stands at.
type what byte

const (
	markID what = iota
	markCreated
	markModel
	markFingerprint
	markNames // how many of these an answer has

	markSequence
	markItem
	markCall
)

// mark is a value by which clients know an answer or a part of it, and which
// another stream of the same answer has another value for.
type mark struct {
	what  what
	index uint32
	at    jsontext.Span
}

// element is one tool call of a chat chunk.
type element struct {
	at, id   jsontext.Span
	index    int64
	from, to int // its pieces
}

// Members that an event has at most once.
const (
	memberChoices = 1 << iota
	memberType
	memberIndex
	memberContent
	memberSequence
	memberStart
	memberBlock
	memberPart
	memberItem
	memberDelta
)

// Bounds of one event and one answer; what is beyond is not continued elsewhere.
const (
	maxPieces = 64
	maxMarks  = 256
	maxItems  = 64
)

// names by which the client knows one output item or tool call.
type names struct{ id, call dialect.Content }

// Transcript is what a client was given so far: its text, calls and structure,
// decoded, in a form that does not depend on how they were cut into events.
// Two streams begin with the same answer exactly if the bytes of one's
// transcript begin with the other's. It is content and prints as such.
//
// The form: runs of UTF-8 text, each after a marker that says whose it is; a
// marker is 0xFF, which is no byte of UTF-8, an op and two 32-bit numbers.
type Transcript struct {
	log     dialect.Content
	limit   int
	last    channel
	off     bool
	scratch bool // of a replay: doubt does not end it

	known    [markNames]dialect.Content // raw JSON
	items    []names                    // raw JSON, by output index or tool call
	sequence int64
	numbered bool

	// The event being read.
	data     dialect.Content
	list     []piece
	marks    []mark
	elements []element
	tools    jsontext.Span
	members  uint32
	doubtful bool
	overflow bool
}

// channel is where text at the end of a transcript belongs.
type channel struct {
	op           op
	choice, part uint32
}

// NewTranscript notes at most limit bytes. Beyond it is off.
func NewTranscript(limit int) *Transcript { return &Transcript{limit: limit} }

// Off reports whether the answer cannot be continued elsewhere any more: it
// became too long, or holds something that another stream cannot be compared
// with: thinking, signatures, citations, calls of the provider's own tools,
// probabilities, or what this version does not know.
func (t *Transcript) Off() bool { return t == nil || t.off }

// Bytes is the canonical form. It is valid until the next event.
func (t *Transcript) Bytes() dialect.Content { return t.log }

// Sequence is the sequence number that the client was given last, where events
// carry one.
func (t *Transcript) Sequence() int64 { return t.sequence }

func (t *Transcript) idle() bool { return t == nil || t.off }

// begin forgets the event before.
func (t *Transcript) begin() {
	if t.idle() {
		return
	}
	t.data = dialect.Content{}
	t.list, t.marks, t.elements = t.list[:0], t.marks[:0], t.elements[:0]
	t.tools, t.members, t.doubtful, t.overflow = jsontext.Span{}, 0, false, false
}

func (t *Transcript) reading(data []byte) {
	if !t.idle() {
		t.data = dialect.Conceal(data)
	}
}

// doubt says that the event holds what another stream cannot be compared with.
func (t *Transcript) doubt() {
	if t != nil {
		t.doubtful = true
	}
}

// once notes a member of the event: one that is given twice may be read in two ways.
func (t *Transcript) once(member uint32) {
	if t != nil {
		t.only(&t.members, member)
	}
}

// take takes the value of a member that is noted as once does.
func (t *Transcript) take(member uint32, c *jsontext.Cursor) jsontext.Span {
	t.once(member)
	return c.Span()
}

func (t *Transcript) only(seen *uint32, member uint32) {
	if t == nil {
		return
	}
	if *seen&member != 0 {
		t.doubtful = true
	}
	*seen |= member
}

// blank: a value that adds nothing only where it is empty.
func (t *Transcript) blank(at jsontext.Span) {
	if t.idle() || !at.Present() {
		return
	}
	switch string(bytes.TrimSpace(at.Of(t.data.Bytes()))) {
	case "null", `""`, "[]", "{}":
	default:
		t.doubtful = true
	}
}

// harmless are members that say something about the answer or its making, and
// are no part of it. They are matched in chunks, choices and deltas alike.
var harmless = [...]string{
	"object", "obfuscation", "service_tier", "provider", "prompt_filter_results", "content_filter_results",
	"content_filter_offsets", "stop_reason", "native_finish_reason", "timings", "x_groq", "kv_transfer_params",
}

// other is a member that the reader does not know.
func (t *Transcript) other(key []byte, at jsontext.Span) {
	if t.idle() {
		return
	}
	for _, name := range harmless {
		if string(key) == name {
			return
		}
	}
	t.blank(at)
}

// direct: who called the tool. It must be the model itself.
func (t *Transcript) direct(at jsontext.Span) {
	if t.idle() {
		return
	}
	c := jsontext.Inside(t.data.Bytes(), at)
	c.ObjectOr(func(key []byte) {
		v := c.Span()
		if string(key) == "type" && string(v.Of(c.Data)) != `"direct"` {
			t.doubtful = true
		}
	})
}

func (t *Transcript) pieces() int {
	if t == nil {
		return 0
	}
	return len(t.list)
}

// piece adds a piece of choice 0; belong says if it is another's.
func (t *Transcript) piece(o op, part int64, text jsontext.Span) {
	if t.idle() {
		return
	}
	s := text.Of(t.data.Bytes())
	switch {
	case len(s) < 2 || s[0] != '"', part < 0 || part > 1<<31,
		o == opText && len(t.elements) > 0, // the order of what is said is the order of the list
		len(t.list) == maxPieces:
		t.doubtful = true
		return
	case len(s) == 2 && (o == opText || o == opArguments):
		return
	}
	t.list = append(t.list, piece{op: o, part: uint32(part), text: text})
}

// act adds a piece without text.
func (t *Transcript) act(o op, part int64) {
	switch {
	case t.idle():
	case part < 0 || part > 1<<31 || len(t.list) == maxPieces:
		t.doubtful = true
	default:
		t.list = append(t.list, piece{op: o, part: uint32(part)})
	}
}

// belong says whose the pieces and marks since from are.
func (t *Transcript) belong(from int, choice int64) {
	if t.idle() {
		return
	}
	if choice < 0 || choice > 1<<31 {
		t.doubtful = true
		return
	}
	for i := from; i < len(t.list); i++ {
		t.list[i].choice = uint32(choice)
	}
	for i := range t.marks {
		if m := &t.marks[i]; m.index == thisItem {
			m.index = uint32(choice)
		}
	}
}

// thisItem stands for the output item that an event is about, until it is known.
const thisItem = 1<<32 - 1

// mark notes where a name stands.
func (t *Transcript) mark(w what, at jsontext.Span) { t.markAt(w, thisItem, at) }

func (t *Transcript) markAt(w what, index int64, at jsontext.Span) {
	switch {
	case t.idle():
	case len(t.marks) == maxMarks:
		t.doubtful, t.overflow = true, true
	default:
		t.marks = append(t.marks, mark{w, uint32(index), at})
	}
}

// toolCalls reads tool_calls of a chat delta.
func (t *Transcript) toolCalls(at jsontext.Span) {
	if t.idle() || string(at.Of(t.data.Bytes())) == "null" {
		return
	}
	c := jsontext.Inside(t.data.Bytes(), at)
	if c.Peek() != '[' || t.tools.Present() {
		t.doubtful = true
		return
	}
	t.tools = at
	c.Array(func() {
		c.Space()
		start := c.At
		e := element{index: -1, from: len(t.list)}
		var name, arguments jsontext.Span
		var once, twice uint32
		c.ObjectOr(func(key []byte) {
			switch string(key) {
			case "index":
				t.only(&once, 1)
				e.index = c.Count()
			case "id":
				t.only(&once, 2)
				e.id = c.Span()
			case "type":
				if v := c.Span(); string(v.Of(c.Data)) != `"function"` {
					t.blank(v)
				}
			case "function":
				t.only(&once, 4)
				c.ObjectOr(func(key []byte) {
					v := c.Span()
					switch string(key) {
					case "name":
						t.only(&twice, 1)
						name = v
					case "arguments":
						t.only(&twice, 2)
						arguments = v
					default:
						t.blank(v)
					}
				})
			default:
				t.blank(c.Span())
			}
		})
		if e.index < 0 || e.index >= maxItems {
			t.doubtful = true
			return
		}
		if name.End-name.Start > 2 && name.Of(c.Data)[0] == '"' {
			t.piece(opName, e.index, name)
		} else {
			t.blank(name)
		}
		if arguments.Present() && arguments.Of(c.Data)[0] == '"' {
			t.piece(opArguments, e.index, arguments)
		} else {
			t.blank(arguments)
		}
		e.at, e.to = jsontext.Span{Start: start, End: c.At}, len(t.list)
		t.elements = append(t.elements, e)
	})
}

// note adds the event that was read to the transcript.
func (t *Transcript) note() {
	if t.idle() {
		return
	}
	data := t.data.Bytes()
	t.learn(data)
	log := t.log.Bytes()
	for i := range t.list {
		p := &t.list[i]
		before := len(log)
		here := channel{p.op, p.choice, p.part}
		runs := p.op == opText || p.op == opArguments
		if !runs || here != t.last {
			log = append(log, 0xFF, byte(p.op))
			log = binary.BigEndian.AppendUint32(log, p.choice)
			log = binary.BigEndian.AppendUint32(log, p.part)
		}
		t.last = here
		if !runs {
			t.last = channel{}
		}
		text := len(log)
		if raw := p.text.Of(data); len(raw) > 2 {
			log = jsontext.AppendUnescaped(log, raw[1:len(raw)-1])
			if bytes.ContainsRune(log[text:], utf8.RuneError) && halved(raw) {
				t.doubtful = true
			}
		}
		p.size, p.said = len(log)-before, len(log)-text
	}
	t.log = dialect.Conceal(log)
	if !t.scratch && (t.doubtful || len(log) > t.limit) {
		t.end()
	}
}

// halved reports whether a JSON string holds half a surrogate pair: a character
// that two streams may cut in two ways.
func halved(raw []byte) bool {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		if i++; raw[i] != 'u' {
			continue
		}
		r, _ := jsontext.Hex4(raw[i+1:])
		i += 4
		if !utf16.IsSurrogate(r) {
			continue
		}
		if len(raw)-i < 7 || raw[i+1] != '\\' || raw[i+2] != 'u' {
			return true
		}
		low, _ := jsontext.Hex4(raw[i+3:])
		if utf16.DecodeRune(r, low) == utf8.RuneError {
			return true
		}
		i += 6
	}
	return false
}

// end forgets what was noted, but not the names that the client knows.
func (t *Transcript) end() { t.off, t.log, t.data = true, dialect.Content{}, dialect.Content{} }

// learn notes the names that the client sees first.
func (t *Transcript) learn(data []byte) {
	for _, m := range t.marks {
		v := m.at.Of(data)
		switch m.what {
		case markSequence:
			c := jsontext.Cursor{Data: v}
			t.sequence, t.numbered = c.Count(), true
		case markItem, markCall:
			t.learnItem(m.what, int64(m.index), v)
		default:
			if t.known[m.what].Len() == 0 && meant(v) {
				t.known[m.what] = dialect.Conceal(bytes.Clone(v))
			}
		}
	}
	for _, e := range t.elements {
		t.learnItem(markCall, e.index, e.id.Of(data))
	}
}

// meant reports whether a name is one: some providers begin with a chunk
// without any.
func meant(v []byte) bool {
	switch string(v) {
	case "", "null", `""`, "0":
		return false
	}
	return true
}

func (t *Transcript) learnItem(w what, index int64, v []byte) {
	if !meant(v) {
		return
	}
	if index < 0 || index >= maxItems {
		t.doubtful = true
		return
	}
	for int64(len(t.items)) <= index {
		t.items = append(t.items, names{})
	}
	n := &t.items[index].id
	if w == markCall {
		n = &t.items[index].call
	}
	if n.Len() == 0 {
		*n = dialect.Conceal(bytes.Clone(v))
	}
}
