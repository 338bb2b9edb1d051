package stream

import (
	"fmt"
	"strings"
	"testing"

	"ringmain/dataplane/dialect"
)

// TestMediaStreams reads the streams of sound, pictures and transcripts, as
// their providers write them: what each event is, and what is known at the end.
func TestMediaStreams(t *testing.T) {
	const sound, heard, picture, edit = "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/images/generations", "/v1/images/edits"
	data := func(s string) string { return "data: " + s + "\n\n" }
	named := func(name, s string) string { return "event: " + name + "\n" + data(s) }
	partial := named("image_generation.partial_image", `{"type":"image_generation.partial_image","b64_json":"AAAA","partial_image_index":0}`)
	completed := named("image_generation.completed", `{"type":"image_generation.completed","b64_json":"AAAA","usage":{"input_tokens":5,"output_tokens":7,"total_tokens":12,"input_tokens_details":{"text_tokens":5,"image_tokens":0}}}`)
	cost := dialect.Usage{Input: 5, Output: 7, Final: true}
	for _, c := range []struct {
		name, path string
		choices    int
		in, kinds  string // a digit each
		want       said
		complete   bool
		ends       bool // if the stream ends well here
	}{
		{"a picture", picture, 1, partial + partial + completed, "117", said{Usage: cost}, true, true},
		{"a picture that is not done", picture, 1, partial, "1", said{}, false, false},
		{"an edit", edit, 1, named("image_edit.partial_image", `{"type":"image_edit.partial_image"}`) + named("image_edit.completed", `{"type":"image_edit.completed"}`), "17", said{}, true, true},
		{"two pictures", picture, 2, completed + completed, "17", said{Usage: cost}, true, true},
		{"one of two pictures", picture, 2, completed + partial, "11", said{Usage: cost}, false, false},
		{"one end for two pictures", picture, 2, partial + completed, "11", said{Usage: cost}, false, true},
		{"nobody knows how many pictures", picture, 0, completed, "1", said{Usage: cost}, false, true},
		{"a transcript", heard, 1, data(`{"type":"transcript.text.delta","delta":"a"}`) + data(`{"type":"transcript.text.segment","text":"a"}`) +
			data(`{"type":"transcript.text.done","text":"a","usage":{"type":"tokens","input_tokens":5,"output_tokens":7}}`) + data("[DONE]"), "1173", said{Usage: cost, Done: true}, true, true},
		{"a transcript by the second", heard, 1, data(`{"type":"transcript.text.done","text":"a","usage":{"type":"duration","seconds":3}}`), "7", said{}, true, true},
		{"Mistral's transcript", heard, 1, named("transcription.text.delta", `{"type":"transcription.text.delta","text":"a"}`) +
			named("transcription.done", `{"type":"transcription.done","usage":{"prompt_tokens":5,"completion_tokens":7,"prompt_audio_seconds":3}}`), "17", said{Usage: cost}, true, true},
		{"vLLM's transcript", heard, 1, data(`{"object":"transcription.chunk","choices":[{"delta":{"content":"a"}}]}`) + data("[DONE]"), "13", said{Done: true}, false, false},
		{"speech", sound, 1, data(`{"type":"speech.audio.delta","audio":"AAAA"}`) + ": wait\n\n" + data(`{"type":"keepalive"}`) +
			data(`{"type":"speech.audio.done","usage":{"input_tokens":5,"output_tokens":7,"total_tokens":12}}`), "1007", said{Usage: cost}, true, true},
		{"what has another name", picture, 1, named("image_generation.partial_image", `{"type":"image_generation.completed"}`), "5", said{}, false, false},
		{"what is no object", picture, 1, data("5") + data(`{"type":`) + data(`{"type":"x"} y`), "555", said{}, false, false},
		{"garbage after the end", picture, 1, completed + data("{"), "76", said{Usage: cost}, true, true},
		{"a moderator", picture, 1, partial + named("error", `{"type":"error","error":{"type":"image_generation_user_error","code":"moderation_blocked","message":"no"}}`), "14", said{Refused: true}, false, false},
		{"an error by its type alone", picture, 1, data(`{"type":"error","code":"x","message":"y"}`), "4", said{}, false, false},
		{"vLLM's error", sound, 1, data(`{"type":"speech.audio.error","message":"y"}`), "4", said{}, false, false},
		{"an error without a type", heard, 1, data(`{"error":{"message":"y"}}`), "4", said{}, false, false},
		{"no error", heard, 1, data(`{"type":"transcript.text.done","error":null}`), "7", said{}, true, true},
	} {
		s, kinds := Stream{Endpoint: served(t, c.path), Choices: c.choices}, ""
		for left := []byte(c.in); len(left) > 0; {
			var split Splitter
			n := split.Next(left)
			kinds += fmt.Sprint(int(s.Event(left[:n])))
			left = left[n:]
		}
		if kinds != c.kinds || saidBy(&s) != c.want || s.Complete() != c.complete || s.Ends() != c.ends {
			t.Errorf("%s: %s %+v, complete %t, ends %t; want %s %+v", c.name, kinds, saidBy(&s), s.Complete(), s.Ends(), c.kinds, c.want)
		}
		if s.Closing() != nil {
			t.Errorf("%s: closed by %q", c.name, s.Closing())
		}
		out := s.AppendFailure(nil, dialect.Fail(dialect.UpstreamError, "broke"), "req_1")
		if !strings.HasPrefix(string(out), `data: {"error":{"message":"broke"`) {
			t.Errorf("%s: fails with %s", c.name, out)
		}
	}
}

// TestMediaEventsDoNotAllocate: nothing of a picture is copied to read its event.
func TestMediaEventsDoNotAllocate(t *testing.T) {
	event := []byte("event: image_generation.partial_image\ndata: {\"type\":\"image_generation.partial_image\",\"b64_json\":\"" + strings.Repeat("A", 1<<20) + "\",\"usage\":null}\n\n")
	s := Stream{Endpoint: served(t, "/v1/images/generations"), Choices: 1}
	if n := testing.AllocsPerRun(20, func() {
		if s.Event(event) != KindContent {
			t.Fatal("not content")
		}
	}); n > 0 {
		t.Errorf("%v allocations an event", n)
	}
}
