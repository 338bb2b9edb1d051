package content

import (
	"bytes"
	"fmt"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// Staging is a snapshot of a shard that arrives in pieces, indexed and digested
// as it comes, so that using it is quick.
type Staging struct {
	content Shard
	digest  *registry.Digester
	lastID  string
	lastRev registry.Revocation
}

// NewStaging returns a Staging that holds nothing yet.
func NewStaging(name controlplane.Shard) *Staging {
	return &Staging{content: New(name), digest: registry.NewDigester()}
}

// Clone returns an independent copy; it shares the content.
func (g *Staging) Clone() (*Staging, error) {
	digest, err := g.digest.Clone()
	if err != nil {
		return nil, err
	}
	c := *g
	c.digest = digest
	return &c, nil
}

// Content is what has arrived.
func (g *Staging) Content() Shard { return g.content }

// Sum is its digest, as the sender's State.Digest.
func (g *Staging) Sum() [32]byte { return g.digest.Sum() }

// Record adds one record. It must be encoded as EncodeRecord does, since the
// digest is over those bytes. Records come by id.
func (g *Staging) Record(encoded []byte) error {
	r, err := registry.DecodeRecord(encoded)
	if err != nil {
		return err
	}
	if again, err := registry.EncodeRecord(r); err != nil || !bytes.Equal(again, encoded) {
		return fmt.Errorf("record %s is not in deterministic encoding", r.Meta.ID)
	}
	if err := r.WellFormed(g.content.name); err != nil {
		return err
	}
	if r.Meta.ID <= g.lastID {
		return fmt.Errorf("record %s after %s: ids must ascend", r.Meta.ID, g.lastID)
	}
	g.lastID = r.Meta.ID
	g.digest.Record(encoded)
	g.content.put(r)
	return nil
}

// Revocation adds one member of the safety set; they come by (kind, id).
func (g *Staging) Revocation(v registry.Revocation) error {
	if err := v.WellFormed(g.content.name); err != nil {
		return err
	}
	if compareRevocations(&v, &g.lastRev) <= 0 {
		return fmt.Errorf("revocation of %s after %s: they must ascend", v.ID, g.lastRev.ID)
	}
	g.lastRev = v
	g.digest.Revocation(v)
	g.content.revoke(v)
	return nil
}
