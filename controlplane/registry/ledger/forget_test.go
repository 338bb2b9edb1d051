package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/content"
	"ringmain/internal/testkit/recordkit"
)

// forgetting plays a home and a follower of anyEast under random writes, cuts,
// snapshots and clocks, beside lists of what ever happened.
type forgetting struct {
	t        *testing.T
	r        *rand.Rand
	copies   map[string]*State // by region: us-east, eu-fra
	home     string
	counter  uint64
	now      int64
	given    map[string]bool            // ids are given once
	refused  map[string]map[string]bool // region -> keys that it ever refused
	seen     map[string]int
	sequence map[string][]*registry.Entry // what each copy is made of
}

func (f *forgetting) other() string {
	if f.home == "us-east" {
		return "eu-fra"
	}
	return "us-east"
}

// usable reports whether a data node that holds the region's copy lets the key in.
func (f *forgetting) usable(region, id string) bool {
	rec, ok := f.copies[region].Get(registry.KindKey, id)
	if !ok {
		return false
	}
	_, revoked := f.copies[region].Revoked(registry.KindKey, id)
	return !revoked && rec.Key.Revoked == 0 && (rec.Key.Expires == 0 || rec.Key.Expires > f.now)
}

func (f *forgetting) write(c registry.Change) bool {
	s := f.copies[f.home]
	if s.Check(anyEast, []registry.Change{c}) != nil {
		return false
	}
	out := propose(f.t, s, anyEast, c)
	if out.Err != nil {
		f.t.Fatal(out.Err)
	}
	f.sequence[f.home] = append(f.sequence[f.home], out.Effective...)
	return true
}

// follow brings the follower up to the home, by entries or by a snapshot.
func (f *forgetting) follow(whole bool) {
	from, to := f.copies[f.home], f.copies[f.other()]
	ours, theirs := f.sequence[f.home], f.sequence[f.other()]
	sender := from.Copy(anyEast).Last.Epoch
	if whole {
		snap, _ := from.ShardSnapshot(anyEast)
		st := &registry.Stage{Shard: anyEast, Snapshot: fmt.Sprint("s", f.seen["snapshots"])}
		for rec := range snap.Records {
			b, err := registry.EncodeRecord(rec)
			if err != nil {
				f.t.Fatal(err)
			}
			st.Records = append(st.Records, b)
		}
		for v := range snap.Revocations {
			st.Revocations = append(st.Revocations, v)
		}
		digest := snap.Digest()
		mustApply(f.t, to, &registry.Command{Type: registry.CmdStage, Stage: st})
		out := apply(f.t, to, &registry.Command{Type: registry.CmdAdopt, Sender: sender, Adopt: &registry.Adopt{Shard: anyEast, Snapshot: st.Snapshot,
			Members: snap.Info.Members, Home: snap.Info.Home, Point: snap.Info.Last, Digest: digest[:], Spans: snap.Info.Spans, Now: f.now, Repair: true}})
		if out.Err != nil {
			f.t.Fatal(out.Err)
		}
		f.seen["snapshots"]++
	} else {
		same := 0
		for same < min(len(ours), len(theirs)) && ours[same].Point() == theirs[same].Point() {
			same++
		}
		for _, e := range ours[same:] {
			out := apply(f.t, to, &registry.Command{Type: registry.CmdAccept, Sender: sender, Entries: [][]byte{entry(f.t, e)}})
			var structure *StructureError
			if errors.As(out.Err, &structure) && structure.Snapshot {
				f.follow(true)
				return
			}
			if out.Err != nil {
				f.t.Fatal(out.Err)
			}
		}
	}
	f.sequence[f.other()] = append([]*registry.Entry(nil), ours...)
	if f.r.IntN(2) == 0 {
		confirm(f.t, to, anyEast)
		confirm(f.t, from, anyEast)
	}
}

// depose has the follower become home from where it is: what it lacks is cut.
func (f *forgetting) depose() {
	next := f.other()
	f.counter++
	epoch := controlplane.Epoch{Counter: f.counter, Region: next}
	to := f.copies[next]
	c := to.Copy(anyEast)
	if c.Last.Seq < f.copies[f.home].Copy(anyEast).Confirmed {
		return
	}
	e := &registry.Entry{Shard: anyEast, Epoch: epoch, Seq: c.Last.Seq + 1, Prev: c.Last.Epoch, Changes: []registry.Change{open(next, "eu-fra", "us-east")}}
	mustApply(f.t, to, &registry.Command{Type: registry.CmdAccept, Sender: epoch, Entries: [][]byte{entry(f.t, e)}})
	f.sequence[next] = append(f.sequence[next], e)
	f.home = next
	f.follow(false)
	f.seen["deposed"]++
}

func (f *forgetting) step() {
	id := fmt.Sprintf("key_any_%016d", f.r.IntN(12))
	switch f.r.IntN(9) {
	case 0, 1:
		k := key(id, anyEast, prjAny, "live")
		if k.Key.Expires = 0; f.r.IntN(3) > 0 {
			k.Key.Expires = f.now + f.r.Int64N(1000)
		}
		if _, there := f.copies[f.home].Get(registry.KindKey, id); there || !f.given[id] {
			f.given[id] = f.write(put(k)) || f.given[id]
		}
	case 2, 3:
		if rec, ok := f.copies[f.home].Get(registry.KindKey, id); ok {
			f.write(revokes(registry.KindKey, id, f.now, rec.Key.Expires))
		}
	case 4:
		f.write(del(registry.KindKey, id))
	case 5:
		if f.r.IntN(2) == 0 {
			f.follow(false)
		}
		if f.copies["us-east"].Copy(anyEast).Last != f.copies["eu-fra"].Copy(anyEast).Last {
			return // the home waits until everybody holds what it holds
		}
		for _, s := range f.copies {
			confirm(f.t, s, anyEast)
		}
		for _, v := range f.copies[f.home].Spent(anyEast, f.now, 100) {
			f.seen["spent"]++
			if !f.write(v.Forget(f.now)) {
				f.t.Fatalf("%s is spent, and not to be forgotten", v.ID)
			}
		}
	case 6:
		f.now += f.r.Int64N(content.ForgetAfter.Milliseconds())
	case 7:
		f.follow(f.r.IntN(3) == 0)
	case 8:
		if f.r.IntN(3) == 0 {
			f.depose()
		}
	}
	// What a copy ever refused as revoked it never lets in again.
	for region, s := range f.copies {
		for _, v := range s.Revocations(anyEast) {
			f.refused[region][v.ID] = true
		}
		for id := range f.refused[region] {
			if f.usable(region, id) {
				f.t.Fatalf("%s lets %s in, which it refused before", region, id)
			}
		}
	}
}

// No id becomes usable again by forgetting, whatever else happens.
func TestForgettingLetsNobodyIn(t *testing.T) {
	total := make(map[string]int)
	for seed := range uint64(100) {
		us := safe(t)
		eu, err := Restore(bytes.NewReader(recordkit.Snapshot(t, us)))
		if err != nil {
			t.Fatal(err)
		}
		f := &forgetting{t: t, r: rand.New(rand.NewPCG(seed, 7)), copies: map[string]*State{"us-east": us, "eu-fra": eu}, home: "us-east", counter: 1,
			now: created, given: make(map[string]bool), refused: map[string]map[string]bool{"us-east": {}, "eu-fra": {}}, seen: total, sequence: make(map[string][]*registry.Entry)}
		for range 300 {
			f.step()
		}
	}
	if total["spent"] < 20 || total["snapshots"] < 20 || total["deposed"] < 20 {
		t.Errorf("too little happened: %v", total)
	}
	t.Log(total)
}

// What waits in quarantine can be replayed one by one, so that the creation of a
// key may come back without its revocation, and without its end: as long as it
// waits, its revocation stays here, whoever has forgotten it.
func TestWhatWaitsInQuarantineStaysRevoked(t *testing.T) {
	us := safe(t)
	eu, err := Restore(bytes.NewReader(recordkit.Snapshot(t, us)))
	if err != nil {
		t.Fatal(err)
	}
	const id = "key_any_0000000000000042"
	forever, ends := key(id, anyEast, prjAny, "live"), key(id, anyEast, prjAny, "live")
	forever.Key.Expires, ends.Key.Expires = 0, created
	for _, c := range []registry.Change{put(forever), put(ends), revokes(registry.KindKey, id, created, created), del(registry.KindKey, id)} {
		if out := propose(t, us, anyEast, c); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	now := created + 2*content.ForgetAfter.Milliseconds()
	epoch := controlplane.Epoch{Counter: 9, Region: "eu-fra"}
	write := func(changes ...registry.Change) *registry.Entry {
		t.Helper()
		last := eu.Copy(anyEast).Last
		e := &registry.Entry{Shard: anyEast, Epoch: epoch, Seq: last.Seq + 1, Prev: last.Epoch, Changes: changes}
		mustApply(t, eu, &registry.Command{Type: registry.CmdAccept, Sender: epoch, Entries: [][]byte{entry(t, e)}})
		return e
	}
	adopts := 0
	adopt := func() {
		t.Helper()
		adopts++
		snap, _ := eu.ShardSnapshot(anyEast)
		st := &registry.Stage{Shard: anyEast, Snapshot: fmt.Sprint("s", adopts)}
		for rec := range snap.Records {
			b, err := registry.EncodeRecord(rec)
			if err != nil {
				t.Fatal(err)
			}
			st.Records = append(st.Records, b)
		}
		for v := range snap.Revocations {
			st.Revocations = append(st.Revocations, v)
		}
		digest := snap.Digest()
		mustApply(t, us, &registry.Command{Type: registry.CmdStage, Stage: st})
		mustApply(t, us, &registry.Command{Type: registry.CmdAdopt, Sender: epoch, Adopt: &registry.Adopt{Shard: anyEast, Snapshot: st.Snapshot,
			Members: snap.Info.Members, Home: snap.Info.Home, Point: snap.Info.Last, Digest: digest[:], Spans: snap.Info.Spans, Now: now}})
	}
	refused := func(when string, want bool) {
		t.Helper()
		if _, revoked := us.Revoked(registry.KindKey, id); revoked != want {
			t.Errorf("%s: revoked %v, want %v", when, revoked, want)
		}
	}
	write(open("eu-fra", "eu-fra", "us-east"))
	adopt()
	var waits []controlplane.Point
	for q := range us.Quarantine(anyEast) {
		waits = append(waits, q.Entry.Point())
	}
	if len(waits) != 4 {
		t.Fatalf("%d entries were cut off, want 4", len(waits))
	}
	refused("cut off by a snapshot", true)
	confirm(t, us, anyEast)
	write(put(org("org_any_00000000000000zz", anyEast, "any", "scale", "verified")))
	adopt()
	refused("after the next snapshot", true)
	// The home was told of it meanwhile, and forgets it.
	for _, c := range []registry.Change{revokes(registry.KindKey, id, created, created), {Op: registry.OpForget, Kind: registry.KindKey, ID: id, At: created, Expires: created, Now: now}} {
		mustApply(t, us, &registry.Command{Type: registry.CmdAccept, Sender: epoch, Entries: [][]byte{entry(t, write(c))}})
	}
	if _, revoked := eu.Revoked(registry.KindKey, id); revoked {
		t.Fatal("where nothing waits it is forgotten")
	}
	refused("after the home forgot it", true)
	mustApply(t, us, &registry.Command{Type: registry.CmdResolve, Resolve: &registry.Resolve{Shard: anyEast, Entries: waits, Verdict: registry.VerdictDiscarded}})
	refused("when nothing waits any more", true)
	confirm(t, us, anyEast)
	write(put(org("org_any_00000000000000zy", anyEast, "any", "scale", "verified")))
	adopt()
	refused("and the next snapshot", false)
}
