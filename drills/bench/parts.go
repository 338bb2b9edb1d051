package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"ringmain/drills/bench/rig"
)

func measureJSON(ctx context.Context, r *run, o options) error {
	body := rig.Request("plain")
	var counts []int
	for text := range strings.SplitSeq(o.callers, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("-callers %s: want numbers from 1, with commas between them", o.callers)
		}
		counts = append(counts, n)
	}
	for _, h2 := range o.h2() {
		for _, callers := range counts {
			if err := r.rounds(ctx, o, "JSON", h2, callers, o.span, "request", 1000, func(ctx context.Context, c *rig.Contender, out *outcome) error {
				return plain(ctx, c, body, out)
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// streamCallers is how many streams run at once.
const streamCallers = 64

func measurePaced(ctx context.Context, r *run, o options) error {
	return r.streams(ctx, o, "Streams, an event each 5 ms; times from the provider's write", "paced")
}

func measureBurst(ctx context.Context, r *run, o options) error {
	return r.streams(ctx, o, "Streams, as fast as they go", "burst")
}

func (r *run) streams(ctx context.Context, o options, title, mode string) error {
	for _, h2 := range o.h2() {
		if err := r.rounds(ctx, o, title, h2, streamCallers, 2*o.span, "event", 1e6, func(ctx context.Context, c *rig.Contender, out *outcome) error {
			return stream(ctx, c, mode, out)
		}); err != nil {
			return err
		}
	}
	return nil
}

func measureFirst(ctx context.Context, r *run, o options) error {
	for _, h2 := range o.h2() {
		if err := r.rounds(ctx, o, "First event of a stream", h2, 1, o.span, "event", 1e6, func(ctx context.Context, c *rig.Contender, out *outcome) error {
			return stream(ctx, c, "first", out)
		}); err != nil {
			return err
		}
	}
	return nil
}

// bigPrompt is in bytes, bigCallers is how many send one at once.
const (
	bigPrompt  = 5 << 20
	bigCallers = 4
)

func measureBig(ctx context.Context, r *run, o options) error {
	body := rig.RequestOf("plain", strings.Repeat("ring main feeds every consumer. ", bigPrompt/32))
	if err := r.rounds(ctx, o, "5 MB prompts", false, bigCallers, o.span, "request", 1000, func(ctx context.Context, c *rig.Contender, out *outcome) error {
		return plain(ctx, c, body, out)
	}); err != nil {
		return err
	}
	const n = 20
	got := make([][]window, len(r.Contenders))
	for i, c := range r.Contenders {
		if len(c.PIDs) == 0 {
			continue
		}
		c.HTTP = r.client(false)
		if err := plain(ctx, c, body, new(outcome)); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		before, err := r.allocated(ctx, c)
		if err != nil {
			return err
		}
		base, err := rig.UsageOf(c.PIDs...)
		if err != nil {
			return err
		}
		if err := rig.ResetPeak(c.PIDs...); err != nil {
			return err
		}
		for range n {
			if err := plain(ctx, c, body, new(outcome)); err != nil {
				return fmt.Errorf("%s: %w", c.Name, err)
			}
		}
		after, err := r.allocated(ctx, c)
		if err != nil {
			return err
		}
		most, err := rig.Peak(c.PIDs...)
		if err != nil {
			return err
		}
		c.HTTP.CloseIdleConnections()
		got[i] = []window{{n: n, values: []value{
			{"peak MiB above the start", float64(most-base.RSS) / (1 << 20), false},
			{"allocated MiB/request (Go)", (after - before) / n / (1 << 20), false}}}}
	}
	r.figures("5 MB prompts, one after the other: memory", "HTTP/1.1", 1, got)
	return nil
}

// allocated reads how many bytes a contender written in Go has ever allocated; 0 for others.
func (r *run) allocated(ctx context.Context, c *rig.Contender) (float64, error) {
	var where string
	switch c.Name {
	case rig.Proxy:
		where = "https://" + c.Addr + rig.AllocPath
	case rig.Ringmain:
		where = r.Node().Metrics
	default:
		return 0, nil
	}
	return metric(ctx, c.HTTP, where, "go_memstats_alloc_bytes_total")
}

// metric reads one figure, the sum over its labels, from a metrics page.
func metric(ctx context.Context, hc *http.Client, where, name string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return 0, err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	found := false
	for line := range strings.Lines(string(page)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(strings.TrimSpace(rest), ' ')+1:]), 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %q: %w", where, line, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		return 0, fmt.Errorf("%s shows no %s", where, name)
	}
	return sum, nil
}

// measureIdle opens o.idle streams at each contender in turn, waits until each
// has its first event and the process has settled, and notes the growth of
// resident memory.
func measureIdle(ctx context.Context, r *run, o options) error {
	if need := uint64(2*o.idle + 1000); !o.idleH2 && rig.OpenFiles() < need {
		r.NotRun = append(r.NotRun, fmt.Sprintf("%d idle streams: they need %d open files, this machine allows %d; raise RLIMIT_NOFILE, or use -idle-h2 -upstream-h2", o.idle, need, rig.OpenFiles()))
		progress("%s", r.NotRun[len(r.NotRun)-1])
		return nil
	}
	got := make([][]window, len(r.Contenders))
	for i, c := range r.Contenders {
		if len(c.PIDs) == 0 {
			continue
		}
		before, err := rig.UsageOf(c.PIDs...)
		if err != nil {
			return err
		}
		release, err := r.open(ctx, c, o)
		if err == nil {
			select {
			case <-ctx.Done():
			case <-time.After(3 * time.Second):
			}
		}
		after, usageErr := rig.UsageOf(c.PIDs...)
		release()
		if err = errors.Join(err, usageErr); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		got[i] = []window{{n: o.idle, values: []value{
			{"KiB/stream", float64(after.RSS-before.RSS) / 1024 / float64(o.idle), true},
			{"MiB in all", float64(after.RSS) / (1 << 20), false}}}}
		progress("idle streams, %s", c.Name)
	}
	r.figures("Idle streams, resident memory", map[bool]string{false: "HTTP/1.1", true: "HTTP/2"}[o.idleH2], o.idle, got)
	return nil
}

// open holds o.idle streams at c until release is called.
func (r *run) open(ctx context.Context, c *rig.Contender, o options) (release func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var (
		mu    sync.Mutex
		held  []io.Closer
		first error
		all   sync.WaitGroup
		slots = make(chan struct{}, 32)
	)
	c.HTTP = r.client(o.idleH2)
	for i := range o.idle {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			var h io.Closer
			var err error
			if o.idleH2 {
				h, err = holdH2(ctx, c)
			} else {
				h, err = r.hold(ctx, c, net.IPv4(127, 0, 0, byte(1+i/rig.PerAddress)))
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				first = err
			} else {
				held = append(held, h)
			}
		})
	}
	all.Wait()
	return func() {
		cancel()
		for _, h := range held {
			_ = h.Close() // left on purpose
		}
		c.HTTP.CloseIdleConnections()
	}, first
}

// holdH2 is hold over HTTP/2, where streams share connections.
func holdH2(ctx context.Context, c *rig.Contender) (io.Closer, error) {
	resp, err := post(ctx, c, rig.Request("idle"))
	if err != nil {
		return nil, err
	}
	_, err = io.ReadAtLeast(resp.Body, make([]byte, 512), len(rig.EventHead))
	return resp.Body, err
}
