package keeper

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"ringmain/controlplane"
	"ringmain/dataplane/keeper/trial"
	"ringmain/dataplane/link"
	"ringmain/dataplane/link/ring"
)

// worker is one worker process and the connection to it.
type worker struct {
	conn    *link.Conn
	hello   *link.Hello
	ring    *ring.Consumer // until the spool has it
	process *os.Process    // by descriptor, so that no other with its pid is meant
	pid     int
	adopted bool
	exited  chan struct{}    // closed when a child is reaped; nil for another keeper's
	status  *os.ProcessState // set before exited is closed
	child   *worker          // has status; itself if it was started here

	given      trial.Given    // what was sent of the state
	progressMu sync.Mutex     // guards progress, which is memory that goes away
	progress   *ring.Progress // how far the worker is with it; read after its death too
}

// post sends m if the worker reads; what is dropped comes again by itself.
func (w *worker) post(m *link.Message) bool { return w.conn.TrySend(m) == nil }

func newWorker(p *os.Process) *worker { return &worker{process: p, pid: p.Pid} }

// kill ends the process, if it has not ended.
func (w *worker) kill() {
	if err := w.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		_ = w.conn.Close() // it cannot be reached in any way; it serves until its listeners go
	}
}

// dialTimeout bounds how long a worker may take to greet. One that just
// started has to load its binary first.
const dialTimeout = 10 * time.Second

// adopt connects to the worker that serves the data directory already; nil if
// there is none. A worker of another node, or of another version, is an error.
func (k *Keeper) adopt(ctx context.Context) (*worker, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, hello, files, err := link.DialWorker(ctx, k.cfg.Dir)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the worker of this data directory does not answer: end it, or wait: %w", err)
	}
	s := k.cfg.Setup
	if hello.Cluster != "" && (hello.Cluster != s.Cluster || hello.Node != s.Node) {
		files.Close()
		return nil, errors.Join(fmt.Errorf("the worker of this data directory is %q of cluster %q: %w",
			hello.Node, hello.Cluster, controlplane.ErrWrongCluster), conn.Close())
	}
	records, err := openRing(files.Ring, hello)
	if err != nil {
		files.Ring = nil // closed
		files.Close()
		return nil, errors.Join(err, conn.Close())
	}
	progress, err := ring.OpenProgress(files.Ring)
	if err != nil {
		files.Ring = nil // of records
		files.Close()
		return nil, errors.Join(err, records.Close(), conn.Close())
	}
	process, err := os.FindProcess(hello.PID)
	if err != nil { // never on Unix
		files.Ring = nil // of records
		files.Close()
		return nil, errors.Join(err, records.Close(), progress.Close(), conn.Close())
	}
	k.procMu.Lock()
	closeFiles(k.listeners)
	k.listeners = []*os.File{files.API, files.Peer}
	k.procMu.Unlock()
	k.log.Info("adopted the worker that was running", "pid", hello.PID, "loaded", hello.Loaded, "build", hello.Build)
	w := newWorker(process)
	w.conn, w.hello, w.ring, w.progress, w.adopted = conn, hello, records, progress, true
	if k.child != nil && k.child.pid == w.pid {
		w.exited, w.child = k.child.exited, k.child // only the connection had broken
	}
	return w, nil
}

// openRing opens the ring that a worker handed over, or closes it.
func openRing(f *os.File, hello *link.Hello) (*ring.Consumer, error) {
	c, err := ring.OpenConsumer(f)
	if err != nil {
		return nil, fmt.Errorf("the records of the worker of this data directory cannot be read: end it: %w", err)
	}
	if c.Run() != hello.Run {
		return nil, errors.Join(fmt.Errorf("the worker of this data directory is run %d and has the ring of run %d: end it: %w",
			hello.Run, c.Run(), link.ErrMalformed), c.Close())
	}
	return c, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // copies of listeners
	}
}

// maxRings bounds how many dead workers' records may wait for the disk.
const maxRings = 4

// newRing makes the memory for a new worker's records. The workers before it
// are gone; what they left is still written.
func (k *Keeper) newRing() (*os.File, *ring.Consumer, *ring.Progress, error) {
	if n := k.spool.End(); n >= maxRings {
		return nil, nil, nil, errors.Join(fmt.Errorf("records of %d workers that died wait for the disk: make room there", n), k.spool.Stats().Failing)
	}
	var run [8]byte
	if _, err := rand.Read(run[:]); err != nil {
		return nil, nil, nil, fmt.Errorf("number the worker's run: %w", err)
	}
	size := k.cfg.Tunables.SpoolPending
	if size <= 0 {
		size = ring.DefaultSize
	}
	f, err := ring.Create(size, binary.BigEndian.Uint64(run[:]))
	if err != nil {
		return nil, nil, nil, err
	}
	progress, err := ring.OpenProgress(f)
	if err != nil {
		return nil, nil, nil, errors.Join(err, f.Close())
	}
	c, err := ring.OpenConsumer(f)
	if err != nil {
		err = errors.Join(err, progress.Close())
	}
	return f, c, progress, err
}

// bind opens the listeners unless it has them.
func (k *Keeper) bind(ctx context.Context) error {
	k.procMu.Lock()
	defer k.procMu.Unlock()
	if len(k.listeners) == 2 {
		return nil
	}
	closeFiles(k.listeners)
	k.listeners = nil
	for what, addr := range []string{k.cfg.APIAddr, k.cfg.PeerAddr} {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("bind %s %s: %w", []string{"api", "peer"}[what], addr, err)
		}
		tl, ok := l.(*net.TCPListener)
		if !ok {
			return errors.Join(fmt.Errorf("%s is no TCP address", addr), l.Close())
		}
		f, err := tl.File()
		if err = errors.Join(err, tl.Close()); err != nil {
			return fmt.Errorf("bind %s: %w", addr, err)
		}
		k.listeners = append(k.listeners, f)
	}
	return nil
}

// Addrs are where the worker's listeners are bound.
func (k *Keeper) Addrs() (api, peer net.Addr, err error) {
	k.procMu.Lock()
	defer k.procMu.Unlock()
	if len(k.listeners) != 2 {
		return nil, nil, errors.New("the listeners are not bound")
	}
	addrs := make([]net.Addr, 2)
	for i, f := range k.listeners {
		l, err := net.FileListener(f)
		if err != nil {
			return nil, nil, err
		}
		addrs[i] = l.Addr()
		_ = l.Close() // a copy
	}
	return addrs[0], addrs[1], nil
}

// start runs a new worker and connects to it.
func (k *Keeper) start(ctx context.Context) (w *worker, err error) {
	if err := k.bind(ctx); err != nil {
		return nil, err
	}
	socket, err := link.ListenSocket(k.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = socket.Close() }() // the worker has its own
	memory, records, progress, err := k.newRing()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, records.Close(), progress.Close()) // it served nobody
		}
	}()
	stderr, stderrEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	k.procMu.Lock()
	files := append(append([]*os.File{}, k.listeners...), socket, memory)
	k.procMu.Unlock()
	cmd := exec.Command(k.cfg.Worker[0], k.cfg.Worker[1:]...) //nolint:noctx // the worker outlives every context of its keeper
	cmd.Stdout, cmd.Stderr = stderrEnd, stderrEnd
	cmd.ExtraFiles = append(files, k.cfg.WorkerFiles...)
	// Its own group: an interrupt from the terminal is the keeper's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	_ = stderrEnd.Close() // the worker has its own
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the worker: %w", err), stderr.Close())
	}
	w = newWorker(cmd.Process)
	w.ring, w.progress, w.exited = records, progress, make(chan struct{})
	w.child, k.child = w, w
	k.children.Go(func() { k.relayStderr(stderr) })
	k.children.Go(func() {
		err := cmd.Wait()
		k.log.Info("the worker ended", "pid", w.pid, "status", cmd.ProcessState.String(), "error", err)
		w.status = cmd.ProcessState
		close(w.exited)
	})
	_ = socket.Close() // so that a worker that dies early is noticed
	if err := k.greeted(ctx, w); err != nil {
		w.kill()
		<-w.exited
		return nil, err
	}
	return w, nil
}

func (k *Keeper) greeted(ctx context.Context, w *worker) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, hello, files, err := link.DialWorker(ctx, k.cfg.Dir)
	if err != nil {
		return err
	}
	files.Close() // this keeper passed them
	w.conn, w.hello = conn, hello
	if hello.Run != w.ring.Run() {
		return errors.Join(fmt.Errorf("the worker has the ring of run %d, not the one given to it: %w", hello.Run, link.ErrMalformed), conn.Close())
	}
	if hello.PID != w.pid {
		k.log.Warn("the worker's process is not the one started: it was started through a wrapper that did not exec", "started", w.pid, "pid", hello.PID)
	}
	return nil
}

// relayStderr logs what the worker's runtime prints: panics, and nothing else
// in a sound worker. It reads to the end, so that the worker never waits.
func (k *Keeper) relayStderr(r *os.File) {
	defer func() { _ = r.Close() }() // read to its end
	s := bufio.NewScanner(r)
	for s.Scan() {
		k.log.Error("the worker printed", "line", s.Text())
	}
	if s.Err() != nil { // a line of more than 64 KiB
		_, _ = io.Copy(io.Discard, r) // keeps the pipe empty
	}
}
