package seal_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ringmain/controlplane/seal"
	"ringmain/internal/testkit/diskkit"
)

func TestBlobFailsUnderAnyChange(t *testing.T) {
	s := diskkit.Sealer(t)
	plain, aad := []byte("provider credential"), []byte("ups_any_1")
	blob, err := s.SealBlob("registry/value", plain, aad)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.OpenBlob("registry/value", blob, aad); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("OpenBlob = %q, %v", got, err)
	}
	if bytes.Contains(blob, plain) {
		t.Error("the blob shows its plaintext")
	}
	for i := range blob {
		bad := bytes.Clone(blob)
		bad[i] ^= 1
		if _, err := s.OpenBlob("registry/value", bad, aad); err == nil {
			t.Fatalf("a flipped bit in byte %d went unnoticed", i)
		}
		if _, err := s.OpenBlob("registry/value", blob[:i], aad); err == nil {
			t.Fatalf("a blob cut to %d bytes went unnoticed", i)
		}
	}
	if _, err := s.OpenBlob("registry/other", blob, aad); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("wrong context: %v", err)
	}
	if _, err := s.OpenBlob("registry/value", blob, []byte("ups_any_2")); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("wrong aad: %v", err)
	}
	if _, err := diskkit.Sealer(t).OpenBlob("registry/value", blob, aad); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("wrong key: %v", err)
	}
	if _, err := s.OpenBlob("registry/value", []byte("{\"plain\":true}"), aad); !errors.Is(err, seal.ErrNotSealed) {
		t.Errorf("plain text: %v", err)
	}
	newer := bytes.Clone(blob)
	newer[4] = 2
	if _, err := s.OpenBlob("registry/value", newer, aad); !errors.Is(err, seal.ErrUnsupported) {
		t.Errorf("newer algorithm: %v", err)
	}
}

func TestBoxReopensFromItsHeader(t *testing.T) {
	s := diskkit.Sealer(t)
	box, header, err := s.NewBox("quorum/log")
	if err != nil {
		t.Fatal(err)
	}
	one, two := box.Seal(nil, []byte("entry"), []byte{1}), box.Seal(nil, []byte("entry"), []byte{1})
	if bytes.Equal(one, two) {
		t.Error("the same message sealed twice looks the same: the nonce repeats")
	}
	if len(one) != len("entry")+seal.BoxOverhead {
		t.Errorf("overhead is %d bytes, want %d", len(one)-len("entry"), seal.BoxOverhead)
	}
	reopened, rest, err := s.OpenBox(append(bytes.Clone(header), one...), "quorum/log")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := reopened.Open([]byte("> "), rest, []byte{1}); err != nil || string(got) != "> entry" {
		t.Errorf("Open = %q, %v", got, err)
	}
	if _, err := reopened.Open(nil, two, []byte{2}); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("swapped aad: %v", err)
	}
	other, _, err := s.NewBox("quorum/log")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open(nil, one, []byte{1}); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("message of another box: %v", err)
	}
}

func stream(t *testing.T, s *seal.Sealer, finish bool, frames ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := s.NewWriter(&buf, "keeper/state")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if err := w.Frame([]byte(f)); err != nil {
			t.Fatal(err)
		}
	}
	if finish {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := w.Frame(nil); err == nil {
			t.Error("a frame after Close was taken")
		}
	}
	return buf.Bytes()
}

func readAll(s *seal.Sealer, context string, data []byte) (frames []string, offset int64, err error) {
	r, err := s.NewReader(bytes.NewReader(data), context)
	if err != nil {
		return nil, 0, err
	}
	for {
		frame, err := r.Next()
		if err != nil {
			return frames, r.Offset(), err
		}
		frames = append(frames, string(frame))
	}
}

func TestStream(t *testing.T) {
	s := diskkit.Sealer(t)
	want := []string{"one", "", strings.Repeat("three", 40_000)}
	whole := stream(t, s, true, want...)

	frames, offset, err := readAll(s, "keeper/state", whole)
	if !errors.Is(err, io.EOF) || strings.Join(frames, "|") != strings.Join(want, "|") || offset != int64(len(whole)) {
		t.Fatalf("read %d frames to byte %d of %d: %v", len(frames), offset, len(whole), err)
	}
	if _, _, err := readAll(s, "keeper/other", whole); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("wrong context: %v", err)
	}
	if _, _, err := readAll(s, "keeper/state", append(bytes.Clone(whole), 0)); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("data after the end mark: %v", err)
	}
	if _, _, err := readAll(s, "keeper/state", []byte("{}")); !errors.Is(err, seal.ErrNotSealed) {
		t.Errorf("plain text: %v", err)
	}
	blob, err := s.SealBlob("keeper/state", []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := readAll(s, "keeper/state", blob); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("a blob read as a stream: %v", err)
	}
}

// Whatever the cut, the reader gives whole frames from the start and then
// ErrTruncated, never io.EOF.
func TestStreamCutAnywhere(t *testing.T) {
	s := diskkit.Sealer(t)
	whole := stream(t, s, true, "first", "second", "third")
	seen := map[int]bool{}
	for cut := range whole {
		frames, _, err := readAll(s, "keeper/state", whole[:cut])
		if !errors.Is(err, seal.ErrTruncated) {
			t.Fatalf("cut at %d of %d: %v", cut, len(whole), err)
		}
		if want := []string{"first", "second", "third"}[:len(frames)]; strings.Join(frames, "|") != strings.Join(want, "|") {
			t.Fatalf("cut at %d: frames %q", cut, frames)
		}
		seen[len(frames)] = true
	}
	if len(seen) != 4 {
		t.Errorf("cuts gave %v frames, want 0 to 3", seen)
	}
	if _, offset, err := readAll(s, "keeper/state", append(stream(t, s, false, "first"), 0, 0, 0, 0, 0, 0)); !errors.Is(err, seal.ErrTruncated) || offset == 0 {
		t.Errorf("a tail of zeros: offset %d, %v", offset, err)
	}
}

func TestStreamFramesCannotBeChanged(t *testing.T) {
	s := diskkit.Sealer(t)
	whole := stream(t, s, true, "aaaa", "bbbb")
	const frame = 4 + 4 + 16
	start := len(whole) - (4 + 16) - 2*frame
	head, first, second, end := whole[:start], whole[start:start+frame], whole[start+frame:start+2*frame], whole[start+2*frame:]
	for name, parts := range map[string][][]byte{
		"swapped":  {head, second, first, end},
		"dropped":  {head, second, end},
		"repeated": {head, first, first, second, end},
		"ended":    {head, first, end},
		"foreign":  {head, first, stream(t, s, true, "aaaa", "bbbb")[start+frame : start+2*frame], end},
	} {
		if _, _, err := readAll(s, "keeper/state", bytes.Join(parts, nil)); !errors.Is(err, seal.ErrTampered) {
			t.Errorf("frames %s: %v", name, err)
		}
	}
	long := bytes.Clone(whole)
	binary.BigEndian.PutUint32(long[start:], 1<<31)
	if _, _, err := readAll(s, "keeper/state", long); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("absurd length: %v", err)
	}
}

func TestWriterStopsAfterAFailedWrite(t *testing.T) {
	s := diskkit.Sealer(t)
	disk := &fullDisk{room: 200}
	w, err := s.NewWriter(disk, "keeper/state")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Frame(make([]byte, 500)); !errors.Is(err, errFull) {
		t.Fatalf("full disk: %v", err)
	}
	disk.room = 1 << 20
	if err := w.Frame(nil); !errors.Is(err, errFull) {
		t.Errorf("a frame after a torn one: %v", err)
	}
	if err := w.Close(); !errors.Is(err, errFull) {
		t.Errorf("Close after a torn frame: %v", err)
	}
}

var errFull = errors.New("no space left")

type fullDisk struct{ room int }

func (d *fullDisk) Write(p []byte) (int, error) {
	if len(p) > d.room {
		return d.room, errFull
	}
	d.room -= len(p)
	return len(p), nil
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "region.key")
	if err := seal.CreateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := seal.CreateKeyFile(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second create: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Error("a second create touched the key")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files left behind: %v, %v", entries, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.OpenFileHolder(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable key: %v", err)
	}
	for name, text := range map[string]string{
		"empty":   "",
		"garbage": "AAAA",
		"short":   `{"format":1,"id":"0011223344556677","version":1,"key":"AAAA"}`,
		"unknown": `{"format":1,"id":"0011223344556677","version":1,"hsm":true}`,
	} {
		bad := filepath.Join(dir, name)
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.OpenFileHolder(bad); err == nil {
			t.Errorf("%s key file was taken", name)
		}
	}
}

// The blob, stream and key file below were written by the first version. Every
// later one must open them.
func TestFrozenFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "region.key")
	if err := os.WriteFile(path, []byte(frozenKey), 0o600); err != nil {
		t.Fatal(err)
	}
	holder, err := seal.OpenFileHolder(path)
	if err != nil {
		t.Fatal(err)
	}
	s := seal.New(holder)
	blob, stream := unbase64(t, frozenBlob), unbase64(t, frozenStream)

	// "rmS1", algorithm 1, box, 73 = format 1 + id 8 + version 4 + nonce 12 + key 32 + tag 16.
	if want := "rmS1\x01\x00\x00\x49\x01\x00\x11\x22\x33\x44\x55\x66\x77\x00\x00\x00\x01"; string(blob[:21]) != want {
		t.Errorf("header %x, want %x", blob[:21], want)
	}
	if got, err := s.OpenBlob("frozen/context", blob, []byte("aad")); err != nil || string(got) != "frozen value" {
		t.Errorf("blob: %q, %v", got, err)
	}
	if frames, _, err := readAll(s, "frozen/context", stream); !errors.Is(err, io.EOF) || fmt.Sprint(frames) != "[one two]" {
		t.Errorf("stream: %q, %v", frames, err)
	}
	now, err := s.SealBlob("frozen/context", []byte("frozen value"), []byte("aad"))
	if err != nil || !bytes.Equal(now[:21], blob[:21]) || len(now) != len(blob) {
		t.Errorf("what is written now differs in shape: %x, %v", now, err)
	}
}

func unbase64(t *testing.T, text string) []byte {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestConcurrentUse(t *testing.T) {
	s := diskkit.Sealer(t)
	box, _, err := s.NewBox("shared")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			aad := []byte{byte(g)}
			for i := range 200 {
				msg := fmt.Appendf(nil, "%d/%d", g, i)
				got, err := box.Open(nil, box.Seal(nil, msg, aad), aad)
				if err != nil || !bytes.Equal(got, msg) {
					t.Errorf("box: %q, %v", got, err)
					return
				}
				blob, err := s.SealBlob("shared", msg, aad)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := s.OpenBlob("shared", blob, aad); err != nil || !bytes.Equal(got, msg) {
					t.Errorf("blob: %q, %v", got, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func FuzzOpen(f *testing.F) {
	s := diskkit.Sealer(f)
	blob, err := s.SealBlob("fuzz", []byte("x"), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob)
	f.Add([]byte("rmS1\x01\x01\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := s.OpenBlob("fuzz", data, nil); err == nil && !bytes.Equal(data, blob) {
			t.Error("opened something that was never sealed")
		}
		if _, _, err := readAll(s, "fuzz", data); errors.Is(err, io.EOF) {
			t.Error("read a stream that was never written")
		}
	})
}
