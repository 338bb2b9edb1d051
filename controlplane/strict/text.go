package strict

import (
	"strings"
	"unicode/utf8"
)

// Text is s as CBOR may carry it: with U+FFFD for what is not UTF-8.
func Text(s string) string {
	if ascii(s) || utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// ascii looks at eight bytes at a time, the last of which overlap: a record has
// dozens of short texts, at which utf8.ValidString looks byte by byte.
func ascii(s string) bool {
	var wide uint64
	if len(s) < 8 {
		for i := range len(s) {
			wide |= uint64(s[i])
		}
		return wide < utf8.RuneSelf
	}
	for i := 0; i+8 < len(s); i += 8 {
		wide |= word(s[i:])
	}
	return (wide|word(s[len(s)-8:]))&0x8080808080808080 == 0
}

func word(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}
