package dialect

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
)

// The fast looks for the end of a plain run find what a plain loop finds, at
// every length, and wherever the end is.
func TestPlainRun(t *testing.T) {
	loop := func(b []byte, stops string) int {
		n := 0
		for n < len(b) && b[n] >= ' ' && strings.IndexByte(stops, b[n]) < 0 {
			n++
		}
		return n
	}
	beyond := func(b []byte) (n int) {
		for _, c := range b {
			n += int(c >> 7)
		}
		return n
	}
	random := rand.New(rand.NewPCG(1, 2))
	plain := make([]byte, 10<<10)
	for i := range plain {
		for plain[i] < ' ' || plain[i] == '"' || plain[i] == '\\' {
			plain[i] = byte(random.Uint32())
		}
	}
	for size := range len(plain) + 1 {
		b := plain[:size]
		if n, wide := plainRun(b); n != size || (wide != 0) != (beyond(b) > 0) {
			t.Fatalf("%d plain bytes: %d", size, n)
		}
	}
	ascii := bytes.Map(func(r rune) rune { return 'a' + r%20 }, plain)
	if n, wide := plainRun(ascii); n != len(ascii) || wide != 0 {
		t.Fatalf("ASCII is %x", wide)
	}
	stops := []byte{'"', '\\', 0, '\n', 0x1f}
	for range 20_000 {
		b := bytes.Clone(plain[:random.IntN(len(plain))+1])
		for range 1 + random.IntN(3) {
			b[random.IntN(len(b))] = stops[random.IntN(len(stops))]
		}
		got, wide := plainRun(b)
		if want := loop(b, "\"\\"); got != want || wide == 0 && beyond(b[:got]) > 0 {
			t.Fatalf("of %d bytes, %d are plain, not %d; %x", len(b), want, got, wide)
		}
		got, wide = printedRun(b)
		if want := loop(b, ""); got != want || wide&high == 0 && beyond(b[:got]) > 0 {
			t.Fatalf("of %d bytes, %d are no control characters, not %d; %x", len(b), want, got, wide)
		}
	}
}

// Every string is checked, whatever stands around it, at every place in it.
func TestEveryStringIsUTF8(t *testing.T) {
	for _, size := range []int{0, 1, 7, 8, 9, near - 1, near, near + 1, near + 5000} {
		for _, bad := range []string{"\xff", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\xaf"} {
			for _, at := range []int{0, size / 2, size} {
				text := strings.Repeat("x", at) + bad + strings.Repeat("x", size-at)
				for _, form := range []string{`{"model":"m","%s":1}`, `{"model":"m","messages":[{"content":"%s"}]}`, `{"model":"m","a":"\n%s\n"}`} {
					ep, _ := EndpointOf("/v1/chat/completions")
					if _, e := ScanRequest(ep, "application/json", []byte(strings.Replace(form, "%s", text, 1))); e == nil || e.Code != InvalidJSON {
						t.Fatalf("%q at %d of %d in %s: %v", bad, at, size, form, e)
					}
					good := strings.Replace(form, "%s", strings.ToValidUTF8(text, "\u00e4\u20ac\U0001f600"), 1)
					if _, e := ScanRequest(ep, "application/json", []byte(good)); e != nil {
						t.Fatalf("%q: %v", good, e)
					}
				}
			}
		}
	}
}

func BenchmarkScanLarge(b *testing.B) {
	const size = 5 << 20
	for _, c := range []struct{ name, piece string }{
		{"one line", "ring main feeds every consumer. "},
		{"paragraphs", strings.Repeat("ring main feeds every consumer. ", 12) + `\n\n`},
		{"code", `\tif err != nil {\n\t\treturn fmt.Errorf(\"%d: %w\", n, err)\n\t}\n`},
		{"Cyrillic", "кольцо питает всех. "},
	} {
		body := []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat(c.piece, size/len(c.piece)) + `"}]}`)
		ep, _ := EndpointOf("/v1/chat/completions")
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, e := ScanRequest(ep, "application/json", body); e != nil {
					b.Fatal(e)
				}
			}
		})
	}
}
