package dataplane_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/receipt/proof"
	"ringmain/drills/simmodel"
)

// receiptOf fetches the receipt of an answer and verifies it, as a customer would.
func (c *cell) receiptOf(key string, answer *reply, request string) *proof.Facts {
	t := c.ring.t
	t.Helper()
	if answer.header.Get("idc-receipt") == "" {
		t.Fatalf("an answer without a receipt: %d %v %.300s", answer.status, answer.header, answer.body)
	}
	cl := c.client(true)
	keys := c.do(cl, call{path: "/.well-known/jwks.json"})
	if keys.status != 200 || keys.header.Get("content-type") != "application/jwk-set+json" {
		t.Fatalf("%d %v %s", keys.status, keys.header, keys.body)
	}
	anchors, err := proof.AnchorsOfKeySet([]byte(keys.body))
	if err != nil {
		t.Fatal(err)
	}
	var doc *reply
	poll(t, "the receipt to be signed", func() bool { // 503: a busy machine signs late
		doc = c.do(cl, call{path: "/v1/receipts/" + answer.header.Get("idc-request-id"), key: key})
		return doc.status != http.StatusServiceUnavailable
	})
	if doc.status != 200 || doc.header.Get("cache-control") != "private, no-store" {
		t.Fatalf("%d %v %s\nof an answer with %d %v %.300s", doc.status, doc.header, doc.body, answer.status, answer.header, answer.body)
	}
	bodies := proof.Bodies{Request: []byte(request), Response: []byte(answer.body)}
	if request == "" { // of a body that was never read there is no hash
		bodies.Request = nil
	}
	v := proof.Verify([]byte(doc.body), anchors, bodies)
	if !v.Verified {
		t.Fatalf("%s\n%s", v.Reason, doc.body)
	}
	if v.Facts.RequestID != answer.header.Get("idc-request-id") || v.Facts.Leaf != answer.header.Get("idc-receipt") || v.Facts.Status != answer.status {
		t.Errorf("status %d, %v: %+v", answer.status, answer.header, v.Facts)
	}
	return v.Facts
}

// TestReceipts: what a client sent and read is what its receipt states, for
// plain answers, streams and errors, here and through another region.
func TestReceipts(t *testing.T) {
	r := newThreeRegions(t)
	r.us.confinement.Store(&allHolds)
	other, _ := r.org("other", "any", "verified", "live")
	for _, c := range r.cells {
		c.load(r.state)
	}
	type kept struct {
		in     call
		answer *reply
		want   func(f *proof.Facts) bool
	}
	var all []kept
	add := func(in call, want func(f *proof.Facts) bool) {
		in.key = r.key
		all = append(all, kept{in, r.us.do(r.us.client(len(all)%2 == 0), in), want})
	}
	local := func(f *proof.Facts) bool {
		return f.Region == "us-east" && f.Status == 200 && f.Ended == "complete" && len(f.Attempts) == 1 && f.Attempts[0].Outcome == "ok" && f.Org == "org_acme" && f.Model == "home"
	}
	add(call{path: chat, body: ask("home", false)}, local)
	add(call{path: chat, body: ask("home", true)}, func(f *proof.Facts) bool { return local(f) && f.Streamed })
	add(call{path: messages, body: ask("home", true)}, func(f *proof.Facts) bool { return local(f) && f.Confinement == proof.Confinement(allHolds) })
	add(call{path: messages, body: ask("chat", false)}, func(f *proof.Facts) bool {
		return f.Region == "eu-fra" && f.EntryRegion == "us-east" && f.Node == "eu-fra-d1" && f.Attempts[len(f.Attempts)-1].Upstream == "anthropic-eu-fra" && f.Pool == "standard" && f.Retention == "metadata"
	})
	add(call{path: chat, body: ask(simmodel.FaultRefusal, true)}, func(f *proof.Facts) bool { return f.Refused })
	add(call{path: chat, body: ask(simmodel.Fault503, true)}, func(f *proof.Facts) bool {
		return f.Status == 502 && f.Ended == "error" && len(f.Attempts) > 1 && f.Attempts[0].Outcome != "ok"
	})
	add(call{path: chat, body: ask("nope", true)}, func(f *proof.Facts) bool { return f.Status == 404 && len(f.Attempts) == 0 })
	add(call{path: "/v1/files", body: "x"}, func(f *proof.Facts) bool { return f.Status == 404 && f.Request == proof.Hash{} })
	for _, k := range all {
		request := k.in.body
		if k.in.path == "/v1/files" {
			request = ""
		}
		for _, at := range []*cell{r.us, r.ap} { // any node finds the one that answered
			f := at.receiptOf(r.key, k.answer, request)
			if !k.want(f) {
				t.Errorf("%s %s: %+v", k.in.path, k.in.body, f)
			}
		}
		r.us.do(r.us.client(true), call{path: "/v1/receipts/" + k.answer.header.Get("idc-request-id"), key: other}).wantError(t, dialect.OpenAI, dialect.NotFound)
		r.ap.do(r.ap.client(true), call{path: "/v1/receipts/" + k.answer.header.Get("idc-request-id"), key: other}).wantError(t, dialect.OpenAI, dialect.NotFound)
		if rec := r.us.record(k.answer.header.Get("idc-request-id")); rec.Receipt != k.answer.header.Get("idc-receipt") {
			t.Errorf("the record names %q", rec.Receipt)
		}
	}
	for _, id := range []string{"", "x", "req_01M80MNTN8HERS6ED5GEXW7RYA", "../../livez"} {
		r.us.do(r.us.client(true), call{path: "/v1/receipts/" + id, key: r.key}).wantError(t, dialect.OpenAI, dialect.NotFound)
	}
	r.us.do(r.us.client(true), call{path: "/v1/receipts/req_01M80MNTN8HERS6ED5GEXW7RYA"}).wantError(t, dialect.OpenAI, dialect.InvalidAPIKey)
	r.us.do(r.us.client(true), call{path: "/v1/receipts/x", method: "POST"}).wantError(t, dialect.OpenAI, dialect.MethodNotAllowed)
	stranger := r.us.do(r.us.client(true), call{path: chat, body: ask("home", false), key: "idc_live_x"})
	stranger.wantError(t, dialect.OpenAI, dialect.InvalidAPIKey)
	if v := stranger.header.Get("idc-receipt"); v != "" {
		t.Errorf("a stranger got a receipt %s", v)
	}
	// The node that answered is away: that is no "not found".
	id := all[0].answer.header.Get("idc-request-id")
	r.us.close()
	r.ap.do(r.ap.client(true), call{path: "/v1/receipts/" + id, key: r.key}).wantError(t, dialect.OpenAI, dialect.NotReady)
}

// TestReceiptsApart: a receipt states nothing of the requests before, in whose
// memory it is made.
func TestReceiptsApart(t *testing.T) {
	r := newThreeRegions(t)
	cl := r.us.client(true)
	var refused [8]*reply
	for i := range refused { // which memory is used again is chance
		if good := r.us.do(cl, call{path: chat, body: ask("home", false), key: r.key}); good.status != http.StatusOK {
			t.Fatalf("%d %s", good.status, good.body)
		}
		refused[i] = r.us.do(cl, call{path: "/v1/files", body: "x", key: r.key})
	}
	for _, answer := range refused {
		f := r.us.receiptOf(r.key, answer, "")
		if f.Request != (proof.Hash{}) || f.RequestBLAKE3 != (proof.Hash{}) || f.Model != "" || len(f.Attempts) > 0 {
			t.Fatalf("%+v", f)
		}
	}
}

// TestInlineReceipts: signed at once in the answer's head, which stays within
// its bounds, where the answer is whole before it begins.
func TestInlineReceipts(t *testing.T) {
	r := newThreeRegions(t)
	keys := r.us.do(r.us.client(true), call{path: "/.well-known/jwks.json"})
	anchors, err := proof.AnchorsOfKeySet([]byte(keys.body))
	if err != nil {
		t.Fatal(err)
	}
	inline := map[string]string{"idc-receipt": "inline"}
	for _, in := range []call{
		{path: chat, body: ask("home", false)}, {path: messages, body: ask("chat", false)}, {path: chat, body: ask("nope", false)},
	} {
		in.key, in.header = r.key, inline
		reply := r.us.do(r.us.client(true), in)
		reply.wantHeaders(t)
		jws := reply.header.Get("idc-receipt")
		v := proof.Verify([]byte(jws), anchors, proof.Bodies{Request: []byte(in.body), Response: []byte(reply.body)})
		if !v.Verified || v.Facts.Status != reply.status || v.Facts.RequestID != reply.header.Get("idc-request-id") || v.Facts.Ended == "" {
			t.Errorf("%s: %+v", jws, v)
		}
		if v := proof.Verify([]byte(jws), anchors, proof.Bodies{Response: []byte(reply.body + " ")}); v.Verified {
			t.Error("another answer passes")
		}
		// And it is in the batch like every other.
		reply.header.Set("idc-receipt", v.Facts.Leaf)
		r.us.receiptOf(r.key, reply, in.body)
	}
	reply := r.us.do(r.us.client(true), call{path: chat, body: ask("home", true), key: r.key, header: inline})
	if leaf := reply.header.Get("idc-receipt"); !strings.HasPrefix(leaf, "leaf_") {
		t.Errorf("a stream's receipt cannot be signed before its end: %s", leaf)
	}
	r.us.receiptOf(r.key, reply, ask("home", true))
}

// TestInlineReceiptsAreBounded: up to 1 MiB an answer is signed at once, beyond
// that its leaf is named.
func TestInlineReceiptsAreBounded(t *testing.T) {
	var size atomic.Int64
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "application/json")
		_, _ = io.WriteString(w, plainAnswer+strings.Repeat(" ", int(size.Load())-len(plainAnswer)))
	}, patient)
	for _, n := range []int64{1 << 20, 1<<20 + 1} {
		size.Store(n)
		in := call{path: chat, key: key, body: ask("m", false), header: map[string]string{"idc-receipt": "inline"}}
		reply := c.do(c.client(true), in)
		value := reply.header.Get("idc-receipt")
		if inline := !strings.HasPrefix(value, "leaf_"); int64(len(reply.body)) != n || inline != (n <= 1<<20) {
			t.Errorf("%d bytes, of %d: %s", len(reply.body), n, value)
		}
		doc, anchors := c.receiptText(t, key, reply.header.Get("idc-request-id"))
		bodies := proof.Bodies{Request: []byte(in.body), Response: []byte(reply.body)}
		if v := proof.Verify(doc, anchors, bodies); !v.Verified {
			t.Error(v.Reason)
		}
		if v := proof.Verify([]byte(value), anchors, bodies); n <= 1<<20 && !v.Verified {
			t.Error(v.Reason)
		}
	}
}

// TestReceiptsOfLargeBodies: a large body is stated by BLAKE3 where this machine
// computes that faster, a small one and one of unknown size by SHA-256, and all
// of them by SHA-256 where the operator wants that.
func TestReceiptsOfLargeBodies(t *testing.T) {
	for _, only := range []string{"", "sha-256"} {
		r := newRing(t)
		r.receiptHash = only
		r.upstream("up", "us-east", "openai", provider(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			asked, _ := io.ReadAll(q.Body)
			words := 1
			if strings.Contains(string(asked), "at length") {
				words = 20_000
			}
			w.Header().Set("content-type", "application/json")
			_, _ = io.WriteString(w, strings.Replace(plainAnswer, "hi", strings.Repeat("word ", words), 1))
		})))
		r.route("m", registry.Target{Upstream: "up", Model: "m"})
		key, _ := r.org("acme", "any", "verified", "live")
		c := r.start("us-east", "us", patient)
		r.load()
		long := ask("m", false, `,"user":"`+strings.Repeat("much text ", 30_000)+`"`)
		want := func(size int) receipt.Algorithm {
			if only != "" {
				return receipt.SHA256
			}
			return receipt.Fastest(size)
		}
		by := func(sha, blake proof.Hash) (a receipt.Algorithm) {
			switch {
			case sha != proof.Hash{} && blake == proof.Hash{}:
				return receipt.SHA256
			case sha == proof.Hash{} && blake != proof.Hash{}:
				return receipt.BLAKE3
			}
			return "neither, or both"
		}
		for _, h2 := range []bool{false, true} {
			for _, in := range []call{
				{body: ask("m", false)}, {body: long}, {body: ask("m", false, `,"user":"at length"`)},
				{body: long, header: map[string]string{"idc-receipt": "inline"}},
				{body: "[" + long, header: map[string]string{"idc-receipt": "inline"}}, // refused
			} {
				in.path, in.key = chat, key
				reply := c.do(c.client(h2), in)
				if jws := reply.header.Get("idc-receipt"); in.header != nil {
					keys := c.do(c.client(true), call{path: "/.well-known/jwks.json"})
					anchors, err := proof.AnchorsOfKeySet([]byte(keys.body))
					if err != nil {
						t.Fatal(err)
					}
					v := proof.Verify([]byte(jws), anchors, proof.Bodies{Request: []byte(in.body), Response: []byte(reply.body)})
					if !v.Verified {
						t.Fatal(v.Reason)
					}
					reply.header.Set("idc-receipt", v.Facts.Leaf)
				}
				f := c.receiptOf(key, reply, in.body)
				if got := by(f.Request, f.RequestBLAKE3); got != want(len(in.body)) {
					t.Errorf("a request of %d bytes, %q alone: %s", len(in.body), only, got)
				}
				if got := by(f.Response, f.ResponseBLAKE3); got != want(len(reply.body)) {
					t.Errorf("an answer of %d bytes, %q alone: %s", len(reply.body), only, got)
				}
			}
			// Of a length that nobody declared.
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+c.api+chat, struct{ io.Reader }{strings.NewReader(long)})
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("authorization", "Bearer "+key)
			resp, err := c.client(h2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			if _ = resp.Body.Close(); err != nil {
				t.Fatal(err)
			}
			f := c.receiptOf(key, &reply{status: resp.StatusCode, header: resp.Header, body: string(b)}, long)
			if got := by(f.Request, f.RequestBLAKE3); got != receipt.SHA256 {
				t.Errorf("a request of unknown size: %s", got)
			}
		}
	}
}

// TestReceiptsOfWhatEndedEarly state what was sent, and that it was not all.
func TestReceiptsOfWhatEndedEarly(t *testing.T) {
	r := newThreeRegions(t)
	body := ask(simmodel.FaultLateError, true)
	reply := r.us.do(r.us.client(true), call{path: chat, body: body, key: r.key})
	if f := r.us.receiptOf(r.key, reply, body); f.Ended != "truncated" || f.Status != 200 {
		t.Errorf("%+v", f)
	}

	c, key := scripted(t, func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("content-type", "text/event-stream")
		_, _ = io.WriteString(w, `data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"hi"},"finish_reason":null}]}`+"\n\n")
		_ = http.NewResponseController(w).Flush()
		<-q.Context().Done()
	}, patient)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.api+chat, strings.NewReader(ask("m", true)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("authorization", "Bearer "+key)
	resp, err := c.client(true).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := resp.Body.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = resp.Body.Close()
	rec := c.record(resp.Header.Get("idc-request-id"))
	poll(t, "the receipt, which comes after the record", func() bool {
		reply = c.do(c.client(true), call{path: "/v1/receipts/" + rec.RequestID, key: key})
		return reply.status == 200
	})
	if rec.Ended != "client_gone" || !strings.Contains(reply.body, `"ended":"client_gone"`) || !strings.Contains(reply.body, `"status":200`) {
		t.Errorf("%+v: %s", rec, reply.body)
	}
}

// TestDedicatedPoolOnItsOwn: the pool of one org shows in headers and receipts.
func TestDedicatedPoolOnItsOwn(t *testing.T) {
	r := newRing(t)
	_, url := recorded(t)
	r.upstream("own", "us-east", "openai", url, func(u *registry.Upstream) { u.Dedicated = "org_big" })
	r.route("m", registry.Target{Upstream: "own", Model: "sim-chat"})
	big, _ := r.org("big", "any", "verified", "live")
	small, _ := r.org("small", "any", "verified", "live")
	r.policy("pol_big", &registry.Policy{Org: "org_big", Dedicated: true})
	r.pools = []string{"standard", "zero-retention", "dedicated:org_big"}
	c := r.start("us-east", "us", patient)
	r.load()
	reply := c.do(c.client(true), call{path: chat, key: big, body: ask("m", false)})
	if reply.status != 200 || reply.header.Get("idc-pool") != "dedicated:org_big" {
		t.Fatalf("%d %v %s", reply.status, reply.header, reply.body)
	}
	if f := c.receiptOf(big, reply, ask("m", false)); f.Pool != "dedicated:org_big" {
		t.Errorf("%+v", f)
	}
	if reply := c.do(c.client(true), call{path: chat, key: small, body: ask("m", false)}); reply.status == 200 {
		t.Error(fmt.Sprint("another org used it: ", reply.header))
	}
}

// TestReceiptsStay: a receipt does not leave where its request was pinned to,
// whoever asks for it, and wherever.
func TestReceiptsStay(t *testing.T) {
	r := newThreeRegions(t)
	at := func(c *cell, key, id string) *reply {
		return c.do(c.client(true), call{path: "/v1/receipts/" + id, key: key})
	}
	for name, tc := range map[string]struct {
		key    string
		status int
	}{"pinned by its entry": {r.key, 404}, "free": {r.roaming, 200}} {
		reply := r.eu.do(r.eu.client(true), call{path: chat, key: tc.key, body: ask("everywhere", false)})
		id := reply.header.Get("idc-request-id")
		poll(t, "the receipt", func() bool { return at(r.eu, tc.key, id).status == 200 })
		if got := at(r.us, tc.key, id); got.status != tc.status {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
}

// TestReceiptsAway: a receipt that may be there, but cannot be asked for, is not
// said to be nowhere.
func TestReceiptsAway(t *testing.T) {
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, newAnswering(answered)))
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live", func(o *registry.Org, _ *registry.Project, _ *registry.Key) { o.Roaming = true })
	r.askReceipt = func(context.Context, string) ([]byte, error) { return nil, errNoKeeper }
	us, eu := r.start("us-east", "us", patient), r.start("eu-fra", "eu", patient)
	r.load()
	reply := us.do(us.client(true), call{path: chat, key: key, body: ask("m", false)})
	id := reply.header.Get("idc-request-id")
	unknown := id[:len(id)-4] + "ZZZZ" // this node's, too
	for _, c := range []*cell{us, eu} {
		c.do(c.client(true), call{path: "/v1/receipts/" + unknown, key: key}).wantError(t, dialect.OpenAI, dialect.NotReady)
	}
}

// TestAttemptsAsStated: an attempt whose answer was a refusal, or of whose
// answer the client was given nothing, is not said to have gone well.
func TestAttemptsAsStated(t *testing.T) {
	half := chunks("a", "The", " quick f")
	refusal := func(events, text string) string {
		return strings.Replace(events, `"content":"`+text, `"refusal":"`+text, 1)
	}
	for _, c := range []struct {
		name    string
		takes   []take
		want    []string // outcomes, in turn
		refused bool
		ended   string
	}{
		{"a stream that refuses", []take{{events: refusal(chunks("a", "I cannot", "=stop"), "I c") + done}}, []string{"refused"}, true, "complete"},
		{"a stream that a filter stops", []take{{events: chunks("a", "The", "=content_filter") + done}}, []string{"refused"}, true, "complete"},
		{"a refusal that breaks", []take{{events: refusal(half, " quick"), end: "cut"}}, []string{"transport"}, true, "truncated"},
		{"a replay that is another answer", []take{{events: half, end: "cut"}, {events: chunks("b", "The quack", "=stop") + done}}, []string{"transport", "unused"}, false, "truncated"},
		{"a replay that refuses", []take{{events: half, end: "cut"}, {events: refusal(chunks("b", "I cannot", "=stop"), "I c") + done}}, []string{"transport", "refused"}, true, "truncated"},
		{"a replay that is refused", []take{{events: half, end: "cut"}, {events: `{"error":{"code":"content_filter","message":"no"}}`, status: 400}}, []string{"transport", "refused"}, true, "truncated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &script{takes: c.takes}
			cell, key := spliceCell(t, s)
			in := call{path: chat, key: key, body: ask("m", true, `,"temperature":0`)}
			reply := cell.do(s.listening(cell.client(true)), in)
			f := cell.receiptOf(key, reply, in.body)
			var got []string
			for _, a := range f.Attempts {
				got = append(got, a.Outcome)
			}
			if !slices.Equal(got, c.want) || f.Refused != c.refused || f.Ended != c.ended {
				t.Errorf("%q, refused %t, %s", got, f.Refused, f.Ended)
			}
		})
	}
}
