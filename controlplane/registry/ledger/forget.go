package ledger

import (
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// surelyGone reports whether the record was deleted by what is confirmed, so
// that no history and no replay can bring it back.
func (sh *shard) surelyGone(id string) bool {
	if sh.content.Has(id) || sh.base() > sh.info.Confirmed || sh.waits(id) {
		return false
	}
	for h := range sh.tail.All() {
		for i := range h.Entry.Changes {
			if h.Entry.Changes[i].Ref(sh.info.Shard).ID == id {
				return false
			}
		}
	}
	return true
}

// waits reports whether the quarantine names the record: somebody may replay its
// creation alone, which says less of its end than the revocation does.
func (sh *shard) waits(id string) bool {
	for q := range sh.lost.All() {
		if slices.ContainsFunc(q.Entry.Changes, func(c registry.Change) bool { return c.Ref(sh.info.Shard).ID == id }) {
			return true
		}
	}
	return false
}

// Spent lists members of the shard's safety set that its home may forget at
// the time now (Unix milliseconds), by (kind, id) and at most limit, once every
// region holds the shard as far as this copy does: before, a cut could bring the
// record back.
func (s *State) Spent(name controlplane.Shard, now int64, limit int) (spent []registry.Revocation) {
	sh := s.orNew(name)
	for v := range sh.content.Revocations() {
		if len(spent) == limit {
			break
		}
		if sh.content.Spent(v, now) && !sh.waits(v.ID) {
			spent = append(spent, *v)
		}
	}
	return spent
}
