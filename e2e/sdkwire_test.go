package e2e

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3/option"

	"ringmain/drills/fault"
	"ringmain/drills/simmodel"
)

// witness is a provider of the test's own, with what it was asked.
type witness struct {
	url, roots string

	mu   sync.Mutex
	seen []seen
}

type seen struct {
	at     time.Time
	header http.Header
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	w := new(witness)
	provider := simmodel.New(simmodel.Config{OnRequest: func(r *http.Request, _ []byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen = append(w.seen, seen{time.Now(), r.Header.Clone()})
	}})
	server := httptest.NewTLSServer(provider)
	t.Cleanup(server.Close)
	w.url, w.roots = server.URL, filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(w.roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// take gives what was seen, and forgets it.
func (w *witness) take() []seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.seen
	w.seen = nil
	return all
}

const ownPause = 2500 * time.Millisecond

func (w *witness) routes(t *testing.T) string {
	t.Helper()
	text := fmt.Sprintf(`upstreams:
  - {name: own, provider: own, region: us-east, dialect: openai, base_url: %[1]q, auth: none, terms: {retention: zero, prompt_cache: none, training: never, contract: "%[3]s", dated: "2026-01-01"}}
  - {name: own-anthropic, provider: own, region: us-east, dialect: anthropic, base_url: %[1]q, auth: none, terms: {retention: zero, prompt_cache: none, training: never, contract: "%[3]s", dated: "2026-01-01"}}
routes:
  - {model: own, targets: [{upstream: own, model: own}]}
  - {model: own-messages, targets: [{upstream: own-anthropic, model: own}]}
  - {model: own-busy, targets: [{upstream: own, model: "sim-429:retry=%[2]s"}]}
  - {model: own-busy-messages, targets: [{upstream: own-anthropic, model: "sim-429:retry=%[2]s"}]}
  - {model: slow, targets: [{upstream: sim-us-east, model: "sim-slow:tps=4"}, {upstream: sim-eu-fra, model: "sim-slow:tps=4"}]}
  - {model: slow-messages, targets: [{upstream: sim-us-east-anthropic, model: "sim-slow:tps=4"}, {upstream: sim-eu-fra-anthropic, model: "sim-slow:tps=4"}]}
`, w.url, ownPause, strings.Repeat("0", 64))
	path := filepath.Join(t.TempDir(), "own.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestClientsOnTheWire: what a provider sees of the clients, and the clients of
// a region that renews its connections, or dies.
func TestClientsOnTheWire(t *testing.T) {
	w := newWitness(t)
	d := small(t, 27440, "us-east:us,eu-fra:eu", "--upstream-ca", w.roots, "--seed", w.routes(t))
	t.Run("the provider sees the pause that it asked for", func(t *testing.T) { pausesAreSeen(t, d, w) })
	t.Run("header fields of clients stay here", func(t *testing.T) { headersStay(t, d, w) })
	t.Run("connections age under a client that keeps them", func(t *testing.T) { connectionsAge(t, d) })
	t.Run("the region of entry dies", func(t *testing.T) { entryDies(t, d) })
}

func pausesAreSeen(t *testing.T, d *devCluster, w *witness) {
	base := d.Regions[0].API
	var wire hearer
	oc := openaiClient(d, base, d.APIKey, option.WithMaxRetries(1), option.WithMiddleware(wire.note))
	ac := anthropicClient(d, base, d.APIKey, anthropicoption.WithMaxRetries(1), anthropicoption.WithMiddleware(wire.note))
	for name, call := range map[string]func() error{
		"openai":    func() error { _, err := oc.Chat.Completions.New(t.Context(), chatAsk("own-busy")); return err },
		"anthropic": func() error { _, err := ac.Messages.New(t.Context(), messageAsk("own-busy-messages")); return err },
	} {
		w.take()
		if err := call(); err == nil {
			t.Fatalf("%s: answered", name)
		}
		all, told := w.take(), wire.take()
		if len(all) != 2 {
			t.Errorf("%s: the provider was asked %d times, want 2; the client heard %v", name, len(all), told)
		} else if pause := all[1].at.Sub(all[0].at); pause < ownPause {
			t.Errorf("%s: the provider saw a pause of %v, after asking for %v", name, pause, ownPause)
		}
	}
}

func headersStay(t *testing.T, d *devCluster, w *witness) {
	base := d.Regions[1].API // forwarded: no node on the way may add to them
	oc := openaiClient(d, base, d.APIKey, option.WithOrganization("org-theirs"), option.WithHeader("x-team", "search"))
	ac := anthropicClient(d, base, d.APIKey, anthropicoption.WithHeader("x-team", "search"))
	w.take()
	if _, err := oc.Chat.Completions.New(t.Context(), chatAsk("own")); err != nil {
		t.Fatal(err)
	}
	ask := anthropic.BetaMessageNewParams{Model: "own-messages", MaxTokens: 8, Betas: []anthropic.AnthropicBeta{"context-1m-2025-08-07"},
		Messages: []anthropic.BetaMessageParam{anthropic.NewBetaUserMessage(anthropic.NewBetaTextBlock(question))}}
	if _, err := ac.Beta.Messages.New(t.Context(), ask); err != nil {
		t.Fatal(err)
	}
	all := w.take()
	if len(all) != 2 || all[1].header.Get("anthropic-beta") != "context-1m-2025-08-07" {
		t.Fatalf("the provider saw %+v", all)
	}
	for _, one := range all {
		for name, values := range one.header {
			name, value := strings.ToLower(name), strings.Join(values, ", ")
			if strings.HasPrefix(name, "x-stainless") || strings.HasPrefix(name, "idc-") || strings.HasPrefix(name, "openai-") || name == "x-team" || name == "x-api-key" || name == "authorization" ||
				strings.Contains(value, d.APIKey) || strings.Contains(value, "OpenAI/Go") || strings.Contains(value, "Anthropic/Go") {
				t.Errorf("the provider saw %s: %s", name, value)
			}
		}
	}
}

// connectionsAge: a client that keeps its connections is told to go in time, and
// notices nothing.
func connectionsAge(t *testing.T, d *devCluster) {
	n := d.node(t, 0, "data")
	b, err := os.ReadFile(nodeFile(n))
	if err != nil {
		t.Fatal(err)
	}
	aged := strings.Replace(string(b), "conn_age: 0s", "conn_age: 1s", 1)
	if aged == string(b) {
		t.Fatalf("no conn_age in %s", b)
	}
	reread := func(text []byte) {
		if err := os.WriteFile(nodeFile(n), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(d.now(t, n.Name).PID, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	reread([]byte(aged))
	defer reread(b)
	eventually(t, 10*time.Second, func() error { // connections that are open keep the age they had
		client := d.client(false)
		defer client.CloseIdleConnections()
		for until := time.Now().Add(2 * time.Second); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
			resp, err := client.Get(n.API + "/livez")
			if err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.Close {
				return nil
			}
		}
		return errors.New("the age is not in force yet")
	})

	const lasting = 5 * time.Second
	var all sync.WaitGroup
	for _, h2 := range []bool{false, true} {
		client := d.client(h2)
		defer client.CloseIdleConnections()
		var asked, opened atomic.Int64
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
			if asked.Add(1); !i.Reused {
				opened.Add(1)
			}
		}})
		ask := func() error {
			body := fmt.Sprintf(`{"model":%q,"stream":true,"max_tokens":20,"messages":[{"role":"user","content":"hello"}]}`, d.Model)
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.Regions[0].API+"/v1/chat/completions", strings.NewReader(body))
			if err != nil {
				return err
			}
			req.Header.Set("authorization", "Bearer "+d.APIKey)
			req.Header.Set("content-type", "application/json")
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err == nil && (resp.StatusCode != http.StatusOK || !strings.HasSuffix(string(b), "data: [DONE]\n\n")) {
				err = fmt.Errorf("%d %s", resp.StatusCode, b)
			}
			return err
		}
		for range 4 {
			all.Go(func() {
				for until := time.Now().Add(lasting); time.Now().Before(until); {
					if err := ask(); err != nil {
						t.Errorf("h2 %t: %v", h2, err)
						return
					}
				}
			})
		}
		t.Cleanup(func() {
			t.Logf("h2 %t: %d requests on %d connections", h2, asked.Load(), opened.Load())
			if least := map[bool]int64{false: 8, true: 3}[h2]; opened.Load() < least || opened.Load() > asked.Load()/2 {
				t.Errorf("h2 %t: %d requests on %d connections, want %d or more, each used more than once", h2, asked.Load(), opened.Load(), least)
			}
		})
	}
	all.Wait()
}

// entryDies: streams that entered through a region that dies end in an error of
// their client's, and the next request of the same client enters elsewhere.
func entryDies(t *testing.T, d *devCluster) {
	lost := d.Regions[0].Name
	oc, ac := openaiClient(d, d.FrontDoor, d.APIKey, option.WithMaxRetries(2)), anthropicClient(d, d.FrontDoor, d.APIKey, anthropicoption.WithMaxRetries(2))
	type caller struct {
		name   string
		stream func(began func()) error
		next   func(**http.Response) error
	}
	callers := []caller{
		{"chat", func(began func()) error {
			stream := oc.Chat.Completions.NewStreaming(t.Context(), chatAsk("slow"))
			for stream.Next() {
				began()
			}
			return stream.Err()
		}, func(resp **http.Response) error {
			_, err := oc.Chat.Completions.New(t.Context(), chatAsk(d.Model), option.WithResponseInto(resp))
			return err
		}},
		{"responses", func(began func()) error {
			stream := oc.Responses.NewStreaming(t.Context(), responseAsk("slow"))
			for stream.Next() {
				began()
			}
			return stream.Err()
		}, func(resp **http.Response) error {
			_, err := oc.Responses.New(t.Context(), responseAsk(d.Model), option.WithResponseInto(resp))
			return err
		}},
		{"messages", func(began func()) error {
			stream := ac.Messages.NewStreaming(t.Context(), messageAsk("slow-messages"))
			for stream.Next() {
				began()
			}
			return stream.Err()
		}, func(resp **http.Response) error {
			_, err := ac.Messages.New(t.Context(), messageAsk(d.MessagesModel), anthropicoption.WithResponseInto(resp))
			return err
		}},
	}
	var began sync.WaitGroup
	ends := make([]chan error, len(callers))
	for i, c := range callers {
		var resp *http.Response
		if err := c.next(&resp); err != nil || resp.Header.Get("idc-entry-region") != lost {
			t.Fatalf("%s: %v, entered elsewhere than in %s", c.name, err, lost)
		}
		ends[i] = make(chan error, 1)
		began.Add(1)
		go func() {
			var once sync.Once
			err := c.stream(func() { once.Do(began.Done) })
			once.Do(began.Done)
			ends[i] <- err
		}()
	}
	began.Wait()
	control, err := fault.Dial(t.Context(), d.Supervisor)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if err := control.Hold(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	n := d.now(t, d.node(t, 0, "data").Name)
	end(t, syscall.SIGKILL, n.PID, n.WorkerPID)
	for i, c := range callers {
		select {
		case err := <-ends[i]:
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: a stream whose region died ended with %v", c.name, err)
			}
			t.Logf("%s sees %T %v", c.name, err, err)
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the stream has no end", c.name)
		}
	}
	for _, c := range callers {
		began := time.Now()
		var resp *http.Response
		if err := c.next(&resp); err != nil || resp.Header.Get("idc-entry-region") == lost {
			t.Errorf("%s: the next request: %v", c.name, err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: the next request took %v", c.name, took)
		}
	}
	if err := control.Release(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
}
