package ledger

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
)

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
