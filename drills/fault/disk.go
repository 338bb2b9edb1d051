package fault

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Disk is a file system of its own under a directory, whose writes can be made
// to hang as those of a disk that went away do: ext4 on a loop device, frozen.
// It takes root, and a mount namespace that ends with the drill.
type Disk struct{ dir string }

// OpenDisk moves what dir holds to a disk of size bytes, kept in the new file
// image. Nothing may use dir meanwhile.
func OpenDisk(ctx context.Context, dir, image string, size int64) (*Disk, error) {
	f, err := os.OpenFile(filepath.Clean(image), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	kept := image + ".kept"
	for _, command := range [][]string{
		{"mkfs.ext4", "-q", "-F", image},
		{"cp", "-a", dir, kept},
		{"mount", "-o", "loop", image, dir},
		{"cp", "-a", kept + "/.", dir},
		{"rm", "-r", kept},
	} {
		if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("a disk for %s: %s: %w: %s", dir, command[0], err, out)
		}
	}
	return &Disk{dir}, nil
}

// Close takes the disk away with all that is on it.
func (d *Disk) Close() error {
	if err := syscall.Unmount(d.dir, 0); err != nil {
		return fmt.Errorf("take the disk of %s away: %w", d.dir, err)
	}
	return nil
}

// keeper holds a disk frozen until its standard input ends: with this process
// at the latest, since whoever waits for a frozen disk cannot even be killed.
const keeper = `fsfreeze -f "$1" && echo frozen && read _; fsfreeze -u "$1" && echo thawed`

// Stall freezes the disk until release is called, or this process ends.
func (d *Disk) Stall() (release func() error, err error) {
	cmd := exec.Command("sh", "-c", keeper, "sh", d.dir)  //nolint:noctx // release ends it; a context would leave the disk frozen
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a signal to our group must not reach it
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	release = func() error {
		err := in.Close()
		said, readErr := io.ReadAll(out)
		if err = errors.Join(err, readErr, cmd.Wait()); err == nil && !strings.Contains(string(said), "thawed") {
			err = fmt.Errorf("it said %q", said)
		}
		if err != nil {
			return fmt.Errorf("thaw %s: %w", d.dir, err)
		}
		return nil
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "frozen\n" {
		return nil, fmt.Errorf("freeze %s: %w", d.dir, errors.Join(err, release()))
	}
	return release, nil
}

// Hangs finds a thread of the process that waits without a break for what does
// not come, such as a frozen disk: twice seen, a while apart, in the state in
// which nothing reaches it. It returns "" if there is none within the limit.
func Hangs(ctx context.Context, pid int, between, limit time.Duration) (thread string) {
	for deadline := time.Now().Add(limit); ctx.Err() == nil && time.Now().Before(deadline); {
		before := waiting(pid)
		select {
		case <-ctx.Done():
		case <-time.After(between):
		}
		after := waiting(pid)
		for id, switches := range before {
			if after[id] == switches && switches != "" {
				return id
			}
		}
	}
	return ""
}

// waiting lists the threads in state D with how often each has been switched
// away from: one that has run in between counts higher.
func waiting(pid int) map[string]string {
	found := map[string]string{}
	tasks, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "[0-9]*"))
	for _, task := range tasks {
		b, err := os.ReadFile(filepath.Join(task, "status"))
		if err != nil || !strings.Contains(string(b), "\nState:\tD") {
			continue
		}
		_, switches, _ := strings.Cut(string(b), "voluntary_ctxt_switches:")
		found[filepath.Base(task)] = strings.Join(strings.Fields(switches), " ")
	}
	return found
}
