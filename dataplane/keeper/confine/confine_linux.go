package confine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Exec replaces this process by argv with the environment it has, confined: no
// file can be opened for writing, created, moved or removed, and none that is
// open can be written. Where the kernel has no Landlock the rest still holds,
// and Measure tells. It only returns on failure.
//
// Descriptors without close-on-exec stay open. Standard input, output and
// error must be open, and the latter two not be files: a Go program opens
// /dev/null for writing in place of a missing one, and could not.
func Exec(argv []string) error {
	if len(argv) == 0 {
		return errors.New("confine: no command given")
	}
	name, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	// Landlock binds a thread; exec makes this one the whole process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := limit(); err != nil {
		return err
	}
	if err := landlock(); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	// The command to run is the purpose of this function; the caller is the node's own binary.
	if err := syscall.Exec(name, argv, os.Environ()); err != nil { //nolint:gosec // see above
		return fmt.Errorf("confine: run %s: %w", name, err)
	}
	return nil
}

// limit sets the file size and core limits to 0, for good.
func limit() error {
	for what, resource := range map[string]int{"file size": unix.RLIMIT_FSIZE, "core size": unix.RLIMIT_CORE} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{}); err != nil {
			return fmt.Errorf("confine: limit the %s: %w", what, err)
		}
	}
	return nil
}

// writeRights are the file system rights that Landlock handles by ABI version.
// What is handled and granted nowhere is refused everywhere; reading and
// executing are left alone.
var writeRights = []struct {
	abi    int
	rights uint64
}{
	{1, unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM},
	{2, unix.LANDLOCK_ACCESS_FS_REFER},
	{3, unix.LANDLOCK_ACCESS_FS_TRUNCATE},
	{5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
}

// abi is the kernel's Landlock version, or an error: ENOSYS where it was not
// built in, EOPNOTSUPP where it is off.
func abi() (int, error) {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, errno
	}
	return int(v), nil
}

// landlock confines the calling thread and what it executes.
func landlock() error {
	version, err := abi()
	if err != nil {
		return fmt.Errorf("confine: landlock: %w", err)
	}
	var rights uint64 // the first field of the kernel's structure; older kernels refuse a longer one
	for _, r := range writeRights {
		if version >= r.abi {
			rights |= r.rights
		}
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rights)), unsafe.Sizeof(rights), 0) //nolint:gosec // the system call takes a pointer
	if errno != 0 {
		return fmt.Errorf("confine: landlock: %w", errno)
	}
	defer func() { _ = unix.Close(int(fd)) }()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confine: no new privileges: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("confine: landlock: %w", errno)
	}
	return nil
}

// Enter finishes what Exec began, from inside: exec had made the process
// readable by debuggers again. It also keeps the process alive when its
// keeper, who reads its standard error, dies. Call it first in main.
func Enter() error {
	signal.Ignore(unix.SIGPIPE, unix.SIGXFSZ)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("confine: forbid dumps: %w", err)
	}
	return nil
}

// Measure tries each control. It is cheap enough to repeat every few seconds.
func Measure() Measured {
	return Measured{
		Landlock:    measureLandlock(),
		NoFileWrite: limitIsZero(unix.RLIMIT_FSIZE),
		NoDump:      limitIsZero(unix.RLIMIT_CORE) && dumpable() == 0,
		NoSwap:      noSwap(),
	}
}

// measureLandlock opens /dev/null for writing: harmless where it works, and
// allowed to everyone where Landlock does not refuse it.
func measureLandlock() int {
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err == nil {
		_ = f.Close() // nothing was written
		return 0
	}
	version, abiErr := abi()
	if !errors.Is(err, unix.EACCES) || abiErr != nil {
		return 0
	}
	return version
}

func limitIsZero(resource int) bool {
	var l unix.Rlimit
	return unix.Getrlimit(resource, &l) == nil && l.Cur == 0 && l.Max == 0
}

func dumpable() int {
	v, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return -1
	}
	return v
}

func noSwap() bool {
	if f, err := os.Open("/proc/swaps"); err == nil {
		empty := swapsEmpty(f)
		_ = f.Close() // opened for reading
		if empty {
			return true
		}
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return false
	}
	limit, err := os.ReadFile(swapLimit(string(groups)))
	return err == nil && strings.TrimSpace(string(limit)) == "0"
}

// swapsEmpty reads /proc/swaps: a heading, then a line per swap space.
func swapsEmpty(r io.Reader) bool {
	lines := 0
	s := bufio.NewScanner(r)
	for s.Scan() {
		lines++
	}
	return s.Err() == nil && lines == 1
}

// swapLimit is the file that limits swap for the unified control group named
// in /proc/self/cgroup.
func swapLimit(groups string) string {
	for line := range strings.Lines(groups) {
		if group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path.Join("/sys/fs/cgroup", group, "memory.swap.max")
		}
	}
	return ""
}
