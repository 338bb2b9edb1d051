package keeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/keeper/lkg"
	"ringmain/dataplane/keeper/lkg/safety"
	"ringmain/dataplane/keeper/trial"
	"ringmain/dataplane/link"
)

// flow is where the state stands between control node, disk and worker.
type flow struct {
	mu       sync.Mutex
	tracker  *lkg.Tracker // what the worker was given; with none, what is on disk
	live     *worker      // gets frames as they pass; nil while it is filled or gone
	held     [][]byte     // records of a snapshot, on their way to live
	heldSize int
	gen      *lkg.Generation // being written; nil = deltas are appended
	queue    *trial.Queue    // what waits for other nodes
	full     *lkg.Tracker    // over a watch that began at the empty position; nil = it did not
	complete bool            // a full state is on disk or was received: the worker may serve
	unknown  atomic.Bool     // revocations could not be read, and no full state was received since
	asOf     atomic.Int64    // Unix milliseconds at a control node of which tracker holds everything

	kick     context.CancelFunc // ends the present watch: a new one asks from anew
	retryAt  time.Time          // not before: a new generation
	wait     time.Duration
	resyncAt time.Time // not before: another resync
	resyncIn time.Duration
}

func (f *flow) init(k *Keeper) {
	f.tracker, f.queue = lkg.NewTracker(k.disk.Position()), trial.NewQueue(controlplane.ShardGlobal)
	st := k.disk.Stats()
	f.complete = st.Generation > 0
	f.unknown.Store(st.Unknown)
	f.kick = func() {} // until the first watch
	f.wait, f.resyncIn = k.cfg.Tunables.Retry, time.Second
	k.renew()
}

// watch follows the control nodes' feed until ctx ends.
func (k *Keeper) watch(ctx context.Context) {
	f := &k.flow
	for ctx.Err() == nil {
		watching, cancel := context.WithCancel(ctx)
		f.mu.Lock()
		f.kick = cancel
		f.mu.Unlock()
		err := k.cfg.Watch(watching, k.from, func(fr *feed.Frame) error { return k.sink(watching, fr) })
		kicked := watching.Err() != nil
		cancel()
		if kicked {
			continue
		}
		// The state stands still and goes on serving; an unknown entry is never skipped.
		k.stats.watchEnds.Add(1)
		k.log.Error("the feed ended; the last state stays in use, and the feed is tried again in 30 s", "error", err)
		select {
		case <-time.After(30 * time.Second):
		case <-ctx.Done():
		}
	}
}

// from is asked for at each connection.
func (k *Keeper) from() controlplane.Position {
	f := &k.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tracker.Interrupt()
	f.queue.Drop()
	f.held, f.heldSize, f.full = nil, 0, nil
	if f.gen != nil {
		gen, err := k.disk.Begin() // from its beginning
		if err != nil {
			k.diskFailed(err)
		}
		f.gen = gen
	}
	position := f.tracker.Position()
	if f.gen != nil || f.unknown.Load() || len(position) == 0 {
		f.full = lkg.NewTracker(nil)
		return controlplane.Position{}
	}
	return position
}

// sink takes one frame from a control node, or has it wait for other nodes.
func (k *Keeper) sink(ctx context.Context, fr *feed.Frame) error {
	f := &k.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err() // kicked: from was or will be asked again
	}
	if k.cfg.Nodes == nil || !f.queue.Takes(fr, f.tracker.Position()[fr.Shard]) {
		return k.take(ctx, fr)
	}
	revoked, narrowed, epoch := f.queue.Add(time.Now(), fr)
	for _, r := range revoked {
		if err := k.take(ctx, &feed.Frame{Type: feed.FrameRevocation, Shard: r.Shard, Revocation: &r}); err != nil {
			return err
		}
	}
	if err := k.narrow(ctx, narrowed, epoch); err != nil {
		return err
	}
	_, err := k.advance(ctx)
	return err
}

// narrow tells the worker what changes of upstreams that wait, or are left out,
// forbid. One of an earlier release, which does not say how far it is, could not
// take it. flow.mu is held.
func (k *Keeper) narrow(ctx context.Context, upstreams []*registry.Record, epoch uint64) error {
	w := k.flow.live
	if w == nil || len(upstreams) == 0 {
		return nil // the watch begins anew with the next
	}
	if begun, _ := w.applying(); begun == 0 {
		return nil
	}
	for _, rec := range upstreams {
		b, err := registry.EncodeRecord(rec)
		if err != nil {
			return err
		}
		if err := w.conn.Send(ctx, &link.Message{Type: link.TypePin, Bytes: b, Seq: epoch}); err != nil && ctx.Err() == nil {
			k.log.Warn("the worker was not told what a change forbids that waits", "error", err) // it is about to be replaced
		}
	}
	return nil
}

// advance takes what needs not wait any more. What is refused by others must be
// isolated first, by look, which does so without holding up the feed. flow.mu is held.
func (k *Keeper) advance(ctx context.Context) (refused []trial.Span, err error) {
	f := &k.flow
	self := k.self()
	nodes := func() []trial.Node { return k.trials.Around(self, k.cfg.Nodes()) }
	for f.queue.Len() > 0 {
		frames, refused := f.queue.Next(self, f.tracker.Position()[controlplane.ShardGlobal], nodes, k.trials.LeavesOut, time.Now())
		if len(frames) == 0 {
			return refused, nil
		}
		for _, fr := range frames {
			if err := k.take(ctx, fr); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// self is this node, as others know it.
func (k *Keeper) self() trial.Node {
	return trial.Node{Region: k.cfg.Setup.Region, Name: k.cfg.Setup.Node}
}

// take gives one frame to the worker first, then to the disk. flow.mu is held.
func (k *Keeper) take(ctx context.Context, fr *feed.Frame) error {
	f := &k.flow
	inSnapshot := f.tracker.Open(fr.Shard)
	_, entry, err := f.tracker.See(fr)
	if err != nil {
		return err
	}
	if f.full != nil {
		if _, _, err := f.full.See(fr); err != nil {
			return err
		}
	}
	raw, err := feed.EncodeFrame(fr)
	if err != nil {
		return err
	}
	later, err := k.forward(fr, raw)
	if err != nil {
		return err
	}
	k.store(fr, raw, entry, inSnapshot)
	if later != nil && f.live != nil {
		if err := f.live.conn.Send(ctx, later); err != nil && ctx.Err() == nil {
			k.log.Warn("the worker took no state", "error", err) // it is about to be replaced
		}
	}
	if fr.Type == feed.FrameHeartbeat {
		k.beat(ctx, fr)
	}
	return nil
}

// forward gives the worker a frame. It returns what the worker was too slow
// for, to be sent when the disk has it. Records of a snapshot go in batches.
func (k *Keeper) forward(fr *feed.Frame, raw []byte) (*link.Message, error) {
	f := &k.flow
	if f.live == nil {
		f.held, f.heldSize = nil, 0
		return nil, nil //nolint:nilnil // nobody takes it
	}
	screened, err := k.trials.Screen(fr)
	if err == nil && screened != nil && screened != fr {
		raw, err = feed.EncodeFrame(screened)
	}
	if err != nil || screened == nil {
		return nil, err
	}
	f.held = append(f.held, raw)
	f.heldSize += len(raw)
	if fr.Type == feed.FrameRecord && f.heldSize < 64<<10 {
		return nil, nil //nolint:nilnil // not yet
	}
	m := &link.Message{Type: link.TypeState, Frames: f.held}
	f.held, f.heldSize = nil, 0
	f.live.note(m.Frames, false)
	if f.live.post(m) {
		return nil, nil //nolint:nilnil // sent
	}
	return m, nil
}

// store keeps a frame. A disk that fails is named, and the state flows on.
func (k *Keeper) store(fr *feed.Frame, raw []byte, entry *registry.Entry, inSnapshot bool) {
	f := &k.flow
	urgent := fr.Type == feed.FrameEntry || fr.Type == feed.FrameEnd || fr.Type == feed.FrameRevocation && !inSnapshot
	if err := k.disk.Observe(fr, entry, urgent); err != nil {
		k.diskFailed(err)
	}
	var err error
	if f.gen != nil {
		if err = f.gen.Append(fr, raw); err != nil {
			f.gen = nil
		}
	} else {
		err = k.disk.Append(fr, raw)
	}
	if err != nil {
		k.diskFailed(err)
	}
}

// diskFailed names a failure and sets when the next generation is tried.
func (k *Keeper) diskFailed(err error) {
	f := &k.flow
	k.stats.diskErrors.Add(1)
	k.log.Error("the state cannot be kept on disk; it stays in memory, and a new generation is written when the disk allows",
		"dir", k.cfg.Dir, "retry_in", f.wait, "error", err)
	f.retryAt = time.Now().Add(f.wait)
	f.wait = min(2*f.wait, 60*k.cfg.Tunables.Retry)
}

// beat uses a heartbeat to find out whether all that the server offers is here.
func (k *Keeper) beat(ctx context.Context, fr *feed.Frame) {
	f := &k.flow
	if len(fr.Position) == 0 {
		return
	}
	if f.tracker.Position().Covers(fr.Position) {
		f.asOf.Store(max(f.asOf.Load(), fr.At))
	}
	if f.full == nil || !f.full.Covers(fr.Position) {
		return
	}
	f.full = nil
	if f.gen != nil {
		err := f.gen.Commit()
		f.gen = nil
		if err != nil {
			k.diskFailed(err)
		} else {
			f.wait = k.cfg.Tunables.Retry
			k.log.Info("wrote a new generation of the last known good state", "generation", k.disk.Stats().Generation)
		}
	}
	if f.complete && !f.unknown.Load() {
		return
	}
	f.complete = true
	f.unknown.Store(false)
	if f.live != nil && !k.trials.Hollow() {
		if err := f.live.conn.Send(ctx, &link.Message{Type: link.TypeLoaded}); err != nil {
			k.log.Warn("the worker was not told that its state is complete", "error", err) // it is about to be replaced
		}
	}
}

// fill gives a new worker all there is: revocations and pins, then the last
// known good state, then what passes from now on.
func (k *Keeper) fill(ctx context.Context, w *worker) error {
	revocations := k.revocations()
	if err := k.sendSafety(ctx, w); err != nil {
		return err
	}
	if !w.adopted {
		k.trials.Started(w.hello.Build)
	}
	emit := func(frames [][]byte) error {
		frames, err := k.trials.ScreenAll(frames)
		if err != nil || len(frames) == 0 {
			return err
		}
		w.note(frames, true)
		return w.conn.Send(ctx, &link.Message{Type: link.TypeState, Frames: frames})
	}
	holds := w.hello.Loaded && w.hello.Position.Covers(k.disk.Position())
	for attempt := 0; ; attempt++ {
		cursor := k.disk.Cursor()
		current, err := true, error(nil)
		if !holds {
			if current, err = cursor.Replay(emit); err != nil {
				cursor.Close()
				return fmt.Errorf("read the last known good state back: %w", err)
			}
		}
		if current {
			current, err = k.join(ctx, w, cursor, holds, revocations, emit)
		}
		cursor.Close()
		if err != nil || current {
			return err
		}
		if attempt == 5 {
			return errors.New("new generations come faster than one can be read")
		}
	}
}

// revocations is how many were ever known.
func (k *Keeper) revocations() int {
	st := k.disk.Stats()
	return st.Revocations + st.Dropped
}

// sendSafety gives the worker every revocation and pin.
func (k *Keeper) sendSafety(ctx context.Context, w *worker) error {
	return k.disk.Safety(func(e safety.Entry) error {
		if e.Pin != nil {
			return w.conn.Send(ctx, &link.Message{Type: link.TypePin, Bytes: e.Pin})
		}
		raw, err := feed.EncodeFrame(&feed.Frame{Type: feed.FrameRevocation, Shard: e.Revocation.Shard, Revocation: e.Revocation})
		if err != nil {
			return err
		}
		w.note([][]byte{raw}, false)
		return w.conn.Send(ctx, &link.Message{Type: link.TypeState, Frames: [][]byte{raw}})
	})
}

// join replays what came in since, with the flow held, and makes the worker live.
func (k *Keeper) join(ctx context.Context, w *worker, cursor *lkg.Cursor, holds bool, revocations int, emit func([][]byte) error) (current bool, err error) {
	f := &k.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	position := k.disk.Position()
	if holds {
		// The disk may have run ahead while nothing was forwarded.
		position = common(position, w.hello.Position)
		if k.revocations() != revocations {
			if err := k.sendSafety(ctx, w); err != nil {
				return true, err
			}
		}
	} else {
		if current, err := cursor.Replay(emit); err != nil || !current {
			return current, err
		}
	}
	// What was given just now is complete if a generation was; a worker that
	// held its state all along also holds the revocations that a damaged file lost.
	f.complete = w.hello.Loaded || k.disk.Stats().Generation > 0
	if f.complete && !(w.hello.Loaded && f.unknown.Load()) && !k.trials.Hollow() {
		if err := w.conn.Send(ctx, &link.Message{Type: link.TypeLoaded, Unknown: f.unknown.Load()}); err != nil {
			return true, err
		}
	}
	f.live = w
	// Worker and disk both hold what is before position. A new watch brings the
	// rest, and the shared verdicts, which are nowhere on disk.
	f.tracker = lkg.NewTracker(position)
	f.kick()
	return true, nil
}

// common is how far both positions are.
func common(a, b controlplane.Position) controlplane.Position {
	both := make(controlplane.Position)
	for shard, p := range a {
		if q, ok := b[shard]; ok {
			if q.Compare(p) < 0 {
				p = q
			}
			both[shard] = p
		}
	}
	return both
}

// detach ends what w is given, and returns how far that was.
func (k *Keeper) detach(w *worker) (given controlplane.Position) {
	f := &k.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.live == w {
		f.live = nil
	}
	return f.tracker.Position()
}

// resync asks for one shard anew because the worker could not apply a frame.
func (k *Keeper) resync(shard controlplane.Shard) {
	f := &k.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	k.stats.resyncs.Add(1)
	if time.Now().Before(f.resyncAt) {
		return
	}
	f.resyncAt = time.Now().Add(f.resyncIn)
	f.resyncIn = min(2*f.resyncIn, 5*time.Minute)
	k.log.Error("the worker could not apply a state frame; the shard is asked for anew", "shard", shard)
	f.tracker.Forget(shard)
	f.kick()
}

// tend syncs the deltas and sees to new generations.
func (k *Keeper) tend(ctx context.Context) {
	tick := time.NewTicker(min(time.Second, k.cfg.Tunables.Retry))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := k.disk.Sync()
		if k.mayRetry() {
			err = errors.Join(err, k.disk.Retry())
		}
		if err != nil {
			k.flow.mu.Lock()
			k.diskFailed(err)
			k.flow.mu.Unlock()
		}
		k.renew()
		k.listen()
	}
}

// silence is how long a worker may say nothing before gossip is told.
const silence = 3 * time.Second

// listen tells gossip when a worker that runs has stopped talking.
func (k *Keeper) listen() {
	last := k.stats.heardWorker.Load()
	if last != 0 && k.current() != nil && time.Since(time.UnixMilli(last)) > silence {
		k.log.Warn("the worker runs and says nothing", "pid", k.WorkerPID(), "last_word", time.UnixMilli(last))
		k.cfg.Health(link.Health{}, false)
	}
}

func (k *Keeper) mayRetry() bool {
	k.flow.mu.Lock()
	defer k.flow.mu.Unlock()
	return !time.Now().Before(k.flow.retryAt)
}

// renew begins a new generation if one is due: the watch starts over from the
// empty position, and its frames go to the new file as they pass.
func (k *Keeper) renew() {
	f := &k.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gen != nil || time.Now().Before(f.retryAt) || !k.disk.Due() {
		return
	}
	gen, err := k.disk.Begin()
	if err != nil {
		k.diskFailed(err)
		return
	}
	f.gen = gen
	f.kick()
}
