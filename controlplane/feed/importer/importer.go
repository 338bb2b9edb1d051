// Package importer turns what other regions send into commands for the own
// region's Raft: on the leader only, and with one watch per region. What a
// command does to a copy is the registry's to decide; serving does not enter.
package importer

import (
	"cmp"
	"context"
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
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Config configures an Importer. Zero values take the defaults in brackets.
type Config struct {
	Cluster string
	Region  string                                 // this one
	Sources []Source                               // the other regions
	State   interface{ View(func(*ledger.State)) } // this region's

	// Propose commits a command in this region's Raft and returns what Apply
	// made of it.
	Propose func(context.Context, *registry.Command) (ledger.Outcome, error)
	// Pushed gets the verdicts and hints that come with the feeds; they never
	// go to Raft. [nil = they are not asked for]
	Pushed func(from identity.ID, f *feed.Frame)

	BatchEntries int           // in one command [256]
	BatchBytes   int           // in one command [1 MiB]
	BatchDelay   time.Duration // how long an entry waits for company [5 ms]

	Liveness   time.Duration // as in feed.WatchConfig
	Patience   time.Duration
	BackoffMin time.Duration
	BackoffMax time.Duration

	Logger     *slog.Logger          // [discards]
	Registerer prometheus.Registerer // [nobody reads the metrics]
}

// Source is another region.
type Source struct {
	Region  string
	Targets func() []feed.Target // its control nodes; see feed.WatchConfig
	HTTP    *http.Client         // mutual TLS, control nodes of that region
}

func (c *Config) fill() error {
	if c.Cluster == "" || c.Region == "" || c.State == nil || c.Propose == nil {
		return errors.New("feed importer: cluster, region, state and Propose are needed")
	}
	c.BatchEntries = cmp.Or(c.BatchEntries, 256)
	c.BatchBytes = cmp.Or(c.BatchBytes, 1<<20)
	c.BatchDelay = cmp.Or(c.BatchDelay, 5*time.Millisecond)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Registerer == nil {
		c.Registerer = prometheus.NewRegistry()
	}
	return nil
}

// Importer brings what other regions are home of into this region's Raft. It
// runs on the region's leader: open it when leadership is gained, close it
// when it is lost.
type Importer struct {
	cfg     Config
	metrics *metrics
	watches []*importWatch
	cancel  context.CancelFunc
	done    <-chan struct{}
	group   *errgroup.Group
}

// Open starts one watch per other region.
func Open(ctx context.Context, cfg Config) (*Importer, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	im := &Importer{cfg: cfg}
	ages := make(map[string]func() float64, len(cfg.Sources))
	for _, src := range cfg.Sources {
		w := &importWatch{im: im, src: src, log: cfg.Logger.With("source", src.Region), lags: make(map[controlplane.Shard]Lag),
			stuck: make(map[controlplane.Shard]stuck), repair: make(map[controlplane.Shard]bool)}
		w.heard.Store(time.Now().UnixNano())
		ages[src.Region] = func() float64 { return time.Since(time.Unix(0, w.heard.Load())).Seconds() }
		im.watches = append(im.watches, w)
	}
	im.metrics = newMetrics(ages)
	if err := cfg.Registerer.Register(im.metrics); err != nil {
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
	im.cfg.Registerer.Unregister(im.metrics)
	return err
}

// Done is closed when the importer has stopped, by itself too: then Close
// says why, and the node must halt.
func (im *Importer) Done() <-chan struct{} { return im.done }

// Retake has region's shard brought in anew as a whole, because this region's
// copy differs from it at the same point.
func (im *Importer) Retake(region string, shard controlplane.Shard) {
	for _, w := range im.watches {
		if w.src.Region != region {
			continue
		}
		w.mu.Lock()
		w.repair[shard] = true
		if w.cancel != nil {
			w.cancel(fmt.Errorf("feed: shard %s is taken anew", shard))
		}
		w.mu.Unlock()
	}
}

// repairs reports whether the shard is being taken anew.
func (w *importWatch) repairs(shard controlplane.Shard) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.repair[shard]
}

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
	src     Source
	log     *slog.Logger
	heard   atomic.Int64 // Unix nanoseconds
	current *session
	cut     context.CancelCauseFunc // ends the present connection

	stuck map[controlplane.Shard]stuck // the present session's, and between sessions the watch's

	mu     sync.Mutex // guards what follows
	lags   map[controlplane.Shard]Lag
	repair map[controlplane.Shard]bool // to be taken as a whole, though the points are equal
	cancel context.CancelCauseFunc     // ends the present session; nil = there is none
}

// stuck is a shard whose last entries or snapshot did not fit this region's copy.
type stuck struct {
	at    controlplane.Point // where the copy stood
	whole bool               // entries would not fit again: a snapshot is asked for
	until time.Time          // a snapshot did not fit either: the shard is left alone until then
}

// isolation is how long a shard that cannot be imported is left alone, so that
// the source's other shards are not held up by it.
const isolation = time.Minute

func (w *importWatch) run(ctx context.Context) error {
	cfg := &w.im.cfg
	defer func() { w.end() }()
	return feed.Watch(ctx, feed.WatchConfig{
		Cluster: cfg.Cluster, Region: w.src.Region, Targets: w.src.Targets, HTTP: w.src.HTTP,
		Homed: true, Standing: true, Verdicts: cfg.Pushed != nil,
		Begun: func(end context.CancelCauseFunc) { w.cut = end },
		From:  func() controlplane.Position { return w.begin(ctx) },
		Sink:  w.take,

		Liveness: cfg.Liveness, Patience: cfg.Patience, BackoffMin: cfg.BackoffMin, BackoffMax: cfg.BackoffMax,
		Logger: w.log,
	})
}

// begin starts a session for a new connection, once the former one can change
// nothing any more.
func (w *importWatch) begin(ctx context.Context) controlplane.Position {
	w.end()
	ctx, end := context.WithCancelCause(ctx)
	cut := w.cut
	cancel := func(cause error) { end(cause); cut(cause) } // else it would show with the next frame
	s := &session{
		cfg: &w.im.cfg, watch: w, log: w.log, ctx: ctx, cancel: cancel,
		deposed: make(map[controlplane.Shard]controlplane.Epoch), spans: make(map[controlplane.Shard][]registry.Span),
		frames: make(chan *feed.Frame, 2*w.im.cfg.BatchEntries), done: make(chan struct{}),
	}
	w.current = s
	from := w.position()
	for shard, st := range w.stuck {
		if st.whole {
			delete(from, shard) // who holds nothing gets a snapshot
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for shard := range w.repair {
		delete(from, shard)
	}
	w.cancel = cancel
	go s.run() // owned by this watch: end waits for it
	return from
}

func (w *importWatch) end() {
	if w.current != nil {
		w.current.cancel(nil)
		<-w.current.done
		w.current = nil
	}
}

func (w *importWatch) position() (at controlplane.Position) {
	w.im.cfg.State.View(func(s *ledger.State) { at = s.Position() })
	return at
}

// take is the watch's sink.
func (w *importWatch) take(f *feed.Frame) error {
	w.heard.Store(time.Now().UnixNano())
	if s := w.current; s.ctx.Err() != nil {
		return context.Cause(s.ctx) // what came before was not taken: begin anew
	}
	switch f.Type {
	case feed.FrameHeartbeat:
		w.measure(f.Position)
		return nil
	case feed.FrameVerdicts:
		w.tell(f)
		return nil
	case feed.FrameRevocation:
		if !w.current.staging(f) {
			w.tell(f)
			return nil
		}
	}
	// A region speaks for its own epochs only: else it could depose another home.
	if f.Sender.Region != w.src.Region && (f.Type == feed.FrameEntry || f.Type == feed.FrameReset || f.Type == feed.FrameEnd || f.Type == feed.FrameStanding) {
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

func (w *importWatch) tell(f *feed.Frame) {
	if pushed := w.im.cfg.Pushed; pushed != nil {
		pushed(identity.ID{Cluster: w.im.cfg.Cluster, Region: w.src.Region, Role: identity.RoleControl}, f)
	}
}

// unfit notes that what came for shard did not fit. The first time the next
// session asks again from where the copy stands, the second time for a
// snapshot; the third time the shard is isolated, which it reports.
func (w *importWatch) unfit(shard controlplane.Shard, misfit *ledger.StructureError) (isolated bool) {
	before, again := w.stuck[shard]
	next := stuck{at: misfit.Last, whole: misfit.Snapshot}
	if again && before.at == misfit.Last {
		next.whole = true
		if before.whole {
			next.until = time.Now().Add(isolation)
		}
	}
	w.note(shard, next)
	return !next.until.IsZero()
}

func (w *importWatch) settled(shard controlplane.Shard, cmd *registry.Command) {
	if cmd.Type == registry.CmdAdopt && cmd.Adopt.Repair {
		w.mu.Lock()
		delete(w.repair, shard)
		w.mu.Unlock()
	}
	if _, ok := w.stuck[shard]; ok {
		delete(w.stuck, shard)
		w.im.metrics.isolated.DeleteLabelValues(w.src.Region, string(shard))
	}
}

func (w *importWatch) note(shard controlplane.Shard, st stuck) {
	w.stuck[shard] = st
	value := 0.0
	if !st.until.IsZero() {
		value = 1
	}
	w.im.metrics.isolated.WithLabelValues(w.src.Region, string(shard)).Set(value)
}
