package safety

import (
	"encoding/binary"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

const shard = controlplane.Shard("any-us-east")

var epoch = controlplane.Epoch{Counter: 1, Region: "us-east"}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// FuzzSafety: whatever the entries of a safety file are, it is read or named; it
// forgets no revocation and no newest pin when it is written anew, and what is
// told of it again can be read.
func FuzzSafety(f *testing.F) {
	lines := func(entries ...Entry) (all []byte) {
		for _, e := range entries {
			b := must(cbor.Marshal(e))
			all = append(binary.BigEndian.AppendUint16(all, uint16(len(b))), b...)
		}
		return all
	}
	pin := func(seq uint64) []byte {
		return must(registry.EncodeRecord(&registry.Record{Kind: registry.KindPolicy, Meta: registry.Meta{ID: "pol", Shard: shard, Revision: seq}, Policy: &registry.Policy{Org: "o", Residency: "eu"}}))
	}
	gone := func(id string) Entry {
		return Entry{Revocation: &registry.Revocation{Kind: registry.KindKey, ID: id, Shard: shard, At: 1}}
	}
	f.Add(lines(Entry{Mark: &mark{}}))
	f.Add(lines(Entry{Dropped: 3}, gone("a"), Entry{Pin: pin(1)}, gone("b"), Entry{Pin: pin(2)}, Entry{Mark: &mark{Generation: 1, Position: controlplane.Position{shard: {Epoch: epoch, Seq: 2}}}}))
	f.Add(lines(Entry{}, gone("a"), gone("a"), Entry{Pin: []byte{1}}))
	f.Add(lines(Entry{Dropped: -1}))
	f.Add([]byte{0, 1, 0xf6})
	f.Fuzz(func(t *testing.T, b []byte) {
		known := func() *File {
			return &File{known: map[[16]byte]struct{}{}, pins: map[string]uint64{}}
		}
		s := known()
		var entries []Entry
		for len(b) >= 2 && int(binary.BigEndian.Uint16(b)) <= len(b)-2 {
			n := int(binary.BigEndian.Uint16(b))
			e, err := decode(b[2 : 2+n])
			if b = b[2+n:]; err != nil {
				return
			}
			s.note(e)
			entries = append(entries, e)
		}
		again := known()
		for _, e := range compact(entries) {
			e, err := decode(must(cbor.Marshal(e)))
			if err != nil {
				t.Fatalf("what was written cannot be read: %v", err)
			}
			again.note(e)
		}
		if again.revoked != s.revoked || len(again.known) != len(s.known) || s.revoked != len(s.known) || s.dropped < 0 {
			t.Errorf("%d revocations (%d, dropped %d) become %d", s.revoked, len(s.known), s.dropped, again.revoked)
		}
		for id, seq := range s.pins {
			if again.pins[id] < seq {
				t.Errorf("the pin of %q at %d becomes one at %d", id, seq, again.pins[id])
			}
		}
	})
}

// TestNarrows lists which records stale data must not undo.
func TestNarrows(t *testing.T) {
	org := func(updated int64, roaming bool) *registry.Record {
		return &registry.Record{Kind: registry.KindOrg, Meta: registry.Meta{Created: 1, Updated: updated},
			Org: &registry.Org{Jurisdiction: controlplane.JurisdictionAny, Roaming: roaming}}
	}
	for name, c := range map[string]struct {
		record *registry.Record
		want   bool
	}{
		"policy that pins":                   {&registry.Record{Policy: &registry.Policy{Residency: "eu"}}, true},
		"policy that forbids retention":      {&registry.Record{Policy: &registry.Policy{NoRetention: true}}, true},
		"policy that wants the own pool":     {&registry.Record{Policy: &registry.Policy{Dedicated: true}}, true},
		"policy that lists models":           {&registry.Record{Policy: &registry.Policy{Models: []string{"m"}}}, false},
		"org that may have given up roaming": {org(2, false), true},
		"org that roams":                     {org(2, true), false},
		"org that never changed":             {org(1, false), false},
		"key":                                {&registry.Record{Kind: registry.KindKey, Key: &registry.Key{}}, false},
	} {
		if got := narrows(c.record); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
