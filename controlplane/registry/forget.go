package registry

import (
	"slices"
	"time"

	"ringmain/controlplane"
)

// forgetAfter is how long after a revoked key's end its revocation may be
// forgotten: well above what clocks of regions differ by.
const forgetAfter = 24 * time.Hour

// spent reports whether nothing that this shard holds or will hold is kept out
// by v any more at the time now (Unix milliseconds): a key, whose id nobody is
// given twice, that ended long ago by itself and whose record is deleted. A
// credential, node, token or pin can be written again, so none of them ever is.
func (sh *shard) spent(v *Revocation, now int64) bool {
	return v.Kind == KindKey && v.Expires != 0 && v.Expires <= now-forgetAfter.Milliseconds() && !sh.has(v.ID)
}

// surelyGone reports whether the record was deleted by what is confirmed, so
// that no history and no replay can bring it back.
func (sh *shard) surelyGone(id string) bool {
	if sh.has(id) || sh.base() > sh.info.Confirmed || sh.waits(id) {
		return false
	}
	for h := range sh.tail.All() {
		for i := range h.Entry.Changes {
			if h.Entry.Changes[i].ref(sh.info.Shard).ID == id {
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
		if slices.ContainsFunc(q.Entry.Changes, func(c Change) bool { return c.ref(sh.info.Shard).ID == id }) {
			return true
		}
	}
	return false
}

// Spent lists members of the shard's safety set that its home may forget at
// the time now (Unix milliseconds), by (kind, id) and at most limit, once every
// region holds the shard as far as this copy does: before, a cut could bring the
// record back.
func (s *State) Spent(name controlplane.Shard, now int64, limit int) (spent []Revocation) {
	sh := s.orNew(name)
	for v := range sh.revoked.All() {
		if len(spent) == limit {
			break
		}
		if sh.spent(v, now) && !sh.waits(v.ID) {
			spent = append(spent, *v)
		}
	}
	return spent
}

// Forget is the change that takes v out of the safety set.
func (v *Revocation) Forget(now int64) Change {
	return Change{Op: OpForget, Kind: v.Kind, ID: v.ID, At: v.At, Expires: v.Expires, Now: now}
}
