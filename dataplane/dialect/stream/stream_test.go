package stream

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"ringmain/dataplane/dialect"
)

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

// said is what a stream's events said.
type said struct {
	Usage         dialect.Usage
	Refused, Done bool
	Text          int64
}

func saidBy(s *Stream) said { return said{s.Usage, s.Refused, s.Done, s.Text} }

func TestStream(t *testing.T) {
	final := "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2}}\n\n"
	for _, c := range []struct {
		name  string
		s     Stream
		in    string
		kinds string // a digit each
		want  said
	}{
		{"openai", Stream{Dialect: dialect.OpenAI}, openAIEvents(`,"usage":null`) + final + "data: [DONE]\n\n", "0111123",
			said{Usage: dialect.Usage{Input: 4, Output: 2, Final: true}, Done: true, Text: 4 + int64(len(`[{"x":1}]`))}},
		{"usage asked for", Stream{Dialect: dialect.OpenAI, WantsUsage: true}, final + "data:[DONE] \r\n\r\n", "13",
			said{Usage: dialect.Usage{Input: 4, Output: 2, Final: true}, Done: true}},
		{"usage beside choices is content", Stream{Dialect: dialect.OpenAI}, "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n", "1",
			said{Usage: dialect.Usage{Input: 1, Output: 1, Final: true}}},
		{"content filter", Stream{Dialect: dialect.OpenAI}, "data: {\"choices\":[{\"finish_reason\":\"content_filter\"}]}\n\n", "1", said{Refused: true}},
		{"refusal delta", Stream{Dialect: dialect.OpenAI}, "data: {\"choices\":[{\"delta\":{\"refusal\":\"I\"}}]}\n\n", "1", said{Refused: true, Text: 1}},
		{"error", Stream{Dialect: dialect.OpenAI}, "data: {\"error\":{\"message\":\"x\"}}\n\n", "4", said{}},
		{"garbage", Stream{Dialect: dialect.OpenAI}, "data: {\"a\":\n\ndata: \xff\n\n<html>\n\ndata: 5\n\n", "5555", said{}},
		{"two data lines", Stream{Dialect: dialect.OpenAI}, "data: {\"choices\":\ndata: []}\n\n", "1", said{}},
		{"anthropic", Stream{Dialect: dialect.Anthropic}, anthropicEvents, "10113",
			said{Usage: dialect.Usage{Input: 9, Output: 5, Final: true}, Done: true, Text: 4}},
		{"anthropic refusal", Stream{Dialect: dialect.Anthropic}, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"refusal\"}}\n\n", "1", said{Refused: true}},
		{"anthropic error", Stream{Dialect: dialect.Anthropic}, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n", "4", said{}},
		{"anthropic nameless", Stream{Dialect: dialect.Anthropic}, "data: {\"a\":1}\n\n", "5", said{}},
		{"[DONE] means nothing to anthropic", Stream{Dialect: dialect.Anthropic}, "data: [DONE]\n\n", "5", said{}},
	} {
		t.Run(c.name, func(t *testing.T) {
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
				if kinds != c.kinds || saidBy(&s) != c.want || len(buf) != 0 {
					t.Fatalf("step %d: %s %+v, %d left; want %s %+v", step, kinds, saidBy(&s), len(buf), c.kinds, c.want)
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
		for _, d := range []dialect.Dialect{dialect.OpenAI, dialect.Anthropic} {
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
	s := Stream{Dialect: dialect.OpenAI}
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
	s := Stream{Dialect: dialect.OpenAI}
	b.SetBytes(int64(len(event)))
	b.ReportAllocs()
	for b.Loop() {
		s.Event(event)
	}
}

// FuzzStreamEnds: what any client takes for the end of an answer is one here.
func FuzzStreamEnds(f *testing.F) {
	for _, s := range []string{
		": c\rdata: [DONE]\r\r\n\n", "data: {}\rdata: [DONE]\n\n", "data: [DO\ndata: NE]\n\n",
		"data: [DONE]\r\n\r\n", "event: x\ndata:[DONE] \n\n", "event: x\r\rdata: [DONE]\r\r\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s, split := Stream{Dialect: dialect.OpenAI}, Splitter{}
		for n := split.Next(in); n > 0; n = split.Next(in) {
			if kind := s.Event(in[:n]); kind <= KindHidden && ends(string(in[:n])) {
				t.Fatalf("%q passes as kind %d and reads as the end", in[:n], kind)
			}
			in = in[n:]
		}
	})
}

// ends reads an event as the standard has it: a line ends in CR, LF or both.
func ends(event string) bool {
	event = strings.ReplaceAll(strings.ReplaceAll(event, "\r\n", "\n"), "\r", "\n")
	for _, part := range strings.Split(event, "\n\n") {
		var data []string
		for _, line := range strings.Split(part, "\n") {
			if v, ok := strings.CutPrefix(line, "data:"); ok {
				data = append(data, strings.TrimPrefix(v, " "))
			}
		}
		if strings.Join(data, "\n") == "[DONE]" {
			return true
		}
	}
	return false
}

// TestErrorEvents: an event named error is one in both dialects, whatever it says.
func TestErrorEvents(t *testing.T) {
	for _, d := range []dialect.Dialect{dialect.OpenAI, dialect.Anthropic} {
		s := Stream{Dialect: d}
		if kind := s.Event([]byte("event: error\ndata: {\"message\":\"overloaded\"}\n\n")); kind != KindError {
			t.Errorf("%s: kind %d", d, kind)
		}
	}
}

// FuzzSplitter: a splitter that is given bytes as they come finds what is
// found by looking at whole lines.
func FuzzSplitter(f *testing.F) {
	f.Add([]byte(openAIEvents("")+"data: [DONE]\n\n"), uint8(1))
	f.Add([]byte("data: a\r\n\r\n\n\ndata: b\r\n\ndata: c\n\r\n"), uint8(2))
	f.Add([]byte("\r\r\n\n\r\n: x\r\n\n\r"), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var want []string
		event := ""
		for _, line := range strings.SplitAfter(string(in), "\n") {
			event += line
			if line == "\n" || line == "\r\n" {
				want = append(want, event)
				event = ""
			}
		}
		var got []string
		var s Splitter
		var buf []byte
		for at := 0; at < len(in); at += int(step) + 1 {
			buf = append(buf, in[at:min(at+int(step)+1, len(in))]...)
			for n := s.Next(buf); n > 0; n = s.Next(buf) {
				got = append(got, string(buf[:n]))
				buf = buf[n:]
			}
		}
		if !slices.Equal(got, want) || string(buf) != event {
			t.Fatalf("%q cut as %q and %q, want %q and %q", in, got, buf, want, event)
		}
	})
}

func response(sequence int, kind, members string) string {
	return fmt.Sprintf("event: %s\ndata: {\"type\":%q,\"sequence_number\":%d%s}\n\n", kind, kind, sequence, members)
}

// TestTypedStreams: events of the Responses API, and text completions.
func TestTypedStreams(t *testing.T) {
	endpoint := func(path string) *dialect.Endpoint {
		ep, ok := dialect.EndpointOf(path)
		if !ok {
			t.Fatal(path)
		}
		return ep
	}
	responses, completions := endpoint("/v1/responses"), endpoint("/v1/completions")
	created := response(0, "response.created", `,"response":{"id":"r","error":null,"usage":null,"output":[]}`)
	for _, c := range []struct {
		name  string
		ep    *dialect.Endpoint
		in    string
		kinds string
		want  said
	}{
		{"a response", responses, created + response(1, "keepalive", "") + response(2, "response.output_text.delta", `,"delta":"four"`) +
			response(3, "response.completed", `,"response":{"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":2},"output_tokens":7}}`), "1013",
			said{Usage: dialect.Usage{Input: 5, Output: 7, CacheRead: 2, Final: true}, Done: true, Text: 4}},
		{"without names", responses, "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":1,\"output_tokens\":1}}}\n\n", "3",
			said{Usage: dialect.Usage{Input: 1, Output: 1, Final: true}, Done: true}},
		{"the type at the end", responses, "data: {\"response\":{\"usage\":{\"input_tokens\":1,\"output_tokens\":1}},\"type\":\"response.completed\"}\n\n", "3",
			said{Usage: dialect.Usage{Input: 1, Output: 1, Final: true}, Done: true}},
		{"incomplete", responses, response(0, "response.incomplete", `,"response":{"incomplete_details":{"reason":"max_output_tokens"}}`), "3", said{Done: true}},
		{"stopped by a filter", responses, response(0, "response.incomplete", `,"response":{"incomplete_details":{"reason":"content_filter"}}`), "3", said{Done: true, Refused: true}},
		{"failed", responses, created + response(1, "response.failed", `,"response":{"error":{"code":"server_error","message":"x"},"usage":{"input_tokens":3,"output_tokens":0}}`), "14",
			said{Usage: dialect.Usage{Input: 3, Final: true}}},
		{"failed, as a refusal", responses, response(1, "response.failed", `,"response":{"error":{"code":"invalid_prompt","message":"x"}}`), "4", said{Refused: true}},
		{"a refusal", responses, response(0, "response.refusal.delta", `,"delta":"I"`), "1", said{Refused: true, Text: 1}},
		{"an error event", responses, "event: error\ndata: {\"type\":\"error\",\"code\":\"x\",\"message\":\"y\"}\n\n", "4", said{}},
		{"an error event without a name", responses, "data: {\"type\":\"error\",\"message\":\"y\"}\n\n", "4", said{}},
		{"a refusal as an error event", responses, "event: error\ndata: {\"type\":\"error\",\"error\":{\"code\":\"content_filter\"}}\n\n", "4", said{Refused: true}},
		{"[DONE] is no event of it", responses, "data: [DONE]\n\n", "5", said{}},
		{"two types", responses, "event: response.completed\ndata: {\"type\":\"response.output_text.delta\"}\n\n", "5", said{}},
		{"what is not known passes", responses, response(0, "response.dreaming.delta", `,"delta":"zz"`), "1", said{Text: 2}},
		{"reasoning", responses, response(0, "response.reasoning_text.delta", `,"delta":"hm"`), "1", said{Text: 2}},
		{"a text completion", completions, "data: {\"choices\":[{\"index\":0,\"text\":\"four\",\"finish_reason\":null}]}\n\ndata: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n" +
			"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n", "1123",
			said{Usage: dialect.Usage{Input: 1, Output: 2, Final: true}, Done: true, Text: 4}},
		{"malformed, and nothing is lost", responses, "data:\n\ndata: {}\n\ndata: null\n\nevent: response.completed\n\n", "6666", said{}},
		{"torn lines", responses, "data\n\ndata: {\"type\"\n:1}\n\n", "55", said{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, kinds := Stream{Dialect: dialect.OpenAI, Endpoint: c.ep}, ""
			for _, e := range strings.SplitAfter(c.in, "\n\n") {
				if e != "" {
					kinds += fmt.Sprint(int(s.Event([]byte(e))))
				}
			}
			if kinds != c.kinds || saidBy(&s) != c.want {
				t.Errorf("%s %+v, want %s %+v", kinds, saidBy(&s), c.kinds, c.want)
			}
		})
	}
}

// TestComplete: an answer is complete when nothing of it can follow.
func TestComplete(t *testing.T) {
	chunk := func(index int, finish string) string {
		return fmt.Sprintf("data: {\"choices\":[{\"index\":%d,\"delta\":{\"content\":\"x\"},\"finish_reason\":%s}]}\n\n", index, finish)
	}
	figures := "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n"
	block := func(kind string) string {
		return "event: " + kind + "\ndata: {\"type\":\"" + kind + "\",\"index\":0}\n\n"
	}
	stop := "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n"
	for _, c := range []struct {
		name string
		s    Stream
		in   string
		want bool
	}{
		{"nothing yet", Stream{Choices: 1}, "", false},
		{"one choice, unfinished", Stream{Choices: 1}, chunk(0, "null"), false},
		{"one choice", Stream{Choices: 1}, chunk(0, `"stop"`), true},
		{"one of two", Stream{Choices: 2}, chunk(0, `"stop"`), false},
		{"one of two, the other has begun", Stream{}, chunk(0, `"stop"`) + chunk(1, "null") + figures, false},
		{"both", Stream{Choices: 2}, chunk(1, `"stop"`) + chunk(0, `"length"`), true},
		{"who knows how many", Stream{}, chunk(0, `"stop"`), false},
		{"who knows how many, but the figures are in", Stream{}, chunk(0, `"stop"`) + figures, true},
		{"figures and no end", Stream{Choices: 1}, chunk(0, "null") + figures, false},
		{"the reason in an event that is none", Stream{Choices: 1}, chunk(0, "null") + strings.Replace(chunk(0, `"stop"`), "x", "\xff", 1), false},
		{"a message", Stream{Dialect: dialect.Anthropic}, block("content_block_start") + block("content_block_stop") + stop, true},
		{"a message whose block is open", Stream{Dialect: dialect.Anthropic}, block("content_block_start") + stop, false},
		{"a message without a reason", Stream{Dialect: dialect.Anthropic}, block("content_block_start") + block("content_block_stop"), false},
	} {
		for _, e := range strings.SplitAfter(c.in, "\n\n") {
			if e != "" {
				c.s.Event([]byte(e))
			}
		}
		if c.s.Complete() != c.want {
			t.Errorf("%s: %t", c.name, !c.want)
		}
		if c.want {
			if k := c.s.Event([]byte("data: {\"torn\n\n")); k != KindSkip {
				t.Errorf("%s: what follows is of kind %d", c.name, k)
			}
			if k := c.s.Event(c.s.Closing()); k != KindLast {
				t.Errorf("%s: %s is of kind %d", c.name, c.s.Closing(), k)
			}
		}
	}
}

// TestTranscriptsPrintNothing: what a client was given is content.
func TestTranscriptsPrintNothing(t *testing.T) {
	tr := NewTranscript(1 << 10)
	s := Stream{Choices: 1, Transcript: tr}
	s.Event([]byte("data: {\"id\":\"chatcmpl-canary\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"canary\",\"tool_calls\":[{\"index\":0,\"id\":\"canary\",\"function\":{\"name\":\"canary\",\"arguments\":\"canary\"}}]}}]}\n\n"))
	if tr.Off() || !bytes.Contains(tr.Bytes().Bytes(), []byte("canary")) {
		t.Fatal("nothing was noted")
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{tr, *tr, s, &s, NewReplay(tr, s)} {
			out := fmt.Sprintf(verb, v)
			if strings.Contains(out, "canary") || strings.Contains(out, "63616e617279") || strings.Contains(out, "99 97 110") {
				t.Errorf("%s of %T: %s", verb, v, out)
			}
		}
	}
}

// TestTranscriptsAreBounded: beyond the limit nothing is kept.
func TestTranscriptsAreBounded(t *testing.T) {
	tr := NewTranscript(100)
	s := Stream{Choices: 1, Transcript: tr}
	event := []byte("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"0123456789\"}}]}\n\n")
	for i := range 20 {
		if tr.Off() != (i > 9) { // a marker of 10 bytes, and 9 times the text
			t.Fatalf("off after %d events: %t", i, tr.Off())
		}
		s.Event(event)
	}
	if tr.Bytes().Len() != 0 {
		t.Errorf("%d bytes are kept", tr.Bytes().Len())
	}
}

// TestNotedEventsDoNotAllocate: noting what the client is given costs its copy.
func TestNotedEventsDoNotAllocate(t *testing.T) {
	event := []byte("data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\\n\"},\"finish_reason\":null}],\"usage\":null}\n\n")
	tr := NewTranscript(1 << 20)
	s := Stream{Choices: 1, Transcript: tr}
	for range 2000 { // until the transcript has room
		s.Event(event)
	}
	if n := testing.AllocsPerRun(200, func() { s.Event(event) }); n > 0 || tr.Off() {
		t.Errorf("%v allocations an event, off: %t", n, tr.Off())
	}
}

func TestHalved(t *testing.T) {
	for raw, want := range map[string]bool{
		`"plain"`: false, `"\ufffd"`: false, `"\ud83e\udd8a"`: false, `"\\ud83e"`: false, `"\ud83e"`: true, `"\udd8a"`: true,
		`"\ud83e\ud83e\udd8a"`: true, `"\ud83ex\udd8a"`: true, `"\ud83e\n"`: true, `"a\"\ud83e\udd8a\ud83e"`: true,
	} {
		if halved([]byte(raw)) != want {
			t.Errorf("%s: %t", raw, !want)
		}
	}
}

func BenchmarkNotedEvent(b *testing.B) {
	event := []byte("data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"fp_0123456789\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n")
	s := Stream{Choices: 1, Transcript: NewTranscript(1 << 30)}
	b.SetBytes(int64(len(event)))
	b.ReportAllocs()
	for b.Loop() {
		s.Event(event)
	}
}
