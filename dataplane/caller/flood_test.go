package caller

import (
	crand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

func (b *bench) from(key, remote string) string {
	_, refused := b.checker.Check(b.store.View(), key, remote)
	if refused == nil {
		return ""
	}
	return refused.Code
}

// TestGuessesAtOnce: as many as may fail run, also if they come at once, and
// one key that many present at once pays once.
func TestGuessesAtOnce(t *testing.T) {
	b := newBench(t)
	b.checker = New(Config{Store: b.store, Jurisdiction: "us", VerdictSecret: []byte("a secret of the test, long enough"), Workers: 1,
		Counted: b.checker.cfg.Counted, Now: b.checker.cfg.Now})
	b.checker.slow.slots <- struct{}{} // the one worker is busy
	var all sync.WaitGroup
	for range 40 {
		key := b.another()
		all.Go(func() { b.check(key) })
	}
	for range 40 {
		all.Go(func() {
			if got := b.from(b.whole, "198.51.100.7:1"); got != "" {
				t.Errorf("a good key that many present at once: %q", got)
			}
		})
	}
	time.Sleep(100 * time.Millisecond) // until they wait
	<-b.checker.slow.slots
	all.Wait()
	if good, bad := b.hashes(); bad > int64(first[0].burst) || good != 1 {
		t.Errorf("%d good and %d bad hashes for 40 guesses at once", good, bad)
	}
}

// TestGuessesFromManySources: guesses at one id from any number of addresses
// cost a bounded number of hashes, and so do guesses at many ids.
func TestGuessesFromManySources(t *testing.T) {
	b := newBench(t)
	for i := range 2000 {
		if got := b.from(b.another(), fmt.Sprintf("10.0.%d.%d:1", i/250, i%250)); got == "" {
			t.Fatal("a guess was right")
		}
		b.now.Add(5) // 10 s in all
	}
	if _, bad := b.hashes(); bad > int64(first[1].burst)+10 {
		t.Errorf("%d hashes for 2,000 guesses in 10 s", bad)
	}
}

// TestOwnerBesideAFlood: the owner of a key that no verdict is known of is let
// in at a repetition, though guesses have used up what may fail, from the
// owner's own address too.
func TestOwnerBesideAFlood(t *testing.T) {
	for _, where := range []string{"192.0.2.1:1", "203.0.113.9:1"} {
		b := newBench(t)
		const perSecond = 2000
		flood := func(seconds int) {
			for i := range seconds * perSecond {
				b.from(b.another(), fmt.Sprintf("192.0.2.%d:1", 1+i%200*(i%2)))
				if i%2 == 0 {
					b.now.Add(1)
				}
			}
		}
		flood(1)
		tries := 1
		for ; b.from(b.whole, where) != ""; tries++ {
			if tries == 5 {
				t.Fatalf("from %s: refused five times in a row", where)
			}
			flood(2) // as long as it was told to wait
		}
		t.Logf("from %s: let in at try %d", where, tries)
		if tries < 2 {
			t.Error("the flood had not used up anything")
		}
		for range 3 { // and from now on the verdict is known
			if got := b.from(b.whole, where); got != "" {
				t.Errorf("after that: %q", got)
			}
		}
	}
}

// neighbours gives another org n keys, and how their ids are guessed at.
func (b *bench) neighbours(n int) (ids []apikey.Parsed) {
	b.t.Helper()
	const shard = controlplane.Shard("any-eu-fra")
	m := func(id string) registry.Meta { return registry.Meta{ID: id, Shard: shard, Revision: 1} }
	records := []*registry.Record{
		{Kind: registry.KindOrg, Meta: m("org_2"), Org: &registry.Org{Jurisdiction: "any", State: "verified"}},
		{Kind: registry.KindProject, Meta: m("prj_2"), Project: &registry.Project{Org: "org_2"}},
	}
	for range n {
		whole, parsed, err := apikey.New("live", "any", time.Now().Add(-time.Hour), crand.Reader)
		if err != nil {
			b.t.Fatal(err)
		}
		hash, err := cheapHash(whole)
		if err != nil {
			b.t.Fatal(err)
		}
		ids = append(ids, parsed)
		records = append(records, &registry.Record{Kind: registry.KindKey, Meta: m(parsed.RecordID()), Key: &registry.Key{Project: "prj_2", Class: "live", Hash: hash}})
	}
	frames := []*feed.Frame{{Type: feed.FrameReset, Shard: shard}}
	for _, rec := range records {
		e, err := registry.EncodeRecord(rec)
		if err != nil {
			b.t.Fatal(err)
		}
		frames = append(frames, &feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: e})
	}
	frames = append(frames, &feed.Frame{Type: feed.FrameEnd, Shard: shard, Point: controlplane.Point{Epoch: controlplane.Epoch{Counter: 1}, Seq: 1}})
	for _, f := range frames {
		if err := b.store.Apply(f); err != nil {
			b.t.Fatal(err)
		}
	}
	return ids
}

// TestOneOrgSpendsItsOwn: whoever guesses at all the keys of one org, repeats
// what was refused, and goes on, keeps no other org's new key out.
func TestOneOrgSpendsItsOwn(t *testing.T) {
	b := newBench(t)
	var guesses []string
	for _, id := range b.neighbours(30) {
		for range 4 {
			s, err := apikey.NewSecretFor(id, crand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			guesses = append(guesses, s.Reveal())
		}
	}
	flood := func() {
		for _, guess := range guesses {
			if got := b.from(guess, "203.0.113.1:1"); got == "" {
				t.Fatal("a guess was right")
			}
		}
	}
	for range 120 { // seconds
		flood()
		b.now.Add(1000)
	}
	if _, bad := b.hashes(); bad > 70 {
		t.Errorf("%d hashes in 2 minutes", bad)
	}
	flood()
	if got := b.from(b.whole, "192.0.2.1:1"); got != "" {
		t.Errorf("a good key of another org: %q", got)
	}
}

// ledger is a naive twin of a purse: every payment that was not taken back, by
// when and for what, added up anew each time.
type ledger struct {
	purse    *purse
	payments []payment
}

type payment struct {
	by payer
	at time.Time
}

func (l *ledger) take(by payer, now time.Time) bool {
	for i, name := range by {
		a, spent, last := l.purse.bounds[i], 0.0, time.Time{}
		for _, p := range l.payments {
			if p.by[i] == name {
				spent, last = max(0, spent-float64(p.at.Sub(last))/float64(a.every))+1, p.at
			}
		}
		if max(0, spent-float64(now.Sub(last))/float64(a.every))+1 > a.burst {
			return false
		}
	}
	l.payments = append(l.payments, payment{by, now})
	return true
}

// TestPurseTwin: a purse lets the same through as its twin.
func TestPurseTwin(t *testing.T) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 3))
		of := func() allowance {
			return allowance{float64(1 + random.IntN(12)), time.Duration(1+random.IntN(3000)) * time.Millisecond}
		}
		p := newPurse(bounds{of(), of(), of(), of()})
		twin := &ledger{purse: &p}
		now := time.Unix(1_800_000_000, 0)
		let, refused := 0, 0
		for step := range 400 {
			now = now.Add(time.Duration(random.ExpFloat64() * float64(300*time.Millisecond)))
			n := random.IntN(4)
			by := payerOf(fmt.Sprint("key", n), fmt.Sprint("org", n/2), fmt.Sprint("source", random.IntN(3)))
			got, want := p.take(by, now) == nil, twin.take(by, now)
			if got != want {
				t.Fatalf("seed %d, step %d: %t, the twin says %t", seed, step, got, want)
			}
			if got {
				let++
			} else {
				refused++
			}
		}
		if let == 0 || refused == 0 {
			t.Errorf("seed %d: %d let through, %d not", seed, let, refused)
		}
	}
}

// TestSecretThatComesWithItsRecord: a new secret that is used before its record
// is here is good if the record comes while it is hashed, and a wrong one is no
// 401 where the state may be what is old.
func TestSecretThatComesWithItsRecord(t *testing.T) {
	b := newBench(t)
	b.checker = New(Config{Store: b.store, Jurisdiction: "us", VerdictSecret: []byte("a secret of the test, long enough"), Workers: 1, Now: b.checker.cfg.Now})
	fresh := b.another()
	b.checker.slow.slots <- struct{}{} // its hash takes a while
	got := make(chan string)
	go func() { got <- b.check(fresh) }()
	for end := time.Now().Add(10 * time.Second); b.checker.slow.waiting.Load() < 1 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	var err error
	if b.key.Hash, err = cheapHash(controlplane.NewSecret(fresh)); err != nil {
		t.Fatal(err)
	}
	b.put()
	<-b.checker.slow.slots
	if code := <-got; code != "" {
		t.Errorf("refused with %q", code)
	}
}

// TestWrongSecretAndOldState: where the state may be what is old, a wrong secret
// may be a new one.
func TestWrongSecretAndOldState(t *testing.T) {
	b := newBench(t)
	heard := func() {
		if err := b.store.Apply(&feed.Frame{Type: feed.FrameHeartbeat, At: b.now.Load()}); err != nil {
			t.Fatal(err)
		}
	}
	heard()
	if got := b.check(b.another()); got != "invalid_api_key" {
		t.Errorf("on fresh state: %q", got)
	}
	b.now.Add(10 * time.Minute.Milliseconds())
	wrong := b.another()
	for range 2 {
		if got := b.check(wrong); got != "not_ready" {
			t.Errorf("on state of ten minutes ago: %q", got)
		}
	}
	if got := b.check(b.whole); got != "" {
		t.Errorf("a good secret on old state: %q", got)
	}
	heard()
	if got := b.check(wrong); got != "invalid_api_key" {
		t.Errorf("on fresh state again: %q", got)
	}
}
