package proof

import (
	"encoding/binary"
	"time"
)

// Arrivals is when the first and the last to arrive of the batch's requests
// did, as their ids say; zero if no id does.
func (b *Batch) Arrivals() (first, last time.Time) {
	for i := range b.ends {
		at, ok := Arrived(string(requestOf(b.leaf(i))))
		if !ok {
			continue
		}
		if first.IsZero() || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	return first, last
}

// requestOf is the request id of a leaf, read without the rest of it, since
// the keeper does so for every one: version, head of the map, then the texts
// under the keys 1 and 2. Nil if it is no leaf that AppendLeaf wrote.
func requestOf(leaf []byte) []byte {
	if len(leaf) < 3 || leaf[0] != leafVersion {
		return nil
	}
	rest := leaf[2:]
	if leaf[1] == 0xb8 {
		rest = leaf[3:]
	}
	_, rest = textUnder(1, rest)
	id, _ := textUnder(2, rest)
	return id
}

// textUnder reads a key and its text; what follows is nil if they are not there.
func textUnder(key byte, b []byte) (text, rest []byte) {
	if len(b) < 2 || b[0] != key {
		return nil, nil
	}
	n, head := int(b[1]&0x1f), 2
	switch {
	case b[1]>>5 != 3:
		return nil, nil
	case n == 24 && len(b) > 2:
		n, head = int(b[2]), 3
	case n == 25 && len(b) > 3:
		n, head = int(binary.BigEndian.Uint16(b[2:])), 4
	case n >= 24:
		return nil, nil
	}
	if len(b) < head+n {
		return nil, nil
	}
	return b[head : head+n], b[head+n:]
}
