package request

import (
	"net/http"
	"strings"
	"testing"

	"ringmain/dataplane/dialect"
)

func scanned(t *testing.T, path, fields string) (Request, *dialect.Error) {
	t.Helper()
	return Scan(served(t, path), "application/json", []byte(`{"model":"m",`+fields+`}`))
}

// TestSecondModel: the model that policy, the plan and the record know must be
// the only one that answers.
func TestSecondModel(t *testing.T) {
	const chat, responses, messages = "/v1/chat/completions", "/v1/responses", "/v1/messages"
	for _, c := range []struct {
		path, fields string
		param        string // "" = accepted
	}{
		{messages, `"fallbacks":[{"model":"dearer"}]`, "fallbacks"},
		{messages, `"fallbacks":"default"`, "fallbacks"},
		{messages, `"Fallbacks":[]`, "fallbacks"},
		{messages, `"fallbacks":null`, ""},
		{chat, `"models":["dearer","dearest"]`, "models"},
		{chat, `"fallbacks":["dearer"]`, "fallbacks"},
		{"/v1/completions", `"models":["dearer"]`, "models"},
		{chat, `"providerOptions":{"gateway":{"models":["dearer"]}}`, "models"},
		{chat, `"providerOptions":{"gateway":{"only":["dearer"],"models":[]}}`, ""},
		{messages, `"tools":[{"type":"advisor_20260301","name":"advisor","model":"dearer"}]`, "tools"},
		{messages, `"tools":[{"Model":"dearer","type":"advisor_20260301"}]`, "tools"},
		{messages, `"tools":[{"m\u006fdel":"dearer","type":"advisor_20260301"}]`, "tools"},
		{messages, `"messages":[{"content":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":{"type":"advisor_20260301","model":"dearer"}}}]}]`, "tools"},
		{responses, `"tools":[{"type":"namespace","tools":[{"type":"image_generation","model":"dearer"}]}]`, "tools"},
		{responses, `"input":[{"type":"additional_tools","tools":[{"type":"image_generation","model":"dearer"}]}]`, "tools"},
		{responses, `"tools":[{"type":"image_generation","model":null}]`, ""},
		{responses, `"tools":[{"type":"function","name":"f","parameters":{"properties":{"model":{"type":"string"}}}}]`, ""},
		{messages, `"tools":[{"name":"f","input_schema":{"properties":{"model":{}}}}]`, ""},
		{messages, `"messages":[{"content":[{"type":"tool_use","input":{"model":"x","fallbacks":[]}}]}]`, ""},
		{messages, `"messages":[{"content":[{"type":"fallback","from":{"model":"a"},"to":{"model":"b"}}]}]`, ""},
	} {
		_, e := scanned(t, c.path, c.fields)
		if c.param == "" && e != nil || c.param != "" && (e == nil || e.Param != c.param || e.Code.Status() != http.StatusBadRequest) {
			t.Errorf("%s %s: %v", c.path, c.fields, e)
		}
	}
}

// TestKeptObjects: what a request names in the provider's account, or leaves
// there to be named, by whatever way the provider reads it.
func TestKeptObjects(t *testing.T) {
	const chat, responses, messages = "/v1/chat/completions", "/v1/responses", "/v1/messages"
	for _, c := range []struct{ path, fields, want string }{
		{responses, `"previous_response_id":"resp_1"`, "previous_response_id"},
		{responses, `"previous_response_id":null`, ""},
		{responses, `"conversation":"conv_1"`, "conversation"},
		{responses, `"background":true`, "background"},
		{responses, `"prompt":{"id":"pmpt_1"}`, "prompt"},
		{responses, `"prompt":null`, ""},
		{responses, `"input":[{"type":"item_reference","id":"msg_1"}]`, "item_reference"},
		{responses, `"input":[{"id":"msg_1"}]`, "item_reference"},
		{responses, `"input":[{"id":"msg_1","type":null}]`, "item_reference"},
		{responses, `"input":[{"Id":"msg_1"}]`, "item_reference"},
		{responses, `"input":[{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":null}]`, "item_reference"},
		{responses, `"input":[{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"gAAA"}]`, ""},
		{responses, `"input":[{"type":"reasoning","summary":[]}]`, ""},
		{responses, `"input":[{"type":"image_generation_call","id":"ig_1"}]`, "item_reference"},
		{responses, `"input":[{"type":"image_generation_call","id":"ig_1","result":"aGk="}]`, ""},
		{responses, `"input":[{"type":"message","id":"msg_1","role":"assistant","content":[]},{"role":"user","content":"id"}]`, ""},
		{responses, `"input":[{"type":"function_call","id":"fc_1","call_id":"c","name":"f","arguments":"{}"}]`, ""},
		{responses, `"input":[{"type":"function_call_output","call_id":"c","output":[{"type":"input_file","file_id":"file_1"}]}]`, "file_id"},
		{responses, `"input":[{"type":"code_interpreter_call","id":"ci_1","container_id":"cntr_1"}]`, "file_id"},
		{responses, `"tools":[{"type":"code_interpreter","container":"cntr_1"}]`, "file_id"},
		{responses, `"tools":[{"type":"code_interpreter","container":{"type":"auto"}}]`, ""},
		{responses, `"tools":[{"type":"code_interpreter","container":{"type":"auto","file_ids":["file_1"]}}]`, "file_id"},
		{responses, `"tools":[{"type":"file_search","vector_store_ids":["vs_1"]}]`, "file_id"},
		{responses, `"tools":[{"type":"shell","environment":{"type":"container_reference","container_id":"cntr_1"}}]`, "file_id"},
		{responses, `"tools":[{"type":"shell","environment":{"type":"container_auto","skills":[{"type":"skill_reference","skill_id":"skill_1"}]}}]`, "skill_id"},
		{responses, `"tools":[{"type":"mcp","tunnel_id":"tun_1"}]`, "tunnel_id"},
		{responses, `"tools":[{"type":"mcp","server_url":"https://x"}]`, ""},
		{responses, `"prompt_cache_options":{"comparison_response_id":"resp_1"}`, "prompt_cache_options.comparison_response_id"},
		{chat, `"messages":[{"role":"assistant","audio":{"id":"audio_1"}}]`, "audio.id"},
		{chat, `"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"","format":"wav"}}]}]`, ""},
		{chat, `"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file_1"}}]}]`, "file_id"},
		{chat, `"audio":{"voice":{"id":"voice_1"},"format":"wav"}`, "voice.id"},
		{chat, `"audio":{"voice":"alloy","format":"wav"}`, ""},
		{"/v1/audio/speech", `"voice":{"id":"voice_1"}`, "voice.id"},
		{"/v1/audio/speech", `"voice":"alloy"`, ""},
		{chat, `"deferred":true`, "deferred"},
		{chat, `"deferred":false`, ""},
		{chat, `"data_sources":[{"type":"azure_search","parameters":{"authentication":{"type":"system_assigned_managed_identity"}}}]`, "data_sources"},
		{chat, `"data_sources":null`, ""},
		{chat, `"extra_body":{"google":{"cached_content":"cachedContents/1"}}`, "cached_content"},
		{chat, `"extra_body":{"google":{"thinking_config":{}}}`, ""},
		{messages, `"container":"container_1"`, "container"},
		{messages, `"container":{"id":"container_1"}`, "container"},
		{messages, `"container":{"id":null,"skills":[{"type":"anthropic","skill_id":"pdf"}]}`, ""},
		{messages, `"container":{"skills":[{"type":"custom","skill_id":"skill_1"}]}`, "skill_id"},
		{messages, `"container":{"skills":[{"skill_id":"skill_1"}]}`, "skill_id"},
		{messages, `"messages":[{"content":[{"type":"container_upload","file_id":"file_1"}]}]`, "file_id"},
		{messages, `"messages":[{"content":[{"type":"tool_use","id":"toolu_1","input":{"file_id":"f"}},{"type":"server_tool_use","id":"srvtoolu_1","name":"web_search","input":{}}]}]`, ""},
		{messages, `"diagnostics":{"previous_message_id":"msg_1"}`, "diagnostics"},
		{messages, `"diagnostics":{"previous_message_id":null}`, ""},
	} {
		q, e := scanned(t, c.path, c.fields)
		if e != nil {
			t.Errorf("%s %s: %v", c.path, c.fields, e)
			continue
		}
		if q.Kept != c.want {
			t.Errorf("%s %s: kept %q, want %q", c.path, c.fields, q.Kept, c.want)
		}
		shared := SharedRefusal(&q)
		if (shared != nil) != (c.want != "") || shared != nil && shared.Code != dialect.StorageNotAllowed {
			t.Errorf("%s %s: %v", c.path, c.fields, shared)
		}
		if c.want != "" && StorageRefusal(q.Endpoint, &q, nil) == nil {
			t.Errorf("%s %s passes without retention", c.path, c.fields)
		}
	}
}

// TestFormCharset: a provider that decodes a form by the charset of its type
// would find another model behind other names. Starlette does.
func TestFormCharset(t *testing.T) {
	form := []byte(formOf(textPart("model", "whisper"), textPart("+AG0-odel", "dearer")))
	for kind, ok := range map[string]bool{
		formType + "; charset=utf-7":    false,
		formType + "; charset=utf-16":   false,
		formType + "; charset=cp037":    false,
		formType + "; charset=":         false,
		formType + "; charset=utf-8":    true,
		formType + "; charset=US-ASCII": true,
		formType + "; _charset_=utf-7":  false,
		formType + "; profile=x":        false,
		formType:                        true,
	} {
		if _, e := Scan(served(t, "/v1/audio/transcriptions"), kind, form); (e == nil) != ok {
			t.Errorf("%s: %v", kind, e)
		}
	}
}

// TestRefusalsHoldNoContent: whatever is wrong with a body, and wherever its
// content stands, what is said about it is ours.
func TestRefusalsHoldNoContent(t *testing.T) {
	const marker = "quokka7be1"
	long := strings.Repeat(marker, 30)
	bodies := []string{
		marker, `{"` + marker + `"`, `{"model":"` + marker, `{"model":"` + long + `"}`, `{"model":{"` + marker + `":1}}`, `{"model":"m","model":"` + marker + `"}`,
		`{"MODEL":"` + marker + `"}`, `{"model":"m","stream":"` + marker + `"}`, `{"model":"m","stream":true,"stream_options":"` + marker + `"}`,
		`{"model":"m","stream_options":{"include_usage":"` + marker + `"}}`, `{"model":"m","stream_options":{"Include_Usage":"` + marker + `"}}`,
		`{"model":"m","fallbacks":["` + marker + `"]}`, `{"model":"m","models":"` + marker + `"}`, `{"model":"m","tools":[{"type":"` + marker + `","model":"` + marker + `"}]}`,
		`{"model":"m","tools":[{"type":"` + marker + `"}]}`, `{"model":"m","tools":"` + marker + `"}`, `{"model":"m","previous_response_id":"` + marker + `"}`,
		`{"model":"m","input":[{"id":"` + marker + `"}]}`, `{"model":"m","messages":[{"` + marker + `":{"file_id":"` + marker + `"}}]}`,
		`{"model":"m","container":{"skills":[{"type":"` + marker + `","skill_id":"` + marker + `"}]}}`, `{"model":"m","cache_control":{"ttl":"` + marker + `"}}`,
		`{"model":"m","prompt_cache_retention":"` + marker + `"}`, `{"model":"m","background":"` + marker + `"}`, `{"model":"m","response_format":"` + marker + `"}`,
		`{"model":"m","audio":{"voice":{"id":"` + marker + `"}}}`, `{"model":"m"}` + marker, `{"model":"m","x":` + strings.Repeat(`{"`+marker+`":`, 200),
		formOf(textPart("model", marker), textPart("model", marker)), formOf(textPart("model", "a\n"+marker)), formOf(textPart("Model", marker)),
		formOf(textPart(marker, marker)), formOf(textPart("model", "m"), textPart("stream", marker)), formOf(marker + ": x\r\n\r\n" + marker),
		formOf("Content-Disposition: " + marker + "\r\n\r\n" + marker), "--b-1" + marker, formOf(textPart("_charset_", marker)),
	}
	header := http.Header{"Anthropic-Beta": {marker}, "Openai-Beta": {marker}}
	for _, ep := range jsonEndpoints() {
		for _, body := range bodies {
			for _, kind := range []string{"application/json", formType, formType + "; " + marker + "=1", "multipart/form-data; boundary=" + marker} {
				q, e := Scan(ep, kind, []byte(body))
				for _, e := range []*dialect.Error{e, StorageRefusal(ep, &q, nil), StorageRefusal(ep, &q, header), SharedRefusal(&q)} {
					if e == nil {
						continue
					}
					if text := e.Error() + e.Param + string(e.AppendBody(nil, ep.Dialect, "req")); strings.Contains(text, marker) {
						t.Fatalf("%s %s: %s", ep.Path, kind, text)
					}
				}
				if s := q.Stores + q.Kept; strings.Contains(s, marker) {
					t.Fatalf("%s: %s", ep.Path, s)
				}
			}
		}
	}
}
