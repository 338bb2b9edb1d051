package dataplane_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
)

// secureProvider runs a scripted upstream over TLS that the ring's nodes trust.
func (r *ring) secureProvider(h http.Handler, http2 bool) string {
	r.t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = http2
	s.Config.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10} // what is not read waits at the sender
	s.StartTLS()
	r.t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	r.upstreamCA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	return s.URL
}

// threeUpstreams adds model, whose upstreams in region are all at url.
func (r *ring) threeUpstreams(model, region, url string) {
	var targets []registry.Target
	for i := range 3 {
		up := fmt.Sprintf("%s-%d", model, i)
		r.upstream(up, region, "openai", url, simulated)
		targets = append(targets, registry.Target{Upstream: up, Model: "other"})
	}
	r.route(model, targets...)
}

// owned is a request of which every byte says whose it is.
type owned struct {
	name string // in a header that goes upstream, too
	body string
	act  *rand.Rand // how its upstreams act; nil = as they should
}

func (o *owned) mark() string { return "<" + o.name + ">" }

// says is the whole answer.
func (o *owned) says() string { return strings.Repeat(o.mark()+" ", 12) }

// owners is every provider at once. Each request is for one owner, whoever is
// asked, and he alone may be found in it.
type owners struct {
	t   *testing.T
	all map[string]*owned

	mu                             sync.Mutex // of each owner's act
	heard, early, broken, mistaken atomic.Int64
}

func (p *owners) dice(o *owned, n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o.act == nil {
		return n - 1
	}
	return o.act.IntN(n)
}

func (p *owners) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	o := p.all[r.Header.Get("Openai-Beta")]
	want := upstreamBody(o.body)
	at := 0
	buf := make([]byte, 32<<10)
	// hear reads on until there are n bytes, or nothing more comes.
	hear := func(n int, pause time.Duration) {
		for at < n {
			k, err := r.Body.Read(buf)
			if at+k > len(want) || string(buf[:k]) != want[at:at+k] {
				p.mistaken.Add(1)
				p.t.Errorf("%s: byte %d and what follows is not his", o.name, at)
				panic(http.ErrAbortHandler)
			}
			at += k
			p.heard.Add(int64(k))
			if err != nil {
				return
			}
			time.Sleep(pause)
		}
	}
	flush := func(s string) {
		_, _ = io.WriteString(w, s)
		_ = control.Flush()
	}
	some := p.dice(o, len(want)+1)
	kind := p.dice(o, 16)
	switch kind {
	case 0, 1: // the connection breaks within the request
		hear(some, 0)
		panic(http.ErrAbortHandler)
	case 2, 3: // a refusal that comes early, and nobody reads the rest
		hear(some, 0)
		p.early.Add(1)
		http.Error(w, `{"error":{"message":"overloaded"}}`, http.StatusServiceUnavailable)
		return
	case 4, 5, 6, 7, 8: // an answer that comes early
		_ = control.EnableFullDuplex() // HTTP/2 has it
		p.early.Add(1)
		hear(some, 0)
	case 9:
		hear(len(want)+1, 100*time.Microsecond)
	default:
		hear(len(want)+1, 0)
	}
	if !strings.Contains(o.body, `"stream":true`) {
		w.Header().Set("content-type", "application/json")
		flush(fmt.Sprintf(`{"choices":[{"index":0,"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}],`, o.says()))
		hear(len(want)+1, 50*time.Microsecond)
		flush(`"usage":{"prompt_tokens":1,"completion_tokens":1}}`)
		return
	}
	w.Header().Set("content-type", "text/event-stream")
	pieces := strings.SplitAfter(strings.TrimSuffix(o.says(), " "), " ")
	cut := len(pieces)
	if kind > 12 {
		cut = p.dice(o, len(pieces))
	}
	flush(chunks(o.name))
	for i, piece := range pieces {
		if i == cut {
			p.broken.Add(1)
			panic(http.ErrAbortHandler)
		}
		if i == len(pieces)-1 {
			piece += " "
		}
		flush(strings.TrimPrefix(chunks(o.name, piece), chunks(o.name)))
		if kind != 4 { // else it reads nothing more
			hear(at+len(want)/8, 200*time.Microsecond)
		}
	}
	flush(strings.TrimPrefix(chunks(o.name, "=stop"), chunks(o.name)) + usage(o.name, 1, 1) + done)
	if at < len(want) {
		panic(http.ErrAbortHandler) // net/http's server cannot go on
	}
}

// upstreamBody is what an upstream is to be sent.
func upstreamBody(body string) string {
	at := strings.Index(body, `"model":"`)
	end := strings.Index(body[at+9:], `"`)
	return body[:at+9] + "other" + body[at+9+end:]
}

func drawOwned(dice *rand.Rand, i int) *owned {
	o := &owned{name: fmt.Sprintf("owner-%04d", i), act: rand.New(rand.NewPCG(uint64(i), 5))}
	model := []string{"plain", "secure", "far", "two", "two", "two"}[dice.IntN(6)]
	var more string
	if dice.IntN(4) > 0 {
		more = `"stream":true,"stream_options":{"include_usage":true},`
	}
	if dice.IntN(2) == 0 {
		more += `"temperature":0,`
	}
	sizes := []int{1 << 10, 8 << 10, 60 << 10, 100 << 10, 300 << 10, 300 << 10, 700 << 10, 700 << 10, 1500 << 10, 3 << 20}
	if model == "two" { // more than http.Transport reads ahead, mostly
		sizes = []int{60 << 10, 300 << 10, 700 << 10, 1500 << 10, 1500 << 10, 1500 << 10, 3 << 20}
	}
	size := sizes[dice.IntN(len(sizes))]
	o.body = `{"model":"` + model + `",` + more + `"messages":[{"role":"user","content":"` + strings.Repeat(o.mark(), size/len(o.mark())+1) + `"}]}`
	return o
}

// TestNobodyGetsAnothersBody: memory of bodies is given back while their answers
// still come, and lent to others at once. Whatever upstreams, peers and clients
// do meanwhile, what an upstream reads is the body of the request that it was
// asked for, to the byte, and what a client reads is its own answer. Under the race
// detector what was given back is overwritten.
func TestNobodyGetsAnothersBody(t *testing.T) {
	const requests, clients, most = 240, 16, 36 << 20
	p := &owners{t: t, all: map[string]*owned{}}
	dice := rand.New(rand.NewPCG(3, 3))
	list := make([]*owned, requests)
	for i := range list {
		list[i] = drawOwned(dice, i)
		p.all[list[i].name] = list[i]
	}
	r := newRing(t)
	plain := provider(t, p)
	r.threeUpstreams("plain", "us-east", plain)
	r.threeUpstreams("secure", "us-east", r.secureProvider(p, false))
	r.threeUpstreams("two", "us-east", r.secureProvider(p, true))
	r.threeUpstreams("far", "eu-fra", plain)
	key, _ := r.org("acme", "any", "verified", "live")
	tune := patient
	tune.Bodies = most
	us := r.start("us-east", "us", tune)
	tune.Bodies = 4 << 20 // some are refused while they are sent
	eu := r.start("eu-fra", "eu", tune)
	r.load()

	var whole, spliced, left atomic.Int64
	ended := map[int]*atomic.Int64{}
	for _, status := range []int{200, 400, 499, 502, 503} {
		ended[status] = new(atomic.Int64)
	}
	next := make(chan *owned)
	var all sync.WaitGroup
	for i := range clients {
		client := us.client(i%2 == 0)
		all.Go(func() {
			for o := range next {
				ctx, leave := context.WithCancel(t.Context())
				act := rand.New(rand.NewPCG(uint64(len(o.body)), uint64(o.name[len(o.name)-1])))
				leaves := act.IntN(5) == 0
				if leaves {
					time.AfterFunc(time.Duration(act.IntN(40))*time.Millisecond, leave)
				}
				reply, err := us.try(ctx, client, call{path: chat, key: key, body: o.body, header: map[string]string{"openai-beta": o.name}})
				leave()
				if err != nil {
					left.Add(1)
					continue
				}
				n, ok := ended[reply.status]
				if !ok {
					t.Errorf("%s: status %d: %s", o.name, reply.status, reply.body)
					continue
				}
				n.Add(1)
				if reply.status != http.StatusOK || leaves {
					continue
				}
				heard, complete := o.hear(t, reply)
				if !strings.HasPrefix(o.says(), heard) || complete && heard != o.says() {
					t.Errorf("%s: heard %q", o.name, heard)
				}
				if complete {
					whole.Add(1)
				}
				if us.record(reply.header.Get("idc-request-id")).Splices > 0 {
					spliced.Add(1)
				}
			}
		})
	}
	for _, o := range list {
		next <- o
	}
	close(next)
	all.Wait()
	t.Logf("%d whole, %d continued, %d left; status 200: %d, 502: %d, 503: %d; %d answers came early, %d broke, %d MiB heard", whole.Load(), spliced.Load(), left.Load(),
		ended[200].Load(), ended[502].Load(), ended[503].Load(), p.early.Load(), p.broken.Load(), p.heard.Load()>>20)
	if whole.Load() < requests/6 || spliced.Load() < 1 || p.early.Load() < 40 || p.broken.Load() < 10 {
		t.Error("the cases do not reach all ends")
	}
	// All of it was given back: there is room for one that takes nearly all.
	big := &owned{name: "last"}
	big.body = `{"model":"plain","messages":[{"role":"user","content":"` + strings.Repeat(big.mark(), (32<<20-100)/len(big.mark())) + `"}]}`
	p.all[big.name] = big
	poll(t, "all memory to be given back", func() bool {
		reply, err := us.try(t.Context(), us.client(false), call{path: chat, key: key, body: big.body, header: map[string]string{"openai-beta": big.name}})
		return err == nil && dialect.Code(reply.header.Get("idc-error-code")) != dialect.CapacityShed
	})
	poll(t, "no request under way", func() bool { return us.worker.Health().InFlight+eu.worker.Health().InFlight == 0 })
}

// hear is what the client makes of its answer.
func (o *owned) hear(t *testing.T, r *reply) (text string, complete bool) {
	t.Helper()
	if strings.Contains(o.body, `"stream":true`) {
		var a audience
		a.hear(t, r.body)
		return a.text, a.complete
	}
	var answer struct {
		Choices []struct{ Message struct{ Content string } }
	}
	decode(t, r.body, &answer)
	return answer.Choices[0].Message.Content, r.broken == nil
}

// TestStreamsHoldNoBodies: a stream needs its request until it has begun. Many
// more with long prompts run at once than the node has memory for such
// prompts, to upstreams and through other nodes.
func TestStreamsHoldNoBodies(t *testing.T) {
	const streams = 8
	for _, more := range []string{"", `,"temperature":0`} {
		cut := make(chan struct{})
		var asked sync.Map
		upstream := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			_, _ = io.Copy(io.Discard, q.Body)
			w.Header().Set("content-type", "text/event-stream")
			if _, again := asked.LoadOrStore(q.Header.Get("Openai-Beta"), true); again {
				_, _ = io.WriteString(w, chunks("b", "one", " two", "=stop")+done)
				return
			}
			_, _ = io.WriteString(w, chunks("a", "one"))
			_ = http.NewResponseController(w).Flush()
			select {
			case <-cut:
			case <-q.Context().Done():
			}
			panic(http.ErrAbortHandler)
		})
		r := newRing(t)
		plain := provider(t, upstream)
		r.threeUpstreams("plain", "us-east", plain)
		r.threeUpstreams("two", "us-east", r.secureProvider(upstream, true))
		r.threeUpstreams("far", "eu-fra", plain)
		key, _ := r.org("acme", "any", "verified", "live")
		tune := patient
		tune.Bodies = 4 << 20 // two prompts
		c := r.start("us-east", "us", tune)
		r.start("eu-fra", "eu", tune)
		r.load()
		var open []*http.Response
		for i := range 3 * streams {
			body := strings.Replace(ask([]string{"plain", "two", "far"}[i%3], true, more), "foxes", strings.Repeat("foxes ", 250<<10), 1)
			resp, err := c.send(t.Context(), c.client(i%2 == 0), call{path: chat, key: key, body: body, header: map[string]string{"openai-beta": fmt.Sprintf("s%d", i)}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = resp.Body.Close() })
			first := make([]byte, len(chunks("a", "one")))
			if _, err := io.ReadFull(resp.Body, first); resp.StatusCode != http.StatusOK || err != nil || !bytes.Contains(first, []byte("one")) {
				t.Fatalf("stream %d%s: status %d, %v: %s", i, more, resp.StatusCode, err, first)
			}
			open = append(open, resp)
		}
		close(cut)
		continued := 0
		for i, resp := range open {
			b, err := io.ReadAll(resp.Body)
			if strings.Contains(string(b), "two") != errors.Is(err, nil) {
				t.Errorf("stream %d%s: %v: %s", i, more, err, b)
			}
			if err == nil {
				continued++
			}
		}
		// What is kept for streams that may be continued is half of it.
		if want := len(more) / len(`,"temperature":0`); continued != want {
			t.Errorf("%d streams%s were continued, want %d", continued, more, want)
		}
	}
}

// TestSlowReadersHoldNoBodies: a whole answer is final. Who takes his time to read
// it does not keep the memory of his prompt.
func TestSlowReadersHoldNoBodies(t *testing.T) {
	answer := `{"choices":[{"index":0,"message":{"role":"assistant","content":"` + strings.Repeat("word ", 16<<20/5) + `"},"finish_reason":"stop"}]}`
	tune := patient
	tune.Bodies = 4 << 20 // two prompts
	c, key := scripted(t, func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		w.Header().Set("content-type", "application/json")
		_, _ = io.WriteString(w, answer)
	}, tune)
	body := strings.Replace(ask("m", false), "foxes", strings.Repeat("foxes ", 250<<10), 1)
	for i := range 4 {
		resp, err := c.send(t.Context(), c.client(i%2 == 0), call{path: chat, key: key, body: body})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("answer %d: status %d, %s", i, resp.StatusCode, resp.Header.Get("idc-error-code"))
		}
	}
	if n := c.worker.Health().InFlight; n != 4 {
		t.Errorf("%d answers are still read, want 4", n)
	}
}
