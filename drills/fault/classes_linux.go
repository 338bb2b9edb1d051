package fault

import (
	"fmt"
	"syscall"
)

// mountClasses puts the network classes of control groups at dir, for this mount
// namespace alone.
func mountClasses(dir string) error {
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := syscall.Mount("net_cls", dir, "cgroup", 0, "net_cls"); err != nil {
		return fmt.Errorf("net_cls: %w", err)
	}
	return nil
}
