package homes

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// TestMeasure prints how long things take in real time, between three regions
// in one process whose network takes HOMES_MEASURE one way (such as 40ms).
func TestMeasure(t *testing.T) {
	if os.Getenv("HOMES_MEASURE") == "" {
		t.Skip("HOMES_MEASURE is not set")
	}
	delay, err := time.ParseDuration(os.Getenv("HOMES_MEASURE"))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, 1, true, "us", "eu", "ap")
	began := time.Now()
	w.startAll()
	defer w.stopAll()
	w.eventually(30*time.Second, "a home", func() bool { return w.regions[0].role() == "home" })
	t.Logf("first home after %s", time.Since(began))
	w.same(30*time.Second, w.names()...)
	w.net.tune(delay*2/3, 0) // a message takes this to twice this: delay on average, near enough
	ctx := context.Background()
	var acks []time.Duration
	for i := range 200 {
		began := time.Now()
		p, err := w.region("us").propose(ctx, w.org(fmt.Sprintf("m%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.region("us").homes.Load().Confirmed(ctx, w.shard, p); err != nil {
			t.Fatal(err)
		}
		acks = append(acks, time.Since(began))
	}
	t.Logf("multi-region acknowledgement: %s", quantiles(acks))

	var refused, moves []time.Duration
	for i := range 20 {
		to := w.region([]string{"eu", "us"}[i%2])
		stop, gap := make(chan struct{}), make(chan time.Duration, 1)
		go w.longestGap(stop, gap, i)
		time.Sleep(200 * time.Millisecond)
		began := time.Now()
		if _, err := to.homes.Load().Move(ctx, w.shard); err != nil {
			t.Fatal(err)
		}
		moves = append(moves, time.Since(began))
		time.Sleep(200 * time.Millisecond)
		close(stop)
		refused = append(refused, <-gap)
		w.same(30*time.Second, w.names()...)
	}
	t.Logf("move: %s; writes refused for %s", quantiles(moves), quantiles(refused))

	var takeovers []time.Duration
	at := "us"
	for i := range 10 {
		next := map[string]string{"us": "eu", "eu": "ap", "ap": "us"}[at]
		w.eventually(30*time.Second, "home "+at, func() bool { return w.region(at).role() == "home" })
		w.same(30*time.Second, w.names()...)
		w.region(at).stop()
		began := time.Now()
		if _, err := w.region(next).homes.Load().Takeover(ctx, w.shard, TakeoverOptions{}); err != nil {
			t.Fatal(err)
		}
		p, err := w.region(next).propose(ctx, w.org(fmt.Sprintf("t%d", i)))
		if err == nil {
			err = w.region(next).homes.Load().Confirmed(ctx, w.shard, p)
		}
		if err != nil {
			t.Fatal(err)
		}
		takeovers = append(takeovers, time.Since(began))
		w.region(at).start()
		at = next
	}
	t.Logf("takeover, from the call to a write acknowledged multi-region: %s", quantiles(takeovers))
}

// longestGap writes wherever it can, and says how long nobody took a write.
func (w *world) longestGap(stop <-chan struct{}, gap chan<- time.Duration, id int) {
	longest, last := time.Duration(0), time.Now()
	for n := 0; ; n++ {
		for _, r := range w.regions {
			if _, err := r.propose(context.Background(), w.org(fmt.Sprintf("g%dn%d", id, n))); err == nil {
				longest, last = max(longest, time.Since(last)), time.Now()
				break
			}
		}
		select {
		case <-stop:
			gap <- longest
			return
		default:
			time.Sleep(time.Millisecond)
		}
	}
}

func quantiles(ds []time.Duration) string {
	slices.Sort(ds)
	return fmt.Sprintf("p50 %s, p99 %s, max %s (n %d)", ds[len(ds)/2].Round(100*time.Microsecond), ds[len(ds)*99/100].Round(100*time.Microsecond), ds[len(ds)-1].Round(100*time.Microsecond), len(ds))
}
