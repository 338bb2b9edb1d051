package image

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
	"ringmain/internal/testkit/diskkit"
)

// newShared returns a world whose shard another region holds too.
func newShared(t testing.TB, sealer *seal.Sealer) *world {
	w := newWorld(t, sealer)
	w.must(&registry.Command{Type: registry.CmdVersion, Version: registry.Version})
	w.propose(shard, registry.Change{Op: registry.OpOpen, Members: []string{"eu-fra", "us-east"}, Home: "us-east"})
	return w
}

func (w *world) must(cmd *registry.Command) ledger.Outcome {
	w.t.Helper()
	out := w.apply(cmd)
	if out.Err != nil {
		w.t.Fatalf("%+v: %v", cmd, out.Err)
	}
	return out
}

func (w *world) entry(e *registry.Entry) []byte {
	b, err := registry.EncodeEntry(e)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// rival is what the other region makes of the shard: it opened an epoch
// somewhere in what can be undone.
func (w *world) rival(r *rand.Rand) []*registry.Entry {
	c := w.state.Copy(shard)
	base := c.Last.Seq
	for h := range w.state.TailRows(shard) {
		base = h.Entry.Seq - 1 + r.Uint64N(c.Last.Seq-h.Entry.Seq+2)
		break
	}
	prev, _ := c.EpochAt(base)
	epoch := controlplane.Epoch{Counter: c.Promised.Counter + 1, Region: "eu-fra"}
	es := []*registry.Entry{{Shard: shard, Epoch: epoch, Seq: base + 1, Prev: prev,
		Changes: []registry.Change{{Op: registry.OpOpen, Members: []string{"eu-fra", "us-east"}, Home: "eu-fra"}}}}
	for range r.IntN(4) {
		last := es[len(es)-1].Point()
		es = append(es, registry.NextAfter(shard, last, []registry.Change{org(r.IntN(8), fmt.Sprint(r.Int())), revocation(r.IntN(8))}))
	}
	return es
}

// depose has the other region take over, by entries or as a whole, and this one
// take the shard back.
func (w *world) depose(r *rand.Rand) {
	es := w.rival(r)
	epoch := es[0].Epoch
	cmd := &registry.Command{Type: registry.CmdAccept, Sender: epoch}
	for _, e := range es {
		cmd.Entries = append(cmd.Entries, w.entry(e))
	}
	if r.IntN(2) == 0 {
		w.must(cmd)
	} else {
		other := w.state.Clone()
		if out := other.Apply(cmd); out.Err != nil {
			w.t.Fatal(out.Err)
		}
		snap, _ := other.ShardSnapshot(shard)
		st := &registry.Stage{Shard: shard, Snapshot: fmt.Sprint(r.Int()), Revocations: slices.Collect(snap.Revocations)}
		for rec := range snap.Records {
			b, err := registry.EncodeRecord(rec)
			if err != nil {
				w.t.Fatal(err)
			}
			st.Records = append(st.Records, b)
		}
		digest := snap.Digest()
		w.must(&registry.Command{Type: registry.CmdStage, Stage: st})
		w.must(&registry.Command{Type: registry.CmdAdopt, Sender: epoch, Adopt: &registry.Adopt{Shard: shard, Snapshot: st.Snapshot,
			Members: snap.Info.Members, Home: "eu-fra", Point: snap.Info.Last, Digest: digest[:], Spans: snap.Info.Spans}})
	}
	if r.IntN(2) == 0 {
		w.flush()
		w.reopen()
	}
	back := controlplane.Epoch{Counter: epoch.Counter + 1, Region: "us-east"}
	w.must(&registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: shard, Epoch: back}})
	c := w.state.Copy(shard)
	w.must(&registry.Command{Type: registry.CmdTake, Take: &registry.Take{Shard: shard, Epoch: back, Base: c.Last, Members: c.Members()}})
}

func (w *world) resolve(r *rand.Rand) {
	for q := range w.state.Quarantine(shard) {
		if r.IntN(3) == 0 {
			w.must(&registry.Command{Type: registry.CmdResolve, Resolve: &registry.Resolve{Shard: shard,
				Entries: []controlplane.Point{q.Entry.Point()}, Verdict: registry.VerdictDiscarded}})
		}
	}
}

// The image holds tails and quarantines as well, whatever is flushed together.
func TestFollowsOwnership(t *testing.T) {
	cut, sealer := 0, diskkit.Sealer(t)
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		w, other := newShared(t, sealer), newWorld(t, sealer)
		for range 120 {
			c := w.state.Copy(shard)
			switch r.IntN(12) {
			case 0, 1, 2, 3:
				w.propose(shard, org(r.IntN(8), fmt.Sprint(r.Int())))
			case 4:
				w.propose(shard, revocation(r.IntN(8)), org(r.IntN(8), "x"))
			case 5, 6:
				seq := c.Confirmed + r.Uint64N(c.Last.Seq-c.Confirmed+1)
				if epoch, _ := c.EpochAt(seq); seq > 0 {
					w.must(&registry.Command{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: shard, Epoch: epoch, Seq: seq}})
				}
			case 7:
				w.depose(r)
			case 8:
				w.resolve(r)
			default:
				w.turn(r, other)
			}
		}
		w.flush()
		w.reopen()
		for range w.state.Quarantine(shard) {
			cut++
		}
	}
	if cut == 0 {
		t.Error("nothing was ever cut")
	}
}
