package h2

import (
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Heads are encoded without a dynamic table: of our values most are new in each
// answer and would push out those that are not; so a block depends on nothing
// that was sent before, and is made without the connection's lock. The first
// block of a connection says so (RFC 7541, 4.2 and 6.3).
var noTable = []byte{0x20}

// fields are names of answers' fields as they begin a literal without indexing:
// by their index in the static table, if they are in it.
var fields = func() map[string][]byte {
	m := make(map[string][]byte)
	for name, index := range map[string]uint64{
		"Cache-Control": 24, "Content-Encoding": 26, "Content-Length": 28, "Content-Type": 31, "Date": 33, "Retry-After": 53,
		"Server": 54, "Vary": 59, "Allow": 22, "Etag": 34, "Location": 46, "Www-Authenticate": 61,
	} {
		m[name] = appendInt(nil, 0x00, 4, index)
	}
	for _, name := range []string{
		"Idc-Request-Id", "Idc-Entry-Region", "Idc-Region", "Idc-Replica", "Idc-Pool", "Idc-Upstream", "Idc-Upstream-Request-Id", "Idc-Route",
		"Idc-Residency", "Idc-Retention", "Idc-Attempts", "Idc-Region-Hint-Result", "Idc-Endpoint", "Idc-Error-Code", "Idc-Receipt",
		"X-Should-Retry", "Retry-After-Ms", "X-Request-Id", "Request-Id", "X-Accel-Buffering", "X-Content-Type-Options",
	} {
		m[name] = appendString([]byte{0x00}, strings.ToLower(name))
	}
	return m
}()

// appendInt appends an integer with a prefix of n bits (RFC 7541, 5.1).
func appendInt(b []byte, flags byte, n uint, v uint64) []byte {
	most := uint64(1)<<n - 1
	if v < most {
		return append(b, flags|byte(v))
	}
	b = append(b, flags|byte(most))
	for v -= most; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

func appendString(b []byte, s string) []byte {
	return append(appendInt(b, 0, 7, uint64(len(s))), s...)
}

// appendStatus begins a head.
func appendStatus(b []byte, status int) []byte {
	switch status {
	case http.StatusOK:
		return append(b, 0x88)
	case http.StatusNoContent:
		return append(b, 0x89)
	case http.StatusBadRequest:
		return append(b, 0x8c)
	case http.StatusNotFound:
		return append(b, 0x8d)
	case http.StatusInternalServerError:
		return append(b, 0x8e)
	}
	return appendString(append(b, 0x08), strconv.Itoa(status))
}

// appendField appends one field; what may not be sent over HTTP/2 is left out.
func appendField(b []byte, name string, values []string) []byte {
	known, ok := fields[name]
	if !ok {
		if !httpguts.ValidHeaderFieldName(name) {
			return b
		}
		known = appendString([]byte{0x00}, strings.ToLower(name))
	}
	for _, v := range values {
		if httpguts.ValidHeaderFieldValue(v) {
			b = appendString(append(b, known...), v)
		}
	}
	return b
}

// stamp is the present second as a Date field.
type stamp struct {
	second int64
	field  []byte
}

var lastStamp atomic.Pointer[stamp]

func appendDate(b []byte, now time.Time) []byte {
	s := lastStamp.Load()
	if second := now.Unix(); s == nil || s.second != second {
		s = &stamp{second, appendField(nil, "Date", []string{now.UTC().Format(http.TimeFormat)})}
		lastStamp.Store(s)
	}
	return append(b, s.field...)
}
