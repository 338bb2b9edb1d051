package dataplane_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/receipt/proof"
)

// large is more than the buffers of a connection hold, and less than an answer
// may be.
const large = 12 << 20

// longAnswers is a provider whose answers, plain and streamed, are large; the
// same each time.
type longAnswers struct{ plain, streamed []byte }

func newLongAnswers() *longAnswers {
	word := strings.Repeat("word ", 3000)
	var s strings.Builder
	s.WriteString(chunks("a"))
	one := strings.TrimPrefix(chunks("a", word), chunks("a"))
	for s.Len() < large {
		s.WriteString(one)
	}
	s.WriteString(strings.TrimPrefix(chunks("a", "=stop"), chunks("a")) + done)
	return &longAnswers{
		plain:    []byte(strings.Replace(plainAnswer, `"hi"`, `"`+strings.Repeat("word ", large/5)+`"`, 1)),
		streamed: []byte(s.String()),
	}
}

func (l *longAnswers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	asked, _ := io.ReadAll(r.Body)
	if bytes.Contains(asked, []byte(`"stream":true`)) {
		w.Header().Set("content-type", "text/event-stream")
		_, _ = w.Write(l.streamed)
		return
	}
	w.Header().Set("content-type", "application/json")
	_, _ = w.Write(l.plain)
}

// narrow is a client whose machine takes little at a time. drop ends its
// connection without a word.
func (c *cell) narrow(http2 bool) (cl *http.Client, drop func()) {
	cl = c.client(http2)
	var last atomic.Pointer[net.TCPConn]
	tr := cl.Transport.(*http.Transport)
	tr.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			tcp := conn.(*net.TCPConn)
			if !http2 { // which has windows of its own
				_ = tcp.SetReadBuffer(64 << 10)
			}
			last.Store(tcp)
		}
		return conn, err
	}
	return cl, func() {
		if tcp := last.Load(); tcp != nil {
			_ = tcp.SetLinger(0)
			_ = tcp.Close()
		}
	}
}

// TestAnswersThatNobodyTook: a client that leaves within an answer, or takes
// nothing of it any more, was not given all of it. Record, receipt and metrics
// say so, and the receipt's hash is of what was written.
func TestAnswersThatNobodyTook(t *testing.T) {
	answers := newLongAnswers()
	for _, server := range []struct {
		name             string
		http2, standard1 bool
		standard2        bool
	}{
		{"HTTP/1.1", false, false, false},
		{"HTTP/1.1 of the standard library", false, true, false},
		{"HTTP/2", true, false, false},
		{"HTTP/2 of the standard library", true, false, true},
	} {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			r := newRing(t)
			r.standardHTTP1, r.standardHTTP2 = server.standard1, server.standard2
			answersNobodyTook(t, r, server.http2, answers)
		})
	}
}

func answersNobodyTook(t *testing.T, r *ring, http2 bool, answers *longAnswers) {
	t.Helper()
	r.upstream("up", "us-east", "openai", provider(t, answers))
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	r.state[len(r.state)-1].Route.Timeouts.IdleMS = 2000
	key, _ := r.org("acme", "any", "verified", "live")
	tune := patient
	tune.WriteStall = time.Second
	c := r.start("us-east", "us", tune)
	r.load()
	for _, streamed := range []bool{false, true} {
		for _, how := range []string{"drops its connection", "cancels", "takes nothing"} {
			t.Run(fmt.Sprintf("streamed %t, %s", streamed, how), func(t *testing.T) {
				cl, drop := c.narrow(http2)
				defer drop()
				gone := c.answers(t, "499")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				in := call{path: chat, key: key, body: ask("m", streamed)}
				resp, err := c.send(ctx, cl, in)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = resp.Body.Close() }()
				readSome(t, resp)
				switch how {
				case "drops its connection":
					drop()
				case "cancels":
					cancel()
				}
				whole := answers.plain
				if streamed {
					whole = answers.streamed
				}
				c.wantCutOff(t, key, resp.Header.Get("idc-request-id"), in.body, whole)
				poll(t, "the metrics", func() bool { return c.answers(t, "499") == gone+1 })
				if n := c.answers(t, "200"); n != 0 {
					t.Errorf("%v answers are counted as good", n)
				}
			})
		}
	}
}

// readSome reads so much of an answer that its first writes are over.
func readSome(t *testing.T, resp *http.Response) {
	t.Helper()
	if _, err := io.CopyN(io.Discard, resp.Body, 200<<10); err != nil {
		t.Fatal(err)
	}
}

// wantCutOff checks what is kept of an answer of which a client read some and
// did not get all.
func (c *cell) wantCutOff(t *testing.T, key, id, request string, whole []byte) {
	t.Helper()
	rec := c.record(id)
	if rec.Ended != meter.EndClientGone || rec.Status != http.StatusOK || rec.TokensOut == 0 {
		t.Errorf("recorded as %+v", rec)
	}
	doc, anchors := c.receiptText(t, key, id)
	v := proof.Verify(doc, anchors, proof.Bodies{Request: []byte(request)})
	if !v.Verified {
		t.Fatal(v.Reason)
	}
	f := v.Facts
	if f.Ended != "client_gone" || f.Status != http.StatusOK || f.Leaf != rec.Receipt {
		t.Errorf("stated as %+v", f)
	}
	n := int(f.Written)
	if n <= 0 || n >= len(whole) {
		t.Fatalf("%d bytes are said to be written, of %d", n, len(whole))
	}
	for _, got := range [][]byte{whole[:n], whole} { // what was under way may have arrived, too
		if v := proof.Verify(doc, anchors, proof.Bodies{Response: got}); !v.Verified {
			t.Errorf("%d of %d bytes are not what the receipt states: %s", len(got), n, v.Reason)
		}
	}
	for _, not := range [][]byte{whole[:n-1], append([]byte("?"), whole[1:]...)} {
		if v := proof.Verify(doc, anchors, proof.Bodies{Response: not}); v.Verified {
			t.Errorf("%d bytes that are not it pass", len(not))
		}
	}
}

// receiptText fetches a receipt, and who vouches for it.
func (c *cell) receiptText(t *testing.T, key, id string) ([]byte, *proof.Anchors) {
	t.Helper()
	cl := c.client(true)
	var doc *reply
	poll(t, "the receipt of "+id, func() bool {
		doc = c.do(cl, call{path: "/v1/receipts/" + id, key: key})
		return doc.status == http.StatusOK
	})
	anchors, err := proof.AnchorsOfKeySet([]byte(c.do(cl, call{path: "/.well-known/jwks.json"}).body))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(doc.body), anchors
}

// answers is how many chat completions are counted under a status.
func (c *cell) answers(t *testing.T, status string) float64 {
	return c.metric(t, "ringmain_requests_total", chat, status)
}

// TestInlineReceiptOfAnAnswerThatNobodyTook: what was signed as the answer began
// said what was to be sent. What the batch says is what was.
func TestInlineReceiptOfAnAnswerThatNobodyTook(t *testing.T) {
	whole := []byte(strings.Replace(plainAnswer, `"hi"`, `"`+strings.Repeat("word ", 180_000)+`"`, 1))
	tune := patient
	tune.WriteStall = time.Second
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "application/json")
		_, _ = w.Write(whole)
	}, tune)
	cl, drop := c.narrow(true)
	defer drop()
	in := call{path: chat, key: key, body: ask("m", false), header: map[string]string{"idc-receipt": "inline"}}
	resp, err := c.send(t.Context(), cl, in)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	readSome(t, resp)
	id := resp.Header.Get("idc-request-id")
	c.wantCutOff(t, key, id, in.body, whole)
	doc, anchors := c.receiptText(t, key, id)
	signed := proof.Verify([]byte(resp.Header.Get("idc-receipt")), anchors, proof.Bodies{Response: whole})
	if v := proof.Verify(doc, anchors, proof.Bodies{}); !signed.Verified || signed.Facts.Ended != "complete" || signed.Facts.Leaf != v.Facts.Leaf {
		t.Errorf("%+v", signed)
	}
}

// TestNobodyWasThereForTheAnswer: of a request whose client left before the
// answer began there is a receipt, too: a provider has seen it.
func TestNobodyWasThereForTheAnswer(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		asked := make(chan struct{}, 1)
		c, key := scripted(t, func(_ http.ResponseWriter, q *http.Request) {
			_, _ = io.Copy(io.Discard, q.Body)
			asked <- struct{}{}
			<-q.Context().Done()
		}, patient)
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan struct{})
		in := call{path: chat, key: key, body: ask("m", false)}
		go func() {
			defer close(left)
			if resp, err := c.send(ctx, c.client(http2), in); err == nil {
				_ = resp.Body.Close()
			}
		}()
		<-asked
		cancel()
		<-left
		var rec *meter.Record
		poll(t, "the record", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			if len(c.records) == 1 {
				rec = c.records[0]
			}
			return rec != nil
		})
		doc, anchors := c.receiptText(t, key, rec.RequestID)
		v := proof.Verify(doc, anchors, proof.Bodies{Request: []byte(in.body)})
		if !v.Verified {
			t.Fatal(v.Reason)
		}
		f := v.Facts
		if f.Leaf != rec.Receipt || f.Ended != "client_gone" || f.Status != rec.Status || f.Status != 499 || f.Response != (proof.Hash{}) || len(f.Attempts) != 1 || f.Attempts[0].Upstream != "up" {
			t.Errorf("recorded as %+v, stated as %+v", rec, f)
		}
		if v := proof.Verify(doc, anchors, proof.Bodies{Response: []byte("an answer")}); v.Verified {
			t.Error("there was no answer")
		}
	}
}

// TestReceiptOfAnUnmeteredStream: a stream that ended with an error because it
// could not be recorded is not stated as complete.
func TestReceiptOfAnUnmeteredStream(t *testing.T) {
	s := &script{takes: []take{{events: chunks("a", "one"), end: strings.TrimPrefix(chunks("a", "two", "=stop"), chunks("a")) + done}}}
	c, key := spliceCell(t, s)
	c.mu.Lock()
	c.emitErr = errNoKeeper
	c.mu.Unlock()
	in := call{path: chat, key: key, body: ask("m", true)}
	reply := c.do(s.listening(c.client(true)), in)
	wantBroken(t, "unmetered", dialect.OpenAI, reply, dialect.MeteringUnavailable)
	if f := c.receiptOf(key, reply, in.body); f.Ended != "truncated" {
		t.Errorf("%+v", f)
	}
}

// TestRefusalThatNobodyTook: a refusal is recorded as such, also where its
// client left before its end.
func TestRefusalThatNobodyTook(t *testing.T) {
	refused := strings.Replace(chunks("a", "I cannot"), `"content":"I cannot"`, `"refusal":"I cannot"`, 1)
	c, key := scripted(t, func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("content-type", "text/event-stream")
		_, _ = io.WriteString(w, refused)
		_ = http.NewResponseController(w).Flush()
		<-q.Context().Done()
	}, patient)
	ctx, cancel := context.WithCancel(t.Context())
	resp, err := c.send(ctx, c.client(true), call{path: chat, key: key, body: ask("m", true)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, len(refused))); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = resp.Body.Close()
	rec := c.record(resp.Header.Get("idc-request-id"))
	doc, _ := c.receiptText(t, key, rec.RequestID)
	if !rec.Refused || rec.Ended != meter.EndClientGone || !bytes.Contains(doc, []byte(`"refused":true`)) {
		t.Errorf("recorded as %+v, stated as %s", rec, doc)
	}
}

// TestUnmeteredWithinAnAnswer: a plain answer that had begun when it turned out
// that it cannot be recorded breaks off; its receipt states what was written.
func TestUnmeteredWithinAnAnswer(t *testing.T) {
	whole := strings.Replace(plainAnswer, `"hi"`, `"`+strings.Repeat("word ", 40_000)+`"`, 1)
	for _, http2 := range []bool{false, true} {
		c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("content-type", "application/json")
			_, _ = io.WriteString(w, whole)
		}, patient)
		c.mu.Lock()
		c.emitErr = errNoKeeper
		c.mu.Unlock()
		in := call{path: chat, key: key, body: ask("m", false)}
		reply := c.do(c.client(http2), in)
		if reply.broken == nil || len(reply.body) >= len(whole) {
			t.Fatalf("%d bytes of %d, %v", len(reply.body), len(whole), reply.broken)
		}
		doc, anchors := c.receiptText(t, key, reply.header.Get("idc-request-id"))
		v := proof.Verify(doc, anchors, proof.Bodies{Response: []byte(whole)})
		if !v.Verified || v.Facts.Ended != "truncated" || v.Facts.Written == 0 || c.answers(t, "499") != 0 {
			t.Errorf("%+v", v)
		}
		c.full.Store(true) // where that is known before, nothing begins
		c.do(c.client(http2), in).wantError(t, dialect.OpenAI, dialect.MeteringUnavailable)
	}
}
