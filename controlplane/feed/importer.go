package feed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// ImporterConfig configures an Importer. Zero values take the defaults in brackets.
type ImporterConfig struct {
	Cluster string
	Region  string         // this one
	Sources []ImportSource // the other regions
	State   Source         // this region's

	// Propose commits a command in this region's Raft and returns what Apply
	// made of it.
	Propose func(context.Context, *registry.Command) (registry.Outcome, error)
	// Hub gets the verdicts and hints that come with the feeds; they never go
	// to Raft. [nil = they are not asked for]
	Hub *Hub

	BatchEntries int           // in one command [256]
	BatchBytes   int           // in one command [1 MiB]
	BatchDelay   time.Duration // how long an entry waits for company [5 ms]

	Liveness   time.Duration // as in WatchConfig
	Patience   time.Duration
	BackoffMin time.Duration
	BackoffMax time.Duration

	Logger     *slog.Logger          // [discards]
	Registerer prometheus.Registerer // nil = no metrics
}

// ImportSource is another region.
type ImportSource struct {
	Region  string
	Targets []string     // internal addresses of its control nodes
	HTTP    *http.Client // mutual TLS, control nodes of that region
}

func (c *ImporterConfig) fill() error {
	if c.Cluster == "" || c.Region == "" || c.State == nil || c.Propose == nil {
		return errors.New("feed importer: cluster, region, state and Propose are needed")
	}
	def(&c.BatchEntries, 256)
	def(&c.BatchBytes, 1<<20)
	def(&c.BatchDelay, 5*time.Millisecond)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Importer brings what other regions are home of into this region's Raft. It
// runs on the region's leader: open it when leadership is gained, close it
// when it is lost.
type Importer struct {
	cfg     ImporterConfig
	metrics importMetrics
	watches []*importWatch
	cancel  context.CancelFunc
	done    <-chan struct{}
	group   *errgroup.Group
}

// OpenImporter starts one watch per other region.
func OpenImporter(ctx context.Context, cfg ImporterConfig) (*Importer, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	im := &Importer{cfg: cfg}
	ages := make(map[string]func() float64, len(cfg.Sources))
	for _, src := range cfg.Sources {
		w := &importWatch{im: im, src: src, log: cfg.Logger.With("source", src.Region), lags: make(map[controlplane.Shard]Lag)}
		w.heard.Store(time.Now().UnixNano())
		ages[src.Region] = func() float64 { return time.Since(time.Unix(0, w.heard.Load())).Seconds() }
		im.watches = append(im.watches, w)
	}
	if err := im.metrics.register(cfg.Registerer, ages); err != nil {
		return nil, err
	}
	ctx, im.cancel = context.WithCancel(ctx)
	im.group, ctx = errgroup.WithContext(ctx)
	im.done = ctx.Done()
	for _, w := range im.watches {
		im.group.Go(func() error { return w.run(ctx) })
	}
	return im, nil
}

// Close ends the watches, waits, and returns the first failure: an error that
// is controlplane.ErrUnknownEntry means that this node needs an upgrade.
func (im *Importer) Close() error {
	im.cancel()
	err := im.group.Wait()
	im.metrics.unregister(im.cfg.Registerer)
	return err
}

// Done is closed when the importer has stopped, by itself too: then Close
// says why, and the node must halt.
func (im *Importer) Done() <-chan struct{} { return im.done }

// Lag is how far this region's copy of a shard was behind its home.
type Lag struct {
	Behind uint64    // entries
	Heard  time.Time // when the home last said where it is
}

// Lags tells, for each shard that another region is home of and offers, how
// far behind this region was when that region was last heard.
func (im *Importer) Lags() map[controlplane.Shard]Lag {
	all := make(map[controlplane.Shard]Lag)
	for _, w := range im.watches {
		w.mu.Lock()
		maps.Copy(all, w.lags)
		w.mu.Unlock()
	}
	return all
}

// importWatch follows one region. Watch calls its methods from one goroutine;
// the session's consumer is the other.
type importWatch struct {
	im      *Importer
	src     ImportSource
	log     *slog.Logger
	heard   atomic.Int64 // Unix nanoseconds
	current *session

	mu   sync.Mutex // guards lags
	lags map[controlplane.Shard]Lag
}

func (w *importWatch) run(ctx context.Context) error {
	cfg := &w.im.cfg
	defer func() { w.end() }()
	return Watch(ctx, WatchConfig{
		Cluster: cfg.Cluster, Region: w.src.Region, Targets: w.src.Targets, HTTP: w.src.HTTP,
		Homed: true, Verdicts: cfg.Hub != nil,
		From: func() controlplane.Position { return w.begin(ctx) },
		Sink: w.take,

		Liveness: cfg.Liveness, Patience: cfg.Patience, BackoffMin: cfg.BackoffMin, BackoffMax: cfg.BackoffMax,
		Logger: w.log,
	})
}

// begin starts a session for a new connection, once the former one can change
// nothing any more.
func (w *importWatch) begin(ctx context.Context) controlplane.Position {
	w.end()
	ctx, cancel := context.WithCancelCause(ctx)
	s := &session{
		cfg: &w.im.cfg, log: w.log, ctx: ctx, cancel: cancel,
		frames: make(chan *Frame, 2*w.im.cfg.BatchEntries), done: make(chan struct{}),
	}
	w.current = s
	go s.run() // owned by this watch: end waits for it
	return w.position()
}

func (w *importWatch) end() {
	if w.current != nil {
		w.current.cancel(nil)
		<-w.current.done
		w.current = nil
	}
}

func (w *importWatch) position() (at controlplane.Position) {
	w.im.cfg.State.View(func(s *registry.State) { at = s.Position() })
	return at
}

// take is the watch's sink.
func (w *importWatch) take(f *Frame) error {
	w.heard.Store(time.Now().UnixNano())
	if s := w.current; s.ctx.Err() != nil {
		return context.Cause(s.ctx) // what came before was not taken: begin anew
	}
	switch f.Type {
	case FrameHeartbeat:
		w.measure(f.Position)
		return nil
	case FrameVerdicts:
		w.tell(f)
		return nil
	case FrameRevocation:
		if !w.current.staging(f) {
			w.tell(f)
			return nil
		}
	}
	// A region speaks for its own epochs only: else it could depose another home.
	if f.Sender.Region != w.src.Region && (f.Type == FrameEntry || f.Type == FrameReset || f.Type == FrameEnd) {
		return fmt.Errorf("feed: %s sends shard %s in the name of epoch %v", w.src.Region, f.Shard, f.Sender)
	}
	s := w.current
	if err := s.note(f); err != nil {
		return err
	}
	select {
	case s.frames <- f:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// measure compares what the source has with what this region has.
func (w *importWatch) measure(offered controlplane.Position) {
	own, gauge, now := w.position(), w.im.metrics.lag, time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for shard := range w.lags {
		if _, still := offered[shard]; !still {
			gauge.DeleteLabelValues(w.src.Region, string(shard))
			delete(w.lags, shard)
		}
	}
	for shard, p := range offered {
		behind := p.Seq - min(p.Seq, own[shard].Seq)
		gauge.WithLabelValues(w.src.Region, string(shard)).Set(float64(behind))
		w.lags[shard] = Lag{Behind: behind, Heard: now}
	}
}

func (w *importWatch) tell(f *Frame) {
	if hub := w.im.cfg.Hub; hub != nil {
		hub.receive(identity.ID{Cluster: w.im.cfg.Cluster, Region: w.src.Region, Role: identity.RoleControl}, f)
	}
}

// session turns the frames of one connection into commands. A refusal or
// failure ends it; the next one starts from the state's own position.
type session struct {
	cfg    *ImporterConfig
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelCauseFunc
	frames chan *Frame
	done   chan struct{}

	receiving controlplane.Shard // the sink's: shard whose snapshot is arriving, or ""

	// The consumer's.
	pending  []batch // per shard and sender, in order of arrival
	count    int
	bytes    int
	snapshot *staged
}

type batch struct {
	shard   controlplane.Shard
	sender  controlplane.Epoch
	entries [][]byte
}

// staged is a snapshot on its way into Raft.
type staged struct {
	name   string // of this attempt, unique
	reset  *Frame
	chunk  uint64
	stage  *registry.Stage
	bytes  int
	staged bool // something was staged: chunk 0 must be, even of an empty shard
}

// staging reports whether a revocation frame is part of a snapshot. The server
// sends hints only between snapshots.
func (s *session) staging(f *Frame) bool { return s.receiving != "" && f.Shard == s.receiving }

// note checks the order of the frames of a snapshot.
func (s *session) note(f *Frame) error {
	switch f.Type {
	case FrameReset:
		if s.receiving != "" {
			return fmt.Errorf("feed: reset of %s within the snapshot of %s", f.Shard, s.receiving)
		}
		s.receiving = f.Shard
	case FrameRecord, FrameEnd:
		if f.Shard != s.receiving {
			return fmt.Errorf("feed: frame %d of %s outside its snapshot", f.Type, f.Shard)
		}
		if f.Type == FrameEnd {
			s.receiving = ""
		}
	case FrameEntry:
		if f.Shard == s.receiving {
			return fmt.Errorf("feed: entry within the snapshot of %s", f.Shard)
		}
	}
	return nil
}

func (s *session) run() {
	defer close(s.done)
	if err := s.consume(); err != nil {
		s.cancel(err)
	}
}

// consume proposes entries in batches: what arrives while a command is being
// committed forms the next one, and a first entry waits BatchDelay for others.
func (s *session) consume() error {
	timer := time.NewTimer(s.cfg.BatchDelay)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case f := <-s.frames:
			idle := s.count == 0
			if err := s.accept(f); err != nil {
				return err
			}
			switch {
			case s.count >= s.cfg.BatchEntries || s.bytes >= s.cfg.BatchBytes:
				if err := s.flush(); err != nil {
					return err
				}
			case idle && s.count > 0:
				timer.Reset(s.cfg.BatchDelay)
			}
		case <-timer.C:
			if err := s.flush(); err != nil {
				return err
			}
		case <-s.ctx.Done():
			return nil
		}
	}
}

func (s *session) accept(f *Frame) error {
	switch f.Type {
	case FrameEntry:
		s.add(f)
		return nil
	case FrameReset:
		if err := s.flush(); err != nil {
			return err
		}
		s.snapshot = &staged{name: rand.Text(), reset: f}
		s.snapshot.next()
		s.log.Info("feed: a shard is taken over as a whole", "shard", f.Shard)
		return nil
	case FrameRecord, FrameRevocation, FrameEnd:
		return s.restage(f)
	}
	return fmt.Errorf("%w: feed frame of type %d", controlplane.ErrUnknownEntry, f.Type)
}

func (s *session) add(f *Frame) {
	s.count++
	s.bytes += len(f.Entry)
	for i := range s.pending {
		if b := &s.pending[i]; b.shard == f.Shard && b.sender == f.Sender {
			b.entries = append(b.entries, f.Entry)
			return
		}
	}
	s.pending = append(s.pending, batch{f.Shard, f.Sender, [][]byte{f.Entry}})
}

// flush proposes the entries at hand, a command per shard: the order among
// shards means nothing, and one shard's gap must not hold up another.
func (s *session) flush() error {
	for _, b := range s.pending {
		if err := s.propose(&registry.Command{Type: registry.CmdAccept, Sender: b.sender, Entries: b.entries}); err != nil {
			return err
		}
	}
	s.pending, s.count, s.bytes = nil, 0, 0
	return nil
}

// restage takes a frame of the snapshot that is arriving.
func (s *session) restage(f *Frame) error {
	sn := s.snapshot
	switch f.Type {
	case FrameRecord:
		sn.stage.Records = append(sn.stage.Records, f.Record)
		sn.bytes += len(f.Record)
	case FrameRevocation:
		sn.stage.Revocations = append(sn.stage.Revocations, *f.Revocation)
		sn.bytes += len(f.Revocation.ID) + 32
	case FrameEnd:
		if len(sn.stage.Records)+len(sn.stage.Revocations) > 0 || !sn.staged {
			if err := s.stage(); err != nil {
				return err
			}
		}
		s.snapshot = nil
		return s.propose(&registry.Command{Type: registry.CmdAdopt, Sender: f.Sender, Adopt: &registry.Adopt{
			Shard: f.Shard, Snapshot: sn.name, Members: sn.reset.Members, Home: sn.reset.Home, Point: f.Point, Digest: f.Digest,
		}})
	}
	if sn.bytes >= s.cfg.BatchBytes {
		return s.stage()
	}
	return nil
}

func (s *session) stage() error {
	sn := s.snapshot
	if err := s.propose(&registry.Command{Type: registry.CmdStage, Sender: sn.reset.Sender, Stage: sn.stage}); err != nil {
		return err
	}
	sn.staged = true
	sn.next()
	return nil
}

func (sn *staged) next() {
	sn.stage = &registry.Stage{Shard: sn.reset.Shard, Snapshot: sn.name, Chunk: sn.chunk}
	sn.chunk++
	sn.bytes = 0
}

func (s *session) propose(cmd *registry.Command) error {
	out, err := s.cfg.Propose(s.ctx, cmd)
	if err == nil {
		err = out.Err
	}
	var rule *controlplane.RuleError
	if err == nil || errors.As(err, &rule) { // refused by a rule, an entry advances its shard all the same
		return nil
	}
	return fmt.Errorf("what the feed brought did not get into this region: %w", err)
}
