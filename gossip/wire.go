package gossip

import (
	"fmt"
	"maps"
	"slices"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/memberlist"

	"ringmain/gossip/bulletin"
)

// A broadcast is one byte of kind and a CBOR body. Unknown kinds and fields are
// skipped, so that versions can be mixed while a cluster is upgraded.
const (
	kindDigest   = 1
	kindObituary = 2
	kindClaim    = 3
)

// maxBroadcast is what surely fits into one packet with its overhead; a larger
// message would wait in the queue for ever.
const maxBroadcast = 1150

// full is what a push/pull exchange carries.
type full struct {
	Digests    []bulletin.Digest   `cbor:"1,keyasint,omitempty"`
	Obituaries []bulletin.Obituary `cbor:"2,keyasint,omitempty"`
	Claims     []bulletin.Claim    `cbor:"3,keyasint,omitempty"`
}

func encode(kind byte, body any) ([]byte, error) {
	b, err := cbor.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("gossip: encode broadcast: %w", err)
	}
	return append([]byte{kind}, b...), nil
}

// fit makes a digest small enough to be broadcast: it drops open breakers, last
// names first, and then the position. What is left is still true.
func fit(d bulletin.Digest) bulletin.Digest {
	d.Breakers = maps.Clone(d.Breakers)
	names := slices.Sorted(maps.Keys(d.Breakers))
	for {
		b, err := encode(kindDigest, &d)
		switch {
		case err != nil || len(b) <= maxBroadcast:
			return d
		case len(names) > 0:
			delete(d.Breakers, names[len(names)-1])
			names = names[:len(names)-1]
		case d.Position != "":
			d.Position = ""
		default:
			return d // its addresses and pools alone are too large: push/pull carries it
		}
	}
}

// Names of broadcasts: a newer message of a name replaces the one queued.
func digestName(d *bulletin.Digest) string { return "d/" + d.Key().String() }

func obituaryName(o *bulletin.Obituary) string { return "o/" + o.Key().String() }

func claimName(c *bulletin.Claim) string { return "c/" + c.Observer().String() + "/" + c.Subject }

// broadcast is one queued message, a memberlist.NamedBroadcast.
type broadcast struct {
	name string
	msg  []byte
}

func (b *broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*broadcast)
	return ok && o.name == b.name
}

func (b *broadcast) Name() string    { return b.name }
func (b *broadcast) Message() []byte { return b.msg }
func (b *broadcast) Finished()       {}
