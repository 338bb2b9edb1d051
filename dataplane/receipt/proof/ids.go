package proof

import (
	"crypto/sha256"
	"strings"
	"time"
)

// TagAt is where in a request id the tag of the answering node stands: after
// "req_" and the ten characters of the time. TagSize is its length.
const (
	TagAt   = 14
	TagSize = 4
)

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// NodeTag is 20 bits of the node's name, as Crockford's base32. It saves asking
// every node for a receipt; it is no secret, and two nodes may share one.
func NodeTag(region, node string) string {
	sum := sha256.Sum256([]byte("ringmain node " + region + "/" + node))
	bits := uint32(sum[0])<<12 | uint32(sum[1])<<4 | uint32(sum[2])>>4
	return string([]byte{crockford[bits>>15], crockford[bits>>10&31], crockford[bits>>5&31], crockford[bits&31]})
}

// AnsweredBy reports whether that node may have answered the request: ask it.
func AnsweredBy(requestID, region, node string) bool {
	return len(requestID) >= TagAt+TagSize && requestID[TagAt:TagAt+TagSize] == NodeTag(region, node)
}

// ValidID reports whether a request id has the form of ours.
func ValidID(id string) bool {
	if len(id) != 30 || !strings.HasPrefix(id, "req_") {
		return false
	}
	for i := 4; i < len(id); i++ {
		if strings.IndexByte(crockford, id[i]) < 0 {
			return false
		}
	}
	return true
}

// Arrived is when a request arrived, to the millisecond, as its id says.
func Arrived(requestID string) (time.Time, bool) {
	if !ValidID(requestID) {
		return time.Time{}, false
	}
	ms := int64(0)
	for i := 4; i < TagAt; i++ {
		ms = ms<<5 | int64(strings.IndexByte(crockford, requestID[i]))
	}
	return time.UnixMilli(ms), true
}
