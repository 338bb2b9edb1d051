package neighbours

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/gossip/bulletin"
	"ringmain/internal/testkit/synckit"
)

// What a data node says of its position names epochs, and always fits a digest.
func TestWholePosition(t *testing.T) {
	point := func(seq uint64) controlplane.Point {
		return controlplane.Point{Epoch: controlplane.Epoch{Counter: 3, Region: "eu-fra"}, Seq: seq}
	}
	if got, want := wholePosition(controlplane.Position{"global": point(7), "eu": point(12)}), "eu=3/eu-fra.12 global=3/eu-fra.7"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for n := range 40 {
		p := controlplane.Position{}
		for i := range n {
			p[controlplane.Shard(fmt.Sprintf("any-region-%d", i))] = point(1 << 40)
		}
		d := bulletin.Digest{Region: "eu-fra", Node: "d1", Position: wholePosition(p)}
		if err := d.Check(); err != nil {
			t.Fatalf("%d shards: %v", n, err)
		}
		for part := range strings.FieldsSeq(d.Position) {
			if s, at, err := api.ParsePosition(part); err != nil || p[s] != at {
				t.Fatalf("%q: %v", part, err)
			}
		}
		if n > 0 && d.Position == "" {
			t.Errorf("%d shards: says nothing", n)
		}
	}
}

func TestPositionIsPublishedWhenItChanges(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var given atomic.Pointer[controlplane.Position]
		given.Store(new(controlplane.Position))
		var said []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			PublishPosition(ctx, func(f func(*bulletin.Digest)) {
				var d bulletin.Digest
				f(&d)
				said = append(said, d.Position)
			}, func() controlplane.Position { return *given.Load() })
		}()
		for i := range 3 {
			time.Sleep(time.Second)
			synckit.Wait()
			given.Store(&controlplane.Position{"eu": {Epoch: controlplane.Epoch{Counter: 1, Region: "eu-fra"}, Seq: uint64(i / 2)}})
		}
		time.Sleep(time.Second)
		given.Store(new(controlplane.Position)) // the worker is gone
		time.Sleep(time.Second)
		cancel()
		<-done
		if got, want := strings.Join(said, "|"), "eu=1/eu-fra.0|eu=1/eu-fra.1|"; got != want {
			t.Errorf("published %q, want %q", got, want)
		}
	})
}
