package jsontext

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"ringmain/internal/testkit/jsonkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
		if n, wide := plainRun(b, 0); n != size || (wide != 0) != (beyond(b) > 0) {
			t.Fatalf("%d plain bytes: %d", size, n)
		}
	}
	ascii := bytes.Map(func(r rune) rune { return 'a' + r%20 }, plain)
	if n, wide := plainRun(ascii, 0); n != len(ascii) || wide != 0 {
		t.Fatalf("ASCII is %x", wide)
	}
	stops := []byte{'"', '\\', 0, '\n', 0x1f}
	for range 20_000 {
		b := bytes.Clone(plain[:random.IntN(len(plain))+1])
		for range 1 + random.IntN(3) {
			b[random.IntN(len(b))] = stops[random.IntN(len(stops))]
		}
		at := random.IntN(len(b) + 1)
		got, wide := plainRun(b, at)
		if want := at + loop(b[at:], "\"\\"); got != want || wide == 0 && beyond(b[at:got]) > 0 {
			t.Fatalf("of %d bytes, those from %d to %d are plain, not to %d; %x", len(b), at, want, got, wide)
		}
		got, wide = printedRun(b)
		if want := loop(b, ""); got != want || wide&high == 0 && beyond(b[:got]) > 0 {
			t.Fatalf("of %d bytes, %d are no control characters, not %d; %x", len(b), want, got, wide)
		}
	}
}

func FuzzValid(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[1,2.5e-3,true,false,null,"\u00e9\\\""]}`, `[`, `"`, `"abcdefgh"`, `-`, `1.`, `1e`, "\"\x01\"", `{"a":}`, `[1,]`, `nul`, "\"12345678\x7f\x80\""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, want := Valid(b), jsonkit.Valid(b, MaxDepth); got != want {
			t.Fatalf("Valid(%q) = %t, encoding/json says %t", b, got, want)
		}
	})
}
