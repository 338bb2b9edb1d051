package lkg

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/lkg/safety"
	"ringmain/internal/testkit/diskkit"
)

const shard = controlplane.Shard("any-us-east")

var epoch = controlplane.Epoch{Counter: 1, Region: "us-east"}

// rig is a data directory and what is known of it.
type rig struct {
	t   *testing.T
	cfg Config
	log *bytes.Buffer
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	log := new(bytes.Buffer)
	return &rig{t: t, log: log, cfg: Config{
		Dir: dir, Name: "c/n", Sealer: diskkit.Sealer(t), Logger: slog.New(slog.NewTextHandler(log, nil)),
	}}
}

func (r *rig) open() *Store {
	r.t.Helper()
	s, err := Open(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) close(s *Store) {
	r.t.Helper()
	if err := s.Close(); err != nil {
		r.t.Fatal(err)
	}
}

// died leaves a store as a killed process does.
func died(s *Store) {
	if s.delta != nil {
		_ = s.delta.Abandon()
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func keyRecord(id string) *registry.Record {
	return &registry.Record{Kind: registry.KindKey, Meta: registry.Meta{ID: id, Shard: shard, Revision: 1}, Key: &registry.Key{Project: "p", Class: "live", Hash: []byte("h")}}
}

func snapshot(seq uint64, ids ...string) []*feed.Frame {
	frames := []*feed.Frame{{Type: feed.FrameReset, Shard: shard}}
	for _, id := range ids {
		frames = append(frames, &feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: must(registry.EncodeRecord(keyRecord(id)))})
	}
	return append(frames, &feed.Frame{Type: feed.FrameEnd, Shard: shard, Point: controlplane.Point{Epoch: epoch, Seq: seq}})
}

func entry(seq uint64, changes ...registry.Change) *feed.Frame {
	e := &registry.Entry{Shard: shard, Epoch: epoch, Seq: seq, Changes: changes}
	if seq > 1 {
		e.Prev = epoch
	}
	return &feed.Frame{Type: feed.FrameEntry, Shard: shard, Sender: epoch, Entry: must(registry.EncodeEntry(e))}
}

func revoke(id string) registry.Change {
	return registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: id, At: 5}
}

func raw(f *feed.Frame) []byte { return must(feed.EncodeFrame(f)) }

// generation writes one whole generation.
func (r *rig) generation(s *Store, frames ...*feed.Frame) {
	r.t.Helper()
	g := must(s.Begin())
	for _, f := range frames {
		r.observe(s, f)
		if err := g.Append(f, raw(f)); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := g.Commit(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) observe(s *Store, f *feed.Frame) {
	r.t.Helper()
	var e *registry.Entry
	if f.Type == feed.FrameEntry {
		e = must(registry.DecodeEntry(f.Entry))
	}
	if err := s.Observe(f, e, true); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) append(s *Store, frames ...*feed.Frame) {
	r.t.Helper()
	for _, f := range frames {
		r.observe(s, f)
		if err := s.Append(f, raw(f)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// replay tells what a worker would be given, as short words.
func (r *rig) replay(s *Store) string {
	r.t.Helper()
	var words []string
	c := s.Cursor()
	defer c.Close()
	if _, err := c.Replay(func(frames [][]byte) error {
		for _, b := range frames {
			f := must(feed.DecodeFrame(b))
			switch f.Type {
			case feed.FrameReset:
				words = append(words, "reset")
			case feed.FrameRecord:
				words = append(words, must(registry.DecodeRecord(f.Record)).Meta.ID)
			case feed.FrameEnd:
				words = append(words, fmt.Sprint("end", f.Point.Seq))
			case feed.FrameEntry:
				words = append(words, fmt.Sprint(must(registry.DecodeEntry(f.Entry)).Seq))
			}
		}
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	return strings.Join(words, " ")
}

func (r *rig) revoked(s *Store) string {
	r.t.Helper()
	var ids []string
	if err := s.Safety(func(e safety.Entry) error {
		if e.Revocation != nil {
			ids = append(ids, e.Revocation.ID)
		} else {
			rec := must(registry.DecodeRecord(e.Pin))
			ids = append(ids, fmt.Sprintf("pin:%s@%d", rec.Meta.ID, rec.Meta.Revision))
		}
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

func (r *rig) check(s *Store, generation uint64, replay string) {
	r.t.Helper()
	if got := s.Stats().Generation; got != generation {
		r.t.Errorf("generation %d is in use, want %d", got, generation)
	}
	if got := r.replay(s); got != replay {
		r.t.Errorf("replay gives %q, want %q", got, replay)
	}
}

func TestEmptyNode(t *testing.T) {
	r := newRig(t)
	s := r.open()
	if st := s.Stats(); st.Generation != 0 || st.Unknown || !s.Due() || len(s.Position()) != 0 {
		t.Errorf("a new node: %+v", st)
	}
	r.append(s, entry(1)) // nowhere to append to: not an error
	r.check(s, 0, "")
	r.close(s)
}

func TestLifeOfState(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.generation(s, snapshot(3, "a", "b")...)
	r.append(s, entry(4), entry(5, revoke("a")))
	r.append(s, entry(4)) // again, from another control node
	r.check(s, 1, "reset a b end3 4 5")
	died(s)

	s = r.open()
	r.check(s, 1, "reset a b end3 4 5")
	if s.Position()[shard].Seq != 5 || r.revoked(s) != "a" || s.Due() {
		t.Errorf("position %v, revoked %q", s.Position(), r.revoked(s))
	}
	r.append(s, entry(6))
	if err := s.Append(entry(9), raw(entry(9))); !errors.Is(err, ErrGap) || !s.Due() {
		t.Errorf("a gap: %v, due %v", err, s.Due())
	}
	r.close(s)

	s = r.open()
	r.check(s, 1, "reset a b end3 4 5 6")
	for n := range uint64(4) {
		r.generation(s, snapshot(10+n, "c")...)
	}
	r.append(s, entry(14))
	r.check(s, 5, "reset c end13 14")
	r.close(s)
	files := must(os.ReadDir(filepath.Join(r.cfg.Dir, "lkg")))
	if len(files) != 4 { // three snapshots, one delta
		t.Errorf("files %v", files)
	}
	if st := r.open().Stats(); st.RolledBack || st.Unknown || len(st.Damage) != 0 {
		t.Errorf("after a clean end: %+v", st)
	}
}

// TestCursorCatchesUp: what is appended while a worker is filled comes with the next call.
func TestCursorCatchesUp(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.generation(s, snapshot(1, "a")...)
	r.append(s, entry(2))
	c := s.Cursor()
	defer c.Close()
	frames := 0
	count := func(fs [][]byte) error { frames += len(fs); return nil }
	for i, want := range []int{4, 1, 2, 0} {
		frames = 0
		if current, err := c.Replay(count); err != nil || !current || frames != want {
			t.Fatalf("call %d gave %d frames, %v, %v; want %d", i, frames, current, err, want)
		}
		switch i {
		case 0:
			r.append(s, entry(3))
		case 1:
			r.append(s, entry(4), entry(5))
		}
	}
	r.generation(s, snapshot(9, "z")...)
	if current, err := c.Replay(count); current || err != nil {
		t.Errorf("a newer generation took over: %v, %v", current, err)
	}
	r.close(s)
}

func TestUnfinishedGenerationIsForgotten(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.generation(s, snapshot(1, "a")...)
	g := must(s.Begin())
	if err := g.Append(snapshot(5)[0], raw(snapshot(5)[0])); err != nil {
		t.Fatal(err)
	}
	if err := g.Commit(); err == nil {
		t.Error("a generation without the end of its shard was committed")
	}
	if !s.Due() {
		t.Error("frames went to the generation given up: another is due")
	}
	must(s.Begin())
	died(s)
	s = r.open()
	r.check(s, 1, "reset a end1")
	r.close(s)
}

func TestPins(t *testing.T) {
	r := newRig(t)
	s := r.open()
	policy := func(residency string) registry.Change {
		return registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindPolicy,
			Meta: registry.Meta{ID: "pol"}, Policy: &registry.Policy{Org: "o", Residency: residency}}}
	}
	org := func(roaming bool, updated int64) registry.Change {
		return registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindOrg,
			Meta: registry.Meta{ID: "o", Created: 1, Updated: updated}, Org: &registry.Org{Jurisdiction: "any", Roaming: roaming}}}
	}
	r.generation(s, snapshot(1)...)
	r.append(s, entry(2, org(true, 1)), entry(3, policy("eu")), entry(4, policy("us")), entry(5, policy("")), entry(6, org(false, 2)))
	if got := r.revoked(s); got != "pin:o@6 pin:pol@3 pin:pol@4" {
		t.Errorf("pins %q", got)
	}
	died(s)
	s = r.open()
	if got := r.revoked(s); got != "pin:o@6 pin:pol@4" {
		t.Errorf("after a start %q: an older pin of the same record is left out", got)
	}
	r.close(s)
}

func TestAnothersKeyIsLeftAlone(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.generation(s, snapshot(1, "a")...)
	r.close(s)
	other := newRig(t)
	cfg := r.cfg
	cfg.Sealer = other.cfg.Sealer
	if _, err := Open(cfg); !errors.Is(err, seal.ErrUnknownKey) {
		t.Fatalf("another key-encryption key: %v", err)
	}
	s = r.open()
	r.check(s, 1, "reset a end1")
	r.close(s)
	// Another node's files do not open under this name.
	cfg = r.cfg
	cfg.Name = "c/other"
	s = must(Open(cfg))
	if st := s.Stats(); st.Generation != 0 || !st.Unknown {
		t.Errorf("another node's files: %+v", st)
	}
}

// TestFullDisk writes to a file system of 1 MiB.
func TestFullDisk(t *testing.T) {
	r := newRig(t)
	r.cfg.Dir = t.TempDir()
	if err := syscall.Mount("tmpfs", r.cfg.Dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mounting a small tmpfs was refused: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(r.cfg.Dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	s := r.open()
	r.generation(s, snapshot(1, "a")...)
	filler := filepath.Join(r.cfg.Dir, "filler")
	fill := func() {
		f := must(os.Create(filler))
		block := make([]byte, 4096)
		for {
			if _, err := f.Write(block); err != nil {
				break
			}
		}
		_ = f.Close()
	}
	fill()
	var failed error
	seq := uint64(2)
	for ; seq < 1000 && failed == nil; seq++ {
		f := entry(seq, revoke(fmt.Sprint("gone", seq)))
		err := s.Observe(f, must(registry.DecodeEntry(f.Entry)), true)
		failed = errors.Join(err, s.Append(f, raw(f)))
	}
	if !errors.Is(failed, controlplane.ErrDiskFull) {
		t.Fatalf("a full disk: %v", failed)
	}
	if _, err := s.Begin(); !errors.Is(err, controlplane.ErrDiskFull) || !s.Due() {
		t.Errorf("a new generation on a full disk: %v", err)
	}
	// What comes meanwhile is not an error each time, and no revocation is lost.
	f := entry(seq, revoke("meanwhile"))
	_ = s.Observe(f, must(registry.DecodeEntry(f.Entry)), true)
	if err := s.Append(f, raw(f)); err != nil {
		t.Errorf("while the disk is full: %v", err)
	}
	if !strings.Contains(r.revoked(s), "meanwhile") || s.Stats().Revocations != int(seq-1) {
		t.Errorf("%d revocations known, want %d", s.Stats().Revocations, seq-1)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := s.Retry(); err != nil {
		t.Fatal(err)
	}
	r.generation(s, snapshot(seq, "b")...)
	died(s)
	s = r.open()
	r.check(s, 2, fmt.Sprintf("reset b end%d", seq))
	if !strings.Contains(r.revoked(s), "meanwhile") || s.Stats().Revocations != int(seq-1) || s.Stats().Unknown {
		t.Errorf("after a start: %+v, want %d revocations", s.Stats(), seq-1)
	}
	r.close(s)
}
