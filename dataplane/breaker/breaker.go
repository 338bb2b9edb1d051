// Package breaker keeps a circuit per (upstream, model, endpoint) and per peer node,
// on sony/gobreaker, which no other room imports. What counts as a failure is a
// pure function of the outcome. It knows nothing of HTTP.
package breaker

import (
	"cmp"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// Outcome is how one attempt ended.
type Outcome uint8

// Outcomes. The zero Outcome is OK.
const (
	OK           Outcome = iota // an answer, complete, or still good when it was handed over
	ClientError                 // the provider refused the request itself: 400, 413, 422 …
	Refused                     // the provider's safety system declined
	ClientGone                  // our own client went away
	Behind                      // the peer's state lags ours
	Expired                     // the request's own deadline passed
	Throttled                   // 429, 529
	ServerError                 // 5xx, 408, a redirect, an early error event, garbage
	Unauthorized                // our credential, or the model's name there, was rejected
	Transport                   // no connection, reset, or cut before or within the answer
	Timeout                     // connect, first byte or between events
)

var outcomeNames = [...]string{
	"ok", "client_error", "refused", "client_gone", "behind", "expired",
	"throttled", "server_error", "unauthorized", "transport", "timeout",
}

// String is the outcome as a metric label.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return "unknown"
}

// Verdict is what an outcome means to a circuit.
type Verdict uint8

// Verdicts.
const (
	Success Verdict = iota
	Failure
	Ignored
)

// Classify says what an outcome means to the circuit of whoever was asked.
// A client's own abort, its deadline, a refusal and a peer that is behind say
// nothing about health; a provider that refuses a bad request is well.
func Classify(o Outcome) Verdict {
	switch o {
	case OK, ClientError:
		return Success
	case Throttled, ServerError, Unauthorized, Transport, Timeout:
		return Failure
	case Refused, ClientGone, Behind, Expired:
		return Ignored
	}
	return Ignored
}

// Key names a circuit: (upstream, model, path of the endpoint), or ("peer", node).
// A model that does not answer at one endpoint, which a provider tells as if it were
// not there, does at others.
type Key struct{ Owner, Part, Path string }

// String is "owner/part/path".
func (k Key) String() string { return k.Owner + "/" + k.Part + k.Path }

// Peer is the circuit of a peer node.
func Peer(node string) Key { return Key{Owner: "peer", Part: node} }

// Rules say when a circuit opens. Zero values take the defaults in brackets.
type Rules struct {
	// Run opens after so many failures in a row, however long they took [5].
	Run uint32
	// Share opens when at least Least [20] outcomes within Window [10 s] are
	// known and this share of them failed [0.5].
	Share  float64
	Least  uint32
	Window time.Duration
	// Rest is how long an open circuit stays so before one trial is let
	// through [5 s]. Another is when that was silent for six times as long.
	Rest time.Duration
	// Ramp is how long after it closed a circuit is on slow start: its Share of
	// the traffic grows from a tenth to all of it [10 s].
	Ramp time.Duration
}

func (r Rules) withDefaults() Rules {
	r.Run = cmp.Or(r.Run, 5)
	r.Share = cmp.Or(r.Share, 0.5)
	r.Least = cmp.Or(r.Least, 20)
	r.Window = cmp.Or(r.Window, 10*time.Second)
	r.Rest = cmp.Or(r.Rest, 5*time.Second)
	r.Ramp = cmp.Or(r.Ramp, 10*time.Second)
	return r
}

// buckets is in how many steps a window slides.
const buckets = 10

// Set holds the circuits of one class. It is safe for concurrent use.
type Set struct {
	rules    Rules
	onChange func(Key, string)
	circuits sync.Map // Key -> *circuit
}

// New makes an empty set. onChange (may be nil) is told of every change of
// state; it must not block nor call back.
func New(rules Rules, onChange func(key Key, state string)) *Set {
	if onChange == nil {
		onChange = func(Key, string) {}
	}
	return &Set{rules: rules.withDefaults(), onChange: onChange}
}

// circuit wraps a gobreaker. An LLM answer may take longer than the window, and
// gobreaker forgets outcomes whose request began before it; so while closed,
// an outcome is entered as a request of its own, when it is known.
type circuit struct {
	cb      *gobreaker.TwoStepCircuitBreaker[struct{}]
	changes atomic.Uint64 // an outcome counts only if the state is the one it was asked in
	run     atomic.Uint32 // failures in a row
	closed  atomic.Int64  // when it closed after a rest, Unix nanoseconds; 0 = it never did
	later   atomic.Int64  // asked to be left alone until then, Unix nanoseconds
	trial   atomic.Pointer[trial]
	by      atomic.Pointer[string] // while it is not closed, the caller whose requests alone opened it; nil = it was more than one
	well    atomic.Bool            // since then, others were answered

	mu      sync.Mutex
	failing string    // caller whose request failed last
	several time.Time // when requests of two callers had failed in turn
	since   uint64    // changes before one caller's requests opened it
}

// failed notes whose request failed. It comes before the failure counts.
func (c *circuit) failed(who string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if who == "" || c.failing != "" && c.failing != who {
		c.several = time.Now()
	}
	c.failing = who
}

// changed notes by whose requests the state changed.
func (c *circuit) changed(from, to gobreaker.State, window time.Duration) {
	now := c.changes.Add(1)
	c.run.Store(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case to == gobreaker.StateClosed:
		if !c.well.Load() {
			c.closed.Store(time.Now().UnixNano())
		}
		c.shared()
		c.failing, c.several = "", time.Time{}
	case to == gobreaker.StateOpen && from == gobreaker.StateClosed && time.Since(c.several) > window:
		who := c.failing
		c.by.Store(&who)
		c.since = now - 1
	case to == gobreaker.StateOpen && c.others(c.failing):
		c.shared()
	}
}

// shared notes that it is nobody's alone.
func (c *circuit) shared() {
	c.by.Store(nil)
	c.well.Store(false)
}

// others reports whether who may be let through though the circuit is not closed,
// since another caller's requests alone opened it.
func (c *circuit) others(who string) bool {
	by := c.by.Load()
	return by != nil && *by != who
}

// beside notes how a request ended that was asked since the circuit was closed last,
// and is not of its state: it tells whether one caller alone has a part in that.
func (c *circuit) beside(t Ticket, failed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case t.changes < c.since || !c.others(t.who):
	case failed:
		c.shared()
	case t.beside:
		c.well.Store(true)
	}
}

// trial is the one that a half-open circuit let through last. Another takes its
// place when it is silent for long, as a model that thinks may be for minutes;
// how it ends counts nevertheless, unless it tells nothing.
type trial struct {
	done  func(error)
	began time.Time
	past  atomic.Bool // its place was given up
}

// patience is how many rests a trial may be silent: the next one may wait as long
// as this one, for nothing.
const patience = 6

func (t *trial) end(err error) {
	if !errors.Is(err, errExcluded) || !t.past.Swap(true) {
		t.done(err)
	}
}

var (
	errFailed   = errors.New("failed")
	errExcluded = errors.New("excluded")
)

func (s *Set) circuit(key Key) *circuit {
	if c, ok := s.circuits.Load(key); ok {
		return c.(*circuit) //nolint:forcetypeassert // only circuits are stored
	}
	c := new(circuit)
	c.cb = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:         key.String(),
		MaxRequests:  1,
		Interval:     s.rules.Window,
		BucketPeriod: s.rules.Window / buckets,
		Timeout:      s.rules.Rest,
		ReadyToTrip: func(n gobreaker.Counts) bool {
			known := n.TotalSuccesses + n.TotalFailures
			return c.run.Load() >= s.rules.Run ||
				known >= s.rules.Least && float64(n.TotalFailures) >= s.rules.Share*float64(known)
		},
		OnStateChange: func(_ string, from, to gobreaker.State) {
			c.changed(from, to, s.rules.Window)
			s.onChange(key, to.String())
		},
		IsExcluded: func(err error) bool { return errors.Is(err, errExcluded) },
	})
	actual, _ := s.circuits.LoadOrStore(key, c)
	return actual.(*circuit) //nolint:forcetypeassert // only circuits are stored
}

// Open reports whether key would be refused right now, to nobody in particular.
func (s *Set) Open(key Key) bool { return s.OpenTo(key, "") }

// OpenTo reports whether key would be refused to who right now.
func (s *Set) OpenTo(key Key, who string) bool {
	v, ok := s.circuits.Load(key)
	if !ok {
		return false
	}
	c := v.(*circuit) //nolint:forcetypeassert // only circuits are stored
	return c.cb.State() == gobreaker.StateOpen && !c.others(who)
}

// Allow is AllowTo for nobody in particular.
func (s *Set) Allow(key Key) (Ticket, bool) { return s.AllowTo(key, "") }

// AllowTo asks whether who may try key. If so, Done must be called once with how
// it ended; a half-open circuit lets a single trial through until then, or until
// that was silent for long. One that the requests of a single caller opened is open
// to that one alone, until another's fails too: what makes a server fail may be in
// the request, and is nobody else's loss.
func (s *Set) AllowTo(key Key, who string) (Ticket, bool) {
	c := s.circuit(key)
	changes := c.changes.Load()
	if c.cb.State() == gobreaker.StateClosed {
		return Ticket{circuit: c, changes: changes, who: who}, true
	}
	now := time.Now()
	if before := c.trial.Load(); before != nil && now.Sub(before.began) > patience*s.rules.Rest {
		before.end(errExcluded)
	}
	done, err := c.cb.Allow()
	if err != nil {
		if c.others(who) {
			return Ticket{circuit: c, changes: changes, who: who, beside: true}, true
		}
		return Ticket{}, false
	}
	changes = c.changes.Load()
	if c.cb.State() == gobreaker.StateClosed { // since then
		done(errExcluded)
		return Ticket{circuit: c, changes: changes, who: who}, true
	}
	one := &trial{done: done, began: now}
	c.trial.Store(one)
	return Ticket{circuit: c, changes: changes, who: who, trial: one}, true
}

// Pause notes that whoever is behind key asked to be left alone until then.
func (s *Set) Pause(key Key, until time.Time) { s.circuit(key).later.Store(until.UnixNano()) }

// Share is how much of the traffic that would go to key at now should: 0 while
// it asked to be left alone, little right after its circuit closed, else 1. It
// is a matter of order: where there is no other, key takes it all.
func (s *Set) Share(key Key, now time.Time) float64 {
	v, ok := s.circuits.Load(key)
	if !ok {
		return 1
	}
	c := v.(*circuit) //nolint:forcetypeassert // only circuits are stored
	if now.UnixNano() < c.later.Load() {
		return 0
	}
	closed := c.closed.Load()
	if closed == 0 {
		return 1
	}
	return ramped(now.Sub(time.Unix(0, closed)), s.rules.Ramp)
}

// slowest is the share that a circuit starts with.
const slowest = 0.1

// ramped is the share of traffic at since after a circuit closed, if slow start
// takes ramp.
func ramped(since, ramp time.Duration) float64 {
	if since >= ramp {
		return 1
	}
	return slowest + (1-slowest)*max(0, float64(since)/float64(ramp))
}

// Ticket is the right to one attempt. The zero Ticket may be Done, to no effect.
type Ticket struct {
	circuit *circuit
	changes uint64
	who     string
	trial   *trial
	beside  bool // of a circuit that is open to another caller alone
}

// Done reports how the attempt ended.
func (t Ticket) Done(o Outcome) {
	if t.circuit == nil {
		return
	}
	var err error
	switch Classify(o) {
	case Success:
	case Failure:
		err = errFailed
		t.circuit.failed(t.who)
	case Ignored:
		if t.trial != nil {
			t.trial.end(errExcluded)
		}
		return
	}
	switch {
	case t.trial != nil:
		t.trial.end(err)
		return
	case t.beside || t.circuit.changes.Load() != t.changes:
		t.circuit.beside(t, err != nil)
		return
	}
	done, refused := t.circuit.cb.Allow()
	if refused != nil {
		return
	}
	if err == nil {
		t.circuit.run.Store(0)
	} else {
		t.circuit.run.Add(1)
	}
	done(err)
}

// Snapshot gives the circuits that are not closed: name -> "open" or "half-open".
// One whose upstream answers all but one caller is not among them.
func (s *Set) Snapshot() map[string]string {
	out := make(map[string]string)
	s.circuits.Range(func(k, v any) bool {
		c := v.(*circuit) //nolint:forcetypeassert // only circuits are stored
		if state := c.cb.State(); state != gobreaker.StateClosed && !c.well.Load() {
			out[k.(Key).String()] = state.String() //nolint:forcetypeassert // only Keys are stored
		}
		return true
	})
	return out
}
