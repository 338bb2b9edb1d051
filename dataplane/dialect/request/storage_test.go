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
		"openai prompt_cache_options.ttl":                    {{responses, `"prompt_cache_options":{"mode":"explicit","ttl":"12h"}`, "", `"prompt_cache_options":{"ttl":"30m"}`}},
		"openai audio":                                       {{chat, `"audio":{"voice":"alloy"}`, "", `"modalities":["text"]`}},
		"openai file_id":                                     {{chat, `"messages":[{"content":[{"type":"file","file":{"file_id":"f"}}]}]`, "", `"messages":[{"content":[{"type":"file","file":{"file_data":"file_id"}}]}]`}, {responses, `"input":[{"content":[{"type":"input_image","File_ID":"f"}]}]`, "", `"input":[{"type":"function_call","arguments":"{\"file_id\":1}"}]`}, {"/v1/images/edits", `"images":[{"file_id":"f"}]`, "", `"images":[{"image_url":"data:"}]`}, {responses, tool(`{"type":"image_generation","input_image_mask":{"file_id":"f"}}`), "", tool(`{"type":"image_generation"}`)}},
		"/v1/responses tools: file_search":                   {{responses, tool(`{"type":"file_search"}`), "", tool(`{"type":"web_search"}`)}},
		"/v1/responses tools: code_interpreter":              {{responses, tool(`{"type":"code_interpreter","container":null}`), "", tool(`{"type":"custom","name":"code_interpreter"}`)}},
		"/v1/responses tools: shell":                         {{responses, tool(`{"type":"shell","environment":{"type":"container_auto"}}`), "", tool(`{"environment":{"type":"local"},"type":"shell"}`)}, {responses, tool(`{"type":"shell"}`), "", tool(`{"type":"local_shell"}`)}},
		"/v1/responses tools: mcp":                           {{responses, tool(`{"type":"mcp","server_url":"u"}`), "", tool(`{"type":"function","name":"mcp"}`)}},
		"/v1/responses tools: programmatic_tool_calling":     {{responses, tool(`{"type":"programmatic_tool_calling"}`), "", tool(`{"type":"apply_patch"}`)}},
		"openai tools: unknown":                              {{chat, tool(`{"type":"telepathy"}`), "", tool(`{"type":"custom"}`)}, {chat, tool(`{"name":"no type"}`), "", `"tools":null`}, {chat, `"tools":{"type":"function"}`, "", `"tools":[]`}, {messages, tool(`{"type":"telepathy_20270101"}`), "", tool(`{"type":"bash_20250124"}`)}},
		"openai response_format":                             {{images, `"response_format":"url"`, "", `"response_format":"b64_json"`}},
		"openai openai-beta":                                 {{chat, `"x":1`, "openai-beta: assistants=v2", `"x":1`}},
		"anthropic container":                                {{messages, `"container":{"skills":[]}`, "", `"container":null`}},
		"anthropic mcp_servers":                              {{messages, `"mcp_servers":[{"url":"u"}]`, "", `"mcp_servers":null`}},
		"anthropic tools: mcp_toolset":                       {{messages, tool(`{"type":"mcp_toolset"}`), "", tool(`{"name":"mcp_toolset","input_schema":{}}`)}},
		"anthropic tools: code_execution":                    {{messages, tool(`{"type":"code_execution_20250825"}`), "", tool(`{"type":"text_editor_20250728"}`)}, {messages, `"messages":[{"content":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":{"type":"code_execution_20260521"}}}]}]`, "", `"messages":[{"content":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":{"type":"memory_20250818"}}}]}]`}},
		"anthropic tools: web_search":                        {{messages, tool(`{"type":"web_search_20260209"}`), "", tool(`{"type":"web_search_20250305"}`)}},
		"anthropic tools: web_fetch":                         {{messages, tool(`{"type":"web_fetch_20260309"}`), "", tool(`{"type":"web_fetch_20250910"}`)}},
		"anthropic file_id":                                  {{messages, `"messages":[{"content":[{"type":"document","source":{"type":"file","file_id":"f"}}]}]`, "", `"messages":[{"content":[{"type":"tool_use","name":"x","input":{"file_id":"f"}}]}]`}, {"/v1/messages/count_tokens", `"messages":[{"content":[{"type":"container_upload"}]}]`, "", `"messages":[]`}},
		"anthropic cache_control.ttl":                        {{messages, `"system":[{"type":"text","cache_control":{"type":"ephemeral","ttl":"1h"}}]`, "", `"system":[{"type":"text","cache_control":{"type":"ephemeral","ttl":"5m"}}]`}, {messages, `"cache_control":{"ttl":"1h"}`, "", `"cache_control":{"type":"ephemeral"}`}, {messages, tool(`{"name":"f","cache_control":{"ttl":"1h"}}`), "", tool(`{"name":"f","input_schema":{"properties":{"cache_control":{"ttl":"1h"}}}}`)}},
		"anthropic diagnostics":                              {{messages, `"diagnostics":{"previous_message_id":"m"}`, "", `"diagnostics":null`}},
		"anthropic fallback_credit_token":                    {{messages, `"fallback_credit_token":"t"`, "", `"fallback_credit_token":null`}},
		"anthropic anthropic-beta":                           {{messages, `"x":1`, "anthropic-beta: files-api-2025-04-14", `"x":1`}, {messages, `"x":1`, "anthropic-beta: prompt-caching-2024-07-31, skills-2025-10-02", `"x":1`}, {messages, `"x":1`, "anthropic-beta: never-heard-of-2030-01-01", `"x":1`}},
		"openai prompt_cache_options.comparison_response_id": {{responses, `"prompt_cache_options":{"comparison_response_id":"r"}`, "", `"prompt_cache_options":{"prewarm":true}`}},
	}
	refers := map[string]bool{}
	for _, name := range []string{
		"previous_response_id", "conversation", "item_reference", "prompt", "file_id", "skill_id", "tunnel_id", "audio.id", "voice.id",
		"data_sources", "cached_content", "prompt_cache_options.comparison_response_id", "diagnostics",
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
			if keeps := strings.Contains(e.Message, "have the provider keep") || strings.Contains(e.Message, "has the provider keep"); s.header == "" && keeps == refers[q.Stores] {
				t.Errorf("%s: %s", name, e.Message)
			}
			if row.Shared && q.Kept == "" && row.Field != "container" { // of that, some is nobody's
				t.Errorf("%s: %s would be used by whoever shares the account", name, s.field)
			}
			if q = scan(s.path, s.beside); q.Kept != "" || StorageRefusal(q.Endpoint, &q, http.Header{"Anthropic-Beta": {"interleaved-thinking-2025-05-14,context-1m-2025-08-07", ""}}) != nil {
				t.Errorf("%s: %s is refused for %s", name, s.beside, q.Stores)
			}
		}
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
		{"/v1/embeddings", `{"model":"m","store":true}`, `{"model":"m","store":true}`},
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
			if ep := served(t, row.Where); row.Field != "store" || fieldsOf(ep)&fStore == 0 {
				t.Errorf("%s %s: nothing forces it off", row.Where, row.Field)
			}
		}
		if row.Reason == "" || row.Source != "" && !strings.HasPrefix(row.Source, "https://") || row.Action.String() == "none" {
			t.Errorf("%+v", row)
		}
	}
	if forced != 2 {
		t.Errorf("%d rows force off", forced)
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

// TestEveryRewriteIsListed: what the code edits and what Rewrites says, side by side.
func TestEveryRewriteIsListed(t *testing.T) {
	var got []string
	for _, r := range Rewrites() {
		got = append(got, fmt.Sprintf("%s %s %s", r.Dialect, r.Where, r.Field))
	}
	want := []string{
		"openai request model", "anthropic request model", "openai request the form's part model",
		"openai request stream_options.include_usage", "openai answer the chunk with empty choices and a usage object",
		"openai request store", "openai request store",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q", got)
	}
}
