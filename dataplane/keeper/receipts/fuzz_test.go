package receipts

import (
	"bytes"
	"log/slog"
	"os"
	"testing"

	"ringmain/dataplane/receipt/proof"
)

// FuzzSegment: whatever is in a segment, in frames that we sealed or behind
// them, is read or counted as damage; what was found of it can be found again by
// the index that is made of it, and nothing else.
func FuzzSegment(f *testing.F) {
	r := newRig(f)
	raw, _ := r.batch(3)
	batch, err := proof.ParseBatch(raw)
	if err != nil {
		f.Fatal(err)
	}
	bare, err := batch.Bare()
	if err != nil {
		f.Fatal(err)
	}
	key := []byte(batch.Delegation)
	f.Add(byte(kindBatch), key, bare, []byte(nil))
	f.Add(byte(kindSkipped), key, bare, []byte{0, 0, 0, 0, 0})
	f.Add(byte(kindKey), key, key, []byte{0, 0, 0, 40, kindBatch, 1, 2, 3})
	f.Add(byte(kindBatch), []byte{}, bare[:len(bare)/2], []byte{0xff, 0xff, 0xff, 0xff, kindBatch})
	f.Add(byte(9), key, bare, bytes.Repeat([]byte{1}, 64))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, kind byte, key, plain, tail []byte) {
		cfg := r.cfg
		cfg.Logger = slog.New(slog.DiscardHandler)
		s := &Store{cfg: cfg, dir: dir}
		path := s.path(1, batchSuffix)
		box, header, err := cfg.Sealer.NewBox(s.context(path))
		if err != nil {
			t.Fatal(err)
		}
		g := &writing{box: box}
		g.bytes = int64(len(header))
		out := g.frame(nil, kindKey, key)
		out = append(g.frame(out, kind, plain), tail...)
		if err := os.WriteFile(path, append(header, out...), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := s.scan(1)
		if err != nil {
			t.Fatal(err)
		}
		if c.receipts != len(c.entries) || c.batches > c.receipts || c.bytes != int64(len(header)+len(out)) {
			t.Fatalf("%d receipts in %d batches of %d bytes, %d entries", c.receipts, c.batches, c.bytes, len(c.entries))
		}
		size, err := s.writeIndex(1, c)
		if err != nil {
			t.Fatal(err)
		}
		x, err := s.openIndex(1)
		if err != nil {
			t.Fatalf("the index of what was found, of %d bytes, cannot be read: %v", size, err)
		}
		defer x.done()
		y, err := s.open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer y.done()
		for _, e := range c.entries {
			offsets, err := x.find(e.finger)
			if err != nil || len(offsets) == 0 {
				t.Fatalf("%x at %d: %v, %v by its index", e.finger, e.offset, offsets, err)
			}
			if _, err := y.entry(x.keys, e.offset, "req_01M80MNTN8HERS6ED5GEXW7RYA"); err != nil {
				t.Fatalf("a batch that was found cannot be looked into: %v", err)
			}
		}
	})
}
