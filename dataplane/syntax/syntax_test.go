package syntax_test

import (
	"testing"

	"go.uber.org/goleak"

	"ringmain/dataplane/syntax"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestField(t *testing.T) {
	for line, want := range map[string]string{
		"a: b": "a|b", "A:b": "A|b", "x-y:": "x-y|", "a: \t b c\t ": "a|b c", "a:b:c": "a|b:c", "a: \xffé": "a|\xffé", "a: b\tc": "a|b\tc",
		"": "", ":": "", ": b": "", "a": "", "a : b": "", "a\t: b": "", " a: b": "", "\ta: b": "", "a b: c": "", "a\x00: b": "", "ä: b": "",
		"a: b\r": "", "a: b\rc": "", "a: b\nc": "", "a: \x00": "", "a: \x7f": "", "a: \x0bb": "", "(a): b": "", "a,b: c": "",
	} {
		name, value, ok := syntax.Field(line)
		inBytes, _, okBytes := syntax.Field([]byte(line))
		if got := name + "|" + value; ok != (want != "") || ok && got != want || okBytes != ok || string(inBytes) != name {
			t.Errorf("%q: %q, %t; want %q", line, got, ok, want)
		}
	}
}

func TestSame(t *testing.T) {
	for s, want := range map[string]bool{"chunked": true, "ChunKED": true, "chun\u212aed": false, "chunke": false, "chunkedd": false, "": false} {
		if syntax.Same(s, "chunked") != want {
			t.Errorf("%q: %t", s, !want)
		}
	}
	if syntax.Same("clo\u017fe", "close") {
		t.Error("a long s is no s")
	}
}

func TestTokens(t *testing.T) {
	for s, want := range map[string]bool{"GET": true, "x-1": true, "!#$%&'*+-.^_`|~": true, "": false, "a b": false, "a/b": false, "a\n": false, "\x80": false, "a\"": false} {
		if syntax.IsToken(s) != want {
			t.Errorf("%q: %t", s, !want)
		}
	}
}
