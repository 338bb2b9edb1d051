package caller

import (
	"encoding/binary"
	"time"
)

// allowance is how many hashes may fail: burst at once, then one each every.
// The zero allowance is no bound.
type allowance struct {
	burst float64
	every time.Duration
}

// A hash takes about 80 ms of a processor, and while it runs others wait: more
// than one failure in some seconds would be what the slowest hundredth of all
// requests meets. Each bound leaves room in the next one: guesses from one
// address do not keep an owner out who asks from elsewhere, those at one id
// none of the org's other keys, and those of an org at its own none of others.
var (
	first = bounds{{10, 20 * time.Second}, {20, 15 * time.Second}, {30, 10 * time.Second}, {40, 5 * time.Second}}
	again = bounds{{}, {3, 15 * time.Second}, {10, 10 * time.Second}, {20, 5 * time.Second}}
)

// payer names those by whom a failure is paid: one id from one source, one id,
// one org, and the node.
type payer [4]string

func payerOf(id, org, source string) payer { return payer{id + " " + source, id, org, ""} }

type bounds [len(payer{})]allowance

// purse holds what may fail.
type purse struct {
	bounds bounds
	spent  [len(payer{})]map[string]bucket
}

// bucket is what was spent of one allowance.
type bucket struct {
	spent float64
	at    time.Time
}

func newPurse(b bounds) purse {
	p := purse{bounds: b}
	for i := range p.spent {
		p.spent[i] = make(map[string]bucket)
	}
	return p
}

// regained is b with what it regained until now.
func (a allowance) regained(b bucket, now time.Time) bucket {
	return bucket{max(0, b.spent-float64(now.Sub(b.at))/float64(max(a.every, 1))), now}
}

// take pays for one failure, out of every allowance or of none.
func (p *purse) take(by payer, now time.Time) error {
	var paid [len(by)]bucket
	for i, name := range by {
		paid[i] = p.bounds[i].regained(p.spent[i][name], now)
		paid[i].spent++
		switch {
		case p.bounds[i].burst == 0 || paid[i].spent <= p.bounds[i].burst:
		case i < 2: // the id's own
			return errSpent
		default:
			return errQueueFull
		}
	}
	for i, name := range by {
		evict(p.spent[i], func(b bucket) bool { return p.bounds[i].regained(b, now).spent == 0 })
		p.spent[i][name] = paid[i]
	}
	return nil
}

// give takes the payment back. What was evicted meanwhile is not owed.
func (p *purse) give(by payer) {
	for i, name := range by {
		if b, ok := p.spent[i][name]; ok {
			p.spent[i][name] = bucket{max(0, b.spent-1), b.at}
		}
	}
}

// repeats remembers which keys were presented lately, without keeping them: 64
// bits of each one's verdict, which is keyed. A key's place may be taken by
// another; at 10,000 new ones a second that is after some seconds.
type repeats struct {
	seen []presented // made when it is first needed
}

type presented struct {
	mark uint32
	at   uint32 // Unix seconds
}

const (
	repeatBits = 16
	// A repetition within a second may be the same client's next try in a row;
	// one that comes later than repeatWithin begins anew.
	repeatWithin = 60
)

// again notes a key, and says whether it was noted before: at least a second
// and at most a minute ago.
func (r *repeats) again(key wrongKey, now time.Time) bool {
	if r.seen == nil {
		r.seen = make([]presented, 1<<repeatBits)
	}
	bits := binary.BigEndian.Uint64(key.mac[:]) ^ key.revision
	place, mark, second := &r.seen[bits>>(64-repeatBits)], uint32(bits), uint32(now.Unix())
	if place.mark == mark && second-place.at <= repeatWithin {
		return second > place.at
	}
	*place = presented{mark, second}
	return false
}
