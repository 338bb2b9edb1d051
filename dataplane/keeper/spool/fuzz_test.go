package spool

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"ringmain/internal/testkit/diskkit"
)

// FuzzSegment: whatever is in a segment, sealed by us or not, is read or named,
// and no record has bytes that the segment has not.
func FuzzSegment(f *testing.F) {
	dir := f.TempDir()
	sealer := diskkit.Sealer(f)
	frame := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, 7), 1)
	for _, body := range []string{"one", "", "three"} {
		frame = append(binary.BigEndian.AppendUint32(frame, uint32(len(body))), body...)
	}
	f.Add(true, frame)
	f.Add(true, frame[:len(frame)-1])
	f.Add(true, append(bytes.Clone(frame[:16]), 0xff, 0xff, 0xff, 0xff))
	f.Add(true, frame[:15])
	f.Add(false, frame)
	f.Fuzz(func(t *testing.T, sealed bool, content []byte) {
		const name = "c/n"
		segment := segmentName(1)
		var file bytes.Buffer
		if sealed {
			w, err := sealer.NewWriter(&file, sealContext(name, segment))
			if err != nil {
				t.Fatal(err)
			}
			if len(content) == 0 {
				return
			}
			if err := w.Frame(content); err != nil {
				return // more than a frame may have
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			file.Write(content)
		}
		if err := os.WriteFile(filepath.Join(dir, segment), file.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		bytes := 0
		err := readSegment(sealer, dir, name, segment, func(_, _ uint64, body []byte) error {
			bytes += 4 + len(body)
			return nil
		})
		if bytes > len(content) {
			t.Errorf("%d bytes of records from %d", bytes, len(content))
		}
		if !sealed && bytes > 0 {
			t.Error("records that nobody sealed")
		}
		if sealed && err == nil && bytes != len(content)-16 {
			t.Errorf("%d bytes of records from %d, and no error", bytes, len(content))
		}
	})
}
