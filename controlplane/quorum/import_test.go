package quorum

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/recordkit"
)

var euEpoch = controlplane.Epoch{Counter: 1, Region: "eu-fra"}

// euShard is another home's shard, as a feed would bring it.
func euShard(t *testing.T) (chunks []*registry.Command, adopt *registry.Command) {
	t.Helper()
	s := ledger.New()
	apply := func(changes ...registry.Change) {
		if out := s.Apply(recordkit.Command(t, s, "eu", changes...)); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	apply(registry.Change{Op: registry.OpOpen, Members: []string{"eu-fra", testRegion}, Home: "eu-fra"})
	for i := range 6 {
		r := &registry.Record{Kind: registry.KindOrg,
			Meta: registry.Meta{ID: fmt.Sprintf("org_eu_000000%010d", i), Shard: "eu", Created: 1, Updated: 1},
			Org:  &registry.Org{Name: "n", Plan: "build", State: "verified", Jurisdiction: "eu"}}
		apply(registry.Change{Op: registry.OpPut, Record: r})
	}
	snap, _ := s.ShardSnapshot("eu")
	for r := range snap.Records {
		enc, err := registry.EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, &registry.Command{Type: registry.CmdStage, Stage: &registry.Stage{
			Shard: "eu", Snapshot: "first", Chunk: uint64(len(chunks)), Records: [][]byte{enc}}})
	}
	digest := snap.Digest()
	return chunks, &registry.Command{Type: registry.CmdAdopt, Sender: euEpoch, Adopt: &registry.Adopt{
		Shard: "eu", Snapshot: "first", Members: snap.Info.Members, Home: snap.Info.Home, Point: snap.Info.Last, Digest: digest[:]}}
}

func stageHalf(t *testing.T, lead *node) {
	t.Helper()
	chunks, _ := euShard(t)
	for _, c := range chunks[:3] {
		if _, err := lead.q.ProposeCommand(context.Background(), c); err != nil {
			t.Fatal(err)
		}
	}
}

func stageRest(t *testing.T, lead *node) {
	t.Helper()
	chunks, adopt := euShard(t)
	for _, c := range append(chunks[3:], adopt) {
		if _, err := lead.q.ProposeCommand(context.Background(), c); err != nil {
			t.Fatal(err)
		}
	}
}

func TestImport(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		stageHalf(t, c.leader())
		// What is staged survives a restart of all.
		for _, nd := range c.nodes {
			c.kill(nd)
		}
		c.startAll()
		lead := c.leader()
		stageRest(t, lead)
		if _, err := lead.q.Propose(context.Background(), "eu", create("org_eu_0000000000000099", "x")); !errors.Is(err, controlplane.ErrNotHome) {
			t.Errorf("proposal to another home's shard: %v", err)
		}
		entry := registry.NextAfter("eu", controlplane.Point{Epoch: euEpoch, Seq: 40}, create("org_eu_0000000000000099", "x"))
		enc, err := registry.EncodeEntry(entry)
		if err != nil {
			t.Fatal(err)
		}
		_, err = lead.q.ProposeCommand(context.Background(), &registry.Command{Type: registry.CmdAccept, Sender: euEpoch, Entries: [][]byte{enc}})
		var misfit *ledger.StructureError
		if !errors.As(err, &misfit) || misfit.Last.Seq != 7 {
			t.Errorf("an entry beyond a gap: %v", err)
		}
		c.converged()
		for _, nd := range c.nodes {
			c.kill(nd)
		}
		c.startAll()
		c.leader()
		c.converged()
	})
}

func wipe(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, nameOwner)); err == nil {
		t.Fatal("not wiped")
	}
}
