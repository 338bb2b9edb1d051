package syntax_test

import (
	"strings"
	"testing"

	"ringmain/dataplane/syntax"
)

func TestChunkSizes(t *testing.T) {
	for line, want := range map[string]int64{
		"0": 0, "1a": 26, "1A": 26, "00a": 10, "5;ext": 5, "5;ext=\"v\"": 5, "5;a b ": 5, "5 ": 5, "5 \t": 5, "fffffffffffffff": 1<<60 - 1,
		"": -1, " 5": -1, "+5": -1, "-5": -1, "0x5": -1, "5 5": -1, "5,": -1, "g": -1, ";a": -1, "5\r": -1, "5;a\x00": -1, "5;a\nb": -1, "5;a\rb": -1,
		"1000000000000000": -1, "0000000000000005": -1, "5_0": -1, "5 ;a": -1, "5 \t;a": -1,
	} {
		var c syntax.Chunks
		if _, ok := c.Next([]byte(line + "\r\n")); ok != (want >= 0) || ok && c.Left != want {
			t.Errorf("%q: %d, %t; want %d", line, c.Left, ok, want)
		}
	}
}

// unchunk reads a body that comes in pieces of size bytes. ok says that it ended
// as it must; rest is how much of it was not needed for that.
func unchunk(raw []byte, size int) (content string, rest int, ok bool) {
	var c syntax.Chunks
	var out []byte
	for r, w := 0, 0; ; {
		for c.Left > 0 && r < w {
			n := min(int(min(c.Left, 1<<20)), w-r)
			out = append(out, raw[r:r+n]...)
			r += n
			c.Left -= int64(n)
		}
		if c.Left == 0 {
			used, ok := c.Next(raw[r:w])
			r += used
			switch {
			case !ok:
				return string(out), 0, false
			case c.Over:
				return string(out), len(raw) - r, true
			case c.Left > 0:
				continue
			case w-r >= 1<<10:
				panic("more is kept than a line")
			}
		}
		if w == len(raw) {
			return string(out), 0, false
		}
		w = min(w+size, len(raw))
	}
}

func TestChunks(t *testing.T) {
	line := func(n int) string { return "1;" + strings.Repeat("x", n-len("1;\r\n")) + "\r\n" }
	field := func(n int) string { return "X:" + strings.Repeat("y", n-len("X:\r\n")) + "\r\n" }
	for raw, want := range map[string]string{
		"0\r\n\r\n":     "",
		"0\r\n\r\nnext": "",
		"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n":       "hello world",
		"2\r\n\r\n\r\n0\r\n\r\n":                           "\r\n",
		"1\r\na\r\n0\r\nX: y\r\nZ: w\r\n\r\n":              "a",
		line(1<<10) + "a\r\n0\r\n\r\n":                     "a",
		"0\r\n" + strings.Repeat(field(1<<10), 4) + "\r\n": "",
		strings.Repeat("1\r\na\r\n", 20_000) + "0\r\n\r\n": strings.Repeat("a", 20_000),

		"0\r\n":                           "malformed",
		"1\r\na":                          "malformed",
		"1\na\r\n0\r\n\r\n":               "malformed",
		"1\r\na\n0\r\n\r\n":               "malformed",
		"1\r\na\n\r\n":                    "malformed",
		"1\r\nab\r\n0\r\n\r\n":            "malformed",
		"1\r\na0\r\n\r\n":                 "malformed",
		"0\r\n\n":                         "malformed",
		"0\r\nX: y\n\r\n":                 "malformed",
		"0\r\nx\r\n\r\n":                  "malformed",
		"0\r\n X: y\r\n\r\n":              "malformed",
		line(1<<10+1) + "a\r\n0\r\n\r\n":  "malformed",
		"0\r\n" + field(1<<10+1) + "\r\n": "malformed",
		"0\r\n" + strings.Repeat(field(1<<10), 4) + "X:\r\n\r\n": "malformed",
		strings.Repeat(line(1<<10)+"a\r\n", 20) + "0\r\n\r\n":    "malformed",
	} {
		for _, size := range []int{1, 2, 3, 7, 1 << 10, len(raw)} {
			got, rest, ok := unchunk([]byte(raw), size)
			if !ok {
				got = "malformed"
			}
			if got != want || ok && rest != len("next")*strings.Count(raw, "next") {
				t.Errorf("%.40q in pieces of %d: %.40q, %d left, want %.40q", raw, size, got, rest, want)
			}
		}
	}
}
