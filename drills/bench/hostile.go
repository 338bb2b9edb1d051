package main

import (
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/controlplane/apikey"
	"ringmain/drills/bench/rig"
)

// goodRate is how many good requests a second are sent, whatever else happens.
const goodRate = 100

// attack is one kind of hostile client, run until its context ends. It counts
// what it did by how it was answered.
type attack struct {
	name string
	run  func(ctx context.Context, r *run, c *rig.Contender, seen *tally)
}

// tally counts answers by what they were.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (t *tally) add(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n[what]++
}

func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []string
	for what, n := range t.n {
		parts = append(parts, fmt.Sprintf("%s: %d", what, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

func attacks() []attack {
	return []attack{
		{"wrong keys for a known id, 10,000/s", wrongKeys},
		{"500 connections that send a byte a second", slowWriters},
		{"200 streams read a byte a second", slowReaders},
		{"heads of 1 MiB, 100/s", headerBombs},
	}
}

// measureHostile sends good requests at a steady rate, with and without each
// attack, in turn. The attackers share the machine's cores with everything else.
func measureHostile(ctx context.Context, r *run, o options) error {
	at := slices.IndexFunc(r.Contenders, func(c *rig.Contender) bool { return c.Name == rig.Ringmain })
	c := r.Contenders[at]
	c.HTTP = r.client(false)
	defer c.HTTP.CloseIdleConnections()
	for _, a := range attacks() {
		var quiet, during []window
		var ratios []float64
		seen := &tally{n: map[string]int{}}
		for range o.rounds + 1 {
			calm, err := r.steady(ctx, c, o.span)
			if err != nil {
				return err
			}
			hostile, stop := context.WithCancel(ctx)
			var all sync.WaitGroup
			all.Go(func() { a.run(hostile, r, c, seen) })
			time.Sleep(500 * time.Millisecond)
			stormy, err := r.steady(ctx, c, o.span)
			stop()
			all.Wait()
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			quiet, during = append(quiet, calm), append(during, stormy)
			ratios = append(ratios, stormy.values[1].value/calm.values[1].value)
		}
		ratios = ratios[1:] // the first round warms up
		slices.Sort(ratios)
		progress("%s: %s; p99 during / before: %.2f (%.2f-%.2f)", a.name, seen, ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1])
		r.add("Good requests, 100/s, before: "+a.name, c.Name, quiet[1:])
		r.add("Good requests, 100/s, during: "+a.name, c.Name, during[1:])
	}
	return nil
}

// add makes a row of windows of one contender.
func (r *run) add(part, name string, ws []window) {
	out := row{Part: part, Protocol: "HTTP/1.1", Callers: goodRate, Contender: name}
	for i, v := range ws[0].values {
		median, low, high := middle(ws, func(w window) float64 { return w.values[i].value })
		out.Figures = append(out.Figures, figure{Name: v.name, Value: median, Low: low, High: high})
	}
	for _, w := range ws {
		out.N += w.n
	}
	r.rows = append(r.rows, out)
}

// steady sends good requests in an open loop and gives their latencies, counted
// from when each was due, and the node's resident memory.
func (r *run) steady(ctx context.Context, c *rig.Contender, span time.Duration) (window, error) {
	var (
		mu    sync.Mutex
		total outcome
		first error
		all   sync.WaitGroup
	)
	tick := time.NewTicker(time.Second / goodRate)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < span && ctx.Err() == nil; {
		due := <-tick.C
		all.Go(func() {
			var mine outcome
			err := plain(ctx, c, rig.Request("plain"), &mine)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && first == nil {
				first = err
			}
			total.n++
			total.times = append(total.times, time.Since(due))
		})
	}
	all.Wait()
	if first != nil {
		return window{}, fmt.Errorf("a good request failed: %w", first)
	}
	usage, err := rig.UsageOf(c.PIDs...)
	if err != nil {
		return window{}, err
	}
	slices.Sort(total.times)
	return window{n: total.n, values: []value{
		{"p50 ms", ms(quantile(total.times, .5)), false}, {"p99 ms", ms(quantile(total.times, .99)), false},
		{"RSS MiB", float64(usage.RSS) / (1 << 20), false}}}, nil
}

// hostileClient comes from an address of its own.
func (r *run) hostileClient(h2 bool) *http.Client {
	c := r.client(h2)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	c.Transport.(*http.Transport).DialContext = d.DialContext //nolint:forcetypeassert // made by client
	return c
}

// wrongKeys presents secrets that are wrong, but well formed, for the id of the
// good caller's own key.
func wrongKeys(ctx context.Context, r *run, c *rig.Contender, seen *tally) {
	parsed, err := apikey.Parse(c.Key)
	if err != nil {
		seen.add(err.Error())
		return
	}
	const workers = 64
	hc := r.hostileClient(true)
	defer hc.CloseIdleConnections()
	var all sync.WaitGroup
	var sent atomic.Int64
	began := time.Now()
	for range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				if ahead := float64(sent.Add(1))/10_000 - time.Since(began).Seconds(); ahead > 0 {
					time.Sleep(time.Duration(ahead * float64(time.Second)))
				}
				wrong, err := apikey.NewSecretFor(parsed, crand.Reader)
				if err != nil {
					seen.add(err.Error())
					return
				}
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.Addr+"/v1/chat/completions", strings.NewReader(`{"model":"x"}`))
				if err != nil {
					seen.add(err.Error())
					return
				}
				req.Header.Set("Authorization", "Bearer "+wrong.Reveal())
				req.Header.Set("Content-Type", "application/json")
				resp, err := hc.Do(req)
				if err != nil {
					if ctx.Err() == nil {
						seen.add("connection error")
					}
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close() // read side
				seen.add(resp.Status)
			}
		})
	}
	all.Wait()
}

// dial opens a TLS connection from the hostile address, speaking HTTP/1.1 by hand.
func (r *run) dial(ctx context.Context, c *rig.Contender) (*tls.Conn, error) {
	d := tls.Dialer{
		NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, Timeout: 5 * time.Second},
		Config:    &tls.Config{RootCAs: r.Roots, MinVersion: tls.VersionTLS13},
	}
	conn, err := d.DialContext(ctx, "tcp", c.Addr)
	if err != nil {
		return nil, err
	}
	t, ok := conn.(*tls.Conn)
	if !ok {
		return nil, errors.New("not TLS")
	}
	return t, nil
}

// many runs f on n connections at once, each dialled again when it ends.
func (r *run) many(ctx context.Context, c *rig.Contender, n int, seen *tally, f func(ctx context.Context, conn net.Conn) string) {
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			for ctx.Err() == nil {
				conn, err := r.dial(ctx, c)
				if err != nil {
					if ctx.Err() == nil {
						seen.add("not connected")
						time.Sleep(100 * time.Millisecond)
					}
					continue
				}
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				what := f(ctx, conn)
				stop()
				_ = conn.Close() // over
				if ctx.Err() == nil {
					seen.add(what)
				}
			}
		})
	}
	all.Wait()
}

func slowWriters(ctx context.Context, r *run, c *rig.Contender, seen *tally) {
	r.many(ctx, c, 500, seen, func(ctx context.Context, conn net.Conn) string {
		head := "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: " + strings.Repeat("a", 100)
		for i := range len(head) {
			if _, err := conn.Write([]byte(head[i : i+1])); err != nil {
				return "cut off"
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		return "let to finish"
	})
}

func slowReaders(ctx context.Context, r *run, c *rig.Contender, seen *tally) {
	body := rig.Request("burst")
	r.many(ctx, c, 200, seen, func(ctx context.Context, conn net.Conn) string {
		_, err := fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", c.Key, len(body), body)
		if err != nil {
			return "cut off"
		}
		one := make([]byte, 1)
		for ctx.Err() == nil {
			if _, err := conn.Read(one); err != nil {
				return "cut off"
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		return "over"
	})
}

func headerBombs(ctx context.Context, r *run, c *rig.Contender, seen *tally) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	bomb := []byte("GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Bomb: " + strings.Repeat("b", 1<<20) + "\r\n\r\n")
	var all sync.WaitGroup
	for ctx.Err() == nil {
		<-tick.C
		all.Go(func() {
			conn, err := r.dial(ctx, c)
			if err != nil {
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			go func() { _, _ = conn.Write(bomb) }() // the server stops reading
			answer := make([]byte, 64)
			n, _ := io.ReadAtLeast(conn, answer, 12) // what came is counted
			if line, _, ok := strings.Cut(string(answer[:n]), "\r\n"); ok {
				seen.add(line)
			} else {
				seen.add("closed")
			}
		})
	}
	all.Wait()
}
