package ownership

import (
	"fmt"

	"ringmain/controlplane"
)

// Reason says why a copy refused, and so what its sender does next.
type Reason uint8

// Reasons.
const (
	Deposed   Reason = iota + 1 // a higher epoch was promised: commit that promise, stop writing, follow; or take over above it
	Gap                         // the entry before is not held: send from Copy.Common on, or from Have downwards, or a snapshot
	Behind                      // the snapshot is not ahead of this copy: send entries after Last
	Diverged                    // a confirmed entry would be cut: whoever sends has been deposed; or, after force on both sides, an operator must choose
	Unsealed                    // the epoch to be opened is not the one promised, or the base is not where the copy ends: seal again, higher
	Malformed                   // the sender breaks the rules: stop, and look at it
)

var moves = [...]string{
	Deposed:   "a higher epoch was promised here: stop writing, then follow it or take over above it",
	Gap:       "the entry before it is not held here: send earlier ones, or a snapshot",
	Behind:    "the snapshot is not ahead of this copy: send the entries after its end",
	Diverged:  "a confirmed entry would be cut: either the sender was deposed and this copy has not heard by whom, or two halves were both forced and one must be removed and added as a new member",
	Unsealed:  "the epoch was not promised here, or not on top of this base: seal again with a higher one",
	Malformed: "what was sent breaks the rules of ownership: look at its sender",
}

// Refused says that nothing changed, and why.
type Refused struct { //nolint:errname // it reads as what a copy does: it refused
	Reason   Reason
	Promised controlplane.Epoch
	Last     controlplane.Point
	Have     controlplane.Point // Gap: what is held where the entry before should be; Last if that is earlier
}

func (r *Refused) Error() string {
	return fmt.Sprintf("%s (promised %s, ends at %s.%d)", moves[r.Reason], r.Promised, r.Last.Epoch, r.Last.Seq)
}

// Unwrap gives controlplane.ErrNotHome for a deposed sender.
func (r *Refused) Unwrap() error {
	if r.Reason == Deposed {
		return controlplane.ErrNotHome
	}
	return nil
}

func (c Copy) refuse(why Reason) *Refused {
	return &Refused{Reason: why, Promised: c.Promised, Last: c.Last, Have: c.Last}
}
