package caller

import (
	"bufio"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

var bearer = regexp.MustCompile(`\A(?i:bearer)(?: (.*))?\z`)

// naivePresented is Presented by what its rules say: every credential that is
// given must be one, and the same.
func naivePresented(h http.Header) (key string, ok bool) {
	auth, other := h.Values("authorization"), h.Values("x-api-key")
	switch {
	case len(auth) > 1 || len(other) > 1:
		return "", false
	case len(auth) == 0 && len(other) == 0:
		return "", true
	case len(auth) == 0:
		return other[0], true
	}
	m := bearer.FindStringSubmatch(auth[0])
	switch {
	case m == nil && len(other) == 1:
		return "", false
	case m == nil:
		return "", true
	}
	key = strings.TrimSpace(m[1])
	if len(other) == 0 {
		return key, true
	}
	return other[0], key == "" || key == other[0]
}

// FuzzPresented: two readers of a request's credentials find the same key, or
// that it has none, or more than one.
func FuzzPresented(f *testing.F) {
	for _, s := range []string{
		"authorization: Bearer k", "authorization: bearer  k \r\nx-api-key: k", "authorization: Bearer", "authorization: Bearer k\r\nx-api-key: l", "x-api-key: k\r\nX-API-Key: k",
		"authorization: Basic k\r\nx-api-key: k", "authorization: Bearer\tk", "authorization:  BEARER k,k", "authorization: \r\nx-api-key: k", "x-api-key:", "authorization: Bearer \r\nx-api-key: k",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, fields string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n\r\n")))
		if err != nil {
			return
		}
		got, refused := Presented(r.Header)
		want, ok := naivePresented(r.Header)
		if ok != (refused == nil) || got != want && ok {
			t.Fatalf("%q presents %q, %v; the twin says %q, %t", fields, got, refused, want, ok)
		}
	})
}
