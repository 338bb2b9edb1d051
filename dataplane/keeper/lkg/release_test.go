package lkg

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/lkg/safety"
	"ringmain/internal/testkit/diskkit"
)

// A release is what a keeper of some version left on disk, stopped cleanly or
// killed, and what it held. Directories below testdata/releases are named by
// the commit that wrote them and never change. To add the present version's:
//
//	LKG_RELEASE=testdata/releases/COMMIT go test -run TestMakeRelease .
const releases = "testdata/releases"

func TestReleases(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(releases, "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no releases: %v", err)
	}
	for _, release := range dirs {
		for _, state := range []string{"clean", "killed"} {
			t.Run(filepath.Base(release)+"/"+state, func(t *testing.T) {
				r := releaseRig(t, t.TempDir(), release)
				diskkit.Unpack(t, filepath.Join(release, state+".tar.gz"), r.cfg.Dir)
				want := string(must(os.ReadFile(filepath.Join(release, state+".txt"))))
				s := r.open()
				if got := r.describe(s); got != want {
					t.Fatalf("it holds\n%s\nand held\n%s\n%s", got, want, r.log)
				}
				// It goes on from there, and once more.
				r.append(s, entry(8, revoke("key_any_0000000000000009")))
				after := r.describe(s)
				if after == want {
					t.Error("what was appended is missing")
				}
				r.close(s)
				s = r.open()
				if got := r.describe(s); got != after {
					t.Errorf("opened again it holds\n%s\nwant\n%s", got, after)
				}
				r.close(s)
			})
		}
	}
}

func releaseRig(t *testing.T, dir, release string) *rig {
	t.Helper()
	r := newRig(t)
	key := filepath.Join(t.TempDir(), "kek")
	text := must(os.ReadFile(filepath.Join(release, "node.key")))
	if err := os.WriteFile(key, text, 0o600); err != nil { // git keeps no mode that seal accepts
		t.Fatal(err)
	}
	r.cfg.Dir, r.cfg.Sealer = dir, seal.New(must(seal.OpenFileHolder(key)))
	return r
}

func TestMakeRelease(t *testing.T) {
	release := os.Getenv("LKG_RELEASE")
	if release == "" {
		t.Skip("writes the present version's release: set LKG_RELEASE")
	}
	if err := errors.Join(os.MkdirAll(release, 0o755), seal.CreateKeyFile(filepath.Join(release, "node.key"))); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"clean", "killed"} {
		dir, held := t.TempDir(), filepath.Join(release, state+".txt")
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestReleaseWriter$")
		child.Env = append(os.Environ(), "LKG_RELEASE_WRITER="+dir, "LKG_RELEASE_STATE="+state, "LKG_RELEASE_HELD="+held)
		child.Stderr = os.Stderr
		out := must(child.StdoutPipe())
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if lines.Text() == "written" && state == "killed" {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := child.Wait(); (err == nil) != (state == "clean") {
			t.Fatalf("%s: %v", state, err)
		}
		diskkit.Pack(t, filepath.Join(release, state+".tar.gz"), dir)
	}
}

// TestReleaseWriter is the keeper of TestMakeRelease, in a process of its own.
func TestReleaseWriter(t *testing.T) {
	dir, state := os.Getenv("LKG_RELEASE_WRITER"), os.Getenv("LKG_RELEASE_STATE")
	if dir == "" {
		t.Skip("a part of TestMakeRelease")
	}
	r := releaseRig(t, dir, os.Getenv("LKG_RELEASE"))
	s := r.open()
	r.generation(s, snapshot(1, "key_any_0000000000000001")...)
	r.append(s, entry(2, revoke("key_any_0000000000000001")))
	var frames []*feed.Frame
	for _, shard := range []controlplane.Shard{controlplane.ShardGlobal, shard} {
		frames = append(frames, &feed.Frame{Type: feed.FrameReset, Shard: shard})
		for _, rec := range oneOfEach(shard) {
			frames = append(frames, &feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: must(registry.EncodeRecord(rec))})
		}
		frames = append(frames, &feed.Frame{Type: feed.FrameEnd, Shard: shard, Point: controlplane.Point{Epoch: epoch, Seq: 4}})
	}
	r.generation(s, frames...)
	pin := oneOfEach(shard)[3]
	r.append(s, entry(5, registry.Change{Op: registry.OpPut, Record: pin}), entry(6, revoke("key_any_0000000000000002")),
		&feed.Frame{Type: feed.FrameRevocation, Revocation: &registry.Revocation{Kind: registry.KindUpstream, ID: "ups_0000000003", Shard: controlplane.ShardGlobal, At: 7}},
		entry(7, registry.Change{Op: registry.OpDelete, Kind: registry.KindProject, ID: "prj_any_0000000001"}))
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(os.Getenv("LKG_RELEASE_HELD"), []byte(r.describe(s)), 0o644); err != nil {
		t.Fatal(err)
	}
	fmt.Println("written")
	if state == "killed" {
		select {}
	}
	r.close(s)
}

// oneOfEach kind of record that the shard holds.
func oneOfEach(shard controlplane.Shard) []*registry.Record {
	meta := func(id string) registry.Meta {
		return registry.Meta{ID: id, Shard: shard, Revision: 3, Created: 1_800_000_000_000, Updated: 1_800_000_000_001}
	}
	if shard == controlplane.ShardGlobal {
		return []*registry.Record{
			{Kind: registry.KindRegion, Meta: meta("reg_us-east"), Region: &registry.Region{Name: "us-east", Jurisdiction: "us", Endpoint: "https://us.example.com", State: "active", Brownout: 1}},
			{Kind: registry.KindRoute, Meta: meta("rte_0000000001"), Route: &registry.Route{Model: "m", Targets: []registry.Target{{Upstream: "u", Model: "n", Weight: 2, Order: 1}}}},
			{Kind: registry.KindUpstream, Meta: meta("ups_0000000001"), Upstream: &registry.Upstream{Name: "u", Provider: "openai", Region: "us-east", Dialect: "openai",
				BaseURL: "https://api.example.com", Auth: "bearer", Credential: []byte("sk-1"), Terms: registry.Terms{Retention: "zero", PromptCache: "none", Training: "never", Dated: "2026-11-01"}}},
		}
	}
	return []*registry.Record{
		{Kind: registry.KindKey, Meta: meta("key_any_0000000000000003"), Key: &registry.Key{Project: "prj_any_0000000001", Name: "k", Class: "live", Hash: []byte("h"), PrevHash: []byte("g"), PrevUntil: 9, Hint: "0003"}},
		{Kind: registry.KindOrg, Meta: meta("org_any_0000000001"), Org: &registry.Org{Name: "Acme", Plan: "build", State: "verified", Jurisdiction: "any", Roaming: true}},
		{Kind: registry.KindProject, Meta: meta("prj_any_0000000001"), Project: &registry.Project{Org: "org_any_0000000001", Name: "web", CrossProvider: true}},
		{Kind: registry.KindPolicy, Meta: meta("pol_any_0000000001"), Policy: &registry.Policy{Org: "org_any_0000000001", Residency: "eu", NoRetention: true}},
	}
}

// describe says all that a store holds, in words that do not depend on how it
// is encoded.
func (r *rig) describe(s *Store) string {
	r.t.Helper()
	var b strings.Builder
	st := s.Stats()
	fmt.Fprintf(&b, "generation %d, damage %v, unknown %v\n", st.Generation, st.Damage, st.Unknown)
	for _, shard := range []controlplane.Shard{shard, controlplane.ShardGlobal} {
		p := s.Position()[shard]
		fmt.Fprintf(&b, "%s at %s.%d\n", shard, p.Epoch, p.Seq)
	}
	c := s.Cursor()
	defer c.Close()
	if _, err := c.Replay(func(frames [][]byte) error {
		for _, raw := range frames {
			f := must(feed.DecodeFrame(raw))
			fmt.Fprintf(&b, "frame %d %s", f.Type, f.Shard)
			switch {
			case f.Record != nil:
				rec := must(registry.DecodeRecord(f.Record))
				fmt.Fprintf(&b, " %s", must(json.Marshal(rec)))
				if rec.Key != nil {
					fmt.Fprintf(&b, " %s %s", rec.Key.Hash, rec.Key.PrevHash)
				}
				if rec.Upstream != nil {
					fmt.Fprintf(&b, " %s", rec.Upstream.Credential)
				}
			case f.Entry != nil:
				e := must(registry.DecodeEntry(f.Entry))
				fmt.Fprintf(&b, " %s at %s.%d after %s by %s:", e.Shard, e.Epoch, e.Seq, e.Prev, f.Sender)
				for _, change := range e.Changes {
					fmt.Fprintf(&b, " operation %d on %s %s at %d with %s", change.Op, change.Kind, change.ID, change.At, must(json.Marshal(change.Record)))
				}
			case f.Revocation != nil:
				fmt.Fprintf(&b, " %s %s at %d", f.Revocation.Kind, f.Revocation.ID, f.Revocation.At)
			}
			b.WriteByte('\n')
		}
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	var known []string
	pins := make(map[string]*registry.Record) // the newest of each record: older ones may go
	if err := s.Safety(func(e safety.Entry) error {
		if e.Revocation != nil {
			known = append(known, fmt.Sprintf("revoked: %s %s since %d\n", e.Revocation.Kind, e.Revocation.ID, e.Revocation.At))
		} else if pin := must(registry.DecodeRecord(e.Pin)); pins[pin.Meta.ID] == nil || pins[pin.Meta.ID].Meta.Revision < pin.Meta.Revision {
			pins[pin.Meta.ID] = pin
		}
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	for _, pin := range pins {
		known = append(known, fmt.Sprintf("pinned: %s\n", must(json.Marshal(pin))))
	}
	slices.Sort(known)
	return b.String() + strings.Join(known, "")
}
