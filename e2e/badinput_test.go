package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// chat is a small valid body for model.
func chat(model string) string {
	return fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}]}`, model, question)
}

func flipped(key string) string {
	last := byte('A')
	if key[len(key)-1] == last {
		last = 'B'
	}
	return key[:len(key)-1] + string(last)
}

func TestRequestMistakes(t *testing.T) {
	base := shared(t).Regions[0].API
	key := shared(t).APIKey
	for _, tc := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		code                     string
	}{
		{"malformed JSON", "POST", "/v1/chat/completions", `{"model": "sim`, nil, 400, "invalid_json"},
		{"not an object", "POST", "/v1/chat/completions", `[1,2]`, nil, 400, "invalid_json"},
		{"missing model", "POST", "/v1/chat/completions", `{"messages":[]}`, nil, 400, "invalid_request"},
		{"two models", "POST", "/v1/chat/completions", `{"model":"a","model":"b","messages":[]}`, nil, 400, "invalid_json"},
		{"unknown model", "POST", "/v1/chat/completions", chat("no-such-model"), nil, 404, "model_not_found"},
		{"unknown hint", "POST", "/v1/chat/completions", chat(shared(t).Model), []string{"idc-region-hint", "atlantis"}, 400, "unknown_region_hint"},
		{"misspelt zero retention", "POST", "/v1/chat/completions", chat(shared(t).Model), []string{"idc-no-retention", "yes"}, 400, "invalid_header"},
		{"zero retention of what is to be stored", "POST", "/v1/responses", `{"model":"` + shared(t).Model + `","input":"x","background":true}`, []string{"idc-no-retention", "true"}, 400, "storage_not_allowed"},
		{"a file with zero retention", "POST", "/v1/files", "x", []string{"idc-no-retention", "true"}, 400, "storage_not_allowed"},
		{"a file", "GET", "/v1/files/file-1", "", nil, 404, "not_found"},
		{"another content type", "POST", "/v1/embeddings", chat(shared(t).Model), []string{"content-type", "text/plain"}, 400, "invalid_request"},
		{"a compressed body", "POST", "/v1/responses", chat(shared(t).Model), []string{"content-encoding", "gzip"}, 400, "invalid_request"},
		{"a receipt of nothing", "GET", "/v1/receipts/req_01M80MNTN8HERS6ED5GEXW7RYA", "", nil, 404, "not_found"},
		{"header twice", "POST", "/v1/chat/completions", chat(shared(t).Model), []string{"idc-region-hint", "eu-fra", "idc-region-hint", "us-east"}, 400, "invalid_header"},
		{"wrong method", "DELETE", "/v1/chat/completions", "", nil, 405, "method_not_allowed"},
		{"wrong path", "POST", "/v1/chat/completion", chat(shared(t).Model), nil, 404, "not_found"},
		{"foreign project", "POST", "/v1/chat/completions", chat(shared(t).Model), []string{"idc-project-id", "prj_any_0000000000000000"}, 403, "project_forbidden"},
		{"messages: malformed JSON", "POST", "/v1/messages", `{"model": "sim`, nil, 400, "invalid_json"},
		{"messages: unknown model", "POST", "/v1/messages", chat("no-such-model"), nil, 404, "model_not_found"},
		{"messages: misspelt zero retention", "POST", "/v1/messages", chat(shared(t).MessagesModel), []string{"idc-no-retention", "1"}, 400, "invalid_header"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := shared(t).ask(t, tc.method, base+tc.path, tc.body, append([]string{"authorization", "Bearer " + key}, tc.header...)...)
			wantError(t, a, tc.path, tc.status, tc.code)
		})
	}
	for _, tc := range []struct{ name, key, code string }{
		{"truncated key", key[:len(key)-5], "invalid_api_key"},
		{"bad checksum", flipped(key), "invalid_api_key"},
		{"no key", "", "invalid_api_key"},
		{"not a key", "sk-proj-1234", "invalid_api_key"},
	} {
		for _, path := range []string{"/v1/chat/completions", "/v1/messages"} {
			t.Run(tc.name+" "+path, func(t *testing.T) {
				var header []string
				if tc.key != "" {
					header = []string{"authorization", "Bearer " + tc.key}
				}
				wantError(t, shared(t).ask(t, "POST", base+path, chat(shared(t).Model), header...), path, 401, tc.code)
			})
		}
	}
	t.Run("two different keys", func(t *testing.T) {
		a := shared(t).ask(t, "POST", base+"/v1/messages", chat(shared(t).Model), "authorization", "Bearer "+key, "x-api-key", flipped(key))
		wantError(t, a, "/v1/messages", 400, "invalid_header")
	})
	t.Run("wrong jurisdiction", func(t *testing.T) {
		// Refused by its prefix alone: the key need not exist, but its checksum must hold, so make one.
		stdout, stderr, code := shared(t).cli(t, "org", "create", "pinned-mistakes", "--plan", "build", "--jurisdiction", "eu", "--state", "verified", "-o", "json")
		if code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		org := field(t, stdout, "id")
		stdout, stderr, code = shared(t).cli(t, "project", "create", "p", "--org", org, "-o", "json")
		if code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		stdout, stderr, code = shared(t).cli(t, "key", "create", "k", "--project", field(t, stdout, "id"), "-o", "json")
		if code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		pinned := field(t, stdout, "key")
		if !strings.HasPrefix(pinned, "idc_live_eu_") {
			t.Fatalf("a key of a pinned org carries its jurisdiction; got %.12s…", pinned)
		}
		a := shared(t).ask(t, "POST", base+"/v1/chat/completions", chat(shared(t).Model), "authorization", "Bearer "+pinned)
		wantError(t, a, "/v1/chat/completions", 403, "wrong_jurisdiction")
		if got := a.header.Get("idc-endpoint"); got == "" || strings.TrimPrefix(shared(t).Regions[1].API, "https://") != strings.TrimPrefix(got, "https://") {
			t.Errorf("idc-endpoint %q, want %s", got, shared(t).Regions[1].API)
		}
		eventually(t, 3e9, func() error {
			a := shared(t).ask(t, "POST", shared(t).Regions[1].API+"/v1/chat/completions", chat(shared(t).Model), "authorization", "Bearer "+pinned)
			if a.status != 200 || a.header.Get("idc-residency") != "eu" || a.header.Get("idc-region") != "eu-fra" {
				return fmt.Errorf("at home: %d %v %s", a.status, a.header, a.body)
			}
			return nil
		})
	})
	t.Run("body over 32 MiB", func(t *testing.T) {
		body := `{"model":"` + shared(t).Model + `","messages":[{"role":"user","content":"` + strings.Repeat("x", 33<<20) + `"}]}`
		a, err := shared(t).tryAsk(t.Context(), shared(t).client(false), "POST", base+"/v1/chat/completions", body, shared(t).bearer()...)
		if err != nil {
			t.Fatalf("the connection broke instead of an answer: %v", err)
		}
		wantError(t, a, "/v1/chat/completions", 413, "request_too_large")
	})
}

// wantError checks status, code, dialect and the headers every error carries.
func wantError(t *testing.T, a answer, path string, status int, code string) {
	t.Helper()
	if a.status != status || a.header.Get("idc-error-code") != code {
		t.Fatalf("%d %q, want %d %q\n%s", a.status, a.header.Get("idc-error-code"), status, code, a.body)
	}
	if a.header.Get("idc-request-id") == "" || a.header.Get("x-should-retry") == "" {
		t.Errorf("headers missing: %v", a.header)
	}
	if (status == 503 || status == 429) && a.header.Get("retry-after") == "" {
		t.Error("no retry-after")
	}
	var body struct {
		Type  string `json:"type"`
		Error *struct {
			Type, Message string
			Code          any
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || body.Error == nil || body.Error.Message == "" {
		t.Fatalf("not an error body (%v): %s", err, a.body)
	}
	if anthropic := strings.HasPrefix(path, "/v1/messages"); anthropic != (body.Type == "error") {
		t.Errorf("wrong dialect: %s", a.body)
	} else if !anthropic && body.Error.Code != code {
		t.Errorf("error.code %v, want %s", body.Error.Code, code)
	}
	_, name, _ := strings.Cut(t.Name(), "/")
	badInput(t, strings.ReplaceAll(name, "_", " "), fmt.Sprintf("%d %s", a.status, code), body.Error.Message)
}

func field(t *testing.T, object, name string) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(object), &m); err != nil {
		t.Fatalf("not JSON (%v): %s", err, object)
	}
	s, ok := m[name].(string)
	if !ok {
		t.Fatalf("no %s in %s", name, object)
	}
	return s
}

func TestPlainHTTPIsRefused(t *testing.T) {
	resp, err := (&http.Client{}).Get("http://" + strings.TrimPrefix(shared(t).Regions[0].API, "https://") + "/livez")
	if err == nil {
		defer resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Fatalf("plain HTTP was answered with %d", resp.StatusCode)
		}
	}
}
