package request

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"ringmain/dataplane/dialect"
)

// TestStorageRows gives, for every row of the table, a request that it is
// about, and one beside it that must pass. A row without an example fails.
func TestStorageRows(t *testing.T) {
	const (
		chat, responses, messages = "/v1/chat/completions", "/v1/responses", "/v1/messages"
		images                    = "/v1/images/generations"
	)
	tool := func(of string) string { return `"tools":[{"type":"custom","name":"f"},` + of + `]` }
	type sample struct{ path, field, header, beside string }
	samples := map[string][]sample{
		"/v1/responses background":                           {{responses, `"background":true`, "", `"background":false`}},
		"/v1/responses previous_response_id":                 {{responses, `"previous_response_id":"resp_1"`, "", `"previous_response_id":null`}},
		"/v1/responses conversation":                         {{responses, `"conversation":{"id":"c"}`, "", `"conversation":null`}},
		"/v1/responses item_reference":                       {{responses, `"input":[{"type":"item_reference","id":"i"}]`, "", `"input":"item_reference"`}},
		"/v1/responses prompt":                               {{responses, `"prompt":{"id":"pmpt_1","variables":{}}`, "", `"prompt":null`}},
		"/v1/responses skill_id":                             {{responses, tool(`{"type":"shell","environment":{"type":"container_auto","skills":[{"skill_id":"s"}]}}`), "", tool(`{"type":"shell","environment":{"type":"local","skills":[{"name":"s","path":"/s"}]}}`)}},
		"/v1/responses tunnel_id":                            {{responses, tool(`{"tunnel_id":"t","type":"mcp"}`), "", tool(`{"type":"function","name":"tunnel_id"}`)}},
		"/v1/chat/completions audio.id":                      {{chat, `"messages":[{"role":"assistant","audio":{"id":"a"}}]`, "", `"messages":[{"role":"assistant","audio":null}]`}},
		"/v1/chat/completions deferred":                      {{chat, `"deferred":true`, "", `"deferred":null`}},
		"/v1/chat/completions data_sources":                  {{chat, `"data_sources":[{"type":"azure_search"}]`, "", `"data_sources":null`}},
		"/v1/chat/completions cached_content":                {{chat, `"extra_body":{"google":{"cached_content":"c"}}`, "", `"extra_body":{"google":{"thinking_config":{}}}`}},
		"openai voice.id":                                    {{"/v1/audio/speech", `"voice":{"id":"v"}`, "", `"voice":"alloy"`}},
		"openai prompt_cache_retention":                      {{chat, `"prompt_cache_retention":"24h"`, "", `"prompt_cache_retention":"in_memory"`}, {responses, `"prompt_cache_retention":"7d"`, "", `"prompt_cache_retention":null`}},
		"openai prompt_cache_options.ttl":                    {{responses, `"prompt_cache_options":{"mode":"explicit","ttl":"12h"}`, "", `"prompt_cache_options":{"ttl":"30m"}`}, {chat, `"prompt_cache_options":{"ttl":43200}`, "", `"prompt_cache_options":{"ttl":null}`}},
		"openai audio":                                       {{chat, `"audio":{"voice":"alloy"}`, "", `"modalities":["text"]`}},
		"openai file_id":                                     {{chat, `"messages":[{"content":[{"type":"file","file":{"file_id":"f"}}]}]`, "", `"messages":[{"content":[{"type":"file","file":{"file_data":"file_id"}}]}]`}, {responses, `"input":[{"content":[{"type":"input_image","File_ID":"f"}]}]`, "", `"input":[{"type":"function_call","arguments":"{\"file_id\":1}"}]`}, {"/v1/images/edits", `"images":[{"file_id":"f"}]`, "", `"images":[{"image_url":"data:"}]`}, {"/v1/images/edits", `"image":{"file_id":"f"}`, "", `"image":{"type":"image_url","url":"data:"}`}, {images, `"image":[{"FILE_ID":"f"}]`, "", `"image":["data:"]`}, {responses, tool(`{"type":"image_generation","input_image_mask":{"file_id":"f"}}`), "", tool(`{"type":"image_generation"}`)}},
		"/v1/responses tools: file_search":                   {{responses, tool(`{"type":"file_search"}`), "", tool(`{"type":"web_search"}`)}},
		"/v1/responses tools: code_interpreter":              {{responses, tool(`{"type":"code_interpreter","container":null}`), "", tool(`{"type":"custom","name":"code_interpreter"}`)}},
		"/v1/responses tools: shell":                         {{responses, tool(`{"type":"shell","environment":{"type":"container_auto"}}`), "", tool(`{"environment":{"type":"local"},"type":"shell"}`)}, {responses, tool(`{"type":"shell"}`), "", tool(`{"type":"local_shell"}`)}},
		"/v1/responses tools: mcp":                           {{responses, tool(`{"type":"mcp","server_url":"u"}`), "", tool(`{"type":"function","name":"mcp"}`)}},
		"/v1/responses tools: programmatic_tool_calling":     {{responses, tool(`{"type":"programmatic_tool_calling"}`), "", tool(`{"type":"apply_patch"}`)}},
		"openai tools: unknown":                              {{chat, tool(`{"type":"telepathy"}`), "", tool(`{"type":"custom"}`)}, {chat, tool(`{"name":"no type"}`), "", `"tools":null`}, {chat, `"tools":{"type":"function"}`, "", `"tools":[]`}, {messages, tool(`{"type":"telepathy_20270101"}`), "", tool(`{"type":"bash_20250124"}`)}},
		"/v1/images response_format":                         {{images, `"response_format":"url"`, "", `"response_format":"b64_json"`}, {"/v1/images/edits", `"response_format":"URL"`, "", `"response_format":null`}, {images, `"response_format":["url"]`, "", `"response_format":"b64_\u006ason"`}},
		"/v1/images storage_options":                         {{images, `"storage_options":{"filename":"f","public_url":true}`, "", `"storage_options":null`}},
		"openai provider":                                    {{chat, `"provider":{"order":["elsewhere"]}`, "", `"provider":null`}, {messages, `"provider":{"only":["elsewhere"]}`, "", `"provider":null`}},
		"openai kv_transfer_params":                          {{chat, `"kv_transfer_params":{"do_remote_prefill":true,"remote_block_ids":[1]}`, "", `"kv_transfer_params":null`}, {responses, `"kv_transfer_params":{"x":1}`, "", `"kv_transfer_params":null`}},
		"openai bootstrap_host":                              {{"/v1/completions", `"bootstrap_host":"elsewhere"`, "", `"bootstrap_host":null`}},
		"openai session_params":                              {{chat, `"session_params":{"id":"s"}`, "", `"session_params":null`}},
		"openai providerOptions":                             {{chat, `"providerOptions":{"gateway":{"only":["bedrock"]}}`, "", `"providerOptions":null`}},
		"openai plugins":                                     {{responses, `"plugins":[{"id":"web","engine":"exa"}]`, "", `"plugins":null`}},
		"openai any other field":                             {{chat, `"remember":true`, "", `"top_p":1`}, {chat, `"extra_body":{"google":{"keep":1}}`, "", `"extra_body":{"google":{"thinking_config":{"keep":1}}}`}, {chat, `"background":true`, "", `"chat_template_kwargs":{"remember":true}`}, {"/v1/embeddings", `"store":true`, "", `"input_type":"query"`}, {messages, `"anthropic_beta":["files-api-2025-04-14"]`, "", `"service_tier":"auto"`}, {responses, `"Truncation":"auto"`, "", `"truncation":"auto"`}, {responses, `"stor\u0065d":1`, "", `"us\u0065r":"u"`}},
		"openai openai-beta":                                 {{chat, `"user":"u"`, "openai-beta: assistants=v2", `"user":"u"`}},
		"anthropic container":                                {{messages, `"container":{"skills":[]}`, "", `"container":null`}},
		"anthropic mcp_servers":                              {{messages, `"mcp_servers":[{"url":"u"}]`, "", `"mcp_servers":null`}},
		"anthropic tools: mcp_toolset":                       {{messages, tool(`{"type":"mcp_toolset"}`), "", tool(`{"name":"mcp_toolset","input_schema":{}}`)}},
		"anthropic tools: code_execution":                    {{messages, tool(`{"type":"code_execution_20250825"}`), "", tool(`{"type":"text_editor_20250728"}`)}, {messages, `"messages":[{"content":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":{"type":"code_execution_20260521"}}}]}]`, "", `"messages":[{"content":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":{"type":"memory_20250818"}}}]}]`}},
		"anthropic tools: web_search":                        {{messages, tool(`{"type":"web_search_20260209"}`), "", tool(`{"type":"web_search_20250305"}`)}},
		"anthropic tools: web_fetch":                         {{messages, tool(`{"type":"web_fetch_20260309"}`), "", tool(`{"type":"web_fetch_20250910"}`)}},
		"anthropic file_id":                                  {{messages, `"messages":[{"content":[{"type":"document","source":{"type":"file","file_id":"f"}}]}]`, "", `"messages":[{"content":[{"type":"tool_use","name":"x","input":{"file_id":"f"}}]}]`}, {"/v1/messages/count_tokens", `"messages":[{"content":[{"type":"container_upload"}]}]`, "", `"messages":[]`}},
		"anthropic cache_control.ttl":                        {{messages, `"system":[{"type":"text","cache_control":{"type":"ephemeral","ttl":"1h"}}]`, "", `"system":[{"type":"text","cache_control":{"type":"ephemeral","ttl":"5m"}}]`}, {messages, `"cache_control":{"ttl":"1h"}`, "", `"cache_control":{"type":"ephemeral"}`}, {messages, `"cache_control":{"ttl":3600}`, "", `"cache_control":{"ttl":null}`}, {messages, tool(`{"name":"f","cache_control":{"ttl":"1h"}}`), "", tool(`{"name":"f","input_schema":{"properties":{"cache_control":{"ttl":"1h"}}}}`)}},
		"anthropic diagnostics":                              {{messages, `"diagnostics":{"previous_message_id":"m"}`, "", `"diagnostics":null`}},
		"anthropic fallback_credit_token":                    {{messages, `"fallback_credit_token":"t"`, "", `"fallback_credit_token":null`}},
		"anthropic anthropic-beta":                           {{messages, `"top_p":1`, "anthropic-beta: files-api-2025-04-14", `"top_p":1`}, {messages, `"top_p":1`, "anthropic-beta: prompt-caching-2024-07-31, skills-2025-10-02", `"top_p":1`}, {messages, `"top_p":1`, "anthropic-beta: never-heard-of-2030-01-01", `"top_p":1`}},
		"openai prompt_cache_options.comparison_response_id": {{responses, `"prompt_cache_options":{"comparison_response_id":"r"}`, "", `"prompt_cache_options":{"prewarm":true}`}},
	}
	refers := map[string]bool{}
	for _, name := range []string{
		"previous_response_id", "conversation", "item_reference", "prompt", "file_id", "skill_id", "tunnel_id", "audio.id", "voice.id",
		"data_sources", "cached_content", "kv_transfer_params", "bootstrap_host", "session_params", "prompt_cache_options.comparison_response_id", "diagnostics",
	} {
		refers[name] = true
	}
	scan := func(path, field string) Request {
		q, fail := Scan(served(t, path), "application/json", []byte(`{"model":"m",`+field+`}`))
		if fail != nil {
			t.Fatalf("%s: %v", field, fail)
		}
		return q
	}
	examined := map[string]bool{}
	for _, row := range Storage() {
		name := row.Where + " " + row.Field
		if row.Field == "path" {
			checkStoragePath(t, row)
			continue
		}
		if row.Action == Refuse && len(samples[name]) == 0 {
			t.Errorf("%s has no example", name)
		}
		for _, s := range samples[name] {
			if row.Action != Refuse {
				continue
			}
			header := http.Header{}
			if key, value, ok := strings.Cut(s.header, ": "); ok {
				header.Add(key, value)
			}
			q := scan(s.path, s.field)
			e := StorageRefusal(q.Endpoint, &q, header)
			if e == nil || e.Code != dialect.StorageNotAllowed || s.header == "" && q.Stores != row.Field && !strings.HasSuffix(row.Field, unknownTool) {
				t.Errorf("%s: %s %s: %v, stores %q", name, s.field, s.header, e, q.Stores)
			}
			if e == nil {
				continue
			}
			if q.Stores == otherField {
				if !strings.Contains(e.Message, "Field 2 of the request") {
					t.Errorf("%s: %s", name, e.Message)
				}
			} else if keeps := strings.Contains(e.Message, "have the provider keep") || strings.Contains(e.Message, "has the provider keep"); s.header == "" && keeps == refers[q.Stores] {
				t.Errorf("%s: %s", name, e.Message)
			}
			if row.Shared && q.Kept == "" && row.Field != "container" { // of that, some is nobody's
				t.Errorf("%s: %s would be used by whoever shares the account", name, s.field)
			}
			if q = scan(s.path, s.beside); q.Kept != "" || StorageRefusal(q.Endpoint, &q, http.Header{"Anthropic-Beta": {"interleaved-thinking-2025-05-14,context-1m-2025-08-07", ""}}) != nil {
				t.Errorf("%s: %s is refused for %s", name, s.beside, q.Stores)
			}
		}
		examined[name] = true
	}
	for name := range examined {
		delete(samples, name)
	}
	for name := range samples {
		t.Errorf("no row %s", name)
	}
}

func checkStoragePath(t *testing.T, row StorageRow) {
	t.Helper()
	for _, path := range []string{row.Where, row.Where + "/x/y"} {
		if e := StorageRefusal(served(t, path), nil, nil); e == nil || e.Code != dialect.StorageNotAllowed {
			t.Errorf("%s: %v", path, e)
		}
	}
}

// TestStorageIsForcedOff checks the rows that are rewritten; the twin test
// compares whole bodies.
func TestStorageIsForcedOff(t *testing.T) {
	for _, c := range []struct{ path, in, out string }{
		{"/v1/responses", `{"input":"x", "model" : "m" }`, `{"input":"x", "model" : "m","store":false }`},
		{"/v1/responses", `{"store":true,"model":"m"}`, `{"store":false,"model":"m"}`},
		{"/v1/responses", `{"model":"m","store": null}`, `{"model":"m","store": false}`},
		{"/v1/responses", `{"model":"m","store":false}`, `{"model":"m","store":false}`},
		{"/v1/chat/completions", `{"model":"m","store":true,"metadata":{"a":"b"}}`, `{"model":"m","store":false,"metadata":{"a":"b"}}`},
		{"/v1/chat/completions", `{"model":"m"}`, `{"model":"m"}`},
		{"/v1/embeddings", `{"model":"m","user":"u"}`, `{"model":"m","user":"u"}`},
		{"/v1/images/generations", `{"model" : "m" ,"prompt":"p"}`, `{"model" : "m","response_format":"b64_json" ,"prompt":"p"}`},
		{"/v1/images/generations", `{"model":"m","response_format": null,"n":1}`, `{"model":"m","response_format": "b64_json","n":1}`},
		{"/v1/images/edits", `{"response_format":"b64_json","model":"m"}`, `{"response_format":"b64_json","model":"m"}`},
		{"/v1/audio/speech", `{"model":"m","input":"x"}`, `{"model":"m","input":"x"}`},
		{"/v1/messages", `{"model":"m"}`, `{"model":"m"}`},
	} {
		q, fail := Scan(served(t, c.path), "application/json", []byte(c.in))
		if fail != nil {
			t.Fatal(fail)
		}
		if e := StorageRefusal(q.Endpoint, &q, nil); e != nil {
			t.Errorf("%s: %v", c.in, e)
		}
		kept := q.Upstream([]byte(c.in), "m", Rewriting{})
		if got := string(kept.Append(nil)); got != c.in {
			t.Errorf("%s became %s with retention", c.in, got)
		}
		body := q.Upstream([]byte(c.in), "m", Rewriting{ZeroRetention: true})
		if got := string(body.Append(nil)); got != c.out {
			t.Errorf("%s %s became %s, want %s", c.path, c.in, got, c.out)
		}
	}
	forced := 0
	for _, row := range Storage() {
		if row.Action == ForceOff {
			forced++
			for _, ep := range dialect.Endpoints() {
				f := map[string]fieldSet{"store": fStore, "response_format": fResponseFormat}[row.Field]
				if !ep.Stores && strings.HasPrefix(ep.Path, row.Where) && fieldsOf(ep)&f == 0 {
					t.Errorf("%s %s: nothing forces it off", ep.Path, row.Field)
				}
			}
		}
		if row.Reason == "" || row.Source != "" && !strings.HasPrefix(row.Source, "https://") || row.Action.String() == "none" {
			t.Errorf("%+v", row)
		}
	}
	if forced != 4 {
		t.Errorf("%d rows force off", forced)
	}
}

// TestChatIsStoredUnlessTold: OpenAI keeps chats of newer accounts by default. Other
// servers know no such field, and some take none that they do not know.
func TestChatIsStoredUnlessTold(t *testing.T) {
	for base, stores := range map[string]bool{
		"https://api.openai.com": true, "https://api.openai.com/v1": true, "https://eu.api.openai.com:443/v1/": true,
		"https://acme.openai.azure.com/openai": false, "https://api.mistral.ai/v1": false, "https://api.openai.com.example": false, "https://notapi.openai.com": false, "": false,
	} {
		for in, out := range map[string]string{
			`{"model":"m","n":1}`:         `{"model":"m","store":false,"n":1}`,
			`{"model":"m","store":null}`:  `{"model":"m","store":false}`,
			`{"model":"m","store":false}`: `{"model":"m","store":false}`,
		} {
			q, fail := Scan(served(t, chatPath), "application/json", []byte(in))
			if fail != nil {
				t.Fatal(fail)
			}
			want := in
			if stores {
				want = out
			}
			body := q.Upstream([]byte(in), "", Rewriting{ZeroRetention: true}.At(base))
			if got := string(body.Append(nil)); got != want {
				t.Errorf("%s: %s became %s", base, in, got)
			}
			body = q.Upstream([]byte(in), "", Rewriting{}.At(base))
			if got := string(body.Append(nil)); got != in {
				t.Errorf("%s: %s became %s with retention", base, in, got)
			}
		}
	}
}

func TestProviderTools(t *testing.T) {
	for _, c := range []struct {
		path, field string
		want        bool
	}{
		{"/v1/chat/completions", `"tools":[{"type":"function"},{"type":"custom"}]`, false},
		{"/v1/chat/completions", `"web_search_options":{}`, true},
		{"/v1/chat/completions", `"web_search_options":null`, false},
		{"/v1/responses", `"tools":[{"type":"web_search"}]`, true},
		{"/v1/responses", `"tools":[{"type":"tool_search","execution":"client"}]`, false},
		{"/v1/responses", `"tools":[{"type":"tool_search"}]`, true},
		{"/v1/responses", `"tools":[{"type":"namespace","tools":[{"type":"function"}]}]`, false},
		{"/v1/responses", `"tools":[{"type":"namespace","tools":[{"type":"mcp"}]}]`, true},
		{"/v1/responses", `"tools":[{"type":"computer"}]`, false},
		{"/v1/responses", `"tools":[{"type":"function","Type":"mcp"}]`, true},
		{"/v1/responses", `"tools":[{"type":"mcp","type":"function"}]`, true},
		{"/v1/responses", `"tools":["function"]`, true},
		{"/v1/responses", `"tools":[{"type":7}]`, true},
		{"/v1/messages", `"tools":[{"name":"f"},{"type":null},{"type":"custom"},{"type":"computer_20251124"}]`, false},
		{"/v1/messages", `"tools":[{"type":"web_search_20250305"}]`, true},
		{"/v1/messages", `"tools":[{"type":"advisor_20260301"}]`, true},
		{"/v1/messages", `"tools":[{"type":"computer_2025112x"}]`, true},
		{"/v1/messages", `"mcp_servers":[]`, true},
	} {
		q, fail := Scan(served(t, c.path), "", []byte(`{"model":"m",`+c.field+`}`))
		if fail != nil || q.ProviderTools != c.want {
			t.Errorf("%s %s: %t %v", c.path, c.field, q.ProviderTools, fail)
		}
	}
}

// TestUsageUnasked: who tells the figures unasked, and refuses to be asked, is not.
func TestUsageUnasked(t *testing.T) {
	in := `{"model":"m","stream":true,"stream_options":{"include_usage":false}}`
	q, fail := Scan(served(t, chatPath), "application/json", []byte(in))
	if fail != nil {
		t.Fatal(fail)
	}
	for base, unasked := range map[string]bool{
		"https://api.mistral.ai": true, "https://api.mistral.ai/v1": true, "https://api.mistral.ai:443/": true,
		"https://api.openai.com/v1": false, "https://api.mistral.ai.example/v1": false, "https://example/https://api.mistral.ai/": false, "": false,
	} {
		body := q.Upstream([]byte(in), "", Rewriting{}.At(base))
		if got := string(body.Append(nil)); (got == in) != unasked {
			t.Errorf("%s: became %s", base, got)
		}
	}
}

// TestEveryRewriteIsListed: what the code edits and what Rewrites says, side by side.
func TestEveryRewriteIsListed(t *testing.T) {
	var got []string
	for _, r := range Rewrites() {
		got = append(got, fmt.Sprintf("%s %s %s", r.Dialect, r.Where, r.Field))
	}
	want := []string{
		"openai request model", "anthropic request model", "openai request the form's part model",
		"openai request stream_options.include_usage", "openai answer the chunk with empty choices and a usage object",
		"openai request store", "openai request store", "openai request store", "openai request response_format",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q", got)
	}
}

// TestPicturesComeInTheAnswer: whether JSON or a form asks for them, and by
// whatever name, the provider keeps none behind a link.
func TestPicturesComeInTheAnswer(t *testing.T) {
	const part = "Content-Disposition: form-data; name=\"response_format\"\r\n\r\nb64_json"
	picture := "Content-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n\x89PNG"
	for _, c := range []struct{ name, kind, upstream, in, out string }{
		{"a form", formType, "dall-e-2", formOf(picture, textPart("model", "dall-e-2")), formOf(part, picture, textPart("model", "dall-e-2"))},
		{"a form, of a renamed model", formType, "grok-imagine", formOf(textPart("model", "pictures")), formOf(part, textPart("model", "grok-imagine"))},
		{"a form that asks for it", formType, "dall-e-2", formOf(part, textPart("model", "dall-e-2")), formOf(part, textPart("model", "dall-e-2"))},
		{"a model that gives no links", formType, "gpt-image-2", formOf(textPart("model", "gpt-image-2")), formOf(textPart("model", "gpt-image-2"))},
		{"the same in JSON", "application/json", "chatgpt-image-latest", `{"model":"pictures"}`, `{"model":"chatgpt-image-latest"}`},
		{"a link behind such a name", "application/json", "dall-e-3", `{"model":"gpt-image-2"}`, `{"model":"dall-e-3","response_format":"b64_json"}`},
		{"such a name for another", "application/json", "gpt-image-2", `{"model":"dall-e-3","n":1}`, `{"model":"gpt-image-2","n":1}`},
	} {
		q, fail := Scan(served(t, "/v1/images/edits"), c.kind, []byte(c.in))
		if fail != nil {
			t.Fatalf("%s: %v", c.name, fail)
		}
		if e := StorageRefusal(q.Endpoint, &q, nil); e != nil {
			t.Errorf("%s: %v", c.name, e)
		}
		body := q.Upstream([]byte(c.in), c.upstream, Rewriting{ZeroRetention: true})
		if got := string(body.Append(nil)); got != c.out {
			t.Errorf("%s: %q, want %q", c.name, got, c.out)
		}
		with := q.Upstream([]byte(c.in), q.Model, Rewriting{})
		if got := string(with.Append(nil)); got != c.in {
			t.Errorf("%s: with retention %q became %q", c.name, c.in, got)
		}
	}
}

// TestPartsOfForms: what a form may hold without retention, and what it may not
// name at a shared account.
func TestPartsOfForms(t *testing.T) {
	for _, c := range []struct{ path, part, value, stores, kept string }{
		{"/v1/images/edits", "image[]", "x", "", ""},
		{"/v1/images/edits", "background", "transparent", "", ""},
		{"/v1/images/edits", "mask", "x", "", ""},
		{"/v1/images/edits", "storage_options[public_url]", "true", "storage_options", "storage_options"},
		{"/v1/images/edits", "response_format", "Url", "response_format", ""},
		{"/v1/images/edits", "response_format", "", "response_format", ""},
		{"/v1/images/edits", "images[0][file_id]", "file_1", "file_id", "file_id"},
		{"/v1/images/edits", "mask.File_ID", "file_1", "file_id", "file_id"},
		{"/v1/images/edits", "remember", "true", otherField, ""},
		{"/v1/images/variations", "size", "256x256", "", ""},
		{"/v1/audio/transcriptions", "timestamp_granularities[]", "word", "", ""},
		{"/v1/audio/transcriptions", "chunking_strategy[type]", "server_vad", "", ""},
		{"/v1/audio/transcriptions", "response_format", "verbose_json", "", ""},
		{"/v1/audio/translations", "callback_url", "https://elsewhere", otherField, ""},
	} {
		q, fail := Scan(served(t, c.path), formType, []byte(formOf(textPart("model", "m"), textPart(c.part, c.value))))
		if fail != nil || q.Stores != c.stores || q.Kept != c.kept {
			t.Errorf("%s %s=%s: stores %q, kept %q, %v", c.path, c.part, c.value, q.Stores, q.Kept, fail)
		}
		if e := StorageRefusal(q.Endpoint, &q, nil); (e != nil) != (c.stores != "") || c.stores == otherField && !strings.Contains(e.Message, "Field 2 ") {
			t.Errorf("%s %s=%s: %v", c.path, c.part, c.value, e)
		}
	}
}

// TestAway: what a request itself names as another place, or another party, for
// content of it.
func TestAway(t *testing.T) {
	const msgPath = "/v1/messages"
	for _, c := range []struct{ path, fields, want, param string }{
		{msgPath, `"inference_geo":"us"`, "inference_geo", "inference_geo"},
		{msgPath, `"inference_geo":null`, "", ""},
		{msgPath, `"mcp_servers":[{"url":"u"}]`, "mcp_servers", "mcp_servers"},
		{msgPath, `"tools":[{"type":"mcp_toolset"}]`, "tools: mcp_toolset", "tools"},
		{responsesPath, `"tools":[{"type":"namespace","tools":[{"type":"mcp","server_url":"u"}]}]`, "tools: mcp", "tools"},
		{responsesPath, `"tools":[{"type":"mcp","type":"function"}]`, "tools: mcp", "tools"},
		{responsesPath, `"tools":[{"tunnel_id":"t","type":"custom"}]`, "tunnel_id", "tunnel_id"},
		{responsesPath, `"tools":[{"type":"web_search"},{"type":"function","name":"mcp"}]`, "", ""},
		{chatPath, `"data_sources":[{"type":"azure_search"}]`, "data_sources", "data_sources"},
		{chatPath, `"data_sources":null`, "", ""},
		{chatPath, `"provider":{"order":["elsewhere"],"allow_fallbacks":true}`, "provider", "provider"},
		{msgPath, `"plugins":[{"id":"web","engine":"exa"}]`, "plugins", "plugins"},
		{chatPath, `"providerOptions":{"gateway":{"order":["elsewhere"]}}`, "providerOptions", "providerOptions"},
		{"/v1/embeddings", `"provider":null,"plugins":null,"providerOptions":null`, "", ""},
		{responsesPath, `"tools":[{"type":"bing_grounding","bing_grounding":{}}]`, "tools: unknown", "tools"},
		{msgPath, `"tools":[{"type":"telepathy_20270101"}]`, "tools: unknown", "tools"},
		{chatPath, `"kv_transfer_params":{"remote_host":"elsewhere"}`, "kv_transfer_params", "kv_transfer_params"},
		{chatPath, `"bootstrap_host":["elsewhere"]`, "bootstrap_host", "bootstrap_host"},
		{chatPath, `"tools":[{"function":{"name":"f"}}]`, "", ""},
		{responsesPath, `"tools":[{"type":"code_interpreter","container":{"type":"auto","network_policy":{"type":"allowlist","allowed_domains":["elsewhere"]}}}]`, "network_policy", "network_policy"},
		{responsesPath, `"tools":[{"type":"shell","environment":{"type":"container_auto","Network_Policy":{"Type":"allowlist"}}}]`, "network_policy", "network_policy"},
		{responsesPath, `"tools":[{"type":"code_interpreter","container":{"type":"auto","network_policy":{"type":"disabled"}}}]`, "", ""},
		{responsesPath, `"tools":[{"type":"code_interpreter","container":{"type":"auto","network_policy":{"type":"allowlist","type":"disabled"}}}]`, "network_policy", "network_policy"},
		{responsesPath, `"tools":[{"type":"code_interpreter","container":{"type":"auto","network_policy":{}}}]`, "network_policy", "network_policy"},
	} {
		q, fail := scanned(t, c.path, c.fields)
		if fail != nil || q.Away != c.want {
			t.Errorf("%s %s: away %q, %v", c.path, c.fields, q.Away, fail)
		}
		if e := AwayRefusal(&q); (e != nil) != (c.want != "") || e != nil && (e.Code != dialect.InvalidRequest || e.Param != c.param) {
			t.Errorf("%s %s: %v", c.path, c.fields, e)
		}
	}
}

// TestAwayInForms: the same of a form.
func TestAwayInForms(t *testing.T) {
	for part, want := range map[string]string{"provider": "provider", "Plugins[0][id]": "plugins", "providerOptions[gateway]": "providerOptions", "provider_hint": "", "file": ""} {
		q, fail := Scan(served(t, "/v1/audio/transcriptions"), formType, []byte(formOf(textPart("model", "m"), textPart(part, "x"))))
		if fail != nil || q.Away != want {
			t.Errorf("%s: away %q, %v", part, q.Away, fail)
		}
	}
}

// TestHarmlessFields: each is named once at its endpoints, and is none that the
// scan reads there.
func TestHarmlessFields(t *testing.T) {
	for _, row := range Harmless() {
		found := false
		for _, ep := range dialect.Endpoints() {
			if ep.Stores || row.Where != ep.Dialect.String() && !strings.HasPrefix(ep.Path, row.Where) {
				continue
			}
			found = true
			for name := range strings.FieldsSeq(row.Names) {
				if !strings.Contains(row.Where, "/") || ep.Body == dialect.BodyMultipart {
					continue
				}
				if f, _ := fieldsOf(ep).find([]byte(name)); f != 0 {
					t.Errorf("%s: %s is read by the scan", ep.Path, name)
				}
			}
		}
		if !found {
			t.Errorf("no endpoint %s", row.Where)
		}
	}
}
