package dataplane_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/meter"
)

// TestEndBeforeTheAnswers: whoever is still being answered when a worker's time to
// drain is over hears it, within the stream or by a status, and so does the record.
// Nothing of it counts as a client that left.
func TestEndBeforeTheAnswers(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		asked := make(chan struct{}, 2)
		c, key := scripted(t, func(w http.ResponseWriter, q *http.Request) {
			body, _ := io.ReadAll(q.Body)
			if strings.Contains(string(body), `"stream":true`) {
				w.Header().Set("content-type", "text/event-stream")
				_, _ = io.WriteString(w, chunks("a", "one"))
				_ = http.NewResponseController(w).Flush()
			}
			asked <- struct{}{}
			<-q.Context().Done()
		}, patient)
		cl := c.client(http2)
		began := make(chan struct{})
		stream, plain := make(chan *reply, 1), make(chan *reply, 1)
		go func() {
			resp, err := c.send(t.Context(), cl, call{path: chat, key: key, body: ask("m", true)})
			close(began)
			if err != nil {
				t.Error(err)
				stream <- nil
				return
			}
			stream <- c.receive(resp)
		}()
		<-began
		go func() {
			got, err := c.try(t.Context(), c.client(http2), call{path: chat, key: key, body: ask("m", false)})
			if err != nil {
				t.Error(err)
			}
			plain <- got
		}()
		<-asked
		<-asked
		short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if err := c.worker.Drain(short); err == nil {
			t.Error("drained")
		}
		cancel()
		c.close()
		if got := <-stream; got != nil {
			wantBroken(t, "a stream", dialect.OpenAI, got, dialect.NotReady)
			if rec := c.record(got.header.Get("idc-request-id")); rec.Ended != meter.EndTruncated || rec.Code != string(dialect.NotReady) {
				t.Errorf("recorded as %+v", rec)
			}
		}
		if got := <-plain; got != nil {
			got.wantError(t, dialect.OpenAI, dialect.NotReady)
			if rec := c.record(got.header.Get("idc-request-id")); rec.Ended != meter.EndError || rec.Status != 503 {
				t.Errorf("recorded as %+v", rec)
			}
		}
	}
}

// TestEndOfANodeThatWasAsked: what a node leaves unfinished as it ends, another
// may be asked for.
func TestEndOfANodeThatWasAsked(t *testing.T) {
	asked := make(chan struct{}, 1)
	r := newRing(t)
	r.upstream("slow", "eu-fra", "openai", provider(t, http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		asked <- struct{}{}
		<-q.Context().Done()
	})), simulated)
	r.upstream("good", "ap-sg", "openai", provider(t, newAnswering(answered)), simulated)
	r.route("m", registry.Target{Upstream: "slow", Model: "m"}, registry.Target{Upstream: "good", Model: "m", Order: 1})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	far := r.start("eu-fra", "us", patient)
	r.start("ap-sg", "us", patient)
	r.load()
	answer := make(chan *reply, 1)
	go func() {
		answer <- c.do(c.client(true), call{path: chat, key: key, body: ask("m", false), header: map[string]string{"idc-region-hint": "eu-fra"}})
	}()
	<-asked
	far.close()
	if got := <-answer; got.status != http.StatusOK || got.header.Get("idc-upstream") != "good" {
		t.Errorf("%d from %q: %s", got.status, got.header.Get("idc-upstream"), got.body)
	}
}
