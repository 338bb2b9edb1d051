package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ringmain/drills/bench/rig"
)

// window is what one contender did in one round.
type window struct {
	n      int
	values []value
}

// line says what a window cost, for whoever waits for the tables.
func (w window) line(name string) string {
	var b strings.Builder
	for _, v := range w.values {
		if v.cost {
			fmt.Fprintf(&b, "; %s %s", short(v.value), v.name)
		}
	}
	return fmt.Sprintf("\n  %s%s; n %d", name, b.String(), w.n)
}

type value struct {
	name  string
	value float64
	cost  bool // of the contender, so that ratios mean something
}

// outcome is what a caller counted.
type outcome struct {
	n     int             // requests or events
	times []time.Duration // latencies
}

func (r *run) client(h2 bool) *http.Client {
	t := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: r.Roots, MinVersion: tls.VersionTLS13, ClientSessionCache: tls.NewLRUClientSessionCache(64)},
		MaxIdleConns:        4096,
		MaxIdleConnsPerHost: 4096,
		Protocols:           new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetHTTP2(h2)
	return &http.Client{Transport: t}
}

func post(ctx context.Context, c *rig.Contender, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.Addr+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.Key)
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200)) // best effort: it explains the failure
		_ = resp.Body.Close()
		return nil, fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	return resp, nil
}

// plain asks for one answer and reads it.
func plain(ctx context.Context, c *rig.Contender, body string, out *outcome) error {
	at := time.Now()
	resp, err := post(ctx, c, body)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close() // read side
	if err == nil && n != int64(len(rig.AnswerBody)) {
		err = fmt.Errorf("%d bytes, want %d", n, len(rig.AnswerBody))
	}
	out.n++
	out.times = append(out.times, time.Since(at))
	return err
}

// stream asks for one stream and reads it to its end mark; each event carries
// the time at which the provider wrote it.
func stream(ctx context.Context, c *rig.Contender, mode string, out *outcome) error {
	began := time.Now()
	resp, err := post(ctx, c, rig.Request(mode))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	events, done := 0, false
	for lines := bufio.NewReader(resp.Body); ; {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if !bytes.HasPrefix(line, []byte("data: ")) {
			continue
		}
		done = bytes.HasPrefix(line, []byte("data: [DONE]"))
		events++
		switch {
		case mode == "first" && events == 1:
			out.times = append(out.times, time.Since(began))
		case mode == "paced" && !done && len(line) > len(rig.EventHead)+rig.StampDigits:
			written, err := strconv.ParseInt(string(line[len(rig.EventHead):len(rig.EventHead)+rig.StampDigits]), 10, 64)
			if err != nil {
				return fmt.Errorf("an event was changed on its way: %w", err)
			}
			out.times = append(out.times, time.Duration(time.Now().UnixNano()-written))
		}
	}
	want := rig.EventsPerStream + 3
	if mode == "first" {
		want = 4
	}
	if !done || events != want {
		return fmt.Errorf("a stream of %d events, complete: %t; want %d", events, done, want)
	}
	out.n += events
	return nil
}

// rounds measures every contender in rotated order, one warm-up round and
// o.rounds more, and adds rows. unit names what is counted and per is how many
// of them the costs are given for.
func (r *run) rounds(ctx context.Context, o options, part string, h2 bool, callers int, span time.Duration, unit string, per float64, once func(context.Context, *rig.Contender, *outcome) error) error {
	protocol := map[bool]string{false: "HTTP/1.1", true: "HTTP/2"}[h2]
	got := make([][]window, len(r.Contenders))
	for i := range r.Contenders {
		r.Contenders[i].HTTP = r.client(h2)
		defer r.Contenders[i].HTTP.CloseIdleConnections()
	}
	for round := range o.rounds + 1 {
		var said []string
		for k := range r.Contenders {
			i := (k + round) % len(r.Contenders) // rotate, so that none always runs first
			length := span
			if round == 0 {
				length = min(span, max(span/4, 250*time.Millisecond))
			}
			c := r.Contenders[i]
			measure := func() (window, error) { return r.window(ctx, c, callers, length, unit, per, once) }
			if round == o.rounds && slices.Contains(strings.Split(o.profile, ","), c.Name) {
				unprofiled := measure
				measure = func() (window, error) { return r.profiled(ctx, c, unprofiled) }
			}
			w, err := measure()
			if err != nil {
				return fmt.Errorf("%s, %s, %d callers: %w", c.Name, protocol, callers, err)
			}
			if round > 0 {
				got[i] = append(got[i], w)
				said = append(said, w.line(c.Name))
			}
		}
		progress("%s, %s, %d callers, round %d of %d%s", part, protocol, callers, round, o.rounds, strings.Join(said, ""))
	}
	r.figures(part, protocol, callers, got)
	return nil
}

// window runs a closed loop of callers for span.
func (r *run) window(ctx context.Context, c *rig.Contender, callers int, span time.Duration, unit string, per float64, once func(context.Context, *rig.Contender, *outcome) error) (window, error) {
	counter := new(rig.Counter)
	if r.Perf {
		var err error
		if counter, err = rig.CountInstructions(c.PIDs...); err != nil {
			return window{}, err
		}
		defer counter.Close()
	}
	before, err := rig.UsageOf(c.PIDs...)
	if err != nil {
		return window{}, err
	}
	var (
		mu    sync.Mutex
		total outcome
		fails int
		first error
		all   sync.WaitGroup
		began = time.Now()
	)
	for range callers {
		all.Go(func() {
			var mine outcome
			var failed int
			var last error
			for time.Since(began) < span && ctx.Err() == nil && failed < 10 {
				if err := once(ctx, c, &mine); err != nil {
					failed++
					last = err
				}
			}
			mu.Lock()
			defer mu.Unlock()
			total.n += mine.n
			total.times = append(total.times, mine.times...)
			fails += failed
			if first == nil {
				first = last
			}
		})
	}
	all.Wait()
	wall := time.Since(began)
	after, err := rig.UsageOf(c.PIDs...)
	if err != nil {
		return window{}, err
	}
	counted, err := counter.Read()
	if err != nil {
		return window{}, err
	}
	if ctx.Err() != nil {
		return window{}, ctx.Err()
	}
	if fails > 0 || total.n == 0 {
		return window{}, fmt.Errorf("%d of %d failed: %w", fails, total.n, first)
	}
	slices.Sort(total.times)
	w := window{n: total.n, values: []value{
		{fmt.Sprintf("CPU s/%s %ss", thousands(per), unit), (after.CPU - before.CPU).Seconds() * per / float64(total.n), true},
	}}
	if r.Perf {
		each := func(n uint64) float64 { return float64(n) / 1000 / float64(total.n) }
		w.values = append(w.values, value{"k instructions/" + unit, each(counted.User + counted.Kernel), true},
			value{"user", each(counted.User), true}, value{"kernel", each(counted.Kernel), true})
	}
	w.values = append(w.values, value{unit + "s/s", float64(total.n) / wall.Seconds(), false})
	if len(total.times) > 0 {
		w.values = append(w.values, value{"p50 ms", ms(quantile(total.times, .5)), false}, value{"p99 ms", ms(quantile(total.times, .99)), false})
	}
	return w, nil
}

func thousands(per float64) string {
	if per >= 1e6 {
		return "1M"
	}
	return "1k"
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// hold opens an idle stream over HTTP/1.1 from source and returns once its
// first event is there; it needs no goroutine to stay open.
func (r *run) hold(ctx context.Context, c *rig.Contender, source net.IP) (net.Conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: source}}, Config: &tls.Config{RootCAs: r.Roots, MinVersion: tls.VersionTLS13}}
	conn, err := d.DialContext(ctx, "tcp", c.Addr)
	if err != nil {
		return nil, err
	}
	body := rig.Request("idle")
	_, err = fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", c.Addr, c.Key, len(body), body)
	var got []byte
	for part := make([]byte, 4<<10); err == nil && !bytes.Contains(got, []byte(" leaves")); {
		var n int
		n, err = conn.Read(part)
		got = append(got, part[:n]...)
		if bytes.HasPrefix(got, []byte("HTTP/1.1 4")) || bytes.HasPrefix(got, []byte("HTTP/1.1 5")) {
			err = fmt.Errorf("%.300s", got)
		}
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}
