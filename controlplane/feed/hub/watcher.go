package hub

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/feed/push"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/retry"
)

// watcher is one stream being served.
type watcher struct {
	hub     *Hub
	peer    identity.ID
	req     feed.WatchRequest
	started bool // the answer has begun; until then pull only looks
	regions bool // an importer that knows the ownership protocol: it cuts, and wants feed.FrameStanding
	members bool // it wants feed.FrameMembers
	cursors map[controlplane.Shard]*cursor
	out     output
	beat    time.Time                                 // when the last heartbeat was written
	told    map[controlplane.Shard]controlplane.Point // what it was told is confirmed
	named   []byte                                    // the members that it was told

	pushed push.Cursor // into the hub's board
	slot   bool        // holds one of the hub's slots for snapshots
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
	w.regions = w.req.Homed && peer.Role == identity.RoleControl && r.Header.Get(feed.HeaderStanding) != ""
	w.members = r.Header.Get(feed.HeaderMembers) != "" && h.cfg.Members != nil
	if !h.admit(1) {
		return refuseForNow("this node has all the watchers it takes: ask another")
	}
	defer h.admit(-1)
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
	rw.Header().Set(feed.HeaderAge, strconv.FormatInt(max(0, time.Since(h.cfg.Contact()).Milliseconds()), 10))
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
			if d := w.spread(rand.N[time.Duration]); d > 0 && !retry.Sleep(ctx, d) {
				return nil
			}
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

const (
	perWatcher = 30 * time.Microsecond // about what telling one of them takes
	minSpread  = time.Millisecond
	maxSpread  = 50 * time.Millisecond
)

// spread is how long this watcher waits before it takes what has come: all of
// them at once would stand before the log's next commit in the processor's
// queue. The last is told no later for it. Revocations do not wait.
func (w *watcher) spread(random func(time.Duration) time.Duration) time.Duration {
	h := w.hub
	h.mu.RLock()
	window := time.Duration(h.watchers) * perWatcher
	h.mu.RUnlock()
	if window < minSpread || h.board.Urgent(w.pushed) {
		return 0
	}
	return random(min(window, maxSpread))
}

// write sends what was pulled. It is busy if more may be ready at once.
func (w *watcher) write(ctx context.Context, p pulled) (busy bool, err error) {
	for _, b := range p.frames {
		if err := w.out.add(b); err != nil {
			return false, err
		}
	}
	more, err := w.tell()
	if err != nil {
		return false, err
	}
	p.more = p.more || more
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

// tell sends the hints and verdicts there are. There may be more.
func (w *watcher) tell() (more bool, err error) {
	news, more := w.hub.board.Take(&w.pushed, w.peer, w.req.Verdicts)
	for i := range news.Revocations {
		f := &feed.Frame{Type: feed.FrameRevocation, Shard: news.Revocations[i].Shard, Revocation: &news.Revocations[i]}
		if err := w.out.frame(f); err != nil {
			return false, err
		}
	}
	if len(news.Verdicts) > 0 {
		err = w.out.frame(&feed.Frame{Type: feed.FrameVerdicts, Verdicts: news.Verdicts})
	}
	return more, err
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
		if err := w.out.frame(&feed.Frame{Type: feed.FrameStanding, Shard: shard, Sender: s.sender, Spans: s.spans}); err != nil {
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
	if w.members {
		if now := w.hub.present(); len(now) > 0 && !bytes.Equal(now, w.named) {
			w.named = now
			if err := w.out.frame(&feed.Frame{Type: feed.FrameMembers, Record: now}); err != nil {
				return err
			}
		}
	}
	if w.regions {
		if err := w.standing(); err != nil {
			return err
		}
	}
	return w.out.frame(&feed.Frame{Type: feed.FrameHeartbeat, Position: w.offered(), At: w.hub.cfg.Contact().UnixMilli()})
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
	w.hub.cfg.Source.View(func(s *ledger.State) { infos = s.Shards() })
	var news []feed.Frame
	w.hub.steady(w.hub.mu.RLocker(), func() {
		for _, info := range infos {
			at := controlplane.Point{Seq: info.Confirmed}
			at.Epoch, _ = info.Copy().EpochAt(info.Confirmed)
			if r := w.hub.rings[info.Shard]; r != nil && w.gets(r) && info.Epoch == r.epoch && info.Confirmed > 0 && w.told[info.Shard] != at {
				w.told[info.Shard] = at
				news = append(news, feed.Frame{Type: feed.FrameStanding, Shard: info.Shard, Sender: info.Epoch, Point: at})
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
