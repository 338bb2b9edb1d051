package dataplane_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/meter"
)

// chaos is every provider at once: what it does is drawn for each call, and
// noted by the request that the prompt names.
type chaos struct {
	mu    sync.Mutex
	calls map[string][]string // what was done, in turn
	dice  *rand.Rand
}

var doings = []string{"well", "well", "well", "500", "503 later", "429", "reset", "silence", "cut", "stall", "early error", "too long", "refused", "refused within", "invalid", "garbage"}

func (c *chaos) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Stream   bool
		Messages []struct{ Content string }
	}
	_ = json.NewDecoder(r.Body).Decode(&body)
	c.mu.Lock()
	what := doings[c.dice.IntN(len(doings))]
	id := body.Messages[0].Content
	c.calls[id] = append(c.calls[id], what)
	c.mu.Unlock()
	say := func(status int, kind, body string) {
		w.Header().Set("content-type", kind)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		_ = http.NewResponseController(w).Flush()
	}
	const kind = "application/json"
	part := chunks("a", "The quick", " fox")
	switch what {
	case "500":
		say(500, kind, `{"error":{"message":"no"}}`)
	case "503 later":
		w.Header().Set("retry-after-ms", "50")
		say(503, kind, `{"error":{"message":"no"}}`)
	case "429":
		w.Header().Set("retry-after", "5")
		say(429, kind, `{"error":{"message":"no"}}`)
	case "reset":
		panic(http.ErrAbortHandler)
	case "silence":
		<-r.Context().Done()
	case "too long":
		say(400, kind, `{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}`)
	case "refused":
		say(400, kind, `{"error":{"message":"no","type":"invalid_request_error","code":"content_policy_violation"}}`)
	case "invalid":
		say(422, kind, `{"error":{"message":"what?","type":"invalid_request_error"}}`)
	default:
		if !body.Stream {
			if what == "refused within" {
				say(200, kind, strings.Replace(plainAnswer, `"stop"`, `"content_filter"`, 1))
			} else if what != "well" {
				say(200, kind, "{")
			} else {
				say(200, kind, plainAnswer)
			}
			return
		}
		const stream = "text/event-stream"
		switch what {
		case "well":
			say(200, stream, part+chunks("a", " jumps", "=stop")[len(chunks("a")):]+usage("a", 3, 4)+done)
		case "cut":
			say(200, stream, part)
			panic(http.ErrAbortHandler)
		case "stall":
			say(200, stream, part)
			<-r.Context().Done()
		case "early error":
			say(200, stream, "data: {\"error\":{\"message\":\"overloaded\"}}\n\n")
		case "refused within":
			say(200, stream, part+chunks("a", "=content_filter")[len(chunks("a")):]+usage("a", 3, 4)+done)
		case "garbage":
			say(200, stream, part+"data: {\"id\":\xff\n\n")
		}
	}
}

// TestNeverMoreThanThree: whatever providers do, in whatever order, no request
// is asked for more than three times over all regions, nobody is asked after a
// refusal, what came to the client is whole or visibly broken, and there is one
// record that says how many were asked.
func TestNeverMoreThanThree(t *testing.T) {
	const seed, requests = 7, 300
	c := &chaos{calls: map[string][]string{}, dice: rand.New(rand.NewPCG(seed, seed))}
	r := newRing(t)
	url := provider(t, c)
	var all []registry.Target
	for _, region := range []string{"us-east", "us-west", "ap-sg"} {
		for _, n := range []string{"1", "2"} {
			r.upstream(region+"-"+n, region, "openai", url)
			all = append(all, registry.Target{Upstream: region + "-" + n, Model: "m"})
		}
	}
	short := func(fallbacks []string, longer string) func(*registry.Route) {
		return func(route *registry.Route) {
			route.Timeouts.FirstByteMS, route.Timeouts.IdleMS, route.Timeouts.TotalMS = 2000, 2000, 9000
			route.Fallbacks, route.ContextFallback = fallbacks, longer
		}
	}
	r.routed("a", short([]string{"b", "c"}, "c"), all...)
	r.routed("b", short(nil, ""), all[2:]...)
	r.routed("c", short([]string{"b"}, "b"), all[4:]...)
	r.routed("far", short([]string{"b"}, "a"), all[4:]...)
	key, _ := r.org("acme", "any", "verified", "live")
	tune := dataplane.Tunables{
		ProbeEvery: time.Hour, Upstreams: breaker.Rules{Run: 1 << 30, Least: 1 << 30}, PeerNodes: breaker.Rules{Run: 1 << 30, Least: 1 << 30},
		Retries: breaker.BudgetRules{Least: 1 << 30}, Limits: patient.Limits,
	}
	us := r.start("us-east", "us", tune)
	r.start("us-west", "us", tune)
	r.start("ap-sg", "apac", tune)
	r.load()
	cl := us.client(true)
	var wg sync.WaitGroup
	next := make(chan int)
	for range 32 {
		wg.Go(func() {
			for i := range next {
				id := fmt.Sprintf("request %d", i)
				model := []string{"a", "b", "c", "far"}[i%4]
				body := `{"model":"` + model + `","messages":[{"role":"user","content":"` + id + `"}]`
				if i%3 != 0 {
					body += `,"stream":true`
				}
				if i%2 == 0 {
					body += `,"temperature":0`
				}
				begun := time.Now()
				reply, err := us.try(t.Context(), cl, call{path: chat, key: key, body: body + "}"})
				took := time.Since(begun)
				c.mu.Lock()
				did := c.calls[id]
				c.mu.Unlock()
				if err != nil {
					t.Errorf("%s: %v after %v", id, err, did)
					continue
				}
				judgeChaos(t, us, id, did, reply, took, i%3 != 0)
			}
		})
	}
	for i := range requests {
		if i%5 == 0 { // the state moves all the time: plans are made again
			for _, cell := range r.cells {
				cell.revoke(t, registry.KindKey, fmt.Sprintf("key_any_%016d", i))
			}
		}
		next <- i
	}
	close(next)
	wg.Wait()
}

func judgeChaos(t *testing.T, us *cell, id string, did []string, reply *reply, took time.Duration, stream bool) {
	t.Helper()
	bad := func(what string) {
		t.Helper()
		t.Errorf("%s: %s: after %q: %d %v %v %s", id, what, did, reply.status, reply.broken, reply.header, reply.body)
		for line := range strings.Lines(us.log.String()) {
			if strings.Contains(line, reply.header.Get("idc-request-id")) {
				t.Log(line)
			}
		}
	}
	if len(did) > 3 {
		bad("too many attempts")
	}
	for i, d := range did {
		if strings.HasPrefix(d, "refused") && i < len(did)-1 {
			bad("asked after a refusal")
		}
		if d == "invalid" && i < len(did)-1 {
			bad("asked after the client's mistake")
		}
	}
	if took > 11*time.Second {
		bad("it took " + took.String())
	}
	rec := us.record(reply.header.Get("idc-request-id"))
	// One that was given up as it began is counted, whether it arrived or not.
	if rec.Attempts < len(did) || rec.Attempts > 3 || rec.Attempts > len(did) && rec.Ended != meter.EndTruncated {
		bad(fmt.Sprintf("recorded as %d attempts", rec.Attempts))
	}
	if last := did[len(did)-1]; strings.HasPrefix(last, "refused") != rec.Refused {
		bad(fmt.Sprintf("refused in the record: %t", rec.Refused))
	}
	if rec.Refused && !stream && reply.header.Get("x-should-retry") != "false" {
		bad("a refusal may be tried again")
	}
	if reply.status != 200 {
		if reply.header.Get("x-should-retry") == "" || reply.broken != nil {
			bad("not a whole error")
		}
		return
	}
	if stream {
		text, finish, failed, closed, ids := heard(t, reply.body)
		whole := strings.HasPrefix(text, "The quick fox")
		switch {
		case rec.Ended == meter.EndComplete && (failed || !closed || reply.broken != nil || finish == "" || !whole || len(ids) != 1):
			bad("called complete")
		case rec.Ended != meter.EndComplete && (!failed || closed || reply.broken == nil):
			bad("looks complete")
		}
	}
}
