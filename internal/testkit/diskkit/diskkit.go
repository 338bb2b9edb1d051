// Package diskkit has what nodes keep on disks, for tests: where, under which key,
// and as archives beside a test. Tests only.
package diskkit

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"ringmain/controlplane/seal"
)

// Fast is a directory in memory if there is one: fake time makes a real disk's
// time invisible, but not short.
func Fast(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ringmain-test-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Sealer seals under a key of its own.
func Sealer(t testing.TB) *seal.Sealer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "region.key")
	if err := seal.CreateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	h, err := seal.OpenFileHolder(path)
	if err != nil {
		t.Fatal(err)
	}
	return seal.New(h)
}

// Pack makes a compressed archive of the files below dir.
func Pack(t testing.TB, path, dir string) {
	t.Helper()
	var b bytes.Buffer
	zip, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(zip)
	if err := errors.Join(archive.AddFS(os.DirFS(dir)), archive.Close(), zip.Close(), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// Unpack puts what Pack took below dir.
func Unpack(t testing.TB, path, dir string) {
	t.Helper()
	packed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		to := filepath.Join(dir, filepath.Join("/", h.Name))
		if h.FileInfo().IsDir() {
			err = os.MkdirAll(to, 0o700)
		} else {
			var data []byte
			if data, err = io.ReadAll(archive); err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, data, 0o600))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
