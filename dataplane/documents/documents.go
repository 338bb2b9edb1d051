// Package documents makes the pages that a node publishes about itself under
// /legal and /.well-known: it checks those that the operator supplies, and
// writes those that follow from the running state. It is pure: files are read
// by others, and the time is an argument.
package documents

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Names of the documents that an operator supplies.
const (
	Security   = "security.txt"
	DPA        = "dpa"
	AUP        = "aup"
	Compliance = "compliance"
)

// maxSize bounds one document, in bytes.
const maxSize = 1 << 20

// types of files that can be published, by their ending.
var types = map[string]string{
	".txt":  "text/plain; charset=utf-8",
	".md":   "text/markdown; charset=utf-8",
	".html": "text/html; charset=utf-8",
	".json": "application/json",
	".pdf":  "application/pdf",
}

// TypeOf is the content type under which file is published. ok is false for
// endings that are not published.
func TypeOf(file string) (contentType string, ok bool) {
	contentType, ok = types[strings.ToLower(filepath.Ext(file))]
	return contentType, ok
}

// Check says what is wrong with a document, so that a node can refuse to start
// with it. now is compared with the expiry of security.txt.
func Check(name, contentType string, b []byte, now time.Time) error {
	switch {
	case len(b) == 0:
		return errors.New("the document is empty")
	case len(b) > maxSize:
		return fmt.Errorf("the document has %d bytes, at most %d are published", len(b), maxSize)
	case strings.HasPrefix(contentType, "text/") && !utf8.Valid(b):
		return errors.New("the document is not UTF-8")
	case name == Security:
		_, err := CheckSecurity(b, now)
		return err
	}
	return nil
}

// CheckSecurity checks a security.txt (RFC 9116), signed or not, and returns
// when it expires.
func CheckSecurity(b []byte, now time.Time) (expires time.Time, err error) {
	contacts, languages := 0, 0
	for n, line := range unsigned(b) {
		line = strings.TrimRight(line, " \t\r")
		if line == "" || line[0] == '#' {
			continue
		}
		field, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !ok || field == "" || strings.ContainsAny(field, " \t") || value == "" {
			return expires, fmt.Errorf("line %d is neither a comment nor `Field: value`", n)
		}
		if strings.HasPrefix(strings.ToLower(value), "http:") {
			return expires, fmt.Errorf("line %d: %s names a page over http: only https is allowed (RFC 9116, section 2.3)", n, field)
		}
		switch strings.ToLower(field) {
		case "contact":
			if scheme, _, ok := strings.Cut(value, ":"); !ok || strings.ContainsAny(scheme, " @/") {
				return expires, fmt.Errorf("line %d: Contact must be a URI such as mailto:security@example.com", n)
			}
			contacts++
		case "expires":
			if !expires.IsZero() {
				return expires, fmt.Errorf("line %d: Expires is given twice", n)
			}
			if expires, err = time.Parse(time.RFC3339, value); err != nil {
				return time.Time{}, fmt.Errorf("line %d: Expires must be a date and time as in 2027-06-30T00:00:00Z, got %q", n, value)
			}
		case "preferred-languages":
			if languages++; languages > 1 {
				return expires, fmt.Errorf("line %d: Preferred-Languages is given twice", n)
			}
		}
	}
	switch {
	case contacts == 0:
		return expires, errors.New("Contact is missing: say where reports go (RFC 9116, section 2.5.3)") //nolint:staticcheck // the field's name begins it
	case expires.IsZero():
		return expires, errors.New("Expires is missing: say until when this holds (RFC 9116, section 2.5.5)") //nolint:staticcheck // as above
	case !expires.After(now):
		return expires, fmt.Errorf("it expired at %s: renew it", expires.Format(time.RFC3339))
	}
	return expires, nil
}

// unsigned gives the numbered lines of b without the frame of an OpenPGP
// cleartext signature (RFC 4880, section 7), if there is one.
func unsigned(b []byte) func(yield func(int, string) bool) {
	return func(yield func(int, string) bool) {
		signed, head := bytes.HasPrefix(b, []byte("-----BEGIN PGP SIGNED MESSAGE-----")), false
		n := 0
		for line := range strings.SplitSeq(string(b), "\n") {
			n++
			switch {
			case signed && n == 1:
				head = true
				continue
			case head:
				head = strings.TrimSpace(line) != ""
				continue
			case signed && strings.HasPrefix(line, "-----BEGIN PGP SIGNATURE-----"):
				return
			case signed:
				line = strings.TrimPrefix(line, "- ")
			}
			if !yield(n, line) {
				return
			}
		}
	}
}

// prefersHTML reports whether an Accept header (RFC 9110, section 12.5.1) would
// rather have a page for people than JSON. Whoever does not say gets JSON.
func prefersHTML(accept string) bool {
	html, json, any := -1.0, -1.0, -1.0
	for part := range strings.SplitSeq(accept, ",") {
		kind, params, _ := strings.Cut(part, ";")
		q := 1.0
		for param := range strings.SplitSeq(params, ";") {
			if v, ok := strings.CutPrefix(strings.TrimSpace(param), "q="); ok {
				f, err := strconv.ParseFloat(v, 64)
				if err != nil || f < 0 || f > 1 {
					f = 0
				}
				q = f
			}
		}
		switch strings.ToLower(strings.TrimSpace(kind)) {
		case "text/html":
			html = q
		case "application/json":
			json = q
		case "*/*", "application/*":
			any = max(any, q)
		}
	}
	if json >= 0 {
		return html > json
	}
	return html > 0 && html >= any
}
