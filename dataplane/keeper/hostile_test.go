package keeper

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/dataplane/link"
	"ringmain/dataplane/receipt/proof"
	"ringmain/internal/testkit/diskkit"
)

// conns are both ends of a worker socket.
func conns(t *testing.T) (keeper, worker *link.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*link.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		nc, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close() // nc is a copy
		ends[i] = link.NewConn(nc)
		t.Cleanup(func() { _ = ends[i].Close() })
	}
	return ends[0], ends[1]
}

// storing is as much of a keeper as has receipts, and one signed batch.
func storing(t *testing.T) (k *Keeper, batch []byte, id string) {
	t.Helper()
	k = newKeeper(Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), WorkerLog: io.Discard, Sealer: diskkit.Sealer(t)})
	if err := k.openReceipts(t.Context(), "test/d1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.proofs.Close() })
	ca, err := identity.CreateCA(t.TempDir()+"/ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	node, err := ca.IssueNode(identity.ID{Region: "us-east", Role: identity.RoleData, Node: "d1"}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := proof.NewSigner(node.Chain, node.Key, node.Roots)
	if err != nil {
		t.Fatal(err)
	}
	id = "req_" + timeOf(time.Now()) + "0000000000000000"
	leaf := proof.AppendLeaf(nil, &proof.Facts{Leaf: proof.LeafPrefix(signer.Key()) + "1", RequestID: id})
	b, err := proof.Seal(signer, 1, proof.Hash{}, time.Now(), leaf, []uint32{uint32(len(leaf))}, []uint64{proof.RequestKey(id)})
	if err != nil {
		t.Fatal(err)
	}
	if batch, err = b.Encode(); err != nil {
		t.Fatal(err)
	}
	return k, batch, id
}

func serves(t *testing.T, k *Keeper, run uint64) (far *link.Conn, ended chan struct{}) {
	t.Helper()
	near, far := conns(t)
	w := &worker{conn: near, hello: &link.Hello{Run: run}, pid: 7}
	k.procMu.Lock()
	k.worker = w
	k.procMu.Unlock()
	ended = make(chan struct{})
	go func() { defer close(ended); k.receive(w) }()
	return far, ended
}

// Process ids come again. A worker is not told that its batch is on disk when
// that of a dead one is, which had the same process id.
func TestAcknowledgedToTheWorkerThatSent(t *testing.T) {
	k, batch, _ := storing(t)
	dir := filepath.Join(k.cfg.Dir, "receipts")
	if err := os.RemoveAll(dir); err != nil { // the disk takes nothing
		t.Fatal(err)
	}
	first, ended := serves(t, k, 1)
	if err := first.Send(t.Context(), &link.Message{Type: link.TypeReceipts, Seq: 1, Bytes: batch}); err != nil {
		t.Fatal(err)
	}
	within(t, "the batch waits", func() bool { return k.proofs.Stats().Failing != nil })
	_ = first.Close()
	<-ended
	second, _ := serves(t, k, 2)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	within(t, "the batch is on disk", func() bool { return k.proofs.Stats().Waiting == 0 })
	if err := k.proofs.Close(); err != nil { // what is to be acknowledged has been
		t.Fatal(err)
	}
	k.current().post(&link.Message{Type: link.TypeDrain})
	m, err := second.Receive()
	if err != nil || m.Type != link.TypeDrain {
		t.Errorf("the second worker was told %+v, %v", m, err)
	}
}

// A disk that stalls costs a few threads, however often a worker asks, and
// holds up no worker's replacement.
func TestAsksOfADiskThatStalls(t *testing.T) {
	k, batch, id := storing(t)
	k.proofs.Put(1, 1, batch)
	within(t, "the batch is on disk", func() bool { return k.proofs.Stats().Batches == 1 })
	segments, err := filepath.Glob(filepath.Join(k.cfg.Dir, "receipts", "*"))
	if err != nil || len(segments) != 1 {
		t.Fatal(segments, err)
	}
	// Opening a pipe without a writer waits like a disk that does not answer.
	if err := os.Remove(segments[0]); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(segments[0], 0o600); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	w, ended := serves(t, k, 1)
	for n := range 500 {
		if err := w.Send(t.Context(), &link.Message{Type: link.TypeReceiptAsk, Seq: uint64(n + 1), Bytes: []byte(id)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Deliver(t.Context(), &link.Message{Type: link.TypeMetrics}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if n := runtime.NumGoroutine() - before; n > 50 {
		t.Errorf("%d goroutines for 500 questions", n)
	}
	_ = w.Close()
	select {
	case <-ended:
	case <-time.After(3 * time.Second):
		t.Error("a worker that is gone is waited for")
	}
	answered := make(chan struct{})
	go func() { defer close(answered); <-ended; _ = k.asked.Wait() }()
	for {
		select {
		case <-answered:
			return
		case <-time.After(5 * time.Millisecond):
			if f, err := os.OpenFile(segments[0], os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
				_ = f.Close() // the disk answers
			}
		}
	}
}

// A worker that is gone is not killed again: its process id may be another's.
func TestKillsNobodyElse(t *testing.T) {
	sleeper := func() *exec.Cmd {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	for name, of := range map[string]func(cmd *exec.Cmd) *worker{
		"started": func(cmd *exec.Cmd) *worker { return newWorker(cmd.Process) },
		"adopted": func(cmd *exec.Cmd) *worker {
			p, err := os.FindProcess(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			return newWorker(p)
		},
	} {
		t.Run(name, func(t *testing.T) {
			first := sleeper()
			w := of(first)
			w.kill()
			_ = first.Wait() // says that it was killed
			if first.ProcessState == nil || first.ProcessState.Success() {
				t.Error("a worker that lives was not killed")
			}
			second := again(t, first.Process.Pid)
			w.kill()
			// Killed it would stay a zombie, until it is waited for below.
			state := ""
			for end := time.Now().Add(10 * time.Second); state != "S" && state != "Z" && time.Now().Before(end); {
				time.Sleep(50 * time.Millisecond)
				state = processState(t, w.pid)
			}
			if state != "S" {
				t.Errorf("another process with its id is in state %s", state)
			}
			_ = second.Process.Kill()
			_ = second.Wait()
		})
	}
}

// again starts a process under an id that was another's.
func again(t *testing.T, pid int) *exec.Cmd {
	t.Helper()
	for range 100 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", fmt.Append(nil, pid-1), 0o600); err != nil {
			t.Skipf("process ids cannot be chosen: %v", err)
		}
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if cmd.Process.Pid == pid {
			return cmd
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	}
	t.Skip("others took the process id")
	return nil
}

func processState(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "gone"
	}
	return strings.Fields(string(b))[2]
}
