package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/dataplane/link/ring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		nc, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		conns[i] = NewConn(nc)
		t.Cleanup(func() { _ = conns[i].Close() })
	}
	return conns[0], conns[1]
}

func TestConnKeepsEachSendersOrder(t *testing.T) {
	a, b := pair(t)
	const senders, each = 8, 500
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				m := &Message{Type: TypeMetrics, Seq: uint64(i), Bytes: append([]byte{byte(s)}, make([]byte, i*7%3000)...)}
				var err error
				if i%2 == 0 {
					err = a.Deliver(t.Context(), m)
				} else {
					err = a.Send(t.Context(), m)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var next [senders]uint64
	for range senders * each {
		m, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		s := m.Bytes[0]
		if m.Seq != next[s] {
			t.Fatalf("sender %d: message %d came instead of %d", s, m.Seq, next[s])
		}
		next[s]++
	}
	wg.Wait()
}

func TestConnIsBounded(t *testing.T) {
	a, _ := pair(t)
	m := &Message{Type: TypeLog, Bytes: make([]byte, 100<<10)}
	sent := 0
	for ; sent < 1000; sent++ {
		if err := a.TrySend(m); err != nil {
			if !errors.Is(err, ErrBusy) {
				t.Fatal(err)
			}
			break
		}
	}
	if sent == 1000 {
		t.Fatal("100 MB waited for a reader that never reads")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Send(ctx, m); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for room: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := a.TrySend(m); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestDeliveredSurvivesTheSender: what the kernel has is read even after the
// sender's end was closed with unread data on it, as a kill leaves it.
func TestDeliveredSurvivesTheSender(t *testing.T) {
	a, b := pair(t)
	if err := b.Send(t.Context(), &Message{Type: TypeDrain}); err != nil { // never read by a
		t.Fatal(err)
	}
	for i := range 100 {
		if err := a.Deliver(t.Context(), &Message{Type: TypeMetrics, Seq: uint64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	_ = a.Close()
	for i := range 100 {
		if m, err := b.Receive(); err != nil || m.Seq != uint64(i) {
			t.Fatalf("record %d: %v %v", i, m, err)
		}
	}
}

// stateStub stands for view.Store.
type stateStub struct {
	mu     sync.Mutex
	frames []feed.FrameType
	loaded bool
	fail   error
}

func (s *stateStub) Apply(f *feed.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames = append(s.frames, f.Type)
	return s.fail
}
func (s *stateStub) Pin([]byte, uint64) error        { return nil }
func (s *stateStub) SetLoaded(bool)                  { s.mu.Lock(); s.loaded = true; s.mu.Unlock() }
func (s *stateStub) Abandon()                        {}
func (s *stateStub) Position() controlplane.Position { return controlplane.Position{} }
func (s *stateStub) Loaded() bool                    { s.mu.Lock(); defer s.mu.Unlock(); return s.loaded }

// attend starts an Attendant on a socket in a directory of the test.
func attend(t *testing.T, cfg AttendConfig) (dir string, a *Attendant) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), strings.Repeat("d", 120)) // longer than a socket address
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := ListenSocket(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if s, ok := cfg.Listener.(*starved); ok {
		s.Listener = l
	} else {
		cfg.Listener = l
	}
	cfg.Files = withFiles(t, cfg.Files)
	if cfg.State == nil {
		cfg.State = new(stateStub)
	}
	cfg.Measure = func() Confinement { return Confinement{NoDump: true} }
	a, err = Attend(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir, a
}

// withFiles adds a ring, and something to hand over as listeners.
func withFiles(t testing.TB, f Files) Files {
	t.Helper()
	var err error
	if f.Ring == nil {
		if f.Ring, err = ring.Create(1, 4711); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Ring.Close() })
	}
	for _, l := range []**os.File{&f.API, &f.Peer} {
		if *l != nil {
			continue
		}
		if *l, err = os.Open(os.DevNull); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*l).Close() })
	}
	return f
}

func dial(t *testing.T, dir string) (*Conn, *Hello, *Files) {
	t.Helper()
	c, hello, files, err := DialWorker(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		files.Close()
	})
	return c, hello, files
}

func receive(t *testing.T, c *Conn, want Type) *Message {
	t.Helper()
	for {
		m, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if m.Type == want {
			return m
		}
	}
}

func send(t *testing.T, c *Conn, m *Message) {
	t.Helper()
	if err := c.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

func within(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// starved is a listener in a process that has no descriptor left for a while.
type starved struct {
	net.Listener
	failures int
}

func (l *starved) Accept() (net.Conn, error) {
	if l.failures--; l.failures >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// A worker without a descriptor for its next keeper goes on: if it gave up its
// socket nobody would read its records any more.
func TestNoDescriptorForAKeeper(t *testing.T) {
	dir, a := attend(t, AttendConfig{Listener: &starved{failures: 2}})
	dial(t, dir)
	if err := a.Emit([]byte("x")); err != nil {
		t.Error(err)
	}
}

func TestNoWorker(t *testing.T) {
	dir := t.TempDir()
	if _, _, _, err := DialWorker(t.Context(), dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	f, err := ListenSocket(dir)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close() // the worker died
	if _, _, _, err := DialWorker(t.Context(), dir); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a socket left behind: %v", err)
	}
}

func TestAttendant(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	lf, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lf.Close() }()
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "answer"}, func() float64 { return 42 }))
	state := new(stateStub)
	dir, a := attend(t, AttendConfig{State: state, Build: "v1", Files: Files{API: lf}, Gatherer: reg, HealthEvery: 5 * time.Millisecond})
	slog.New(a.LogHandler()).Info("before any keeper")

	k, hello, files := dial(t, dir)
	if hello.PID != os.Getpid() || hello.Build != "v1" || hello.Cluster != "" || !hello.Confinement.NoDump || hello.Run != 4711 {
		t.Errorf("greeting %+v", hello)
	}
	handed, err := net.FileListener(files.API)
	if err != nil || handed.Addr().String() != l.Addr().String() {
		t.Errorf("the listener handed over is %v, %v", handed, err)
	}
	_ = handed.Close()
	if m := receive(t, k, TypeLog); !bytes.Contains(m.Bytes, []byte("before any keeper")) {
		t.Errorf("log line %s", m.Bytes)
	}

	send(t, k, &Message{Type: TypeSetup, Setup: &Setup{Cluster: "c", Node: "n", Capacity: 3}})
	setup, err := a.Setup(t.Context())
	if err != nil || setup.Capacity != 3 {
		t.Errorf("setup %+v, %v", setup, err)
	}
	<-a.SetupChanged()
	renewed := *setup
	renewed.NodeCert = []byte("renewed")
	send(t, k, &Message{Type: TypeSetup, Setup: &renewed})
	<-a.SetupChanged()
	if s, err := a.Setup(t.Context()); err != nil || string(s.NodeCert) != "renewed" {
		t.Errorf("setup %+v, %v", s, err)
	}
	send(t, k, &Message{Type: TypePeers, Peers: &Peers{Nodes: []Peer{{Node: "other"}}}})
	for start := time.Now(); len(a.Peers().Nodes) == 0 && time.Since(start) < 5*time.Second; {
		time.Sleep(time.Millisecond)
	}
	if p := a.Peers(); len(p.Nodes) != 1 || p.Nodes[0].Node != "other" {
		t.Errorf("peers %+v", p)
	}
	raw, err := feed.EncodeFrame(&feed.Frame{Type: feed.FrameReset, Shard: "eu"})
	if err != nil {
		t.Fatal(err)
	}
	send(t, k, &Message{Type: TypeState, Frames: [][]byte{raw, raw}})
	send(t, k, &Message{Type: TypeLoaded})
	<-a.Loaded()
	if len(state.frames) != 2 {
		t.Errorf("frames %v", state.frames)
	}
	state.mu.Lock()
	state.fail = errors.New("does not fit")
	state.mu.Unlock()
	send(t, k, &Message{Type: TypeState, Frames: [][]byte{raw}})
	if m := receive(t, k, TypeResync); m.Shard != "eu" {
		t.Errorf("resync %+v", m)
	}
	send(t, k, &Message{Type: TypeMetricsAsk, Seq: 77})
	if m := receive(t, k, TypeMetrics); m.Seq != 77 || !bytes.Contains(m.Bytes, []byte("answer")) {
		t.Errorf("metrics %d %q", m.Seq, m.Bytes)
	}
	a.WatchHealth(func() Health { return Health{Ready: true, InFlight: 4} })
	if m := receive(t, k, TypeHealth); !m.Health.Ready || m.Health.InFlight != 4 || !m.Health.Confinement.NoDump {
		t.Errorf("health %+v", m.Health)
	}
	a.ShareVerdict(feed.Verdict{Key: "k"})
	if m := receive(t, k, TypeVerdicts); m.Verdicts[0].Key != "k" {
		t.Errorf("verdicts %+v", m)
	}
	send(t, k, &Message{Type: TypeDrain, Seq: 60_000})
	<-a.Drain()
	if left := time.Until(a.DrainBy()); left < 30*time.Second || left > time.Minute {
		t.Errorf("it is killed in %v", left)
	}

	// Another node's keeper is refused; the greeting says who we are.
	other, hello, _ := dial(t, dir)
	if hello.Cluster != "c" || hello.Node != "n" || !hello.Loaded {
		t.Errorf("greeting %+v", hello)
	}
	send(t, other, &Message{Type: TypeSetup, Setup: &Setup{Cluster: "c", Node: "m"}})
	for {
		if _, err := other.Receive(); err != nil {
			break
		}
	}
}

// TestRecords: records wait in the ring for whichever keeper reads it, a
// keeper that sleeps is woken once, and nothing is taken beyond the bound.
func TestRecords(t *testing.T) {
	dir, a := attend(t, AttendConfig{HealthEvery: 5 * time.Millisecond})
	emit := func(record string) {
		t.Helper()
		if err := a.Emit([]byte(record)); err != nil {
			t.Fatal(err)
		}
	}
	emit("1")
	k, hello, files := dial(t, dir)
	reader, err := ring.OpenConsumer(files.Ring)
	if err != nil {
		t.Fatal(err)
	}
	files.Ring = nil
	defer func() { _ = reader.Close() }()
	if reader.Run() != hello.Run {
		t.Errorf("the ring has number %d, the greeting says %d", reader.Run(), hello.Run)
	}
	emit("2")
	for n := 1; n <= 2; n++ {
		if seq, b, err := reader.Next(); err != nil || seq != uint64(n) || string(b) != fmt.Sprint(n) {
			t.Fatalf("record %d came as %d %q, %v", n, seq, b, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flushed with records that nobody kept: %v", err)
	}
	if err := reader.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := a.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if !reader.Sleep() {
		t.Fatal("something waits")
	}
	emit("3")
	receive(t, k, TypeWake)
	// A wake that found no keeper is said to the next.
	_ = k.Close()
	within(t, "the keeper's end is noticed", func() bool { return a.keeper() == nil })
	for {
		if _, _, err := reader.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := reader.Commit(); err != nil || !reader.Sleep() {
		t.Fatalf("something waits: %v", err)
	}
	emit("4")
	k, _, _ = dial(t, dir)
	receive(t, k, TypeWake)

	for err = nil; err == nil && a.Room(); {
		err = a.Emit(make([]byte, 100))
	}
	if err != nil {
		t.Errorf("refused with room left: %v", err)
	}
	for range 100 {
		err = errors.Join(err, a.Emit(make([]byte, 100)))
	}
	if !errors.Is(err, ErrBacklog) {
		t.Errorf("beyond the bound: %v", err)
	}
}

// TestClosedRefuses: a worker that keepers cannot find any more takes no
// record, since nobody would read it.
func TestClosedRefuses(t *testing.T) {
	_, a := attend(t, AttendConfig{})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Emit([]byte("x")); !errors.Is(err, ErrBacklog) {
		t.Errorf("after Close: %v", err)
	}
}

// TestAnotherVersion: a keeper says so and takes nothing from such a worker.
func TestAnotherVersion(t *testing.T) {
	for said, want := range map[string]error{"rmL1": ErrVersion, "SSH-": ErrMalformed, preamble: ErrMalformed} {
		dir := t.TempDir()
		f, err := ListenSocket(dir)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		var worker sync.WaitGroup
		worker.Go(func() {
			nc, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = nc.Write([]byte(said)) // without files
			_ = nc.Close()
		})
		if _, _, _, err := DialWorker(t.Context(), dir); !errors.Is(err, want) {
			t.Errorf("%q: %v", said, err)
		}
		worker.Wait()
		_ = l.Close()
	}
}

func BenchmarkEmit(b *testing.B) {
	dir := b.TempDir()
	f, err := ListenSocket(dir)
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		b.Fatal(err)
	}
	_ = f.Close()
	memory, err := ring.Create(ring.DefaultSize, 1)
	if err != nil {
		b.Fatal(err)
	}
	files := withFiles(b, Files{Ring: memory})
	a, err := Attend(b.Context(), AttendConfig{Listener: l, Files: files, State: new(stateStub), Measure: func() Confinement { return Confinement{} }})
	if err != nil {
		b.Fatal(err)
	}
	reader, err := ring.OpenConsumer(memory)
	if err != nil {
		b.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if _, _, err := reader.Next(); err == nil {
				continue
			}
			if err := reader.Commit(); err != nil {
				b.Error(err)
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	record := make([]byte, 350)
	b.ReportAllocs()
	for b.Loop() {
		for a.Emit(record) != nil { // faster than the reader wakes
			time.Sleep(time.Millisecond)
		}
	}
	close(stop)
	wg.Wait()
	if err := errors.Join(a.Close(), reader.Close()); err != nil {
		b.Fatal(err)
	}
}
