package registry

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"ringmain/controlplane"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// full returns a state with every kind of content, staged content too.
func full(t testing.TB) *State {
	s := world(t)
	mustPropose(t, s, anyEast, put(policy(polAny, anyEast, orgAny, prjAny)), revoke(keyAny, 5))
	snap, _ := s.ShardSnapshot(pinEU)
	stageAll(t, s, chunks(t, snap, "s1", 2))
	snap, _ = s.ShardSnapshot(anyEast)
	snap.Info.Shard = anyEast
	stageAll(t, s, chunks(t, snap, "s2", 3))
	return s
}

func TestSnapshotRoundTrip(t *testing.T) {
	for name, s := range map[string]*State{"empty": New(), "full": full(t)} {
		b := snapshot(t, s)
		restored, err := Restore(iotest.OneByteReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(snapshot(t, restored), b) {
			t.Errorf("%s: the restored state differs", name)
		}
	}
}

func TestDamagedSnapshots(t *testing.T) {
	b := snapshot(t, full(t))
	for i := range b {
		damaged := slices.Clone(b)
		damaged[i] ^= 0x41
		if _, err := Restore(bytes.NewReader(damaged)); !errors.Is(err, ErrDamaged) && !errors.Is(err, controlplane.ErrUnknownEntry) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if _, err := Restore(bytes.NewReader(b[:i])); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := Restore(bytes.NewReader(append(slices.Clone(b), 0))); !errors.Is(err, ErrDamaged) {
		t.Errorf("one byte more: %v", err)
	}
	failure := errors.New("disk on fire")
	if _, err := Restore(io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(failure))); !errors.Is(err, failure) || errors.Is(err, ErrDamaged) {
		t.Errorf("failing reader: %v", err)
	}
	if err := full(t).Snapshot(failingWriter{failure}); !errors.Is(err, failure) {
		t.Errorf("failing writer: %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestLoader(t *testing.T) {
	s := world(t)
	mustPropose(t, s, anyEast, revoke(keyAny, 5))
	info, _ := s.Shard(anyEast)
	snap, _ := s.ShardSnapshot(anyEast)
	records := slices.Collect(snap.Records)
	load := func(info *ShardInfo, records []*Record, revocations ...Revocation) (*State, error) {
		l := NewLoader()
		var errs []error
		for _, r := range slices.Backward(records) { // any order will do
			c := *r
			errs = append(errs, l.Record(&c))
		}
		for _, v := range revocations {
			errs = append(errs, l.Revocation(v))
		}
		if info != nil {
			errs = append(errs, l.Shard(*info))
		}
		loaded, err := l.State()
		return loaded, errors.Join(append(errs, err)...)
	}
	loaded, err := load(&info, records, s.Revocations(anyEast)...)
	if err != nil || loaded.Digest(anyEast) != s.Digest(anyEast) || len(loaded.KeysOf(prjAny, "", 0)) != 1 {
		t.Errorf("loaded state differs: %v", err)
	}
	healed, err := load(&info, records, Revocation{Kind: KindKey, ID: keyAny, Shard: anyEast, At: 3})
	if r, _ := healed.Get(KindKey, keyAny); err != nil || r.Key.Revoked != 3 {
		t.Error("a record does not follow the safety set")
	}
	refused := func(what string, change func(i *ShardInfo), records []*Record, revocations ...Revocation) {
		t.Helper()
		c := info
		change(&c)
		if _, err := load(&c, records, revocations...); err == nil {
			t.Errorf("%s was loaded", what)
		}
	}
	fine := func(*ShardInfo) {}
	refused("a record twice", fine, append(slices.Clone(records), records[0]))
	refused("a revocation twice", fine, records, s.Revocations(anyEast)[0], s.Revocations(anyEast)[0])
	refused("a malformed record", fine, []*Record{{Kind: KindOrg, Meta: Meta{ID: orgAny, Shard: anyEast}}})
	refused("a malformed revocation", fine, nil, Revocation{Shard: anyEast, ID: "x"})
	refused("a shard that never began", func(i *ShardInfo) { i.Last = controlplane.Point{} }, records)
	refused("a shard past its promise", func(i *ShardInfo) { i.Epoch = controlplane.Epoch{} }, records)
	refused("a shard without epochs", func(i *ShardInfo) { i.Spans = nil }, records)
	refused("a shard without members", func(i *ShardInfo) { i.Members = nil }, records)
	refused("no shard", func(i *ShardInfo) { i.Shard = "x-y" }, nil)
	if _, err := load(nil, records); err == nil {
		t.Error("records without a shard were loaded")
	}
	l := NewLoader()
	if err := errors.Join(l.Shard(info), l.Shard(info)); err == nil {
		t.Error("a shard was loaded twice")
	}
}

// Golden files freeze what is on disks and wires: a change to them needs a new
// format version.
func TestGolden(t *testing.T) {
	r := key(keyEU, pinEU, prjEU, "live")
	r.Key.PrevHash, r.Key.PrevUntil, r.Key.Expires = []byte("$2a$10$prev"), 7, 9
	e := &Entry{
		Shard: pinEU, Epoch: controlplane.Epoch{Counter: 2, Region: "eu-fra"}, Seq: 300, Prev: controlplane.Epoch{Counter: 1, Region: "eu-par"},
		Changes: []Change{
			open("eu-fra", "eu-fra", "eu-par"), put(r), {Op: OpDelete, Kind: KindOrg, ID: orgEU, IfRevision: 12},
			{Op: OpRevoke, Kind: KindKey, ID: keyEU, At: created, Expires: created + 1},
		},
	}
	cmd := &Command{Type: CmdAccept, Sender: e.Epoch, Entries: [][]byte{entry(t, e)}}
	encoded, err := EncodeCommand(cmd)
	if err != nil {
		t.Fatal(err)
	}
	record, err := EncodeRecord(upstream(upsUS, "openai-us", "us-east"))
	if err != nil {
		t.Fatal(err)
	}
	stage, err := EncodeCommand(&Command{Type: CmdStage, Stage: &Stage{Shard: pinEU, Snapshot: "s1", Chunk: 1, Records: [][]byte{{1}},
		Revocations: []Revocation{{Kind: KindKey, ID: keyEU, Shard: pinEU, At: 5}}}})
	if err != nil {
		t.Fatal(err)
	}
	digest := full(t).Digest(anyEast)
	for name, b := range map[string][]byte{
		"entry": entry(t, e), "command": encoded, "upstream": record, "stage": stage,
		"snapshot": snapshot(t, full(t)), "digest": digest[:],
	} {
		golden(t, name, b)
	}
	back, err := DecodeEntry(entry(t, e))
	if err != nil || !bytes.Equal(entry(t, back), entry(t, e)) {
		t.Errorf("an entry does not survive its encoding: %v", err)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name+".hex")
	if *rewrite {
		var text strings.Builder
		for line := range slices.Chunk(got, 40) {
			text.WriteString(hex.EncodeToString(line) + "\n")
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(text.String()), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: its bytes are not the frozen ones: raise the format version", name)
	}
}

func TestNewID(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	random := bytes.NewReader(bytes.Repeat([]byte{255, 0, 61, 247, 62, 10, 250, 35, 36, 1, 2, 3, 4, 5, 6, 7}, 2))
	if got, want := NewID("key", "eu", at, random), "key_eu_1xocE40zz0AZa123"; got != want {
		t.Errorf("%s, not %s", got, want)
	}
	earlier := NewID("org", "any", at.Add(-time.Second), zeros{})
	if later := NewID("org", "any", at, zeros{}); later <= earlier {
		t.Errorf("%s does not follow %s", later, earlier)
	}
	if got := NewID("ups", "", time.Unix(-5, 0), zeros{}); got != "ups_0000000000000000" {
		t.Errorf("%s", got)
	}
	for kind := KindOrg; kind < KindRegion; kind++ {
		jurisdiction := "eu"
		if kind.global() {
			jurisdiction = ""
		}
		if got, ok := parseID(kind, NewID(kind.Prefix(), jurisdiction, at, zeros{})); !ok || got != jurisdiction {
			t.Errorf("%s: a new id is malformed", kind)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a failing random source made an id")
		}
	}()
	NewID("org", "any", at, iotest.ErrReader(io.ErrUnexpectedEOF))
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
