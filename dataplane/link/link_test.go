package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
				m := &Message{Type: TypeRecord, Seq: uint64(i), Bytes: append([]byte{byte(s)}, make([]byte, i*7%3000)...)}
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
		if err := a.Deliver(t.Context(), &Message{Type: TypeRecord, Seq: uint64(i)}); err != nil {
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
func (s *stateStub) Pin([]byte) error                { return nil }
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
	cfg.Listener = l
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

func dial(t *testing.T, dir string) (*Conn, *Hello, []*os.File) {
	t.Helper()
	c, hello, files, err := DialWorker(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
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
	dir, a := attend(t, AttendConfig{State: state, Build: "v1", Listeners: []*os.File{lf}, Gatherer: reg, HealthEvery: 5 * time.Millisecond})
	slog.New(a.LogHandler()).Info("before any keeper")

	k, hello, files := dial(t, dir)
	if hello.PID != os.Getpid() || hello.Build != "v1" || hello.Cluster != "" || !hello.Confinement.NoDump || hello.Run == 0 {
		t.Errorf("greeting %+v", hello)
	}
	if len(files) != 1 {
		t.Fatalf("%d listeners were handed over", len(files))
	}
	handed, err := net.FileListener(files[0])
	if err != nil || handed.Addr().String() != l.Addr().String() {
		t.Errorf("the listener handed over is %v, %v", handed, err)
	}
	_ = handed.Close()
	_ = files[0].Close()
	if m := receive(t, k, TypeLog); !bytes.Contains(m.Bytes, []byte("before any keeper")) {
		t.Errorf("log line %s", m.Bytes)
	}

	send(t, k, &Message{Type: TypeSetup, Setup: &Setup{Cluster: "c", Node: "n", Capacity: 3}})
	setup, err := a.Setup(t.Context())
	if err != nil || setup.Capacity != 3 {
		t.Errorf("setup %+v, %v", setup, err)
	}
	send(t, k, &Message{Type: TypePeers, Peers: &Peers{Nodes: []Peer{{Node: "other"}}}})
	<-a.PeersChanged()
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
	send(t, k, &Message{Type: TypeDrain})
	<-a.Drain()

	// Another node's keeper is refused; the greeting says who we are.
	other, hello, files := dial(t, dir)
	_ = files[0].Close()
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

// TestRecordsReachTheNextKeeper: what one keeper did not acknowledge goes to
// the next, in order, and Emit never loses or reorders.
func TestRecordsReachTheNextKeeper(t *testing.T) {
	dir, a := attend(t, AttendConfig{Backlog: 1000})
	emit := func(n int) {
		t.Helper()
		if err := a.Emit(fmt.Appendf(nil, "%d", n)); err != nil {
			t.Fatal(err)
		}
	}
	emit(1)
	emit(2)
	k1, hello1, _ := dial(t, dir)
	emit(3)
	for n := uint64(1); n <= 3; n++ {
		if m := receive(t, k1, TypeRecord); m.Seq != n || string(m.Bytes) != fmt.Sprint(n) {
			t.Fatalf("record %d came as %d %q", n, m.Seq, m.Bytes)
		}
	}
	send(t, k1, &Message{Type: TypeRecordAck, Seq: 2})
	within(t, "two records acknowledged", func() bool { return a.Waiting() == 1 })
	_ = k1.Close()
	emit(4)
	k2, hello2, _ := dial(t, dir)
	if hello1.Run != hello2.Run {
		t.Error("the run's number changed")
	}
	for n := uint64(3); n <= 4; n++ {
		if m := receive(t, k2, TypeRecord); m.Seq != n {
			t.Fatalf("record %d came as %d", n, m.Seq)
		}
	}
	send(t, k2, &Message{Type: TypeRecordAck, Seq: 3, Resend: true})
	if m := receive(t, k2, TypeRecord); m.Seq != 4 {
		t.Fatalf("asked again for what follows 3, got %d", m.Seq)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := a.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flushed with a record waiting: %v", err)
	}
	send(t, k2, &Message{Type: TypeRecordAck, Seq: 4})
	if err := a.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	for range 10 {
		if err := a.Emit(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Emit([]byte("x")); !errors.Is(err, ErrBacklog) {
		t.Errorf("beyond the bound: %v", err)
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
	a, err := Attend(b.Context(), AttendConfig{Listener: l, State: new(stateStub), Measure: func() Confinement { return Confinement{} }})
	if err != nil {
		b.Fatal(err)
	}
	c, _, _, err := DialWorker(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			m, err := c.Receive()
			if err != nil {
				return
			}
			if n%64 == 0 && c.TrySend(&Message{Type: TypeRecordAck, Seq: m.Seq}) != nil {
				return
			}
		}
	})
	record := make([]byte, 500)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := a.Emit(record); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	_ = c.Close()
	wg.Wait()
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
}
