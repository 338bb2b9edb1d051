package caller

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ringmain/controlplane"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/view"
)

// cheapHash is apikey.Hash at bcrypt's least cost, for tests under the race
// detector. Matching takes the cost from the hash.
func cheapHash(whole controlplane.Secret) ([]byte, error) {
	sum := sha256.Sum256([]byte(whole.Reveal()))
	return bcrypt.GenerateFromPassword([]byte(base64.StdEncoding.EncodeToString(sum[:])), bcrypt.MinCost)
}

// bench is a store with one org, project and key, and a clock.
type bench struct {
	t        *testing.T
	store    *view.Store
	now      atomic.Int64
	whole    string
	parsed   apikey.Parsed
	key      registry.Key
	revision uint64
	counted  sync.Map
	emitted  []feed.Verdict
	checker  *Checker
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t}
	b.now.Store(time.Now().UnixMilli())
	b.store = view.New(view.Config{})
	whole, parsed, err := apikey.New("live", "any", time.Now().Add(-time.Hour), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.whole, b.parsed = whole.Reveal(), parsed
	hash, err := cheapHash(whole)
	if err != nil {
		t.Fatal(err)
	}
	b.key = registry.Key{Project: "prj_1", Class: "live", Hash: hash}
	b.put()
	b.checker = New(Config{
		Store: b.store, Jurisdiction: "us", VerdictSecret: []byte("a secret of the test, long enough"),
		Now: func() time.Time { return time.UnixMilli(b.now.Load()) },
		Counted: func(result string) {
			n, _ := b.counted.LoadOrStore(result, new(atomic.Int64))
			n.(*atomic.Int64).Add(1)
		},
		Emit: func(v feed.Verdict) { b.emitted = append(b.emitted, v) },
	})
	return b
}

// put gives the store the records anew, at a higher revision.
func (b *bench) put() {
	b.t.Helper()
	b.revision++
	const shard = controlplane.Shard("any-us-east")
	m := func(id string) registry.Meta {
		return registry.Meta{ID: id, Shard: shard, Revision: b.revision, Updated: time.Now().UnixMilli()}
	}
	key := b.key
	frames := []*feed.Frame{{Type: feed.FrameReset, Shard: shard}}
	for _, rec := range []*registry.Record{
		{Kind: registry.KindOrg, Meta: m("org_1"), Org: &registry.Org{Jurisdiction: "any", State: "verified"}},
		{Kind: registry.KindProject, Meta: m("prj_1"), Project: &registry.Project{Org: "org_1"}},
		{Kind: registry.KindKey, Meta: m(b.parsed.RecordID()), Key: &key},
	} {
		e, err := registry.EncodeRecord(rec)
		if err != nil {
			b.t.Fatal(err)
		}
		frames = append(frames, &feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: e})
	}
	frames = append(frames, &feed.Frame{Type: feed.FrameEnd, Shard: shard, Point: controlplane.Point{Epoch: controlplane.Epoch{Counter: 1}, Seq: b.revision}})
	for _, f := range frames {
		if err := b.store.Apply(f); err != nil {
			b.t.Fatal(err)
		}
	}
	b.store.SetLoaded(false)
}

func (b *bench) check(key string) string {
	_, refused := b.checker.Check(b.store.View(), key, "192.0.2.1:999")
	if refused == nil {
		return ""
	}
	return refused.Code
}

func (b *bench) hashes() (good, bad int64) {
	n := func(name string) int64 {
		if v, ok := b.counted.Load(name); ok {
			return v.(*atomic.Int64).Load()
		}
		return 0
	}
	return n("good"), n("bad")
}

func (b *bench) want(key, code string, good, bad int64) {
	b.t.Helper()
	if got := b.check(key); got != code {
		b.t.Errorf("got %q, want %q", got, code)
	}
	if g, w := b.hashes(); g != good || w != bad {
		b.t.Errorf("%d good and %d bad hashes, want %d and %d", g, w, good, bad)
	}
}

func (b *bench) another() string {
	b.t.Helper()
	s, err := apikey.NewSecretFor(b.parsed, rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	return s.Reveal()
}

func TestVerdictLife(t *testing.T) {
	b := newBench(t)
	b.want(b.whole, "", 1, 0)
	b.want(b.whole, "", 1, 0)
	if len(b.emitted) != 1 {
		t.Fatalf("%d verdicts told", len(b.emitted))
	}
	if want := apikey.Verdict(b.checker.keys.Load().current, b.whole); b.emitted[0].MAC != want || b.emitted[0].Revision != 1 {
		t.Error("not the verdict that apikey makes")
	}
	// The next day the verdict holds under the previous key, and is made anew;
	// a day later the one made anew holds.
	for day := range 3 {
		b.now.Add(24 * time.Hour.Milliseconds())
		b.want(b.whole, "", 1, 0)
		if len(b.emitted) != 2+day {
			t.Errorf("day %d: %d verdicts told", day, len(b.emitted))
		}
	}
	// After two days without use it is forgotten.
	b.now.Add(48 * time.Hour.Milliseconds())
	b.want(b.whole, "", 2, 0)
	// A record that changed invalidates it.
	b.put()
	b.want(b.whole, "", 3, 0)
}

func TestWrongSecretsAreHashedOnce(t *testing.T) {
	b := newBench(t)
	wrong := b.another()
	for range 5 {
		b.want(wrong, "invalid_api_key", 0, 1)
	}
	// Distinct guesses run into the budget of this source, and only of it.
	burst := int64(first[0].burst)
	for range burst - 1 {
		b.check(b.another())
	}
	b.want(b.another(), "rate_limit_exceeded", 0, burst)
	if _, refused := b.checker.Check(b.store.View(), b.another(), "198.51.100.7:1"); refused == nil || refused.Code != "invalid_api_key" {
		t.Errorf("another source: %v", refused)
	}
	b.now.Add(first[0].every.Milliseconds())
	if got := b.check(b.another()); got != "invalid_api_key" {
		t.Errorf("the budget does not come back: %q", got)
	}
}

func TestRotation(t *testing.T) {
	b := newBench(t)
	b.want(b.whole, "", 1, 0)
	old, fresh := b.whole, b.another()
	hash, err := cheapHash(controlplane.NewSecret(fresh))
	if err != nil {
		t.Fatal(err)
	}
	b.key.PrevHash, b.key.Hash = b.key.Hash, hash
	b.key.PrevUntil = b.now.Load() + 60_000
	b.put()
	b.want(fresh, "", 2, 0)
	b.want(old, "", 3, 0)
	b.want(old, "", 3, 0) // remembered here, told to nobody: it ends at PrevUntil
	b.want(fresh, "", 3, 0)
	if len(b.emitted) != 2 {
		t.Errorf("%d verdicts told", len(b.emitted))
	}
	b.now.Store(b.key.PrevUntil)
	b.want(old, "invalid_api_key", 3, 1)
	b.want(fresh, "", 3, 1)
}

func TestOneHashForAllWhoWait(t *testing.T) {
	b := newBench(t)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if got := b.check(b.whole); got != "" {
				t.Errorf("%q", got)
			}
		})
	}
	all.Wait()
	if good, _ := b.hashes(); good != 1 {
		t.Errorf("%d hashes", good)
	}
}

// TestOneHashForWhoLookedTooSoon: who found no verdict, and comes to the hash
// when that of another is over, does not hash again.
func TestOneHashForWhoLookedTooSoon(t *testing.T) {
	b := newBench(t)
	ref, _ := b.store.View().Key(b.parsed.RecordID())
	now := time.UnixMilli(b.now.Load())
	mac := b.checker.verdictKeys(now).verdict(b.whole)
	for range 2 {
		if refused := b.checker.hash(&ref, b.whole, "192.0.2.1:999", mac, false, now); refused != nil {
			t.Errorf("%+v", refused)
		}
	}
	if good, _ := b.hashes(); good != 1 {
		t.Errorf("%d hashes", good)
	}
}

func TestQueueIsBounded(t *testing.T) {
	b := newBench(t)
	b.checker = New(Config{Store: b.store, Jurisdiction: "us", VerdictSecret: []byte("a secret of the test, long enough"), Workers: 1, Queue: 1})
	b.checker.slow.slots <- struct{}{} // the one worker is busy
	var busy atomic.Int64
	var all sync.WaitGroup
	for range 5 {
		key := b.another()
		all.Go(func() {
			if _, refused := b.checker.Check(b.store.View(), key, "192.0.2.1:1"); refused != nil && refused.Code == "capacity_shed" {
				busy.Add(1)
			}
		})
	}
	for end := time.Now().Add(10 * time.Second); busy.Load() < 3 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	<-b.checker.slow.slots
	all.Wait()
	if busy.Load() != 3 { // two wait: one for the worker, one in the queue
		t.Errorf("%d of 5 were turned away, want 3", busy.Load())
	}
}

func TestKnown(t *testing.T) {
	b := newBench(t)
	id := b.parsed.RecordID()
	if who, refused, behind := b.checker.Known(b.store.View(), id); refused != nil || behind || who.Key.ID != id || who.Org.Meta.ID != "org_1" {
		t.Errorf("%v %t", refused, behind)
	}
	if _, refused, behind := b.checker.Known(b.store.View(), "key_any_0000000000000000"); !behind || refused == nil {
		t.Error("an unknown key of a peer's is our lag")
	}
	b.key.Revoked = 1
	b.put()
	if _, refused, behind := b.checker.Known(b.store.View(), id); behind || refused == nil || refused.Code != "invalid_api_key" {
		t.Errorf("%v %t", refused, behind)
	}
	if _, refused, behind := b.checker.Known(view.New(view.Config{}).View(), id); !behind || refused == nil {
		t.Error("no state yet")
	}
}

func TestPresented(t *testing.T) {
	for _, c := range []struct {
		auth, other []string
		key, code   string
	}{
		{nil, nil, "", ""},
		{[]string{"Bearer k"}, nil, "k", ""},
		{[]string{"bearer  k "}, nil, "k", ""},
		{nil, []string{"k"}, "k", ""},
		{[]string{"Bearer k"}, []string{"k"}, "k", ""},
		{[]string{"Basic k"}, nil, "", ""},
		{[]string{"Bearer k"}, []string{"l"}, "", "invalid_header"},
		{[]string{"Bearer k", "Bearer k"}, nil, "", "invalid_header"},
		{nil, []string{"k", "k"}, "", "invalid_header"},
		{[]string{"Basic k"}, []string{"k"}, "", "invalid_header"},
	} {
		h := http.Header{}
		if c.auth != nil {
			h["Authorization"] = c.auth
		}
		if c.other != nil {
			h["X-Api-Key"] = c.other
		}
		key, refused := Presented(h)
		if key != c.key || (refused == nil) != (c.code == "") || refused != nil && refused.Code != c.code {
			t.Errorf("%v: %q %v", h, key, refused)
		}
	}
}

func TestSource(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1", "[2001:db8:1:2:3::4]:5": "2001:db8:1:2::/64", "[::ffff:192.0.2.1]:5": "192.0.2.1", "odd": "odd", "host:1": "host",
	} {
		if got := source(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestTablesAreBounded(t *testing.T) {
	m := map[int]bool{}
	for i := range maxEntries * 3 {
		evict(m, func(over bool) bool { return over })
		m[i] = i%2 == 0
	}
	if len(m) > maxEntries {
		t.Errorf("%d entries", len(m))
	}
}

func TestRefusalsHoldNoKey(t *testing.T) {
	b := newBench(t)
	_, refused := b.checker.Check(b.store.View(), b.another(), "192.0.2.1:1")
	if refused == nil || strings.Contains(fmt.Sprint(*refused), "idc_live") {
		t.Errorf("%v", refused)
	}
}

func BenchmarkCheck(b *testing.B) {
	x := newBench(&testing.T{})
	if got := x.check(x.whole); got != "" {
		b.Fatal(got)
	}
	v := x.store.View()
	b.ReportAllocs()
	for b.Loop() {
		if _, refused := x.checker.Check(v, x.whole, "192.0.2.1:1"); refused != nil {
			b.Fatal(refused)
		}
	}
}

// TestFlightsOfTwoRevisions: whoever waits for a hash of the former revision
// does not learn from it that the secret still holds.
func TestFlightsOfTwoRevisions(t *testing.T) {
	b := newBench(t)
	b.checker = New(Config{Store: b.store, Jurisdiction: "us", VerdictSecret: []byte("a secret of the test, long enough"), Workers: 1})
	b.checker.slow.slots <- struct{}{} // the one worker is busy
	before, old := b.store.View(), b.whole
	var all sync.WaitGroup
	check := func(v *view.View, want string) {
		all.Go(func() {
			_, refused := b.checker.Check(v, old, "192.0.2.1:1")
			if got := refused; (got == nil) != (want == "") || got != nil && got.Code != want {
				t.Errorf("%v, want %q", got, want)
			}
		})
	}
	check(before, "")
	for end := time.Now().Add(10 * time.Second); b.checker.slow.waiting.Load() < 1 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	fresh, err := apikey.NewSecretFor(b.parsed, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if b.key.Hash, err = cheapHash(fresh); err != nil {
		t.Fatal(err)
	}
	b.put() // rotated, without a grace
	check(b.store.View(), "invalid_api_key")
	time.Sleep(50 * time.Millisecond) // until it waits, too
	<-b.checker.slow.slots
	all.Wait()
	if got := b.check(old); got != "invalid_api_key" {
		t.Errorf("the rotated-out secret is remembered: %q", got)
	}
}

// TestLateKeys: a key that this node cannot know of yet is no bad key, whatever
// its clock says and however far other shards are.
func TestLateKeys(t *testing.T) {
	b := newBench(t)
	now := time.UnixMilli(b.now.Load())
	key := func(jurisdiction string, at time.Time) string {
		whole, _, err := apikey.New("live", jurisdiction, at, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return whole.Reveal()
	}
	reset := func(shard controlplane.Shard, updated time.Time) {
		rec, err := registry.EncodeRecord(&registry.Record{Kind: registry.KindOrg, Org: &registry.Org{Jurisdiction: "any", State: "verified"},
			Meta: registry.Meta{ID: "org_" + string(shard), Shard: shard, Revision: 1, Updated: updated.UnixMilli()}})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range []*feed.Frame{
			{Type: feed.FrameReset, Shard: shard}, {Type: feed.FrameRecord, Shard: shard, Record: rec},
			{Type: feed.FrameEnd, Shard: shard, Point: controlplane.Point{Epoch: controlplane.Epoch{Counter: 1}, Seq: 1}},
		} {
			if err := b.store.Apply(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	// any-us-east changed just now; any-ap-sg, whose home is cut off, an hour ago.
	reset("any-ap-sg", now.Add(-time.Hour))
	young := key("any", now.Add(-10*time.Minute))
	b.want(young, "not_ready", 0, 0)
	parsed, err := apikey.Parse(young)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.store.Apply(&feed.Frame{Type: feed.FrameRevocation, Revocation: &registry.Revocation{Kind: registry.KindKey, ID: parsed.RecordID(), At: 1}}); err != nil {
		t.Fatal(err)
	}
	b.want(young, "invalid_api_key", 0, 0) // however late its record comes, if it comes at all
	b.want(key("any", now.Add(-2*time.Hour)), "invalid_api_key", 0, 0)
	// The control plane's clock goes an hour ahead of this node's.
	if err := b.store.Apply(&feed.Frame{Type: feed.FrameHeartbeat, At: now.Add(time.Hour).UnixMilli()}); err != nil {
		t.Fatal(err)
	}
	b.want(key("any", now.Add(time.Hour)), "not_ready", 0, 0)
	b.want(key("any", now.Add(48*time.Hour)), "invalid_api_key", 0, 0)
}
