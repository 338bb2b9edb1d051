package image

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"ringmain/controlplane"
)

// DiskError adds controlplane.ErrDiskFull to an error that means it.
func DiskError(err error) error {
	if IsFull(err) && !errors.Is(err, controlplane.ErrDiskFull) {
		return fmt.Errorf("%w: %w", controlplane.ErrDiskFull, err)
	}
	return err
}

// IsFull reports an error that means that the disk has no room.
func IsFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, controlplane.ErrDiskFull)
}

// SyncDir makes what was created, renamed or removed in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
