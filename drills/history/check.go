package history

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"ringmain/controlplane/admin/api"
)

// Verdict is what a history is worth.
type Verdict struct {
	Operations  int      `json:"operations"`
	Answered    int      `json:"answered"` // of them, those that the cluster answered for certain
	PerSecond   float64  `json:"answered_per_second"`
	Registers   int      `json:"registers"`
	Creations   int      `json:"creations"`
	Revocations int      `json:"revocations"`
	Cut         int      `json:"cut"` // writes found in quarantine
	Faults      int      `json:"faults"`
	Violations  []string `json:"violations"`
}

// searchFor bounds the search for an order of one register's operations. A
// search that ends without an answer is a violation: nothing was proven.
const searchFor = 30 * time.Second

// Check says what in h contradicts the package comment. Pictures of registers
// without an order go to dir; "" draws none.
func Check(h *History, dir string) Verdict {
	c := checker{h: h, dir: dir, cutValues: map[string]Cut{}, cutAt: map[string]bool{}, cutRecords: map[string]bool{}}
	for _, cut := range h.Cuts {
		c.cutAt[cut.Position] = true
		switch cut.Op {
		case "put":
			c.cutValues[cut.Name] = cut
			c.cutRecords[cut.Record] = true
		case "revoke":
			c.cutRevoked = append(c.cutRevoked, cut.Record)
		}
	}
	c.v.Operations, c.v.Answered, c.v.Faults, c.v.Cut = len(h.Ops), h.answered(), len(h.Faults), len(c.cutAt)
	if h.Ended > 0 {
		c.v.PerSecond = float64(c.v.Answered) / h.Ended.Seconds()
	}
	c.acknowledgements()
	c.registers()
	c.creations()
	c.revocations()
	return c.v
}

type checker struct {
	h          *History
	dir        string
	cutValues  map[string]Cut  // by the value written, which is unique
	cutAt      map[string]bool // by position
	cutRecords map[string]bool // records that a cut entry put
	cutRevoked []string        // keys that a cut entry revoked
	v          Verdict
}

func (c *checker) violation(format string, args ...any) {
	c.v.Violations = append(c.v.Violations, fmt.Sprintf(format, args...))
}

// acknowledgements: what was confirmed is in no quarantine, and what was
// refused is nowhere.
func (c *checker) acknowledgements() {
	refused := map[string]Op{}
	for _, op := range c.h.Ops {
		switch {
		case op.Outcome == Done && op.Reached == api.AcknowledgedMultiRegion && c.cutAt[op.Position]:
			c.violation("acknowledged multi-region at %s, and in quarantine: %s", op.Position, op)
		case op.Kind == Write && op.Outcome == Nothing:
			refused[op.Value] = op
			if cut, ok := c.cutValues[op.Value]; ok {
				c.violation("refused, yet in the quarantine of %s at %s: %s", cut.Region, cut.Position, op)
			}
		}
	}
	for _, op := range c.h.Ops {
		if w, ok := refused[op.Value]; ok && op.Kind == Read && op.Outcome == Done {
			c.violation("refused, yet read: %s; %s", w, op)
		}
	}
}

// register is the state of one object: what the history that won has, and what
// a home that was cut off later has written beside it. A home's own branch ends
// for good with the first operation that sees the winner's.
type register struct{ main, branch string }

type step struct {
	write bool
	value string
	cut   bool // the write is in quarantine: it never was in the history that won
}

var model = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) {
		s, in := state.(register), input.(step)
		switch {
		case in.write && in.cut:
			return true, register{s.main, in.value}
		case in.write:
			return true, register{main: in.value}
		case s.branch != "" && in.value == s.branch:
			return true, s
		}
		return in.value == s.main, register{main: s.main}
	},
	DescribeOperation: func(input, _ any) string {
		in := input.(step)
		switch {
		case in.cut:
			return "write " + in.value + " (cut)"
		case in.write:
			return "write " + in.value
		}
		return "read " + in.value
	},
	DescribeState: func(state any) string {
		s := state.(register)
		if s.branch != "" {
			return s.main + " | " + s.branch
		}
		return s.main
	},
}

func (c *checker) registers() {
	read := map[string]bool{}
	for _, op := range c.h.Ops {
		if op.Kind == Read && op.Outcome == Done {
			read[op.Value] = true
		}
	}
	byObject := map[string][]porcupine.Operation{}
	for _, op := range c.h.Ops {
		_, cut := c.cutValues[op.Value]
		o := porcupine.Operation{
			ClientId: op.Client, Call: int64(op.Begin), Return: int64(op.End), Metadata: op.String(),
			Input: step{write: op.Kind == Write, value: op.Value, cut: cut},
		}
		switch {
		case op.Kind != Read && op.Kind != Write, op.Outcome == Nothing:
			continue
		case op.Kind == Read && op.Outcome == Unknown:
			continue
		case op.Outcome == Unknown && !read[op.Value]:
			continue // it may come after all others: it contradicts nothing
		case op.Outcome == Unknown:
			o.Return = int64(c.h.Ended) + int64(time.Hour)
		}
		byObject[op.Object] = append(byObject[op.Object], o)
	}
	c.v.Registers = len(byObject)
	for _, object := range slices.Sorted(maps.Keys(byObject)) {
		ops := byObject[object]
		// A client is a row of the picture, and has one operation at a time.
		for i := range ops {
			if ops[i].Return > int64(c.h.Ended) {
				ops[i].ClientId += 1000 + i
			}
		}
		result := porcupine.CheckOperationsTimeout(model, ops, searchFor)
		if result == porcupine.Ok {
			continue
		}
		picture := ""
		if c.dir != "" {
			picture = filepath.Join(c.dir, object+".html")
			_, info := porcupine.CheckOperationsVerbose(model, ops, searchFor)
			if err := porcupine.VisualizePath(model, info, picture); err != nil {
				picture = err.Error()
			}
		}
		if result == porcupine.Unknown {
			c.violation("register %s: no answer in %v (%d operations)", object, searchFor, len(ops))
			continue
		}
		c.violation("register %s: no order explains its %d operations: %s", object, len(ops), cmp.Or(picture, "no picture asked for"))
	}
}

// creations: one record and one secret for each Idempotency-Key.
func (c *checker) creations() {
	listed := map[string][]string{} // by name
	for _, f := range c.h.Found {
		listed[f.Name] = append(listed[f.Name], f.Record)
	}
	type made struct {
		name    string
		answers []Op
	}
	keys := map[string]*made{}
	for _, op := range c.h.Ops {
		if op.Kind != Create {
			continue
		}
		if keys[op.Object] == nil {
			keys[op.Object] = &made{name: op.Value}
		}
		if op.Outcome == Done {
			keys[op.Object].answers = append(keys[op.Object].answers, op)
		}
	}
	c.v.Creations = len(keys)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		m := keys[key]
		if found := listed[m.name]; len(found) > 1 {
			c.violation("creation %s made %d records: %v", key, len(found), found)
		}
		secrets := map[string]string{} // by record
		for _, op := range m.answers {
			if s, ok := secrets[op.Record]; ok && s != op.Secret {
				c.violation("creation %s shows two secrets of %s", key, op.Record)
			}
			secrets[op.Record] = op.Secret
			if !slices.Contains(listed[m.name], op.Record) && !c.cutRecords[op.Record] {
				c.violation("created and lost (found under its name: %v): %s", listed[m.name], op)
			}
		}
	}
}

// revocations: once revoked, revoked.
func (c *checker) revocations() {
	type key struct {
		sure  time.Duration // when it was first known to be revoked in the history that wins; 0 = never
		last  map[string]Op // last glance of each region
		ended bool          // some revocation was acknowledged
		cause Op
	}
	keys := map[string]*key{}
	for _, op := range c.h.Ops {
		if op.Kind != Revoke && op.Kind != Look && op.Kind != Glance {
			continue
		}
		k := keys[op.Object]
		if k == nil {
			k = &key{last: map[string]Op{}}
			keys[op.Object] = k
		}
		known := op.Outcome == Done && (op.Kind == Revoke || op.Kind == Look && op.Value == Revoked)
		switch {
		case op.Kind == Glance && op.Outcome == Done:
			if last := k.last[region(op.Entry)]; op.End > last.End {
				k.last[region(op.Entry)] = op
			}
		case known && !slices.Contains(c.cutRevoked, op.Object) && (k.sure == 0 || op.End < k.sure):
			k.sure, k.cause = op.End, op
		}
		k.ended = k.ended || known
	}
	for _, op := range c.h.Ops {
		if k := keys[op.Object]; op.Kind == Look && op.Outcome == Done && op.Value != Revoked && k.sure != 0 && op.Begin > k.sure && !c.cutRecords[op.Object] {
			c.violation("revoked, and later not: %s; %s", k.cause, op)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		k := keys[id]
		if k.ended {
			c.v.Revocations++
		}
		for _, r := range slices.Sorted(maps.Keys(k.last)) {
			if last := k.last[r]; k.ended && last.Value != Revoked && !c.cutRecords[id] {
				c.violation("revoked, and at the end not in %s: %s", r, last)
			}
		}
	}
}

func region(entry string) string {
	dir, _ := filepath.Split(entry)
	return filepath.Clean(dir)
}

// String says all that tells an operation from others.
func (op Op) String() string {
	return fmt.Sprintf("#%d client %d %s %s %q %s by %s (%s), %.3f to %.3f s: %s %d %s %s %s", op.ID, op.Client, op.Kind, op.Object, op.Value, op.Level, op.Entry, op.Answered,
		op.Begin.Seconds(), op.End.Seconds(), op.Outcome, op.Status, op.Code, op.Reached, op.Position)
}
