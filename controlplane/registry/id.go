package registry

import (
	"fmt"
	"io"
	"strings"
	"time"

	"ringmain/controlplane"
)

var kindNames = [...]string{
	KindOrg: "org", KindProject: "project", KindKey: "key", KindUpstream: "upstream",
	KindRoute: "route", KindPolicy: "policy", KindRegion: "region", KindRelocation: "relocation",
}

var kindPrefixes = [...]string{
	KindOrg: "org", KindProject: "prj", KindKey: "key", KindUpstream: "ups",
	KindRoute: "rte", KindPolicy: "pol", KindRegion: "reg", KindRelocation: "rel",
}

func (k Kind) Known() bool { return k >= KindOrg && k <= KindRelocation }

// safety reports a kind of which there are no records, but members of the
// safety set.
func (k Kind) safety() bool { return k >= KindCredential && k <= KindPin }

// Global reports whether what is of the kind lives in ShardGlobal.
func (k Kind) Global() bool {
	switch k {
	case KindUpstream, KindRoute, KindRegion, KindCredential, KindNode, KindToken:
		return true
	}
	return false
}

// String names the kind: org, project, key, upstream, route, policy, region;
// credential, node, token, pin.
func (k Kind) String() string {
	switch {
	case k.Known():
		return kindNames[k]
	case k.safety():
		return safetyNames[k-KindCredential]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Prefix is what ids of the kind begin with, without the "_"; "" if the kind is unknown.
func (k Kind) Prefix() string {
	switch {
	case k.Known():
		return kindPrefixes[k]
	case k.safety():
		return safetyPrefixes[k-KindCredential]
	}
	return ""
}

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// NewID returns <prefix>_<jurisdiction>_<6 base62 digits of at's second><10
// random base62 digits>, or without its second part if jurisdiction is "". It
// panics if random fails, which crypto/rand.Reader never does.
func NewID(prefix, jurisdiction string, at time.Time, random io.Reader) string {
	id := make([]byte, 0, 32)
	id = append(append(id, prefix...), '_')
	if jurisdiction != "" {
		id = append(append(id, jurisdiction...), '_')
	}
	var digits [6]byte
	second := uint64(max(at.Unix(), 0))
	for i := len(digits) - 1; i >= 0; i-- {
		digits[i] = base62[second%62]
		second /= 62
	}
	id = append(id, digits[:]...)
	var buf [16]byte
	for n := 0; n < 10; {
		if _, err := io.ReadFull(random, buf[:]); err != nil {
			panic(fmt.Sprintf("registry: random source failed: %v", err))
		}
		for _, b := range buf {
			if b < 62*4 && n < 10 { // larger bytes would make some digits likelier
				id = append(id, base62[b%62])
				n++
			}
		}
	}
	return string(id)
}

// RegionID returns the id of the region called name.
func RegionID(name string) string { return "reg_" + name }

// ParseID splits an id of the kind, and reports whether its shape is right.
// The jurisdiction is empty for the kinds that live in ShardGlobal.
func ParseID(kind Kind, id string) (jurisdiction string, ok bool) {
	rest, ok := strings.CutPrefix(id, kind.Prefix()+"_")
	if kind.safety() {
		jurisdiction, safe := parseSafetyID(kind, rest)
		return jurisdiction, ok && safe
	}
	if !ok || !kind.Known() {
		return "", false
	}
	if kind == KindRegion {
		return "", isRegionName(rest)
	}
	if !kind.Global() {
		jurisdiction, rest, ok = strings.Cut(rest, "_")
		if !ok || !IsJurisdiction(jurisdiction) {
			return "", false
		}
	}
	if kind == KindKey && len(rest) != 16 || len(rest) < 10 || len(rest) > 32 {
		return "", false
	}
	for _, c := range []byte(rest) {
		if !isAlphanumeric(c) {
			return "", false
		}
	}
	return jurisdiction, true
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// IsJurisdiction reports two to four lowercase letters; "any" is one.
func IsJurisdiction(s string) bool {
	if len(s) < 2 || len(s) > 4 {
		return false
	}
	for _, c := range []byte(s) {
		if c < 'a' || c > 'z' {
			return false
		}
	}
	return true
}

// isRegionName reports lowercase letters, digits and inner hyphens, 32 at most.
func isRegionName(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 32 && s[0] != '-' && s[len(s)-1] != '-'
}

const anyPrefix = "any-"

// PinnedTo returns the jurisdiction of a shard of pinned orgs.
func PinnedTo(shard controlplane.Shard) (jurisdiction string, ok bool) {
	return string(shard), IsJurisdiction(string(shard)) && shard != controlplane.JurisdictionAny
}

func IsShard(shard controlplane.Shard) bool {
	if _, pinned := PinnedTo(shard); pinned || shard == controlplane.ShardGlobal {
		return true
	}
	region, ok := strings.CutPrefix(string(shard), anyPrefix)
	return ok && isRegionName(region)
}

// Holds reports whether an id of that kind and jurisdiction belongs in shard.
func Holds(shard controlplane.Shard, kind Kind, jurisdiction string) bool {
	switch {
	case kind.Global():
		return shard == controlplane.ShardGlobal
	case jurisdiction == controlplane.JurisdictionAny:
		return strings.HasPrefix(string(shard), anyPrefix)
	}
	return shard == controlplane.ShardPinned(jurisdiction)
}
