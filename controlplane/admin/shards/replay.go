package shards

import (
	"slices"

	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// This file is pure: what a replay must do, by a state.

// What the shard has now of what a quarantined change is about.
const (
	presentAbsent  = "absent"
	presentBefore  = "as before" // as it was when the histories parted
	presentSame    = "the same"
	presentChanged = "changed"
	presentRevoked = "revoked"
)

// present compares; revision is the last that both histories have of the record.
func present(s *ledger.State, c *registry.Change, revision uint64) string {
	if c.Op == registry.OpRevoke {
		if _, ok := s.Revoked(c.Kind, c.ID); ok {
			return presentRevoked
		}
		return presentAbsent
	}
	kind, id := c.Kind, c.ID
	if c.Op == registry.OpPut {
		kind, id = c.Record.Kind, c.Record.Meta.ID
	}
	rec, ok := s.Get(kind, id)
	switch {
	case c.Op == registry.OpOpen:
		return presentSame
	case !ok:
		return presentAbsent
	case c.Op == registry.OpPut && sameBut(c.Record, rec):
		return presentSame
	case rec.Meta.Revision <= revision:
		return presentBefore
	}
	return presentChanged
}

// sameBut compares all but what the shard itself writes into a record.
func sameBut(r, stored *registry.Record) bool {
	as := *r
	as.Meta = stored.Meta
	same, err := records.Equal(&as, stored)
	return err == nil && same
}

// again is what a replay must do to make c: nothing, if it is made already.
// It overwrites nothing that the present home wrote since the histories parted.
func again(s *ledger.State, c registry.Change, revision uint64) (todo []registry.Change, conflict error) {
	found := present(s, &c, revision)
	switch c.Op {
	case registry.OpPut:
		creates := c.IfRevision == 0 || c.IfRevision == registry.RevisionAbsent
		switch {
		case found == presentSame:
			return nil, nil
		case found == presentAbsent && creates:
			c.IfRevision = registry.RevisionAbsent
		case found == presentAbsent:
			return nil, since(c.Record.Kind, c.Record.Meta.ID, "deleted")
		case found == presentBefore:
			rec, _ := s.Get(c.Record.Kind, c.Record.Meta.ID)
			c.IfRevision = rec.Meta.Revision
		default:
			return nil, since(c.Record.Kind, c.Record.Meta.ID, "changed")
		}
	case registry.OpDelete:
		switch found {
		case presentAbsent:
			return nil, nil
		case presentBefore:
			rec, _ := s.Get(c.Kind, c.ID)
			c.IfRevision = rec.Meta.Revision
		default:
			return nil, since(c.Kind, c.ID, "changed")
		}
	case registry.OpRevoke:
		if found == presentRevoked {
			return nil, nil
		}
		c.IfRevision = 0
	default:
		return nil, nil // an epoch that was opened in vain
	}
	return []registry.Change{c}, nil
}

func since(kind registry.Kind, id, what string) error {
	return problem.Conflict("",
		kind.String()+" "+id+" was "+what+" by the present home since: make the change by hand if it is still wanted, and discard the entry.")
}

func revisionsOf(e *registry.Entry, at uint64) (all []revision) {
	for i := range e.Changes {
		id := e.Changes[i].ID
		if r := e.Changes[i].Record; r != nil {
			id = r.Meta.ID
		}
		all = append(all, revision{id, at})
	}
	return all
}

// about keeps what is said of the records that e changes.
func about(e *registry.Entry, seen []revision) (kept []revision) {
	for _, mine := range revisionsOf(e, 0) {
		for _, r := range seen {
			if r.ID == mine.ID {
				kept = append(kept, r)
			}
		}
	}
	return kept
}

// withRevocations adds to e what this region's safety set has of its records:
// elsewhere nobody knows it, if it was revoked in the history that lost, and
// the record must not come back without.
func withRevocations(s *ledger.State, e *registry.Entry) *registry.Entry {
	more := *e
	more.Changes = slices.Clone(e.Changes)
	for i := range e.Changes {
		if r := e.Changes[i].Record; r != nil {
			if v, ok := s.Revoked(r.Kind, r.Meta.ID); ok {
				more.Changes = append(more.Changes, registry.Change{Op: registry.OpRevoke, Kind: v.Kind, ID: v.ID, At: v.At, Expires: v.Expires})
			}
		}
	}
	return &more
}
