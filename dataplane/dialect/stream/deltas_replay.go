package stream

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

// Replay reads the events of a second stream of an answer whose beginning a
// transcript notes, and writes them as the continuation of the first.
type Replay struct {
	Stream Stream // what its events said so far

	have *Transcript
	own  Transcript
}

// NewReplay reads events as s does.
func NewReplay(have *Transcript, s Stream) *Replay {
	r := &Replay{Stream: s, have: have, own: Transcript{scratch: true}}
	r.Stream.Transcript = &r.own
	return r
}

// Event reads one event. adds is what it adds to the answer, in the canonical
// form of Transcript; it is valid until the next Event. doubtful: the event
// holds something that cannot be compared.
func (r *Replay) Event(event []byte) (kind Kind, adds dialect.Content, doubtful bool) {
	r.own.log = dialect.Conceal(r.own.log.Bytes()[:0])
	kind = r.Stream.Event(event)
	return kind, r.own.log, r.own.doubtful
}

// Given notes in the transcript that the client has the event read last; it
// had the first skip bytes of what that adds before.
func (r *Replay) Given(skip int) {
	t, own := r.have, &r.own
	if t.off {
		return
	}
	data := own.data.Bytes()
	for _, m := range own.marks {
		if m.what == markItem || m.what == markCall {
			t.learnItem(m.what, int64(m.index), m.at.Of(data))
		}
	}
	for _, e := range own.elements {
		t.learnItem(markCall, e.index, e.id.Of(data))
	}
	t.log, t.last = dialect.Conceal(append(t.log.Bytes(), own.log.Bytes()[skip:]...)), own.last
	if own.doubtful || t.log.Len() > t.limit {
		t.end()
	}
}

// change is a part of an event's data, and what stands there instead.
type change struct {
	at jsontext.Span
	by []byte
}

// Append appends the event read last as the next one of the first stream: under
// the names that its client knows, and without the first skip bytes of what it
// adds. ok is false where that cannot be said in one event.
func (r *Replay) Append(dst, event []byte, skip int) (out []byte, ok bool) {
	own := &r.own
	if own.overflow {
		return dst, false
	}
	data := own.data.Bytes()
	changes := r.rename(data)
	cut, ok := own.cut(data, skip, r.have)
	if !ok {
		return dst, false
	}
	changes = append(changes, cut...)
	if len(changes) == 0 {
		return append(dst, event...), true
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.at.Start, b.at.Start) })
	name, _, _ := fields(event)
	if len(name) > 0 {
		dst = append(append(append(dst, "event: "...), name...), '\n')
	}
	dst = append(dst, "data: "...)
	from, body := 0, len(dst)
	for _, c := range changes {
		if c.at.Start < from {
			return dst, false
		}
		dst = append(append(dst, data[from:c.at.Start]...), c.by...)
		from = c.at.End
	}
	dst = append(dst, data[from:]...)
	for i, x := range dst[body:] { // data of several lines: they end between JSON tokens only
		if x == '\n' {
			dst[body+i] = ' '
		}
	}
	return append(dst, "\n\n"...), true
}

// rename gives the changes that put the first stream's names in place.
func (r *Replay) rename(data []byte) []change {
	var all []change
	put := func(at jsontext.Span, by dialect.Content) {
		if by.Len() > 0 && !bytes.Equal(at.Of(data), by.Bytes()) {
			all = append(all, change{at, by.Bytes()})
		}
	}
	for _, m := range r.own.marks {
		switch m.what {
		case markSequence:
			if r.have.numbered {
				r.have.sequence++
				all = append(all, change{m.at, strconv.AppendInt(nil, r.have.sequence, 10)})
			}
		case markItem, markCall:
			put(m.at, r.have.name(m.what, int64(m.index)))
		default:
			put(m.at, r.have.known[m.what])
		}
	}
	return all
}

// name is what the client knows an item or call by.
func (t *Transcript) name(w what, index int64) dialect.Content {
	switch {
	case index < 0 || index >= int64(len(t.items)):
		return dialect.Content{}
	case w == markCall:
		return t.items[index].call
	}
	return t.items[index].id
}

// cut gives the changes that take the first skip bytes of what the event adds
// out of it, and put the names of have into its tool calls.
func (t *Transcript) cut(data []byte, skip int, have *Transcript) ([]change, bool) {
	var all []change
	for i := range t.list {
		p := &t.list[i]
		p.had = min(skip, p.size)
		skip -= p.had
		runs := p.op == opText || p.op == opArguments
		switch {
		case p.had == 0:
			continue
		case p.had == p.size && (runs || p.op == opName && t.tools.Present()):
		case p.had < p.size && runs && p.had >= p.size-p.said: // within its text
		default:
			return nil, false // structure comes in events of its own
		}
		if p.op == opText || !t.tools.Present() {
			all = append(all, change{p.text, jsontext.AppendString(nil, p.rest(data))})
		}
	}
	if len(t.elements) == 0 {
		return all, skip == 0
	}
	calls := []byte{'['}
	for _, e := range t.elements {
		calls = t.appendCall(calls, data, e, have)
	}
	calls = append(calls, ']')
	if !bytes.Equal(calls, t.tools.Of(data)) {
		all = append(all, change{t.tools, calls})
	}
	return all, skip == 0
}

// rest is what the client does not have of p's text.
func (p *piece) rest(data []byte) string {
	raw := p.text.Of(data)
	text := jsontext.AppendUnescaped(nil, raw[1:len(raw)-1])
	return string(text[len(text)-min(p.said, p.size-p.had):])
}

// appendCall appends what the client does not have of a tool call to a list of them.
func (t *Transcript) appendCall(dst, data []byte, e element, have *Transcript) []byte {
	had, size := 0, 0
	for _, p := range t.list[e.from:e.to] {
		had, size = had+p.had, size+p.size
	}
	if had == size && size > 0 {
		return dst
	}
	if len(dst) > 1 {
		dst = append(dst, ',')
	}
	if had > 0 { // its name, or the beginning of its arguments
		arguments := t.list[e.to-1]
		dst = append(dst, `{"index":`...)
		dst = strconv.AppendInt(dst, e.index, 10)
		dst = append(dst, `,"function":{"arguments":`...)
		dst = jsontext.AppendString(dst, arguments.rest(data))
		return append(dst, "}}"...)
	}
	id := have.name(markCall, e.index)
	if id.Len() == 0 || !e.id.Present() {
		return append(dst, e.at.Of(data)...)
	}
	dst = append(append(dst, data[e.at.Start:e.id.Start]...), id.Bytes()...)
	return append(dst, data[e.id.End:e.at.End]...)
}
