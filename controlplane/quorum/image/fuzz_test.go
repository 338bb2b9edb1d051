package image

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"ringmain/internal/testkit/diskkit"
)

// seeded is an image with a few rows, as a file and as a dump.
func seeded(f testing.TB) (w *world, file, dumped []byte) {
	f.Helper()
	w = newWorld(f, diskkit.Sealer(f))
	for i := range 200 {
		w.propose(shard, org(i, "seed"))
	}
	w.flush()
	view, err := w.image.View()
	if err != nil {
		f.Fatal(err)
	}
	var dump bytes.Buffer
	if err := view.Dump(&dump); err != nil {
		f.Fatal(err)
	}
	view.Release()
	if file, err = os.ReadFile(w.cfg.Path); err != nil {
		f.Fatal(err)
	}
	return w, file, dump.Bytes()
}

// FuzzPages: an image with damage is refused, or the damage changes nothing:
// neither what is read of it nor where rows are found. (One whose last meta is
// gone is as it was a transaction earlier, and says so: the log has the rest.)
func FuzzPages(f *testing.F) {
	w, file, _ := seeded(f)
	want := fingerprint(w.state)
	f.Add(uint32(0), []byte{})
	for page := uint32(0); page < uint32(len(file)/4096); page += 4 {
		f.Add(page*4096+8+page%16, []byte{0xff})
	}
	cfg := w.cfg
	cfg.Path = filepath.Join(diskkit.Fast(f), "image.db")
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		damaged := bytes.Clone(file)
		copy(damaged[int(at)%len(damaged):], change)
		if err := os.WriteFile(cfg.Path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		image, state, err := Open(cfg)
		if err != nil {
			return
		}
		defer func() {
			if err := image.Close(); err != nil {
				t.Error(err)
			}
		}()
		if got := fingerprint(state); got != want && image.Mark() == w.image.Mark() {
			t.Errorf("it was opened, and has\n%s\nnot\n%s", got, want)
		}
		_ = image.db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
				return b.ForEach(func(key, value []byte) error {
					if !bytes.Equal(b.Get(key), value) {
						t.Errorf("row %q of %q is not found", key, name)
					}
					return nil
				})
			})
		})
	})
}

// A key in a branch page is under no seal, and decides where a row is looked for:
// with a bit of it flipped, a record that is deleted would stay.
func TestKeysOutOfOrder(t *testing.T) {
	w, file, _ := seeded(t)
	cfg, flips := w.cfg, 0
	cfg.Path = filepath.Join(diskkit.Fast(t), "image.db")
	for page := 0; page+4096 <= len(file); page += 4096 {
		at := file[page:]
		if native.Uint16(at[8:]) != pageBranch {
			continue
		}
		for i := 1; i < int(native.Uint16(at[10:])); i++ { // nothing lies before the first
			e := at[pageHeader+i*16:]
			key := page + pageHeader + i*16 + int(native.Uint32(e))
			damaged := bytes.Clone(file)
			damaged[key+int(native.Uint32(e[4:]))-1] ^= 0x40
			if err := os.WriteFile(cfg.Path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			flips++
			if image, _, err := Open(cfg); err == nil {
				_ = image.Close()
				t.Errorf("page %d, element %d: taken with another key", page/4096, i)
			}
		}
	}
	if flips == 0 {
		t.Fatal("the image has no branch page")
	}
}

// FuzzDump: a dump that is not one is refused, and what was there stays.
func FuzzDump(f *testing.F) {
	w, _, dump := seeded(f)
	f.Add(uint32(0), uint32(0), []byte{})
	f.Add(uint32(40), uint32(0), []byte{})
	f.Add(uint32(1), uint32(0), []byte{})
	for at := range uint32(24) {
		f.Add(uint32(0), at*8, []byte{0xff, 1})
	}
	f.Fuzz(func(t *testing.T, cut, at uint32, change []byte) {
		b := bytes.Clone(dump[:len(dump)-int(cut)%len(dump)])
		copy(b[int(at)%len(b):], change)
		_, _ = w.image.DumpMark(bytes.NewReader(b))
		before := w.image.Mark()
		_, err := w.image.Replace(bytes.NewReader(b), Mark{})
		switch {
		case w.image.Mark() != before:
			t.Errorf("it is at %+v, and was at %+v: %v", w.image.Mark(), before, err)
		case (err == nil) != bytes.Equal(b, dump):
			t.Errorf("taken: %t, though it is the whole dump: %t", err == nil, err != nil)
		}
	})
}
