package dialect

import (
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
}

func TestReadAnswer(t *testing.T) {
	const (
		chat, text, responses, messages = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
		sound, images                   = "/v1/audio/transcriptions", "/v1/images/generations"
	)
	for _, c := range []struct {
		path, kind, body string
		want             Answer
		ok               bool
	}{
		{chat, "", `{"choices":[{"finish_reason":"stop","message":{"content":"hi","refusal":null}}],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2,"cache_write_tokens":1}}}`, Answer{Usage: Usage{Input: 7, Output: 3, CacheRead: 2, CacheWrite: 1, Final: true}}, true},
		{chat, "", `{"choices":[{"finish_reason":"content_filter"}]}`, Answer{Refused: true}, true},
		{chat, "", `{"choices":[{"message":{"refusal":"I cannot"}}]}`, Answer{Refused: true}, true},
		{chat, "", `{"choices":[{"message":{"refusal":""}}]}`, Answer{}, true},
		{chat, "", `{"choices":[{"content_filter_results":{"hate":{"filtered":false},"violence":{"filtered":true,"severity":"high"}}}]}`, Answer{Refused: true}, true},
		{chat, "", `{"choices":[{"content_filter_results":{"error":{"code":"content_filter_error","message":"The contents are not filtered"}}}]}`, Answer{}, true},
		{chat, "", `{"error":null,"choices":[]}`, Answer{}, true},
		{chat, "", `{"error":{"message":"x"}}`, Answer{}, false},
		{chat, "", `{"error":{"code":"content_filter"}}`, Answer{Refused: true}, true},
		{chat, "", `{"choices":[{"message":{"content":"ha`, Answer{}, false},
		{chat, "", `{"choices":[]} x`, Answer{}, false},
		{chat, "", "{\"choices\":[\"\xff\"]}", Answer{}, false},
		{chat, "text/html", `<html>`, Answer{}, false},
		{chat, "", `{"usage":{"prompt_tokens":-1,"completion_tokens":1e99}}`, Answer{}, true},
		{text, "", `{"choices":[{"text":"x","finish_reason":"content_filter"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}`, Answer{Usage: Usage{Input: 1, Output: 2, Final: true}, Refused: true}, true},
		{responses, "", `{"status":"completed","error":null,"output":[{"type":"reasoning","content":null},{"type":"message","content":[{"type":"output_text","text":"refusal"}]}],"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":4,"cache_write_tokens":1},"output_tokens":6}}`, Answer{Usage: Usage{Input: 5, Output: 6, CacheRead: 4, CacheWrite: 1, Final: true}}, true},
		{responses, "", `{"status":"completed","output":[{"type":"message","content":[{"type":"refusal","refusal":"no"}]}]}`, Answer{Refused: true}, true},
		{responses, "", `{"status":"incomplete","incomplete_details":{"reason":"content_filter"},"output":[]}`, Answer{Refused: true}, true},
		{responses, "", `{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"output":[]}`, Answer{}, true},
		{responses, "", `{"status":"failed","error":{"code":"server_error","message":"x"}}`, Answer{}, false},
		{responses, "", `{"status":"failed","error":{"code":"image_content_policy_violation","message":"x"}}`, Answer{Refused: true}, true},
		{responses, "", `{"status":"failed","error":null}`, Answer{}, false},
		// What thinking cost is beside the completion at xAI; the total has it.
		{chat, "", `{"choices":[],"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"completion_tokens_details":{"reasoning_tokens":94}}}`, Answer{Usage: Usage{Input: 32, Output: 103, Final: true}}, true},
		{chat, "", `{"choices":[],"usage":{"total_tokens":81,"completion_tokens":0,"prompt_tokens":21,"completion_tokens_details":{"reasoning_tokens":60}}}`, Answer{Usage: Usage{Input: 21, Output: 60, Final: true}}, true},
		{chat, "", `{"choices":[],"usage":{"prompt_tokens":32,"completion_tokens":103,"total_tokens":135,"completion_tokens_details":{"reasoning_tokens":94}}}`, Answer{Usage: Usage{Input: 32, Output: 103, Final: true}}, true},
		{chat, "", `{"choices":[],"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":900,"completion_tokens_details":{"reasoning_tokens":94}}}`, Answer{Usage: Usage{Input: 32, Output: 9, Final: true}}, true},
		{chat, "", `{"choices":[],"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135}}`, Answer{Usage: Usage{Input: 32, Output: 9, Final: true}}, true},
		{chat, "", `{"choices":[],"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"completion_tokens_details":{"reasoning_tokens":-94}}}`, Answer{Usage: Usage{Input: 32, Output: 9, Final: true}}, true},
		{chat, "", `{"choices":[],"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":"135","completion_tokens_details":null}}`, Answer{Usage: Usage{Input: 32, Output: 9, Final: true}}, true},
		{"/v1/embeddings", "", `{"data":[{"embedding":[0.1,-2e-3]}],"usage":{"prompt_tokens":8,"total_tokens":8}}`, Answer{Usage: Usage{Input: 8, Final: true}}, true},
		{"/v1/messages/count_tokens", "", `{"input_tokens":12}`, Answer{}, true},
		{images, "", `{"data":[{"b64_json":"AA=="}],"usage":{"input_tokens":3,"output_tokens":9,"input_tokens_details":{"text_tokens":3}}}`, Answer{Usage: Usage{Input: 3, Output: 9, Final: true}}, true},
		{sound, "application/json; charset=utf-8", `{"text":"hi","usage":{"type":"tokens","input_tokens":3,"output_tokens":9,"input_token_details":{}}}`, Answer{Usage: Usage{Input: 3, Output: 9, Final: true}}, true},
		{sound, "application/json", `{"text":"hi","usage":{"type":"duration","seconds":9}}`, Answer{}, true},
		{sound, "application/json", `{"error":{"code":"x"}}`, Answer{}, false},
		{sound, "text/plain; charset=utf-8", "1\n00:00 --> 00:01\nhi", Answer{}, true},
		{"/v1/audio/speech", "audio/mpeg", "\xff\xfb", Answer{}, true},
		{"/v1/audio/speech", "audio/mpeg", "", Answer{}, false},
		{messages, "", `{"type":"message","stop_reason":"end_turn","usage":{"input_tokens":7,"output_tokens":3,"cache_read_input_tokens":4,"cache_creation_input_tokens":5}}`, Answer{Usage: Usage{Input: 7, Output: 3, CacheRead: 4, CacheWrite: 5, Final: true}}, true},
		{messages, "", `{"usage":{"input_tokens":7,"output_tokens":3,"cache_read_input_tokens":null,"input_tokens":null}}`, Answer{Usage: Usage{Input: 7, Output: 3, Final: true}}, true},
		{messages, "", `{"stop_reason":"refusal"}`, Answer{Refused: true}, true},
		{chat, "", `{"stop_reason":"refusal"}`, Answer{}, true},
		{messages, "", `{"type":"error","error":{"type":"overloaded_error"}}`, Answer{}, false},
	} {
		got, ok := ReadAnswer(endpoint(t, c.path), c.kind, []byte(c.body))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s %s: %+v %t", c.path, c.body, got, ok)
		}
	}
}

// TestDeepAnswers: what a model was asked to nest is not taken for what its
// provider got wrong.
func TestDeepAnswers(t *testing.T) {
	for _, c := range []struct {
		input string
		deep  bool
	}{
		{strings.Repeat("[", 100) + strings.Repeat("]", 100), false},
		{strings.Repeat("[", 126) + strings.Repeat("]", 126), true},
		{strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000), true},
		{strings.Repeat("[", 126), true},
		{strings.Repeat("[", 100), false},
	} {
		body := `{"type":"message","content":[{"type":"tool_use","input":` + c.input + `}],"stop_reason":"tool_use"}`
		a, ok := ReadAnswer(endpoint(t, "/v1/messages"), "application/json", []byte(body))
		if a.Deep != c.deep || ok != (!c.deep && strings.HasSuffix(c.input, "]")) {
			t.Errorf("%d deep: %+v %t", strings.Count(c.input, "["), a, ok)
		}
	}
}

func TestReadProblem(t *testing.T) {
	for body, want := range map[string]Problem{
		`{"error":{"code":"content_filter","message":"no"}}`:                          {Refused: true},
		`{"error":{"code":"x","innererror":{"code":"ResponsibleAIPolicyViolation"}}}`: {Refused: true},
		`{"error":{"message":"The response was filtered","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"hate":{"filtered":true}}}}}`: {Refused: true},
		`{"error":{"code":400,"message":"The response was filtered due to the prompt triggering Azure OpenAI's content management policy."}}`:                                                                                         {Refused: true, Status: 400},
		`{"error":{"code":null,"type":"invalid_request_error","message":"Your request was rejected as a result of our safety system."}}`:                                                                                              {Refused: true, Status: 400},
		`{"type":"error","error":{"type":"invalid_request_error","message":"Output blocked by content filtering policy"}}`:                                                                                                            {Refused: true, Status: 400},
		`{"error":{"code":"bio_policy"}}`:                                                                                    {Refused: true},
		`{"error":{"type":"image_generation_user_error","code":"moderation_blocked"}}`:                                       {Refused: true, Status: 400},
		`{"error":{"code":"context_length_exceeded","type":"invalid_request_error"}}`:                                        {ContextLength: true, Status: 400},
		`{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9>8"}}`:                      {ContextLength: true, Status: 400},
		`{"type":"error","error":{"message":"input length and ` + "`max_tokens`" + ` exceed context limit: 9 + 8 > 10"}}`:    {ContextLength: true},
		`{"object":"error","message":"This model's maximum context length is 8 tokens","type":"BadRequestError","code":400}`: {ContextLength: true, Status: 400},
		`{"error":{"code":400,"message":"x","type":"exceed_context_size_error"}}`:                                            {ContextLength: true, Status: 400},
		`{"error":{"code":"image_too_large","message":"x"}}`:                                                                 {Status: 400},
		`{"code":"rate_limit_exceeded","type":"invalid_request_error"}`:                                                      {Status: 429},
		`{"error":{"type":"tokens","code":"odd","status":400}}`:                                                              {},
		`{"error":{"type":"overloaded_error","message":"x"},"type":"error"}`:                                                 {Status: 529},
		`{"error":{"code":999}}`:                                                         {},
		`{"error":{"code":503.5,"type":"overloaded_error"}}`:                             {Status: 529},
		`{"error":{"type":"billing_error","message":"x"}}`:                               {Account: true, Status: 402},
		`{"error":{"code":"billing_hard_limit_reached","type":"invalid_request_error"}}`: {Account: true, Status: 400},
		`{"error":{"type":"invalid_request_error","message":"You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."}}`: {Account: true, Status: 400},
		`{"error":{"type":"invalid_request_error","message":"This organization has been disabled."}}`:                                                                 {Account: true, Status: 400},
		`{"error":{"message":"Your organization must be verified to stream this model. Please go to: https://platform.openai.com/settings/organization/general and click on Verify Organization. If you just verified, it can take up to 15 minutes for access to propagate.","type":"invalid_request_error","param":"stream","code":"unsupported_value"}}`: {Account: true, Status: 400},
		`{"error":{"message":"Your credit balance is too low to access : Extra inputs are not permitted"}}`: {},
		`{"error":{"message":"x: This organization has been disabled."}}`:                                   {},
		`{"error":{"code":"invalid_value"}}`:                                                                {},
		`{"type":"error","error":{"type":"api_error"}}`:                                                     {},
		// xAI, with status 403; its envelope is flat, and names our account behind the text.
		`{"code":"The caller does not have permission to execute the specified operation","error":"Content violates usage guidelines. Team: t, API key ID: k, Model: grok-4, Failed check: SAFETY_CHECK_TYPE_BIO"}`: {Refused: true},
		`{"error":{"message":"Content Exists Risk","type":"invalid_request_error","param":null,"code":"invalid_request_error"}}`:                                                                                    {Refused: true, Status: 400},
		`{"error":{"message":"<400> InternalError.Algo.DataInspectionFailed: Input text data may contain inappropriate content.","code":"data_inspection_failed"}}`:                                                 {Refused: true},
		`{"code":"permission-denied","error":"Access to the chat endpoint is denied"}`:                                                                                                                              {},
		// OpenRouter, with status 403.
		`{"error":{"code":403,"message":"Input was flagged","metadata":{"reasons":["violence"],"flagged_input":"x","provider_name":"p","model_slug":"m"}}}`: {Refused: true, Status: 403},
		`{"error":{"code":403,"message":"Key limit exceeded","metadata":{"reasons":[],"flagged_input":null}}}`:                                              {Status: 403},
		`{"error":{"code":502,"message":"Provider returned error","metadata":{"provider_name":"p","raw":"x"}}}`:                                             {Status: 502},
		`{"error":"the prompt is too long for the context"}`:                                                                                                {ContextLength: true},
		`{"error":"text"}`:                   {},
		`[]`:                                 {},
		`not json`:                           {},
		`{"error":{"code":"content_filter"}`: {},
	} {
		if got := ReadProblem([]byte(body)); got != want {
			t.Errorf("%s: %+v", body, got)
		}
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
