// Package syntax reads fields, names and the framing of chunks, for both sides of
// HTTP/1.1 here: that to clients and that to upstreams. It takes nothing that two
// readers might take for different things, and reads from memory only: who waits
// for what, and where it goes, is each side's own.
package syntax

import "strings"

// token marks the bytes of a field's name (RFC 9110, 5.6.2).
var token = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

// IsToken says that s is a name: of a field, or of a method.
func IsToken[T string | []byte](s T) bool {
	for i := range len(s) {
		if !token[s[i]] {
			return false
		}
	}
	return len(s) > 0
}

// IsPrintable says that s holds no control character but tabs.
func IsPrintable[T string | []byte](s T) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// Same says that s is a word of ASCII, in any case. To strings.EqualFold alone a
// Kelvin sign is a k.
func Same(s, word string) bool { return len(s) == len(word) && strings.EqualFold(s, word) }

// Trim takes spaces and tabs off both ends.
func Trim[T string | []byte](s T) T {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// Field splits a line of a head or trailer, without its end. Folded lines (RFC
// 9112, 5.2), spaces before the colon (5.1) and control characters are none.
func Field[T string | []byte](line T) (name, value T, ok bool) {
	n := 0
	for n < len(line) && token[line[n]] {
		n++
	}
	if n == 0 || n == len(line) || line[n] != ':' || !IsPrintable(line[n+1:]) {
		return name, value, false
	}
	return line[:n], Trim(line[n+1:]), true
}
