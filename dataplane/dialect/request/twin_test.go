package request

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
	"ringmain/internal/testkit/jsonkit"
)

// The twin: what Scan must say, by decoding everything.
type twin struct {
	stores, provider bool
	d                dialect.Dialect
}

var (
	clientTools = map[dialect.Dialect]*regexp.Regexp{
		dialect.OpenAI:    regexp.MustCompile(`^(function|custom|local_shell|apply_patch|computer|computer_use_preview|namespace)$`),
		dialect.Anthropic: regexp.MustCompile(`^(custom|(bash|text_editor|computer|computer_toolset|browser_toolset|memory)_\d{8})$`),
	}
	harmlessTools = map[dialect.Dialect]*regexp.Regexp{
		dialect.OpenAI:    regexp.MustCompile(`^(web_search(_2025_08_26)?|web_search_preview(_2025_03_11)?|image_generation)$`),
		dialect.Anthropic: regexp.MustCompile(`^(web_search_20250305|web_fetch_20250910|advisor_\d{8}|tool_search_tool_(bm25|regex)(_\d{8})?)$`),
	}
)

func (w *twin) tools(v any) {
	switch v := v.(type) {
	case nil:
	case []any:
		for _, one := range v {
			w.tool(one)
		}
	default:
		w.stores, w.provider = true, true
	}
}

func (w *twin) tool(v any) {
	m, ok := v.(map[string]any)
	if !ok {
		w.stores, w.provider = true, true
		return
	}
	typed := false
	for k, x := range m {
		switch {
		case strings.EqualFold(k, "type") && x != nil:
			typed = true
			name, _ := x.(string)
			environment, _ := m["environment"].(map[string]any)
			switch {
			case clientTools[w.d].MatchString(name):
			case harmlessTools[w.d].MatchString(name):
				w.provider = true
			case w.d == dialect.OpenAI && name == "tool_search":
				w.provider = w.provider || m["execution"] != "client"
			case w.d == dialect.OpenAI && name == "shell" && environment["type"] == "local":
			default:
				w.stores, w.provider = true, true
			}
		case strings.EqualFold(k, "type"), strings.EqualFold(k, "execution"):
		case strings.EqualFold(k, "environment"):
			if e, ok := x.(map[string]any); ok {
				for k, x := range e {
					if !strings.EqualFold(k, "type") {
						w.member(k, x)
					}
				}
			}
		default:
			w.member(k, x)
		}
	}
	if !typed && w.d == dialect.OpenAI {
		w.stores, w.provider = true, true
	}
}

func (w *twin) walk(v any) {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			w.walk(one)
		}
	case map[string]any:
		for k, x := range v {
			w.member(k, x)
		}
	}
}

func (w *twin) member(k string, x any) {
	among := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(k, n) })
	}
	switch {
	case among("file_id", "file_ids", "vector_store_ids", "container", "container_id", "skill_id", "tunnel_id", "cached_content"):
		w.stores = w.stores || x != nil
	case among("audio", "voice"):
		w.own(x)
	case among("type"):
		w.stores = w.stores || x == "item_reference" || x == "container_upload"
	case among("cache_control", "caching"):
		w.ttl(x, "5m")
	case among("tools"):
		w.tools(x)
	case among("definition"):
		if _, ok := x.(map[string]any); ok {
			w.tool(x)
		} else {
			w.walk(x)
		}
	case among("network_policy"):
		m, _ := x.(map[string]any)
		for k, v := range m {
			if !strings.EqualFold(k, "type") {
				w.member(k, v)
			}
		}
	case slices.Contains([]string{"input", "parameters", "input_schema", "schema", "arguments", "input_examples", "metadata"}, k):
	default:
		w.walk(x)
	}
}

// own walks what may be named by its id alone.
func (w *twin) own(x any) {
	m, _ := x.(map[string]any)
	for k, v := range m {
		if strings.EqualFold(k, "id") {
			w.stores = w.stores || v != nil
		} else {
			w.member(k, v)
		}
	}
	if m == nil {
		w.walk(x)
	}
}

func (w *twin) items(x any) {
	list, ok := x.([]any)
	if !ok {
		w.walk(x)
	}
	for _, one := range list {
		m, ok := one.(map[string]any)
		if !ok {
			w.walk(one)
		}
		named, typed, carries := false, false, false
		for k, v := range m {
			some := v != nil && v != ""
			switch v := v.(type) {
			case []any:
				some = len(v) > 0
			case map[string]any:
				some = len(v) > 0
			}
			switch strings.ToLower(strings.ToUpper(k)) {
			case "id":
				named = some
			case "role":
				typed, carries = typed || some, carries || some
			case "status", "summary":
			case "type":
				_, text := v.(string)
				typed = typed || text
				w.member(k, v)
			default:
				carries = carries || some
				w.member(k, v)
			}
		}
		w.stores = w.stores || named && (!typed || !carries)
	}
}

func (w *twin) ttl(x any, allowed string) {
	m, _ := x.(map[string]any)
	for k, v := range m {
		if strings.EqualFold(k, "ttl") && v != nil && v != allowed {
			w.stores = true
		}
	}
}

// want is the twin of the flags of a Request.
func want(ep *dialect.Endpoint, m map[string]any) (stores, provider, keeps, deterministic bool) {
	w := twin{d: ep.Dialect}
	keeps = ep.KeepsUnset
	for k, x := range m {
		f, _ := fieldsOf(ep).find([]byte(k))
		switch f {
		case 0:
			w.stores = w.stores || !slices.ContainsFunc(Harmless(), func(row HarmlessFields) bool {
				return (row.Where == ep.Dialect.String() || strings.HasPrefix(ep.Path, row.Where)) && slices.Contains(strings.Fields(row.Names), k)
			})
		case fTools:
			w.tools(x)
		case fInput:
			w.items(x)
		case fVoice:
			w.own(x)
		case fPrompt:
			_, object := x.(map[string]any)
			w.stores = w.stores || object
		case fDataSources:
			w.stores = w.stores || x != nil
		case fMessages, fSystem, fImage, fImages, fMask:
			w.walk(x)
		case fExtraBody:
			extra, _ := x.(map[string]any)
			for k, v := range extra {
				google, _ := v.(map[string]any)
				for k := range google {
					w.stores = w.stores || k != "thinking_config" && !strings.EqualFold(k, "cached_content")
				}
				w.stores = w.stores || k != "google"
			}
			w.walk(x)
		case fStore:
			keeps = keeps && x == nil || x != nil && x != false
		case fWebSearch:
			w.provider = w.provider || x != nil
		case fMCP:
			w.stores, w.provider = w.stores || x != nil, w.provider || x != nil
		case fCacheControl:
			w.ttl(x, "5m")
		case fCacheOptions:
			w.ttl(x, "30m")
			options, _ := x.(map[string]any)
			for k, v := range options {
				w.stores = w.stores || strings.EqualFold(k, "comparison_response_id") && v != nil
			}
		case fRetention:
			w.stores = w.stores || x != nil && x != "in_memory" && x != "in-memory"
		case fBackground, fDeferred:
			w.stores = w.stores || x != nil && x != false
		case fResponseFormat:
			w.stores = w.stores || x != nil && x != "b64_json"
		case fPrevious, fConversation, fTransfer, fBootstrap, fSession, fProvider, fPlugins, fProviderOptions, fStorageOptions, fAudio, fContainer, fDiagnostics, fCreditToken:
			w.stores = w.stores || x != nil
		case fTemperature:
			n, ok := x.(json.Number)
			deterministic = deterministic || ok && regexp.MustCompile(`^-?0(\.0+)?([eE]|$)`).MatchString(n.String())
		case fSeed:
			n, ok := x.(json.Number)
			deterministic = deterministic || ok && regexp.MustCompile(`^-?\d+$`).MatchString(n.String())
		}
	}
	return w.stores, w.provider, keeps, deterministic
}

// wantChoices is the twin of Choices and Logprobs.
func wantChoices(ep *dialect.Endpoint, m map[string]any) (choices int, logprobs bool) {
	has := func(f fieldSet) (any, bool) {
		v := m[f.name()]
		return v, fieldsOf(ep)&f != 0 && v != nil
	}
	choices = 1
	if v, ok := has(fChoices); ok {
		n, _ := v.(json.Number)
		f, err := n.Float64()
		if choices = int(min(max(f, 0), 1<<20)); err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			choices = 0
		}
	}
	prompts, _ := has(fPrompt)
	list, _ := prompts.([]any)
	_, best := has(fBestOf)
	if best || slices.ContainsFunc(list, func(v any) bool {
		switch v.(type) {
		case string, []any:
			return true
		}
		return false
	}) {
		choices = 0
	}
	for _, f := range []fieldSet{fLogprobs, fTopLogprobs} {
		v, ok := has(f)
		logprobs = logprobs || ok && v != false
	}
	include, _ := has(fInclude)
	list, _ = include.([]any)
	return choices, logprobs || slices.Contains(list, any("message.output_text.logprobs"))
}

// jsonEndpoints are those that take JSON, some of them besides a form.
func jsonEndpoints() (all []*dialect.Endpoint) {
	for _, ep := range dialect.Endpoints() {
		if !ep.Stores {
			all = append(all, ep)
		}
	}
	return all
}

func FuzzScanRequest(f *testing.F) {
	for i, s := range []string{
		`{"model":"m","stream":true,"stream_options":{"include_usage":false},"x":[{}]}`, `{"stream_options":null,"model":"a\"b","stream":true}`,
		`{"model":"m","stream":true}`, `{"model":"m","stream":true,"stream_options":{}}`, `{"stream_options":{"z":1},"stream":true,"model":"m"}`,
		`{"model":"m","store":null,"input":[{"type":"message","content":[{"type":"input_file","file_id":"f"}]}],"temperature":0.0e5}`,
		`{"model":"m","tools":[{"type":"mcp"},{"type":"namespace","tools":[{"type":"function","parameters":{"file_id":1}}]}],"seed":-1}`,
		`{"model":"m","tools":[{"name":"f","input_schema":{}},{"type":"web_search_20250305"},{"type":"code_execution_20250825"}],"container":"c"}`,
		`{"model":"m","messages":[{"content":[{"cache_control":{"type":"ephemeral","TTL":"1h"}},{"tool":{"definition":{"type":"bash_20250124"}}}]}]}`,
		`{"model":"m","tools":[{"type":"shell","environment":{"type":"local"}},{"execution":"client","type":"tool_search"}]}`,
		`{"model":"m","input":[{"id":"i"},{"ID":"r","type":"reasoning","encrypted_content":[ ]},{"role":"assistant","audio":{"id":"a"}}],"voice":{"id":"v"},"deferred":true}`,
		`{"model":"m","prompt_cache_options":{"ttl":"12h"},"prompt_cache_retention":"24h","audio":{}}`, `{"model":"m","response_format":"url","stream_format":"sse"}`, `{"model":"gpt-image-2","response_format": null ,"prompt":"p","persist":true}`,
	} {
		for j := range jsonEndpoints() {
			if i < 2 || j < 3 {
				f.Add([]byte(s), uint8(j))
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, which uint8) {
		ep := jsonEndpoints()[int(which)%len(jsonEndpoints())]
		q, fail := Scan(ep, "application/json", b)
		if fail != nil {
			if fail.Code == dialect.InvalidJSON && jsonkit.Valid(b, jsontext.MaxDepth) && !ambiguous(ep, b) {
				t.Fatalf("%q refused as %v", b, fail)
			}
			return
		}
		checkScan(t, ep, b, &q)
		checkRewrite(t, b, &q)
	})
}

func checkScan(t interface{ Fatalf(string, ...any) }, ep *dialect.Endpoint, b []byte, q *Request) {
	m := jsonkit.Decode(b)
	if m == nil || !jsonkit.Valid(b, jsontext.MaxDepth) {
		t.Fatalf("%q accepted, though it is not JSON", b)
	}
	sse := fieldsOf(ep)&fStreamFormat != 0 && m["stream_format"] == "sse"
	if model, _ := m["model"].(string); model != q.Model || q.Stream != (m["stream"] == true || sse) {
		t.Fatalf("%q: model %q, stream %t", b, q.Model, q.Stream)
	}
	stores, provider, keeps, deterministic := want(ep, m)
	if keeps != q.KeepsAnswer || deterministic != q.Deterministic {
		t.Fatalf("%s %q: keeps %t, deterministic %t", ep.Path, b, q.KeepsAnswer, q.Deterministic)
	}
	choices, logprobs := wantChoices(ep, m)
	if choices != q.Choices || logprobs != q.Logprobs {
		t.Fatalf("%s %q: %d choices, want %d; logprobs %t", ep.Path, b, q.Choices, choices, q.Logprobs)
	}
	got := q.Stores != ""
	if q.Kept != "" && !got {
		t.Fatalf("%s %q: %s is kept, and nothing stores", ep.Path, b, q.Kept)
	}
	if stores && !got || provider && !q.ProviderTools {
		t.Fatalf("%s %q: stores %q (want %t), provider tools %t (want %t)", ep.Path, b, q.Stores, stores, q.ProviderTools, provider)
	}
	if (stores != got || provider != q.ProviderTools) && !jsonkit.Duplicates(b) {
		t.Fatalf("%s %q: stores %q (want %t), provider tools %t (want %t)", ep.Path, b, q.Stores, stores, q.ProviderTools, provider)
	}
}

// ambiguous reports whether b is refused for a field given twice, in other
// case, or for being no object: reasons encoding/json does not know.
func ambiguous(ep *dialect.Endpoint, b []byte) bool {
	if len(bytes.TrimSpace(b)) == 0 || bytes.TrimSpace(b)[0] != '{' {
		return true
	}
	dup := func(b []byte, ours func(string) (name string, ours bool)) bool {
		dec := json.NewDecoder(bytes.NewReader(b))
		_, _ = dec.Token()
		seen := map[string]bool{}
		for dec.More() {
			tok, err := dec.Token()
			if err != nil {
				return false
			}
			key, _ := tok.(string)
			if n, is := ours(key); is {
				if seen[n] || key != n {
					return true
				}
				seen[n] = true
			}
			var skip json.RawMessage
			if dec.Decode(&skip) != nil {
				return false
			}
		}
		return false
	}
	if dup(b, func(key string) (string, bool) {
		for f := fieldsOf(ep); f != 0; f &= f - 1 {
			if strings.EqualFold(f.name(), key) {
				return f.name(), true
			}
		}
		return "", false
	}) {
		return true
	}
	var o struct {
		Options json.RawMessage `json:"stream_options"`
	}
	_ = json.Unmarshal(b, &o)
	return ep.UsageOption && len(o.Options) > 0 && o.Options[0] == '{' &&
		dup(o.Options, func(key string) (string, bool) { return includeUsage, strings.EqualFold(key, includeUsage) })
}

// checkRewrite compares Upstream with a decode, change, encode twin, and the
// bytes outside of the fields that Rewrites lists.
func checkRewrite(t interface{ Fatalf(string, ...any) }, b []byte, q *Request) {
	const other = "up\"stream"
	for _, model := range []string{"", q.Model, other} {
		for _, zero := range []bool{false, true} {
			body := q.Upstream(b, model, Rewriting{ZeroRetention: zero})
			out := body.Append(nil)
			if int64(len(out)) != body.Len() || !bytes.Equal(bytes.Join(body.AppendParts(nil), nil), out) {
				t.Fatalf("Len %d of %d bytes", body.Len(), len(out))
			}
			usage := q.Endpoint.UsageOption && q.Stream && !q.WantsUsage
			store := zero && q.KeepsAnswer
			inline := zero && strings.HasPrefix(q.Endpoint.Path, "/v1/images/") && jsonkit.Decode(b)["response_format"] != "b64_json" &&
				(model == other || !strings.HasPrefix(q.Model, "gpt-image-") && !strings.HasPrefix(q.Model, "chatgpt-image-"))
			if model != other && !usage && !store && !inline && !bytes.Equal(out, b) {
				t.Fatalf("nothing to rewrite in %q, got %q", b, out)
			}
			want, got := jsonkit.Decode(b), jsonkit.Decode(out)
			if got == nil {
				t.Fatalf("%q became %q", b, out)
			}
			if model != "" {
				want["model"] = model
			}
			if usage {
				options, _ := want["stream_options"].(map[string]any)
				if options == nil {
					options = map[string]any{}
				}
				options[includeUsage] = true
				want["stream_options"] = options
			}
			if store {
				want["store"] = false
			}
			if inline {
				want["response_format"] = "b64_json"
			}
			w, _ := json.Marshal(want)
			g, _ := json.Marshal(got)
			if !bytes.Equal(w, g) {
				t.Fatalf("%q became %q\nwant %s", b, out, w)
			}
			if again, fail := Scan(q.Endpoint, "application/json", out); fail != nil || zero && again.KeepsAnswer {
				t.Fatalf("%q: what goes upstream is refused, or kept: %v", out, fail)
			}
		}
	}
}

// TestScanAndRewriteTwin draws requests of every endpoint.
func TestScanAndRewriteTwin(t *testing.T) {
	space := rapid.SampledFrom([]string{"", " ", "\n\t"})
	pools := map[string][]string{
		"stream":                 {`true`, `false`, `null`},
		"stream_options":         {`null`, `{}`, `{ }`, `{"include_usage":false}`, `{"include_usage":null,"a":1}`, `{"include_usage":true}`, `{"other":[1]}`},
		"store":                  {`true`, `false`, `null`, `"yes"`},
		"temperature":            {`0`, `0.0`, `-0e3`, `0.1`, `1e-3`, `null`, `"0"`},
		"seed":                   {`7`, `-7`, `null`, `1.0`},
		"background":             {`true`, `false`, `null`},
		"prompt_cache_retention": {`"24h"`, `"in_memory"`, `null`},
		"prompt_cache_options":   {`{"ttl":"30m"}`, `{"ttl":"12h","mode":"explicit"}`, `{"ttl":60}`, `{"comparison_response_id":"r"}`, `null`},
		"tools":                  {`[]`, `[{"type":"function","function":{"parameters":{"file_id":1}}}]`, `[{"type":"web_search"}]`, `[{"name":"x","input_schema":{}}]`, `[{"type":"mcp","server_url":"u"}]`, `[{"type":"computer_20250124"},{"type":"code_execution_20250825"}]`, `null`},
		"messages":               {`[{"role":"user","content":"stream\":true"}]`, `[{"content":[{"type":"file","file":{"file_id":"f"}}]}]`, `[{"content":[{"type":"tool_use","input":{"file_id":1}}]}]`},
		"input":                  {`"text"`, `[{"type":"item_reference","id":"i"}]`, `[{"type":"message","content":"x"}]`, `[{"id":"i"}]`, `[{"id":"i","role":"user"}, {"id":"r","type":"reasoning","summary":[1],"encrypted_content":"x"}]`, `[{"id":"r","type":"reasoning","encrypted_content":null}]`},
		"cache_control":          {`{"type":"ephemeral"}`, `{"type":"ephemeral","ttl":"1h"}`},
		"fallbacks":              {`null`},
		"models":                 {`null`},
		"deferred":               {`true`, `false`, `null`},
		"extra_body":             {`{"google":{"thinking_config":{}}}`, `{"google":{"cached_content":"c"}}`, `{"google":{"keep":1}}`, `{"other":{}}`, `{}`, `null`},
		"response_format":        {`"url"`, `"b64_json"`, `null`, `{"type":"url"}`},
		"voice":                  {`"alloy"`, `{"id":"v"}`, `{"id":null}`},
		"n":                      {`1`, `3`, `null`, `"2"`, `-1`, `2.0`, `1.5`},
		"best_of":                {`null`, `2`},
		"prompt":                 {`"p"`, `["a"]`, `[1,2]`, `[[1],[2]]`, `[]`},
		"logprobs":               {`true`, `false`, `null`, `5`},
		"top_logprobs":           {`null`, `5`},
		"include":                {`[]`, `["message.output_text.logprobs"]`, `["reasoning.encrypted_content"]`, `null`},
		"other":                  {`"hi \"there\""`, `{"model":"inner"}`, `1.5e3`, `null`, `"ünï"`},
	}
	rapid.Check(t, func(t *rapid.T) {
		ep := rapid.SampledFrom(jsonEndpoints()).Draw(t, "endpoint")
		fields := []string{`"model":` + space.Draw(t, "s") + `"m-1"`}
		for f := fieldsOf(ep) &^ fModel; f != 0; f &= f - 1 {
			if !rapid.Bool().Draw(t, "with "+f.name()) {
				continue
			}
			pool := pools[f.name()]
			if pool == nil {
				pool = []string{`null`, `"x"`, `{"id":"y"}`}
			}
			fields = append(fields, fmt.Sprintf("%q%s:%s", f.name(), space.Draw(t, "s"), rapid.SampledFrom(pool).Draw(t, f.name())))
		}
		fields = append(fields, rapid.SampledFrom([]string{`"other":`, `"user":`, `"top_p":`, `"Metadata":`}).Draw(t, "name")+rapid.SampledFrom(pools["other"]).Draw(t, "other"))
		body := []byte("{" + strings.Join(rapid.Permutation(fields).Draw(t, "order"), space.Draw(t, "s")+","+space.Draw(t, "s")) + space.Draw(t, "s") + "}")
		q, fail := Scan(ep, "application/json", body)
		if fail != nil {
			if fail.Code != dialect.InvalidRequest || fail.Param != "stream" || ep.Streams {
				t.Fatalf("%s %s: %v", ep.Path, body, fail)
			}
			return
		}
		checkScan(t, ep, body, &q)
		checkRewrite(t, body, &q)
	})
}
