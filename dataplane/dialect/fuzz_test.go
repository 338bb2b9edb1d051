package dialect

import (
	"encoding/json"
	"strings"
	"testing"
)

// FuzzStreamEnds: what any client takes for the end of an answer is one here.
func FuzzStreamEnds(f *testing.F) {
	for _, s := range []string{
		": c\rdata: [DONE]\r\r\n\n", "data: {}\rdata: [DONE]\n\n", "data: [DO\ndata: NE]\n\n",
		"data: [DONE]\r\n\r\n", "event: x\ndata:[DONE] \n\n", "event: x\r\rdata: [DONE]\r\r\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s, split := Stream{Dialect: OpenAI}, Splitter{}
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

// FuzzAnswers: no answer of an upstream's makes the reader fail, and what it
// takes for an answer is JSON.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"choices":[{"message":{"refusal":"no"}}],"usage":{"prompt_tokens":1,"completion_tokens":-1}}`))
	f.Add([]byte(`{"error":{"code":"content_filter","innererror":{"code":1}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		ReadProblem(body)
		for _, d := range []Dialect{OpenAI, Anthropic} {
			if a, ok := ReadAnswer(d, body); ok && (!json.Valid(body) || a.Usage.Input < 0 || a.Usage.Output < 0) {
				t.Fatalf("%q: %+v", body, a)
			}
		}
	})
}

// TestErrorEvents: an event named error is one in both dialects, whatever it says.
func TestErrorEvents(t *testing.T) {
	for _, d := range []Dialect{OpenAI, Anthropic} {
		s := Stream{Dialect: d}
		if kind := s.Event([]byte("event: error\ndata: {\"message\":\"overloaded\"}\n\n")); kind != KindError {
			t.Errorf("%s: kind %d", d, kind)
		}
	}
}
