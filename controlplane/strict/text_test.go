package strict

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// Text is strings.ToValidUTF8, at every length and with what is odd at every place.
func TestText(t *testing.T) {
	odd := []string{"", "\x80", "\xff", "\x00", "\x7f", "é", "\xc3", "€", "\xe2\x82", "\xed\xa0\x80", "𝄞", "\xf0\x9d"}
	for n := range 70 {
		plain := strings.Repeat("a", n)
		for at := range n + 1 {
			for _, o := range odd {
				s := plain[:at] + o + plain[at:]
				if got, want := Text(s), strings.ToValidUTF8(s, "\uFFFD"); got != want {
					t.Fatalf("%q: %q, not %q", s, got, want)
				}
			}
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		b := make([]byte, rng.IntN(40))
		for i := range b {
			b[i] = byte(rng.IntN(128 + rng.IntN(129)))
		}
		if got, want := Text(string(b)), strings.ToValidUTF8(string(b), "\uFFFD"); got != want {
			t.Fatalf("%q: %q, not %q", b, got, want)
		}
	}
}

func BenchmarkText(b *testing.B) {
	for b.Loop() {
		for _, s := range []string{"eu-fra", "/v1/chat/completions", "req_01J9ZQ4YV9S2M3XK7T8B5C6D7E", "key_7f3a9c51d2"} {
			Text(s)
		}
	}
}
