package dialect

import (
	"slices"
	"strings"
	"testing"
)

// endpoint finds what a test names.
func endpoint(t testing.TB, path string) *Endpoint {
	t.Helper()
	ep, ok := EndpointOf(path)
	if !ok {
		t.Fatalf("no endpoint %s", path)
	}
	return ep
}

func TestEndpoints(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/chat/completions":      "openai 1 1 stream splice",
		"/v1/completions":           "openai 1 1 stream splice",
		"/v1/responses":             "openai 1 2 stream splice",
		"/v1/embeddings":            "openai 1 1",
		"/v1/messages":              "anthropic 1 2 stream splice",
		"/v1/messages/count_tokens": "anthropic 1 0",
		"/v1/audio/speech":          "openai 1 0 stream media binary",
		"/v1/audio/transcriptions":  "openai 2 2 stream media binary",
		"/v1/audio/translations":    "openai 2 2 binary",
		"/v1/images/generations":    "openai 1 2 stream media",
		"/v1/images/edits":          "openai 3 2 stream media",
		"/v1/images/variations":     "openai 2 2",
		"/v1/files":                 "openai 0 0 stores",
		"/v1/files/file-1/content":  "openai 0 0 stores",
		"/v1/messages/batches/b":    "anthropic 0 0 stores",
	} {
		ep, ok := EndpointOf(path)
		if !ok {
			t.Errorf("%s: not there", path)
			continue
		}
		got := []string{ep.Dialect.String(), string('0' + rune(ep.Body)), string('0' + rune(ep.Usage))}
		for word, on := range map[string]bool{"stream": ep.Streams, "splice": ep.Splices, "media": ep.Media, "binary": ep.Binary, "stores": ep.Stores} {
			if on {
				got = append(got, word)
			}
		}
		slices.Sort(got[3:])
		words := strings.Fields(want)
		slices.Sort(words[3:])
		if !slices.Equal(got, words) {
			t.Errorf("%s: %v, want %v", path, got, words)
		}
		if ep.Dialect != OfPath(path) {
			t.Errorf("%s answers in %s, its errors in %s", path, ep.Dialect, OfPath(path))
		}
	}
	for _, path := range []string{"", "/", "/v1", "/v1/file", "/v1/filesx", "/v1/chat/completions/", "/v1/chat/completions/x", "/v1/responses/resp_1", "/v1/models", "/V1/files"} {
		if ep, ok := EndpointOf(path); ok {
			t.Errorf("%s is %s", path, ep.Path)
		}
	}
	for i, ep := range Endpoints() {
		if found, ok := EndpointOf(ep.Path); !ok || found != ep {
			t.Errorf("%s finds another endpoint", ep.Path)
		}
		if (ep.Body == BodyNone) != ep.Stores || ep.Splices && !ep.Streams || ep.UsageOption && !ep.Streams {
			t.Errorf("row %d does not hold together: %+v", i, ep)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = EndpointOf("/v1/files/file-1") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
