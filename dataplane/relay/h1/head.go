package h1

import (
	"bytes"
	"errors"
	"io"

	"ringmain/dataplane/syntax"
)

// Head is what is kept of an answer's head. Nothing else passes.
type Head struct {
	Status      int
	Length      int64 // of the body; -1 = its end will tell
	ContentType string
	Encoding    string // content-encoding
	RequestID   string // x-request-id, or else request-id

	// Of answers other than 200.
	RetryAfter, RetryAfterMS string

	old       bool // HTTP/1.0
	chunked   bool
	hasLength bool
	close     bool
	keep      bool // asked for by an HTTP/1.0 server
}

const (
	maxInterim = 8 // answers 1xx before the true one
	maxShown   = 1 << 10
)

// head reads the head of the answer, and skips interim ones. answerless: the
// request's method has answers without a body (HEAD).
func (s *source) head(answerless bool) (Head, error) {
	left := maxHead
	for range maxInterim {
		h, used, err := s.oneHead(left)
		if err != nil {
			return Head{}, err
		}
		left -= used
		switch {
		case h.Status == 101:
			return Head{}, ErrUpgrade
		case h.Status >= 200:
			if answerless || h.Status == 204 || h.Status == 304 {
				h.chunked, h.Length = false, 0
			}
			return h, nil
		}
	}
	return Head{}, errInterim
}

func (s *source) oneHead(left int) (h Head, used int, err error) {
	line, err := s.line(left)
	if err != nil {
		return h, 0, err
	}
	if err := h.status(line); err != nil {
		return h, 0, err
	}
	for {
		if used += len(line) + 2; used >= left {
			return h, used, errTooLong
		}
		if line, err = s.line(left - used); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return h, used, err
		}
		if len(line) == 0 {
			return h, used + 2, h.settle()
		}
		name, value, ok := syntax.Field(line)
		if !ok {
			return h, used, errField
		}
		if err := h.take(name, value); err != nil {
			return h, used, err
		}
	}
}

// status reads "HTTP/1.1 200 OK"; the reason, and the space before it, may be
// missing.
func (h *Head) status(line []byte) error {
	if len(line) < len("HTTP/1.1 200") || string(line[:7]) != "HTTP/1." || line[8] != ' ' {
		return errStatusLine
	}
	switch line[7] {
	case '0':
		h.old = true
	case '1':
	default:
		return errVersion
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return errStatusLine
		}
		h.Status = 10*h.Status + int(c-'0')
	}
	if h.Status < 100 || len(line) > 12 && line[12] != ' ' || !syntax.IsPrintable(line) {
		return errStatusLine
	}
	h.Length = -1
	return nil
}

// is compares a field's name with one in lower case.
func is(name []byte, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func (h *Head) take(name, value []byte) error {
	switch len(name) { // most fields are nobody's
	case len("connection"):
		if is(name, "connection") {
			h.connection(value)
		} else if is(name, "request-id") && h.RequestID == "" {
			h.RequestID = shown(value)
		}
	case len("content-type"):
		if is(name, "content-type") && h.ContentType == "" {
			h.ContentType = shown(value)
		} else if is(name, "x-request-id") {
			h.RequestID = shown(value)
		}
	case len("content-length"):
		if is(name, "content-length") {
			return h.length(value)
		} else if is(name, "retry-after-ms") && h.Status != 200 {
			h.RetryAfterMS = shown(value)
		}
	case len("content-encoding"):
		if is(name, "content-encoding") {
			h.Encoding = shown(value)
		}
	case len("transfer-encoding"):
		if is(name, "transfer-encoding") {
			if h.chunked || h.old || !is(value, "chunked") {
				return errTransfer
			}
			h.chunked = true
		}
	case len("retry-after"):
		if is(name, "retry-after") && h.Status != 200 {
			h.RetryAfter = shown(value)
		}
	}
	return nil
}

// shown copies a value that leaves this package.
func shown(value []byte) string {
	switch string(value) { // without a copy for the usual ones
	case "application/json":
		return "application/json"
	case "application/json; charset=utf-8":
		return "application/json; charset=utf-8"
	case "text/event-stream":
		return "text/event-stream"
	case "text/event-stream; charset=utf-8":
		return "text/event-stream; charset=utf-8"
	}
	return string(value[:min(len(value), maxShown)])
}

func (h *Head) connection(value []byte) {
	for len(value) > 0 {
		option, rest, _ := bytes.Cut(value, []byte(","))
		option, value = syntax.Trim(option), rest
		h.close = h.close || is(option, "close")
		h.keep = h.keep || is(option, "keep-alive")
	}
}

// length takes a content-length: once, or the same again.
func (h *Head) length(value []byte) error {
	if len(value) == 0 || len(value) > 18 {
		return errLength
	}
	var n int64
	for _, c := range value {
		if c < '0' || c > '9' {
			return errLength
		}
		n = 10*n + int64(c-'0')
	}
	if h.hasLength && n != h.Length {
		return errLength
	}
	h.Length, h.hasLength = n, true
	return nil
}

// settle decides how the body ends (RFC 9112, 6.3).
func (h *Head) settle() error {
	if h.chunked && h.hasLength {
		return errBoth
	}
	return nil
}

// reusable says that the connection may serve again after the body.
func (h *Head) reusable() bool {
	return !h.close && (!h.old || h.keep) && (h.chunked || h.Length >= 0)
}
