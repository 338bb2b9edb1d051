package pin_test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/pin"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// An org that was pinned away and on again can still be erased where it began,
// by whoever does not see that it is gone there.
func TestTheSuccessorMayGoOn(t *testing.T) {
	us, eu := newWorld(t)
	const old = "org_eu_1xV3rn0000000001"
	eu.must(pinEU, put(&registry.Record{Kind: registry.KindOrg, Meta: registry.Meta{ID: old, Shard: pinEU},
		Org: &registry.Org{Name: "Acme", Plan: "enterprise", State: "verified", Jurisdiction: "eu"}}))
	org, _ := eu.state.Get(registry.KindOrg, old)
	at := time.Unix(1_800_000_000, 0)
	changes, err := pin.Begin(org, "any", anyUS, at)
	if err != nil {
		t.Fatal(err)
	}
	eu.must(pinEU, changes...)
	left := pin.Leaving(eu.state, old).Relocation
	for range 2 {
		if changes, err = pin.Copy(eu.state, left, at); err != nil {
			t.Fatal(err)
		}
		us.must(anyUS, changes...)
		eu.receive(len(eu.inbox))
	}
	eu.must(pinEU, pin.Retire(eu.state, pin.Leaving(eu.state, old), at)...)
	us.must(anyUS, pin.Noted(pin.Arriving(us.state, left.To), at, func(r *registry.Relocation) { r.InForce = at.UnixMilli() }))
	between, _ := us.state.Get(registry.KindOrg, left.To)
	if changes, err = pin.Begin(between, "us", "us", at.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	us.must(anyUS, changes...)
	eu.receive(len(eu.inbox))
	if st, ok := pin.Of(eu.state, old, at); !ok || st.Phase != pin.InForce {
		t.Errorf("its successor is pinned elsewhere already, and it is %q", st.Phase)
	}
}

// A copy that a takeover cut off is made again, even when the old keys are
// revoked: without, the change could neither be finished nor begun anew.
func TestALostCopyIsMadeAgain(t *testing.T) {
	us, eu := newWorld(t)
	furnish(us, 1, 1)
	at := us.leaves()
	for range 2 {
		us.must(anyUS, pin.Retire(us.state, pin.Leaving(us.state, orgID), at)...)
	}
	eu.receive(len(eu.inbox))
	for {
		st, _ := pin.Of(eu.state, orgID, at)
		if st.Phase == pin.Retired && st.Copied != 0 {
			break
		}
		if st.Phase != pin.Begun {
			t.Fatalf("of the org that takes its place there is nothing, and the change is %q", st.Phase)
		}
		changes, err := pin.Copy(eu.state, pin.Leaving(eu.state, orgID).Relocation, at)
		if err != nil {
			t.Fatal(err)
		}
		eu.must(pinEU, changes...)
	}
	if st, _ := pin.Of(us.state, orgID, at); st.Phase != pin.Retired {
		t.Errorf("to a region that cannot see the copy it is %q", st.Phase)
	}
}

// Two leaders that reissue a key at once make one.
func TestAKeyIsReissuedOnce(t *testing.T) {
	us, eu := newWorld(t)
	furnish(us, 1, 1)
	at := us.leaves()
	eu.receive(len(eu.inbox))
	eu.copyAll(at)
	old, _ := eu.state.Get(registry.KindKey, id(registry.KindKey, 0))
	reissue := func(second string) error {
		rec, err := pin.Reissued(eu.state, old, "key_eu_"+second+registry.Chance(old.Meta.ID), []byte("other"), "hint")
		if err != nil {
			t.Fatal(err)
		}
		return eu.commit(pinEU, put(rec))
	}
	if err := reissue("1xV3rp"); err != nil {
		t.Fatal(err)
	}
	if err := reissue("1xV3rq"); err == nil || !strings.Contains(err.Error(), "issued in its place already") {
		t.Errorf("a second key for the same one: %v", err)
	}
	eu.must(pinEU, registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: "key_eu_1xV3rp" + registry.Chance(old.Meta.ID), At: 1})
	eu.must(pinEU, registry.Change{Op: registry.OpDelete, Kind: registry.KindKey, ID: "key_eu_1xV3rp" + registry.Chance(old.Meta.ID)})
	if err := reissue("1xV3rq"); err != nil {
		t.Errorf("the first is gone: %v", err)
	}
}

// A takeover that undoes the beginning leaves the org that was to take the
// place: both are told of it, and it can be deleted, but not before.
func TestAChangeThatWasCutOffIsToldAndCleared(t *testing.T) {
	us, eu := newWorld(t)
	furnish(us, 1, 0)
	before := us.state.Position()[anyUS]
	at := us.leaves()
	eu.receive(len(eu.inbox))
	to := pin.Leaving(eu.state, orgID).Relocation.To
	eu.copyAll(at)
	clear := func() []registry.Change {
		var all []registry.Change
		for _, kind := range []registry.Kind{registry.KindPolicy, registry.KindProject, registry.KindOrg} {
			for _, r := range eu.state.List(kind, "", 0, func(r *registry.Record) bool { return r.Meta.Shard == pinEU }) {
				if kind == registry.KindOrg {
					all = append(all, pin.Drop(eu.state, r.Meta.ID, at)...)
				}
				all = append(all, registry.Change{Op: registry.OpDelete, Kind: kind, ID: r.Meta.ID})
			}
		}
		return all
	}
	if err := eu.state.Check(pinEU, clear()); err == nil {
		t.Error("the org that takes the place can be deleted while the other is being left")
	}
	opening := registry.Opening("eu-fra", []ownership.Member{{Region: "eu-fra"}, {Region: "us-east"}}, false)
	e := &registry.Entry{Shard: anyUS, Epoch: controlplane.Epoch{Counter: before.Epoch.Counter + 1, Region: "eu-fra"}, Seq: before.Seq + 1, Prev: before.Epoch, Changes: []registry.Change{opening}}
	b, err := registry.EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	if out := eu.state.Apply(&registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{b}}); out.Err != nil || len(out.Cut) != 1 {
		t.Fatalf("the beginning is not undone: %+v", out)
	}
	for _, id := range []string{orgID, to} {
		if st, ok := pin.Of(eu.state, id, at); !ok || st.Phase != pin.CutOff || st.Org != orgID || st.Successor != to {
			t.Errorf("of %s is told: %+v", id, st)
		}
	}
	if err := eu.commit(pinEU, clear()...); err != nil {
		t.Errorf("what was left over cannot be cleared: %v", err)
	}
	if st, ok := pin.Of(eu.state, orgID, at); ok {
		t.Errorf("after that: %+v", st)
	}
}

// A region that holds nothing of the shard that an org came from, but the beginning
// of a copy, knows nothing of a takeover: the org stays.
func TestWhatIsNotKnownWasNotCutOff(t *testing.T) {
	eu := &region{t: t, name: "eu-fra", state: ledger.New()}
	for _, cmd := range []*registry.Command{
		{Type: registry.CmdVersion, Version: registry.Version},
		{Type: registry.CmdStage, Stage: &registry.Stage{Shard: anyUS, Snapshot: "s1"}},
	} {
		if out := eu.state.Apply(cmd); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	at := time.Unix(1_800_000_000, 0)
	to := registry.Relocated(orgID, registry.NewID(registry.KindOrg.Prefix(), "eu", at, rand.NewChaCha8([32]byte{})))
	eu.must(pinEU, registry.Change{Op: registry.OpOpen, Home: "eu-fra", Members: []string{"eu-fra"}})
	eu.must(pinEU,
		put(&registry.Record{Kind: registry.KindOrg, Meta: registry.Meta{ID: to, Shard: pinEU}, Org: &registry.Org{Name: "Acme", Plan: "trial", State: "verified", Jurisdiction: "eu"}}),
		put(&registry.Record{Kind: registry.KindRelocation, Meta: registry.Meta{ID: registry.RelocationID(to), Shard: pinEU},
			Relocation: &registry.Relocation{Org: to, From: orgID, Shard: anyUS}}))
	changes := append(pin.Drop(eu.state, to, at), registry.Change{Op: registry.OpDelete, Kind: registry.KindOrg, ID: to})
	if err := eu.commit(pinEU, changes...); err == nil {
		t.Error("it was deleted")
	}
}
