package ledger

import (
	"bytes"
	"cmp"
	"errors"
	"maps"
	"reflect"
	"slices"

	"pgregory.net/rapid"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
)

// replay is what a shard holds after its history, obviously: every entry
// applied to an empty list, and the revocations known shown in the end.
func replay(history []*registry.Entry, revoked map[string]registry.Revocation) []registry.Record {
	all := map[string]registry.Record{}
	for _, e := range history {
		for _, c := range e.Changes {
			switch c.Op {
			case registry.OpPut:
				r := *c.Record
				r.Meta.Revision = e.Seq
				if old, ok := all[r.Meta.ID]; ok {
					r.Meta.Created = old.Meta.Created
				}
				all[r.Meta.ID] = r
			case registry.OpDelete:
				delete(all, c.ID)
			case registry.OpRevoke:
				if r, ok := all[c.ID]; ok && r.Key != nil {
					r.Meta.Revision, r.Meta.Updated = e.Seq, max(r.Meta.Updated, c.At)
					all[c.ID] = r
				}
			}
		}
	}
	out := slices.SortedFunc(maps.Values(all), func(a, b registry.Record) int { return cmp.Compare(a.Meta.ID, b.Meta.ID) })
	for i, r := range out {
		if r.Key != nil {
			k := *r.Key
			k.Revoked = revoked[r.Meta.ID].At
			out[i].Key = &k
		}
	}
	return out
}

// acceptor is one region's copy of the shard, and beside it what it must hold,
// as plain lists.
type acceptor struct {
	self    ownership.Member
	state   *State
	history []*registry.Entry
	base    int // entries that it need not be able to undo
	revoked map[string]registry.Revocation
	lost    map[controlplane.Point]*registry.Entry
	undone  int // entries with an effect that were cut
}

// regions are the members of anyEast, under a random schedule.
type regions struct {
	t         *rapid.T
	all       []*acceptor
	campaign  *ownership.Campaign
	candidate *acceptor
	confirmed map[uint64]controlplane.Epoch // by any region, ever
	counter   uint64
	clock     int64
	seen      map[string]int
}

// do has a region apply the command, as one of its replicas does and as another
// does that was restored just before.
func (w *regions) do(a *acceptor, cmd *registry.Command) Outcome {
	w.t.Helper()
	b, err := registry.EncodeCommand(cmd)
	if err != nil {
		w.t.Fatal(err)
	}
	before := snapshotBytes(w.t, a.state)
	other, err := Restore(bytes.NewReader(before))
	if err != nil {
		w.t.Fatal(err)
	}
	if !bytes.Equal(snapshotBytes(w.t, other), before) {
		w.t.Fatal("a restored copy differs")
	}
	decode := func() *registry.Command {
		c, err := registry.DecodeCommand(b)
		if err != nil {
			w.t.Fatal(err)
		}
		return c
	}
	confirmed := a.state.Copy(anyEast).Confirmed
	out, again := a.state.Apply(decode()), other.Apply(decode())
	if !reflect.DeepEqual(out, again) {
		w.t.Fatalf("two replicas answer %+v and %+v", out, again)
	}
	after := snapshotBytes(w.t, a.state)
	if !bytes.Equal(after, snapshotBytes(w.t, other)) {
		w.t.Fatal("two replicas differ")
	}
	if rapid.IntRange(0, 3).Draw(w.t, "crash") == 0 {
		a.state = other
	}
	var rule *controlplane.RuleError
	if out.Err != nil && !errors.As(out.Err, &rule) && len(out.Staged) == 0 && !bytes.Equal(before, after) {
		w.t.Fatalf("refused (%v), and yet changed", out.Err)
	}
	for _, c := range out.Cut {
		if c.Branch.Seq < confirmed {
			w.t.Fatalf("cut after %d, and %d was confirmed", c.Branch.Seq, confirmed)
		}
		w.seen["cut"]++
	}
	if now := a.state.Copy(anyEast).Confirmed; now < confirmed {
		w.t.Fatalf("confirmed through %d, and %d before", now, confirmed)
	}
	return out
}

// take notes that a holds e now, in the place of whatever was there.
func (a *acceptor) take(e *registry.Entry) {
	if int(e.Seq) <= len(a.history) {
		if a.history[e.Seq-1].Epoch == e.Epoch {
			return
		}
		a.lose(int(e.Seq) - 1)
	}
	a.history = append(slices.Clip(a.history), e)
	a.hear(e)
}

// lose cuts a's history to n entries.
func (a *acceptor) lose(n int) {
	for i, e := range a.history[n:] {
		if n+i >= a.base {
			a.lost[e.Point()] = e
			if len(e.Changes) > 0 && !e.Opens() {
				a.undone++
			}
		}
	}
	a.history = a.history[:n:n]
}

func (a *acceptor) hear(e *registry.Entry) {
	for _, c := range e.Changes {
		if c.Op == registry.OpRevoke {
			a.learn(registry.Revocation{Kind: c.Kind, ID: c.ID, Shard: anyEast, At: c.At, Expires: c.Expires})
		}
	}
}

func (a *acceptor) learn(v registry.Revocation) {
	if old, ok := a.revoked[v.ID]; ok {
		v.At = min(v.At, old.At)
		if never := v.Expires == 0 || old.Expires == 0; never {
			v.Expires = 0
		} else {
			v.Expires = max(v.Expires, old.Expires)
		}
	}
	a.revoked[v.ID] = v
}

// replace notes that a took over what from holds.
func (a *acceptor) replace(from *acceptor) {
	same := 0
	for same < min(len(a.history), len(from.history)) && a.history[same].Epoch == from.history[same].Epoch {
		same++
	}
	a.lose(same)
	a.history, a.base = slices.Clone(from.history), len(from.history)
	for _, v := range from.revoked {
		a.learn(v)
	}
}

// check compares a with its lists.
func (w *regions) check(a *acceptor) {
	w.t.Helper()
	for p := range a.lost {
		if int(p.Seq) <= len(a.history) && a.history[p.Seq-1].Epoch == p.Epoch {
			delete(a.lost, p) // it turned out to be history
		}
	}
	c := a.state.Copy(anyEast)
	last := controlplane.Point{}
	if n := len(a.history); n > 0 {
		last = a.history[n-1].Point()
	}
	if c.Last != last {
		w.t.Fatalf("%s ends at %v, not %v", a.self.Region, c.Last, last)
	}
	for seq := uint64(1); seq <= c.Confirmed; seq++ {
		epoch := a.history[seq-1].Epoch
		if other, ok := w.confirmed[seq]; ok && other != epoch {
			w.t.Fatalf("%s holds entry %d of epoch %s confirmed, and another region that of %s", a.self.Region, seq, epoch, other)
		}
		w.confirmed[seq] = epoch
	}
	a.base = max(a.base, int(c.Confirmed))
	var points []controlplane.Point
	for q := range a.state.Quarantine(anyEast) {
		points = append(points, q.Entry.Point())
	}
	if want := slices.SortedFunc(maps.Keys(a.lost), controlplane.Point.Compare); !slices.Equal(points, want) {
		w.t.Fatalf("%s has %v in quarantine, not %v", a.self.Region, points, want)
	}
	from := controlplane.Point{}
	if a.base > 0 {
		from = a.history[a.base-1].Point()
	}
	tail, ok := a.state.Tail(anyEast, from, 0)
	if !ok || len(tail) != len(a.history)-a.base {
		w.t.Fatalf("%s has a tail of %d after %v (%v), not %d", a.self.Region, len(tail), from, ok, len(a.history)-a.base)
	}
	for i, h := range tail {
		if h.Entry.Point() != a.history[a.base+i].Point() {
			w.t.Fatalf("%s: entry %d of the tail is %v", a.self.Region, i, h.Entry.Point())
		}
	}
	snap, _ := a.state.ShardSnapshot(anyEast)
	var got []*registry.Record
	if snap.Records != nil {
		got = slices.Collect(snap.Records)
	}
	want := replay(a.history, a.revoked)
	if len(got) != len(want) {
		w.t.Fatalf("%s holds %d records, not %d", a.self.Region, len(got), len(want))
	}
	for i, r := range got {
		if !bytes.Equal(recordBytes(w.t, r), recordBytes(w.t, &want[i])) {
			w.t.Fatalf("%s holds %s, not %s", a.self.Region, text(r), text(&want[i]))
		}
	}
	set := a.state.Revocations(anyEast)
	if len(set) != len(a.revoked) {
		w.t.Fatalf("%s has %v revoked, not %v", a.self.Region, set, a.revoked)
	}
	for _, v := range set {
		if a.revoked[v.ID] != v {
			w.t.Fatalf("%s has revoked %v, not %v", a.self.Region, v, a.revoked[v.ID])
		}
	}
	w.lookups(a, got)
}

// lookups holds the indexes against the records.
func (w *regions) lookups(a *acceptor, records []*registry.Record) {
	for _, r := range records {
		if r.Project == nil {
			continue
		}
		keys := 0
		for _, k := range records {
			if k.Key != nil && k.Key.Project == r.Meta.ID {
				keys++
			}
		}
		byName, _ := a.state.ProjectByName(r.Project.Org, r.Project.Name)
		if byName == nil || byName.Project.Name != r.Project.Name || len(a.state.KeysOf(r.Meta.ID, "", 0)) != keys {
			w.t.Fatalf("%s does not find %s or its %d keys", a.self.Region, r.Meta.ID, keys)
		}
	}
}

func recordBytes(t *rapid.T, r *registry.Record) []byte {
	b, err := registry.EncodeRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
