package dataplane_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
)

const images = "/v1/images/generations"

// picture is an event of a picture of that many bytes.
func picture(kind string, size int) string {
	usage := ""
	if kind == "completed" {
		usage = `,"usage":{"input_tokens":5,"output_tokens":7,"total_tokens":12}`
	}
	return fmt.Sprintf("event: image_generation.%s\ndata: {\"type\":\"image_generation.%s\",\"b64_json\":%q%s}\n\n", kind, kind, strings.Repeat("QUJD", size/4), usage)
}

// plays gives what an upstream says, in turn: bytes, or "cut", "hang", "heard X": when
// the client has read X.
func plays(s *script, says ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then the server sees who leaves
		w.Header().Set("content-type", "text/event-stream")
		for _, say := range says {
			if word, ok := strings.CutPrefix(say, "heard "); ok {
				s.wait(r.Context(), word)
				continue
			}
			switch say {
			case "cut":
				panic(http.ErrAbortHandler)
			case "hang":
				<-r.Context().Done()
				return
			}
			_, _ = io.WriteString(w, say)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

const askPicture = `{"model":"m","prompt":"a fox","stream":true,"partial_images":1}`

// TestLongPictures: pictures of many MiB pass byte for byte, here and through
// another region, over both protocols; the receipt states all of it.
func TestLongPictures(t *testing.T) {
	const size = 9 << 20
	whole := picture("partial_image", size) + picture("completed", size)
	r := newRing(t)
	url := provider(t, plays(nil, picture("partial_image", size), picture("completed", size)))
	for _, region := range []string{"us-east", "ap-sg"} {
		r.upstream("up-"+region, region, "openai", url)
		r.route(region, registry.Target{Upstream: "up-" + region, Model: "m"})
	}
	key, _ := r.org("acme", "any", "verified", "live")
	us, ap := r.start("us-east", "us", patient), r.start("ap-sg", "apac", patient)
	r.load()
	for _, region := range []string{"us-east", "ap-sg"} {
		for _, http2 := range []bool{false, true} {
			in := call{path: images, key: key, body: strings.Replace(askPicture, `"m"`, `"`+region+`"`, 1)}
			reply := us.do(us.client(http2), in)
			if reply.status != 200 || reply.broken != nil || reply.body != whole {
				t.Fatalf("%s h2=%t: %d %v, %d bytes of %d: %.200s", region, http2, reply.status, reply.broken, len(reply.body), len(whole), reply.body)
			}
			rec := us.record(reply.header.Get("idc-request-id"))
			if rec.TokensIn != 5 || rec.TokensOut != 7 || rec.Source != "provider" || rec.Ended != "complete" || !rec.Streamed {
				t.Errorf("%+v", rec)
			}
			if f := us.receiptOf(key, reply, in.body); f.Ended != "complete" {
				t.Errorf("%+v", f)
			}
			if region == "ap-sg" {
				if w := ap.record(rec.RequestID); w.TokensOut != 7 {
					t.Errorf("%+v", w)
				}
			}
		}
	}
}

// TestPicturesThatFail: before the first event another upstream is asked; after
// it the stream ends with an error, whoever was to blame, and nobody is asked.
func TestPicturesThatFail(t *testing.T) {
	partial, completed := picture("partial_image", 8), picture("completed", 8)
	failed := "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"server_error\",\"code\":\"image_generation_failed\",\"message\":\"x\"}}\n\n"
	mistake := "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"image_generation_user_error\",\"code\":\"bad_size\",\"message\":\"x\"}}\n\n"
	for _, c := range []struct {
		name     string
		first    []string
		tries    int
		status   int
		want     string // how the answer begins
		ended    string
		code     dialect.Code // in a stream that breaks
		outcomes string
	}{
		{"an error at once", []string{failed}, 2, 200, partial + completed, "complete", "", "server_error ok"},
		{"nothing at all", []string{"hang"}, 2, 200, partial + completed, "complete", "", "timeout ok"},
		{"cut before the first event", []string{": wait\n\n", "cut"}, 2, 200, partial + completed, "complete", "", "transport ok"},
		{"the client's mistake", []string{mistake}, 1, 400, `{"type":"error","error":{"type":"image_generation_user_error"`, "error", "", "client_error"},
		{"cut", []string{partial, "heard partial_image", "cut"}, 1, 200, partial, "truncated", dialect.UpstreamError, "transport"},
		{"ended too early", []string{partial, "heard partial_image"}, 1, 200, partial, "truncated", dialect.UpstreamError, "transport"},
		{"silent", []string{partial, "hang"}, 1, 200, partial, "truncated", dialect.UpstreamTimeout, "timeout"},
		{"garbage", []string{partial, "heard partial_image", "data: {\n\n"}, 1, 200, partial, "truncated", dialect.UpstreamError, "server_error"},
		{"an error in between", []string{partial, "heard partial_image", failed}, 1, 200, partial + failed, "truncated", "", "server_error"},
		{"left open", []string{partial, completed, "hang"}, 1, 200, partial + completed, "complete", "", "ok"},
	} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/h2=%t", c.name, http2), func(t *testing.T) {
				t.Parallel()
				s, r := &script{}, newRing(t)
				r.upstream("one", "us-east", "openai", provider(t, plays(s, c.first...)))
				r.upstream("two", "us-east", "openai", provider(t, plays(nil, partial, completed)))
				r.route("m", registry.Target{Upstream: "one", Model: "m"}, registry.Target{Upstream: "two", Model: "m", Order: 1})
				timeouts := &r.state[len(r.state)-1].Route.Timeouts
				timeouts.FirstByteMS, timeouts.IdleMS = 1000, 1000
				key, _ := r.org("acme", "any", "verified", "live")
				cell := r.start("us-east", "us", patient)
				r.load()
				in := call{path: images, key: key, body: askPicture}
				reply := cell.do(s.listening(cell.client(http2)), in)
				if reply.status != c.status || !strings.HasPrefix(reply.body, c.want) || (reply.broken != nil) != (c.ended == "truncated") {
					t.Fatalf("%d %v %q", reply.status, reply.broken, reply.body)
				}
				if rest := strings.TrimPrefix(reply.body, c.want); c.status == 200 && (rest != "") != (c.code != "") || c.code != "" && !strings.Contains(rest, string(c.code)) {
					t.Errorf("after that it says %q", rest)
				}
				f := cell.receiptOf(key, reply, in.body)
				var outcomes []string
				for _, a := range f.Attempts {
					outcomes = append(outcomes, a.Outcome)
				}
				rec := cell.record(reply.header.Get("idc-request-id"))
				if string(rec.Ended) != c.ended || f.Ended != c.ended || strings.Join(outcomes, " ") != c.outcomes || len(outcomes) != c.tries {
					t.Errorf("%v %+v", outcomes, rec)
				}
				if c.ended == "complete" && (rec.TokensOut != 7 || rec.Source != "provider") || c.ended == "truncated" && rec.TokensOut != 0 {
					t.Errorf("%+v", rec)
				}
			})
		}
	}
}

// TestPictureThatNobodyWaitsFor: a client that leaves ends the upstream's work.
func TestPictureThatNobodyWaitsFor(t *testing.T) {
	gone := make(chan struct{})
	c, key := scripted(t, func(w http.ResponseWriter, r *http.Request) {
		plays(nil, picture("partial_image", 64<<10))(w, r)
		<-r.Context().Done()
		close(gone)
	}, patient)
	ctx, leave := context.WithCancel(t.Context())
	resp, err := c.send(ctx, c.client(true), call{path: images, key: key, body: askPicture})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	leave()
	_ = resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Fatal("the upstream works on")
	}
	if rec := c.record(resp.Header.Get("idc-request-id")); rec.Ended != "client_gone" {
		t.Errorf("%+v", rec)
	}
}

// TestMediaWhoseModelHasNoStreams: the provider leaves the option out of account
// and answers whole; so does the gateway, here and through another region.
func TestMediaWhoseModelHasNoStreams(t *testing.T) {
	r := newRing(t)
	url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/v1/audio/speech" {
			w.Header().Set("content-type", "audio/mpeg")
			_, _ = io.WriteString(w, "\xff\xfb sound")
			return
		}
		w.Header().Set("content-type", "application/json")
		_, _ = io.WriteString(w, `{"text":"foxes","usage":{"type":"tokens","input_tokens":5,"output_tokens":7}}`)
	}))
	for _, region := range []string{"us-east", "ap-sg"} {
		r.upstream("up-"+region, region, "openai", url)
		r.route(region, registry.Target{Upstream: "up-" + region, Model: "m"})
	}
	key, _ := r.org("acme", "any", "verified", "live")
	us := r.start("us-east", "us", patient)
	r.start("ap-sg", "apac", patient)
	r.load()
	for _, region := range []string{"us-east", "ap-sg"} {
		body, kind := form(t, region, "stream", "true")
		reply := us.do(us.client(true), call{path: "/v1/audio/transcriptions", key: key, body: body, header: map[string]string{"content-type": kind}})
		if rec := us.record(reply.header.Get("idc-request-id")); reply.status != 200 || reply.header.Get("content-type") != "application/json" || !strings.HasPrefix(reply.body, `{"text":"foxes"`) || rec.TokensOut != 7 {
			t.Errorf("%s: %d %v %s", region, reply.status, reply.header, reply.body)
		}
		reply = us.do(us.client(false), call{path: "/v1/audio/speech", key: key, body: `{"model":"` + region + `","input":"x","voice":"y","stream_format":"sse"}`})
		if reply.status != 200 || reply.header.Get("content-type") != "audio/mpeg" || reply.body != "\xff\xfb sound" {
			t.Errorf("%s: %d %v %q", region, reply.status, reply.header, reply.body)
		}
	}
}

// TestPicturesForWhichThereIsNoRoom: what a node holds of long events is bounded
// over all streams. One too many is told to come again, at once or where it
// stands, here and where another region runs it; its upstream is not to blame.
func TestPicturesForWhichThereIsNoRoom(t *testing.T) {
	const size = 4 << 20
	tight := patient
	tight.Events = 1 << 20
	s, r := &script{}, newRing(t)
	for name, says := range map[string][]string{"early": {picture("partial_image", size)}, "late": {picture("partial_image", 8), "heard partial_image", picture("completed", size)}} {
		r.upstream(name, "us-east", "openai", provider(t, plays(s, says...)))
		r.route(name, registry.Target{Upstream: name, Model: "m"})
	}
	r.upstream("far", "ap-sg", "openai", provider(t, plays(nil, picture("partial_image", size))))
	r.route("far", registry.Target{Upstream: "far", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	us := r.start("us-east", "us", tight)
	r.start("ap-sg", "apac", tight)
	r.load()
	in := func(model string) call {
		return call{path: images, key: key, body: strings.Replace(askPicture, `"m"`, `"`+model+`"`, 1)}
	}
	for _, model := range []string{"early", "early", "early", "early", "early", "early", "far"} { // more than a circuit bears
		us.do(us.client(true), in(model)).wantError(t, dialect.OpenAI, dialect.CapacityShed)
	}
	reply := us.do(s.listening(us.client(true)), in("late"))
	if reply.status != 200 || reply.broken == nil || !strings.HasPrefix(reply.body, picture("partial_image", 8)) || !strings.Contains(reply.body, string(dialect.CapacityShed)) {
		t.Errorf("%d %v %.500s", reply.status, reply.broken, reply.body)
	}
	if rec := us.record(reply.header.Get("idc-request-id")); rec.Ended != "truncated" || rec.Code != string(dialect.CapacityShed) {
		t.Errorf("%+v", rec)
	}
}

// TestSeveralPictures: each goes on as it comes, whether it has an end of its own
// or all have one; the stream is over when as many ended, or when it ends.
func TestSeveralPictures(t *testing.T) {
	partial, completed := picture("partial_image", 8), picture("completed", 8)
	for name, c := range map[string]struct {
		says  []string
		ended string
	}{
		"an end each":                    {[]string{partial, completed, "heard completed", partial, completed, "hang"}, "complete"},
		"one end for all":                {[]string{partial, partial, completed, "heard completed"}, "complete"},
		"a mark":                         {[]string{partial, completed, "heard completed", "data: [DONE]\n\n", "hang"}, "complete"},
		"the second is not finished":     {[]string{partial, completed, partial, "heard completed"}, "truncated"},
		"the second begins and is cut":   {[]string{partial, completed, "heard completed", "cut"}, "truncated"},
		"the second comes after a while": {[]string{partial, completed, "heard completed", ": wait\n\n", "heard wait", partial, completed}, "complete"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &script{}
			cell, key := scripted(t, plays(s, c.says...), patient)
			reply := cell.do(s.listening(cell.client(true)), call{path: images, key: key, body: strings.Replace(askPicture, "{", `{"n":2,`, 1)})
			want := ""
			for _, say := range c.says {
				if strings.Contains(say, ": ") {
					want += say
				}
			}
			if reply.status != 200 || !strings.HasPrefix(reply.body, want) || (reply.broken == nil) != (c.ended == "complete") || reply.broken == nil && reply.body != want {
				t.Errorf("%d %v %s, want %s", reply.status, reply.broken, reply.body, want)
			}
			if rec := cell.record(reply.header.Get("idc-request-id")); string(rec.Ended) != c.ended || rec.TokensOut != 7 {
				t.Errorf("%+v", rec)
			}
		})
	}
}
