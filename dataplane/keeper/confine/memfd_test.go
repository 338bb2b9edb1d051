//go:build linux

package confine

import (
	"os"

	"golang.org/x/sys/unix"
)

func writeMemfd() error {
	fd, err := unix.MemfdCreate("spill", 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "spill")
	defer func() { _ = f.Close() }()
	_, err = f.WriteString("content")
	return err
}
