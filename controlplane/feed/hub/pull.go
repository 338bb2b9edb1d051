package hub

import (
	"ringmain/controlplane"
	"ringmain/controlplane/feed"
)

// pulled is what is ready for a watcher.
type pulled struct {
	frames [][]byte
	lost   []controlplane.Shard // only a snapshot helps
	more   bool                 // there is more than was taken
	wake   <-chan struct{}      // closed when something new arrives after this
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
	return p
}

// encoded is the frame of it for this watcher. Another region fences by the
// sender: an entry of a former home is sent under the present home's epoch.
func (w *watcher) encoded(r *ring, shard controlplane.Shard, it item) []byte {
	if !w.req.Homed || it.sender == r.epoch {
		return it.frame
	}
	f, err := feed.DecodeFrame(it.frame[4:])
	if err != nil {
		return it.frame // encoded by this hub: cannot happen
	}
	f.Sender = r.epoch
	b, err := feed.AppendFrame(nil, f)
	if err != nil {
		w.hub.cfg.Logger.Error("feed: entry cannot be sent on", "shard", shard, "err", err)
		return it.frame
	}
	return b
}
