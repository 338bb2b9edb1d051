package request

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

func TestScanRequestTable(t *testing.T) {
	chat := served(t, "/v1/chat/completions")
	deep := func(n int) string {
		return `{"model":"m","x":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}`
	}
	for _, c := range []struct {
		name, body string
		code       dialect.Code // "" = accepted
		model      string
		stream     bool
	}{
		{"plain", `{"model":"m","messages":[]}`, "", "m", false},
		{"stream", ` {"stream" : true , "model" : "m"} `, "", "m", true},
		{"escaped model", `{"model":"gp\u0074-4\/\n\ud83d\ude00"}`, "", "gpt-4/\n😀", false},
		{"lone surrogate", `{"model":"\ud800x"}`, "", "\ufffdx", false},
		{"stream null", `{"model":"m","stream":null}`, "", "m", false},
		{"deep enough", deep(jsontext.MaxDepth - 1), "", "m", false},
		{"nested model is not ours", `{"x":{"model":1},"model":"m"}`, "", "m", false},
		{"too deep", deep(jsontext.MaxDepth), dialect.InvalidJSON, "", false},
		{"empty", ``, dialect.InvalidJSON, "", false},
		{"array", `[]`, dialect.InvalidJSON, "", false},
		{"truncated", `{"model":"m"`, dialect.InvalidJSON, "", false},
		{"trailing", `{"model":"m"} x`, dialect.InvalidJSON, "", false},
		{"trailing comma", `{"model":"m",}`, dialect.InvalidJSON, "", false},
		{"bare newline in string", "{\"model\":\"a\nb\"}", dialect.InvalidJSON, "", false},
		{"not UTF-8", "{\"model\":\"m\",\"x\":\"\xff\"}", dialect.InvalidJSON, "", false},
		{"byte order mark", "\ufeff{\"model\":\"m\"}", dialect.InvalidJSON, "", false},
		{"number", `{"model":"m","x":01}`, dialect.InvalidJSON, "", false},
		{"duplicate model", `{"model":"a","model":"b"}`, dialect.InvalidJSON, "", false},
		{"duplicate by escape", `{"model":"a","mod\u0065l":"b"}`, dialect.InvalidJSON, "", false},
		{"duplicate by case", `{"model":"a","Model":"b"}`, dialect.InvalidJSON, "", false},
		{"other case alone", `{"model":"a","STREAM":true}`, dialect.InvalidJSON, "", false},
		{"other case of a field that only policy reads", `{"model":"a","Tools":[]}`, dialect.InvalidJSON, "", false},
		{"duplicate temperature", `{"model":"a","temperature":0,"temperature":1}`, dialect.InvalidJSON, "", false},
		{"duplicate tools", `{"model":"a","tools":[],"too\u006cs":[]}`, dialect.InvalidJSON, "", false},
		{"field of another endpoint", `{"model":"m","background":true,"background":{}}`, "", "m", false},
		{"other case by Kelvin-like folding", `{"model":"a","ſtream":true}`, dialect.InvalidJSON, "", false},
		{"duplicate store", `{"model":"a","store":true,"store":false}`, dialect.InvalidJSON, "", false},
		{"no model", `{"messages":[]}`, dialect.InvalidRequest, "", false},
		{"model not a string", `{"model":7}`, dialect.InvalidRequest, "", false},
		{"model empty", `{"model":""}`, dialect.InvalidRequest, "", false},
		{"model long", `{"model":"` + strings.Repeat("m", MaxModelName+1) + `"}`, dialect.InvalidRequest, "", false},
		{"stream not a bool", `{"model":"m","stream":"true"}`, dialect.InvalidRequest, "", false},
		{"options not an object", `{"model":"m","stream_options":[]}`, dialect.InvalidRequest, "", false},
		{"usage not a bool", `{"model":"m","stream_options":{"include_usage":1}}`, dialect.InvalidRequest, "", false},
		{"usage twice", `{"model":"m","stream_options":{"include_usage":true,"include_usage":false}}`, dialect.InvalidJSON, "", false},
		// Broken JSON wins over a broken field: the client must mend that first.
		{"both wrong", `{"model":7,`, dialect.InvalidJSON, "", false},
	} {
		q, err := Scan(chat, "application/json", []byte(c.body))
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

func TestReaderGivesTheWholeBody(t *testing.T) {
	body := []byte(`{"model":"m","stream":true,"x":1}`)
	q, fail := Scan(served(t, "/v1/chat/completions"), "", body)
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
}

type counted int

func (c *counted) TakeBack() { *c++ }

// TestHold: memory goes back once, after the last who reads it, who is known by
// having closed it or read to its end; nothing is read from then on.
func TestHold(t *testing.T) {
	body := []byte(`{"model":"m"}`)
	var hold dialect.Hold
	var freed counted
	hold.Begin(&freed)
	whole := dialect.WholeBody(body)
	held := whole.Held(&hold)
	one, two, three := held.NewReader(), held.NewReader(), held.NewReader()
	hold.Release()
	for range 2 {
		if err := one.Close(); err != nil || freed != 0 {
			t.Fatalf("freed %d, %v", freed, err)
		}
	}
	if _, err := one.Read(make([]byte, 1)); err == nil {
		t.Error("read after Close")
	}
	if n, err := two.Read(make([]byte, 100)); n != len(body) || err != nil || freed != 0 {
		t.Fatalf("%d bytes, %v, freed %d", n, err, freed)
	}
	if n, err := io.ReadFull(three, make([]byte, len(body)-1)); err != nil || freed != 0 {
		t.Fatalf("%d bytes, %v, freed %d", n, err, freed)
	}
	if n, err := three.Read(make([]byte, 100)); n != 1 || err != nil || freed != 1 {
		t.Fatalf("%d bytes, %v, freed %d", n, err, freed)
	}
	for _, r := range []*dialect.Reader{two, three} {
		if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("behind the end: %d bytes, %v", n, err)
		}
		if err := r.Close(); err != nil || freed != 1 {
			t.Errorf("freed %d, %v", freed, err)
		}
	}
	for name, use := range map[string]func(){
		"NewReader": func() { held.NewReader() }, "Open": func() { _ = held.Open() }, "AppendParts": func() { held.AppendParts(nil) }, "Release": hold.Release,
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of memory that was given back", name)
				}
			}()
			use()
		}()
	}
}

func TestScanAllocatesOnlyTheName(t *testing.T) {
	chat := served(t, "/v1/chat/completions")
	body := []byte(`{"model":"gpt-large-1","messages":[{"role":"user","content":"` + strings.Repeat("hello ", 80) + `"}],"temperature":0.2,"stream":true,"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]}`)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := Scan(chat, "application/json", body); err != nil {
			t.Fatal(err)
		}
	}); n > 1 {
		t.Errorf("%v allocations, want 1", n)
	}
}

func BenchmarkScanRequest(b *testing.B) {
	chat := served(b, "/v1/chat/completions")
	body := []byte(`{"model":"gpt-large-1","messages":[{"role":"user","content":"` + strings.Repeat("hello ", 70) + `"}],"temperature":0.2}`)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Scan(chat, "application/json", body); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkScanConversation scans a long conversation with tools, most of
// whose keys are nested.
func BenchmarkScanConversation(b *testing.B) {
	chat := served(b, "/v1/chat/completions")
	turn := `{"role":"user","content":[{"type":"text","text":"` + strings.Repeat("hello ", 40) + `"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]}`
	body := []byte(`{"model":"gpt-large-1","messages":[` + strings.Repeat(turn+",", 99) + turn + `],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"string"}}}}}],"temperature":0.2,"stream":true}`)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Scan(chat, "application/json", body); err != nil {
			b.Fatal(err)
		}
	}
}

// TestPicturesAreCounted: how many a stream has, so that it is known when it is
// complete; 0 = cannot tell.
func TestPicturesAreCounted(t *testing.T) {
	for given, want := range map[string]int{"": 1, "3": 3, "1": 1, "null": 1, `"2"`: 0, "2.5": 0, "-1": 0} {
		field := ""
		if given != "" {
			field = `,"n":` + given
		}
		q, fail := Scan(served(t, "/v1/images/generations"), "application/json", []byte(`{"model":"m","stream":true,"partial_images":2`+field+`}`))
		if fail != nil || !q.Stream || q.Choices != want || q.Stores != "" {
			t.Errorf("n %s: %v, stream %t, %d pictures, want %d; stores %q", given, fail, q.Stream, q.Choices, want, q.Stores)
		}
	}
	for given, want := range map[string]int{"3": 3, "": 0, "many": 0, "-1": 0} {
		q, fail := Scan(served(t, "/v1/images/edits"), formType, []byte(formOf(textPart("model", "m"), textPart("n", given), textPart("stream", "true"), textPart("partial_images", "1"))))
		if fail != nil || !q.Stream || q.Choices != want || q.Stores != "" {
			t.Errorf("n %s in a form: %v, stream %t, %d pictures, want %d; stores %q", given, fail, q.Stream, q.Choices, want, q.Stores)
		}
	}
	if _, fail := Scan(served(t, "/v1/images/generations"), "application/json", []byte(`{"model":"m","n":1,"n":9}`)); fail == nil || fail.Param != "n" {
		t.Errorf("n twice: %v", fail)
	}
	q, fail := Scan(served(t, "/v1/audio/speech"), "application/json", []byte(`{"model":"m","input":"x","voice":"v","stream_format":"sse"}`))
	if fail != nil || !q.Stream {
		t.Errorf("speech: %v, stream %t", fail, q.Stream)
	}
	if q, fail = Scan(served(t, "/v1/audio/speech"), "application/json", []byte(`{"model":"m","input":"x","voice":"v","stream_format":"audio"}`)); fail != nil || q.Stream {
		t.Errorf("speech as sound: %v, stream %t", fail, q.Stream)
	}
}
