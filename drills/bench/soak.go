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
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/goccy/go-yaml"

	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper"
	"ringmain/dataplane/meter"
	"ringmain/drills/bench/rig"
	"ringmain/drills/simmodel"
)

const (
	soakCallers = 64
	faultShare  = 0.02 // of the provider's answers
	leaveShare  = 0.01 // of the clients leave a stream in the middle
	settleTime  = 2 * time.Minute
	minSlope    = 5 * time.Minute // in a shorter soak the bounded memory of receipts is still filling up
)

// soakFaults are what the provider does instead of a good answer.
var soakFaults = []string{
	simmodel.Fault429, simmodel.Fault503, simmodel.FaultReset, "sim-chat:cut=4", "sim-chat:end=4", "sim-chat:stall=4", "sim-chat:error=4",
	"sim-chat:garbage=4", simmodel.FaultEarlyError, simmodel.FaultRefusal, simmodel.RefusalAzure, simmodel.RefusalFinish, simmodel.QuirkNoMark,
	"sim-chat:bad=4", simmodel.QuirkHugeHeaders, simmodel.QuirkSlowHead,
}

// faulty lets a provider fail now and then, whatever was asked.
type faulty struct {
	http.Handler
	on atomic.Bool
	n  atomic.Uint64
}

func (f *faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
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
	serial   atomic.Uint64
	mu       sync.Mutex
	answered map[string]int // request id -> status
	failed   int            // requests without any answer
	broken   int            // answers that broke off or ended with an error event
	last     error
}

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
	s.answered[resp.Header.Get("idc-request-id")] = resp.StatusCode
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

// sample is one look at the node.
type sample struct {
	at         time.Duration
	rss        float64 // MiB, keeper and worker
	goroutines float64 // of both
}

func (s *soaking) look(ctx context.Context, began time.Time) (sample, error) {
	u, err := rig.UsageOf(s.c.PIDs...)
	if err != nil {
		return sample{}, err
	}
	g, err := metric(ctx, http.DefaultClient, s.Node().Metrics, "go_goroutines")
	return sample{time.Since(began), float64(u.RSS) / (1 << 20), g}, err
}

// soak measures the node's capacity, runs o.load of it for o.soak with faults
// on, and fails where something is left behind or not recorded exactly once.
func soak(ctx context.Context, o options) (err error) {
	r, ctx, pair, err := rig.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Stop()) }()
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
	s := &soaking{run: &run{Rig: r}, c: c, answered: map[string]int{}}
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
	progress("soak: capacity %.0f requests/s of the mix, running %.0f for %v; quiet: %.0f MiB, %.0f goroutines", float64(w.n)/5, rate, o.soak, quiet.rss, quiet.goroutines)

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
	books, err := s.books()
	if err != nil {
		return err
	}
	return s.verdict(o, rate, late, samples, quiet, after, books, sim.Counts().Total)
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
		if len(samples)%30 == 0 {
			progress("soak: %v, %.0f MiB, %.0f goroutines", one.at.Round(time.Second), one.rss, one.goroutines)
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

// bookkeeping is what the node's records say.
type bookkeeping struct {
	missing, double, unasked int
	records, attempts        int
	complete                 int
}

// books reads the node's records until every answered request has one.
func (s *soaking) books() (b bookkeeping, err error) {
	n := s.Node()
	var conf struct {
		Cluster, Node string
		SealKeyFile   string `yaml:"seal_key_file"`
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(n.DataDir), "node.yaml"))
	if err == nil {
		err = yaml.Unmarshal(text, &conf)
	}
	if err != nil {
		return b, err
	}
	holder, err := seal.OpenFileHolder(conf.SealKeyFile)
	if err != nil {
		return b, err
	}
	for range 10 {
		b = bookkeeping{}
		seen := map[string]int{}
		if err := keeper.ReadSpool(n.DataDir, conf.Cluster, conf.Node, seal.New(holder), func(raw []byte) error {
			rec, err := meter.Decode(raw)
			if err != nil {
				return err
			}
			seen[rec.RequestID]++
			b.records++
			b.attempts += rec.Attempts
			if rec.Ended == meter.EndComplete {
				b.complete++
			}
			return nil
		}); err != nil {
			return b, err
		}
		for id := range s.answered {
			if seen[id] == 0 {
				b.missing++
			}
		}
		for id, n := range seen {
			if n > 1 {
				b.double++
			}
			if _, ok := s.answered[id]; !ok {
				b.unasked++
			}
		}
		if b.missing == 0 {
			break
		}
		time.Sleep(time.Second)
	}
	return b, nil
}

// slope fits a line to the resident memory of the samples after the first
// third, in MiB an hour, with its standard error.
func slope(samples []sample) (perHour, standardError float64) {
	samples = samples[len(samples)/3:]
	n := float64(len(samples))
	var sx, sy, sxx, sxy float64
	for _, p := range samples {
		x := p.at.Hours()
		sx, sy, sxx, sxy = sx+x, sy+p.rss, sxx+x*x, sxy+x*p.rss
	}
	perHour = (n*sxy - sx*sy) / (n*sxx - sx*sx)
	at := (sy - perHour*sx) / n
	var rest float64
	for _, p := range samples {
		d := p.rss - at - perHour*p.at.Hours()
		rest += d * d
	}
	return perHour, math.Sqrt(rest / (n - 2) / (sxx - sx*sx/n))
}

func (s *soaking) verdict(o options, rate, late float64, samples []sample, quiet, after sample, b bookkeeping, served simmodel.ModelCounts) error {
	if len(samples) < 9 {
		return errors.New("-soak: too short for a slope; want 10s or more")
	}
	perHour, se := slope(samples)
	third, end := samples[len(samples)/3], samples[len(samples)-1]
	statuses := map[int]int{}
	for _, status := range s.answered {
		statuses[status]++
	}
	fmt.Fprintf(os.Stdout, `Soak: %v at %.0f requests/s (%.0f %% of capacity), %.0f %% of the provider's answers faulty; %.1f %% of requests began late.

| what | value |
| --- | --- |
| answered requests, by status | %d, %v |
| without any answer (connection failed) | %d |
| broken off or ended by an error event | %d |
| records missing / double / of requests nobody saw answered | %d / %d / %d |
| attempts recorded, requests counted by the provider | %d, %d |
| answers recorded as complete, by the provider | %d, %d |
| resident memory quiet before, at a third, at the end, quiet after | %.1f, %.1f, %.1f, %.1f MiB |
| slope over the last two thirds | %+.1f MiB/h, standard error %.1f |
| goroutines quiet before, at the end, quiet after | %.0f, %.0f, %.0f |
`, o.soak, rate, 100*o.load, 100*faultShare, 100*late, len(s.answered), statuses, s.failed, s.broken, b.missing, b.double, b.unasked,
		b.attempts, served.Requests, b.complete, served.Completed, quiet.rss, third.rss, end.rss, after.rss, perHour, se,
		quiet.goroutines, end.goroutines, after.goroutines)
	var err error
	if b.missing+b.double > 0 {
		err = errors.Join(err, errors.New("not every answered request was recorded exactly once"))
	}
	if s.failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d requests got no answer at all, the last: %w", s.failed, s.last))
	}
	if after.goroutines > quiet.goroutines+5 {
		err = errors.Join(err, fmt.Errorf("%.0f goroutines were left behind", after.goroutines-quiet.goroutines))
	}
	switch grown := end.rss - third.rss; {
	case o.soak < minSlope:
		progress("soak: under %v bounded memory is still filling up: its growth is not judged", minSlope)
	case perHour > 3*se && grown > 0.02*third.rss:
		err = errors.Join(err, fmt.Errorf("resident memory grew by %.1f MiB", grown))
	}
	return err
}
