// Package jsonkit reads JSON as encoding/json does, for tests of who reads it
// otherwise.
package jsonkit

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// Valid says with encoding/json whether b is one JSON text in UTF-8, nested at
// most maxDepth deep.
func Valid(b []byte, maxDepth int) bool {
	if !utf8.Valid(b) || !json.Valid(b) {
		return false
	}
	depth, deepest := 0, 0
	dec := json.NewDecoder(bytes.NewReader(b))
	for {
		tok, err := dec.Token()
		if err != nil {
			return deepest <= maxDepth
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// Decode gives the object that b is, with its numbers as they are written; nil if
// it is none.
func Decode(b []byte) map[string]any {
	var m map[string]any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if dec.Decode(&m) != nil {
		return nil
	}
	return m
}

// Duplicates reports whether an object anywhere in b has two members of one name,
// whatever their case.
func Duplicates(b []byte) bool {
	dec := json.NewDecoder(bytes.NewReader(b))
	var level func() bool
	level = func() bool {
		tok, err := dec.Token()
		if err != nil {
			return false
		}
		seen := map[string]bool{}
		twice := false
		switch tok {
		case json.Delim('{'):
			for dec.More() {
				key, err := dec.Token()
				name, _ := key.(string)
				name = strings.ToLower(strings.ToUpper(name))
				if err != nil || seen[name] {
					twice = true
				}
				seen[name] = true
				twice = level() || twice
			}
			_, _ = dec.Token()
		case json.Delim('['):
			for dec.More() {
				twice = level() || twice
			}
			_, _ = dec.Token()
		}
		return twice
	}
	return level()
}
