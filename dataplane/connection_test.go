package dataplane_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/dialect"
)

// scripted is us-east with one provider that answers as h does, as model "m".
func scripted(t *testing.T, h http.HandlerFunc, tunables dataplane.Tunables) (c *cell, key string) {
	t.Helper()
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, h))
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	key, _ = r.org("acme", "any", "verified", "live")
	c = r.start("us-east", "us", tunables)
	r.load()
	return c, key
}

const plainAnswer = `{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`

func answerPlain(w http.ResponseWriter) {
	w.Header().Set("content-type", "application/json")
	_, _ = io.WriteString(w, plainAnswer)
}

// dialRaw opens a TLS connection that speaks HTTP/1.1 by hand.
func dialRaw(t *testing.T, c *cell) *tls.Conn {
	t.Helper()
	return dialTLS(t, c)
}

// dialH2 opens a TLS connection that speaks HTTP/2 by hand.
func dialH2(t *testing.T, c *cell) *tls.Conn {
	t.Helper()
	return dialTLS(t, c, "h2")
}

func dialTLS(t *testing.T, c *cell, protocols ...string) *tls.Conn {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.ring.ca.ServerRoots())
	raw, err := net.Dial("tcp", c.api)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
	return tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, NextProtos: protocols})
}

func writeRequest(t *testing.T, conn net.Conn, key, body, more string) {
	t.Helper()
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n%s\r\n%s", chat, key, len(body), more, body); err != nil {
		t.Fatal(err)
	}
}

// TestAnswersOutlastTheBodyTimeout: the time for a request's body says nothing
// about how long its answer may take.
func TestAnswersOutlastTheBodyTimeout(t *testing.T) {
	tune := patient
	tune.BodyTimeout = 2 * time.Second // for a handshake, too, which takes its time on a busy machine
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(tune.BodyTimeout + tune.BodyTimeout/4)
		answerPlain(w)
	}, tune)
	var both sync.WaitGroup
	for _, http2 := range []bool{false, true} {
		client := c.client(http2)
		both.Go(func() {
			reply, err := c.try(t.Context(), client, call{path: chat, key: key, body: ask("m", false)})
			if err != nil || reply.status != 200 || reply.body != plainAnswer {
				t.Errorf("h2=%t: %+v, %v", http2, reply, err)
			}
		})
	}
	both.Wait()
}

// TestNoAnswerIsNotAnEmptyOne: a request that is given up, whoever's doing it
// is, never ends as an empty 200.
func TestNoAnswerIsNotAnEmptyOne(t *testing.T) {
	for _, how := range []string{"the client closes its sending side", "the worker closes"} {
		asked := make(chan struct{})
		over := make(chan struct{})
		c, key := scripted(t, func(_ http.ResponseWriter, q *http.Request) {
			close(asked)
			select {
			case <-q.Context().Done():
			case <-over:
			}
		}, patient)
		conn := dialRaw(t, c)
		writeRequest(t, conn, key, ask("m", false), "")
		<-asked
		if how == "the worker closes" {
			c.close()
		} else if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		switch {
		case how == "the worker closes" && err == nil && resp.StatusCode == http.StatusServiceUnavailable: // it says so
		case err == nil:
			b, err := io.ReadAll(resp.Body)
			t.Errorf("%s: an answer with status %d: %q, %v", how, resp.StatusCode, b, err)
		}
		close(over)
	}
}

// TestStateIsReadAgainAfterTheBody: a body may take minutes to arrive. What was
// revoked or pinned meanwhile holds.
func TestStateIsReadAgainAfterTheBody(t *testing.T) {
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) }, patient)
	var id string
	for _, rec := range c.ring.state {
		if rec.Kind == registry.KindKey {
			id = rec.Meta.ID
		}
	}
	if reply := c.do(c.client(true), call{path: chat, key: key, body: ask("m", false)}); reply.status != 200 {
		t.Fatal(reply.body)
	}
	body, sender := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+c.api+chat, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("authorization", "Bearer "+key)
	go func() {
		_, _ = io.WriteString(sender, ask("m", false)[:20])
		for end := time.Now().Add(10 * time.Second); c.worker.Health().InFlight == 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond) // into the body; earlier would do as well
		if err := c.store.Apply(&feed.Frame{Type: feed.FrameRevocation, Revocation: &registry.Revocation{
			Kind: registry.KindKey, ID: id, Shard: controlplane.ShardAny("us-east"), At: time.Now().UnixMilli(),
		}}); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(sender, ask("m", false)[20:])
		_ = sender.Close()
	}()
	resp, err := c.client(true).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("idc-error-code") != string(dialect.InvalidAPIKey) {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

// TestBodiesAreBoundedTogether: one caller cannot make a worker hold any
// amount of memory, neither by bodies nor by lengths it only declares.
func TestBodiesAreBoundedTogether(t *testing.T) {
	tune := patient
	tune.Bodies = 1 << 20
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) }, tune)
	big := ask("m", false, `,"x":"`+strings.Repeat("y", 600<<10)+`"`) // two are more
	var hold *tls.Conn
	begin := func() {
		hold = dialRaw(t, c)
		if _, err := fmt.Fprintf(hold, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", chat, key, len(big), big[:len(big)-1]); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	cl := c.client(false)
	poll(t, "the second body to be refused", func() bool {
		reply, err := c.try(context.Background(), cl, call{path: chat, key: key, body: big})
		if err != nil {
			return false // refused while it was sent
		}
		if reply.status != 200 {
			reply.wantError(t, dialect.OpenAI, dialect.CapacityShed)
			return true
		}
		// The first was still coming: it may be the one that was refused.
		_ = hold.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if n, _ := hold.Read(make([]byte, 1)); n > 0 {
			begin()
		}
		return false
	})
	if reply := c.do(cl, call{path: chat, key: key, body: ask("m", false)}); reply.status != 200 {
		t.Errorf("a small body: %d %s", reply.status, reply.body)
	}
	_ = hold.Close()
	poll(t, "room again", func() bool {
		reply, err := c.try(context.Background(), cl, call{path: chat, key: key, body: big})
		return err == nil && reply.status == 200
	})
}

// TestClientThatTakesNothing: an answer that nobody takes frees its place, also
// a small one.
func TestClientThatTakesNothing(t *testing.T) {
	tune := patient
	tune.WriteStall = 300 * time.Millisecond
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "application/json")
		_, _ = fmt.Fprintf(w, `{"choices":[],"pad":"%s"}`, strings.Repeat("z", 40<<10))
	}, tune)
	conn := dialRaw(t, c)
	if err := conn.NetConn().(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	go func() { // pipelined, until the server ends the connection
		body := ask("m", false)
		for {
			if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", chat, key, len(body), body); err != nil {
				return
			}
		}
	}()
	poll(t, "requests", func() bool { return c.worker.Health().InFlight > 0 })
	idle := 0
	poll(t, "the connection to be given up", func() bool {
		if c.worker.Health().InFlight == 0 {
			idle++
		} else {
			idle = 0
		}
		return idle > 200
	})
}

// TestPauseLongerThanAStall: a client that waits for the next event is not one
// that takes nothing.
func TestPauseLongerThanAStall(t *testing.T) {
	tune := patient
	tune.WriteStall = 200 * time.Millisecond
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "text/event-stream")
		for _, e := range []string{`{"choices":[{"delta":{"content":"a"}}]}`, `{"choices":[{"delta":{"content":"b"}}]}`, "[DONE]"} {
			_, _ = io.WriteString(w, "data: "+e+"\n\n")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(600 * time.Millisecond)
		}
	}, tune)
	for _, http2 := range []bool{false, true} {
		reply := c.do(c.client(http2), call{path: chat, key: key, body: ask("m", true)})
		if reply.broken != nil || !strings.HasSuffix(reply.body, "data: [DONE]\n\n") {
			t.Errorf("h2=%t: %v %q", http2, reply.broken, reply.body)
		}
	}
}
