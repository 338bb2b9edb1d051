package ledger

import (
	"bytes"
	"cmp"
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"

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

// write proposes at a what its rules may or may not like.
func (w *regions) write(a *acceptor) {
	if len(a.history) == 0 || a.state.Writable(anyEast, a.self) != nil {
		return
	}
	changes := make([]registry.Change, rapid.SampledFrom([]int{1, 1, 2, 3}).Draw(w.t, "changes"))
	for range 5 { // mostly what the rules like
		for i := range changes {
			w.clock++
			changes[i] = drawChange(w.t, anyEast, created+w.clock)
		}
		if a.state.Check(anyEast, changes) == nil {
			break
		}
	}
	e, err := a.state.Next(anyEast, changes)
	if err != nil {
		w.t.Fatal(err)
	}
	level := rapid.SampledFrom([]registry.Level{registry.LevelRegion, registry.LevelMultiRegion}).Draw(w.t, "level")
	out := w.do(a, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entryBytes(w.t, e)}, Levels: []registry.Level{level}})
	if len(out.Effective) != 1 {
		w.t.Fatalf("a home cannot write: %v", out.Err)
	}
	a.take(out.Effective[0])
	w.seen["write"]++
}

// leads returns the epoch that a sends under; false if it opened none.
func (a *acceptor) leads() (controlplane.Epoch, bool) {
	c := a.state.Copy(anyEast)
	return c.Promised, c.Promised.Region == a.self.Region && c.Last.Epoch == c.Promised
}

// feed has from send some of its history to a.
func (w *regions) feed(from, a *acceptor) {
	sender, ok := from.leads()
	if !ok || from == a {
		return
	}
	// Mostly where the two part, sometimes before or after.
	c := from.state.Copy(anyEast)
	at := int(c.Common(a.state.Copy(anyEast).Last, a.state.Copy(anyEast).Spans))
	at = min(len(from.history)-1, max(0, at+rapid.SampledFrom([]int{0, 0, 0, -2, 1}).Draw(w.t, "from")))
	run := from.history[at:min(len(from.history), at+rapid.IntRange(1, 5).Draw(w.t, "run"))]
	cmd := &registry.Command{Type: registry.CmdAccept, Sender: sender}
	if rapid.Bool().Draw(w.t, "told") {
		cmd.Confirmed = c.Confirmed
	}
	for _, e := range run {
		cmd.Entries = append(cmd.Entries, entryBytes(w.t, e))
	}
	out := w.do(a, cmd)
	if out.Err != nil {
		w.seen["refused"]++
		return
	}
	for _, e := range run {
		a.take(e)
	}
	w.seen["fed"]++
}

// stage brings what from holds to a.
func (w *regions) stage(from, a *acceptor) *registry.Adopt {
	snap, ok := from.state.ShardSnapshot(anyEast)
	if !ok {
		return nil
	}
	w.counter++
	name := "s" + string(rune('a'+w.counter%26))
	st := &registry.Stage{Shard: anyEast, Snapshot: name, Revocations: slices.Collect(snap.Revocations)}
	for r := range snap.Records {
		st.Records = append(st.Records, recordBytes(w.t, r))
	}
	if out := w.do(a, &registry.Command{Type: registry.CmdStage, Stage: st}); out.Err != nil {
		w.t.Fatal(out.Err)
	}
	sum := snap.Digest()
	return &registry.Adopt{Shard: anyEast, Snapshot: name, Members: snap.Info.Members, Home: snap.Info.Home, Point: snap.Info.Last, Digest: sum[:], Spans: snap.Info.Spans}
}

func (w *regions) adopt(from, a *acceptor) {
	sender, ok := from.leads()
	if !ok || from == a {
		return
	}
	adopt := w.stage(from, a)
	before := a.state.Copy(anyEast).Last
	out := w.do(a, &registry.Command{Type: registry.CmdAdopt, Sender: sender, Adopt: adopt, Confirmed: from.state.Copy(anyEast).Confirmed})
	if out.Err == nil && before != adopt.Point {
		a.replace(from)
		w.seen["adopted"]++
	}
}

func (w *regions) confirm(a *acceptor) {
	c := a.state.Copy(anyEast)
	var t ownership.Tally
	for _, b := range w.all {
		if b != a && rapid.Bool().Draw(w.t, "told") {
			t = t.Hear(b.self, b.state.Copy(anyEast).Last)
		}
	}
	if n := t.Confirmed(a.self, c); n > c.Confirmed {
		if out := w.do(a, &registry.Command{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: anyEast, Epoch: c.Promised, Seq: n}}); out.Err != nil {
			w.t.Fatal(out.Err)
		}
		w.seen["confirmed"]++
	}
}

// run has a stand for a new epoch; whoever stood before is forgotten.
func (w *regions) run(a *acceptor) {
	c := a.state.Copy(anyEast)
	epoch := controlplane.Epoch{Counter: c.Promised.Counter + 1, Region: a.self.Region}
	w.campaign, w.candidate = &ownership.Campaign{Self: a.self, Epoch: epoch}, a
	w.seal(a)
}

// seal brings the candidate's wish to a, and the report back.
func (w *regions) seal(a *acceptor) {
	if w.campaign == nil {
		return
	}
	out := w.do(a, &registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: anyEast, Epoch: w.campaign.Epoch}})
	if out.Err != nil {
		w.seen["seal refused"]++
		return
	}
	next := w.campaign.Hear(ownership.Report{From: a.self, Copy: a.state.Copy(anyEast)})
	w.campaign = &next
}

// open takes over if the reports allow it.
func (w *regions) open() {
	a := w.candidate
	if w.campaign == nil {
		return
	}
	plan := w.campaign.Next()
	if plan.Move != ownership.Take {
		return
	}
	take := &registry.Take{Shard: anyEast, Epoch: w.campaign.Epoch, Base: plan.Base, Members: plan.Members, Forced: plan.Forced, Known: plan.Known}
	var source *acceptor
	for _, b := range w.all {
		if b.self == plan.From {
			source = b
		}
	}
	w.campaign = nil
	if source.state.Copy(anyEast).Last != plan.Base {
		return // it went on under a higher epoch
	}
	snapshot := source != a && rapid.Bool().Draw(w.t, "by snapshot")
	if snapshot {
		take.Snapshot = w.stage(source, a)
	} else {
		own := a.state.Copy(anyEast)
		at := source.state.Copy(anyEast).Common(own.Last, own.Spans)
		for _, e := range source.history[at:] {
			take.Entries = append(take.Entries, entryBytes(w.t, e))
		}
	}
	out := w.do(a, &registry.Command{Type: registry.CmdTake, Take: take})
	if out.Err != nil {
		w.seen["take refused"]++
		return
	}
	w.seen["taken"]++
	if snapshot {
		a.replace(source)
	}
	for _, e := range source.history {
		a.take(e)
	}
	a.take(out.Effective[len(out.Effective)-1])
}

// takeOver is a candidacy with none of it lost but what some regions say.
func (w *regions) takeOver(a *acceptor) {
	w.run(a)
	for _, b := range w.all {
		if b != a && rapid.IntRange(0, 3).Draw(w.t, "heard") > 0 {
			w.seal(b)
		}
	}
	w.open()
}

// spread has a, if it leads, bring some of the others up to date, and confirm.
func (w *regions) spread(a *acceptor) {
	if _, ok := a.leads(); !ok {
		return
	}
	for _, b := range w.all {
		if b == a || rapid.Bool().Draw(w.t, "cut off") {
			continue
		}
		for range 4 {
			w.feed(a, b)
		}
	}
	w.confirm(a)
	w.write(a)
}

// desert has a, if it may write, do so while hardly anybody hears it, and
// another region take over without asking it.
func (w *regions) desert(a *acceptor) {
	if len(a.history) == 0 || a.state.Writable(anyEast, a.self) != nil {
		return
	}
	for range rapid.IntRange(1, 5).Draw(w.t, "writes") {
		w.write(a)
	}
	others := slices.DeleteFunc(slices.Clone(w.all), func(b *acceptor) bool { return b == a })
	if len(others) == 0 {
		return
	}
	if rapid.Bool().Draw(w.t, "heard") {
		w.feed(a, rapid.SampledFrom(others).Draw(w.t, "by"))
	}
	b := rapid.SampledFrom(others).Draw(w.t, "candidate")
	w.run(b)
	for _, c := range others {
		if c != b {
			w.seal(c)
		}
	}
	w.open()
	if rapid.Bool().Draw(w.t, "as a whole") {
		w.adopt(b, a)
	}
	for range 3 {
		w.feed(b, a)
	}
	w.confirm(b)
	w.write(b)
}

func (w *regions) resolve(a *acceptor) {
	var points []controlplane.Point
	for p := range a.lost {
		points = append(points, p)
	}
	if len(points) == 0 {
		return
	}
	slices.SortFunc(points, controlplane.Point.Compare)
	p := rapid.SampledFrom(points).Draw(w.t, "resolved")
	if out := w.do(a, &registry.Command{Type: registry.CmdResolve, Resolve: &registry.Resolve{Shard: anyEast, Entries: []controlplane.Point{p}, Verdict: registry.VerdictDiscarded}}); out.Err != nil {
		w.t.Fatal(out.Err)
	}
	delete(a.lost, p)
}

func newRegions(t *rapid.T, n int) *regions {
	w := &regions{t: t, confirmed: map[uint64]controlplane.Epoch{}, seen: map[string]int{}}
	var names []string
	for _, name := range []string{"us-east", "eu-fra", "ap-sg", "us-west", "eu-par"}[:n] {
		a := &acceptor{self: ownership.Member{Region: name}, state: New(), revoked: map[string]registry.Revocation{}, lost: map[controlplane.Point]*registry.Entry{}}
		w.all, names = append(w.all, a), append(names, name)
		if out := w.do(a, &registry.Command{Type: registry.CmdVersion, Version: registry.Version}); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	first := w.all[0]
	for _, changes := range [][]registry.Change{{open("us-east", names...)}, tenant(anyEast)} {
		e, err := first.state.Next(anyEast, changes)
		if err != nil {
			t.Fatal(err)
		}
		out := w.do(first, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entryBytes(t, e)}})
		if out.Err != nil {
			t.Fatal(out.Err)
		}
		first.take(out.Effective[0])
	}
	return w
}

// Regions that write, feed, seal, take over, cut, confirm, adopt and crash in
// any order hold what their histories say, to the byte.
func TestRegions(t *testing.T) {
	seen := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		w := newRegions(t, rapid.SampledFrom([]int{1, 2, 3, 3, 4, 5, 5}).Draw(t, "regions"))
		pick := func(label string) *acceptor { return rapid.SampledFrom(w.all).Draw(t, label) }
		for range rapid.IntRange(20, 80).Draw(t, "steps") {
			a := pick("region")
			switch rapid.IntRange(0, 24).Draw(t, "step") {
			case 0, 1, 2, 3, 4:
				for range rapid.IntRange(1, 4).Draw(t, "writes") {
					w.write(a)
				}
			case 5, 6, 7, 8, 9:
				w.feed(pick("from"), a)
			case 10, 11, 12, 13, 14:
				w.spread(a)
			case 15, 16:
				w.adopt(pick("from"), a)
			case 17:
				w.takeOver(a)
			case 18:
				w.run(a)
			case 19:
				w.seal(a)
			case 20:
				w.open()
			case 21:
				w.resolve(a)
			case 22, 23, 24:
				w.desert(a)
			}
			for _, a := range w.all {
				w.check(a)
			}
			w.agree()
		}
		for what, n := range w.seen {
			seen[what] += n
		}
		for _, a := range w.all {
			seen["undone"] += a.undone
		}
	})
	t.Log(seen)
	for _, what := range []string{"write", "fed", "refused", "adopted", "confirmed", "taken", "cut", "undone", "seal refused"} {
		if seen[what] == 0 {
			t.Errorf("no %s: the test looks in the wrong place", what)
		}
	}
}

// agree checks that copies which end at the same point, and know of the same
// revocations, have the same digest.
func (w *regions) agree() {
	for i, a := range w.all {
		for _, b := range w.all[:i] {
			if a.state.Copy(anyEast).Last == b.state.Copy(anyEast).Last && maps.Equal(a.revoked, b.revoked) && a.state.Digest(anyEast) != b.state.Digest(anyEast) {
				w.t.Fatalf("%s and %s end at the same point and differ", a.self.Region, b.self.Region)
			}
		}
	}
}
