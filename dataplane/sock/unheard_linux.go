package sock

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Unheard has the kernel give a connection up on which what was sent goes
// unheard for so long: no keep-alive asks after it as long as something is on its
// way, and the kernel would send that again for a quarter of an hour (tcp(7)).
func Unheard(raw syscall.RawConn, after time.Duration) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after.Milliseconds()))
	})
	if err != nil {
		return err //nolint:wrapcheck // the caller says what it did
	}
	return os.NewSyscallError("setsockopt", failed)
}
