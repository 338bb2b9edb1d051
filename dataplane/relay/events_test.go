package relay

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/breaker"
)

// pictures is an upstream whose stream has one picture of that many bytes, and
// waits before it ends.
func pictures(t *testing.T, size int, wait <-chan struct{}) *registry.Upstream {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("content-type", "text/event-stream")
		_, _ = io.WriteString(w, pictureEvent("partial_image", size))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-wait:
		case <-r.Context().Done():
			return
		}
		_, _ = io.WriteString(w, pictureEvent("completed", size))
	}))
	t.Cleanup(s.Close)
	return &registry.Upstream{Name: "u", BaseURL: s.URL, Auth: "none"}
}

func pictureEvent(kind string, size int) string {
	return fmt.Sprintf("event: image_generation.%s\ndata: {\"type\":\"image_generation.%s\",\"b64_json\":\"%s\"}\n\n", kind, kind, strings.Repeat("A", size))
}

// TestLongEventsAreCounted: what streams hold of long events is bounded over
// all of them, and given back; a stream for which there is no room fails, and
// its upstream is not to blame.
func TestLongEventsAreCounted(t *testing.T) {
	const size = 4 << 20
	c := New(Config{Events: 12 << 20})
	defer c.Close()
	more := make(chan struct{})
	up := pictures(t, size, more)
	ask := &Ask{Upstream: &registry.Record{Upstream: up}, Endpoint: endpointOf("/v1/images/generations"), Streamed: true, Choices: 1,
		Timeouts: Timeouts{time.Second, 20 * time.Second, 20 * time.Second, time.Minute}}
	one := c.Upstream(t.Context(), ask)
	if one.Outcome != breaker.OK || one.Stream == nil {
		t.Fatalf("%v %v", one.Outcome, one.Cause)
	}
	if b := one.Stream.Next(); string(b.Forward) != pictureEvent("partial_image", size) {
		t.Fatalf("%d bytes, %+v", len(b.Forward), b.Broken)
	}
	held := c.events.Load()
	if held < size || held > 12<<20 {
		t.Errorf("%d bytes are counted of one stream", held)
	}
	two := c.Upstream(t.Context(), ask)
	if !errors.Is(two.Cause, ErrNoRoom) || breaker.Classify(two.Outcome) == breaker.Failure {
		t.Errorf("the second stream: %v %v", two.Outcome, two.Cause)
	}
	two.Release()
	close(more)
	if b := one.Stream.Next(); string(b.Last) != pictureEvent("completed", size) || b.Broken != nil {
		t.Errorf("%d bytes, %+v", len(b.Last), b.Broken)
	}
	one.Release()
	if left := c.events.Load(); left != 0 {
		t.Errorf("%d bytes are still counted", left)
	}
	three := c.Upstream(t.Context(), ask)
	if three.Outcome != breaker.OK {
		t.Errorf("%v %v", three.Outcome, three.Cause)
	}
	three.Release()
	if left := c.events.Load(); left != 0 {
		t.Errorf("%d bytes are still counted", left)
	}
}

// TestLongEvents: a picture as large as a plain answer may be passes, a larger
// one does not, and its upstream is not to blame.
func TestLongEvents(t *testing.T) {
	done := make(chan struct{})
	close(done)
	c := New(Config{})
	defer c.Close()
	for size, want := range map[int]breaker.Outcome{MaxAnswer - 1<<10: breaker.OK, MaxAnswer + 1<<20: breaker.ClientError} {
		ask := &Ask{Upstream: &registry.Record{Upstream: pictures(t, size, done)}, Endpoint: endpointOf("/v1/images/generations"), Streamed: true, Choices: 1,
			Timeouts: Timeouts{time.Second, 20 * time.Second, 20 * time.Second, time.Minute}}
		r := c.Upstream(t.Context(), ask)
		if r.Outcome != want || want != breaker.OK && !errors.Is(r.Cause, ErrAnswerTooLarge) {
			t.Errorf("%d bytes: %v %v", size, r.Outcome, r.Cause)
		} else if want == breaker.OK {
			all := ""
			for {
				b := r.Stream.Next()
				all += string(b.Forward) + string(b.Last)
				if b.Last != nil || b.Broken != nil {
					break
				}
			}
			if all != pictureEvent("partial_image", size)+pictureEvent("completed", size) {
				t.Errorf("%d bytes came of two pictures of %d", len(all), size)
			}
			if held := c.events.Load(); held > MaxAnswer+1<<20 {
				t.Errorf("%d bytes held", held)
			}
		}
		r.Release()
	}
	if left := c.events.Load(); left != 0 {
		t.Errorf("%d bytes are still counted", left)
	}
}

// TestPicturesInText: models that talk draw, too: a chunk may hold a picture, and
// the last event of a response all that it drew.
func TestPicturesInText(t *testing.T) {
	picture := strings.Repeat("A", 20<<20)
	for path, events := range map[string][2]string{
		"/v1/chat/completions": {`data: {"choices":[{"index":0,"delta":{"images":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + picture + `"}}]},"finish_reason":"stop"}]}` + "\n\n", "data: [DONE]\n\n"},
		"/v1/responses":        {"data: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\n", `data: {"type":"response.completed","response":{"id":"r","output":[{"type":"image_generation_call","result":"` + picture + `"}]}}` + "\n\n"},
	} {
		r, c := upstreamOf(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("content-type", "text/event-stream")
			_, _ = io.WriteString(w, events[0]+events[1])
		}, func(a *Ask) { a.Streamed, a.Endpoint, a.Choices = true, endpointOf(path), 1 })
		all := 0
		for r.Stream != nil {
			b := r.Stream.Next()
			all += len(b.Forward) + len(b.Last)
			if b.Last != nil || b.Broken != nil {
				break
			}
		}
		if r.Outcome != breaker.OK || all != len(events[0])+len(events[1]) {
			t.Errorf("%s: %v %v, %d bytes", path, r.Outcome, r.Cause, all)
		}
		r.Release()
		if left := c.events.Load(); left != 0 {
			t.Errorf("%s: %d bytes are still counted", path, left)
		}
	}
}

// TestMediaThatIsNotStreamed: a provider whose model has no streams answers
// whole, and that is what goes on; of other endpoints it is a failure.
func TestMediaThatIsNotStreamed(t *testing.T) {
	for path, want := range map[string]breaker.Outcome{"/v1/audio/transcriptions": breaker.OK, "/v1/chat/completions": breaker.ServerError} {
		var accept string
		r, _ := upstreamOf(t, func(w http.ResponseWriter, q *http.Request) {
			accept = q.Header.Get("Accept")
			w.Header().Set("content-type", "application/json")
			_, _ = io.WriteString(w, `{"text":"x","choices":[],"usage":{"input_tokens":5,"output_tokens":7}}`)
		}, func(a *Ask) { a.Streamed, a.Endpoint = true, endpointOf(path) })
		if r.Outcome != want || r.Stream != nil {
			t.Errorf("%s: %v %v, accepts %q", path, r.Outcome, r.Cause, accept)
		}
		if want == breaker.OK && (r.Answer.Usage.Output != 7 || accept != "*/*") {
			t.Errorf("%s: %+v, accepts %q", path, r.Answer, accept)
		}
		r.Release()
	}
}
