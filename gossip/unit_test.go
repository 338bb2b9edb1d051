package gossip_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"ringmain/gossip"
	"ringmain/internal/testkit/synckit"
)

func TestMemberlistLogLevels(t *testing.T) {
	var out bytes.Buffer
	w := gossip.NewLogWriter(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	for _, line := range []string{
		"[ERR] memberlist: Push/Pull with eu/d1 failed: refused\n", "[WARN] memberlist: Refuting a suspect message (from: eu/d1)\n",
		"[INFO] memberlist: Suspect eu/d1 has failed, no acks received\n", "[DEBUG] memberlist: Stream connection\n", "Err: Could not set the deadline\n",
	} {
		if n, err := fmt.Fprint(w, line); err != nil || n != len(line) {
			t.Error(n, err)
		}
	}
	want := `level=WARN msg="memberlist: Push/Pull with eu/d1 failed: refused"
level=INFO msg="memberlist: Refuting a suspect message (from: eu/d1)"
level=DEBUG msg="memberlist: Suspect eu/d1 has failed, no acks received"
level=DEBUG msg="memberlist: Stream connection"
level=DEBUG msg="memberlist: Err: Could not set the deadline"
`
	if out.String() != want {
		t.Errorf("got\n%s", out.String())
	}
	for range 1000 {
		fmt.Fprint(w, "[ERR] memberlist: Decrypt packet failed\n")
	}
	if n := strings.Count(out.String(), "Decrypt"); n > 60 {
		t.Errorf("a stranger's packets made %d lines", n)
	}
}

// One path of two is enough; three misses in a row make a region down, three
// answers up again; a first answer counts at once.
func TestObserveVerdicts(t *testing.T) {
	for _, c := range []struct{ name, rounds, claims string }{
		{"up at once", "++", "UU"},
		{"third miss", "---", "..D"},
		{"late start", "--++", "..UU"},
		{"two misses are nothing", "+--+--+", "UUUUUUU"},
		{"down and up", "+---+++", "UUUDDDU"},
		{"flapping inside a verdict", "+---+-+-++", "UUUDDDDDDD"},
		{"one path", "+112211", "UUUUUUU"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synckit.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				got := make([]byte, 0, len(c.rounds))
				round := -1
				path := func(mine byte) func(context.Context) error {
					return func(ctx context.Context) error {
						switch r := c.rounds[round]; r {
						case '+', mine:
							return nil
						case '-':
							<-ctx.Done() // silence, to the timeout
							return ctx.Err()
						default:
							return errors.New("refused")
						}
					}
				}
				start := time.Now()
				gossip.Observe(ctx, gossip.ObserveConfig{
					Targets: func() []gossip.Target {
						if round++; round == len(c.rounds) {
							cancel()
							return nil
						}
						got = append(got, '.')
						return []gossip.Target{{Region: "eu", Paths: []func(context.Context) error{path('1'), path('2')}}}
					},
					Claim: func(subject string, up bool) {
						got[len(got)-1] = map[bool]byte{true: 'U', false: 'D'}[up]
						if subject != "eu" {
							t.Errorf("claim about %q", subject)
						}
					},
				})
				if string(got) != c.claims {
					t.Errorf("rounds %s gave %s, want %s", c.rounds, got, c.claims)
				}
				if took, want := time.Since(start), time.Duration(len(c.rounds))*500*time.Millisecond; took != want {
					t.Errorf("%d rounds took %s, want %s", len(c.rounds), took, want)
				}
			})
		})
	}
}
