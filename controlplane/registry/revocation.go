package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"ringmain/controlplane"
)

// Kinds of which there are no records: they are only members of the safety
// set, from cluster version 3.
const (
	KindCredential Kind = iota + 64 // what an upstream is called with, wherever it stands: CredentialID
	KindNode                        // a node by its name: NodeID
	KindToken                       // an operator's token: TokenID
	KindPin                         // an org must not leave a jurisdiction: PinID
)

var (
	safetyNames    = [...]string{"credential", "node", "token", "pin"}
	safetyPrefixes = [...]string{"crd", "nod", "tok", "pin"}
)

// Revocation is one member of the safety set. Accepted anywhere it holds
// everywhere, whatever becomes of the entry that brought it; only OpForget
// takes it out. Members merge by (Kind, ID): the earliest At, the latest Expires.
type Revocation struct {
	_       struct{} `cbor:",toarray"`
	Kind    Kind
	ID      string
	Shard   controlplane.Shard
	At      int64 // Unix milliseconds
	Expires int64 // Unix milliseconds when the credential would have ended by itself; 0 = never
}

// CredentialID names an upstream's credential by what it is, so that no record
// of any upstream brings it back: crd_ and 32 hex digits of its SHA-256.
func CredentialID(credential []byte) string {
	sum := sha256.Sum256(append([]byte("ringmain upstream credential\x00"), credential...))
	return "crd_" + hex.EncodeToString(sum[:16])
}

// NodeID names a node for good: nod_<region>/<role>/<node>.
func NodeID(region, role, node string) string { return "nod_" + region + "/" + role + "/" + node }

// ParseNodeID splits what NodeID joined.
func ParseNodeID(id string) (region, role, node string, ok bool) {
	rest, ok := strings.CutPrefix(id, "nod_")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 || !isRegionName(parts[0]) || parts[1] != "control" && parts[1] != "data" || !isNodeName(parts[2]) {
		return "", "", "", false
	}
	return parts[0], parts[1], parts[2], true
}

// TokenID names an operator's token by the SHA-256 of its text: tok_ and 64
// hex digits.
func TokenID(sum [sha256.Size]byte) string { return "tok_" + hex.EncodeToString(sum[:]) }

// PinID names the rule that the org's traffic stays in the jurisdiction:
// pin_<org id>_<jurisdiction>. An org of which several are known may run where
// all of them allow it.
func PinID(org, jurisdiction string) string { return "pin_" + org + "_" + jurisdiction }

// ParsePinID splits what PinID joined.
func ParsePinID(id string) (org, jurisdiction string, ok bool) {
	rest, ok := strings.CutPrefix(id, "pin_")
	i := strings.LastIndexByte(rest, '_')
	if !ok || i < 0 {
		return "", "", false
	}
	org, jurisdiction = rest[:i], rest[i+1:]
	_, ok = ParseID(KindOrg, org)
	return org, jurisdiction, ok && IsJurisdiction(jurisdiction) && jurisdiction != controlplane.JurisdictionAny
}

// parseSafetyID checks an id of a safety kind without its prefix, and returns
// the jurisdiction that says which shard holds it; "" = ShardGlobal.
func parseSafetyID(kind Kind, rest string) (jurisdiction string, ok bool) {
	switch kind {
	case KindCredential:
		return "", isHex(rest, 32)
	case KindNode:
		_, _, _, ok = ParseNodeID("nod_" + rest)
		return "", ok
	case KindToken:
		return "", isHex(rest, 2*sha256.Size)
	default:
		org, _, ok := ParsePinID("pin_" + rest)
		if !ok {
			return "", false
		}
		jurisdiction, ok = ParseID(KindOrg, org)
		return jurisdiction, ok
	}
}

func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

// isNodeName reports lowercase letters, digits and inner hyphens, 63 at most.
func isNodeName(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

// Forget is the change that takes v out of the safety set.
func (v *Revocation) Forget(now int64) Change {
	return Change{Op: OpForget, Kind: v.Kind, ID: v.ID, At: v.At, Expires: v.Expires, Now: now}
}
