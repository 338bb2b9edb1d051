package h2

import (
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestAnswersBeforeTheBody: a stream whose answer came first is reset unless
// what is still to come is little; of a request that shall not be read, less.
func TestAnswersBeforeTheBody(t *testing.T) {
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
		}
		w.WriteHeader(http.StatusForbidden)
	}), nil)
	for _, c := range []struct {
		path, length string
		reset        bool
	}{
		{"/", "16385", false}, {"/", "8388608", true}, {"/", "", true},
		{"/away", "16384", false}, {"/away", "16385", true}, {"/away", "", true},
	} {
		p := dial(t, ts)
		p.hello()
		more := []string{"content-length", c.length}
		if c.length == "" {
			more = nil
		}
		p.ask(1, false, c.path, more...)
		for p.seen[1] == nil || p.seen[1].end == "" {
			p.next()
		}
		p.ask(3, true, "/") // by its answer, all of the first one's has come
		for p.seen[3] == nil || p.seen[3].end == "" {
			p.next()
		}
		if got := p.seen[1].end != "end "; got != c.reset {
			t.Errorf("%s, %q to come: %s", c.path, c.length, p.seen[1].end)
		}
		if !c.reset { // and is dropped
			p.data(1, true, string(make([]byte, 10)))
			_ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
			p.ask(5, true, "/")
			for p.seen[5] == nil || p.seen[5].end == "" {
				p.next()
			}
			if p.seen[1].end != "end " {
				t.Errorf("%s, %q came: %s", c.path, c.length, p.seen[1].end)
			}
		}
	}
}
