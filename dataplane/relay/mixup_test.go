package relay

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
)

// TestRecordsAreNotMixedUp: while an upstream moves to and fro between two
// hosts and several credentials, and clients leave at random, each request gets
// its own answer from the host of the record it was asked with, and no host
// ever sees the credential of another.
func TestRecordsAreNotMixedUp(t *testing.T) {
	const workers, each = 16, 150
	var strayed atomic.Int64
	host := func(name string) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if !strings.HasPrefix(q.Header.Get("Authorization"), "Bearer "+name) {
				strayed.Add(1)
			}
			body, _ := io.ReadAll(q.Body)
			_, token, _ := strings.Cut(strings.TrimSuffix(string(body), `"}`), `"user":"`)
			text := strings.Repeat(token+" ", 1+rand.IntN(300))
			w.Header().Set("content-type", "application/json")
			head := fmt.Sprintf(`{"choices":[{"index":0,"message":{"role":"assistant","content":"%s %s%s`, name, q.Header.Get("Authorization"), "|")
			_, _ = io.WriteString(w, head)
			if rand.IntN(3) == 0 {
				w.(http.Flusher).Flush()
			}
			_, _ = io.WriteString(w, text+`"},"finish_reason":"stop"}]}`)
		}))
		t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
		return s
	}
	type version struct {
		rec        *registry.Record
		name, auth string
	}
	var versions []version
	for _, name := range []string{"one", "two"} {
		s := host(name)
		for i := range 3 {
			secret := fmt.Sprintf("%s-%d", name, i)
			versions = append(versions, version{record(s.URL, func(u *registry.Upstream) { u.Credential = []byte(secret) }), name, "Bearer " + secret})
		}
	}
	c := New(Config{})
	defer c.Close()
	var group errgroup.Group
	var whole atomic.Int64
	for worker := range workers {
		group.Go(func() error {
			random := rand.New(rand.NewPCG(uint64(worker), 3))
			one := func(token string) error {
				v := versions[random.IntN(len(versions))]
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				if random.IntN(6) == 0 {
					time.AfterFunc(time.Duration(random.IntN(1000))*time.Microsecond, leave)
				}
				ask := askOf(v.rec)
				ask.Body = dialect.WholeBody([]byte(`{"model":"m","user":"` + token + `"}`))
				r := c.Upstream(ctx, ask)
				defer r.Release()
				if r.Outcome != breaker.OK {
					return nil
				}
				whole.Add(1)
				head, text, _ := strings.Cut(string(r.Body()), "|")
				text, _, _ = strings.Cut(text, `"`)
				if !strings.HasSuffix(head, `"`+v.name+" "+v.auth) || strings.ReplaceAll(text, token+" ", "") != "" {
					return fmt.Errorf("%s, asked as %s, got %q", token, v.auth, r.Body()[:100])
				}
				return nil
			}
			for i := range each {
				if err := one(fmt.Sprintf("%d.%d", worker, i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if strayed.Load() > 0 || whole.Load() < workers*each/2 {
		t.Errorf("%d requests came with another host's credential; %d of %d were answered", strayed.Load(), whole.Load(), workers*each)
	}
}
