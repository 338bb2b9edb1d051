package request

import (
	"strings"
	"testing"

	"ringmain/dataplane/dialect"
)

// Every string is checked, whatever stands around it, at every place in it.
func TestEveryStringIsUTF8(t *testing.T) {
	const near = 512 // from where on jsontext looks at more at once
	for _, size := range []int{0, 1, 7, 8, 9, near - 1, near, near + 1, near + 5000} {
		for _, bad := range []string{"\xff", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\xaf"} {
			for _, at := range []int{0, size / 2, size} {
				text := strings.Repeat("x", at) + bad + strings.Repeat("x", size-at)
				for _, form := range []string{`{"model":"m","%s":1}`, `{"model":"m","messages":[{"content":"%s"}]}`, `{"model":"m","a":"\n%s\n"}`} {
					ep, _ := dialect.EndpointOf("/v1/chat/completions")
					if _, e := Scan(ep, "application/json", []byte(strings.Replace(form, "%s", text, 1))); e == nil || e.Code != dialect.InvalidJSON {
						t.Fatalf("%q at %d of %d in %s: %v", bad, at, size, form, e)
					}
					good := strings.Replace(form, "%s", strings.ToValidUTF8(text, "\u00e4\u20ac\U0001f600"), 1)
					if _, e := Scan(ep, "application/json", []byte(good)); e != nil {
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
		ep, _ := dialect.EndpointOf("/v1/chat/completions")
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, e := Scan(ep, "application/json", body); e != nil {
					b.Fatal(e)
				}
			}
		})
	}
}
