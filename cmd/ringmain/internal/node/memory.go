package node

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// connMemory is what a connection of a client's costs at most while nothing is
// asked on it: half of it is TLS's, and a half of the rest garbage.
const connMemory = 50 << 10

// connsWithin is how many connections are let in by default: as many as half of
// the memory holds, and half of the files that may be open, since each may need
// one to an upstream, too; and never more than 131072. 0 = that is not known.
func connsWithin(memory, files uint64) int {
	most := uint64(131072)
	if memory > 0 {
		most = min(max(memory/2/connMemory, 1024), most)
	}
	if files > 0 {
		most = min(max(files/2, 1), most)
	}
	return int(most)
}

// files is how many files a process may have open.
func files() uint64 {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return 0
	}
	return l.Max // which Go's runtime asks for by itself
}

// memory is how many bytes this process may have: those of the machine, or fewer
// if its control group (version 2) or one above says so. 0 = nothing tells.
// root is where the file system begins.
func memory(root string) (most uint64) {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return "" // elsewhere than on Linux, or without such a limit
		}
		return string(b)
	}
	for line := range strings.Lines(read("proc/meminfo")) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 50) // 0 if it is none
			most = kib << 10
		}
	}
	for line := range strings.Lines(read("proc/self/cgroup")) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		for ; ok; group = path.Dir(group) {
			limit, err := strconv.ParseUint(strings.TrimSpace(read(path.Join("sys/fs/cgroup", group, "memory.max"))), 10, 64) // or "max"
			if err == nil && (most == 0 || limit < most) {
				most = limit
			}
			if path.Dir(group) == group {
				break
			}
		}
	}
	return most
}
