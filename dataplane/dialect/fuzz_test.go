package dialect

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"ringmain/dataplane/dialect/jsontext"
	"ringmain/internal/testkit/jsonkit"
)

// FuzzAnswers: no answer of an upstream's makes the reader fail, and what it
// takes for an answer says the same when it is decoded.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{
		`{"choices":[{"message":{"refusal":"no"}}],"usage":{"prompt_tokens":1,"completion_tokens":-1}}`,
		`{"error":{"code":"content_filter","innererror":{"code":1}}}`,
		`{"status":"failed","error":{"code":"bio_policy"}}`, `{"incomplete_details":{"reason":"content_filter"}}`,
		`{"output":[{"content":[{"type":"refusal"}]}],"usage":{"input_tokens":3,"output_tokens":4,"input_tokens_details":{"cached_tokens":1}}}`,
		`{"usage":{"input_tokens":1e1,"output_tokens":2,"iterations":[{"type":"compaction","input_tokens":100},{"type":"message","input_tokens":1}]}}`,
		`{"stop_reason":"refusal","usage":{"input_tokens":3,"cache_read_input_tokens":4}}`,
		`{"choices":[{"finish_reason":"content_filter","content_filter_results":{"hate":{"filtered":true}}}]}`, `{"input_tokens":5}`, "sound",
	} {
		for i := range answering() {
			f.Add([]byte(s), uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, which uint8) {
		ReadProblem(body)
		ep := answering()[int(which)%len(answering())]
		if a, ok := ReadAnswer(ep, "audio/mpeg", body); ep.Binary && (a != Answer{} || ok != (len(body) > 0)) {
			t.Fatalf("%q as sound: %+v %t", body, a, ok)
		}
		a, ok := ReadAnswer(ep, "application/json", body)
		m := jsonkit.Decode(body)
		if ok && (!jsonkit.Valid(body, jsontext.MaxDepth) || m == nil) {
			t.Fatalf("%q is taken for an answer", body)
		}
		if m == nil || !jsonkit.Valid(body, jsontext.MaxDepth) || jsonkit.Duplicates(body) || twoForms(m["usage"]) {
			return
		}
		if want, good := naiveAnswer(ep, m); ok != good || ok && a != want {
			t.Fatalf("%s %q: %+v %t, want %+v %t", ep.Path, body, a, ok, want, good)
		}
	})
}

// naiveAnswer is the twin of ReadAnswer.
func naiveAnswer(ep *Endpoint, m map[string]any) (a Answer, ok bool) {
	object := func(v any) map[string]any { o, _ := v.(map[string]any); return o }
	list := func(v any) (all []map[string]any) {
		l, _ := v.([]any)
		for _, one := range l {
			all = append(all, object(one))
		}
		return all
	}
	var sum Told
	count := func(v any, what ...Told) int64 {
		if v == nil {
			return 0
		}
		n, number := v.(json.Number)
		i, err := n.Int64()
		if f, bad := n.Float64(); err != nil && bad == nil && f == math.Trunc(f) && math.Abs(f) <= 1<<53 {
			i, err = int64(f), nil
		}
		if !number || err != nil || i < 0 || i > maxTokens {
			sum |= toldOdd
			return 0
		}
		for _, w := range what {
			sum |= w
		}
		return i
	}
	failure := object(m["error"])
	code, _ := failure["code"].(string)
	kind, _ := failure["type"].(string)
	declined := IsRefusalCode([]byte(code)) || IsRefusalCode([]byte(kind))
	if (m["error"] != nil || m["status"] == "failed") && !declined {
		return Answer{}, false
	}
	a.Refused = declined || object(m["incomplete_details"])["reason"] == "content_filter" || ep.Dialect == Anthropic && m["stop_reason"] == "refusal"
	for _, choice := range list(m["choices"]) {
		refusal, _ := object(choice["message"])["refusal"].(string)
		a.Refused = a.Refused || choice["finish_reason"] == "content_filter" || refusal != ""
		for _, results := range []any{choice["content_filter_results"], choice["content_filter_result"]} {
			for _, r := range object(results) {
				a.Refused = a.Refused || object(r)["filtered"] == true
			}
		}
	}
	for _, item := range list(m["output"]) {
		for _, part := range list(item["content"]) {
			a.Refused = a.Refused || part["type"] == "refusal"
		}
	}
	usage := object(m["usage"])
	if ep.Usage == UsageNone || usage == nil {
		return a, true
	}
	either := func(a, b string, what Told) int64 { return count(usage[a], what) + count(usage[b], what) } // both: see twoForms
	var u Usage
	if ep.Dialect == Anthropic {
		u.Input, u.Output = count(usage["input_tokens"], toldInput), count(usage["output_tokens"], toldOutput)
		u.CacheRead, u.CacheWrite = count(usage["cache_read_input_tokens"]), count(usage["cache_creation_input_tokens"])
		for _, one := range list(usage["iterations"]) {
			b := besides{count(one["input_tokens"]), count(one["output_tokens"]), count(one["cache_read_input_tokens"]), count(one["cache_creation_input_tokens"])}
			if one["type"] == "compaction" || one["type"] == "advisor_message" {
				u.beside.input, u.beside.output = u.beside.input+b.input, u.beside.output+b.output
				u.beside.cacheRead, u.beside.cacheWrite = u.beside.cacheRead+b.cacheRead, u.beside.cacheWrite+b.cacheWrite
			}
		}
		u.add(u.beside, 1)
	} else {
		u.Input, u.Output = either("input_tokens", "prompt_tokens", toldInput), either("output_tokens", "completion_tokens", toldOutput)
		for _, name := range []string{"prompt_tokens_details", "input_tokens_details"} {
			u.CacheRead += count(object(usage[name])["cached_tokens"])
			u.CacheWrite += count(object(usage[name])["cache_write_tokens"])
		}
	}
	if ep.Dialect != Anthropic && sum == toldInput|toldOutput {
		whole := func(v any) int64 { // of what does not spoil an account
			before := sum
			defer func() { sum = before }()
			return count(v)
		}
		thought := whole(object(usage["completion_tokens_details"])["reasoning_tokens"]) + whole(object(usage["output_tokens_details"])["reasoning_tokens"])
		if total := whole(usage["total_tokens"]); thought > 0 && total == u.Input+u.Output+thought {
			u.Output += thought
		}
	}
	u.Final = sum.Closes(ep.Streams && !ep.Media) && u.Costs()
	a.Usage = u
	return a, true
}

// twoForms reports whether a usage states a figure under both of its names: the
// later one holds, which the twin cannot know.
func twoForms(v any) bool {
	u, _ := v.(map[string]any)
	for a, b := range map[string]string{"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens", "input_tokens_details": "prompt_tokens_details", "output_tokens_details": "completion_tokens_details"} {
		if u[a] != nil && u[b] != nil {
			return true
		}
	}
	return false
}

// FuzzErrorBodies: whatever a message holds, clients of both dialects read it
// as an error; and what we wrote ourselves is neither a
// refusal nor too long, but where its code says so.
func FuzzErrorBodies(f *testing.F) {
	f.Add("say \"so\"\n\x01\xff", "model", "req_1", uint8(0))
	f.Add("data: [DONE]\n\n", "", "\r\n", uint8(5))
	f.Fuzz(func(t *testing.T, message, param, id string, which uint8) {
		code := Codes()[int(which)%len(Codes())]
		e := &Error{Code: code, Message: message, Param: param}
		clean := strings.ToValidUTF8(message, "\ufffd")
		for _, d := range []Dialect{OpenAI, Anthropic} {
			body := e.AppendBody([]byte("x"), d, id)[1:]
			var got struct {
				Error struct {
					Message, Type string
					Code, Param   *string
				}
			}
			if err := json.Unmarshal(body, &got); err != nil || !jsontext.Valid(body) {
				t.Fatalf("%q: %v", body, err)
			}
			if !sameRunes(got.Error.Message, clean) || got.Error.Type != code.Type(d) || d == OpenAI && *got.Error.Code != string(code) {
				t.Fatalf("%q says %+v", body, got.Error)
			}
			if p := ReadProblem(body); p.ContextLength != (d == OpenAI && code == ContextLengthExceeded || contains([]byte(clean), lengthTexts)) || p.Refused != contains([]byte(clean), refusalTexts) {
				t.Fatalf("%q reads as %+v", body, p)
			}
		}
	})
}

// sameRunes compares but for how many replacement characters stand for bytes
// that are not UTF-8.
func sameRunes(a, b string) bool {
	drop := func(s string) string { return strings.ReplaceAll(s, string(utf8.RuneError), "") }
	return drop(a) == drop(b)
}

// answering are the endpoints that are served.
func answering() (all []*Endpoint) {
	for _, ep := range Endpoints() {
		if !ep.Stores {
			all = append(all, ep)
		}
	}
	return all
}
