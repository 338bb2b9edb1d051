package lkg

import (
	"bytes"
	"testing"

	"ringmain/controlplane/feed"
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
