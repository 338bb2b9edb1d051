//go:build linux

package confine

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The test binary plays the keeper's child: first the stage that confines,
// then the worker that tries to break out.
func TestMain(m *testing.M) {
	switch os.Getenv("CONFINE_STAGE") {
	case "confine":
		check(os.Setenv("CONFINE_STAGE", "worker"))
		check(Exec(append([]string{os.Args[0]}, os.Args[1:]...)))
	case "worker":
		worker()
	default:
		os.Exit(m.Run())
	}
}

func check(err error) {
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
}

// attempts is what the worker found out; errors as errno numbers, 0 = it worked.
type attempts struct {
	Measured                                       Measured
	Create, Append, Rename, Remove, Mkdir, Symlink int
	Open, Truncate, Memfd                          int
	Read                                           string
	ErrAfterReader                                 bool
}

func number(err error) int {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return int(errno)
	}
	if err != nil {
		return -1
	}
	return 0
}

// worker has a file open for writing as descriptor 3 and a pipe to report on as 4.
func worker() {
	check(Enter())
	dir := os.Args[1]
	victim := filepath.Join(dir, "victim")
	var a attempts
	a.Measured = Measure()
	_, err := os.OpenFile(filepath.Join(dir, "new"), os.O_CREATE|os.O_WRONLY, 0o600)
	a.Create = number(err)
	_, err = os.OpenFile(victim, os.O_APPEND|os.O_WRONLY, 0)
	a.Append = number(err)
	a.Rename = number(os.Rename(victim, filepath.Join(dir, "moved")))
	a.Remove = number(os.Remove(victim))
	a.Mkdir = number(os.Mkdir(filepath.Join(dir, "d"), 0o700))
	a.Symlink = number(os.Symlink(victim, filepath.Join(dir, "l")))
	a.Truncate = number(os.Truncate(victim, 0))
	open := os.NewFile(3, "open before")
	_, err = open.WriteString("more")
	a.Open = number(err)
	a.Memfd = number(writeMemfd())
	text, err := os.ReadFile(victim)
	check(err)
	a.Read = string(text)
	_, err = os.Stderr.WriteString("nobody reads this any more")
	a.ErrAfterReader = err != nil
	report := os.NewFile(4, "report")
	check(json.NewEncoder(report).Encode(a))
	os.Exit(0)
}

func TestWorkerCannotWrite(t *testing.T) {
	version, err := abi()
	if err != nil {
		t.Logf("no Landlock here (%v): only the limits are tested", err)
	}
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	open, err := os.OpenFile(victim, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	report, reportEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, stderrEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = stderr.Close() // the keeper that would read it is dead
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), "CONFINE_STAGE=confine")
	cmd.Stdout, cmd.Stderr = stderrEnd, stderrEnd
	cmd.ExtraFiles = []*os.File{open, reportEnd}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = errors.Join(open.Close(), reportEnd.Close(), stderrEnd.Close())
	out, err := io.ReadAll(report)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the worker died: %v", err)
	}
	var a attempts
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&a); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if a.Open != int(syscall.EFBIG) || a.Memfd != int(syscall.EFBIG) {
		t.Errorf("writing to an open file gave errno %d, to memory posing as one %d; want EFBIG", a.Open, a.Memfd)
	}
	if !a.Measured.NoFileWrite || !a.Measured.NoDump {
		t.Errorf("measured %+v", a.Measured)
	}
	if a.Read != "precious" || !a.ErrAfterReader {
		t.Errorf("read %q; writing to a closed pipe failed: %v", a.Read, a.ErrAfterReader)
	}
	if a.Measured.Landlock != version {
		t.Errorf("measured Landlock %d, the kernel has %d", a.Measured.Landlock, version)
	}
	if version == 0 {
		return
	}
	for what, errno := range map[string]int{
		"create": a.Create, "append": a.Append, "rename": a.Rename, "remove": a.Remove,
		"mkdir": a.Mkdir, "symlink": a.Symlink, "truncate": a.Truncate,
	} {
		if errno != int(syscall.EACCES) {
			t.Errorf("%s gave errno %d, want EACCES", what, errno)
		}
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "precious" {
		t.Errorf("the file holds %q, %v", text, err)
	}
}

// TestMeasureNoticesFreedom: a process that nobody confined must say so.
func TestMeasureNoticesFreedom(t *testing.T) {
	m := Measure()
	if m.Landlock != 0 || m.NoFileWrite || m.NoDump {
		t.Errorf("this test is not confined, yet measured %+v", m)
	}
}

func TestSwap(t *testing.T) {
	const heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	if !swapsEmpty(strings.NewReader(heading)) {
		t.Error("a heading alone is no swap")
	}
	if swapsEmpty(strings.NewReader(heading+"/dev/vdb partition 8 0 -2\n")) || swapsEmpty(strings.NewReader("")) {
		t.Error("a swap space, or nothing readable, must not count as none")
	}
	if got := swapLimit("1:name=systemd:/x\n0::/a/b\n"); got != "/sys/fs/cgroup/a/b/memory.swap.max" {
		t.Errorf("limit file %q", got)
	}
	if got := swapLimit("1:cpu:/x\n"); got != "" {
		t.Errorf("limit file %q without a unified group", got)
	}
}
