package safety

import (
	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// Notable is what the safety file must know of a frame.
func Notable(f *feed.Frame, entry *registry.Entry) []Entry {
	switch f.Type {
	case feed.FrameRevocation:
		return []Entry{{Revocation: f.Revocation}}
	case feed.FrameRecord:
		if rec := narrowing(f.Record); rec != nil {
			return []Entry{{Pin: f.Record}}
		}
	case feed.FrameEntry:
		return fromEntry(entry)
	default:
	}
	return nil
}

func fromEntry(e *registry.Entry) (found []Entry) {
	if e == nil {
		return nil
	}
	for i := range e.Changes {
		switch c := &e.Changes[i]; {
		case c.Op == registry.OpRevoke:
			r := registry.Revocation{Kind: c.Kind, ID: c.ID, Shard: e.Shard, At: c.At, Expires: c.Expires}
			found = append(found, Entry{Revocation: &r})
		case c.Op == registry.OpPut && c.Record != nil && narrows(c.Record):
			rec := *c.Record
			rec.Meta.Shard, rec.Meta.Revision = e.Shard, e.Seq
			if b, err := registry.EncodeRecord(&rec); err == nil {
				found = append(found, Entry{Pin: b})
			}
		}
	}
	return found
}

// narrowing decodes a record if it may be one that narrows. Keys, of which
// there are many, are told by the first bytes of the deterministic encoding.
func narrowing(b []byte) *registry.Record {
	if len(b) > 2 && b[0]>>5 == 5 && b[1] == 1 && b[2] == byte(registry.KindKey) {
		return nil
	}
	rec, err := registry.DecodeRecord(b)
	if err != nil || !narrows(rec) {
		return nil
	}
	return rec
}

// narrows reports whether stale data without this record could allow what it
// forbids: a policy that pins, forbids retention or confines to the org's own
// pool, and an org that may have given up roaming, which only its later stamp
// tells.
func narrows(r *registry.Record) bool {
	switch {
	case r.Policy != nil:
		return r.Policy.Residency != "" || r.Policy.NoRetention || r.Policy.Dedicated
	case r.Org != nil:
		return !r.Org.Roaming && r.Org.Jurisdiction == controlplane.JurisdictionAny && r.Meta.Updated > r.Meta.Created
	default:
		return false
	}
}
