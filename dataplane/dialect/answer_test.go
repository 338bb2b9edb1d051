package dialect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestCodeTable renders every code in both dialects and checks the wire
// contract's table row by row, written out here a second time.
func TestCodeTable(t *testing.T) {
	contract := `
400 invalid_json invalid_request unknown_region_hint invalid_header storage_not_allowed context_length_exceeded | invalid_request_error | invalid_request_error | false
401 invalid_api_key | authentication_error | authentication_error | false
403 wrong_jurisdiction project_forbidden model_not_allowed source_not_allowed account_unverified account_suspended plan_required provider_key_rejected | permission_error | permission_error | false
404 model_not_found not_found | invalid_request_error | not_found_error | false
405 method_not_allowed | invalid_request_error | invalid_request_error | false
413 request_too_large | invalid_request_error | request_too_large | false
429 rate_limit_exceeded | rate_limit_error | rate_limit_error | true
429 insufficient_quota | insufficient_quota | rate_limit_error | false
502 upstream_error | server_error | api_error | false
504 upstream_timeout | server_error | timeout_error | false
503 residency_unavailable zero_retention_unavailable no_healthy_route upstream_saturated capacity_shed metering_unavailable not_ready | server_error | overloaded_error | true`
	checked := map[Code]bool{}
	for _, line := range strings.Split(strings.TrimSpace(contract), "\n") {
		cells := strings.Split(line, " | ")
		words := strings.Fields(cells[0])
		for _, w := range words[1:] {
			c := Code(w)
			checked[c] = true
			if !c.Known() {
				t.Errorf("%s is not in the table", c)
			}
			got := fmt.Sprintf("%d | %s | %s | %t", c.Status(), c.Type(OpenAI), c.Type(Anthropic), c.Retry())
			if want := words[0] + " | " + strings.Join(cells[1:], " | "); got != want {
				t.Errorf("%s: %s, want %s", c, got, want)
			}
			checkBodies(t, c)
		}
	}
	for _, c := range Codes() {
		if !checked[c] {
			t.Errorf("%s is not in the contract", c)
		}
	}
	if Code("nonsense").Known() || Code("nonsense").Status() != 502 {
		t.Error("an unknown code must pass for upstream_error")
	}
}

func checkBodies(t *testing.T, c Code) {
	t.Helper()
	e := &Error{Code: c, Message: "say \"so\"\n\x01\xffé", Param: "model"}
	var o struct {
		Error struct{ Message, Type, Param, Code string }
	}
	if err := json.Unmarshal(e.AppendBody(nil, OpenAI, "req_1"), &o); err != nil {
		t.Fatal(err)
	}
	if o.Error.Code != string(c) || o.Error.Type != c.Type(OpenAI) || o.Error.Param != "model" || o.Error.Message != "say \"so\"\n\x01\ufffdé" {
		t.Errorf("%+v", o)
	}
	var a struct {
		Type      string
		Error     struct{ Type, Message string }
		RequestID string `json:"request_id"`
	}
	if err := json.Unmarshal(e.AppendBody(nil, Anthropic, "req_1"), &a); err != nil {
		t.Fatal(err)
	}
	if a.Type != "error" || a.Error.Type != c.Type(Anthropic) || a.RequestID != "req_1" {
		t.Errorf("%+v", a)
	}
	for _, d := range []Dialect{OpenAI, Anthropic} {
		s := Stream{Dialect: d}
		if k := s.Event(e.AppendEvent(nil, d, "req_1")); k != KindError {
			t.Errorf("%s event of %s reads as %d", d, c, k)
		}
	}
}

func TestReadAnswer(t *testing.T) {
	for _, c := range []struct {
		d    Dialect
		body string
		want Answer
		ok   bool
	}{
		{OpenAI, `{"choices":[{"finish_reason":"stop","message":{"content":"hi","refusal":null}}],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}`, Answer{Usage: Usage{Input: 7, Output: 3, CacheRead: 2, Final: true}}, true},
		{OpenAI, `{"choices":[{"finish_reason":"content_filter"}]}`, Answer{Refused: true}, true},
		{OpenAI, `{"choices":[{"message":{"refusal":"I cannot"}}]}`, Answer{Refused: true}, true},
		{OpenAI, `{"error":null,"choices":[]}`, Answer{}, true},
		{OpenAI, `{"error":{"message":"x"}}`, Answer{}, false},
		{OpenAI, `{"choices":[{"message":{"content":"ha`, Answer{}, false},
		{OpenAI, `<html>`, Answer{}, false},
		{OpenAI, `{"usage":{"prompt_tokens":-1,"completion_tokens":1e99}}`, Answer{}, true},
		{Anthropic, `{"type":"message","stop_reason":"end_turn","usage":{"input_tokens":7,"output_tokens":3,"cache_read_input_tokens":4,"cache_creation_input_tokens":5}}`, Answer{Usage: Usage{Input: 7, Output: 3, CacheRead: 4, CacheWrite: 5, Final: true}}, true},
		{Anthropic, `{"stop_reason":"refusal"}`, Answer{Refused: true}, true},
		{Anthropic, `{"type":"error","error":{"type":"overloaded_error"}}`, Answer{}, false},
	} {
		got, ok := ReadAnswer(c.d, []byte(c.body))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s %s: %+v %t", c.d, c.body, got, ok)
		}
	}
}

func TestReadProblem(t *testing.T) {
	for body, want := range map[string]Problem{
		`{"error":{"code":"content_filter","message":"no"}}`:                                            {Refused: true},
		`{"error":{"code":"x","innererror":{"code":"ResponsibleAIPolicyViolation"}}}`:                   {Refused: true},
		`{"error":{"code":"context_length_exceeded","type":"invalid_request_error"}}`:                   {ContextLength: true},
		`{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9>8"}}`: {ContextLength: true},
		`{"error":{"code":"invalid_value"}}`:                                                            {},
		`{"error":"text"}`:                                                                              {},
		`not json`:                                                                                      {},
		`{"error":{"code":"content_filter"}`:                                                            {},
	} {
		if got := ReadProblem([]byte(body)); got != want {
			t.Errorf("%s: %+v", body, got)
		}
	}
}

func openAIEvents(usage string) string {
	chunk := func(inner string) string { return "data: {\"id\":\"c\",\"choices\":[" + inner + "]" + usage + "}\n\n" }
	return ": hello\n\n" + chunk(`{"delta":{"role":"assistant","content":""}}`) + chunk(`{"delta":{"content":"four"}}`) +
		chunk(`{"delta":{"tool_calls":[{"x":1}]}}`) + chunk(`{"delta":{},"finish_reason":"stop"}`)
}

const anthropicEvents = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n" +
	"event: ping\ndata: {\"type\":\"ping\"}\n\n" +
	"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"four\"}}\n\n" +
	"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":5}}\n\n" +
	"event: message_stop\r\ndata: {\"type\":\"message_stop\"}\r\n\r\n"

func TestStream(t *testing.T) {
	final := "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2}}\n\n"
	for _, c := range []struct {
		name  string
		s     Stream
		in    string
		kinds string // a digit each
		want  Stream
	}{
		{"openai", Stream{Dialect: OpenAI}, openAIEvents(`,"usage":null`) + final + "data: [DONE]\n\n", "0111123",
			Stream{Usage: Usage{Input: 4, Output: 2, Final: true}, Done: true, Text: 4 + int64(len(`[{"x":1}]`))}},
		{"usage asked for", Stream{Dialect: OpenAI, WantsUsage: true}, final + "data:[DONE] \r\n\r\n", "13",
			Stream{Usage: Usage{Input: 4, Output: 2, Final: true}, Done: true}},
		{"usage beside choices is content", Stream{Dialect: OpenAI}, "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n", "1",
			Stream{Usage: Usage{Input: 1, Output: 1, Final: true}}},
		{"content filter", Stream{Dialect: OpenAI}, "data: {\"choices\":[{\"finish_reason\":\"content_filter\"}]}\n\n", "1", Stream{Refused: true}},
		{"refusal delta", Stream{Dialect: OpenAI}, "data: {\"choices\":[{\"delta\":{\"refusal\":\"I\"}}]}\n\n", "1", Stream{Refused: true, Text: 1}},
		{"error", Stream{Dialect: OpenAI}, "data: {\"error\":{\"message\":\"x\"}}\n\n", "4", Stream{}},
		{"garbage", Stream{Dialect: OpenAI}, "data: {\"a\":\n\ndata: \xff\n\n<html>\n\ndata: 5\n\n", "5555", Stream{}},
		{"two data lines", Stream{Dialect: OpenAI}, "data: {\"choices\":\ndata: []}\n\n", "1", Stream{}},
		{"anthropic", Stream{Dialect: Anthropic}, anthropicEvents, "10113",
			Stream{Usage: Usage{Input: 9, Output: 5, Final: true}, Done: true, Text: 4}},
		{"anthropic refusal", Stream{Dialect: Anthropic}, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"refusal\"}}\n\n", "1", Stream{Refused: true}},
		{"anthropic error", Stream{Dialect: Anthropic}, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n", "4", Stream{}},
		{"anthropic nameless", Stream{Dialect: Anthropic}, "data: {}\n\n", "5", Stream{}},
		{"[DONE] means nothing to anthropic", Stream{Dialect: Anthropic}, "data: [DONE]\n\n", "5", Stream{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.Dialect, c.want.WantsUsage = c.s.Dialect, c.s.WantsUsage
			for step := 1; step <= len(c.in); step = step*3 + 1 { // however the bytes arrive
				s, split, kinds := c.s, Splitter{}, ""
				var buf []byte
				for at := 0; at < len(c.in); at += step {
					buf = append(buf, c.in[at:min(at+step, len(c.in))]...)
					for {
						n := split.Next(buf)
						if n == 0 {
							break
						}
						kinds += fmt.Sprint(int(s.Event(buf[:n])))
						buf = buf[n:]
					}
				}
				if kinds != c.kinds || s != c.want || len(buf) != 0 {
					t.Fatalf("step %d: %s %+v, %d left; want %s %+v", step, kinds, s, len(buf), c.kinds, c.want)
				}
			}
		})
	}
}

func FuzzStream(f *testing.F) {
	f.Add([]byte(openAIEvents("")+"data: [DONE]\n\n"), uint8(1))
	f.Add([]byte(anthropicEvents), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		// Cutting must not depend on how the bytes arrive, and lose none.
		cut := func(step int) (out [][]byte) {
			var s Splitter
			var buf []byte
			for at := 0; at < len(in); at += step {
				buf = append(buf, in[at:min(at+step, len(in))]...)
				for n := s.Next(buf); n > 0; n = s.Next(buf) {
					out = append(out, bytes.Clone(buf[:n]))
					buf = buf[n:]
				}
			}
			return append(out, buf)
		}
		a, b := cut(int(step)+1), cut(max(len(in), 1))
		if !bytes.Equal(bytes.Join(a, nil), in) || fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("%q cut as %q and %q", in, a, b)
		}
		for _, d := range []Dialect{OpenAI, Anthropic} {
			s := Stream{Dialect: d}
			for _, e := range a[:len(a)-1] {
				if k := s.Event(e); k == KindLast != s.Done && k == KindLast {
					t.Fatal("last but not done")
				}
			}
		}
	})
}

func TestStreamEventsDoNotAllocate(t *testing.T) {
	event := []byte("data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}],\"usage\":null}\n\n")
	s := Stream{Dialect: OpenAI}
	if n := testing.AllocsPerRun(200, func() {
		if s.Event(event) != KindContent {
			t.Fatal("not content")
		}
	}); n > 0 {
		t.Errorf("%v allocations an event", n)
	}
}

func BenchmarkEvent(b *testing.B) {
	event := []byte("data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"fp_0123456789\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n")
	s := Stream{Dialect: OpenAI}
	b.SetBytes(int64(len(event)))
	b.ReportAllocs()
	for b.Loop() {
		s.Event(event)
	}
}

func TestModels(t *testing.T) {
	for _, models := range [][]Model{nil, {{ID: "a", Created: 5, Owner: "o", Date: "2026-01-01T00:00:00Z"}, {ID: "b\""}}} {
		var l struct {
			Object string
			Data   []struct{ ID, Object, Type string }
		}
		if err := json.Unmarshal(AppendModels(nil, models), &l); err != nil || len(l.Data) != len(models) || l.Data == nil {
			t.Fatalf("%s: %v", AppendModels(nil, models), err)
		}
	}
}

func TestOfPath(t *testing.T) {
	for path, want := range map[string]Dialect{"/v1/messages": Anthropic, "/v1/messages/count_tokens": Anthropic, "/v1/messagesx": OpenAI, "/v1/chat/completions": OpenAI, "/": OpenAI} {
		if got := OfPath(path); got != want {
			t.Errorf("%s: %s", path, got)
		}
	}
}
