package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/strict"
	"ringmain/dataplane/link/ring"
)

// State is where an Attendant puts what its keeper says; *view.Store is one.
type State interface {
	Apply(*feed.Frame) error
	Pin(record []byte, epoch uint64) error
	SetLoaded(safetyUnknown bool)
	Abandon()
	Position() controlplane.Position
	Loaded() bool
}

// AttendConfig is what a worker brings along. All fields without a stated
// default must be set.
type AttendConfig struct {
	Listener    net.Listener        // the inherited unix socket
	Files       Files               // as Inherited returned them; handed to a keeper that adopts this worker
	Build       string              // version of this binary
	State       State               // receives state
	Measure     func() Confinement  // called at once and then every second
	Gatherer    prometheus.Gatherer // metrics for the keeper to show; nil = none
	Level       slog.Leveler        // of the log sent to the keeper; nil = info
	HealthEvery time.Duration       // how often health is looked at; 0 = 250 ms
}

// Attendant is a worker's side of the socket: it takes state, peers and setup
// from whichever keeper is there, and sends logs, verdicts and health. Records
// go to the shared ring, where they wait if no keeper lives; all else stands
// still meanwhile. All methods are safe for concurrent use.
type Attendant struct {
	cfg    AttendConfig
	ring   *ring.Producer
	lines  *lines
	group  *errgroup.Group
	cancel context.CancelCauseFunc

	peers       atomic.Pointer[Peers]
	setup       atomic.Pointer[Setup]
	setupChange chan struct{}
	ready       chan struct{} // closed at the first Setup
	loaded      chan struct{} // closed at the first Loaded
	drain       chan struct{}
	drainBy     time.Time // before drain is closed
	once        struct{ ready, loaded, drain sync.Once }
	health      atomic.Pointer[func() Health]
	underway    atomic.Uint32 // requests, as health said last
	confinement atomic.Pointer[Confinement]
	receipts    receipts

	mu   sync.Mutex
	conn *Conn // nil without a keeper
}

var errClosed = errors.New("the worker is closing")

// Attend listens for keepers until ctx ends or Close is called.
func Attend(ctx context.Context, cfg AttendConfig) (*Attendant, error) {
	if cfg.HealthEvery <= 0 {
		cfg.HealthEvery = 250 * time.Millisecond
	}
	records, err := ring.OpenProducer(cfg.Files.Ring)
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	group, ctx := errgroup.WithContext(ctx)
	a := &Attendant{
		cfg: cfg, ring: records, lines: new(lines),
		group: group, cancel: cancel,
		setupChange: make(chan struct{}, 1), ready: make(chan struct{}), loaded: make(chan struct{}), drain: make(chan struct{}),
	}
	a.peers.Store(&Peers{})
	c := cfg.Measure()
	a.confinement.Store(&c)
	group.Go(func() error { return a.accept(ctx) })
	group.Go(func() error { a.report(ctx); return nil })
	group.Go(func() error { a.measure(ctx); return nil })
	group.Go(func() error {
		<-ctx.Done()
		// Once this worker cannot be found any more, its ring has no reader.
		a.ring.Refuse()
		err := cfg.Listener.Close()
		a.replace(nil)
		return err
	})
	return a, nil
}

// Close ends the connection and waits; Emit fails from then on. Records that
// lie in the ring are still read if a keeper lives: Flush waits for that.
func (a *Attendant) Close() error {
	a.cancel(errClosed)
	if err := a.group.Wait(); err != nil && !errors.Is(err, errClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// maxDrain is the longest time to drain that is believed, in milliseconds.
const maxDrain = 1 << 40

// Setup waits for a keeper's first Setup and returns the newest.
func (a *Attendant) Setup(ctx context.Context) (*Setup, error) {
	select {
	case <-a.ready:
		return a.setup.Load(), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("no keeper set this worker up: %w", ctx.Err())
	}
}

// SetupChanged receives after a keeper sent a Setup, the first one too; several
// are merged. It may be equal to the one before.
func (a *Attendant) SetupChanged() <-chan struct{} { return a.setupChange }

// Loaded is closed once the state is complete: be ready then, not before.
func (a *Attendant) Loaded() <-chan struct{} { return a.loaded }

// Drain is closed when the keeper asks this worker to finish and end.
func (a *Attendant) Drain() <-chan struct{} { return a.drain }

// DrainBy is when the keeper will end this worker if it has not ended by itself;
// zero = it does not say. It is known once Drain is closed.
func (a *Attendant) DrainBy() time.Time { return a.drainBy }

// Peers returns the newest gossip table. The caller must not change it.
func (a *Attendant) Peers() Peers { return *a.peers.Load() }

// Confinement is what was measured last.
func (a *Attendant) Confinement() Confinement { return *a.confinement.Load() }

// WatchHealth names the function whose value is sent to gossip, and whose count
// of requests Room heeds. It must be quick.
func (a *Attendant) WatchHealth(f func() Health) { a.health.Store(&f) }

// LogHandler writes to the keeper's log. It never waits; lines that find no
// keeper, or a slow one, are counted by Dropped.
func (a *Attendant) LogHandler() slog.Handler { return a.lines.handler(a.cfg.Level) }

// Dropped is how many log lines were lost.
func (a *Attendant) Dropped() uint64 { return a.lines.lost() }

// Waiting is how many bytes of records wait for the keeper's disk.
func (a *Attendant) Waiting() int { return a.ring.Waiting() }

// ErrBacklog means that records wait for the keeper's disk up to the bound:
// answer 503 metering_unavailable instead of serving unmetered.
var ErrBacklog = errors.New("too many records wait for the keeper: answer metering_unavailable")

// owedRecord is what the record of a request under way is expected to take: a
// long one, so that those at least find room whose answers are there already.
const owedRecord = 512

// Room is false when records wait for the keeper's disk up to nine tenths of
// the bound, or so far that those of the requests under way, as health counts
// them, would find no place: refuse a request before anything is done for it.
// It costs four loads from memory.
func (a *Attendant) Room() bool { return a.ring.Room(owedRecord * int(a.underway.Load())) }

// Emit takes over one metadata record. When it returns nil the record is in
// memory that the keeper shares, so that it survives this process, and waits
// there if no keeper lives. Otherwise ErrBacklog: answer metering_unavailable.
// The record may be changed afterwards.
func (a *Attendant) Emit(record []byte) error {
	wake, err := a.ring.Put(record)
	if errors.Is(err, ring.ErrFull) {
		return ErrBacklog
	}
	if wake {
		a.wake()
	}
	return err
}

// wake tells a keeper that sleeps of records. One that starts looks by itself.
func (a *Attendant) wake() {
	if c := a.keeper(); c == nil || c.TrySend(&Message{Type: TypeWake}) != nil {
		a.ring.NotWoken()
	}
}

// ShareVerdict tells other nodes of a verdict reached here, if a keeper listens.
func (a *Attendant) ShareVerdict(v feed.Verdict) {
	if c := a.keeper(); c != nil {
		// A verdict that is not shared costs another node one bcrypt.
		_ = c.TrySend(&Message{Type: TypeVerdicts, Verdicts: []feed.Verdict{v}})
	}
}

// Flush waits until the keeper has every record on disk.
func (a *Attendant) Flush(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for a.Waiting() > 0 {
		if a.ring.Nudge() {
			a.wake()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d bytes of records were not taken by the keeper: %w", a.Waiting(), ctx.Err())
		}
	}
	return nil
}

func (a *Attendant) keeper() *Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.conn
}

// replace makes c the keeper's connection and closes the one before.
func (a *Attendant) replace(c *Conn) {
	a.mu.Lock()
	old := a.conn
	a.conn = c
	a.mu.Unlock()
	a.lines.attach(c)
	if old != nil {
		_ = old.Close() // its reader says why it ended
	}
}

// acceptWait is how long a worker that cannot let a keeper in waits.
const acceptWait = 200 * time.Millisecond

// accept serves one keeper after another; the newest wins, since the data
// directory's lock lets only one live.
func (a *Attendant) accept(ctx context.Context) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		nc, err := a.cfg.Listener.Accept()
		if err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
			// No descriptor is left, as a rule. To give up the socket would end
			// this worker: nobody could read its records.
			slog.New(a.LogHandler()).Warn("a keeper cannot be let in; it is tried again", "error", err)
			select {
			case <-time.After(acceptWait):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("worker socket: %w", err)
		}
		c, err := a.greet(nc)
		if err != nil {
			slog.New(a.LogHandler()).Warn("a connection to the worker socket was refused", "error", err)
			_ = nc.Close() // refused anyway
			continue
		}
		a.replace(c)
		if ctx.Err() != nil {
			a.replace(nil)
		}
		a.receipts.attached()
		serving.Go(func() { a.serve(c) })
	}
}

// greet checks who connects and sends the greeting.
func (a *Attendant) greet(nc net.Conn) (*Conn, error) {
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a unix socket")
	}
	if err := sameUser(uc); err != nil {
		return nil, err
	}
	if err := sendPreamble(uc, &a.cfg.Files); err != nil {
		return nil, err
	}
	hello := &Hello{
		PID: os.Getpid(), Build: a.cfg.Build, Run: a.ring.Run(), Confinement: a.Confinement(),
		Loaded: a.cfg.State.Loaded(), Position: a.cfg.State.Position(),
	}
	if s := a.setup.Load(); s != nil {
		hello.Cluster, hello.Region, hello.Node = s.Cluster, s.Region, s.Node
	}
	c := NewConn(nc)
	if err := c.TrySend(&Message{Type: TypeHello, Hello: hello}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// serve reads from one keeper until it is gone.
func (a *Attendant) serve(c *Conn) {
	log := slog.New(a.LogHandler())
	var asked sync.WaitGroup
	frames := uint64(0) // of state that came on this connection
	for {
		m, err := c.Receive()
		if err != nil {
			if errors.Is(err, ErrMalformed) {
				log.Error("the keeper sent something unreadable", "error", err)
			}
			break
		}
		if m.Type == TypeMetricsAsk {
			asked.Go(func() { a.metrics(c, m.Seq) })
			continue
		}
		if err := a.handle(c, m, &frames); err != nil {
			log.Error("refused what the keeper sent", "type", m.Type, "error", err)
			break
		}
	}
	asked.Wait()
	a.mu.Lock()
	current := a.conn == c
	a.mu.Unlock()
	if current {
		a.cfg.State.Abandon()
		a.replace(nil)
		return
	}
	_ = c.Close() // replaced by a newer keeper
}

// handle acts on one message. An error ends the connection. Which of the
// connection's state frames is being applied stands where the keeper finds it
// even if it ends this process.
func (a *Attendant) handle(c *Conn, m *Message, frames *uint64) error {
	switch m.Type {
	case TypeSetup:
		if old := a.setup.Load(); old != nil && (old.Cluster != m.Setup.Cluster || old.Node != m.Setup.Node) {
			return fmt.Errorf("this worker is %s of %s: %w", old.Node, old.Cluster, controlplane.ErrWrongCluster)
		}
		a.setup.Store(m.Setup)
		a.once.ready.Do(func() { close(a.ready) })
		select {
		case a.setupChange <- struct{}{}:
		default:
		}
	case TypeState:
		for _, b := range m.Frames {
			*frames++
			a.ring.Begin(*frames)
			a.apply(c, b)
			a.ring.Done(*frames)
		}
	case TypePin:
		return a.cfg.State.Pin(m.Bytes, m.Seq)
	case TypePeers:
		a.peers.Store(m.Peers)
	case TypeLoaded:
		a.cfg.State.SetLoaded(m.Unknown)
		a.once.loaded.Do(func() { close(a.loaded) })
	case TypeReceiptsAck, TypeReceiptAnswer:
		a.receipts.take(m)
	case TypeDrain:
		a.once.drain.Do(func() {
			if m.Seq > 0 {
				a.drainBy = time.Now().Add(time.Duration(min(m.Seq, maxDrain)) * time.Millisecond)
			}
			close(a.drain)
		})
	default:
		return fmt.Errorf("%w: a message of type %d from a keeper", ErrMalformed, m.Type)
	}
	return nil
}

// apply applies one frame. One that does not fit leaves the state as it is,
// which goes on serving, and the keeper is asked for the shard again.
func (a *Attendant) apply(c *Conn, b []byte) {
	f, err := feed.DecodeFrame(b)
	if err == nil {
		err = a.cfg.State.Apply(f)
	}
	if err == nil {
		return
	}
	slog.New(a.LogHandler()).Error("a state frame was not applied", "error", err)
	m := &Message{Type: TypeResync}
	if f != nil {
		m.Shard = f.Shard
	}
	_ = c.TrySend(m) // the keeper that does not get it is gone or will see the next
}

func (a *Attendant) metrics(c *Conn, seq uint64) {
	var buf bytes.Buffer
	if a.cfg.Gatherer != nil {
		families, err := a.cfg.Gatherer.Gather()
		if err != nil {
			slog.New(a.LogHandler()).Warn("some metrics could not be gathered", "error", err)
		}
		enc := expfmt.NewEncoder(&buf, expfmt.NewFormat(expfmt.TypeProtoDelim))
		for _, f := range families {
			if err := enc.Encode(f); err != nil {
				slog.New(a.LogHandler()).Warn("a metric could not be encoded", "family", f.GetName(), "error", err)
			}
		}
	}
	_ = c.TrySend(&Message{Type: TypeMetrics, Seq: seq, Bytes: buf.Bytes()}) // the keeper's wait is bounded
}

// report sends health when it changed, and each second.
func (a *Attendant) report(ctx context.Context) {
	tick := time.NewTicker(a.cfg.HealthEvery)
	defer tick.Stop()
	var last []byte
	var lastConn *Conn
	var sent time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if a.ring.Nudge() {
				a.wake()
			}
			f := a.health.Load()
			if f == nil {
				continue
			}
			h := (*f)()
			a.underway.Store(h.InFlight)
			c := a.keeper()
			if c == nil {
				continue
			}
			h.Confinement = a.Confinement()
			b, err := strict.Marshal(h)
			if err != nil || c == lastConn && bytes.Equal(b, last) && now.Sub(sent) < time.Second {
				continue
			}
			if c.TrySend(&Message{Type: TypeHealth, Health: &h}) == nil {
				last, lastConn, sent = b, c, now
			}
		}
	}
}

// measureEvery is how long a control may be lost before it is noticed.
const measureEvery = time.Second

func (a *Attendant) measure(ctx context.Context) {
	tick := time.NewTicker(measureEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c := a.cfg.Measure()
			if old := a.confinement.Swap(&c); *old != c {
				slog.New(a.LogHandler()).Warn("the confinement of the worker changed", "before", *old, "now", c)
			}
		}
	}
}
