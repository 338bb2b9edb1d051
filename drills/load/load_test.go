package load_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"ringmain/controlplane"
	"ringmain/drills/load"
	"ringmain/drills/simmodel"
	"ringmain/internal/testkit/netkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, h http.Handler) (url string, roots *x509.CertPool) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	srv.StartTLS()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	roots = x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	return srv.URL, roots
}

func base(url string, roots *x509.CertPool) load.Config {
	return load.Config{
		Duration: 200 * time.Millisecond, Rate: 100, Seed: 7, Timeout: 10 * time.Second,
		Regions: []load.Entry{{Name: "eu-fra", URL: url, Jurisdiction: "eu"}}, Roots: roots,
		Key: controlplane.NewSecret("key"), Mix: load.Mix{Chat: 1, ChatStream: 1, Messages: 1, MessagesStream: 1},
		ChatModel: "sim-chat", MessagesModel: "sim-messages", PlainTokens: 8, StreamTokens: 20,
	}
}

func run(t *testing.T, cfg load.Config) ([]load.Result, load.Stats) {
	t.Helper()
	var mu sync.Mutex
	var out []load.Result
	stats, err := load.Run(t.Context(), cfg, func(r load.Result) {
		mu.Lock()
		defer mu.Unlock()
		out = append(out, r)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != stats.Planned {
		t.Fatalf("%d results for %d planned requests", len(out), stats.Planned)
	}
	return out, stats
}

// Every fault of the simulated provider, in every shape, is called what a
// client would call it.
func TestClassification(t *testing.T) {
	url, roots := serve(t, simmodel.New(simmodel.Config{}))
	for _, c := range []struct {
		model         string
		plain, stream load.Class
		detail        string
	}{
		{"sim-chat", load.OK, load.OK, ""},
		{"sim-chat:tps=2000:ft=2ms", load.OK, load.OK, ""},
		{simmodel.Fault429, load.Failed, load.Failed, "rate limit"},
		{simmodel.Fault500Once, load.Failed, load.Failed, "once"},
		{simmodel.Fault503, load.Failed, load.Failed, "overloaded"},
		{simmodel.FaultReset, load.Failed, load.Failed, ""},
		{simmodel.FaultSilence, load.Failed, load.Failed, "timeout"},
		{simmodel.FaultCut, load.Truncated, load.Truncated, ""},
		{simmodel.FaultCutClean, load.Truncated, load.WronglyComplete, ""},
		{simmodel.FaultStall, load.Truncated, load.Truncated, "timeout"},
		{simmodel.FaultRefusal, load.Failed, load.Failed, "refused"},
		{simmodel.FaultEarlyError, load.Failed, load.InBandError, ""},
		{simmodel.FaultLateError, load.Failed, load.InBandError, ""},
		{simmodel.FaultGarbage, load.Truncated, load.Truncated, "not JSON"},
	} {
		t.Run(c.model, func(t *testing.T) {
			t.Parallel()
			cfg := base(url, roots)
			cfg.ChatModel, cfg.MessagesModel = c.model, c.model
			if c.model == simmodel.FaultSilence || c.model == simmodel.FaultStall {
				cfg.Timeout = 3 * time.Second
			}
			got, _ := run(t, cfg)
			for _, r := range got {
				want := c.plain
				if r.Stream {
					want = c.stream
				}
				if a := r.Final(); a.Class != want || !strings.Contains(a.Detail, c.detail) {
					t.Errorf("messages=%t stream=%t http2=%t: %s (%d, %s), want %s (%s)", r.Messages, r.Stream, r.HTTP2, a.Class, a.Status, a.Detail, want, c.detail)
				}
				if r.Final().Class == load.OK && (r.Final().FirstToken == 0 || r.Final().End < r.Final().FirstToken) {
					t.Errorf("an answer without a first token: %+v", r.Final())
				}
			}
		})
	}
}

// A gateway that changes one word, mixes up two answers, or sheds is noticed.
func TestTamperingAndShedding(t *testing.T) {
	sim := simmodel.New(simmodel.Config{})
	rewrite := func(change func([]byte) []byte) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			sim.ServeHTTP(rec, r)
			for k, v := range rec.Header() {
				if k != "Content-Length" {
					w.Header()[k] = v
				}
			}
			w.WriteHeader(rec.Code)
			_, _ = w.Write(change(rec.Body.Bytes()))
		})
	}
	other := strings.Join(func() []string {
		tokens, _ := simmodel.Tokens("sim-chat", []simmodel.Message{{Role: "user", Text: "another"}}, 8, 8)
		return tokens
	}(), "")
	for _, c := range []struct {
		name string
		h    http.Handler
		want load.Class
	}{
		{"untouched", rewrite(func(b []byte) []byte { return b }), load.OK},
		{"one letter", rewrite(func(b []byte) []byte {
			b = bytes.Replace(b, []byte(`"content":"`), []byte(`"content":"Q`), 1)
			return bytes.Replace(b, []byte(`"text":"`), []byte(`"text":"Q`), 1)
		}), load.WronglyComplete},
		{"another's answer", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, `{"model":"sim-chat","choices":[{"message":{"content":%q}}],"content":[{"type":"text","text":%q}]}`, other, other)
		}), load.WronglyComplete},
		{"nothing", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"choices":[{}]}`)) }), load.WronglyComplete},
		{"shed", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("retry-after", "1")
			w.Header().Set("idc-error-code", "capacity_shed")
			w.WriteHeader(http.StatusServiceUnavailable)
		}), load.Shed},
	} {
		url, roots := serve(t, c.h)
		cfg := base(url, roots)
		cfg.Mix = load.Mix{Chat: 1, Messages: 1}
		got, _ := run(t, cfg)
		for _, r := range got {
			if a := r.Final(); a.Class != c.want || (c.want == load.Shed && a.Code != "capacity_shed") {
				t.Errorf("%s, messages=%t: %s %s %s, want %s", c.name, r.Messages, a.Class, a.Code, a.Detail, c.want)
			}
		}
	}
}

// One stall of 2 s: every request planned during it waits, and the latencies
// say so. A closed loop would have stopped asking and shown one slow answer.
func TestLatencyCountsFromThePlan(t *testing.T) {
	sim := simmodel.New(simmodel.Config{})
	began := time.Now()
	url, roots := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if at := time.Since(began); at > 500*time.Millisecond {
			time.Sleep(2500*time.Millisecond - at)
		}
		sim.ServeHTTP(w, r)
	}))
	cfg := base(url, roots)
	cfg.Duration, cfg.Rate = 3*time.Second, 60
	got, stats := run(t, cfg)
	var latencies []time.Duration
	slow := 0
	for _, r := range got {
		if r.Final().Class != load.OK {
			t.Errorf("%+v", r.Final())
		}
		l := r.Final().End - r.At
		latencies = append(latencies, l)
		if l > 500*time.Millisecond {
			slow++
		}
	}
	slices.Sort(latencies)
	if p99 := latencies[len(latencies)*99/100]; p99 < 1500*time.Millisecond {
		t.Errorf("p99 %s hides a stall of 2 s", p99)
	}
	if share := float64(slow) / float64(len(got)); share < 0.4 {
		t.Errorf("%.0f %% slower than 500 ms; 1.5 s of 3 s are", share*100)
	}
	if stats.NotSent > 0 || stats.InFlightMax < 60 {
		t.Errorf("the generator waited for answers: %+v", stats)
	}
}

func TestTooManyInFlightIsSaid(t *testing.T) {
	url, roots := serve(t, simmodel.New(simmodel.Config{}))
	cfg := base(url, roots)
	// None of the three is over before the last one is due, however late that goes.
	cfg.ChatModel, cfg.Mix, cfg.Timeout, cfg.MaxInFlight = simmodel.FaultSilence, load.Mix{Chat: 1}, 3*time.Second, 3
	got, stats := run(t, cfg)
	if stats.NotSent != stats.Planned-3 {
		t.Errorf("%+v, want all but 3 not sent", stats)
	}
	for _, r := range got {
		if c := r.Final().Class; c != load.NotSent && c != load.Failed {
			t.Errorf("%s", c)
		}
	}
}

// A client whose region is gone asks the next region, but never one its pin
// forbids; one by the front door does not.
func TestRepeatsAtTheNextRegion(t *testing.T) {
	url, roots := serve(t, simmodel.New(simmodel.Config{}))
	gone := "https://" + netkit.Address()
	cfg := base(url, roots)
	cfg.Rate, cfg.PinnedShare, cfg.FrontDoor, cfg.FrontDoorShare = 400, 0.5, gone, 0.2
	cfg.Regions = []load.Entry{{Name: "us-east", URL: gone, Jurisdiction: "us"}, {Name: "eu-fra", URL: url, Jurisdiction: "eu"}}
	got, _ := run(t, cfg)
	seen := map[string]int{}
	for _, r := range got {
		kind := fmt.Sprintf("%s pinned=%t", r.Entry, r.Residency != "")
		seen[kind]++
		first, final, n := r.First(), r.Final(), len(r.Attempts)
		var ok bool
		switch kind {
		case "us-east pinned=false":
			ok = n == 2 && first.Class == load.Failed && first.Detail == "connection refused" && final.Class == load.OK && final.Entry == "eu-fra"
		case "us-east pinned=true", load.FrontDoor + " pinned=false":
			ok = n == 1 && final.Class == load.Failed
		default:
			ok = n == 1 && final.Class == load.OK
		}
		if !ok {
			t.Errorf("%s: %+v", kind, r.Attempts)
		}
	}
	if len(seen) != 5 {
		t.Errorf("kinds of request sent: %v", seen)
	}
}

func TestStopsWithItsContext(t *testing.T) {
	url, roots := serve(t, simmodel.New(simmodel.Config{}))
	cfg := base(url, roots)
	cfg.Duration, cfg.ChatModel, cfg.MessagesModel = time.Minute, simmodel.FaultSilence, simmodel.FaultStall
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := load.Run(ctx, cfg, func(load.Result) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s to stop", took)
	}
}

func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := load.Config{
			Rate: rapid.Float64Range(1, 200).Draw(t, "rate"), Duration: time.Duration(rapid.IntRange(1, 20).Draw(t, "seconds")) * time.Second,
			Seed: rapid.Uint64().Draw(t, "seed"), Regions: []load.Entry{{Name: "a", Jurisdiction: "x"}, {Name: "b", Jurisdiction: "y"}},
			FrontDoor: "https://door", FrontDoorShare: 0.25, RemoteShare: 0.5, PinnedShare: 0.5, RemoteModel: "far", ChatModel: "chat", MessagesModel: "msg",
			Mix: load.Mix{Chat: 1, MessagesStream: 2},
		}
		plan := load.Plan(cfg)
		if !slices.Equal(plan, load.Plan(cfg)) {
			t.Fatal("the same seed gave two plans")
		}
		if want := cfg.Rate * cfg.Duration.Seconds(); float64(len(plan)) < want-1 || float64(len(plan)) > want+2 {
			t.Fatalf("%d requests, want about %.0f", len(plan), want)
		}
		for i, r := range plan {
			switch {
			case r.N != i || (i > 0 && r.At <= plan[i-1].At) || r.At >= cfg.Duration:
				t.Fatalf("request %d at %s", r.N, r.At)
			case r.Messages != r.Stream, r.Messages && r.Model != "msg":
				t.Fatalf("outside the mix: %+v", r)
			case r.Residency != "" && (r.Entry == load.FrontDoor || r.Model == "far" || (r.Entry == "a") != (r.Residency == "x")):
				t.Fatalf("pinned wrongly: %+v", r)
			}
		}
	})
}
