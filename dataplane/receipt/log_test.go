package receipt

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"ringmain/controlplane/identity"
	"ringmain/dataplane/receipt/proof"
	"ringmain/internal/testkit/synckit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

var begun = time.Now()

// id is a request id of the node that these tests are, the same each time.
func id(n int) string {
	var b [30]byte
	copy(b[:], "req_")
	ms := uint64(begun.UnixMilli())
	for i := 13; i >= 4; i-- {
		b[i] = crockford[ms&31]
		ms >>= 5
	}
	copy(b[TagAt:], fmt.Sprintf("%s%012d", NodeTag("eu-fra", "eu-fra-d1"), n))
	return string(b[:])
}

func issue(t testing.TB) *identity.Issued {
	t.Helper()
	ca, err := identity.CreateCA(t.TempDir()+"/ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.IssueNode(identity.ID{Region: "eu-fra", Role: identity.RoleData, Node: "eu-fra-d1"}, nil, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return issued
}

func openLog(t testing.TB, cfg Config) *Log {
	t.Helper()
	if cfg.Cert == nil {
		issued := issue(t)
		cfg.Cert, cfg.Key, cfg.Roots = issued.Chain, issued.Key, issued.Roots
	}
	l, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func facts(requestID string) *Facts {
	return &Facts{
		RequestID: requestID, At: time.Now().UnixMilli(), Key: "key_1", Org: "org_1", Project: "prj_1", Endpoint: "/v1/chat/completions",
		Model: "sim-chat", Served: "sim-chat", EntryRegion: "eu-fra", EntryNode: "eu-fra-d1", Region: "eu-fra", Node: "eu-fra-d1",
		Pool: "standard", Retention: "metadata", Residency: "eu", Status: 200, Ended: "complete",
		Attempts:    []Attempt{{Region: "eu-fra", Node: "eu-fra-d1", Upstream: "sim-eu", Outcome: "ok"}},
		Confinement: Confinement{Landlock: 7, NoFileWrite: true, NoDump: true, NoSwap: true},
	}
}

func verify(t *testing.T, l *Log, doc []byte, bodies proof.Bodies) *proof.Verdict {
	t.Helper()
	a, err := proof.AnchorsOfKeySet(l.KeySet())
	if err != nil {
		t.Fatal(err)
	}
	v := proof.Verify(doc, a, bodies)
	if !v.Verified {
		t.Fatalf("refused: %s", v.Reason)
	}
	return v
}

func TestReceipt(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		l := openLog(t, Config{Tunables: Tunables{Every: 20 * time.Millisecond}})
		var h Hasher
		f := facts(id(1))
		h.Begin(SHA256)
		for _, part := range []string{`{"model":`, ``, `"sim-chat"}`} {
			_, _ = h.Write([]byte(part))
		}
		f.StateRequest(h.Sum())
		h.Begin(SHA256)
		_, _ = h.Write([]byte("answer"))
		f.StateResponse(h.Sum())
		leaf := l.Reserve()
		if again := l.Reserve(); leaf == again || len(leaf) > 40 {
			t.Errorf("leaf ids %q, %q", leaf, again)
		}
		l.Commit(leaf, f)
		began := time.Now()
		doc, ok := found(t, l, f.RequestID, "org_1", "another key")
		if took := time.Since(began); !ok || took > 20*time.Millisecond {
			t.Fatalf("found %v after %s", ok, took)
		}
		v := verify(t, l, doc, proof.Bodies{Request: []byte(`{"model":"sim-chat"}`), Response: []byte("answer")})
		if v.Facts.Leaf != leaf || v.Facts.RequestSalt == v.Facts.ResponseSalt || v.Facts.RequestSalt == (proof.Salt{}) {
			t.Errorf("%+v", v.Facts)
		}
		for _, who := range [][2]string{{"org_2", "key_2"}, {"", ""}, {"org_2", ""}} {
			if _, ok := found(t, l, f.RequestID, who[0], who[1]); ok {
				t.Errorf("%q was shown another org's receipt", who)
			}
		}
		if _, ok := found(t, l, f.RequestID, "", "key_1"); !ok {
			t.Error("the same key was shown nothing")
		}
		if _, ok := found(t, l, id(2), "org_1", "key_1"); ok {
			t.Error("found a receipt of no request")
		}
	})
}

func TestInline(t *testing.T) {
	l := openLog(t, Config{})
	f := facts(id(1))
	leaf := l.Reserve()
	jws, err := l.Inline(leaf, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("an inline receipt of %d bytes", len(jws))
	if v := verify(t, l, []byte(jws), proof.Bodies{}); v.Facts.Leaf != leaf {
		t.Errorf("%+v", v.Facts)
	}
	f.Model = strings.Repeat("m", 1000)
	if _, err := l.Inline(leaf, f); !errors.Is(err, ErrTooLong) {
		t.Errorf("too long for a header: %v", err)
	}
}

// keeper is the other side of Config.Keep.
type keeper struct {
	mu     sync.Mutex
	log    *Log
	refuse bool
	silent bool
	got    []*proof.Batch
}

func (k *keeper) keep(number uint64, b []byte) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse {
		return false
	}
	batch, err := proof.ParseBatch(b)
	if err != nil || batch.Number != number {
		panic(err)
	}
	k.got = append(k.got, batch)
	if !k.silent && k.log != nil {
		go k.log.Acked(number)
	}
	return true
}

func (k *keeper) numbers() (n []uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range k.got {
		n = append(n, b.Number)
	}
	return n
}

// found asks as a client in the node's own jurisdiction.
func found(t *testing.T, l *Log, requestID, org, key string) ([]byte, bool) {
	t.Helper()
	doc, err := l.Within(t.Context(), requestID, org, key, "")
	return doc, doc != nil && err == nil
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("waited in vain:", what)
		}
	}
}

// Checkpoints are numbered and each points at the one before.
func TestCheckpointsAreChained(t *testing.T) {
	k := new(keeper)
	l := openLog(t, Config{Keep: k.keep, Tunables: Tunables{Every: 5 * time.Millisecond}})
	k.mu.Lock()
	k.log = l
	k.mu.Unlock()
	var ids []string
	for n := range 4 {
		ids = append(ids, id(n))
		l.Commit(l.Reserve(), facts(ids[n]))
		until(t, "a checkpoint", func() bool { return len(k.numbers()) == n+1 })
	}
	previous := proof.Hash{}
	for i, b := range k.got {
		if b.Number != uint64(i+1) {
			t.Errorf("batch %d has number %d", i, b.Number)
		}
		if got := pointsBack(t, b.Find(ids[i])); got != previous {
			t.Errorf("checkpoint %d points at %x, want %x", b.Number, got, previous)
		}
		previous = b.Chained()
	}
}

func pointsBack(t *testing.T, e *proof.Entry) proof.Hash {
	t.Helper()
	if e == nil {
		t.Fatal("no entry")
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(e.Checkpoint, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var point struct {
		Previous proof.Hash `json:"previous"`
	}
	if err := json.Unmarshal(payload, &point); err != nil {
		t.Fatal(err)
	}
	return point.Previous
}

// What the keeper did not take, or did not write, is offered again, in order.
func TestOfferedUntilOnDisk(t *testing.T) {
	k := &keeper{refuse: true, silent: true}
	l := openLog(t, Config{Keep: k.keep, Tunables: Tunables{Every: 5 * time.Millisecond}})
	l.Commit(l.Reserve(), facts(id(1)))
	until(t, "a signature", func() bool { return l.stats.checkpoints.Load() == 1 })
	k.mu.Lock()
	k.refuse = false
	k.mu.Unlock()
	until(t, "the keeper to be offered it again", func() bool { return len(k.numbers()) == 1 })
	l.Again() // another keeper, before the first wrote it
	until(t, "the next keeper to be offered it", func() bool { return len(k.numbers()) == 2 })
	l.Acked(1)
	l.Again()
	l.Commit(l.Reserve(), facts(id(2)))
	until(t, "the second batch", func() bool { n := k.numbers(); return n[len(n)-1] == 2 })
	if n := k.numbers(); fmt.Sprint(n) != "[1 1 2]" {
		t.Errorf("offered %v", n)
	}
	l.Acked(2)
}

// Memory is bounded; what left it is asked from the keeper.
func TestMemoryIsBounded(t *testing.T) {
	k := new(keeper)
	asked := 0
	registry := prometheus.NewRegistry()
	l := openLog(t, Config{
		Keep: k.keep, Registerer: registry, Tunables: Tunables{Every: 2 * time.Millisecond, Memory: 20 << 10},
		Ask: func(_ context.Context, requestID string) ([]byte, error) {
			if requestID == proof.AskFormer {
				return nil, errors.New("no keeper")
			}
			asked++
			k.mu.Lock()
			defer k.mu.Unlock()
			for _, b := range k.got {
				if e := b.Find(requestID); e != nil {
					return e.Encode()
				}
			}
			return nil, nil
		},
	})
	k.mu.Lock()
	k.log = l
	k.mu.Unlock()
	first := id(0)
	l.Commit(l.Reserve(), facts(first))
	for n := 1; n < 20; n++ {
		l.Commit(l.Reserve(), facts(id(n)))
		until(t, "a checkpoint", func() bool { return len(k.numbers()) >= n })
	}
	l.mu.Lock()
	memory := l.memory
	l.mu.Unlock()
	if memory > 20<<10 {
		t.Errorf("%d bytes in memory", memory)
	}
	doc, ok := found(t, l, first, "org_1", "")
	if !ok || asked != 1 {
		t.Fatalf("found %v, asked %d times", ok, asked)
	}
	verify(t, l, doc, proof.Bodies{})
	if _, ok := found(t, l, id(999), "org_1", ""); ok {
		t.Error("found what is nowhere")
	}
}

// What waits for a checkpoint that does not come is not said to be nowhere.
func TestNotSignedYetIsNotNone(t *testing.T) {
	asked := 0
	l := openLog(t, Config{Tunables: Tunables{Every: time.Hour}, Ask: func(_ context.Context, requestID string) ([]byte, error) {
		if requestID != proof.AskFormer {
			asked++
		}
		return nil, nil
	}})
	l.Commit(l.Reserve(), facts(id(1)))
	if doc, err := l.Within(t.Context(), id(1), "org_1", "", ""); doc != nil || !errors.Is(err, errNotSigned) || asked != 0 {
		t.Errorf("%s, %v; the keeper was asked %d times", doc, err, asked)
	}
	if doc, err := l.Within(t.Context(), id(2), "org_1", "", ""); doc != nil || err != nil || asked != 1 {
		t.Errorf("%s, %v; the keeper was asked %d times", doc, err, asked)
	}
}

func TestOldBatchesLeaveMemory(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	l := openLog(t, Config{Now: clock, Tunables: Tunables{Every: 2 * time.Millisecond}})
	request := id(1)
	l.Commit(l.Reserve(), facts(request))
	if _, ok := found(t, l, request, "org_1", ""); !ok {
		t.Fatal("not found")
	}
	mu.Lock()
	now = now.Add(11 * time.Minute)
	mu.Unlock()
	until(t, "it to be forgotten", func() bool { _, ok := found(t, l, request, "org_1", ""); return !ok })
	if lost := l.stats.lost.Load(); lost != 1 {
		t.Errorf("%d counted as never kept, want 1: there was no keeper", lost)
	}
}

// Commit never waits: what cannot be signed in time is dropped and counted.
func TestOverload(t *testing.T) {
	l := openLog(t, Config{Tunables: Tunables{Every: time.Hour, Batch: 4 << 10}})
	l.mu.Lock() // the signing goroutine stands still
	for range maxWaiting {
		l.waiting = append(l.waiting, &pending{})
	}
	l.open.leaves = make([]byte, 4<<10)
	waiting := l.waiting
	l.waiting = append([]*pending(nil), waiting...)
	l.mu.Unlock()
	l.Commit(l.Reserve(), facts(id(1)))
	if n := l.stats.dropped.Load(); n != 1 {
		t.Errorf("%d dropped", n)
	}
	l.mu.Lock()
	l.waiting, l.open = nil, new(pending)
	l.mu.Unlock()
	big := facts(id(2))
	big.Model = strings.Repeat("m", proof.MaxLeaf)
	l.Commit(l.Reserve(), big)
	if n := l.stats.dropped.Load(); n != 2 {
		t.Errorf("%d dropped", n)
	}
}

// A full batch does not wait for the second to end.
func TestFullBatchIsSignedAtOnce(t *testing.T) {
	l := openLog(t, Config{Tunables: Tunables{Every: time.Hour, Batch: 4 << 10}})
	var all sync.WaitGroup
	for n := range 100 {
		all.Go(func() { l.Commit(l.Reserve(), facts(id(n))) })
	}
	all.Wait()
	until(t, "checkpoints", func() bool { return l.stats.checkpoints.Load() >= 5 })
	if n := l.stats.dropped.Load(); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

// Close signs what is left, and hands it over.
func TestClose(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		k := new(keeper)
		l := openLog(t, Config{Keep: k.keep, Tunables: Tunables{Every: time.Hour}})
		k.mu.Lock()
		k.log = l
		k.mu.Unlock()
		l.Commit(l.Reserve(), facts(id(1)))
		began := time.Now()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if n, took := k.numbers(), time.Since(began); len(n) != 1 || took > 10*time.Millisecond {
			t.Errorf("batches %v after %s", n, took)
		}
		l.Commit(l.Reserve(), facts(id(2)))
		if n := l.stats.dropped.Load(); n != 1 {
			t.Errorf("%d dropped after Close", n)
		}
	})
}

// The keys of workers before this one are asked from each keeper.
func TestFormerKeys(t *testing.T) {
	issued := issue(t)
	cfg := Config{Cert: issued.Chain, Key: issued.Key, Roots: issued.Roots, Tunables: Tunables{Every: time.Hour}}
	k := new(keeper)
	cfg.Keep = k.keep
	first := openLog(t, cfg)
	first.Commit(first.Reserve(), facts(id(1)))
	jws, err := first.Inline(first.Reserve(), facts(id(2)))
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	away := true
	cfg.Ask = func(_ context.Context, what string) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if away || what != proof.AskFormer {
			return nil, errors.New("no keeper")
		}
		return proof.EncodeDelegations([]string{k.got[0].Delegation})
	}
	second := openLog(t, cfg)
	mu.Lock()
	away = false
	mu.Unlock()
	second.Again()
	until(t, "the former key", func() bool {
		a, err := proof.AnchorsOfKeySet(second.KeySet())
		return err == nil && proof.Verify([]byte(jws), a, proof.Bodies{}).Verified
	})
}

func TestPeers(t *testing.T) {
	l := openLog(t, Config{Tunables: Tunables{Every: 10 * time.Millisecond}})
	request := id(1)
	l.Commit(l.Reserve(), facts(request))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { l.ServePeer(rw, r, "eu") }))
	defer server.Close()
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	doc, err := AskPeer(t.Context(), transport, server.URL, request, "org_1", "key_9")
	if err != nil {
		t.Fatal(err)
	}
	verify(t, l, doc, proof.Bodies{})
	for what, ask := range map[string][3]string{
		"another org": {request, "org_2", "key_9"}, "nobody": {request, "", ""}, "no such": {id(7), "org_1", ""}, "no id": {"../x", "org_1", ""},
	} {
		if doc, err := AskPeer(t.Context(), transport, server.URL, ask[0], ask[1], ask[2]); doc != nil || err != nil {
			t.Errorf("%s: %q, %v", what, doc, err)
		}
	}
	server.Close()
	if _, err := AskPeer(t.Context(), transport, server.URL, request, "org_1", ""); err == nil {
		t.Error("no peer, no error")
	}
}

func TestOpenNeedsACertificate(t *testing.T) {
	issued := issue(t)
	if _, err := Open(t.Context(), Config{Cert: issued.Chain, Key: issued.Key, Roots: issue(t).Roots}); err == nil {
		t.Error("a certificate under another root was taken")
	}
}

func BenchmarkCommit(b *testing.B) {
	l := openLog(b, Config{})
	f := facts(id(1))
	b.ReportAllocs()
	for b.Loop() {
		l.Commit(l.Reserve(), f)
	}
}

// BenchmarkAnswer is all that a plain answer of 1 KiB costs on its way.
func BenchmarkAnswer(b *testing.B) {
	l := openLog(b, Config{})
	f := facts(id(1))
	var request, response Hasher
	body := make([]byte, 1<<10)
	b.ReportAllocs()
	for b.Loop() {
		leaf := l.Reserve()
		request.Begin(SHA256)
		_, _ = request.Write(body)
		f.StateRequest(request.Sum())
		response.Begin(SHA256)
		_, _ = response.Write(body)
		f.StateResponse(response.Sum())
		l.Commit(leaf, f)
	}
}
