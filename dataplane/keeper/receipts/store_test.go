package receipts

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane/identity"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/receipt/proof"
	"ringmain/internal/testkit/diskkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type rig struct {
	t       testing.TB
	cfg     Config
	signer  *proof.Signer
	anchors *proof.Anchors
	log     *bytes.Buffer
	number  uint64

	mu    sync.Mutex
	now   time.Time
	acked []uint64
}

func newRig(t testing.TB) *rig {
	t.Helper()
	ca, err := identity.CreateCA(t.TempDir()+"/ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.IssueNode(identity.ID{Region: "eu-fra", Role: identity.RoleData, Node: "eu-fra-d1"}, nil, 300*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, log: new(bytes.Buffer), now: time.Now()}
	if r.signer, err = proof.NewSigner(issued.Chain, issued.Key, issued.Roots); err != nil {
		t.Fatal(err)
	}
	if r.anchors, err = proof.AnchorsOfPEM(issued.Roots); err != nil {
		t.Fatal(err)
	}
	r.cfg = Config{
		Dir: t.TempDir(), Name: "test/eu-fra-d1", Sealer: diskkit.Sealer(t), Now: r.clock, Logger: slog.New(slog.NewTextHandler(r.log, nil)),
		Acked: func(_, number uint64) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.acked = append(r.acked, number)
		},
	}
	return r
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *rig) pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
}

func (r *rig) open() *Store {
	r.t.Helper()
	s, err := Open(r.t.Context(), r.cfg)
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

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

func requestID(at time.Time, n int) string {
	var b [30]byte
	copy(b[:], "req_")
	ms := uint64(at.UnixMilli())
	for i := 13; i >= 4; i-- {
		b[i] = crockford[ms&31]
		ms >>= 5
	}
	copy(b[proof.TagAt:], fmt.Sprintf("%s%012d", proof.NodeTag("eu-fra", "eu-fra-d1"), n))
	return string(b[:])
}

// batch signs receipts of n requests, and returns their ids.
func (r *rig) batch(n int) (raw []byte, ids []string) {
	r.t.Helper()
	r.number++
	now := r.clock()
	var leaves []byte
	var ends []uint32
	var keys []uint64
	for i := range n {
		id := requestID(now, int(r.number)*10_000+i)
		ids = append(ids, id)
		leaves = proof.AppendLeaf(leaves, &proof.Facts{
			Leaf: proof.LeafPrefix(r.signer.Key()) + "1", RequestID: id, At: now.UnixMilli(), Org: "org_1",
			EntryRegion: "eu-fra", EntryNode: "eu-fra-d1", Model: "sim-chat", Status: 200,
		})
		ends = append(ends, uint32(len(leaves)))
		keys = append(keys, proof.RequestKey(id))
	}
	previous := proof.Hash{}
	if r.number > 1 {
		previous[0] = 1
	}
	b, err := proof.Seal(r.signer, r.number, previous, now, leaves, ends, keys)
	if err != nil {
		r.t.Fatal(err)
	}
	if raw, err = b.Encode(); err != nil {
		r.t.Fatal(err)
	}
	return raw, ids
}

// put hands a batch over and waits until it is on the medium.
func (r *rig) put(s *Store, n int) []string {
	r.t.Helper()
	raw, ids := r.batch(n)
	s.Put(7, r.number, raw)
	r.until("an acknowledgement", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.acked) > 0 && r.acked[len(r.acked)-1] == r.number
	})
	return ids
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for start := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			r.t.Fatalf("waited in vain: %s\n%s", what, r.log)
		}
	}
}

// found checks the receipt of each id end to end.
func (r *rig) found(s *Store, ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		b, err := s.Find(id)
		if err != nil || b == nil {
			r.t.Fatalf("%s: %d bytes, %v", id, len(b), err)
		}
		e, err := proof.DecodeEntry(b)
		if err != nil {
			r.t.Fatal(err)
		}
		doc, err := e.Document()
		if err != nil {
			r.t.Fatal(err)
		}
		if v := proof.Verify(doc, r.anchors, proof.Bodies{}); !v.Verified || v.Facts.RequestID != id {
			r.t.Fatalf("%s: %s", id, v.Reason)
		}
	}
}

func (r *rig) lost(s *Store, ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		if b, err := s.Find(id); b != nil || err != nil {
			r.t.Fatalf("%s: %d bytes, %v", id, len(b), err)
		}
	}
}

// segments are the files of batches, oldest first.
func (r *rig) segments() (paths []string) { return r.glob("*" + batchSuffix) }

func (r *rig) glob(pattern string) (paths []string) {
	r.t.Helper()
	paths, err := filepath.Glob(filepath.Join(r.cfg.Dir, "receipts", pattern))
	if err != nil {
		r.t.Fatal(err)
	}
	return paths
}

func TestKeepAndFind(t *testing.T) {
	r := newRig(t)
	s := r.open()
	var ids []string
	for _, n := range []int{1, 2, 300, 5} {
		ids = append(ids, r.put(s, n)...)
	}
	r.found(s, ids...)
	r.lost(s, requestID(r.clock(), 99), "", "req_x", strings.ToLower(ids[0]))
	if st := s.Stats(); st.Batches != 4 || st.Waiting != 0 || st.Damaged != 0 || st.Failing != nil || st.Bytes == 0 {
		t.Errorf("%+v", st)
	}
	r.close(s)

	s = r.open() // another keeper
	r.found(s, ids...)
	if d := s.Delegations(); len(d) != 1 {
		t.Errorf("%d delegations", len(d))
	}
	more := r.put(s, 3)
	r.found(s, append(more, ids...)...)
	if n := len(r.segments()); n != 2 {
		t.Errorf("%d segments: a segment of a former run may not be appended to", n)
	}
	r.close(s)
}

// The delegation is in the file once, not with each batch.
func TestBatchesAreSmall(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.put(s, 1)
	before := s.Stats().Bytes
	for range 10 {
		r.put(s, 1)
	}
	each := (s.Stats().Bytes - before) / 10
	t.Logf("%d bytes for a batch of one receipt", each)
	if each > 1100 {
		t.Errorf("%d bytes for a batch of one receipt", each)
	}
	r.close(s)
}

// Nothing of what is kept can be read off the disk.
func TestSealed(t *testing.T) {
	r := newRig(t)
	s := r.open()
	ids := r.put(s, 3)
	r.close(s)
	for _, path := range r.glob("*") {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{ids[0], "org_1", "sim-chat", "eu-fra", r.signer.Key()} {
			if bytes.Contains(b, []byte(word)) {
				t.Errorf("%s holds %q", path, word)
			}
		}
	}
}

func TestBounds(t *testing.T) {
	r := newRig(t)
	r.cfg.Total, r.cfg.Segment = 64<<10, 8<<10
	s := r.open()
	first := r.put(s, 1)
	var last []string
	for range 200 {
		last = r.put(s, 1)
	}
	r.found(s, last...)
	r.lost(s, first...)
	total := int64(0)
	for _, path := range r.glob("*") {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > 64<<10 || total != s.Stats().Bytes {
		t.Errorf("%d bytes on disk, %d by its own count", total, s.Stats().Bytes)
	}
	r.close(s)
}

func TestAge(t *testing.T) {
	r := newRig(t)
	s := r.open()
	old := r.put(s, 2)
	r.pass(23 * time.Hour) // another segment: the first spans an hour at most
	r.found(s, old...)
	young := r.put(s, 2)
	r.pass(2 * time.Hour)
	r.put(s, 1)
	r.lost(s, old...)
	r.found(s, young...)
	r.close(s)
	r.pass(48 * time.Hour)
	s = r.open()
	r.lost(s, young...)
	if files := r.glob("*"); len(files) != 0 {
		t.Errorf("left: %v", files)
	}
	r.close(s)
}

// A tail that merely ends is how a kill looks: no damage, and what was
// acknowledged before it is there.
func TestTornTail(t *testing.T) {
	r := newRig(t)
	s := r.open()
	ids := r.put(s, 3)
	whole := s.Stats().Bytes
	torn := r.put(s, 3)
	r.close(s)
	path := r.segments()[0]
	full, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int64{0, 3, 40, whole, whole + 1, whole + 7, (whole + int64(len(full))) / 2, int64(len(full)) - 1} {
		if err := os.WriteFile(path, full[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		s := r.open()
		if cut >= whole {
			r.found(s, ids...)
		}
		r.lost(s, torn...)
		if d := s.Stats().Damaged; d != 0 {
			t.Errorf("cut at %d of %d: %d damaged", cut, len(full), d)
		}
		r.close(s)
	}
	if err := os.WriteFile(path, append(full, make([]byte, 4096)...), 0o600); err != nil { // the file had grown
		t.Fatal(err)
	}
	s = r.open()
	r.found(s, append(ids, torn...)...)
	if d := s.Stats().Damaged; d != 0 {
		t.Errorf("zeros at the end: %d damaged", d)
	}
	r.close(s)
}

// damages are how a segment that cannot be read shows.
func damages(err error) bool {
	for _, known := range []error{seal.ErrTampered, seal.ErrTruncated, seal.ErrNotSealed, seal.ErrUnknownKey, seal.ErrUnsupported} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// Any flipped bit: what it touches is refused and counted, never shown, and
// what was written to other segments stays. So it is where the index was made
// before, and where it has to be made of what is damaged.
func TestFlippedBits(t *testing.T) {
	r := newRig(t)
	s := r.open()
	ids := r.put(s, 1)
	ids = append(ids, r.put(s, 1)...)
	r.close(s)
	s = r.open()
	safe := r.put(s, 1)
	r.close(s)
	path := r.segments()[0]
	full, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	index := r.glob("*" + indexSuffix)[0]
	whole, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(full); at += 13 {
		damaged := bytes.Clone(full)
		damaged[at] ^= 1 << (at % 8)
		indexed := at/13%2 == 0
		err := errors.Join(os.WriteFile(path, damaged, 0o600), os.WriteFile(index, whole, 0o600))
		if !indexed {
			err = errors.Join(err, os.Remove(index))
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), r.cfg)
		if !indexed && (errors.Is(err, seal.ErrUnknownKey) || errors.Is(err, seal.ErrUnsupported)) {
			continue // the bit says whose key it is, or which version
		}
		if err != nil {
			t.Fatal(err)
		}
		r.found(s, safe...)
		lost := 0
		for _, id := range ids {
			b, err := s.Find(id)
			if err != nil && !damages(err) {
				t.Fatalf("byte %d: %v", at, err)
			}
			if b == nil {
				lost++
				continue
			}
			r.found(s, id)
		}
		if lost == 0 || s.Stats().Damaged == 0 && (indexed || lost < 2 && at < len(full)/2) {
			t.Errorf("byte %d of %d, index %v: %d receipts lost, %d damaged", at, len(full), indexed, lost, s.Stats().Damaged)
		}
		r.close(s)
	}
}

func TestMovedFramesAreRefused(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.put(s, 1)
	from := s.Stats().Bytes
	ids := r.put(s, 1)
	to := s.Stats().Bytes
	ids = append(ids, r.put(s, 1)...)
	end := s.Stats().Bytes
	if end-to != to-from {
		t.Skipf("batches of %d and %d bytes", to-from, end-to)
	}
	r.close(s)
	path := r.segments()[0]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	swapped := append(append(bytes.Clone(b[:from]), b[to:end]...), b[from:to]...)
	if err := os.WriteFile(path, swapped, 0o600); err != nil {
		t.Fatal(err)
	}
	s = r.open()
	for _, id := range ids {
		if b, err := s.Find(id); b != nil || !errors.Is(err, seal.ErrTampered) {
			t.Errorf("%s: %d bytes, %v", id, len(b), err)
		}
	}
	r.close(s)
	if err := os.Remove(r.glob("*" + indexSuffix)[0]); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time the index that was made of it says so
		s = r.open()
		r.lost(s, ids...)
		if d := s.Stats().Damaged; d != 2 {
			t.Errorf("%d damaged", d)
		}
		r.close(s)
	}
}

func TestAnotherKeyIsNoDamage(t *testing.T) {
	r := newRig(t)
	s := r.open()
	ids := r.put(s, 1)
	r.close(s)
	right := r.cfg.Sealer
	r.cfg.Sealer = diskkit.Sealer(t)
	if _, err := Open(t.Context(), r.cfg); !errors.Is(err, seal.ErrUnknownKey) {
		t.Fatalf("under another key: %v", err)
	}
	r.cfg.Sealer = right
	s = r.open()
	r.found(s, ids...)
	r.close(s)
}

// A disk that takes nothing costs what finds no room in memory, no more, and
// is named once.
func TestDiskFails(t *testing.T) {
	r := newRig(t)
	r.cfg.Pending = 16 << 10
	s := r.open()
	first := r.put(s, 1)
	dir := filepath.Join(r.cfg.Dir, "receipts")
	away := filepath.Join(r.cfg.Dir, "away")
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	s.end() // as after a failed sync: the next batch needs a new segment
	raw, ids := r.batch(1)
	s.Put(7, r.number, raw)
	r.until("the failure", func() bool { return s.Stats().Failing != nil })
	for range 20 {
		raw, _ := r.batch(1)
		s.Put(7, r.number, raw)
	}
	if w := s.Stats().Waiting; w > 16<<10 || w == 0 {
		t.Errorf("%d bytes wait", w)
	}
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	r.until("recovery", func() bool { st := s.Stats(); return st.Failing == nil && st.Waiting == 0 })
	r.found(s, append(first, ids...)...)
	r.close(s)
	if n := strings.Count(r.log.String(), "receipts cannot be written"); n != 1 {
		t.Errorf("named %d times:\n%s", n, r.log)
	}
}

func TestGarbageFromAWorkerIsDropped(t *testing.T) {
	r := newRig(t)
	s := r.open()
	s.Put(7, 1, []byte("no batch"))
	r.number = 1
	r.found(s, r.put(s, 1)...)
	r.close(s)
}

func BenchmarkPut1000(b *testing.B) {
	r := newRig(b)
	s := r.open()
	defer r.close(s)
	raw, _ := r.batch(1000)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		p, err := proof.ParseBatch(raw)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.append(p); err != nil {
			b.Fatal(err)
		}
	}
}
