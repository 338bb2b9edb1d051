package lkg

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"ringmain/controlplane/feed"
	"ringmain/dataplane/keeper/disk"
	"ringmain/internal/testkit/diskkit"
)

// FuzzSplit: a chunk is taken apart into frames that make it again, or named.
func FuzzSplit(f *testing.F) {
	var c chunk
	c.add(feed.FrameEntry, []byte("one"))
	c.add(feed.FrameReset, nil)
	f.Add([]byte(c))
	f.Add([]byte(c[:len(c)-1]))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		types, frames, err := split(b)
		if err != nil {
			return
		}
		var again chunk
		for i := range frames {
			again.add(types[i], frames[i])
			if frame, err := feed.DecodeFrame(frames[i]); err == nil && frame == nil {
				t.Error("no frame and no error")
			}
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x becomes %x", b, again)
		}
	})
}

// FuzzGeneration: whatever the header and the frames of a generation are, a
// store is opened that can go on, or says that it may not touch it.
func FuzzGeneration(f *testing.F) {
	sealer := diskkit.Sealer(f)
	head := func(h header) []byte { return must(cbor.Marshal(h)) }
	var whole chunk
	for _, frame := range append(with(snapshot(3, "a"), orgRecord("org_any_1", "o")), entry(4, revoke("b"))) {
		whole.add(frame.Type, raw(frame))
	}
	f.Add(head(header{Format: 1, Generation: 1}), []byte(whole))
	f.Add(head(header{Format: 1, Generation: 1, Revocations: 9, Alone: true}), []byte(whole))
	f.Add(head(header{Format: 2, Generation: 1}), []byte(whole))
	f.Add(head(header{Format: 1, Generation: 7, Part: 1}), []byte(whole[:len(whole)/2]))
	f.Add([]byte{0xa0}, []byte{})
	f.Fuzz(func(t *testing.T, head, frames []byte) {
		cfg := Config{Dir: t.TempDir(), Name: "c/n", Sealer: sealer, Logger: slog.New(slog.DiscardHandler)}
		path := filepath.Join(cfg.Dir, "lkg", fileName(1, 0))
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		var file bytes.Buffer
		w := must(sealer.NewWriter(&file, "lkg/c/n/"+fileName(1, 0)))
		if err := w.Frame(head); err != nil {
			return
		}
		if len(frames) > 0 {
			if err := w.Frame(frames); err != nil {
				return
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(cfg)
		if err != nil {
			if !disk.Foreign(err) {
				t.Fatal(err)
			}
			if _, err := os.Stat(path); err != nil {
				t.Fatalf("what may not be touched is gone: %v", err)
			}
			return
		}
		_ = s.Past(func(*feed.Frame) error { return nil }) // names records that nobody looked at
		g := must(s.Begin())
		for _, frame := range snapshot(5) {
			if err := g.Append(frame, raw(frame)); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Commit(); err != nil {
			t.Fatal(err)
		}
		if s.Stats().Unknown {
			t.Error("a full state was received")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
