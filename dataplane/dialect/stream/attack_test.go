package stream

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

// served finds what a test names.
func served(t testing.TB, path string) *dialect.Endpoint {
	t.Helper()
	ep, ok := dialect.EndpointOf(path)
	if !ok {
		t.Fatalf("no endpoint %s", path)
	}
	return ep
}

// TestOddCounts: a figure that is no count is none: it neither makes an answer
// free nor ruins a bill. What is not told is estimated, and marked.
func TestOddCounts(t *testing.T) {
	for _, c := range []struct {
		figure string
		want   int64 // of input; -1 = the figures are not final
	}{
		{"12", 12}, {"12.0", 12}, {"1.2e1", 12}, {"0", 0}, {"-0", 0},
		{"-1", -1}, {"12.5", -1}, {"9223372036854775807", -1}, {"9223372036854775808", -1}, {"1e400", -1}, {"1e15", -1},
		{`"12"`, -1}, {"true", -1}, {"{}", -1}, {"[12]", -1},
	} {
		check := func(where string, u dialect.Usage) {
			t.Helper()
			if u.Final != (c.want >= 0) || c.want >= 0 && (u.Input != c.want || u.Output != 7) || u.Input < 0 || u.Input > 1<<40 {
				t.Errorf("%s, %s: %+v", where, c.figure, u)
			}
		}
		chat := `{"choices":[{"index":0,"delta":{"content":"x"}}],"usage":{"prompt_tokens":` + c.figure + `,"completion_tokens":7}}`
		s := Stream{Endpoint: served(t, "/v1/chat/completions"), Choices: 1, WantsUsage: true}
		if kind := s.Event([]byte("data: " + chat + "\n\n")); kind != KindContent {
			t.Fatalf("%s: %v", c.figure, kind)
		}
		check("chunk", s.Usage)
		a, ok := dialect.ReadAnswer(served(t, "/v1/chat/completions"), "application/json", []byte(chat))
		if !ok {
			t.Fatal(c.figure)
		}
		check("answer", a.Usage)
		s = Stream{Endpoint: served(t, "/v1/messages")}
		s.Event([]byte(`data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":` + c.figure + `,"output_tokens":7}}` + "\n\n"))
		check("message_delta", s.Usage)
		s = Stream{Endpoint: served(t, "/v1/responses")}
		s.Event([]byte(`data: {"type":"response.completed","response":{"usage":{"input_tokens":` + c.figure + `,"output_tokens":7}}}` + "\n\n"))
		check("response.completed", s.Usage)
	}
	for _, usage := range []string{"{}", "[]", `"none"`, "0", "false", `{"prompt_tokens":3}`, `{"total_tokens":9}`} {
		s := Stream{Endpoint: served(t, "/v1/chat/completions"), Choices: 1, WantsUsage: true}
		s.Event([]byte(`data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":` + usage + "}\n\n"))
		if s.Usage.Final {
			t.Errorf("usage %s closes the account", usage)
		}
	}
}

// TestUsageBesideTheTotals: what Anthropic bills beside its top-level figures
// is counted with them.
func TestUsageBesideTheTotals(t *testing.T) {
	const usage = `{"input_tokens":10,"output_tokens":20,"cache_read_input_tokens":1,"iterations":[` +
		`{"type":"compaction","input_tokens":1000,"output_tokens":300,"cache_read_input_tokens":4,"cache_creation_input_tokens":5},` +
		`{"type":"message","input_tokens":10,"output_tokens":20}]}`
	a, ok := dialect.ReadAnswer(served(t, "/v1/messages"), "application/json", []byte(`{"type":"message","usage":`+usage+`}`))
	counted := func(u dialect.Usage) [4]int64 { return [...]int64{u.Input, u.Output, u.CacheRead, u.CacheWrite} }
	want := [...]int64{1010, 320, 5, 5}
	if !ok || counted(a.Usage) != want || !a.Usage.Final {
		t.Errorf("answer: %+v", a.Usage)
	}
	s := Stream{Endpoint: served(t, "/v1/messages")}
	s.Event([]byte(`data: {"type":"message_start","message":{"usage":{"input_tokens":10,"output_tokens":1,"iterations":null}}}` + "\n\n"))
	for range 2 { // cumulative: told twice, counted once
		s.Event([]byte(`data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":` + usage + "}\n\n"))
	}
	if counted(s.Usage) != want || !s.Usage.Final {
		t.Errorf("stream: %+v", s.Usage)
	}
}

// TestManyDataLines: an event of many lines costs what it weighs. Joining each
// line to a copy of those before took minutes for one event.
func TestManyDataLines(t *testing.T) {
	event := append(bytes.Repeat([]byte("data:\n"), 200_000), "data: {\"choices\":[]}\n\n"...)
	s := Stream{Endpoint: served(t, "/v1/chat/completions")}
	began := time.Now()
	if kind := s.Event(event); kind != KindContent {
		t.Errorf("kind %d", kind)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("one event of %d bytes took %s", len(event), took)
	}
}

// TestHugeSequence: a number that no client could count on from is none.
func TestHugeSequence(t *testing.T) {
	s := Stream{Endpoint: served(t, "/v1/responses")}
	s.Event([]byte(`data: {"type":"response.created","sequence_number":9223372036854775807,"response":{}}` + "\n\n"))
	if got := string(s.AppendFailure(nil, dialect.Fail(dialect.UpstreamError, "x"), "req")); strings.Contains(got, `"sequence_number":-`) {
		t.Errorf("%s", got)
	}
}

// TestEscapedRefusals: a refusal counts however its reason is spelt.
func TestEscapedRefusals(t *testing.T) {
	for path, data := range map[string]string{
		"/v1/chat/completions": `{"choices":[{"index":0,"delta":{},"finish_reason":"content\u005ffilter"}]}`,
		"/v1/messages":         `{"type":"message_delta","delta":{"stop_reason":"re\u0066usal"}}`,
		"/v1/responses":        `{"type":"response.incomplete","response":{"incomplete_details":{"reason":"content\u005ffilter"}}}`,
	} {
		s := Stream{Endpoint: served(t, path), Choices: 1}
		s.Event([]byte("data: " + data + "\n\n"))
		if !s.Refused {
			t.Errorf("%s: %s is no refusal", path, strings.TrimSpace(data))
		}
	}
}

// TestRefusalsSeenOnce: a refusal counts wherever in a stream it is said, if it
// is said but once.
func TestRefusalsSeenOnce(t *testing.T) {
	const filtered = `{"hate":{"filtered":false,"severity":"safe"},"violence":{"filtered":true,"severity":"high"}}`
	refusal := `[{"type":"output_text","text":"a"},{"type":"refusal","refusal":"no"}]`
	for _, c := range []struct {
		path, data string
		want       bool
	}{
		{"/v1/chat/completions", `{"choices":[{"index":0,"delta":{},"content_filter_results":` + filtered + `}]}`, true},
		{"/v1/completions", `{"choices":[{"index":0,"text":"a","content_filter_result":` + filtered + `}]}`, true},
		{"/v1/chat/completions", `{"choices":[{"index":0,"delta":{},"content_filter_results":{"hate":{"filtered":false},"error":{"code":"content_filter_error"}}}]}`, false},
		{"/v1/chat/completions", `{"choices":[{"index":0,"delta":{},"content_filter_results":[true,null]}]}`, false},
		{"/v1/responses", `{"type":"response.content_part.added","part":{"type":"refusal","refusal":""}}`, true},
		{"/v1/responses", `{"type":"response.output_item.done","item":{"type":"message","content":` + refusal + `}}`, true},
		{"/v1/responses", `{"type":"response.completed","response":{"output":[{"type":"reasoning","content":null},{"type":"message","content":` + refusal + `}]}}`, true},
		{"/v1/responses", `{"type":"response.completed","response":{"output":[{"type":"message","content":[{"type":"output_text","text":"refusal"}]}]}}`, false},
		{"/v1/responses", `{"type":"response.output_item.done","item":{"type":"message","content":"refusal"}}`, false},
	} {
		for _, kept := range []bool{false, true} {
			s := Stream{Endpoint: served(t, c.path), Choices: 1}
			if kept {
				s.Transcript = NewTranscript(1 << 10)
			}
			if s.Event([]byte("data: " + c.data + "\n\n")); s.Refused != c.want {
				t.Errorf("%s, kept %t: %s: refused %t", c.path, kept, c.data, s.Refused)
			}
		}
	}
}

// FuzzFailures: whatever a message holds, clients of both dialects read it as
// the error that ends a stream.
func FuzzFailures(f *testing.F) {
	f.Add("say \"so\"\n\x01\xff", "model", "req_1", uint8(0))
	f.Add("data: [DONE]\n\n", "", "\r\n", uint8(5))
	f.Fuzz(func(t *testing.T, message, param, id string, which uint8) {
		e := &dialect.Error{Code: dialect.Codes()[int(which)%len(dialect.Codes())], Message: message, Param: param}
		for _, ep := range dialect.Endpoints() {
			if !ep.Streams {
				continue
			}
			s := Stream{Dialect: ep.Dialect, Endpoint: ep, Sequence: 7}
			event := s.AppendFailure(nil, e, id)
			var split Splitter
			if n := split.Next(event); n != len(event) {
				t.Fatalf("%q is cut at %d", event, n)
			}
			if kind := s.Event(event); kind != KindError {
				t.Fatalf("%s: %q reads as %d", ep.Path, event, kind)
			}
			_, data, _ := bytes.Cut(event, []byte("data: "))
			if !jsontext.Valid(data) {
				t.Fatalf("%q", data)
			}
		}
	})
}

// TestEchoesOfDeepRequests: responses repeat what the request defined, one level
// deeper in an event: what a request may nest is no garbage there.
func TestEchoesOfDeepRequests(t *testing.T) {
	const most = jsontext.MaxDepth - 3 // below the request, its tools and one of them
	parameters := strings.Repeat("[", most) + strings.Repeat("]", most)
	if tool := `{"tools":[{"parameters":` + parameters + `}]}`; !jsontext.Valid([]byte(tool)) || jsontext.Valid([]byte("["+tool+"]")) {
		t.Fatal("not as deep as a request may be")
	}
	s := Stream{Endpoint: served(t, "/v1/responses")}
	if k := s.Event([]byte(`data: {"type":"response.created","response":{"id":"r","tools":[{"parameters":` + parameters + "}]}}\n\n")); k != KindContent {
		t.Errorf("is read as %d", k)
	}
}

// TestErrorCodesEndStreams: every code of ours is an error to who reads it in a stream.
func TestErrorCodesEndStreams(t *testing.T) {
	for _, code := range dialect.Codes() {
		for _, d := range []dialect.Dialect{dialect.OpenAI, dialect.Anthropic} {
			s := Stream{Dialect: d}
			if k := s.Event(dialect.Fail(code, "why").AppendEvent(nil, d, "req_1")); k != KindError {
				t.Errorf("%s in %s is read as %d", code, d, k)
			}
		}
	}
}
