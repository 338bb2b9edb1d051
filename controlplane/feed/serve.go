package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// Handler serves /feed/v1/* on a mutual-TLS listener made by identity: who
// asks is read from the connection and nowhere else. Ask for it once the
// source is open: from then on the hub also asks peers for what they know.
func (h *Hub) Handler() http.Handler {
	h.inheritOnce()
	return h.mux
}

func (h *Hub) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathWatch, h.serve(h.watch))
	mux.HandleFunc("POST "+PathVerdicts, h.serve(h.receiveVerdicts))
	mux.HandleFunc("GET "+PathVerdicts, h.serve(h.table))
	mux.HandleFunc("POST "+PathRevoke, h.serve(h.receiveRevocations))
	return mux
}

// refusalError is an answer other than 200. Without later, who was refused
// decides when to ask again, and whom.
type refusalError struct {
	status int
	text   string
	later  bool // not within the next second or so
}

func (r *refusalError) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusalError{status: status, text: fmt.Sprintf(format, args...)}
}

func refuseForNow(text string) error {
	return &refusalError{http.StatusServiceUnavailable, text, true}
}

func (h *Hub) serve(handle func(http.ResponseWriter, *http.Request, identity.ID) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := refuseForNow("this node is closing: ask another")
		if h.enter() {
			defer h.serving.Done()
			var peer identity.ID
			if peer, err = h.peer(r); err == nil {
				err = handle(w, r, peer)
			}
		}
		var no *refusalError
		switch {
		case err == nil:
		case errors.As(err, &no):
			if no.later {
				w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(3))) //nolint:gosec // spreads retries, guards nothing
			}
			http.Error(w, no.text, no.status)
		default:
			h.cfg.Logger.Debug("feed: a request ended early", "path", r.URL.Path, "peer", r.RemoteAddr, "err", err)
		}
	}
}

// peer says who asks, and refuses whoever has no business here at all.
func (h *Hub) peer(r *http.Request) (identity.ID, error) {
	if r.TLS == nil {
		return identity.ID{}, refuse(http.StatusForbidden, "feeds need mutual TLS")
	}
	id, err := identity.PeerID(*r.TLS)
	if err != nil {
		return identity.ID{}, refuse(http.StatusForbidden, "%v", err)
	}
	if id.Cluster != h.cfg.Cluster {
		return identity.ID{}, refuse(http.StatusForbidden, "cluster %s: %v", id.Cluster, controlplane.ErrWrongCluster)
	}
	if id.Role != identity.RoleControl && (id.Role != identity.RoleData || id.Region != h.cfg.Region) {
		return identity.ID{}, refuse(http.StatusForbidden, "%s: a data node asks the control nodes of its own region", id)
	}
	return id, nil
}

// decode reads a request's body into v.
func (h *Hub) decode(r *http.Request, cluster *string, v any) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return refuse(http.StatusBadRequest, "body: %v", err)
	}
	if len(b) > maxBody {
		return refuse(http.StatusRequestEntityTooLarge, "body: at most %d bytes", maxBody)
	}
	if err := decMode.Unmarshal(b, v); err != nil {
		return refuse(http.StatusBadRequest, "body: %v", err)
	}
	if *cluster != h.cfg.Cluster {
		return refuse(http.StatusForbidden, "cluster %q: %v", *cluster, controlplane.ErrWrongCluster)
	}
	return nil
}

// watcher is one stream being served.
type watcher struct {
	hub     *Hub
	peer    identity.ID
	req     WatchRequest
	started bool // the answer has begun; until then pull only looks
	regions bool // an importer that knows the ownership protocol: it cuts, and wants FrameStanding
	cursors map[controlplane.Shard]*cursor
	out     output
	beat    time.Time                                 // when the last heartbeat was written
	told    map[controlplane.Shard]controlplane.Point // what it was told is confirmed

	verdictAt, hintAt uint64 // cursors into the hub's tables
	slot              bool   // holds one of the hub's slots for snapshots
}

// cursor is where a watcher stands in one shard.
type cursor struct {
	point controlplane.Point
	// claimed: the point is what the watcher says it holds, and nothing was
	// sent to it yet. A claim of nothing is answered with a snapshot.
	claimed bool
}

func (h *Hub) watch(rw http.ResponseWriter, r *http.Request, peer identity.ID) error {
	w := &watcher{hub: h, peer: peer, cursors: make(map[controlplane.Shard]*cursor), told: make(map[controlplane.Shard]controlplane.Point)}
	if err := h.decode(r, &w.req.Cluster, &w.req); err != nil {
		return err
	}
	w.regions = w.req.Homed && peer.Role == identity.RoleControl && r.Header.Get(HeaderStanding) != ""
	if !h.admit(1) {
		return refuseForNow("this node has all the watchers it takes: ask another")
	}
	defer h.admit(-1)
	h.refresh()
	if !h.holdsAny() {
		return refuse(http.StatusServiceUnavailable, "this node has no state yet: ask another")
	}
	if p := w.pull(); len(p.lost) > 0 && !w.takeSlot() {
		return refuseForNow("too many nodes take snapshots here: ask another")
	}
	defer w.freeSlot()

	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	rw.Header().Set("Content-Type", "application/x-ringmain-feed")
	w.out = output{w: rw, rc: http.NewResponseController(rw), timeout: h.cfg.WriteTimeout}
	w.started = true
	log := h.cfg.Logger.With("peer", peer.String(), "homed", w.req.Homed)
	log.Debug("feed: watcher came")
	err := w.run(ctx)
	log.Debug("feed: watcher went", "err", err)
	return err
}

// admit counts watchers; false if there are enough of them.
func (h *Hub) admit(n int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n > 0 && h.watchers >= h.cfg.Watchers {
		return false
	}
	h.watchers += n
	h.metrics.watchers.Set(float64(h.watchers))
	return true
}

func (w *watcher) takeSlot() bool {
	select {
	case w.hub.slots <- struct{}{}:
		w.slot = true
	default:
	}
	return w.slot
}

func (w *watcher) freeSlot() {
	if w.slot {
		<-w.hub.slots
		w.slot = false
	}
}

// run writes what there is until ctx ends or the watcher is gone.
func (w *watcher) run(ctx context.Context) error {
	ticker := time.NewTicker(w.hub.cfg.Heartbeat)
	defer ticker.Stop()
	if err := w.heartbeat(); err != nil {
		return err
	}
	for {
		p := w.pull()
		busy, err := w.write(ctx, p)
		if err != nil {
			return err
		}
		if time.Since(w.beat) >= w.hub.cfg.Heartbeat*9/10 {
			if err := w.heartbeat(); err != nil {
				return err
			}
		}
		if busy && ctx.Err() == nil {
			continue
		}
		if err := w.out.flush(); err != nil {
			return err
		}
		select {
		case <-p.wake:
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// write sends what was pulled. It is busy if more may be ready at once.
func (w *watcher) write(ctx context.Context, p pulled) (busy bool, err error) {
	for _, b := range p.frames {
		if err := w.out.add(b); err != nil {
			return false, err
		}
	}
	if err := w.tell(p); err != nil {
		return false, err
	}
	for _, shard := range p.lost {
		if !w.slot && !w.takeSlot() {
			return false, errors.New("lagged behind the ring, and too many others take snapshots: it comes again")
		}
		sent, err := w.snapshot(ctx, shard)
		if err != nil {
			return false, err
		}
		p.more = p.more || sent
	}
	w.freeSlot()
	return p.more, nil
}

// tell sends verdicts and hints.
func (w *watcher) tell(p pulled) error {
	for i := range p.hints {
		f := &Frame{Type: FrameRevocation, Shard: p.hints[i].Shard, Revocation: &p.hints[i]}
		if err := w.out.frame(f); err != nil {
			return err
		}
	}
	if len(p.verdicts) == 0 {
		return nil
	}
	return w.out.frame(&Frame{Type: FrameVerdicts, Verdicts: p.verdicts})
}

// snapshot sends shard as a whole, and moves the cursor to its point. Nothing
// is sent of a state that turns out to be behind the watcher.
func (w *watcher) snapshot(ctx context.Context, shard controlplane.Shard) (sent bool, err error) {
	c := w.cursors[shard]
	s, err := w.hub.snapshotOf(ctx, shard, c.point)
	switch {
	case errors.Is(err, errNoShard):
		return false, nil
	case err != nil:
		return false, err
	}
	if w.req.Homed && s.sender != s.point.Epoch {
		return false, nil // no longer this region's to send: it has promised to follow another
	}
	w.hub.metrics.resets.Inc()
	if n := len(s.spans); w.regions && n > 0 && len(s.spans[n-1].Members) > 0 { // else cluster version 1
		if err := w.out.frame(&Frame{Type: FrameStanding, Shard: shard, Sender: s.sender, Spans: s.spans}); err != nil {
			return false, err
		}
	}
	for i := 0; ; {
		b, last, grown, err := s.chunk(i)
		switch {
		case err != nil:
			return true, err
		case b != nil:
			if err := w.out.add(b); err != nil {
				return true, err
			}
			w.hub.metrics.snapshotBytes.Add(float64(len(b)))
			i++
		case last:
			*c = cursor{point: s.point}
			return true, nil
		default:
			if err := w.out.flush(); err != nil {
				return true, err
			}
			select {
			case <-grown:
			case <-time.After(w.hub.cfg.Heartbeat):
				if err := w.heartbeat(); err != nil {
					return true, err
				}
			case <-ctx.Done():
				return true, ctx.Err()
			}
		}
	}
}

func (w *watcher) heartbeat() error {
	w.beat = time.Now()
	if w.regions {
		if err := w.standing(); err != nil {
			return err
		}
	}
	return w.out.frame(&Frame{Type: FrameHeartbeat, Position: w.offered(), At: w.hub.cfg.Contact().UnixMilli()})
}

// offered is the hub's position in the shards that this watcher gets.
func (w *watcher) offered() controlplane.Position {
	at := make(controlplane.Position)
	w.hub.steady(w.hub.mu.RLocker(), func() {
		for s, r := range w.hub.rings {
			if w.gets(r) {
				at[s] = r.last()
			}
		}
	})
	return at
}

// standing tells what has been confirmed since it was last told.
func (w *watcher) standing() error {
	var infos []registry.ShardInfo
	w.hub.cfg.Source.View(func(s *registry.State) { infos = s.Shards() })
	var news []Frame
	w.hub.steady(w.hub.mu.RLocker(), func() {
		for _, info := range infos {
			at := controlplane.Point{Seq: info.Confirmed}
			at.Epoch, _ = info.Copy().EpochAt(info.Confirmed)
			if r := w.hub.rings[info.Shard]; r != nil && w.gets(r) && info.Epoch == r.epoch && info.Confirmed > 0 && w.told[info.Shard] != at {
				w.told[info.Shard] = at
				news = append(news, Frame{Type: FrameStanding, Shard: info.Shard, Sender: info.Epoch, Point: at})
			}
		}
	})
	for i := range news {
		if err := w.out.frame(&news[i]); err != nil {
			return err
		}
	}
	return nil
}

// gets reports whether r's shard is part of this feed. h.mu is held.
func (w *watcher) gets(r *ring) bool {
	return w.hub.mayHold(w.peer, r) && (!w.req.Homed || r.leads(w.hub.cfg.Region))
}

// pulled is what is ready for a watcher.
type pulled struct {
	frames   [][]byte
	verdicts []Verdict
	hints    []registry.Revocation
	lost     []controlplane.Shard // only a snapshot helps
	more     bool                 // there is more than was taken
	wake     <-chan struct{}      // closed when something new arrives after this
}

const pullItems = 512 // entries of one shard taken at a time

// pull takes what is ready and advances the cursors over it. A shard in which
// the watcher is ahead of this node is held: nothing is sent, and nothing is
// taken back, until this node has caught up. The same goes for a shard that
// the watcher holds and this node does not know.
func (w *watcher) pull() (p pulled) {
	w.hub.steady(w.hub.mu.RLocker(), func() { p = w.take() })
	return p
}

// take is pull, with h.mu held and every ring complete.
func (w *watcher) take() pulled {
	h := w.hub
	p := pulled{wake: h.wake}
	for shard, r := range h.rings {
		if !w.gets(r) {
			continue
		}
		c := w.cursors[shard]
		if c == nil {
			c = &cursor{point: w.req.From[shard], claimed: !w.started}
			w.cursors[shard] = c
		}
		if c.point.Compare(r.last()) >= 0 {
			continue // up to date, or held
		}
		items, ok := r.after(c.point)
		if !ok && w.regions {
			items, ok = r.branch(c.point) // the receiver cuts what conflicts
		}
		if !ok || (c.claimed && c.point == controlplane.Point{}) {
			p.lost = append(p.lost, shard)
			continue
		}
		if !w.started {
			continue
		}
		c.claimed = false
		if len(items) > pullItems {
			items, p.more = items[:pullItems], true
		}
		for _, it := range items {
			p.frames = append(p.frames, w.encoded(r, shard, it))
		}
		c.point = items[len(items)-1].point
	}
	if !w.started {
		return p
	}
	w.pullTables(&p)
	return p
}

// pullTables takes hints and verdicts. h.mu is held.
func (w *watcher) pullTables(p *pulled) {
	h := w.hub
	var more bool
	p.hints, w.hintAt, more = h.hints.after(w.hintAt, maxBatch, func(r registry.Revocation) bool {
		return h.mayHear(w.peer, r.Shard)
	})
	p.more = p.more || more
	if w.req.Verdicts {
		p.verdicts, w.verdictAt, more = h.verdicts.after(w.verdictAt, maxBatch, func(v Verdict) bool {
			return h.mayHear(w.peer, keyShard(v.Key))
		})
		p.more = p.more || more
	}
}

// encoded is the frame of it for this watcher. Another region fences by the
// sender: an entry of a former home is sent under the present home's epoch.
func (w *watcher) encoded(r *ring, shard controlplane.Shard, it item) []byte {
	if !w.req.Homed || it.sender == r.epoch {
		return it.frame
	}
	f, err := DecodeFrame(it.frame[4:])
	if err != nil {
		return it.frame // encoded by this hub: cannot happen
	}
	f.Sender = r.epoch
	b, err := appendFrame(nil, f)
	if err != nil {
		w.hub.cfg.Logger.Error("feed: entry cannot be sent on", "shard", shard, "err", err)
		return it.frame
	}
	return b
}

const outputBytes = 64 << 10

// output gathers frames and writes them, with a bound on how long a peer may
// take nothing.
type output struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
	buf     []byte
	dirty   bool // written since the last flush
}

func (o *output) frame(f *Frame) (err error) {
	if o.buf, err = appendFrame(o.buf, f); err != nil {
		return err
	}
	return o.spill()
}

func (o *output) add(encoded []byte) error {
	o.buf = append(o.buf, encoded...)
	return o.spill()
}

func (o *output) spill() error {
	if len(o.buf) < outputBytes {
		return nil
	}
	return o.write()
}

func (o *output) write() error {
	if err := o.rc.SetWriteDeadline(time.Now().Add(o.timeout)); err != nil {
		return err
	}
	_, err := o.w.Write(o.buf)
	o.dirty = true
	if o.buf = o.buf[:0]; cap(o.buf) > 4*outputBytes {
		o.buf = nil
	}
	return err
}

// flush sends all that was added. An idle stream has no deadline.
func (o *output) flush() error {
	if len(o.buf) > 0 {
		if err := o.write(); err != nil {
			return err
		}
	}
	if !o.dirty {
		return nil
	}
	o.dirty = false
	if err := o.rc.Flush(); err != nil {
		return err
	}
	return o.rc.SetWriteDeadline(time.Time{})
}
