package dataplane_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/receipt/proof"
)

// performance is one upstream's answer to one request: what it says, as events
// under a name of its own, and how that goes wrong on its way.
type performance struct {
	says  string
	wire  string
	fault string // "", cut, stall, end, garbage
	at    int    // byte of wire
}

// troupe is every provider at once; who asks first is given the first
// performance of its request, and so on.
type troupe struct {
	mu    sync.Mutex
	plays map[string][]performance
	asked map[string]int
}

var caseName = regexp.MustCompile(`case-\d+`)

func (p *troupe) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	name := caseName.FindString(string(body))
	p.mu.Lock()
	n := p.asked[name]
	p.asked[name]++
	now := p.plays[name][n%len(p.plays[name])]
	p.mu.Unlock()
	w.Header().Set("content-type", "text/event-stream")
	send := func(s string) {
		_, _ = io.WriteString(w, s)
		_ = http.NewResponseController(w).Flush()
	}
	switch now.fault {
	case "":
		send(now.wire)
	case "garbage":
		send(now.wire[:now.at] + "\xff\n\n" + now.wire[now.at:])
	default:
		send(now.wire[:now.at])
		switch now.fault {
		case "cut":
			panic(http.ErrAbortHandler)
		case "stall":
			<-r.Context().Done()
		}
	}
}

// streamed writes words as a stream of the endpoint at path.
func streamed(path, id string, pieces []string) string {
	var b strings.Builder
	whole := quoted(strings.Join(pieces, ""))
	event := func(kind, members string) {
		fmt.Fprintf(&b, "event: %s\ndata: {\"type\":%q%s}\n\n", kind, kind, members)
	}
	sequence := 0
	typed := func(kind, members string) {
		event(kind, fmt.Sprintf(`,"sequence_number":%d%s`, sequence, members))
		sequence++
	}
	chunk := func(choice string) {
		fmt.Fprintf(&b, "data: {\"id\":%q,\"object\":\"chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,%s}]}\n\n", id, choice)
	}
	switch path {
	case chat:
		chunk(`"delta":{"role":"assistant","content":""},"finish_reason":null`)
		for _, s := range pieces {
			chunk(`"delta":{"content":` + quoted(s) + `},"finish_reason":null`)
		}
		chunk(`"delta":{},"finish_reason":"stop"`)
		b.WriteString(done)
	case "/v1/completions":
		for _, s := range pieces {
			chunk(`"text":` + quoted(s) + `,"finish_reason":null`)
		}
		chunk(`"text":"","finish_reason":"stop"`)
		b.WriteString(done)
	case messages:
		event("message_start", fmt.Sprintf(`,"message":{"id":%q,"type":"message","role":"assistant","content":[],"model":"m","usage":{"input_tokens":1,"output_tokens":1}}`, id))
		event("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`)
		for _, s := range pieces {
			event("content_block_delta", `,"index":0,"delta":{"type":"text_delta","text":`+quoted(s)+`}`)
		}
		event("content_block_stop", `,"index":0`)
		event("message_delta", `,"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}`)
		event("message_stop", "")
	default:
		head := fmt.Sprintf(`,"response":{"id":%q,"created_at":1,"output":[]}`, id)
		typed("response.created", head)
		typed("response.in_progress", head)
		item := fmt.Sprintf(`{"id":"%s-0","type":"message","role":"assistant","content":[`, id)
		at := fmt.Sprintf(`,"item_id":"%s-0","output_index":0,"content_index":0`, id)
		part := `{"type":"output_text","annotations":[],"text":`
		typed("response.output_item.added", `,"output_index":0,"item":`+item+`]}`)
		typed("response.content_part.added", at+`,"part":`+part+`""}`)
		for _, s := range pieces {
			typed("response.output_text.delta", at+`,"logprobs":[],"delta":`+quoted(s))
		}
		typed("response.output_text.done", at+`,"logprobs":[],"text":`+whole)
		typed("response.content_part.done", at+`,"part":`+part+whole+`}`)
		typed("response.output_item.done", `,"output_index":0,"item":`+item+part+whole+`}]}`)
		typed("response.completed", fmt.Sprintf(`,"response":{"id":%q,"created_at":1,"status":"completed","output":[%s%s%s}]}],"usage":{"input_tokens":1,"output_tokens":2}}`, id, item, part, whole))
	}
	return b.String()
}

func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// drawPlay draws what up to three upstreams say to one request: mostly the
// same, in other pieces, and how each breaks.
func drawPlay(dice *rand.Rand, path, name string) []performance {
	words := make([]string, 4+dice.IntN(20))
	for i := range words {
		words[i] = fmt.Sprintf(" w%d-%x", i, dice.Uint32())
	}
	all := make([]performance, 3)
	for i := range all {
		own := append([]string(nil), words...)
		if i > 0 && dice.IntN(4) == 0 { // another answer
			switch at := dice.IntN(len(own)); dice.IntN(3) {
			case 0:
				own[at] += "x"
			case 1:
				own = own[:max(1, at)]
			default:
				own = append(own, " more")
			}
		}
		says := strings.Join(own, "")
		var pieces []string
		for rest := says; len(rest) > 0; {
			n := min(len(rest), 1+dice.IntN(30))
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		p := performance{says: says, wire: streamed(path, fmt.Sprintf("%s-by-%d", name, i), pieces)}
		p.fault = []string{"cut", "cut", "end", "garbage", "", "cut", "end", "garbage", "", "stall"}[dice.IntN(10)]
		p.at = dice.IntN(len(p.wire))
		all[i] = p
	}
	return all
}

// audience is what an official client makes of a stream's bytes.
type audience struct {
	text             string
	ids              map[string]bool
	complete, failed bool
}

func (a *audience) hear(t *testing.T, body string) {
	t.Helper()
	a.ids = map[string]bool{}
	for _, e := range events(body) {
		var data string
		for line := range strings.Lines(e) {
			if d, ok := strings.CutPrefix(line, "data: "); ok {
				data += strings.TrimSuffix(d, "\n")
			}
		}
		if data == "[DONE]" {
			a.complete = true
		}
		if data == "" || data == "[DONE]" {
			continue
		}
		var m struct {
			Type, ID       string
			Error          any
			Response       struct{ ID string }
			Message, Delta json.RawMessage // of an error event the message is text
			Choices        []struct {
				Text  string
				Delta struct{ Content string }
			}
		}
		if err := json.Unmarshal([]byte(data), &m); err != nil {
			t.Errorf("the client was given %q: %v", e, err)
			return
		}
		a.failed = a.failed || m.Error != nil
		a.complete = a.complete || m.Type == "message_stop" || m.Type == "response.completed"
		var named struct{ ID string }
		_ = json.Unmarshal(m.Message, &named)
		for _, id := range []string{m.ID, named.ID, m.Response.ID} {
			if id != "" {
				a.ids[id] = true
			}
		}
		for _, ch := range m.Choices {
			a.text += ch.Text + ch.Delta.Content
		}
		var inner struct{ Text string }
		var plain string
		if json.Unmarshal(m.Delta, &plain) == nil {
			a.text += plain
		} else if json.Unmarshal(m.Delta, &inner) == nil {
			a.text += inner.Text
		}
	}
}

// TestNeverAMixture: whatever three upstreams say and however they break, what a
// client reads through a node is the beginning of one upstream's answer under one
// name, and then either all of it or an error in the stream; record and receipt
// say which, and the receipt is of the bytes that the client read.
func TestNeverAMixture(t *testing.T) {
	const seed, requests = 11, 200
	dice := rand.New(rand.NewPCG(seed, seed))
	paths := []string{chat, "/v1/completions", messages, "/v1/responses"}
	p := &troupe{plays: map[string][]performance{}, asked: map[string]int{}}
	for i := range requests {
		name := fmt.Sprintf("case-%d", i)
		p.plays[name] = drawPlay(dice, paths[i%4], name)
	}
	r := newRing(t)
	url := provider(t, p)
	for _, d := range []string{"openai", "anthropic"} {
		var targets []registry.Target
		for i := range 3 {
			up := fmt.Sprintf("%s-%d", d, i)
			r.upstream(up, "us-east", d, url, simulated)
			targets = append(targets, registry.Target{Upstream: up, Model: "m"})
		}
		r.route(d, targets...)
		times := &r.state[len(r.state)-1].Route.Timeouts
		times.FirstByteMS, times.IdleMS = 3000, 3000
	}
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	var whole, spliced, failed atomic.Int32
	var all sync.WaitGroup
	next := make(chan int)
	for range 64 {
		all.Go(func() {
			for i := range next {
				name, path := fmt.Sprintf("case-%d", i), paths[i%4]
				body := map[string]string{
					chat:              `{"model":"openai","messages":[{"role":"user","content":"` + name + `"}]`,
					"/v1/completions": `{"model":"openai","prompt":"` + name + `"`,
					messages:          `{"model":"anthropic","max_tokens":50,"messages":[{"role":"user","content":"` + name + `"}]`,
					"/v1/responses":   `{"model":"openai","store":false,"input":"` + name + `"`,
				}[path] + `,"stream":true`
				splices := i%5 != 0
				if splices {
					body += `,"temperature":0`
				}
				reply, err := c.try(t.Context(), c.client(i%8 < 4), call{path: path, key: key, body: body + "}"})
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				p.mu.Lock()
				n := p.asked[name]
				p.mu.Unlock()
				rec := judgePlay(t, c, key, path+" "+name, body+"}", p.plays[name], n, reply)
				switch {
				case rec.Ended != meter.EndComplete:
					failed.Add(1)
				case rec.Splices > 0 && !splices:
					t.Errorf("%s: continued elsewhere, and nobody may", name)
				case rec.Splices > 0:
					spliced.Add(1)
				default:
					whole.Add(1)
				}
			}
		})
	}
	for i := range requests {
		next <- i
	}
	close(next)
	all.Wait()
	t.Logf("%d whole, %d continued, %d broken", whole.Load(), spliced.Load(), failed.Load())
	if whole.Load() < 20 || spliced.Load() < 20 || failed.Load() < 20 {
		t.Error("the cases do not reach all ends")
	}
}

func judgePlay(t *testing.T, c *cell, key, name, request string, plays []performance, asked int, reply *reply) *meter.Record {
	t.Helper()
	rec := c.record(reply.header.Get("idc-request-id"))
	bad := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %s\nrecord %+v\nasked %d of %+v\nclient: %d %v %s", name, fmt.Sprintf(format, args...), rec, asked, plays, reply.status, reply.broken, reply.body)
	}
	if asked > len(plays) || rec.Attempts != asked {
		bad("asked %d times, recorded %d", asked, rec.Attempts)
	}
	var a audience
	if reply.status == http.StatusOK {
		a.hear(t, reply.body)
		fits := false
		for _, p := range plays[:min(asked, len(plays))] {
			fits = fits || a.text == p.says || !a.complete && strings.HasPrefix(p.says, a.text)
		}
		switch {
		case !fits:
			bad("no upstream said %q", a.text)
		case len(a.ids) > 1:
			bad("under several names: %v", a.ids)
		case a.complete == (a.failed || reply.broken != nil) || a.failed != (reply.broken != nil):
			bad("complete %t, failed %t", a.complete, a.failed)
		case a.complete != (rec.Ended == meter.EndComplete) || !a.complete && rec.Ended != meter.EndTruncated:
			bad("ended as %s", rec.Ended)
		}
	} else if rec.Ended != meter.EndError || rec.Status != reply.status {
		bad("an error answer")
	}
	doc, anchors := c.receiptText(t, key, rec.RequestID)
	v := proof.Verify(doc, anchors, proof.Bodies{Request: []byte(request), Response: []byte(reply.body)})
	switch {
	case !v.Verified:
		bad("%s", v.Reason)
	case v.Facts.Ended != string(rec.Ended) || v.Facts.Status != reply.status || len(v.Facts.Attempts) != asked || v.Facts.Leaf != rec.Receipt:
		bad("stated as %+v", v.Facts)
	case rec.Ended == meter.EndComplete && v.Facts.Attempts[asked-1].Outcome != "ok":
		bad("%+v", v.Facts.Attempts)
	}
	if same := !bytes.Contains([]byte(request), []byte("temperature")); !same {
		c.wantWhole(t, name, plays, asked, a.complete)
	}
	return rec
}

// wantWhole: where all said the same, an upstream that was asked and did not
// break was the end of it.
func (c *cell) wantWhole(t *testing.T, name string, plays []performance, asked int, complete bool) {
	t.Helper()
	for i, p := range plays[:min(asked, len(plays))] {
		if p.says != plays[0].says {
			return
		}
		if p.fault == "" && (!complete || asked != i+1) {
			t.Errorf("%s: %d was whole, and the client's answer complete: %t", name, i, complete)
		}
	}
}
