package dialect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestScanRequestTable(t *testing.T) {
	deep := func(n int) string {
		return `{"model":"m","x":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}`
	}
	for _, c := range []struct {
		name, body string
		code       Code // "" = accepted
		model      string
		stream     bool
	}{
		{"plain", `{"model":"m","messages":[]}`, "", "m", false},
		{"stream", ` {"stream" : true , "model" : "m"} `, "", "m", true},
		{"escaped model", `{"model":"gp\u0074-4\/\n\ud83d\ude00"}`, "", "gpt-4/\n😀", false},
		{"lone surrogate", `{"model":"\ud800x"}`, "", "\ufffdx", false},
		{"stream null", `{"model":"m","stream":null}`, "", "m", false},
		{"deep enough", deep(MaxDepth - 1), "", "m", false},
		{"nested model is not ours", `{"x":{"model":1},"model":"m"}`, "", "m", false},
		{"too deep", deep(MaxDepth), InvalidJSON, "", false},
		{"empty", ``, InvalidJSON, "", false},
		{"array", `[]`, InvalidJSON, "", false},
		{"truncated", `{"model":"m"`, InvalidJSON, "", false},
		{"trailing", `{"model":"m"} x`, InvalidJSON, "", false},
		{"trailing comma", `{"model":"m",}`, InvalidJSON, "", false},
		{"bare newline in string", "{\"model\":\"a\nb\"}", InvalidJSON, "", false},
		{"not UTF-8", "{\"model\":\"m\",\"x\":\"\xff\"}", InvalidJSON, "", false},
		{"byte order mark", "\ufeff{\"model\":\"m\"}", InvalidJSON, "", false},
		{"number", `{"model":"m","x":01}`, InvalidJSON, "", false},
		{"duplicate model", `{"model":"a","model":"b"}`, InvalidJSON, "", false},
		{"duplicate by escape", `{"model":"a","mod\u0065l":"b"}`, InvalidJSON, "", false},
		{"duplicate by case", `{"model":"a","Model":"b"}`, InvalidJSON, "", false},
		{"other case alone", `{"model":"a","STREAM":true}`, InvalidJSON, "", false},
		{"other case by Kelvin-like folding", `{"model":"a","ſtream":true}`, InvalidJSON, "", false},
		{"duplicate store", `{"model":"a","store":true,"store":false}`, InvalidJSON, "", false},
		{"no model", `{"messages":[]}`, InvalidRequest, "", false},
		{"model not a string", `{"model":7}`, InvalidRequest, "", false},
		{"model empty", `{"model":""}`, InvalidRequest, "", false},
		{"model long", `{"model":"` + strings.Repeat("m", MaxModelName+1) + `"}`, InvalidRequest, "", false},
		{"stream not a bool", `{"model":"m","stream":"true"}`, InvalidRequest, "", false},
		{"options not an object", `{"model":"m","stream_options":[]}`, InvalidRequest, "", false},
		{"usage not a bool", `{"model":"m","stream_options":{"include_usage":1}}`, InvalidRequest, "", false},
		{"usage twice", `{"model":"m","stream_options":{"include_usage":true,"include_usage":false}}`, InvalidJSON, "", false},
		// Broken JSON wins over a broken field: the client must mend that first.
		{"both wrong", `{"model":7,`, InvalidJSON, "", false},
	} {
		q, err := ScanRequest(OpenAI, []byte(c.body))
		if c.code == "" && err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if c.code != "" && (err == nil || err.Code != c.code) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.code)
		}
		if err == nil && (q.Model != c.model || q.Stream != c.stream) {
			t.Errorf("%s: model %q stream %t", c.name, q.Model, q.Stream)
		}
	}
}

// naive says with encoding/json what ScanRequest must say, on bodies without
// duplicate or folded fields.
func naiveValid(b []byte) bool {
	if !utf8.Valid(b) || !json.Valid(b) {
		return false
	}
	depth, deepest := 0, 0
	dec := json.NewDecoder(bytes.NewReader(b))
	for {
		tok, err := dec.Token()
		if err != nil {
			return deepest <= MaxDepth
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

func FuzzValid(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[1,2.5e-3,true,false,null,"\u00e9\\\""]}`, `[`, `"`, `"abcdefgh"`, `-`, `1.`, `1e`, "\"\x01\"", `{"a":}`, `[1,]`, `nul`, "\"12345678\x7f\x80\""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, want := Valid(b), naiveValid(b); got != want {
			t.Fatalf("Valid(%q) = %t, encoding/json says %t", b, got, want)
		}
	})
}

func FuzzScanRequest(f *testing.F) {
	for _, s := range []string{`{"model":"m","stream":true,"stream_options":{"include_usage":false},"x":[{}]}`, `{"stream_options":null,"model":"a\"b","stream":true}`, `{"model":"m","stream":true}`, `{"model":"m","stream":true,"stream_options":{}}`, `{"stream_options":{"z":1},"stream":true,"model":"m"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, fail := ScanRequest(OpenAI, b)
		if fail != nil {
			if fail.Code == InvalidJSON && naiveValid(b) && !ambiguous(b) {
				t.Fatalf("%q refused as %v", b, fail)
			}
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(b, &want); err != nil || !naiveValid(b) {
			t.Fatalf("%q accepted; encoding/json: %v", b, err)
		}
		var model string
		if err := json.Unmarshal(want["model"], &model); err != nil || model != q.Model {
			t.Fatalf("%q: model %q, want %q", b, q.Model, model)
		}
		checkRewrite(t, b, &q)
	})
}

// ambiguous reports whether b is refused for a field given twice, in other
// case, or for being no object: reasons encoding/json does not know.
func ambiguous(b []byte) bool {
	if len(bytes.TrimSpace(b)) == 0 || bytes.TrimSpace(b)[0] != '{' {
		return true
	}
	dup := func(b []byte, names []string) bool {
		dec := json.NewDecoder(bytes.NewReader(b))
		_, _ = dec.Token()
		seen := map[string]bool{}
		for dec.More() {
			tok, err := dec.Token()
			if err != nil {
				return false
			}
			key, _ := tok.(string)
			for _, n := range names {
				if strings.EqualFold(key, n) {
					if seen[n] || key != n {
						return true
					}
					seen[n] = true
				}
			}
			var skip json.RawMessage
			if dec.Decode(&skip) != nil {
				return false
			}
		}
		return false
	}
	if dup(b, fieldNames[:]) {
		return true
	}
	var o struct {
		Options json.RawMessage `json:"stream_options"`
	}
	_ = json.Unmarshal(b, &o)
	return len(o.Options) > 0 && o.Options[0] == '{' && dup(o.Options, []string{includeUsage})
}

// checkRewrite compares Upstream with a decode, change, encode twin.
func checkRewrite(t interface{ Fatalf(string, ...any) }, b []byte, q *Request) {
	const other = "up\"stream"
	for _, model := range []string{q.Model, other} {
		body := q.Upstream(b, model)
		out := body.Append(nil)
		if int64(len(out)) != body.Len() {
			t.Fatalf("Len %d of %d bytes", body.Len(), len(out))
		}
		if model == q.Model && (!q.Stream || q.WantsUsage) && !bytes.Equal(out, b) {
			t.Fatalf("nothing to rewrite in %q, got %q", b, out)
		}
		want, got := decode(b), decode(out)
		if got == nil {
			t.Fatalf("%q became %q", b, out)
		}
		want["model"] = model
		if q.Stream && !q.WantsUsage {
			options, _ := want["stream_options"].(map[string]any)
			if options == nil {
				options = map[string]any{}
			}
			options[includeUsage] = true
			want["stream_options"] = options
		}
		w, _ := json.Marshal(want)
		g, _ := json.Marshal(got)
		if !bytes.Equal(w, g) {
			t.Fatalf("%q became %q\nwant %s", b, out, w)
		}
	}
}

func decode(b []byte) map[string]any {
	var m map[string]any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if dec.Decode(&m) != nil {
		return nil
	}
	return m
}

func TestRewriteTwin(t *testing.T) {
	space := rapid.SampledFrom([]string{"", " ", "\n\t"})
	value := rapid.SampledFrom([]string{`"hi \"there\""`, `[{"role":"user","content":"stream\":true"}]`, `{"model":"inner"}`, `1.5e3`, `null`, `"ünï"`})
	rapid.Check(t, func(t *rapid.T) {
		fields := []string{`"model":` + space.Draw(t, "s") + `"m-1"`}
		if rapid.Bool().Draw(t, "stream") {
			fields = append(fields, `"stream"`+space.Draw(t, "s")+`: true`)
			if o := rapid.SampledFrom([]string{"", `null`, `{}`, `{ }`, `{"include_usage":false}`, `{"include_usage":null,"a":1}`, `{"include_usage":true}`, `{"other":[1]}`}).Draw(t, "options"); o != "" {
				fields = append(fields, `"stream_options":`+o)
			}
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "more") {
			fields = append(fields, fmt.Sprintf(`"f%d":%s`, i, value.Draw(t, "v")))
		}
		body := []byte("{" + strings.Join(rapid.Permutation(fields).Draw(t, "order"), space.Draw(t, "s")+","+space.Draw(t, "s")) + space.Draw(t, "s") + "}")
		q, fail := ScanRequest(OpenAI, body)
		if fail != nil {
			t.Fatalf("%s: %v", body, fail)
		}
		checkRewrite(t, body, &q)
	})
}

func TestReaderGivesTheWholeBody(t *testing.T) {
	body := []byte(`{"model":"m","stream":true,"x":1}`)
	q, fail := ScanRequest(OpenAI, body)
	if fail != nil {
		t.Fatal(fail)
	}
	b := q.Upstream(body, "other")
	for _, step := range []int{1, 7, 4096} {
		r, got, buf := b.NewReader(), []byte(nil), make([]byte, step)
		for {
			n, err := r.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.Equal(got, b.Append(nil)) {
			t.Fatalf("step %d: %s", step, got)
		}
	}
	freed := 0
	hold := NewHold(func() { freed++ })
	held := b.Held(hold)
	one, two := held.NewReader(), held.NewReader()
	hold.Release()
	for range 2 {
		if err := one.Close(); err != nil || freed != 0 {
			t.Fatalf("freed %d, %v", freed, err)
		}
	}
	if _, err := one.Read(make([]byte, 1)); err == nil {
		t.Error("read after Close")
	}
	if err := two.Close(); err != nil || freed != 1 {
		t.Fatalf("freed %d, %v", freed, err)
	}
	for _, verb := range []string{"%v", "%s", "%+v", "%#v", "%q", "%x"} {
		if s := fmt.Sprintf(verb, b); s != "[content]" {
			t.Errorf("%s prints %s", verb, s)
		}
		if s := fmt.Sprintf(verb, b.NewReader()); s != "[content]" {
			t.Errorf("%s prints %s", verb, s)
		}
		if s := fmt.Sprintf(verb, struct{ Body Body }{b}); strings.Contains(s, "model") {
			t.Errorf("%s prints %s", verb, s)
		}
	}
}

func TestScanAllocatesOnlyTheName(t *testing.T) {
	body := []byte(`{"model":"gpt-large-1","messages":[{"role":"user","content":"` + strings.Repeat("hello ", 80) + `"}],"temperature":0.2,"stream":true,"tools":[{"a":{"b":[1,2,3]}}]}`)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := ScanRequest(OpenAI, body); err != nil {
			t.Fatal(err)
		}
	}); n > 1 {
		t.Errorf("%v allocations, want 1", n)
	}
}

func BenchmarkScanRequest(b *testing.B) {
	body := []byte(`{"model":"gpt-large-1","messages":[{"role":"user","content":"` + strings.Repeat("hello ", 70) + `"}],"temperature":0.2}`)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ScanRequest(OpenAI, body); err != nil {
			b.Fatal(err)
		}
	}
}
