package dataplane_test

import (
	"bytes"
	"context"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/drills/simmodel"
)

// recorder keeps what a provider last got and gave.
type recorder struct {
	next http.Handler
	mu   sync.Mutex
	got  *http.Request
	sent []byte // to the provider
	gave *httptest.ResponseRecorder
}

func (p *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.next.ServeHTTP(&tee{ResponseWriter: w, p: p}, r)
}

func (p *recorder) request(r *http.Request, body []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got, p.sent, p.gave = r.Clone(context.Background()), bytes.Clone(body), httptest.NewRecorder()
}

// last gives the last exchange, once it is over.
func (p *recorder) last() (r *http.Request, sent []byte, gave string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got, p.sent, p.gave.Body.String()
}

type tee struct {
	http.ResponseWriter
	p *recorder
}

func (t *tee) Unwrap() http.ResponseWriter { return t.ResponseWriter }
func (t *tee) Flush()                      { _ = http.NewResponseController(t.ResponseWriter).Flush() }
func (t *tee) Write(b []byte) (int, error) {
	t.p.mu.Lock()
	t.p.gave.Body.Write(b)
	t.p.mu.Unlock()
	return t.ResponseWriter.Write(b)
}

// recorded is a simulated provider whose traffic is kept.
func recorded(t *testing.T) (*recorder, string) {
	p := &recorder{}
	p.next = simmodel.New(simmodel.Config{OnRequest: p.request})
	return p, provider(t, p)
}

// form makes a multipart body with a file in it. Bytes that are no text must pass.
func form(t *testing.T, model string, more ...string) (body, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	part(w.WriteField("prompt", "a ring of copper"))
	f, err := w.CreateFormFile("file", "sound.mp3")
	part(err)
	_, err = f.Write([]byte("\xff\xfb\x90\x00\r\n--not the boundary\r\n\x00"))
	part(err)
	f, err = w.CreateFormFile("image", "picture.png")
	part(err)
	_, err = f.Write([]byte("\x89PNG\r\n"))
	part(err)
	part(w.WriteField("model", model))
	for i := 0; i < len(more); i += 2 {
		part(w.WriteField(more[i], more[i+1]))
	}
	part(w.Close())
	return b.String(), w.FormDataContentType()
}

// bodyFor is a good request for an endpoint, with a field that nobody knows.
func bodyFor(t *testing.T, ep *dialect.Endpoint, model string, stream bool) (body, contentType string) {
	t.Helper()
	switch {
	case ep.Body != dialect.BodyJSON && stream:
		return form(t, model, "stream", "true", "partial_images", "2")
	case ep.Body != dialect.BodyJSON:
		return form(t, model)
	}
	more := ""
	switch {
	case stream && ep.Path == "/v1/audio/speech":
		more = `,"stream_format":"sse"`
	case stream:
		more = `,"stream":true,"partial_images":2`
	}
	what := map[string]string{
		"/v1/chat/completions": `"messages":[{"role":"user","content":"foxes"}]`, "/v1/completions": `"prompt":"foxes"`,
		"/v1/responses": `"input":"foxes"`, "/v1/embeddings": `"input":["foxes","rings"]`, "/v1/messages": `"max_tokens":50,"messages":[{"role":"user","content":"foxes"}]`,
		"/v1/messages/count_tokens": `"messages":[{"role":"user","content":"foxes"}]`, "/v1/audio/speech": `"input":"foxes","voice":"alloy"`,
		"/v1/images/generations": `"prompt":"foxes"`,
	}[ep.Path]
	if what == "" {
		t.Fatalf("no request for %s: add one", ep.Path)
	}
	return `{"model":"` + model + `",` + what + `, "odd" : [ 1.50, "\u00e9" ]` + more + `}`, "application/json"
}

// TestEveryEndpoint: each endpoint, plain and streaming, here and through
// another region, over both protocols: the provider gets the client's bytes
// but for the model's name, and the client the provider's.
func TestEveryEndpoint(t *testing.T) {
	r := newRing(t)
	providers := map[string]*recorder{}
	for _, region := range []string{"us-east", "ap-sg"} {
		p, url := recorded(t)
		providers[region] = p
		for _, d := range []string{"openai", "anthropic"} {
			r.upstream(d+"-"+region, region, d, url)
		}
		r.route("model-"+region, registry.Target{Upstream: "openai-" + region, Model: "sim-chat"}, registry.Target{Upstream: "anthropic-" + region, Model: "sim-chat"})
	}
	key, _ := r.org("acme", "any", "verified", "live")
	us, ap := r.start("us-east", "us", patient), r.start("ap-sg", "apac", patient)
	r.load()
	for _, ep := range dialect.Endpoints() {
		if ep.Stores {
			continue
		}
		for _, region := range []string{"us-east", "ap-sg"} {
			for _, http2 := range []bool{false, true} {
				for _, stream := range []bool{false, true} {
					if stream && !ep.Streams {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/h2=%t/stream=%t", ep.Path, region, http2, stream), func(t *testing.T) {
						body, kind := bodyFor(t, ep, "model-"+region, stream)
						reply := us.do(us.client(http2), call{path: ep.Path, key: key, body: body, header: map[string]string{"content-type": kind}})
						if reply.status != 200 || reply.broken != nil {
							t.Fatalf("%d %v %s", reply.status, reply.broken, reply.body)
						}
						reply.wantHeaders(t)
						if got := reply.header.Get("idc-region"); got != region {
							t.Errorf("ran in %s", got)
						}
						got, sent, gave := providers[region].last()
						want := strings.Replace(body, "model-"+region, "sim-chat", 1)
						if stream && strings.Contains(string(sent), "include_usage") {
							want = strings.Replace(want, `"stream":true`, `"stream":true,"stream_options":{"include_usage":true}`, 1)
						}
						if got.URL.Path != ep.Path || got.Header.Get("Content-Type") != kind || string(sent) != want {
							t.Errorf("the provider got %s %q %q, want %q", got.URL.Path, got.Header.Get("Content-Type"), sent, want)
						}
						if (!stream || ep.Media) && reply.body != gave {
							t.Errorf("the client got %q, the provider gave %q", reply.body, gave)
						}
						if stream {
							left := gave
							for _, event := range events(reply.body) {
								at := strings.Index(left, event)
								if at < 0 {
									t.Fatalf("the event %q is none of the provider's", event)
								}
								left = left[at+len(event):]
							}
							if len(events(gave))-len(events(reply.body)) > 1 {
								t.Errorf("%d events of %d", len(events(reply.body)), len(events(gave)))
							}
						}
						wantKind := "application/json"
						switch {
						case stream:
							wantKind = "text/event-stream; charset=utf-8"
						case ep.Path == "/v1/audio/speech":
							wantKind = "audio/mpeg"
						}
						if kind := reply.header.Get("content-type"); kind != wantKind {
							t.Errorf("content type %q, want %q", kind, wantKind)
						}
						rec := us.record(reply.header.Get("idc-request-id"))
						if rec.Endpoint != ep.Path || rec.Streamed != stream || ep.Usage != dialect.UsageNone && (rec.TokensIn == 0 || rec.Source != "provider") {
							t.Errorf("%+v", rec)
						}
						if region == "ap-sg" {
							if witness := ap.record(reply.header.Get("idc-request-id")); witness.Endpoint != ep.Path || witness.Role != "witness" || witness.TokensIn != rec.TokensIn {
								t.Errorf("%+v", witness)
							}
						}
					})
				}
			}
		}
	}
	families, err := us.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]bool{}
	for _, f := range families {
		if f.GetName() != "ringmain_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetValue()] = true
			}
		}
	}
	for _, ep := range dialect.Endpoints() {
		if !ep.Stores && !labels[ep.Path] {
			t.Errorf("no metric of %s", ep.Path)
		}
	}
}

// TestHowBodiesAreDeclared: what the official clients send passes, anything
// else is refused with its reason, and reaches no provider.
func TestHowBodiesAreDeclared(t *testing.T) {
	r := newRing(t)
	p, url := recorded(t)
	r.upstream("up", "us-east", "openai", url)
	r.route("m", registry.Target{Upstream: "up", Model: "sim-chat"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	json, files := ask("m", false), "/v1/audio/transcriptions"
	multi, multiKind := form(t, "m")
	for _, tc := range []struct {
		name, path, body string
		header           map[string]string
		ok               bool
	}{
		{"nothing declared", chat, json, nil, true},
		{"JSON", chat, json, map[string]string{"content-type": "application/json"}, true},
		{"JSON with a charset", chat, json, map[string]string{"content-type": "Application/JSON; charset=utf-8"}, true},
		{"curl's default", chat, json, map[string]string{"content-type": "application/x-www-form-urlencoded"}, false},
		{"text", chat, json, map[string]string{"content-type": "text/plain"}, false},
		{"two types", chat, json, map[string]string{"content-type": "application/json|text/plain"}, false},
		{"a form where JSON belongs", chat, multi, map[string]string{"content-type": multiKind}, false},
		{"a form", files, multi, map[string]string{"content-type": multiKind}, true},
		{"JSON where a form belongs", files, json, map[string]string{"content-type": "application/json"}, false},
		{"a form, not declared", files, multi, nil, false},
		{"a form without a boundary", files, multi, map[string]string{"content-type": "multipart/form-data"}, false},
		{"another boundary", files, multi, map[string]string{"content-type": "multipart/form-data; boundary=other"}, false},
		{"compressed", chat, json, map[string]string{"content-encoding": "gzip"}, false},
		{"compressed twice", chat, json, map[string]string{"content-encoding": "identity|gzip"}, false},
		{"not compressed, and said so", chat, json, map[string]string{"content-encoding": "identity"}, true},
	} {
		for _, http2 := range []bool{false, true} {
			p.request(httptest.NewRequest(http.MethodPost, "/", nil), nil)
			reply := c.do(c.client(http2), call{path: tc.path, key: key, body: tc.body, header: tc.header})
			got, sent, _ := p.last()
			if (len(sent) > 0) != tc.ok {
				t.Errorf("%s: the provider got %q", tc.name, sent)
			}
			if kind := got.Header.Get("Content-Type"); tc.ok && tc.path == chat && kind != "application/json" {
				t.Errorf("%s: the provider was told %q", tc.name, kind)
			}
			if tc.ok {
				if reply.status != 200 {
					t.Errorf("%s: %d %s", tc.name, reply.status, reply.body)
				}
				continue
			}
			reply.wantError(t, dialect.OpenAI, dialect.InvalidRequest)
		}
	}
}

// TestBinaryAnswers: their type passes as given if it can be one, an empty one
// becomes bytes; errors of such endpoints are JSON.
func TestBinaryAnswers(t *testing.T) {
	for given, want := range map[string]string{
		"audio/mpeg": "audio/mpeg", "audio/pcm; rate=24000": "audio/pcm; rate=24000", "": "application/octet-stream",
		"audio/" + strings.Repeat("x", 200): "application/octet-stream",
	} {
		c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{given}
			if given == "" {
				w.Header()["Content-Type"] = nil
			}
			_, _ = w.Write([]byte("\x00\xff sound"))
		}, patient)
		reply := c.do(c.client(true), call{path: "/v1/audio/speech", key: key, body: `{"model":"m","input":"x","voice":"y"}`})
		if reply.status != 200 || reply.header.Get("content-type") != want || reply.body != "\x00\xff sound" || reply.header.Get("x-content-type-options") != "nosniff" {
			t.Errorf("%q: %d %v %q", given, reply.status, reply.header, reply.body)
		}
	}
}

// TestAnswersThatAreTooLarge end as an error that says so, before a byte of them went out.
func TestAnswersThatAreTooLarge(t *testing.T) {
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "audio/wav")
		for range 33 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}, patient)
	reply := c.do(c.client(true), call{path: "/v1/audio/speech", key: key, body: `{"model":"m","input":"x","voice":"y"}`})
	reply.wantError(t, dialect.OpenAI, dialect.UpstreamError)
	if !strings.Contains(reply.body, "32 MiB") || reply.header.Get("idc-attempts") != "1" {
		t.Errorf("%s %v", reply.body, reply.header)
	}
}

// TestStorageEndpoints: whoever must not store is told so, everybody else that
// nothing of the kind is offered. Strangers learn neither.
func TestStorageEndpoints(t *testing.T) {
	r := newRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	zero, _ := r.org("zero", "any", "verified", "live")
	r.policy("pol_zero", &registry.Policy{Org: "org_zero", NoRetention: true})
	c := r.start("us-east", "us", patient)
	c.confinement.Store(&allHolds)
	r.load()
	for _, path := range []string{"/v1/files", "/v1/files/file-1/content", "/v1/uploads", "/v1/batches", "/v1/messages/batches", "/v1/vector_stores/vs_1"} {
		d := dialect.OfPath(path)
		for _, method := range []string{"GET", "POST", "DELETE"} {
			in := call{path: path, method: method, body: "x"}
			c.do(c.client(true), in).wantError(t, d, dialect.InvalidAPIKey)
			in.key = key
			c.do(c.client(false), in).wantError(t, d, dialect.NotFound)
			in.key = zero
			reply := c.do(c.client(true), in)
			reply.wantError(t, d, dialect.StorageNotAllowed)
			if rec := c.record(reply.header.Get("idc-request-id")); rec.Code != "storage_not_allowed" || !strings.HasPrefix(path, rec.Endpoint) {
				t.Errorf("%+v", rec)
			}
		}
	}
	c.do(c.client(true), call{path: "/v1/filesystem", key: key}).wantError(t, dialect.OpenAI, dialect.NotFound)
}
