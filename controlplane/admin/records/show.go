package records

import (
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/registry"
)

// Meta is what every answer says of a record.
func Meta(rec *registry.Record) api.Meta {
	m := rec.Meta
	return api.Meta{ID: m.ID, Shard: string(m.Shard), Revision: m.Revision, Created: millis(m.Created), Updated: millis(m.Updated)}
}

func millis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// Millis is a time in Unix milliseconds; nil for 0.
func Millis(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := millis(ms)
	return &t
}

// ShowKey is a key without its secret, as every answer shows it.
func ShowKey(rec *registry.Record) api.Key {
	k := rec.Key
	return api.Key{
		Meta: Meta(rec), Project: k.Project, Hint: k.Hint,
		KeyInput: api.KeyInput{Name: k.Name, Class: k.Class, Expires: Millis(k.Expires)},
		Revoked:  Millis(k.Revoked), PrevUntil: Millis(k.PrevUntil),
	}
}

// OrgShard is where an org of the jurisdiction belongs that was created in region.
func OrgShard(jurisdiction, region string) controlplane.Shard {
	if jurisdiction == "" || jurisdiction == controlplane.JurisdictionAny {
		return controlplane.ShardAny(region)
	}
	return controlplane.ShardPinned(jurisdiction)
}

// CheckJurisdiction refuses what could not stand in an id.
func CheckJurisdiction(j string) error {
	ok := len(j) >= 2 && len(j) <= 4
	for _, c := range []byte(j) {
		ok = ok && c >= 'a' && c <= 'z'
	}
	if !ok {
		return problem.Invalid("jurisdiction", "Use any, or the two to four lowercase letters of a jurisdiction that has a region.")
	}
	return nil
}

// JurisdictionOf is the jurisdiction in the id of a record that belongs to an org.
func JurisdictionOf(id string) string {
	_, rest, _ := strings.Cut(id, "_")
	jurisdiction, _, _ := strings.Cut(rest, "_")
	return jurisdiction
}
