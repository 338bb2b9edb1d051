// Package trial judges changes of the state by what became of the processes
// that took them: what a process died on twice is left out from then on.
//
// The rules are pure; File keeps them over restarts. Nothing about requests may
// enter it.
package trial

import (
	"cmp"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// Suspect is a span on which a process died.
type Suspect struct {
	Span
	Deaths int
}

// Isolated is a span that is left out of what the worker is given. In the
// place of each of its records stands the one before it, if there was one.
type Isolated struct {
	Span
	Own    bool              // this node died on it; otherwise another one did, and said so
	Build  string            // of the worker that died: another one tries again
	At     int64             // Unix milliseconds
	Before map[string][]byte // by record id: registry.EncodeRecord
}

// MaxDeaths is how often a process may die on one change.
const MaxDeaths = 2

// maxIsolated bounds the ledger: a node that dies on more has another ailment.
const maxIsolated = 64

// maxHeard bounds what is left out because other nodes say so: one that says so
// of everything must not hold back everything.
const maxHeard = 16

// Ledger is what has been found out so far. The zero Ledger knows nothing.
type Ledger struct {
	Suspects []Suspect             `cbor:"1,keyasint,omitempty"`
	Isolated []Isolated            `cbor:"2,keyasint,omitempty"`
	Proven   controlplane.Position `cbor:"3,keyasint,omitempty"` // workers live with it

	Loading uint64   `cbor:"4,keyasint,omitempty"` // generation on disk that a keeper is reading; 0 = none
	Loads   int      `cbor:"5,keyasint,omitempty"` // how many keepers began to read it and died
	Skipped []uint64 `cbor:"6,keyasint,omitempty"` // generations that keepers died on: the one before is used

	Peers []Peer `cbor:"7,keyasint,omitempty"` // who was heard last, by region and name
}

// Load notes that a keeper is about to read a generation, and reports whether
// it may: not the one that keepers died on.
func (l *Ledger) Load(generation uint64) bool {
	if l.Loading == generation {
		l.Loads++
	} else {
		l.Loading, l.Loads = generation, 0
	}
	if l.Loads >= MaxDeaths && !slices.Contains(l.Skipped, generation) {
		l.Skipped = append(l.Skipped, generation)
	}
	return !slices.Contains(l.Skipped, generation)
}

// Loaded notes that the keeper lives with what it read, and forgets generations
// before oldest, which are gone.
func (l *Ledger) Loaded(oldest uint64) {
	l.Loading, l.Loads = 0, 0
	l.Skipped = slices.DeleteFunc(l.Skipped, func(g uint64) bool { return g < oldest })
}

// Died notes that a process died on s, and returns what is left of it together
// with the deaths before it on the same entries, and how many those are now.
func (l *Ledger) Died(s Span) Suspect {
	l.Suspects = slices.DeleteFunc(l.Suspects, func(old Suspect) bool { return old.Shard == s.Shard && !old.with(s.Point()) })
	for i := range l.Suspects {
		if old := &l.Suspects[i]; old.Shard == s.Shard && old.From <= s.To && s.From <= old.To {
			if s.To < old.To {
				old.To, old.Epoch = s.To, s.Epoch
			}
			old.From = max(old.From, s.From)
			old.Deaths++
			return *old
		}
	}
	found := Suspect{s, 1}
	l.Suspects = append(l.Suspects, found)
	return found
}

// prove notes that a worker lives with the state at p, and reports whether
// that clears anything or moves on in shard.
func (l *Ledger) prove(p controlplane.Position, shard controlplane.Shard) (news bool) {
	n := len(l.Suspects)
	l.Suspects = slices.DeleteFunc(l.Suspects, func(s Suspect) bool { return s.To <= p[s.Shard].Seq })
	news = n != len(l.Suspects) || l.Proven[shard] != p[shard]
	l.Proven = p.Clone()
	return news
}

// Isolate leaves i out from now on. It is false if that was so already, or the
// ledger is full.
func (l *Ledger) Isolate(i Isolated) bool {
	l.Isolated = slices.DeleteFunc(l.Isolated, func(old Isolated) bool { return old.Shard == i.Shard && !old.with(i.Point()) })
	l.Suspects = slices.DeleteFunc(l.Suspects, func(s Suspect) bool { return s.Shard == i.Shard && i.From <= s.From && s.To <= i.To })
	if l.leavesOut(i.Span) || len(l.Isolated) >= maxIsolated || !i.Own && l.heardEnough() {
		return false
	}
	l.Isolated = append(l.Isolated, i)
	for n := range l.Isolated {
		l.Isolated[n].Before = l.sound(&l.Isolated[n])
	}
	return true
}

// sound is i.Before without what is itself left out: before that stands, again,
// what was before.
func (l *Ledger) sound(i *Isolated) map[string][]byte {
	all := make(map[string][]byte, len(i.Before))
	for id, b := range i.Before {
		for b != nil {
			rec, err := registry.DecodeRecord(b)
			if err != nil {
				break // whoever takes it says what is wrong
			}
			bad := l.isolated(i.Shard, controlplane.Point{Seq: rec.Meta.Revision})
			if bad == nil {
				break
			}
			b = earlier(bad.Before[id], rec)
		}
		if b != nil {
			all[id] = b
		}
	}
	return all
}

// earlier is the encoded record b, narrowed by a later version if it is an upstream.
func earlier(b []byte, later *registry.Record) []byte {
	rec, err := registry.DecodeRecord(b)
	if err != nil || rec.Meta.Revision >= later.Meta.Revision {
		return nil
	}
	if rec.Kind == registry.KindUpstream && later.Upstream != nil {
		rec.Upstream = rec.Upstream.Narrowed(later.Upstream)
	}
	b, err = registry.EncodeRecord(rec)
	if err != nil {
		return nil
	}
	return b
}

func (l *Ledger) leavesOut(s Span) bool {
	return slices.ContainsFunc(l.Isolated, func(i Isolated) bool {
		return i.Shard == s.Shard && i.From <= s.From && s.To <= i.To && i.with(s.Point())
	})
}

// heardEnough reports that nothing more is left out on the word of others.
func (l *Ledger) heardEnough() bool {
	heard := 0
	for _, i := range l.Isolated {
		if !i.Own {
			heard++
		}
	}
	return heard >= maxHeard || len(l.Isolated) >= maxIsolated
}

// Hollow reports whether a shard is left out from its beginning: what is left
// is no state to serve by.
func (l *Ledger) Hollow() bool {
	return slices.ContainsFunc(l.Isolated, Isolated.hollow)
}

func (i Isolated) hollow() bool { return i.From <= 1 && i.To > 1 }

// Begin is a new keeper's: what left a shard hollow is tried again. It reports
// whether there was such.
func (l *Ledger) Begin() bool {
	n := len(l.Isolated)
	l.Isolated = slices.DeleteFunc(l.Isolated, Isolated.hollow)
	return n != len(l.Isolated)
}

// Release ends what was left out for a worker of another build: one of this
// build starts with all there is. It reports whether anything ended.
func (l *Ledger) Release(build string) bool {
	n := len(l.Isolated)
	for i := range l.Isolated {
		l.Isolated[i].Build = cmp.Or(l.Isolated[i].Build, build) // what was heard while no worker ran
	}
	l.Isolated = slices.DeleteFunc(l.Isolated, func(i Isolated) bool { return i.Build != build })
	return n != len(l.Isolated)
}

// screens reports whether frames of shard have to go through Screen.
func (l *Ledger) screens(shard controlplane.Shard) bool {
	return slices.ContainsFunc(l.Isolated, func(i Isolated) bool { return i.Shard == shard })
}

// Screen returns the frame as the worker may have it: f itself, one in its
// place, or nil for none. Revocations always pass.
func (l *Ledger) Screen(f *feed.Frame) (*feed.Frame, error) {
	switch f.Type {
	case feed.FrameEntry:
		return l.entry(f)
	case feed.FrameRecord:
		return l.record(f)
	default:
		return f, nil
	}
}

func (l *Ledger) entry(f *feed.Frame) (*feed.Frame, error) {
	e, err := registry.DecodeEntry(f.Entry)
	if err != nil {
		return nil, err
	}
	if len(e.Changes) > 0 && e.Changes[0].Op == registry.OpOpen {
		// Another history takes the place of what was isolated behind it, but not
		// of what followed this opening: openings are replayed from the disk, too.
		l.Isolated = slices.DeleteFunc(l.Isolated, func(i Isolated) bool {
			return i.Shard == e.Shard && i.From >= e.Seq && i.Epoch.Compare(e.Point().Epoch) < 0
		})
	}
	i := l.isolated(e.Shard, e.Point())
	if i == nil {
		return f, nil
	}
	var kept []registry.Change
	for _, c := range e.Changes {
		if c.Op != registry.OpPut && c.Op != registry.OpDelete {
			kept = append(kept, c)
			continue
		}
		before, err := i.narrowed(&c)
		if err != nil {
			return nil, err
		}
		switch kind, id := about(&c); {
		case before != nil:
			kept = append(kept, registry.Change{Op: registry.OpPut, Record: before})
		case kind == registry.KindUpstream:
			// What stood there is unknown, and may have been allowed more.
			kept = append(kept, registry.Change{Op: registry.OpDelete, Kind: kind, ID: id})
		}
	}
	bare := *e
	bare.Changes = kept
	screened := *f
	if screened.Entry, err = registry.EncodeEntry(&bare); err != nil {
		return nil, err
	}
	return &screened, nil
}

// about is the record that c puts or deletes.
func about(c *registry.Change) (registry.Kind, string) {
	if c.Op == registry.OpPut {
		return c.Record.Kind, c.Record.Meta.ID
	}
	return c.Kind, c.ID
}

// narrowed is the upstream that stays in the place of a change of it, nil if c is
// of something else.
func (i *Isolated) narrowed(c *registry.Change) (*registry.Record, error) {
	_, id := about(c)
	before, ok := i.Before[id]
	if !ok {
		return nil, nil //nolint:nilnil // nothing is known to stay
	}
	rec, err := registry.DecodeRecord(before)
	if err != nil || rec.Kind != registry.KindUpstream {
		return nil, err
	}
	return rec, nil
}

func (l *Ledger) record(f *feed.Frame) (*feed.Frame, error) {
	rec, err := registry.DecodeRecord(f.Record)
	if err != nil {
		return nil, err
	}
	i := l.isolated(f.Shard, controlplane.Point{Seq: rec.Meta.Revision})
	if i == nil {
		return f, nil
	}
	before, ok := i.Before[rec.Meta.ID]
	if !ok {
		return nil, nil //nolint:nilnil // nothing in its place
	}
	screened := *f
	screened.Record = before
	return &screened, nil
}

// isolated is what leaves out the entry at p, of which a record knows no epoch.
func (l *Ledger) isolated(shard controlplane.Shard, p controlplane.Point) *Isolated {
	for i := range l.Isolated {
		if l.Isolated[i].has(shard, p.Seq) && l.Isolated[i].with(p) {
			return &l.Isolated[i]
		}
	}
	return nil
}
