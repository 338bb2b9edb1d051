package homes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/retry"
	"ringmain/internal/testkit/synckit"
)

// TestScenarios plays testdata/scenarios/*.txt: commands, and after each what
// it must say, on lines that begin with "=". Time is fake; logs are quorum's.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/scenarios/*.txt")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d scenarios: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			synckit.Test(t, func(t *testing.T) {
				p := &player{t: t}
				defer func() {
					if p.w != nil {
						p.w.stopAll()
					}
				}()
				p.play(string(text))
			})
		})
	}
}

// player runs one scenario.
type player struct {
	t *testing.T
	w *world
	// automatic takeover, for worlds made after it
	after time.Duration
	mu    sync.Mutex
	down  map[string]bool
}

func (p *player) play(text string) {
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		want := ""
		if i+1 < len(lines) && strings.HasPrefix(lines[i+1], "= ") {
			want = strings.TrimPrefix(lines[i+1], "= ")
		}
		at := i + 1
		if want != "" {
			i++
		}
		got := p.do(strings.Fields(line))
		if got != want {
			p.t.Fatalf("line %d: %s\nsays %q, want %q\n%s", at, line, got, want, p.dump())
		}
		if p.t.Failed() {
			p.t.Fatalf("line %d: %s", at, line)
		}
	}
}

func (p *player) dump() string {
	if p.w == nil {
		return ""
	}
	return p.w.dump()
}

// do runs one command and says what came of it; "" = nothing to say.
func (p *player) do(words []string) string {
	verb, args := words[0], words[1:]
	switch verb {
	case "automatic":
		p.after, p.down = p.duration(args[0]), make(map[string]bool)
		return ""
	case "regions":
		p.begin(args)
		return ""
	}
	w := p.w
	switch verb {
	case "write": // NAME at REGION [multi]
		return p.write(w.org(args[0]), w.region(args[2]), len(args) > 3)
	case "key": // NAME at REGION, and what it belongs to
		return p.write(w.key(args[0]), w.region(args[2]), false)
	case "revoke": // NAME at REGION [ended]: the key ended by itself, decades ago
		c := registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: keyID(args[0]), At: 1000}
		if len(args) > 3 {
			c.Expires = 2000
		}
		return p.write([]registry.Change{c}, w.region(args[2]), false)
	case "delete": // NAME at REGION
		return p.write([]registry.Change{{Op: registry.OpDelete, Kind: registry.KindKey, ID: keyID(args[0])}}, w.region(args[2]), false)
	case "pin": // begin|retire|erase NAME at REGION: that step of the org's change of pin, as far as it goes
		return p.pin(args[0], args[1], w.region(args[3]))
	case "pinned": // REGION NAME...: by the safety set
		return w.region(args[0]).list(args[1:], w.region(args[0]).pinned)
	case "leaving":
		return w.region(args[0]).list(args[1:], w.region(args[0]).leaving)
	case "takeover": // REGION [live] [lost REGION...]
		return p.takeover(args)
	case "rivals": // REGION REGION
		return p.rivals(args)
	case "interrupt": // takeover REGION after DURATION
		return p.interrupt(args)
	case "move": // REGION
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := w.region(args[0]).homes.Load().Move(ctx, w.shard)
		return label(err, "home")
	case "stop":
		w.region(args[0]).stop()
	case "start":
		w.region(args[0]).start()
	case "backup":
		w.region(args[0]).backup()
	case "restore": // REGION with its backup, in another life
		w.region(args[0]).restore()
	case "recover": // REGION from one of its nodes; the others live on, and answer at REGION-old
		w.region(args[0]).recover()
	case "epoch": // REGION: whether its home's counter is of the region's present life
		c, _ := w.region(args[0]).copyOf()
		return strconv.FormatBool(c.Last.Epoch.Counter >= w.region(args[0]).since)
	case "cut", "join": // REGION, or REGION REGION, or REGION to REGION
		p.cut(args, verb == "cut")
	case "published": // REGION down|up
		p.mu.Lock()
		p.down[args[0]] = args[1] == "down"
		p.mu.Unlock()
	case "slow":
		w.net.tune(p.duration(args[0]), 0)
	case "wait":
		time.Sleep(p.duration(args[0]))
	case "role": // REGION
		return w.region(args[0]).role()
	case "until": // REGION is ROLE
		w.eventually(30*time.Second, strings.Join(args, " "), func() bool { return w.region(args[0]).role() == args[2] })
	case "same":
		w.same(30*time.Second, args...)
	case "holds": // REGION NAME...
		return w.region(args[0]).list(args[1:], w.region(args[0]).holds)
	case "revoked":
		return w.region(args[0]).list(args[1:], w.region(args[0]).revoked)
	case "hears": // REGION of the revocation NAME: within a while
		w.eventually(30*time.Second, strings.Join(args, " "), func() bool { return w.region(args[0]).revoked(args[1]) })
	case "quarantine":
		return strings.Join(w.region(args[0]).quarantined(), " ")
	case "isolated":
		r, err := w.region(args[0]).homes.Load().Reach(w.shard)
		return label(err, strconv.FormatBool(!r.Isolated.IsZero()))
	default:
		p.t.Fatalf("there is no command %q", verb)
	}
	return ""
}

func (r *region) list(names []string, has func(string) bool) string {
	var out []string
	for _, n := range names {
		if has(n) {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, " ")
}

func (p *player) duration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

func (p *player) begin(names []string) {
	p.w = newWorld(p.t, 1, true, names...)
	p.w.adjust = func(c *Config) {
		if p.after == 0 {
			return
		}
		c.AutomaticAfter = p.after
		c.Published = func() map[string]bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			up := make(map[string]bool)
			for _, n := range names {
				up[n] = !p.down[n]
			}
			return up
		}
	}
	p.w.startAll()
	p.w.eventually(30*time.Second, "a home, followed by all", func() bool {
		for _, r := range p.w.regions {
			if role := r.role(); role != "home" && role != "follower" {
				return false
			}
		}
		return p.w.regions[0].role() == "home"
	})
}

// label is an outcome in a word.
func label(err error, ok string) string {
	for _, l := range []struct {
		err  error
		text string
	}{{ErrHomeLives, "home lives"}, {ErrNoMajority, "no majority"}, {ErrRival, "rival"}, {ErrMoveAborted, "aborted"}, {ErrDeposed, "deposed"},
		{ErrBusy, "busy"}, {ErrNotMember, "no member"}, {ErrFormerLife, "former life"}, {ErrAlreadyHome, "home already"}, {ErrParted, "parted"}, {controlplane.ErrNotHome, "not home"}, {controlplane.ErrNoHome, "no home"},
		{controlplane.ErrUnreachable, "unreachable"}, {context.DeadlineExceeded, "unconfirmed"}, {controlplane.ErrNoLeader, "no leader"}} {
		if errors.Is(err, l.err) {
			return l.text
		}
	}
	if err != nil {
		return "error: " + err.Error()
	}
	return ok
}

func (p *player) write(changes []registry.Change, r *region, multi bool) string {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	point, err := r.propose(ctx, changes)
	for errors.Is(err, controlplane.ErrNoLeader) && retry.Sleep(ctx, 10*time.Millisecond) {
		point, err = r.propose(ctx, changes) // an election
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "error: " + err.Error()
	}
	if err != nil || !multi {
		return label(err, "committed")
	}
	err = r.homes.Load().Confirmed(ctx, p.w.shard, point)
	if err == nil {
		err = r.homes.Load().Confirmed(ctx, p.w.shard, point) // asked again, it is known
	}
	return label(err, "confirmed")
}

func (p *player) takeover(args []string) string {
	opts := TakeoverOptions{Live: slices.Contains(args, "live")}
	if i := slices.Index(args, "lost"); i > 0 {
		opts.Lost = args[i+1:]
	}
	if i := slices.Index(args, "add"); i > 0 {
		opts.Add = args[i+1:]
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	began := time.Now()
	res, err := p.w.region(args[0]).homes.Load().Takeover(ctx, p.w.shard, opts)
	for errors.Is(err, controlplane.ErrNoLeader) && retry.Sleep(ctx, 10*time.Millisecond) {
		res, err = p.w.region(args[0]).homes.Load().Takeover(ctx, p.w.shard, opts) // it was started this moment
	}
	if err == nil && time.Since(began) > 5*time.Second {
		p.t.Errorf("the takeover took %s", time.Since(began))
	}
	if err == nil && !res.Lossless {
		return "home, perhaps with losses"
	}
	return label(err, "home")
}

// rivals has two regions take over at once, and says how many became home and
// that the other knows.
func (p *player) rivals(args []string) string {
	results := make(chan string, len(args))
	for _, name := range args {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, err := p.w.region(name).homes.Load().Takeover(ctx, p.w.shard, TakeoverOptions{Live: true})
			results <- label(err, "home")
		}()
	}
	var got []string
	for range args {
		got = append(got, <-results)
	}
	slices.Sort(got)
	return strings.Join(got, ", ")
}

// interrupt stops a region in the middle of its takeover.
func (p *player) interrupt(args []string) string {
	r, done := p.w.region(args[0]), make(chan string, 1)
	h := r.homes.Load()
	go func() {
		_, err := h.Takeover(context.Background(), p.w.shard, TakeoverOptions{Live: true})
		done <- label(err, "home")
	}()
	time.Sleep(p.duration(args[2]))
	r.stop()
	return <-done
}

func (p *player) cut(args []string, cut bool) {
	switch {
	case len(args) == 1:
		for _, n := range p.w.names() {
			if n != args[0] {
				p.w.net.both(args[0], n, cut)
			}
		}
	case len(args) == 2:
		p.w.net.both(args[0], args[1], cut)
	case args[1] == "to":
		p.w.net.oneWay(args[0], args[2], cut)
	default:
		p.t.Fatal(fmt.Sprint("cut what? ", args))
	}
}
