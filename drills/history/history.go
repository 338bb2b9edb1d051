// Package history writes down what clients of the management API asked and were
// told, and what was done to the cluster meanwhile, and judges whether one order
// of events explains it all. It knows no cluster and no client, so that who makes
// a history has no part in the verdict: nemesis makes one on real processes.
//
// What is held against the cluster, and nothing weaker may enter:
//
//   - A write acknowledged multi-region is in every later linearizable read.
//   - One acknowledged region is too, or it is in some region's quarantine.
//   - One refused with "nothing was written" is nowhere.
//   - One of unknown outcome may take effect at any later time, once, or never.
//   - A creation repeated with its Idempotency-Key makes one record, and shows
//     one secret.
//   - A key once revoked is revoked in every later linearizable read, and in
//     the end in every region's own copy.
package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Kind says what an Op did.
type Kind string

// Kinds.
const (
	Write  Kind = "write"  // of a register: an org's name
	Read   Kind = "read"   // linearizable, of a register
	Create Kind = "create" // with an Idempotency-Key
	Revoke Kind = "revoke" // of a key
	Look   Kind = "look"   // linearizable, at a key: Value is Revoked or not
	Glance Kind = "glance" // stale, at a key, by one region
)

// Revoked is the Value that a look at a revoked key finds.
const Revoked = "revoked"

// Outcome is what a client knows of its request afterwards.
type Outcome string

// Outcomes.
const (
	Done    Outcome = "done"    // acknowledged, or read
	Nothing Outcome = "nothing" // refused: nothing was written
	Unknown Outcome = "unknown" // may take effect at any later time
)

// Op is one request, by one client to one node. Times are since the run began.
type Op struct {
	ID       int           `json:"id"`
	Client   int           `json:"client"`
	Kind     Kind          `json:"kind"`
	Object   string        `json:"object"` // id of the record; Create: the Idempotency-Key
	Entry    string        `json:"entry"`  // region/node that was asked
	Begin    time.Duration `json:"begin"`
	End      time.Duration `json:"end"`
	Value    string        `json:"value,omitempty"` // written or read; Create: the name
	Record   string        `json:"record,omitempty"`
	Secret   string        `json:"secret,omitempty"` // a digest of the key shown
	Level    string        `json:"level,omitempty"`  // asked for
	Outcome  Outcome       `json:"outcome"`
	Status   int           `json:"status,omitempty"`
	Code     string        `json:"code,omitempty"`
	Reached  string        `json:"reached,omitempty"`
	Position string        `json:"position,omitempty"`
	Answered string        `json:"answered,omitempty"` // region/node that answered
	Detail   string        `json:"detail,omitempty"`
}

// Fault is something that was done to the cluster, and how that is known.
type Fault struct {
	Fault string        `json:"fault"`
	At    time.Duration `json:"at"`
	Took  time.Duration `json:"took"`
	Proof string        `json:"proof"`
}

// Cut is one change of an entry in some region's quarantine.
type Cut struct {
	Region   string `json:"region"`
	Position string `json:"position"` // <shard>=<epoch>.<sequence>
	Level    string `json:"level,omitempty"`
	Op       string `json:"op"`
	Record   string `json:"record,omitempty"`
	Name     string `json:"name,omitempty"`
}

// Found is a record as a list at the end had it.
type Found struct {
	Record string `json:"record"`
	Name   string `json:"name"`
}

// History is all that a run knows.
type History struct {
	Ops    []Op
	Faults []Fault
	Cuts   []Cut
	Found  []Found // records made by Create, as listed at their homes at the end
	Ended  time.Duration
}

// line is one line of the file: exactly one field is set.
type line struct {
	Op    *Op           `json:"op,omitempty"`
	Fault *Fault        `json:"fault,omitempty"`
	Cut   *Cut          `json:"cut,omitempty"`
	Found *Found        `json:"found,omitempty"`
	Ended time.Duration `json:"ended,omitempty"`
}

// Recorder keeps a history while it happens. Safe for concurrent use.
type Recorder struct {
	began time.Time
	mu    sync.Mutex
	h     History
}

// NewRecorder begins a history at the time began.
func NewRecorder(began time.Time) *Recorder { return &Recorder{began: began} }

// Begin counts from now on: what was noted before has its times. Nothing may be
// added meanwhile.
func (r *Recorder) Begin(now time.Time) { r.began = now }

// Now is the time since the run began.
func (r *Recorder) Now() time.Duration { return time.Since(r.began) }

// Op adds an operation, and gives it its number.
func (r *Recorder) Op(op Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	op.ID = len(r.h.Ops)
	r.h.Ops = append(r.h.Ops, op)
}

// Fault adds a fault that is proven.
func (r *Recorder) Fault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Faults = append(r.h.Faults, f)
}

// Answered is how many operations the cluster answered for certain.
func (r *Recorder) Answered() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.h.answered()
}

func (h *History) answered() (n int) {
	for i := range h.Ops {
		if op := &h.Ops[i]; op.Outcome != Unknown && op.Status != 0 {
			n++
		}
	}
	return n
}

// Revoked lists the keys that somebody asked to revoke.
func (r *Recorder) Revoked() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := map[string]bool{}
	for _, op := range r.h.Ops {
		if op.Kind == Revoke {
			keys[op.Object] = true
		}
	}
	return keys
}

// Ended gives the history, to which nothing may be added any more.
func (r *Recorder) Ended(cuts []Cut, found []Found) *History {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Cuts, r.h.Found, r.h.Ended = cuts, found, r.Now()
	return &r.h
}

// Save writes the history as JSON lines.
func (h *History) Save(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for i := range h.Ops {
		err = errors.Join(err, enc.Encode(line{Op: &h.Ops[i]}))
	}
	for i := range h.Faults {
		err = errors.Join(err, enc.Encode(line{Fault: &h.Faults[i]}))
	}
	for i := range h.Cuts {
		err = errors.Join(err, enc.Encode(line{Cut: &h.Cuts[i]}))
	}
	for i := range h.Found {
		err = errors.Join(err, enc.Encode(line{Found: &h.Found[i]}))
	}
	return errors.Join(err, enc.Encode(line{Ended: h.Ended}), w.Flush())
}

// Open reads what Save wrote.
func Open(r io.Reader) (*History, error) {
	h := new(History)
	dec := json.NewDecoder(r)
	for n := 1; ; n++ {
		var l line
		switch err := dec.Decode(&l); {
		case errors.Is(err, io.EOF):
			return h, nil
		case err != nil:
			return nil, fmt.Errorf("history, line %d: %w", n, err)
		case l.Op != nil:
			h.Ops = append(h.Ops, *l.Op)
		case l.Fault != nil:
			h.Faults = append(h.Faults, *l.Fault)
		case l.Cut != nil:
			h.Cuts = append(h.Cuts, *l.Cut)
		case l.Found != nil:
			h.Found = append(h.Found, *l.Found)
		default:
			h.Ended = l.Ended
		}
	}
}
