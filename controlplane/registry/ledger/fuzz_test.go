package ledger

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/recordkit"
)

// Decoders meet bytes from disks and other regions. They must never panic, and
// what they accept must survive being encoded again.

func FuzzDecodeEntry(f *testing.F) {
	f.Add([]byte{})
	f.Add(entry(f, &registry.Entry{Shard: "eu"}))
	f.Add(entry(f, &registry.Entry{Shard: pinEU, Seq: 1, Changes: []registry.Change{open("a", "a"), put(key(keyEU, pinEU, prjEU, "live")), revoke(keyEU, 5), del(registry.KindOrg, orgEU)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := registry.DecodeEntry(b)
		if err != nil {
			if !errors.Is(err, controlplane.ErrUnknownEntry) {
				t.Errorf("%v", err)
			}
			return
		}
		first := entry(t, e)
		again, err := registry.DecodeEntry(first)
		if err != nil || !bytes.Equal(entry(t, again), first) {
			t.Errorf("%x came back as %x: %v", b, first, err)
		}
		// Whatever it says, a state takes it or refuses it.
		s := world(t)
		s.Apply(&registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{b}})
		s.Apply(&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{b}})
		if len(e.Changes) > 0 {
			_ = s.Check(e.Shard, e.Changes) // must not panic
			for i, c := range e.Changes {
				if next, err := s.Next(anyEast, []registry.Change{c}); err == nil && i < 4 {
					s.Apply(&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, next)}})
				}
			}
		}
		if _, err := Restore(bytes.NewReader(recordkit.Snapshot(t, s))); err != nil {
			t.Errorf("what was applied cannot be restored: %v", err)
		}
	})
}

func FuzzDecodeCommand(f *testing.F) {
	snap, _ := world(f).ShardSnapshot(pinEU)
	for _, c := range []*registry.Command{
		{Type: registry.CmdEntry, Entries: [][]byte{entry(f, &registry.Entry{Shard: pinEU, Seq: 1, Changes: []registry.Change{open("a", "a")}})}},
		{Type: registry.CmdStage, Stage: chunks(f, snap, "s1", 9)[0]},
		{Type: registry.CmdStage, Stage: &registry.Stage{Shard: pinEU, Snapshot: "s1", Revocations: []registry.Revocation{{Kind: registry.KindKey, ID: keyEU, Shard: pinEU, At: 5}}}},
		adopt(snap, "s1"),
	} {
		b, err := registry.EncodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, c := range commands2(f) {
		b, err := registry.EncodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := registry.DecodeCommand(b)
		if err != nil {
			return
		}
		first, err := registry.EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := registry.DecodeCommand(first)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := registry.EncodeCommand(again); err != nil || !bytes.Equal(first, second) {
			t.Errorf("%x came back as %x: %v", b, first, err)
		}
		for _, start := range []*State{New(), deposed(t)} {
			s, twin := start, start.Clone()
			// A staged chunk that is held already is passed over unread.
			if out := s.Apply(c); out.Err == nil && c.Readable() != nil && (c.Stage == nil || len(out.Staged) > 0) {
				t.Error("applied, but not readable")
			}
			twin.Apply(again)
			if !bytes.Equal(recordkit.Snapshot(t, s), recordkit.Snapshot(t, twin)) {
				t.Error("two replicas differ")
			}
			if _, err := Restore(bytes.NewReader(recordkit.Snapshot(t, s))); err != nil {
				t.Errorf("what was applied cannot be restored: %v", err)
			}
		}
	})
}

// Rows of tails, quarantines and shards come from a region's own disk.
func FuzzDecodeRows(f *testing.F) {
	s := deposed(f)
	add := func(b []byte, err error) {
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for h := range s.TailRows(anyEast) {
		add(h.Encode())
	}
	for q := range s.Quarantine(anyEast) {
		add(q.Encode())
	}
	for _, info := range s.Copies() {
		add(registry.EncodeShard(info, 1))
		add(registry.EncodeShard(info, 2))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		again := func(first []byte, err error, decode func([]byte) ([]byte, error)) {
			if err != nil {
				t.Fatal(err)
			}
			if second, err := decode(first); err != nil || !bytes.Equal(first, second) {
				t.Errorf("%x came back as %x: %v", first, second, err)
			}
		}
		held := func(b []byte) ([]byte, error) {
			h, err := decodeHeld(anyEast, b)
			if err != nil {
				return nil, err
			}
			return h.Encode()
		}
		quarantined := func(b []byte) ([]byte, error) {
			q, err := decodeQuarantined(anyEast, b)
			if err != nil {
				return nil, err
			}
			return q.Encode()
		}
		for _, decode := range []func([]byte) ([]byte, error){held, quarantined} {
			if first, err := decode(b); err == nil {
				again(first, nil, decode)
			}
		}
		for _, version := range []uint64{1, 2} {
			info, err := registry.DecodeShard(b, version)
			if err != nil {
				continue
			}
			l := NewLoader()
			if err := errors.Join(l.Version(version), l.Shard(info)); err != nil {
				continue
			}
			s, err := l.State()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Restore(bytes.NewReader(recordkit.Snapshot(t, s))); err != nil {
				t.Errorf("what was loaded cannot be restored: %v", err)
			}
		}
	})
}

func FuzzRestore(f *testing.F) {
	const end = 4 + 1 + sha256.Size
	for _, s := range []*State{New(), world(f), full(f), deposed(f)} {
		b := recordkit.Snapshot(f, s)
		f.Add(b[:len(b)-end])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = Restore(bytes.NewReader(b)) // must not panic
		// With the checksum it deserves, it gets further.
		sum := sha256.Sum256(b)
		b = append(append(slices.Clone(b), 0, 0, 0, sha256.Size, byte(itemEnd)), sum[:]...)
		s, err := Restore(bytes.NewReader(b))
		if err != nil {
			return
		}
		first := recordkit.Snapshot(t, s)
		again, err := Restore(bytes.NewReader(first))
		if err != nil || !bytes.Equal(recordkit.Snapshot(t, again), first) {
			t.Errorf("what was restored differs the second time: %v", err)
		}
	})
}
