package datadir

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzOwner: whatever says whose a directory is, it is this node's by its very
// words or not taken, and is left as it was.
func FuzzOwner(f *testing.F) {
	f.Add([]byte(`{"format":1,"cluster":"test","node":"d1"}`))
	f.Add([]byte(`{"format":1,"cluster":"test","node":"d2"}`))
	f.Add([]byte(`{"format":2,"cluster":"test","node":"d1"}`))
	f.Add([]byte(`{"format":1,"cluster":"test","node":"d1"}{}`))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "owner.json")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		lock, err := Take(dir, "test", "d1")
		if err == nil {
			if err := lock.Close(); err != nil {
				t.Error(err)
			}
			if !bytes.Contains(b, []byte("test")) && !bytes.Contains(b, []byte(`\u`)) {
				t.Errorf("%q made it this node's", b)
			}
		} else if lock != nil {
			t.Error("an error, and a lock that nobody gives back")
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
			t.Errorf("%q became %q, %v", b, after, err)
		}
	})
}
