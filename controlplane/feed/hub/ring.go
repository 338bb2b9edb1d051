package hub

import (
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// item is one entry in a ring, encoded as it travels.
type item struct {
	point  controlplane.Point
	sender controlplane.Epoch
	frame  []byte
}

// ring holds the recent entries of one shard in the order they were applied.
// Sequences are contiguous, so a point is found by subtraction; its epoch must
// match too, because after a takeover two histories may hold the same sequence.
type ring struct {
	known bool               // base is known
	base  controlplane.Point // the point before the first item; with no items, the shard's point
	items []item             // items[:head] are gone
	head  int
	bytes int // of the frames held

	primed  bool // members, home and epoch are known
	members []string
	home    string
	epoch   controlplane.Epoch // the shard's current epoch
}

// complete reports whether the ring can be served from.
func (r *ring) complete() bool { return r.known && r.primed }

func (r *ring) live() []item { return r.items[r.head:] }

// last is the shard's point as far as the ring was told.
func (r *ring) last() controlplane.Point {
	if len(r.items) > r.head {
		return r.items[len(r.items)-1].point
	}
	return r.base
}

// after returns the items that follow p, and false if p is no point of the
// history that the ring holds.
func (r *ring) after(p controlplane.Point) ([]item, bool) {
	if !r.known || p.Seq < r.base.Seq {
		return nil, false
	}
	live := r.live()
	n := p.Seq - r.base.Seq // items up to and including p
	if n > uint64(len(live)) {
		return nil, false
	}
	at := r.base
	if n > 0 {
		at = live[n-1].point
	}
	if at != p {
		return nil, false
	}
	return live[n:], true
}

// branch returns the items that follow the last point at which the ring's
// history and that of a copy at p agree, and false if the ring does not reach
// back to it. A copy at p holds all entries of p's epoch up to p, and an epoch
// is opened in one place only: so they agree up to the ring's last entry of
// that epoch.
func (r *ring) branch(p controlplane.Point) ([]item, bool) {
	if !r.known || p.Epoch == (controlplane.Epoch{}) {
		return nil, false
	}
	live := r.live()
	for i := len(live); i >= 0; i-- {
		at := r.base
		if i > 0 {
			at = live[i-1].point
		}
		switch {
		case at.Epoch == p.Epoch:
			return live[i:], at.Seq <= p.Seq
		case at.Epoch.Compare(p.Epoch) < 0:
			return nil, false
		}
	}
	return nil, false
}

// leads reports whether region may write the shard, as far as the ring was
// told: it opened the last epoch, and no higher one is promised.
func (r *ring) leads(region string) bool {
	return r.home == region && r.epoch.Region == region && r.last().Epoch == r.epoch
}

// add appends e. An entry the ring is past already changes nothing; one that
// does not follow the last starts the ring anew, and watchers that stand
// before it take a snapshot.
func (r *ring) add(e *registry.Entry, it item, maxItems, maxBytes int) {
	last := r.last()
	switch {
	case r.known && it.point.Compare(last) <= 0:
		return
	case !r.known || e.Seq != last.Seq+1 || e.Prev != last.Epoch:
		r.clear()
		r.known = true
		r.base = controlplane.Point{Epoch: e.Prev, Seq: e.Seq - 1}
	}
	r.items = append(r.items, it)
	r.bytes += len(it.frame)
	for len(r.items)-r.head > maxItems || (r.bytes > maxBytes && len(r.items)-r.head > 0) {
		r.bytes -= len(r.items[r.head].frame)
		r.base = r.items[r.head].point
		r.items[r.head] = item{}
		r.head++
	}
	if r.head > 64 && r.head > len(r.items)/2 {
		r.items = slices.Delete(r.items, 0, r.head)
		r.head = 0
	}
}

func (r *ring) clear() {
	r.items, r.head, r.bytes = nil, 0, 0
	r.known, r.base = false, controlplane.Point{}
}

// follow notes what e says about who holds and who writes the shard.
func (r *ring) follow(sender controlplane.Epoch, e *registry.Entry) {
	if sender.Compare(r.epoch) > 0 {
		r.epoch = sender
	}
	if e.Epoch.Compare(r.epoch) > 0 {
		r.epoch = e.Epoch
	}
	for i := range e.Changes {
		if c := &e.Changes[i]; c.Op == registry.OpOpen {
			r.primed, r.members, r.home = true, slices.Clone(c.Members), c.Home
		}
	}
}
