package homes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/retry"
	"ringmain/internal/testkit/synckit"
)

// TestSchedules plays seeded random faults against writers that keep book, and
// compares in the end. HOMES_SCHEDULES sets how many, HOMES_SEED plays one.
func TestSchedules(t *testing.T) {
	count, first := 240, uint64(0)
	if testing.Short() {
		count = 24
	}
	if s := os.Getenv("HOMES_SCHEDULES"); s != "" {
		count, _ = strconv.Atoi(s)
	}
	if s := os.Getenv("HOMES_SEED"); s != "" {
		first, _ = strconv.ParseUint(s, 10, 64)
		count = 1
	}
	var total tally
	t.Run("seeds", func(t *testing.T) {
		for seed := first; seed < first+uint64(count); seed++ {
			t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
				t.Parallel()
				synckit.Test(t, func(t *testing.T) { playSchedule(t, seed, &total) })
			})
		}
	})
	t.Logf("%d schedules: %s", count, total.String())
	if count >= 24 && (total.confirmed == 0 || total.quarantined == 0 || total.takeovers == 0 || total.moves == 0 || total.revoked == 0) {
		t.Error("the schedules do not reach all that they are for")
	}
}

// tally says what the schedules came across.
type tally struct {
	mu                                                                   sync.Mutex
	writes, committed, confirmed, quarantined, revoked, takeovers, moves int
}

func (c *tally) String() string {
	return fmt.Sprintf("%d writes, %d committed at a home, %d confirmed, %d in quarantine at the end, %d revocations, %d takeovers and %d moves that succeeded",
		c.writes, c.committed, c.confirmed, c.quarantined, c.revoked, c.takeovers, c.moves)
}

// book is what writers were told.
type book struct {
	mu        sync.Mutex
	committed map[string]bool // by name; true: confirmed
	unwritten map[string]bool
	revoked   map[string]bool
	n         int
}

const keysBefore = 6 // made before the faults begin, to be revoked under them

func playSchedule(t *testing.T, seed uint64, total *tally) {
	rng := seeded(seed)
	names := []string{"us", "eu", "ap", "sa", "af"}[:[]int{3, 3, 3, 2, 3, 4, 3, 5}[seed%8]]
	w := newWorld(t, seed, seed%6 == 0, names...)
	w.net.tune(time.Duration(rng.IntN(30))*time.Millisecond, 0)
	w.startAll()
	defer w.stopAll()
	if !w.eventually(30*time.Second, "a first home", func() bool { return w.regions[0].role() == "home" }) {
		return
	}
	b := &book{committed: make(map[string]bool), unwritten: make(map[string]bool), revoked: make(map[string]bool)}
	for i := range keysBefore {
		if _, err := w.regions[0].propose(context.Background(), w.key(fmt.Sprintf("k%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	w.same(30*time.Second, names...)

	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for i := range 3 {
		rng := rand.New(rand.NewPCG(seed, uint64(i+10)))
		all.Go(func() { w.writer(ctx, b, rng, i) })
	}
	for range 10 + rng.IntN(10) {
		all.Go(w.fault(rng, total))
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
	}
	cancel()
	w.heal()
	all.Wait()
	w.settle(rng)
	w.audit(b, total)
	if t.Failed() {
		t.Logf("seed %d:\n%s", seed, w.dump())
	}
}

// writer writes wherever it can.
func (w *world) writer(ctx context.Context, b *book, rng *rand.Rand, id int) {
	for n := 0; ctx.Err() == nil; n++ {
		r := w.regions[rng.IntN(len(w.regions))]
		if rng.IntN(12) == 0 {
			k := fmt.Sprintf("k%d", rng.IntN(keysBefore))
			_, err := r.propose(ctx, []registry.Change{{Op: registry.OpRevoke, Kind: registry.KindKey, ID: keyID(k), At: 1000}})
			if err == nil {
				b.mu.Lock()
				b.revoked[k] = true
				b.mu.Unlock()
			}
			continue
		}
		name := fmt.Sprintf("w%dn%d", id, n)
		point, err := r.propose(ctx, w.org(name))
		confirmed := false
		if err == nil && rng.IntN(2) == 0 {
			wait, cancel := context.WithTimeout(ctx, 2*time.Second)
			h := r.homes.Load()
			confirmed = h != nil && h.Confirmed(wait, w.shard, point) == nil
			cancel()
		}
		b.note(name, err, confirmed)
		if !retry.Sleep(ctx, time.Duration(rng.IntN(120))*time.Millisecond) {
			return
		}
	}
}

func (b *book) note(name string, err error, confirmed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	switch {
	case err == nil:
		b.committed[name] = confirmed
	case errors.Is(err, controlplane.ErrNotHome), errors.Is(err, controlplane.ErrNoHome), errors.Is(err, controlplane.ErrNoLeader), errors.Is(err, controlplane.ErrUnreachable):
		b.unwritten[name] = true
	}
}

// fault is one thing that goes wrong, or is asked for.
func (w *world) fault(rng *rand.Rand, total *tally) func() {
	pick := func() *region { return w.regions[rng.IntN(len(w.regions))] }
	a, b, kind, live := pick(), pick(), rng.IntN(12), rng.IntN(3) == 0
	limit := time.Duration(1+rng.IntN(8)) * time.Second
	loss := float64(rng.IntN(4)) / 40
	delay := time.Duration(1+rng.IntN(60)) * time.Millisecond
	ask := func(f func(context.Context, *Homes) error, count *int) {
		h := a.homes.Load()
		if h == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if f(ctx, h) == nil {
			total.mu.Lock()
			*count++
			total.mu.Unlock()
		}
	}
	return func() {
		switch kind {
		case 0:
			for _, r := range w.regions {
				if r != a {
					w.net.both(a.name, r.name, true)
				}
			}
		case 1:
			w.net.both(a.name, b.name, true)
		case 2:
			w.net.oneWay(a.name, b.name, true)
		case 3:
			w.heal()
		case 4:
			a.stop()
		case 5, 6:
			a.start()
		case 7:
			w.net.tune(delay, loss)
		case 8, 9, 10:
			ask(func(ctx context.Context, h *Homes) error {
				_, err := h.Takeover(ctx, w.shard, TakeoverOptions{Live: live})
				return err
			}, &total.takeovers)
		case 11:
			ask(func(ctx context.Context, h *Homes) error { _, err := h.Move(ctx, w.shard); return err }, &total.moves)
		}
	}
}

// heal mends every link.
func (w *world) heal() {
	w.net.tune(time.Millisecond, 0)
	for _, a := range w.regions {
		for _, b := range w.regions {
			if a != b {
				w.net.oneWay(a.name, b.name, false)
			}
		}
	}
}

// settle waits until one home writes and the others follow. If nobody is home,
// somebody has to ask, as an operator would.
func (w *world) settle(rng *rand.Rand) {
	for _, r := range w.regions {
		r.start()
	}
	whole := func() bool {
		homes := 0
		for _, r := range w.regions {
			switch r.role() {
			case "home":
				homes++
			case "follower":
			default:
				return false
			}
		}
		return homes == 1
	}
	for end := time.Now().Add(30 * time.Second); !whole() && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	if !whole() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		r := w.regions[rng.IntN(len(w.regions))]
		if _, err := r.homes.Load().Takeover(ctx, w.shard, TakeoverOptions{Live: true}); err != nil && !errors.Is(err, ErrRival) && !errors.Is(err, ErrAlreadyHome) {
			w.t.Errorf("with everything mended %s cannot take over: %v", r.name, err)
		}
	}
	w.eventually(30*time.Second, "one home and followers", whole)
	w.same(60*time.Second, w.names()...)
}

// audit compares what writers were told with what there is.
func (w *world) audit(b *book, total *tally) {
	b.mu.Lock()
	defer b.mu.Unlock()
	quarantined := make(map[string]bool)
	for _, r := range w.regions {
		for _, n := range r.quarantined() {
			quarantined[n] = true
		}
	}
	confirmed := 0
	for name, sure := range b.committed {
		held := w.regions[0].holds(name)
		switch {
		case sure && !held:
			w.t.Errorf("%s was acknowledged multi-region, and is lost (in quarantine: %v)", name, quarantined[name])
		case !held && !quarantined[name]:
			w.t.Errorf("%s was acknowledged by its home, and is neither held nor in quarantine", name)
		}
		if sure {
			confirmed++
		}
	}
	for name := range b.unwritten {
		if w.regions[0].holds(name) || quarantined[name] {
			w.t.Errorf("%s was refused, and is there", name)
		}
	}
	for name := range b.revoked {
		for _, r := range w.regions {
			if !r.revoked(name) {
				w.t.Errorf("%s was revoked, and is not in %s", name, r.name)
			}
		}
	}
	total.mu.Lock()
	defer total.mu.Unlock()
	total.writes += b.n
	total.committed += len(b.committed)
	total.confirmed += confirmed
	total.quarantined += len(quarantined)
	total.revoked += len(b.revoked)
}
