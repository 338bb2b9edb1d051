package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/drills/bench/rig"
	"ringmain/drills/simmodel"
)

const (
	soakCallers = 64
	faultShare  = 0.02 // of the provider's answers
	leaveShare  = 0.01 // of the clients leave a stream in the middle
	settleTime  = 2 * time.Minute
)

// soakFaults are what the provider does instead of a good answer.
var soakFaults = []string{
	simmodel.Fault429, simmodel.Fault503, simmodel.FaultReset, "sim-chat:cut=4", "sim-chat:end=4", "sim-chat:stall=4", "sim-chat:error=4",
	"sim-chat:garbage=4", simmodel.FaultEarlyError, simmodel.FaultRefusal, simmodel.RefusalAzure, simmodel.RefusalFinish, simmodel.QuirkNoMark,
	"sim-chat:bad=4", simmodel.QuirkHugeHeaders, simmodel.QuirkSlowHead,
}

// faulty lets a provider fail now and then, whatever was asked, and counts how
// often each request came.
type faulty struct {
	http.Handler
	on atomic.Bool
	n  atomic.Uint64

	mu    sync.Mutex
	asked []uint8 // by the request's serial number
	torn  int     // requests whose body broke off
}

// came notes that a request was read.
func (f *faulty) came(body []byte) {
	_, rest, _ := bytes.Cut(body, []byte(rig.Prompt+" "))
	digits, _, _ := bytes.Cut(rest, []byte{'"'})
	serial, err := strconv.Atoi(string(digits))
	if err != nil {
		return // not of the mix
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if more := serial + 1 - len(f.asked); more > 0 {
		f.asked = append(f.asked, make([]uint8, more)...)
	}
	f.asked[serial]++
}

func (f *faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.mu.Lock()
		f.torn++
		f.mu.Unlock()
		return
	}
	f.came(body)
	if f.on.Load() && rand.Float64() < faultShare { //nolint:gosec // G404: spreads faults, guards nothing
		fault := soakFaults[f.n.Add(1)%uint64(len(soakFaults))]
		body = bytes.Replace(body, []byte(`"sim-chat"`), []byte(`"`+fault+`"`), 1)
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	f.Handler.ServeHTTP(w, r)
}

const soakManifest = `upstreams:
  - {name: soak-a, provider: soak, region: us-east, dialect: openai, base_url: "https://%[1]s", auth: none, simulated: true, %[2]s}
  - {name: soak-b, provider: soak, region: us-east, dialect: openai, base_url: "https://%[1]s", auth: none, simulated: true, %[2]s}
  - {name: soak-m, provider: soak, region: us-east, dialect: anthropic, base_url: "https://%[1]s", auth: none, simulated: true, %[2]s}
routes:
  - {model: soak, targets: [{upstream: soak-a, model: sim-chat}, {upstream: soak-b, model: sim-chat}], timeouts: {between_events_ms: 1000, first_byte_ms: 3000}}
  - {model: soak-messages, targets: [{upstream: soak-m, model: sim-chat}], timeouts: {between_events_ms: 1000, first_byte_ms: 3000}}
`

// soakKinds are the requests of the mix, sent in turn.
var soakKinds = []struct {
	path, body string
	stream     bool
}{
	{"/v1/chat/completions", `{"model":"soak","messages":[{"role":"user","content":"` + rig.Prompt + ` %d"}]}`, false},
	{"/v1/chat/completions", `{"model":"soak","stream":true,"messages":[{"role":"user","content":"` + rig.Prompt + ` %d"}]}`, true},
	{"/v1/chat/completions", `{"model":"soak","stream":true,"temperature":0,"messages":[{"role":"user","content":"` + rig.Prompt + ` %d"}]}`, true},
	{"/v1/messages", `{"model":"soak-messages","stream":true,"max_tokens":64,"messages":[{"role":"user","content":"` + rig.Prompt + ` %d"}]}`, true},
	{"/v1/messages", `{"model":"soak-messages","max_tokens":64,"messages":[{"role":"user","content":"` + rig.Prompt + ` %d"}]}`, false},
}

// soaking is a soak under way.
type soaking struct {
	*run
	c        *rig.Contender
	provider *faulty
	serial   atomic.Uint64
	mu       sync.Mutex
	answered map[string]reply // by request id
	failed   int              // requests without any answer
	broken   int              // answers that broke off or ended with an error event
	last     error
	shown    sample // what the worker showed last
}

// reply is an answer that came.
type reply struct{ serial, status int }

// once asks one of the mix and notes what came back.
func (s *soaking) once(ctx context.Context, _ *rig.Contender, out *outcome) error {
	n := s.serial.Add(1)
	kind := soakKinds[n%uint64(len(soakKinds))]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+s.c.Addr+kind.path, strings.NewReader(fmt.Sprintf(kind.body, n)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+s.c.Key)
	resp, err := s.c.HTTP.Do(req)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failed, s.last = s.failed+1, err
		return nil
	}
	defer resp.Body.Close()
	s.mu.Lock()
	s.answered[resp.Header.Get("idc-request-id")] = reply{int(n), resp.StatusCode}
	s.mu.Unlock()
	out.n++
	if kind.stream && rand.Float64() < leaveShare { //nolint:gosec // G404: spreads departures, guards nothing
		_, _ = io.ReadAtLeast(resp.Body, make([]byte, 64), 1) // whatever is there
		return nil
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode == http.StatusOK && bytes.Contains(text, []byte(`"error"`)) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.broken++
	}
	return nil
}

// sample is one look at the node. Memory is resident, in MiB.
type sample struct {
	at         time.Duration
	keeper     float64
	worker     float64
	goroutines float64 // of both
	keeperGoal float64 // MiB that the collector lets the heap reach: twice what it last found in use
	workerGoal float64
	stored     float64 // MiB of receipts on disk
	recent     float64 // MiB of receipts in the worker's memory
}

func (p *sample) rss() float64 { return p.keeper + p.worker }

// look reads what the system and the node's own metrics say. A worker that is
// too busy for its metrics shows what it showed last.
func (s *soaking) look(ctx context.Context, began time.Time) (p sample, err error) {
	for i, into := range []*float64{&p.keeper, &p.worker} {
		u, err := rig.UsageOf(s.c.PIDs[i])
		if err != nil {
			return p, err
		}
		*into = float64(u.RSS) / mib
	}
	page, err := s.scrape(ctx)
	if err != nil {
		return p, err
	}
	const goal = "go_memstats_next_gc_bytes"
	if n, ok := page["ringmain_worker_go_goroutines"]; ok {
		s.shown.goroutines, s.shown.recent, s.shown.workerGoal = n, page["ringmain_receipt_memory_bytes"]/mib, page["ringmain_worker_"+goal]/mib
	}
	p.goroutines, p.recent, p.stored = page["go_goroutines"]+s.shown.goroutines, s.shown.recent, page["ringmain_receipts_bytes"]/mib
	p.keeperGoal, p.workerGoal = page[goal]/mib, s.shown.workerGoal
	p.at = time.Since(began)
	return p, nil
}

// scrape reads the node's metrics that have no labels.
func (s *soaking) scrape(ctx context.Context) (map[string]float64, error) {
	url := s.Node().Metrics
	page, err := rig.Metrics(ctx, url)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"go_goroutines", "ringmain_receipts_bytes"} {
		if _, ok := page[name]; !ok {
			return nil, fmt.Errorf("%s shows no %s", url, name)
		}
	}
	return page, nil
}

const mib = 1 << 20

// soak measures the node's capacity, runs o.load of it for o.soak with faults
// on, and fails where something is left behind or not recorded exactly once.
func soak(ctx context.Context, o options) (err error) {
	r, ctx, pair, err := rig.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Stop()) }()
	// The store of receipts is to be full, and in its steady state, for most of the time.
	if err := os.Setenv("RINGMAIN_TUNABLES_RECEIPT_DISK", strconv.FormatUint(o.receipts<<20, 10)); err != nil {
		return err
	}
	sim := simmodel.New(simmodel.Config{Name: "soak"})
	provider := &faulty{Handler: sim}
	addr, err := rig.ServeTLS(ctx, "127.0.0.1:0", pair, o.upH2, provider)
	if err != nil {
		return err
	}
	c, err := r.StartRingmain(ctx, o.binary, fmt.Sprintf(soakManifest, addr, rig.Terms), 4096, o.port)
	if err != nil {
		return err
	}
	s := &soaking{run: &run{Rig: r}, c: c, provider: provider, answered: map[string]reply{}}
	c.HTTP = s.client(false)
	w, err := s.window(ctx, c, soakCallers, 5*time.Second, "request", 1000, s.once)
	if err != nil {
		return err
	}
	rate := o.load * float64(w.n) / 5
	c.HTTP.CloseIdleConnections()
	quiet, err := s.quiet(ctx, math.Inf(1))
	if err != nil {
		return err
	}
	progress("soak: capacity %.0f requests/s of the mix, running %.0f for %v; quiet: %.0f MiB, %.0f goroutines", float64(w.n)/5, rate, o.soak, quiet.rss(), quiet.goroutines)

	provider.on.Store(true)
	samples, late, err := s.keep(ctx, o.soak, rate)
	if err != nil {
		return err
	}
	provider.on.Store(false)
	c.HTTP.CloseIdleConnections()
	after, err := s.quiet(ctx, quiet.goroutines)
	if err != nil {
		return err
	}
	progress("soak: reading the records of %d answers", len(s.answered))
	books, err := s.books()
	if err != nil {
		return err
	}
	v := s.judge(o, rate, late, samples, quiet, after, books, sim.Counts().Total)
	return v.give(o)
}

// keep keeps the rate with callers of their own schedules; late is the share of
// requests that began over 1 s after their time.
func (s *soaking) keep(ctx context.Context, d time.Duration, rate float64) (samples []sample, late float64, err error) {
	began := time.Now()
	var all sync.WaitGroup
	var slow, sent atomic.Int64
	for i := range soakCallers {
		all.Go(func() {
			step := time.Duration(float64(time.Second) * soakCallers / rate)
			next := began.Add(step * time.Duration(i) / soakCallers)
			for next.Sub(began) < d && ctx.Err() == nil {
				time.Sleep(time.Until(next))
				if time.Since(next) > time.Second {
					slow.Add(1)
					next = time.Now() // not made up for: the rate is a limit, not a debt
				}
				sent.Add(1)
				_ = s.once(ctx, s.c, new(outcome)) // notes its own failures
				next = next.Add(step)
			}
		})
	}
	for tick := time.NewTicker(time.Second); time.Since(began) < d && ctx.Err() == nil; {
		<-tick.C
		one, lookErr := s.look(ctx, began)
		if lookErr != nil {
			err = lookErr
			break
		}
		samples = append(samples, one)
		if len(samples)%10 == 0 {
			progress("soak: %v of %v, %d requests, keeper %.1f MiB, worker %.1f MiB, %.0f goroutines, %.0f MiB of receipts on disk",
				one.at.Round(time.Second), d, sent.Load(), one.keeper, one.worker, one.goroutines, one.stored)
		}
	}
	all.Wait()
	return samples, float64(slow.Load()) / float64(max(1, sent.Load())), errors.Join(err, ctx.Err())
}

// quiet waits until the node has no more than want goroutines (and the number
// stands still), at most settleTime, and looks.
func (s *soaking) quiet(ctx context.Context, want float64) (last sample, err error) {
	began := time.Now()
	for still := 0; time.Since(began) < settleTime && still < 5; {
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(time.Second):
		}
		now, err := s.look(ctx, began)
		if err != nil {
			return last, err
		}
		still++
		if now.goroutines > want+5 || math.Abs(now.goroutines-last.goroutines) > 5 {
			still = 0
		}
		last = now
	}
	return last, nil
}
