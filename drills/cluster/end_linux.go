package cluster

import "syscall"

// endsWithUs has a child interrupted when the thread that started it ends.
func endsWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT}
}
