package meter

import (
	"encoding/binary"

	"ringmain/controlplane/strict"
)

// Append appends the version byte and the record in deterministic CBOR (RFC
// 8949, section 4.2.1) to dst. The record is made for every request, hence by
// hand: a test compares with the library that decodes it.
func Append(dst []byte, r *Record) []byte {
	start := len(dst)
	e := encoder{b: append(dst, Version, 0, 0)} // at most 255 pairs: a head of two bytes
	e.text(1, string(r.Role))
	e.text(2, r.RequestID)
	e.number(3, r.At)
	e.text(4, r.Endpoint)
	e.optional(5, r.Key)
	e.optional(6, r.Org)
	e.optional(7, r.Project)
	e.optional(8, r.Model)
	e.optional(9, r.Served)
	e.optional(10, r.Upstream)
	e.text(11, r.EntryRegion)
	e.text(12, r.EntryNode)
	e.text(13, r.Region)
	e.text(14, r.Node)
	e.optional(15, r.Residency)
	e.number(16, int64(r.Status))
	e.optional(17, r.Code)
	e.truth(18, r.Streamed)
	e.count(19, r.TokensIn)
	e.count(20, r.TokensOut)
	e.count(21, r.CacheRead)
	e.count(22, r.CacheWrite)
	e.text(23, string(r.Source))
	e.number(24, r.LatencyMS)
	e.count(25, r.FirstTokenMS)
	e.number(26, int64(r.Attempts))
	e.truth(27, r.Refused)
	e.text(28, string(r.Ended))
	e.optional(29, r.Pool)
	e.optional(30, r.Retention)
	e.optional(31, r.Plan)
	e.optional(32, r.Fallback)
	e.count(33, int64(r.Splices))
	e.count(34, r.ReplayIn)
	e.count(35, r.ReplayOut)
	e.optional(36, r.Receipt)
	if e.pairs < 24 { // the head is one byte
		e.b = append(e.b[:start+2], e.b[start+3:]...)
		e.b[start+1] = majorMap | e.pairs
		return e.b
	}
	e.b[start+1], e.b[start+2] = majorMap|24, e.pairs
	return e.b
}

// Major types of CBOR, shifted to where the first byte has them.
const (
	majorUint = 0 << 5
	majorInt  = 1 << 5
	majorText = 3 << 5
	majorMap  = 5 << 5
	cborTrue  = 7<<5 | 21
)

// encoder appends the pairs of a map.
type encoder struct {
	b     []byte
	pairs byte
}

// head appends a major type and its argument, as short as it can be.
func (e *encoder) head(major byte, n uint64) {
	switch {
	case n < 24:
		e.b = append(e.b, major|byte(n))
	case n < 1<<8:
		e.b = append(e.b, major|24, byte(n))
	case n < 1<<16:
		e.b = binary.BigEndian.AppendUint16(append(e.b, major|25), uint16(n))
	case n < 1<<32:
		e.b = binary.BigEndian.AppendUint32(append(e.b, major|26), uint32(n))
	default:
		e.b = binary.BigEndian.AppendUint64(append(e.b, major|27), n)
	}
}

func (e *encoder) key(k uint64) {
	e.head(majorUint, k)
	e.pairs++
}

func (e *encoder) text(k uint64, s string) {
	s = strict.Text(s) // or nobody could read the record
	e.key(k)
	e.head(majorText, uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) optional(k uint64, s string) {
	if s != "" {
		e.text(k, s)
	}
}

func (e *encoder) number(k uint64, n int64) {
	e.key(k)
	if n < 0 {
		e.head(majorInt, uint64(-1-n))
		return
	}
	e.head(majorUint, uint64(n))
}

func (e *encoder) count(k uint64, n int64) {
	if n != 0 {
		e.number(k, n)
	}
}

func (e *encoder) truth(k uint64, v bool) {
	if v {
		e.key(k)
		e.b = append(e.b, cborTrue)
	}
}
