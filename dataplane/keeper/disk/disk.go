// Package disk is how the keeper's rooms write: sealed files that know what is
// not synced yet, directories made durable, and errors that name a full disk.
// What is in a file, and when it is written anew, is for its room.
package disk

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"ringmain/controlplane"
	"ringmain/controlplane/seal"
)

// Error adds controlplane.ErrDiskFull to the errors of a full disk.
func Error(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", controlplane.ErrDiskFull, err)
	}
	return err
}

// SyncDir makes what was created, renamed or removed in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Foreign reports that what was read is under a key, or of a version, that this
// node lacks. It must be left as it is.
func Foreign(err error) bool {
	return errors.Is(err, seal.ErrUnknownKey) || errors.Is(err, seal.ErrUnsupported) || errors.Is(err, controlplane.ErrUnknownEntry)
}

// File is a sealed file while it is written, by one goroutine at a time.
type File struct {
	f     *os.File
	w     *seal.Writer
	size  int64
	dirty bool
}

// Create makes a file that is not there yet; context is sealed in.
func Create(path string, sealer *seal.Sealer, context string) (*File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, Error(err)
	}
	file := &File{f: f}
	if file.w, err = sealer.NewWriter(counted{file}, context); err != nil {
		return nil, errors.Join(Error(err), f.Close(), os.Remove(path))
	}
	return file, nil
}

// counted is the writer below the seal.
type counted struct{ *File }

func (c counted) Write(b []byte) (int, error) {
	n, err := c.f.Write(b)
	c.size += int64(n)
	c.dirty = true
	return n, err
}

// Size is in bytes, as on disk.
func (f *File) Size() int64 { return f.size }

// Frame appends one frame; durable only after Sync.
func (f *File) Frame(b []byte) error { return Error(f.w.Frame(b)) }

// Sync makes what was appended survive the host.
func (f *File) Sync() error {
	if !f.TakeDirty() {
		return nil
	}
	return f.Flush()
}

// TakeDirty reports whether there is anything to sync, which is the caller's
// from then on: it calls Flush, beside which others may append.
func (f *File) TakeDirty() bool {
	dirty := f.dirty
	f.dirty = false
	return dirty
}

// Flush syncs, whatever there is.
func (f *File) Flush() error { return Error(f.f.Sync()) }

// Finish writes the end mark, syncs and closes.
func (f *File) Finish() error {
	err := f.w.Close()
	f.dirty = true
	return Error(errors.Join(err, f.Sync(), f.f.Close()))
}

// Abandon closes the file as it is, without its end.
func (f *File) Abandon() error { return f.f.Close() }
