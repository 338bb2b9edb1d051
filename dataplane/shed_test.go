package dataplane_test

import (
	"bufio"
	"fmt"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
)

// headOf sends the head of a request whose body of 1 MiB never comes, and gives the
// status and code that answer it; "" = nothing does.
func headOf(t *testing.T, c *cell, key string, overHTTP2 bool) (status, code string) {
	t.Helper()
	const length = 1 << 20
	if !overHTTP2 {
		conn := dialRaw(t, c)
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", chat, key, length); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return "", err.Error()
		}
		_ = resp.Body.Close()
		return fmt.Sprint(resp.StatusCode), resp.Header.Get("idc-error-code")
	}
	f, conn := frames(t, c, key, length)
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return status, err.Error()
		}
		if head, ok := frame.(*http2.MetaHeadersFrame); ok {
			for _, h := range head.Fields {
				switch h.Name {
				case ":status":
					status = h.Value
				case "idc-error-code":
					code = h.Value
				}
			}
			return status, code
		}
	}
}

// TestShedBeforeTheBody: each step that an operator forces sheds whom it names,
// from the head alone, shows in the metrics, and ends when it is taken back.
func TestShedBeforeTheBody(t *testing.T) {
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) })), simulated)
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	keys := map[string]string{}
	for _, plan := range []string{"enterprise", "scale", "build", "trial"} {
		keys[plan], _ = r.org(plan, "any", "verified", "live", func(o *registry.Org, _ *registry.Project, _ *registry.Key) { o.Plan = plan })
	}
	keys["batch"], _ = r.org("batch", "any", "verified", "live", func(o *registry.Org, p *registry.Project, _ *registry.Key) { o.Plan, p.Class = "enterprise", "batch" })
	keys["test"], _ = r.org("test", "any", "verified", "test")
	c := r.start("us-east", "us", patient)
	r.load()
	shed := [][]string{0: {}, 1: {}, 2: {"batch", "test"}, 3: {"batch", "test", "trial"}, 4: {"batch", "test", "trial", "build"}}
	for _, step := range []int{1, 2, 3, 4, 0} {
		for _, rec := range r.state {
			if rec.Kind == registry.KindRegion {
				rec.Region.Brownout = uint32(step)
			}
		}
		c.load(r.state)
		for _, name := range []string{"ringmain_brownout_step", "ringmain_brownout_forced"} {
			poll(t, name, func() bool { return c.metric(t, name) == float64(step) })
		}
		gone := map[string]bool{}
		for _, who := range shed[step] {
			gone[who] = true
		}
		for who, key := range keys {
			for _, h2 := range []bool{false, true} {
				if !gone[who] {
					if got := c.do(c.client(h2), call{path: chat, key: key, body: ask("m", false)}); got.status != 200 {
						t.Errorf("step %d, h2=%t: %s gets %d %s", step, h2, who, got.status, got.body)
					}
					continue
				}
				before := c.metric(t, "ringmain_shed_total")
				if status, code := headOf(t, c, key, h2); status != "503" || code != string(dialect.CapacityShed) {
					t.Errorf("step %d, h2=%t: %s gets %s %s without a body", step, h2, who, status, code)
				}
				if n := c.metric(t, "ringmain_shed_total") - before; n != 1 {
					t.Errorf("step %d: %v were counted as shed", step, n)
				}
			}
		}
	}
	poll(t, "no request under way", func() bool { return c.worker.Health().InFlight == 0 })
}

// TestFullBeforeTheBody: a node without a place for one more says so from the
// head alone.
func TestFullBeforeTheBody(t *testing.T) {
	asked, release := make(chan struct{}, 1), make(chan struct{})
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-release
		answerPlain(w)
	})))
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.startWith("us-east", "us", 1, patient)
	r.load()
	first := make(chan *reply, 1)
	go func() { first <- c.do(c.client(true), call{path: chat, key: key, body: ask("m", false)}) }()
	<-asked
	for _, h2 := range []bool{false, true} {
		if status, code := headOf(t, c, key, h2); status != "503" || code != string(dialect.CapacityShed) {
			t.Errorf("h2=%t: %s %s", h2, status, code)
		}
	}
	close(release)
	if got := <-first; got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
}
