// Package splice continues a streamed answer that broke with the same answer
// of another replica. It is a pure machine over events: it drops the replay's
// events while they say what the client has, byte for byte in the canonical
// form of stream.Transcript, cuts the one that crosses the boundary, and passes
// on what follows under the names that the client knows. Whatever differs, or
// cannot be compared, ends it: a client is never given two answers in one.
package splice

import (
	"bytes"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/stream"
)

// Limit is how much of an answer is kept for its continuation elsewhere, in
// bytes of its canonical form.
const Limit = 256 << 10

// Verdict says what to do after an event of the replay.
type Verdict uint8

// Verdicts.
const (
	Wait     Verdict = iota // the client has it: go on
	Forward                 // give the client what came with this
	Last                    // the same, and the answer is complete with it
	Diverged                // the replay is another answer, or may be: give up
	Failed                  // the replay says that its upstream failed
	Declined                // the replay is a refusal: give up, ask nobody else
)

// Machine splices one replay. It is not safe for concurrent use.
type Machine struct {
	have   dialect.Content // what the client had when the replay began
	replay *stream.Replay
	at     int  // bytes of it that the replay has said again
	level  bool // the replay has said all of it
	out    dialect.Content
}

// New continues the stream that t notes with the events that s describes. What
// the client is given is added to t, so that a replay that breaks too may be
// followed by another.
func New(t *stream.Transcript, s stream.Stream) *Machine {
	s.WantsUsage = true // hidden chunks do not come this far
	return &Machine{have: t.Bytes(), replay: stream.NewReplay(t, s)}
}

// Level reports whether the client is being given events of the replay.
func (m *Machine) Level() bool { return m.level }

// Event takes the replay's next whole event. out is valid until the next one.
func (m *Machine) Event(event []byte) (out []byte, v Verdict) {
	kind, adds, doubtful := m.replay.Event(event)
	switch kind {
	case stream.KindError:
		if m.replay.Stream.Refused && !m.level {
			return nil, Declined
		}
		return nil, Failed
	case stream.KindGarbage:
		return nil, Failed
	case stream.KindSkip, stream.KindHidden:
		return nil, Wait
	}
	skip, ok := m.match(adds.Bytes(), doubtful)
	switch {
	case !ok && m.replay.Stream.Refused:
		return nil, Declined
	case !ok:
		return nil, Diverged
	case !m.level:
		if kind == stream.KindLast { // it ends before the client's does
			return nil, Diverged
		}
		return nil, Wait
	case skip < 0:
		return nil, Wait
	}
	b, ok := m.replay.Append(m.out.Bytes()[:0], event, skip)
	m.out = dialect.Conceal(b)
	if !ok {
		return nil, Diverged
	}
	m.replay.Given(skip)
	if kind == stream.KindLast {
		return b, Last
	}
	return b, Forward
}

// match compares what an event adds with what the client has. skip is how much
// of it the client has; -1 = all, and the event is not to be passed on.
func (m *Machine) match(adds []byte, doubtful bool) (skip int, ok bool) {
	if m.level {
		return 0, true
	}
	rest := m.have.Bytes()[m.at:]
	if len(rest) == 0 { // nothing to compare: what adds nothing begins the answer, as the client saw it begin
		m.level = len(adds) > 0 || doubtful
		if !m.level {
			skip = -1
		}
		return skip, true
	}
	n := min(len(rest), len(adds))
	if doubtful || !bytes.Equal(rest[:n], adds[:n]) {
		return 0, false
	}
	m.at += n
	m.level = n == len(rest)
	if n == len(adds) {
		return -1, true // the client has all of it
	}
	return n, true
}
