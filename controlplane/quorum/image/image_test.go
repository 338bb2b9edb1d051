package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
	"ringmain/internal/testkit/diskkit"
)

const shard = controlplane.Shard("any-us-east")

// world is a registry and the image that follows it.
type world struct {
	t     testing.TB
	cfg   Config
	image *Image
	state *ledger.State
	dirty *Dirty
	index uint64
}

func newWorld(t testing.TB, sealer *seal.Sealer) *world {
	t.Helper()
	w := &world{t: t, cfg: Config{Path: filepath.Join(diskkit.Fast(t), "image.db"), Cluster: "c", Region: "us-east", Sealer: sealer}, dirty: NewDirty()}
	var err error
	if w.image, w.state, err = Open(w.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.image.Close() })
	w.propose(shard, registry.Change{Op: registry.OpOpen, Members: []string{"us-east"}, Home: "us-east"})
	return w
}

func (w *world) apply(cmd *registry.Command) ledger.Outcome {
	w.t.Helper()
	enc, err := registry.EncodeCommand(cmd)
	if err != nil {
		w.t.Fatal(err)
	}
	out := w.state.Apply(cmd)
	w.index++
	w.dirty.Note(w.state, cmd, enc, &out)
	return out
}

func (w *world) propose(s controlplane.Shard, changes ...registry.Change) ledger.Outcome {
	w.t.Helper()
	e, err := w.state.Next(s, changes)
	if err != nil {
		w.t.Fatal(err)
	}
	enc, err := registry.EncodeEntry(e)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.apply(&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{enc}})
}

func (w *world) flush() {
	w.t.Helper()
	if err := w.image.Flush(w.dirty, w.state, Mark{Applied: w.index, Term: 1}); err != nil {
		w.t.Fatal(err)
	}
	w.dirty = NewDirty()
}

func (w *world) reopen() {
	w.t.Helper()
	if err := w.image.Close(); err != nil {
		w.t.Fatal(err)
	}
	before := fingerprint(w.state)
	var err error
	if w.image, w.state, err = Open(w.cfg); err != nil {
		w.t.Fatal(err)
	}
	if got := fingerprint(w.state); got != before {
		w.t.Fatalf("the image holds\n%s\nwant\n%s", got, before)
	}
	if got, want := w.image.Mark(), (Mark{Applied: w.index, Term: 1}); got != want {
		w.t.Fatalf("the image is at %v, want %v", got, want)
	}
}

// fingerprint is all of the state: two with the same are the same.
func fingerprint(s *ledger.State) (all string) {
	for _, info := range s.Shards() {
		staged, _ := s.Staged(info.Shard)
		all += fmt.Sprintf("%+v %x %v\n", info, s.Digest(info.Shard), staged)
	}
	staged, ok := s.Staged("eu")
	sum := sha256.New()
	if err := s.Snapshot(sum); err != nil {
		panic(err)
	}
	return all + fmt.Sprintf("%v %v %x", staged, ok, sum.Sum(nil))
}

func org(n int, name string) registry.Change {
	return registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindOrg,
		Meta: registry.Meta{ID: fmt.Sprintf("org_any_000000%010d", n), Shard: shard, Created: 1, Updated: 1},
		Org:  &registry.Org{Name: name, Plan: "build", State: "verified", Jurisdiction: "any"}}}
}

func project(n int) registry.Change {
	return registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindProject,
		Meta:    registry.Meta{ID: fmt.Sprintf("prj_any_000000%010d", n), Shard: shard, Created: 1, Updated: 1},
		Project: &registry.Project{Org: fmt.Sprintf("org_any_000000%010d", n), Name: "p"}}}
}

func key(n int) registry.Change {
	return registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindKey,
		Meta: registry.Meta{ID: fmt.Sprintf("key_any_000000%010d", n), Shard: shard, Created: 1, Updated: 1},
		Key: &registry.Key{Project: fmt.Sprintf("prj_any_000000%010d", n), Name: "k", Class: "live", Hint: "0000",
			Hash: []byte("$2a$10$" + "N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy")}}}
}

func deletion(c registry.Change) registry.Change {
	return registry.Change{Op: registry.OpDelete, Kind: c.Record.Kind, ID: c.Record.Meta.ID}
}

func revocation(n int) registry.Change {
	return registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: key(n).Record.Meta.ID, At: 5}
}

// The image follows the state through a random life, whatever is flushed
// together, whatever fails, through dumps and new data keys.
func TestFollowsState(t *testing.T) {
	sealer := diskkit.Sealer(t)
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t, sealer)
		other := newWorld(t, sealer) // takes dumps
		for range 150 {
			n := r.IntN(8)
			switch r.IntN(12) {
			case 0, 1, 2:
				w.propose(shard, org(n, fmt.Sprint(r.Int())))
			case 3:
				w.propose(shard, project(n))
			case 4, 5:
				w.propose(shard, key(n))
			case 6:
				w.propose(shard, deletion([]registry.Change{key(n), project(n), org(n, "")}[r.IntN(3)]))
			case 7:
				w.propose(shard, revocation(n))
			case 8:
				w.stage(r)
			default:
				w.turn(r, other)
			}
		}
		w.flush()
		w.reopen()
	}
}

// turn ends a process, fails a flush, or makes a dump, which other takes.
func (w *world) turn(r *rand.Rand, other *world) {
	switch r.IntN(3) {
	case 0:
		w.flush()
		w.reopen()
	case 1:
		taken := w.dirty // it comes back
		w.dirty = NewDirty()
		w.propose(shard, org(r.IntN(8), fmt.Sprint(r.Int())))
		w.dirty.Merge(taken)
	case 2:
		w.flush()
		if r.IntN(2) == 0 {
			if err := w.image.reseal(); err != nil {
				w.t.Fatal(err)
			}
		}
		other.take(w)
	}
}

// stage sends a random chunk of a shard snapshot of another home, or adopts it.
func (w *world) stage(r *rand.Rand) {
	info, ok := w.state.Staged("eu")
	if ok && r.IntN(4) == 0 {
		// It does not hold what the digest says, so it is dropped.
		w.apply(&registry.Command{Type: registry.CmdAdopt, Sender: controlplane.Epoch{Counter: 1, Region: "eu-fra"}, Adopt: &registry.Adopt{
			Shard: "eu", Snapshot: info.Snapshot, Members: []string{"eu-fra", "us-east"}, Home: "eu-fra",
			Point: controlplane.Point{Epoch: controlplane.Epoch{Counter: 1, Region: "eu-fra"}, Seq: 9}, Digest: make([]byte, 32)}})
		return
	}
	if !ok || r.IntN(6) == 0 {
		info = ledger.StageInfo{Snapshot: fmt.Sprint(r.Int())}
	}
	rec := org(int(info.Chunks), "x").Record
	rec.Meta.ID, rec.Meta.Shard, rec.Org.Jurisdiction = fmt.Sprintf("org_eu_000000%010d", info.Chunks), "eu", "eu"
	enc, err := registry.EncodeRecord(rec)
	if err != nil {
		w.t.Fatal(err)
	}
	w.apply(&registry.Command{Type: registry.CmdStage, Stage: &registry.Stage{Shard: "eu", Snapshot: info.Snapshot, Chunk: info.Chunks, Records: [][]byte{enc}}})
}

// take restores a dump of from.
func (w *world) take(from *world) {
	w.t.Helper()
	view, err := from.image.View()
	if err != nil {
		w.t.Fatal(err)
	}
	defer view.Release()
	var dump bytes.Buffer
	if err := view.Dump(&dump); err != nil {
		w.t.Fatal(err)
	}
	if mark, err := w.image.DumpMark(bytes.NewReader(dump.Bytes())); err != nil || mark.Applied != from.index {
		w.t.Fatalf("the dump is at %v, %v", mark, err)
	}
	if w.state, err = w.image.Replace(bytes.NewReader(dump.Bytes()), Mark{}); err != nil {
		w.t.Fatal(err)
	}
	w.index, w.dirty = from.index, NewDirty()
	if got, want := fingerprint(w.state), fingerprint(from.state); got != want {
		w.t.Fatalf("the dump holds\n%s\nwant\n%s", got, want)
	}
	w.reopen()
}

// No altered byte of the file is served: it is named, or it was of no account.
func TestDamage(t *testing.T) {
	w := newWorld(t, diskkit.Sealer(t))
	for n := range 40 {
		w.propose(shard, org(n, "name"))
		w.propose(shard, project(n))
		w.propose(shard, key(n))
		w.flush()
	}
	w.propose(shard, revocation(3))
	w.flush()
	w.reopen()
	want, mark := fingerprint(w.state), w.image.Mark()
	if err := w.image.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(w.cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	good = bytes.TrimRight(good, "\x00") // the rest is room to grow
	good = append(good, make([]byte, -len(good)&4095)...)
	if bytes.Contains(good, []byte("$2a$10$")) || bytes.Contains(good, []byte("verified")) {
		t.Error("the file holds content in the clear")
	}
	r := rand.New(rand.NewPCG(7, 7))
	named, harmless := 0, 0
	tries := 2000
	if testing.Short() {
		tries = 300
	}
	for range tries {
		bad := bytes.Clone(good)
		at := r.IntN(len(bad))
		bad[at] ^= 1 << r.IntN(8)
		harmed, err := openBytes(t, w.cfg, bad, want, mark)
		if err != nil {
			t.Fatalf("byte %d: %v", at, err)
		}
		if harmed {
			named++
		} else {
			harmless++
		}
	}
	t.Logf("%d flipped bits named, %d in unused space or an older summary", named, harmless)
	if named < tries/20 {
		t.Error("hardly anything was noticed: the test looks in the wrong place")
	}
	for _, size := range []int{0, 100, 4096, len(good) / 2, len(good) - 4096} {
		harmed, err := openBytes(t, w.cfg, good[:size], want, mark)
		if err != nil {
			t.Errorf("cut to %d bytes: %v", size, err)
		}
		if !harmed && size > 0 {
			t.Errorf("cut to %d of %d bytes: not noticed", size, len(good))
		}
	}
}

// openBytes opens an image of the given bytes. An error of its own means that
// wrong content was served.
func openBytes(t *testing.T, cfg Config, content []byte, want string, mark Mark) (harmed bool, err error) {
	t.Helper()
	if err := os.WriteFile(cfg.Path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	m, state, err := Open(cfg)
	if err != nil {
		return true, nil
	}
	defer func() { _ = m.Close() }()
	// With the newest bbolt meta page gone it stands at the flush before: whole,
	// and the log has the rest.
	if m.Mark().Applied < mark.Applied {
		return true, nil
	}
	if got := fingerprint(state); got != want {
		return false, fmt.Errorf("served\n%s", got)
	}
	return false, nil
}

// A dump that is cut, altered or of another region does not replace anything.
func TestBadDump(t *testing.T) {
	sealer := diskkit.Sealer(t)
	from, to := newWorld(t, sealer), newWorld(t, sealer)
	for n := range 10 {
		from.propose(shard, org(n, "new"))
		to.propose(shard, org(n, "old"))
	}
	from.flush()
	to.flush()
	view, err := from.image.View()
	if err != nil {
		t.Fatal(err)
	}
	var dump bytes.Buffer
	if err := view.Dump(&dump); err != nil {
		t.Fatal(err)
	}
	view.Release()
	for at := 0; at < dump.Len(); at += 3 {
		bad := bytes.Clone(dump.Bytes())
		bad[at] ^= 0x10
		if _, err := to.image.Replace(bytes.NewReader(bad), Mark{}); err == nil {
			t.Fatalf("byte %d of %d was altered and not noticed", at, len(bad))
		}
		if at%30 == 0 {
			if _, err := to.image.Replace(bytes.NewReader(dump.Bytes()[:at]), Mark{}); err == nil {
				t.Fatalf("a dump cut at %d was taken", at)
			}
		}
	}
	if _, err := to.image.Replace(bytes.NewReader(dump.Bytes()), Mark{Applied: from.index + 1}); err == nil {
		t.Error("a dump from before what is applied was taken")
	}
	to.reopen()
	elsewhere := to.cfg
	elsewhere.Region, elsewhere.Path = "eu-fra", filepath.Join(t.TempDir(), "image.db")
	m, _, err := Open(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Replace(bytes.NewReader(dump.Bytes()), Mark{}); err == nil {
		t.Error("a dump of another region was taken")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(Config{Path: to.cfg.Path, Cluster: "c", Region: "us-east", Sealer: diskkit.Sealer(t)}); !errors.Is(err, seal.ErrUnknownKey) && err == nil {
		t.Errorf("opened under another key: %v", err)
	}
}
