package pin_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane"
	"ringmain/controlplane/pin"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	anyUS = controlplane.Shard("any-us-east")
	pinEU = controlplane.Shard("eu")
)

// region is one region's copy, and the data node beside it, which is behind.
type region struct {
	t      *testing.T
	name   string
	state  *ledger.State
	inbox  [][]byte // entries of the other home that are on their way
	peer   *region  // holds any-us-east and global too
	behind []*ledger.State
	node   *ledger.State // what the data node was given
}

func newWorld(t *testing.T) (us, eu *region) {
	us = &region{t: t, name: "us-east", state: ledger.New()}
	eu = &region{t: t, name: "eu-fra", state: ledger.New()}
	us.peer, eu.peer = eu, us
	for _, r := range []*region{us, eu} {
		if out := r.state.Apply(&registry.Command{Type: registry.CmdVersion, Version: registry.Version}); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	both := []string{"eu-fra", "us-east"}
	us.must(controlplane.ShardGlobal, registry.Change{Op: registry.OpOpen, Home: "us-east", Members: both})
	for name, jurisdiction := range map[string]string{"us-east": "us", "eu-fra": "eu"} {
		us.must(controlplane.ShardGlobal, put(&registry.Record{Kind: registry.KindRegion, Meta: registry.Meta{ID: registry.RegionID(name), Shard: controlplane.ShardGlobal},
			Region: &registry.Region{Name: name, Jurisdiction: jurisdiction, State: "active"}}))
	}
	us.must(anyUS, registry.Change{Op: registry.OpOpen, Home: "us-east", Members: both})
	eu.must(pinEU, registry.Change{Op: registry.OpOpen, Home: "eu-fra", Members: []string{"eu-fra"}})
	eu.receive(len(eu.inbox))
	us.node, eu.node = us.state.Clone(), eu.state.Clone()
	return us, eu
}

func put(r *registry.Record) registry.Change {
	return registry.Change{Op: registry.OpPut, Record: r, IfRevision: registry.RevisionAbsent}
}

func (r *region) must(shard controlplane.Shard, changes ...registry.Change) {
	r.t.Helper()
	if err := r.commit(shard, changes...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *region) commit(shard controlplane.Shard, changes ...registry.Change) error {
	if err := r.state.Check(shard, changes); err != nil {
		return err
	}
	e, err := r.state.Next(shard, changes)
	if err != nil {
		return err
	}
	b, err := registry.EncodeEntry(e)
	if err != nil {
		return err
	}
	if out := r.state.Apply(&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{b}}); out.Err != nil {
		return out.Err
	}
	r.behind = append(r.behind, r.state.Clone())
	if shard != pinEU {
		r.peer.inbox = append(r.peer.inbox, b)
	}
	return nil
}

// receive takes n of the entries that are on their way.
func (r *region) receive(n int) {
	r.t.Helper()
	for _, b := range r.inbox[:n] {
		e, err := registry.DecodeEntry(b)
		if err != nil {
			r.t.Fatal(err)
		}
		if out := r.state.Apply(&registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{b}}); out.Err != nil {
			r.t.Fatal(out.Err)
		}
		r.behind = append(r.behind, r.state.Clone())
	}
	r.inbox = r.inbox[n:]
}

// tell gives the data node the next n states of its region.
func (r *region) tell(n int) {
	if n > 0 {
		r.node, r.behind = r.behind[n-1], r.behind[n:]
	}
}

const orgID = "org_any_1xV3rn0000000001"

func id(kind registry.Kind, n int) string { return fmt.Sprintf("%s_any_1xV3rn%010d", kind.Prefix(), n) }

func project(org string, n int) *registry.Record {
	return &registry.Record{Kind: registry.KindProject, Meta: registry.Meta{ID: id(registry.KindProject, n), Shard: anyUS}, Project: &registry.Project{Org: org, Name: fmt.Sprint("project ", n)}}
}

func key(project string, n int) *registry.Record {
	return &registry.Record{Kind: registry.KindKey, Meta: registry.Meta{ID: id(registry.KindKey, n), Shard: anyUS},
		Key: &registry.Key{Project: project, Name: fmt.Sprint("key ", n), Class: "live", Hash: []byte("hash"), Hint: "hint"}}
}

// furnish makes an org with projects, policies and keys in us.
func furnish(us *region, projects, keys int) {
	us.must(anyUS, put(&registry.Record{Kind: registry.KindOrg, Meta: registry.Meta{ID: orgID, Shard: anyUS},
		Org: &registry.Org{Name: "Acme", Plan: "scale", State: "verified", Jurisdiction: "any", Roaming: true}}))
	us.must(anyUS, put(&registry.Record{Kind: registry.KindPolicy, Meta: registry.Meta{ID: id(registry.KindPolicy, 0), Shard: anyUS}, Policy: &registry.Policy{Org: orgID, NoRetention: true}}))
	for i := range projects {
		p := project(orgID, i)
		us.must(anyUS, put(p), put(&registry.Record{Kind: registry.KindPolicy, Meta: registry.Meta{ID: id(registry.KindPolicy, i+1), Shard: anyUS},
			Policy: &registry.Policy{Org: orgID, Project: p.Meta.ID, Models: []string{"small"}}}))
		for k := range keys {
			us.must(anyUS, put(key(p.Meta.ID, 100*i+k)))
		}
	}
}

// told is an org and what is below it but keys, without ids.
func told(s *ledger.State, org string) string {
	o, ok := s.Get(registry.KindOrg, org)
	if !ok {
		return ""
	}
	out := []string{fmt.Sprint(o.Org.Name, o.Org.Plan, o.Org.State)}
	names := map[string]string{}
	for _, p := range s.ProjectsOf(org, "", 0) {
		names[p.Meta.ID] = p.Project.Name
		out = append(out, p.Project.Name)
	}
	for _, p := range s.PoliciesOf(org, "", 0) {
		out = append(out, fmt.Sprint("policy", names[p.Policy.Project], p.Policy.NoRetention, p.Policy.Models))
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

// served is the naive rule of a data node: where it lets a key run.
func served(node *ledger.State, key string) (in []string) {
	k, ok := node.Get(registry.KindKey, key)
	if !ok || k.Key.Revoked != 0 {
		return nil
	}
	p, ok := node.Get(registry.KindProject, k.Key.Project)
	if !ok {
		return nil
	}
	o, ok := node.Get(registry.KindOrg, p.Project.Org)
	if !ok {
		return nil
	}
	for _, j := range []string{"us", "eu"} {
		allowed := o.Org.Jurisdiction == "any" || o.Org.Jurisdiction == j
		for _, shard := range node.Shards() {
			for _, v := range node.Revocations(shard.Shard) {
				if org, to, ok := registry.ParsePinID(v.ID); ok && v.Kind == registry.KindPin && org == o.Meta.ID && to != j {
					allowed = false
				}
			}
		}
		if allowed {
			in = append(in, j)
		}
	}
	return in
}

// leaves begins the change of the org to eu, and says when that was.
func (r *region) leaves() (at time.Time) {
	r.t.Helper()
	org, _ := r.state.Get(registry.KindOrg, orgID)
	at = time.Unix(1_800_000_000, 0)
	changes, err := pin.Begin(org, "eu", pinEU, at)
	if err != nil {
		r.t.Fatal(err)
	}
	r.must(anyUS, changes...)
	return at
}

// copyAll makes the copy of the org that leaves.
func (r *region) copyAll(at time.Time) {
	r.t.Helper()
	for {
		changes, err := pin.Copy(r.state, pin.Leaving(r.state, orgID).Relocation, at)
		if err != nil {
			r.t.Fatal(err)
		}
		if len(changes) == 0 {
			return
		}
		r.must(pinEU, changes...)
	}
}
