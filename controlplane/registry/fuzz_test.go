package registry

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"

	"ringmain/controlplane"
)

// Decoders meet bytes from disks and other regions. They must never panic, and
// what they accept must survive being encoded again.

func FuzzDecodeEntry(f *testing.F) {
	f.Add([]byte{})
	f.Add(entry(f, &Entry{Shard: "eu"}))
	f.Add(entry(f, &Entry{Shard: pinEU, Seq: 1, Changes: []Change{open("a", "a"), put(key(keyEU, pinEU, prjEU, "live")), revoke(keyEU, 5), del(KindOrg, orgEU)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			if !errors.Is(err, controlplane.ErrUnknownEntry) {
				t.Errorf("%v", err)
			}
			return
		}
		first := entry(t, e)
		again, err := DecodeEntry(first)
		if err != nil || !bytes.Equal(entry(t, again), first) {
			t.Errorf("%x came back as %x: %v", b, first, err)
		}
		// Whatever it says, a state takes it or refuses it.
		s := world(t)
		s.Apply(&Command{Type: CmdAccept, Sender: e.Epoch, Entries: [][]byte{b}})
		s.Apply(&Command{Type: CmdEntry, Entries: [][]byte{b}})
		if len(e.Changes) > 0 {
			_ = s.Check(e.Shard, e.Changes) // must not panic
			for i, c := range e.Changes {
				if next, err := s.Next(anyEast, []Change{c}); err == nil && i < 4 {
					s.Apply(&Command{Type: CmdEntry, Entries: [][]byte{entry(t, next)}})
				}
			}
		}
		if _, err := Restore(bytes.NewReader(snapshot(t, s))); err != nil {
			t.Errorf("what was applied cannot be restored: %v", err)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte{})
	for _, r := range []*Record{key(keyEU, pinEU, prjEU, "live"), upstream(upsUS, "x", "us-east"), route(rteOne, "m", "x"), region("a", "eu")} {
		b, err := EncodeRecord(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecord(b)
		if err != nil {
			return
		}
		first, err := EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeRecord(first)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := EncodeRecord(again); err != nil || !bytes.Equal(first, second) {
			t.Errorf("%x came back as %x: %v", b, first, err)
		}
		_ = world(t).Check(r.Meta.Shard, []Change{put(r)}) // must not panic
	})
}

func FuzzDecodeCommand(f *testing.F) {
	snap, _ := world(f).ShardSnapshot(pinEU)
	for _, c := range []*Command{
		{Type: CmdEntry, Entries: [][]byte{entry(f, &Entry{Shard: pinEU, Seq: 1, Changes: []Change{open("a", "a")}})}},
		{Type: CmdStage, Stage: chunks(f, snap, "s1", 9)[0]},
		{Type: CmdStage, Stage: &Stage{Shard: pinEU, Snapshot: "s1", Revocations: []Revocation{{Kind: KindKey, ID: keyEU, Shard: pinEU, At: 5}}}},
		adopt(snap, "s1"),
	} {
		b, err := EncodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCommand(b)
		if err != nil {
			return
		}
		first, err := EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeCommand(first)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := EncodeCommand(again); err != nil || !bytes.Equal(first, second) {
			t.Errorf("%x came back as %x: %v", b, first, err)
		}
		s, twin := New(), New()
		if s.Apply(c).Err == nil && c.Readable() != nil {
			t.Error("applied, but not readable")
		}
		twin.Apply(again)
		if !bytes.Equal(snapshot(t, s), snapshot(t, twin)) {
			t.Error("two replicas differ")
		}
	})
}

func FuzzRestore(f *testing.F) {
	const end = 4 + 1 + sha256.Size
	for _, s := range []*State{New(), world(f), full(f)} {
		b := snapshot(f, s)
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
		first := snapshot(t, s)
		again, err := Restore(bytes.NewReader(first))
		if err != nil || !bytes.Equal(snapshot(t, again), first) {
			t.Errorf("what was restored differs the second time: %v", err)
		}
	})
}
