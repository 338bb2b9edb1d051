//go:build !linux

package confine

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// Exec replaces this process by argv. This kernel cannot confine it: Measure
// says so, and the worker refuses zero-retention requests.
func Exec(argv []string) error {
	if len(argv) == 0 {
		return fmt.Errorf("confine: no command given")
	}
	name, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	return fmt.Errorf("confine: run %s: %w", name, syscall.Exec(name, argv, os.Environ()))
}

// Enter does nothing on this kernel.
func Enter() error { return nil }

// Measure reports that nothing holds.
func Measure() Measured { return Measured{} }
