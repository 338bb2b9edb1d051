package pin_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/pin"
	"ringmain/controlplane/registry"
)

// Random orders of all that may happen, with copies and data nodes that are
// behind: no key is ever let run where it was not before, none stops working
// for the sake of the change, nothing is lost, and in force means in force.
func TestNothingIsLooserOrLostOnTheWay(t *testing.T) {
	finished, refusals := 0, map[string]int{}
	for seed := range uint64(16) {
		rng := rand.New(rand.NewPCG(seed, 1))
		us, eu := newWorld(t)
		furnish(us, 2, 2)
		eu.receive(len(eu.inbox))
		us.tell(len(us.behind))
		eu.tell(len(eu.behind))
		var old []string
		for i := range 2 {
			for k := range 2 {
				old = append(old, id(registry.KindKey, 100*i+k))
			}
		}
		before := map[string][]string{}
		revoked := map[string]bool{} // by an operator
		copiedAs, retired, inForce := "", false, false
		at := time.Unix(1_800_000_000, 0)
		try := func(err error) {
			var rule *controlplane.RuleError
			switch {
			case errors.As(err, &rule):
				refusals[string(rule.Code)]++
			case err != nil:
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		for step := range 400 {
			at = at.Add(time.Second)
			left, leftHere := pin.Leaving(eu.state, orgID), pin.Leaving(us.state, orgID)
			switch rng.IntN(12) {
			case 0:
				eu.receive(rng.IntN(len(eu.inbox) + 1))
			case 1:
				us.tell(rng.IntN(len(us.behind) + 1))
			case 2:
				eu.tell(rng.IntN(len(eu.behind) + 1))
			case 3:
				if org, ok := us.state.Get(registry.KindOrg, orgID); ok && leftHere == nil && step > 20 {
					changes, err := pin.Begin(org, "eu", pinEU, at)
					if err != nil {
						t.Fatal(err)
					}
					try(us.commit(anyUS, changes...))
				}
			case 4:
				if left != nil {
					changes, err := pin.Copy(eu.state, left.Relocation, at)
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					if len(changes) > 0 {
						try(eu.commit(pinEU, changes...))
					}
					if a := pin.Arriving(eu.state, left.Relocation.To); a != nil && a.Relocation.Copied != 0 && copiedAs == "" {
						copiedAs = told(eu.state, left.Relocation.To)
						if want := told(us.state, orgID); copiedAs != want {
							t.Fatalf("seed %d: copied %s, want %s", seed, copiedAs, want)
						}
					}
				}
			case 5:
				k, ok := eu.state.Get(registry.KindKey, old[rng.IntN(len(old))])
				if ok && left != nil && pin.Successor(eu.state, k, left.Relocation) == nil {
					fresh := "key_eu_1xV3rp" + registry.Chance(k.Meta.ID)
					rec, err := pin.Reissued(eu.state, k, fresh, []byte("other"), "hint")
					if err != nil {
						t.Fatal(err)
					}
					try(eu.commit(pinEU, put(rec)))
				}
			case 6: // the driver is the target's home: it knows that the copy is complete
				if copiedAs != "" && leftHere != nil && rng.IntN(4) == 0 {
					if changes := pin.Retire(us.state, leftHere, at); len(changes) > 0 {
						retired = true
						try(us.commit(anyUS, changes...))
					}
				}
			case 7: // everybody has confirmed
				if leftHere != nil && leftHere.Relocation.Retired != 0 && !inForce {
					point := us.state.Position()[anyUS]
					if us.node.Position()[anyUS].Seq >= point.Seq && eu.node.Position()[anyUS].Seq >= point.Seq {
						a := pin.Arriving(eu.state, leftHere.Relocation.To)
						eu.must(pinEU, pin.Noted(a, at, func(r *registry.Relocation) { r.InForce = at.UnixMilli() }))
						inForce = true
					}
				}
			case 8:
				if inForce {
					if changes := pin.Erase(us.state, orgID); len(changes) > 0 {
						us.must(anyUS, changes...)
					}
				}
			case 9: // operators write meanwhile: before it counts, later it is refused
				n := 1000 + step
				var err error
				switch rng.IntN(4) {
				case 0:
					err = us.commit(anyUS, put(project(orgID, n)))
				case 1:
					k := key(id(registry.KindProject, rng.IntN(2)), n)
					if err = us.commit(anyUS, put(k)); err == nil {
						old = append(old, k.Meta.ID)
					}
				case 2:
					err = us.commit(anyUS, registry.Change{Op: registry.OpDelete, Kind: registry.KindPolicy, ID: id(registry.KindPolicy, rng.IntN(3))})
				case 3:
					if o, ok := us.state.Get(registry.KindOrg, orgID); ok {
						c, org := *o, *o.Org
						org.Name = fmt.Sprint("Acme ", n)
						c.Org = &org
						err = us.commit(anyUS, registry.Change{Op: registry.OpPut, Record: &c})
					}
				}
				if err == nil && leftHere != nil && leftHere.Relocation.Retired == 0 {
					t.Fatalf("seed %d: a write to an org that is being left was taken", seed)
				}
				try(err)
			case 10:
				k := old[rng.IntN(len(old))]
				if rng.IntN(8) == 0 {
					try(us.commit(anyUS, registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: k, At: at.UnixMilli()}))
					revoked[k] = true
				}
			case 11: // to its end, if time is short
				if step > 300 {
					eu.receive(len(eu.inbox))
					us.tell(len(us.behind))
					eu.tell(len(eu.behind))
				}
			}
			for _, node := range []*region{us, eu} {
				for _, k := range old {
					now := served(node.node, k)
					if was, known := before[node.name+k]; known {
						for _, j := range now {
							if !slices.Contains(was, j) && len(was) > 0 {
								t.Fatalf("seed %d: key %s runs in %s at %s, where it did not", seed, k, j, node.name)
							}
						}
						if len(was) > 0 && !retired && !revoked[k] && !slices.Contains(now, "eu") {
							t.Fatalf("seed %d: key %s stopped in eu at %s: %v, was %v", seed, k, node.name, now, was)
						}
					}
					before[node.name+k] = now
					if pin.Leaving(node.node, orgID) != nil && slices.Contains(now, "us") {
						t.Fatalf("seed %d: the change has begun, and %s lets %s run in %v", seed, node.name, k, now)
					}
					if inForce && len(now) > 0 {
						t.Fatalf("seed %d: in force, and %s still lets %s run in %v", seed, node.name, k, now)
					}
				}
			}
		}
		if st, ok := pin.Of(eu.state, orgID, at); ok && st.Phase == pin.Begun && copiedAs != "" {
			t.Fatalf("seed %d: %+v", seed, st)
		}
		if _, still := us.state.Get(registry.KindOrg, orgID); !still {
			finished++
			for kind := registry.KindOrg; kind <= registry.KindRelocation; kind++ {
				for _, r := range us.state.List(kind, "", 0, nil) {
					if strings.Contains(r.Meta.ID, "_any_") {
						t.Fatalf("seed %d: %s is left", seed, r.Meta.ID)
					}
				}
			}
		}
	}
	if finished < 8 || len(refusals) < 2 {
		t.Errorf("only %d changes came to their end, with refusals %v", finished, refusals)
	}
	t.Logf("%d changes finished; refusals by code: %v", finished, refusals)
}

// A large org is copied, retired and erased in pieces that fit.
func TestEveryStepFitsAnEntry(t *testing.T) {
	us, eu := newWorld(t)
	furnish(us, 90, 3)
	eu.receive(len(eu.inbox))
	org, _ := us.state.Get(registry.KindOrg, orgID)
	at := time.Unix(1_800_000_000, 0)
	if err := pin.Rehearse(eu.state, org, "eu", pinEU, at); err != nil {
		t.Fatal(err)
	}
	if pin.Leaving(eu.state, orgID) != nil {
		t.Fatal("the rehearsal was no rehearsal")
	}
	changes, err := pin.Begin(org, "eu", pinEU, at)
	if err != nil {
		t.Fatal(err)
	}
	us.must(anyUS, changes...)
	eu.receive(len(eu.inbox))
	left := pin.Leaving(us.state, orgID)
	steps := func(r *region, shard controlplane.Shard, next func() []registry.Change) (n int) {
		for changes := next(); len(changes) > 0; changes = next() {
			r.must(shard, changes...)
			n++
		}
		return n
	}
	n := steps(eu, pinEU, func() []registry.Change {
		changes, err := pin.Copy(eu.state, left.Relocation, at)
		if err != nil {
			t.Fatal(err)
		}
		return changes
	})
	if a, b := told(eu.state, left.Relocation.To), told(us.state, orgID); a != b || n < 3 {
		t.Errorf("copied in %d steps:\n%s\n%s", n, a, b)
	}
	if st, _ := pin.Of(eu.state, left.Relocation.To, at); st.Phase != pin.Copied || len(st.Keys) != 270 || st.Unissued() != 270 {
		t.Errorf("status: %s, %d keys", st.Phase, len(st.Keys))
	}
	if n := steps(us, anyUS, func() []registry.Change { return pin.Retire(us.state, pin.Leaving(us.state, orgID), at) }); n != 4 {
		t.Errorf("retired in %d steps", n)
	}
	if n := steps(us, anyUS, func() []registry.Change { return pin.Erase(us.state, orgID) }); n < 4 {
		t.Errorf("erased in %d steps", n)
	}
}

// What a change would be refused for half way is found before it begins.
func TestWhatCannotBeFinishedDoesNotBegin(t *testing.T) {
	us, eu := newWorld(t)
	furnish(us, 1, 0)
	us.must(anyUS, put(&registry.Record{Kind: registry.KindProject, Meta: registry.Meta{ID: id(registry.KindProject, 7), Shard: anyUS}, Project: &registry.Project{Org: orgID, Name: "abroad"}}),
		put(&registry.Record{Kind: registry.KindPolicy, Meta: registry.Meta{ID: id(registry.KindPolicy, 7), Shard: anyUS}, Policy: &registry.Policy{Org: orgID, Project: id(registry.KindProject, 7), Residency: "us"}}))
	eu.receive(len(eu.inbox))
	org, _ := eu.state.Get(registry.KindOrg, orgID)
	at := time.Unix(1_800_000_000, 0)
	if err := pin.Rehearse(eu.state, org, "eu", pinEU, at); err == nil || !strings.Contains(err.Error(), "contradicts") {
		t.Errorf("a project's policy pins it elsewhere: %v", err)
	}
	pinned := *org
	o := *org.Org
	o.Jurisdiction = "eu"
	pinned.Org = &o
	if err := pin.Rehearse(eu.state, &pinned, "us", "us", at); err == nil || !strings.Contains(err.Error(), "to any first") {
		t.Errorf("one pin for another: %v", err)
	}
	if err := pin.Rehearse(eu.state, org, "any", anyUS, at); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("no change: %v", err)
	}
}

// The rules hold whoever proposes: a step that is out of order is refused.
func TestStepsOutOfOrderAreRefused(t *testing.T) {
	us, eu := newWorld(t)
	furnish(us, 1, 1)
	eu.receive(len(eu.inbox))
	at := time.Unix(1_800_000_000, 0)
	org, _ := us.state.Get(registry.KindOrg, orgID)
	changes, err := pin.Begin(org, "eu", pinEU, at)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(r *region, shard controlplane.Shard, says string, changes ...registry.Change) {
		t.Helper()
		if err := r.commit(shard, changes...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	with := func(c registry.Change, change func(*registry.Relocation)) registry.Change {
		rec, body := *c.Record, *c.Record.Relocation
		change(&body)
		rec.Relocation = &body
		c.Record = &rec
		return c
	}
	begin := changes[1]
	to := begin.Record.Relocation.To
	refused(us, anyUS, "safety set", begin)
	refused(us, anyUS, "not", with(begin, func(r *registry.Relocation) { r.To = "org_eu_1xV3rn0000000002" }))
	refused(us, anyUS, "to an org or from one", with(begin, func(r *registry.Relocation) { r.From = to }))
	refused(us, anyUS, "does not belong", with(begin, func(r *registry.Relocation) { r.Shard = "us" }))
	refused(us, anyUS, "says nothing", with(begin, func(r *registry.Relocation) { r.Copied = 1 }))
	refused(us, anyUS, "nothing done", changes[0], with(begin, func(r *registry.Relocation) { r.Retired = 1 }))
	refused(us, anyUS, "does not exist", registry.Change{Op: registry.OpDelete, Kind: registry.KindRelocation, ID: begin.Record.Meta.ID})
	us.must(anyUS, changes...)
	eu.receive(len(eu.inbox))
	left := pin.Leaving(us.state, orgID)

	refused(us, anyUS, "stays", with(pin.Noted(left, at, func(*registry.Relocation) {}), func(r *registry.Relocation) {
		r.To = registry.Relocated(orgID, "org_us_1xV3rn0000000000")
		r.Shard = "us"
	}))
	refused(us, anyUS, "revoke all keys", pin.Noted(left, at, func(r *registry.Relocation) { r.Retired = 1 }))
	refused(us, anyUS, "being changed", registry.Change{Op: registry.OpDelete, Kind: registry.KindRelocation, ID: left.Meta.ID})
	refused(us, anyUS, "could be used again", registry.Change{Op: registry.OpForget, Kind: registry.KindPin, ID: registry.PinID(orgID, "eu"), At: 1, Now: 1 << 50})

	first, err := pin.Copy(eu.state, left.Relocation, at)
	if err != nil {
		t.Fatal(err)
	}
	eu.must(pinEU, first...)
	arriving := pin.Arriving(eu.state, to)
	old, _ := eu.state.Get(registry.KindKey, id(registry.KindKey, 0))
	projects, err := pin.Copy(eu.state, left.Relocation, at)
	if err != nil {
		t.Fatal(err)
	}
	eu.must(pinEU, projects...)
	rec, err := pin.Reissued(eu.state, old, "key_eu_1xV3rp0000000000", []byte("other"), "hint")
	if err != nil {
		t.Fatal(err)
	}
	refused(eu, pinEU, "still being copied", put(rec))
	refused(eu, pinEU, "must have been copied", pin.Noted(arriving, at, func(r *registry.Relocation) { r.InForce = 1 }))
	eu.must(pinEU, pin.Noted(arriving, at, func(r *registry.Relocation) { r.Copied = 1 }))
	arriving = pin.Arriving(eu.state, to)
	eu.must(pinEU, put(rec))
	refused(eu, pinEU, "stays", pin.Noted(arriving, at, func(r *registry.Relocation) { r.Copied = 2 }))
	refused(eu, pinEU, "finish that", registry.Change{Op: registry.OpDelete, Kind: registry.KindRelocation, ID: arriving.Meta.ID})

	// It takes another's place still, so it cannot be left yet.
	fresh, _ := eu.state.Get(registry.KindOrg, to)
	back, err := pin.Begin(fresh, "any", "any-eu-fra", at.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	refused(eu, pinEU, "finish it first", back...)
	eu.must(pinEU, pin.Noted(arriving, at, func(r *registry.Relocation) { r.InForce = 1 }))
	eu.must(pinEU, back...)

	// The last key goes only where its upstreams can follow.
	us.must(controlplane.ShardGlobal, put(&registry.Record{Kind: registry.KindUpstream, Meta: registry.Meta{ID: "ups_1xV3rn0000000001", Shard: controlplane.ShardGlobal}, Upstream: &registry.Upstream{
		Name: "own", Provider: "openai", Region: "us-east", Dialect: "openai", BaseURL: "https://api.example.com", Auth: "none", Simulated: true, Dedicated: orgID,
		Terms: registry.Terms{Retention: "zero", PromptCache: "none", Training: "never", Contract: strings.Repeat("0", 64), Dated: "2026-01-01"},
	}}))
	us.must(anyUS, registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: old.Meta.ID, At: 1})
	left = pin.Leaving(us.state, orgID)
	refused(us, anyUS, "dedicated to that id", pin.Retire(us.state, left, at)...)
}
