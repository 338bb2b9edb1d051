package h1

import "golang.org/x/sys/unix"

// acked is how many bytes the other side's kernel has acknowledged since the
// connection began; its SYN may count as one.
func acked(fd int) (uint64, bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, false
	}
	return info.Bytes_acked, true
}
