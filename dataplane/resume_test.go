package dataplane_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/meter"
)

// script is a provider that plays one stream after another, whoever asks.
type script struct {
	mu    sync.Mutex
	takes []take
	hosts []string        // that were asked, in turn
	heard strings.Builder // what the client has read
}

// listening is cl, whose reading s waits for.
func (s *script) listening(cl *http.Client) *http.Client {
	cl.Transport = ear{cl.Transport, s}
	return cl
}

type ear struct {
	http.RoundTripper
	s *script
}

func (e ear) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := e.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = earBody{resp.Body, e.s}
	}
	return resp, err
}

type earBody struct {
	io.ReadCloser
	s *script
}

func (b earBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	b.s.heard.Write(p[:n])
	return n, err
}

// wait returns when the client has read text, or nobody listens any more.
func (s *script) wait(ctx context.Context, text string) {
	for ctx.Err() == nil {
		s.mu.Lock()
		heard := strings.Contains(s.heard.String(), text)
		s.mu.Unlock()
		if heard {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// take is one scripted stream.
type take struct {
	events string
	end    string // "", cut, stall, or bytes to end with
	after  string // what the client is to have read before the end; empty = its last word
	status int
}

// last is the last text of a take.
func (t *take) last() string {
	if t.after != "" {
		return t.after
	}
	all := regexp.MustCompile(`"(?:content|refusal|reasoning_content)":"([^"]+)"`).FindAllStringSubmatch(t.events, -1)
	return all[len(all)-1][1]
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	n := len(s.hosts)
	s.hosts = append(s.hosts, r.Host)
	var now take
	if n < len(s.takes) {
		now = s.takes[n]
	}
	s.mu.Unlock()
	if now.status != 0 {
		w.Header().Set("content-type", "application/json")
		w.WriteHeader(now.status)
		_, _ = w.Write([]byte(now.events))
		return
	}
	w.Header().Set("content-type", "text/event-stream")
	_, _ = w.Write([]byte(now.events))
	_ = http.NewResponseController(w).Flush()
	if now.end != "" && now.end != "stall" {
		s.wait(r.Context(), now.last())
	}
	switch now.end {
	case "":
	case "cut":
		panic(http.ErrAbortHandler)
	case "stall":
		<-r.Context().Done()
	default:
		_, _ = w.Write([]byte(now.end))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

func (s *script) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.hosts)
}

// first is who was asked first.
func (s *script) first() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hosts[0]
}

// chunks is a chat stream under the name id, one chunk a word; the last one is
// the finish reason, if it begins with "=".
func chunks(id string, words ...string) string {
	var b strings.Builder
	line := func(delta, finish string) {
		fmt.Fprintf(&b, "data: {\"id\":%q,\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":%s,\"finish_reason\":%s}]}\n\n", id, delta, finish)
	}
	line(`{"role":"assistant","content":""}`, "null")
	for _, w := range words {
		if reason, ok := strings.CutPrefix(w, "="); ok {
			line("{}", fmt.Sprintf("%q", reason))
			continue
		}
		line(fmt.Sprintf(`{"content":%q}`, w), "null")
	}
	return b.String()
}

func usage(id string, in, out int) string {
	return fmt.Sprintf("data: {\"id\":%q,\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d}}\n\n", id, in, out)
}

const done = "data: [DONE]\n\n"

// spliceCell is us-east with three upstreams behind model m, all played by s.
func spliceCell(t *testing.T, s *script) (*cell, string) {
	t.Helper()
	r := newRing(t)
	url := provider(t, s)
	var targets []registry.Target
	for _, name := range []string{"up-1", "up-2", "up-3"} {
		r.upstream(name, "us-east", "openai", url, simulated)
		targets = append(targets, registry.Target{Upstream: name, Model: "m"})
	}
	r.route("m", targets...)
	r.state[len(r.state)-1].Route.Timeouts.IdleMS = 700
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	return c, key
}

// heard is what a client makes of a chat stream.
func heard(t *testing.T, body string) (text, finish string, failed, closed bool, ids map[string]bool) {
	t.Helper()
	ids = map[string]bool{}
	for _, e := range events(body) {
		data := strings.TrimSuffix(strings.TrimPrefix(e, "data: "), "\n\n")
		switch {
		case strings.HasPrefix(e, ":"):
			continue
		case data == "[DONE]":
			closed = true
			continue
		}
		var c struct {
			ID      string
			Error   map[string]any
			Choices []struct {
				Delta        struct{ Content string }
				FinishReason string `json:"finish_reason"`
			}
		}
		decode(t, data, &c)
		if c.Error != nil {
			failed = true
			continue
		}
		ids[c.ID] = true
		for _, ch := range c.Choices {
			text += ch.Delta.Content
			finish += ch.FinishReason
		}
	}
	return text, finish, failed, closed, ids
}

func TestBrokenStreams(t *testing.T) {
	whole := chunks("b", "The quick", " fox", " jumps", " over", "=stop") + usage("b", 7, 11) + done
	half := chunks("a", "The", " quick f", "ox ju")
	never := take{events: "data: {\"error\":{\"message\":\"nobody should ask\"}}\n\n"}
	type want struct {
		text    string
		good    bool
		asked   int
		splices int
		in, out int64 // of the answer; 0 = estimated
		refused bool
		beside  bool // something was spent beside the answer
	}
	spliced := want{text: "The quick fox jumps over", good: true, asked: 2, splices: 1, in: 7, out: 11, beside: true}
	for _, c := range []struct {
		name  string
		more  string // of the request
		takes []take
		want  want
	}{
		{"cut", `,"temperature":0`, []take{{events: half, end: "cut"}, {events: whole}, never}, spliced},
		{"a seed will do", `,"seed":4`, []take{{events: half, end: "cut"}, {events: whole}, never}, spliced},
		{"ends cleanly too early", `,"temperature":0`, []take{{events: half}, {events: whole}, never}, spliced},
		{"stall", `,"temperature":0`, []take{{events: half, end: "stall"}, {events: whole}, never}, spliced},
		{"garbage", `,"temperature":0`, []take{{events: half, end: "data: {\"id\":\xff\n\n"}, {events: whole}, never}, spliced},
		{"late error event", `,"temperature":0`, []take{{events: half, end: "data: {\"error\":{\"message\":\"overloaded\"}}\n\n"}, {events: whole}, never}, spliced},
		{"within an event", `,"temperature":0`, []take{{events: half + whole[:40], end: "cut", after: "ox ju"}, {events: whole}, never}, spliced},
		{"twice", `,"temperature":0`, []take{{events: half, end: "cut"}, {events: chunks("c", "The quick fox", " jumps o"), end: "cut", after: "mps o"}, {events: whole}},
			want{text: "The quick fox jumps over", good: true, asked: 3, splices: 2, in: 7, out: 11, beside: true}},
		{"the first replay fails", `,"temperature":0`, []take{{events: half, end: "cut"}, {events: "busy", status: 500}, {events: whole}},
			want{text: "The quick fox jumps over", good: true, asked: 3, splices: 1, in: 7, out: 11, beside: true}},
		{"the attempts are used up", `,"temperature":0`, []take{{events: half, end: "cut"}, {events: "busy", status: 500}, {events: "busy", status: 500}},
			want{text: "The quick fox ju", asked: 3}},
		{"another answer", `,"temperature":0`, []take{{events: half, end: "cut"}, {events: chunks("b", "The quack", "=stop") + done}, never},
			want{text: "The quick fox ju", asked: 2, beside: true}},
		{"a shorter answer", `,"temperature":0`, []take{{events: half, end: "cut"}, {events: chunks("b", "The quick", "=stop") + done}, never},
			want{text: "The quick fox ju", asked: 2, beside: true}},
		{"the replay stalls before it is level", `,"temperature":0`, []take{{events: half, end: "cut"}, {events: chunks("b", "The qu"), end: "stall"}, {events: chunks("b", "The qu"), end: "stall"}},
			want{text: "The quick fox ju", asked: 2, beside: true}},
		{"the replay is refused", `,"temperature":0`, []take{{events: half, end: "cut"}, {events: `{"error":{"code":"content_filter","message":"no"}}`, status: 400}, never},
			want{text: "The quick fox ju", asked: 2, refused: true}},
		{"the replay refuses", `,"temperature":0`, []take{{events: half, end: "cut"}, {events: strings.Replace(chunks("b", "I cannot", "=stop"), `"content":"I c`, `"refusal":"I c`, 1) + done}, never},
			want{text: "The quick fox ju", asked: 2, refused: true, beside: true}},
		{"a refusal is never spliced", `,"temperature":0`, []take{{events: strings.Replace(half, `"content":"ox`, `"refusal":"ox`, 1), end: "cut"}, {events: whole}, never},
			want{text: "The quick f", asked: 1, refused: true}},
		{"a filter's error event is a refusal", `,"temperature":0`, []take{{events: half, end: "data: {\"error\":{\"code\":\"content_filter\",\"message\":\"no\"}}\n\n"}, {events: whole}, never},
			want{text: "The quick fox ju", asked: 1, refused: true}},
		{"not asked to be the same twice", ``, []take{{events: half, end: "cut"}, {events: whole}, never},
			want{text: "The quick fox ju", asked: 1}},
		{"two choices", `,"temperature":0,"n":2`, []take{{events: half, end: "cut"}, {events: whole}, never},
			want{text: "The quick fox ju", asked: 1}},
		{"what the provider would keep", `,"temperature":0,"store":true`, []take{{events: half, end: "cut"}, {events: whole}, never},
			want{text: "The quick fox ju", asked: 1}},
		{"after thinking", `,"temperature":0`, []take{{events: strings.Replace(half, `"content":"ox`, `"reasoning_content":"ox`, 1), end: "cut"}, {events: whole}, never},
			want{text: "The quick f", asked: 1}},
		{"complete but for its closing event", `,"temperature":0`, []take{{events: strings.TrimSuffix(whole, done), end: "stall"}, never},
			want{text: "The quick fox jumps over", good: true, asked: 1, in: 7, out: 11}},
		{"complete, and cut before the closing event", ``, []take{{events: strings.TrimSuffix(whole, done), end: "cut", after: `"stop"`}, never},
			want{text: "The quick fox jumps over", good: true, asked: 1, in: 7, out: 11}},
		{"complete, and garbage instead of the closing event", ``, []take{{events: strings.TrimSuffix(whole, done), end: "\xff\n\n", after: `"stop"`}, never},
			want{text: "The quick fox jumps over", good: true, asked: 1, in: 7, out: 11}},
		{"finished, and the figures never come", ``, []take{{events: chunks("b", "The end", "=stop"), end: "stall"}, never},
			want{text: "The end", good: true, asked: 1}},
		{"malformed events that say nothing are left out", ``, []take{{events: chunks("b", "The end") + "data:\n\ndata: {}\n\nevent: x\n\n" + strings.TrimPrefix(chunks("b", "=stop"), chunks("b")) + done}, never},
			want{text: "The end", good: true, asked: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &script{takes: c.takes}
			cell, key := spliceCell(t, s)
			began := time.Now()
			r := cell.do(s.listening(cell.client(true)), call{path: chat, key: key, body: ask("m", true, c.more)})
			took := time.Since(began)
			if r.status != 200 {
				t.Fatalf("status %d: %s", r.status, r.body)
			}
			text, finish, failed, closed, ids := heard(t, r.body)
			rec := cell.record(r.header.Get("idc-request-id"))
			w := c.want
			if text != w.text || s.asked() != w.asked {
				t.Errorf("heard %q after %d attempts, want %q after %d", text, s.asked(), w.text, w.asked)
			}
			if good := closed && finish == "stop" && !failed && r.broken == nil; good != w.good || !w.good && (closed || !failed || r.broken == nil) {
				t.Errorf("closed %t, finish %q, failed %t, broken %v, want good %t: %s", closed, finish, failed, r.broken, w.good, r.body)
			}
			if len(ids) != 1 || w.good && w.splices > 0 && !ids["a"] {
				t.Errorf("names %v", ids)
			}
			if rec.Splices != w.splices || rec.Refused != w.refused || (rec.ReplayIn > 0) != w.beside || (rec.ReplayOut > 0) != w.beside || rec.Attempts != w.asked {
				t.Errorf("record %+v", rec)
			}
			if w.in > 0 && (rec.TokensIn != w.in || rec.TokensOut != w.out || rec.Source != meter.SourceProvider) {
				t.Errorf("record %+v", rec)
			}
			if wantEnd := map[bool]meter.End{true: meter.EndComplete, false: meter.EndTruncated}[w.good]; rec.Ended != wantEnd {
				t.Errorf("ended %s, want %s", rec.Ended, wantEnd)
			}
			if strings.Contains(r.body, "prompt_tokens") {
				t.Errorf("figures that nobody asked for: %s", r.body)
			}
			if took > 10*time.Second {
				t.Errorf("took %s", took)
			}
			if strings.Contains(cell.log.String(), "quick") {
				t.Error("the answer is in the log")
			}
		})
	}
}

func TestDeterministicRoutesSplice(t *testing.T) {
	s := &script{takes: []take{{events: chunks("a", "one"), end: "cut"}, {events: chunks("b", "one two", "=stop") + usage("b", 1, 2) + done}}}
	r := newRing(t)
	url := provider(t, s)
	r.upstream("up-1", "us-east", "openai", url, simulated)
	r.upstream("up-2", "us-east", "openai", url, simulated)
	r.route("m", registry.Target{Upstream: "up-1", Model: "m"}, registry.Target{Upstream: "up-2", Model: "m"})
	r.state[len(r.state)-1].Route.Deterministic = true
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	reply := c.do(s.listening(c.client(false)), call{path: chat, key: key, body: ask("m", true, `,"stream_options":{"include_usage":true}`)})
	text, finish, failed, closed, ids := heard(t, reply.body)
	if text != "one two" || finish != "stop" || failed || !closed || len(ids) != 1 || !strings.Contains(reply.body, `"completion_tokens":2`) {
		t.Errorf("%s", reply.body)
	}
}

// TestBrownoutSplicesNothing: a region that sheds load gives up splices first.
func TestBrownoutSplicesNothing(t *testing.T) {
	s := &script{takes: []take{{events: chunks("a", "one"), end: "cut"}, {events: chunks("b", "one two", "=stop") + done}}}
	r := newRing(t)
	url := provider(t, s)
	r.upstream("up-1", "us-east", "openai", url, simulated)
	r.upstream("up-2", "us-east", "openai", url, simulated)
	r.route("m", registry.Target{Upstream: "up-1", Model: "m"}, registry.Target{Upstream: "up-2", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	for _, rec := range r.state {
		if rec.Kind == registry.KindRegion {
			rec.Region.Brownout = 1
		}
	}
	c.load(r.state)
	for end := time.Now().Add(10 * time.Second); c.metric(t, "ringmain_brownout_step") != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the region's brown-out is not in force")
		}
	}
	reply := c.do(s.listening(c.client(false)), call{path: chat, key: key, body: ask("m", true, `,"temperature":0`)})
	if text, _, failed, closed, _ := heard(t, reply.body); text != "one" || !failed || closed || s.asked() != 1 {
		t.Errorf("asked %d times: %s", s.asked(), reply.body)
	}
}

// TestSplicesStayWithinPolicy: neither another jurisdiction nor another
// provider is asked to go on.
func TestSplicesStayWithinPolicy(t *testing.T) {
	for _, c := range []struct {
		name, jurisdiction, region string
		change                     func(*registry.Upstream)
		spliced                    bool
	}{
		{"same region and provider", "eu", "eu-fra", simulated, true},
		{"elsewhere", "eu", "us-east", simulated, false},
		{"elsewhere, and not pinned", "any", "us-east", simulated, true},
		{"another provider", "eu", "eu-fra", func(u *registry.Upstream) { u.Provider, u.Simulated = "another", true }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			first := &script{takes: []take{{events: chunks("a", "one"), end: "cut"}}}
			second := &script{takes: []take{{events: chunks("b", "one two", "=stop") + usage("b", 1, 2) + done}}}
			r := newRing(t)
			r.upstream("first", "eu-fra", "openai", provider(t, first), simulated)
			r.upstream("second", c.region, "openai", provider(t, second), c.change)
			r.route("m", registry.Target{Upstream: "first", Model: "m"}, registry.Target{Upstream: "second", Model: "m", Order: 1})
			key, _ := r.org("acme", c.jurisdiction, "verified", "live", func(o *registry.Org, _ *registry.Project, _ *registry.Key) { o.Roaming = c.jurisdiction == "any" })
			entry := r.start("eu-fra", "eu", patient)
			r.start("us-east", "us", patient)
			r.load()
			reply := entry.do(first.listening(entry.client(true)), call{path: chat, key: key, body: ask("m", true, `,"temperature":0`)})
			text, _, failed, closed, _ := heard(t, reply.body)
			if closed != c.spliced || failed == c.spliced || (second.asked() == 1) != c.spliced || text != map[bool]string{true: "one two", false: "one"}[c.spliced] {
				t.Errorf("second asked %d times: %s", second.asked(), reply.body)
			}
		})
	}
}

// TestPeerDiesWithinAStream: the entry node goes on with a replay in a third
// region.
func TestPeerDiesWithinAStream(t *testing.T) {
	full := chunks("b", "one two", " three", "=stop") + usage("b", 3, 4) + done
	for _, dead := range []string{"the upstream", "the node"} {
		t.Run(dead, func(t *testing.T) {
			end := "stall"
			if dead == "the upstream" {
				end = "cut"
			}
			s := &script{takes: []take{{events: chunks("a", "one", " t"), end: end}, {events: full}}}
			r := newRing(t)
			at := map[string]string{} // region, by the address of its provider
			for _, region := range []string{"us-west", "us-south"} {
				url := provider(t, s)
				at[strings.TrimPrefix(url, "http://")] = region
				r.upstream("up-"+region, region, "openai", url, simulated)
			}
			r.route("m", registry.Target{Upstream: "up-us-west", Model: "m"}, registry.Target{Upstream: "up-us-south", Model: "m"})
			key, _ := r.org("acme", "any", "verified", "live")
			entry := r.start("us-east", "us", patient)
			others := map[string]*cell{}
			for _, region := range []string{"us-west", "us-south"} {
				others[region] = r.start(region, "us", patient)
			}
			r.load()
			if dead == "the node" {
				var kill sync.WaitGroup
				kill.Go(func() {
					s.wait(t.Context(), `" t"`)
					others[at[s.first()]].close()
				})
				defer kill.Wait()
			}
			reply := entry.do(s.listening(entry.client(true)), call{path: chat, key: key, body: ask("m", true, `,"temperature":0`)})
			text, finish, failed, closed, ids := heard(t, reply.body)
			if text != "one two three" || finish != "stop" || failed || !closed || len(ids) != 1 || !ids["a"] {
				t.Errorf("%s", reply.body)
			}
			rec := entry.record(reply.header.Get("idc-request-id"))
			if rec.Splices != 1 || reply.header.Get("idc-region") != at[s.first()] || rec.Region == at[s.first()] || rec.TokensOut != 4 || rec.Ended != meter.EndComplete {
				t.Errorf("began in %s, record %+v", reply.header.Get("idc-region"), rec)
			}
		})
	}
}

// TestSplicedMessages continues an Anthropic message, whatever the dialect's
// structure.
func TestSplicedMessages(t *testing.T) {
	start := func(id string) string {
		return "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"" + id + "\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"model\":\"m\",\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}}\n\n" +
			"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"
	}
	delta := func(text string) string {
		return "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"" + text + "\"}}\n\n"
	}
	end := "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n" +
		"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":9}}\n\n"
	stop := "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	s := &script{takes: []take{{events: start("msg_a") + delta("Good ev"), end: "cut", after: "Good ev"}, {events: start("msg_b") + delta("Good e") + delta("vening") + end, end: "stall"}}}
	r := newRing(t)
	url := provider(t, s)
	r.upstream("up-1", "us-east", "anthropic", url, simulated)
	r.upstream("up-2", "us-east", "anthropic", url, simulated)
	r.route("m", registry.Target{Upstream: "up-1", Model: "m"}, registry.Target{Upstream: "up-2", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	reply := c.do(s.listening(c.client(true)), call{path: messages, key: key, body: ask("m", true, `,"temperature":0.0`)})
	if want := start("msg_a") + delta("Good ev") + delta("ening") + end + stop; reply.body != want || reply.broken != nil {
		t.Errorf("%v\n%s\nwant\n%s", reply.broken, reply.body, want)
	}
	rec := c.record(reply.header.Get("idc-request-id"))
	if rec.Splices != 1 || rec.TokensIn != 5 || rec.TokensOut != 9 || rec.ReplayIn != 5 {
		t.Errorf("%+v", rec)
	}
}

// TestSplicedResponses continues a response, but not one that the provider keeps.
func TestSplicedResponses(t *testing.T) {
	b, err := os.ReadFile("splice/testdata/responses.txt")
	if err != nil {
		t.Fatal(err)
	}
	section := map[string]string{}
	for _, p := range strings.Split(string(b), "---- ")[1:] {
		title, body, _ := strings.Cut(p, "\n")
		section[title] = body
	}
	for _, keeps := range []string{`,"store":false`, ``, `,"store":true`, `,"store":false,"tools":[{"type":"web_search"}]`} {
		s := &script{takes: []take{{events: section["first"], end: "cut", after: " mor"}, {events: section["replay"]}}}
		c, key := spliceCell(t, s)
		reply := c.do(s.listening(c.client(true)), call{path: "/v1/responses", key: key, body: `{"model":"m","input":"hello","stream":true,"temperature":0` + keeps + `}`})
		spliced := reply.broken == nil && reply.body == section["first"]+section["client"]
		if want := keeps == `,"store":false`; spliced != want || s.asked() == 2 != want || !want && reply.broken == nil {
			t.Errorf("%s: spliced %t, %v\n%s", keeps, spliced, reply.broken, reply.body)
		}
		if rec := c.record(reply.header.Get("idc-request-id")); spliced && (rec.TokensIn != 5 || rec.TokensOut != 7 || rec.Splices != 1) {
			t.Errorf("%+v", rec)
		}
	}
}

// TestErrorEventsOfTypedStreams: a response that breaks ends with an event that
// official clients raise an error on, with the next sequence number.
func TestErrorEventsOfTypedStreams(t *testing.T) {
	s := &script{takes: []take{{events: "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":41,\"response\":{\"id\":\"resp_1\",\"created_at\":1,\"output\":[]}}\n\n", end: "cut", after: "resp_1"}}}
	c, key := spliceCell(t, s)
	reply := c.do(s.listening(c.client(true)), call{path: "/v1/responses", key: key, body: `{"model":"m","input":"hello","stream":true}`})
	all := events(reply.body)
	if reply.status != 200 || reply.broken == nil || len(all) != 2 {
		t.Fatalf("%d, %v: %s", reply.status, reply.broken, reply.body)
	}
	var e struct {
		Type     string
		Sequence int `json:"sequence_number"`
		Code     dialect.Code
		Error    struct{ Type, Message string }
	}
	name, data, _ := strings.Cut(all[1], "\n")
	decode(t, strings.TrimPrefix(strings.TrimSpace(data), "data: "), &e)
	if name != "event: error" || e.Type != "error" || e.Sequence != 42 || e.Code != dialect.UpstreamError || e.Error.Type != "server_error" || e.Error.Message == "" {
		t.Errorf("%s", all[1])
	}
}

func decode(t *testing.T, text string, to any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), to); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}
