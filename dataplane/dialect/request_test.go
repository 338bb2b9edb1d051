package dialect

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestScanRequestTable(t *testing.T) {
	chat := endpoint(t, "/v1/chat/completions")
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
		{"other case of a field that only policy reads", `{"model":"a","Tools":[]}`, InvalidJSON, "", false},
		{"duplicate temperature", `{"model":"a","temperature":0,"temperature":1}`, InvalidJSON, "", false},
		{"duplicate tools", `{"model":"a","tools":[],"too\u006cs":[]}`, InvalidJSON, "", false},
		{"field of another endpoint", `{"model":"m","background":true,"background":{}}`, "", "m", false},
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
		q, err := ScanRequest(chat, "application/json", []byte(c.body))
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

// naiveValid says with encoding/json whether b is JSON as we take it.
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

func TestReaderGivesTheWholeBody(t *testing.T) {
	body := []byte(`{"model":"m","stream":true,"x":1}`)
	q, fail := ScanRequest(endpoint(t, "/v1/chat/completions"), "", body)
	if fail != nil {
		t.Fatal(fail)
	}
	b := q.Upstream(body, "other", Rewriting{})
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
}

func TestScanAllocatesOnlyTheName(t *testing.T) {
	chat := endpoint(t, "/v1/chat/completions")
	body := []byte(`{"model":"gpt-large-1","messages":[{"role":"user","content":"` + strings.Repeat("hello ", 80) + `"}],"temperature":0.2,"stream":true,"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]}`)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := ScanRequest(chat, "application/json", body); err != nil {
			t.Fatal(err)
		}
	}); n > 1 {
		t.Errorf("%v allocations, want 1", n)
	}
}

func BenchmarkScanRequest(b *testing.B) {
	chat := endpoint(b, "/v1/chat/completions")
	body := []byte(`{"model":"gpt-large-1","messages":[{"role":"user","content":"` + strings.Repeat("hello ", 70) + `"}],"temperature":0.2}`)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ScanRequest(chat, "application/json", body); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkScanConversation scans a long conversation with tools, most of
// whose keys are nested.
func BenchmarkScanConversation(b *testing.B) {
	chat := endpoint(b, "/v1/chat/completions")
	turn := `{"role":"user","content":[{"type":"text","text":"` + strings.Repeat("hello ", 40) + `"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]}`
	body := []byte(`{"model":"gpt-large-1","messages":[` + strings.Repeat(turn+",", 99) + turn + `],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"string"}}}}}],"temperature":0.2,"stream":true}`)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ScanRequest(chat, "application/json", body); err != nil {
			b.Fatal(err)
		}
	}
}
