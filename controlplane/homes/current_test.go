package homes

import (
	"context"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/internal/testkit/synckit"
)

// A deposed home that nobody has told yet must not vouch for its copy.
func TestCurrent(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		p := &player{t: t}
		p.begin([]string{"us", "eu", "ap"})
		w := p.w
		defer w.stopAll()
		current := func(region string) string {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			return label(w.region(region).homes.Load().Current(ctx, w.shard), "current")
		}
		want := func(when, region, wanted string) {
			t.Helper()
			if got := current(region); got != wanted {
				t.Errorf("%s, %s: %s, want %s", when, region, got, wanted)
			}
		}
		not := func(when, region string) {
			t.Helper()
			if got := current(region); got == "current" {
				t.Errorf("%s, %s vouches for its copy", when, region)
			}
		}
		want("all answer", "us", "current")
		want("all answer", "eu", label(controlplane.ErrNotHome, ""))
		p.cut([]string{"us", "ap"}, true)
		want("a majority answers", "us", "current")
		p.cut([]string{"us"}, true)
		not("nobody answers", "us")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := w.region("eu").homes.Load().Takeover(ctx, w.shard, TakeoverOptions{}); err != nil {
			t.Fatal(err)
		}
		not("deposed, cut off", "us")
		want("after the takeover", "eu", "current")
		p.cut([]string{"us", "ap"}, false) // at once: nothing has told it
		not("deposed, and not told yet", "us")
	})
}
