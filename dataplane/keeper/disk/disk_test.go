package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/seal"
	"ringmain/internal/testkit/diskkit"
)

func TestAFullDiskIsNamed(t *testing.T) {
	for _, err := range []error{syscall.ENOSPC, &os.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}} {
		if got := Error(fmt.Errorf("somewhere: %w", err)); !errors.Is(got, controlplane.ErrDiskFull) || !errors.Is(got, err) {
			t.Errorf("%v becomes %v", err, got)
		}
	}
	if err := Error(io.ErrShortWrite); errors.Is(err, controlplane.ErrDiskFull) {
		t.Errorf("%v", err)
	}
}

// What was appended is there whether the file was ended or not, and a reader
// tells the two apart.
func TestFile(t *testing.T) {
	for _, ended := range []bool{true, false} {
		path, sealer := filepath.Join(t.TempDir(), "file"), diskkit.Sealer(t)
		f, err := Create(path, sealer, "test")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Create(path, sealer, "test"); !errors.Is(err, os.ErrExist) {
			t.Errorf("a file that is there: %v", err)
		}
		if err := errors.Join(f.Frame([]byte("one")), f.Sync()); err != nil || f.TakeDirty() {
			t.Errorf("synced, and still dirty: %v", err)
		}
		if err := f.Frame([]byte("two")); err != nil || !f.TakeDirty() || f.TakeDirty() {
			t.Errorf("dirty once, not before or after: %v", err)
		}
		end, want := f.Abandon, seal.ErrTruncated
		if ended {
			end, want = f.Finish, io.EOF
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() != f.Size() {
			t.Errorf("%v bytes, said to be %d: %v", info, f.Size(), err)
		}
		in, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		r, err := sealer.NewReader(in, "test")
		if err != nil {
			t.Fatal(err)
		}
		for _, frame := range []string{"one", "two"} {
			if b, err := r.Next(); err != nil || string(b) != frame {
				t.Errorf("%q, %v, want %q", b, err, frame)
			}
		}
		if _, err := r.Next(); !errors.Is(err, want) {
			t.Errorf("ended %v: %v, want %v", ended, err, want)
		}
		_ = in.Close()
	}
}
