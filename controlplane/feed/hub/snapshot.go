package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

const chunkBytes = 128 << 10 // of an encoded snapshot, about

var errNoShard = errors.New("feed: the state does not hold the shard")

// snapshot is one shard at one point, encoded once for all watchers that need
// it at about the same time: reset, records, revocations, end. Chunks can be
// sent while later ones are still being encoded.
type snapshot struct {
	taken  chan struct{} // closed once point is set, or err
	point  controlplane.Point
	sender controlplane.Epoch
	spans  []registry.Span
	expire *time.Timer

	mu     sync.Mutex
	chunks [][]byte
	done   bool
	err    error
	grown  chan struct{} // closed and replaced at each change
}

// snapshotOf returns a snapshot of shard that is no older than least and that
// the shard's ring continues. It does not wait for all of it to be encoded.
func (h *Hub) snapshotOf(ctx context.Context, shard controlplane.Shard, least controlplane.Point) (*snapshot, error) {
	for {
		s, fresh := h.snapshotEntry(shard)
		if s == nil {
			return nil, context.Canceled
		}
		select {
		case <-s.taken:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		s.mu.Lock()
		err := s.err
		s.mu.Unlock()
		switch {
		case err == nil && s.point.Compare(least) >= 0 && (fresh || h.continues(shard, s.point)):
			return s, nil
		case fresh && err == nil:
			err = errNoShard // behind the watcher: it is held, not reset
			fallthrough
		case fresh:
			return nil, err
		}
		h.forget(shard, s)
	}
}

// snapshotEntry returns the shard's snapshot of the moment, or starts one;
// nil if the hub is closing.
func (h *Hub) snapshotEntry(shard controlplane.Shard) (s *snapshot, fresh bool) {
	h.snapMu.Lock()
	defer h.snapMu.Unlock()
	if h.ctx.Err() != nil {
		return nil, false
	}
	if s := h.snaps[shard]; s != nil {
		return s, false
	}
	s = &snapshot{taken: make(chan struct{}), grown: make(chan struct{})}
	s.expire = time.AfterFunc(h.cfg.SnapshotKeep, func() { h.forget(shard, s) })
	h.snaps[shard] = s
	h.metrics.snapshots.Inc()
	h.group.Go(func() error {
		h.build(s, shard)
		return nil
	})
	return s, true
}

func (h *Hub) forget(shard controlplane.Shard, s *snapshot) {
	h.snapMu.Lock()
	defer h.snapMu.Unlock()
	if h.snaps[shard] == s {
		s.expire.Stop()
		delete(h.snaps, shard)
	}
}

// continues reports whether what follows p is in the ring, or still to come.
func (h *Hub) continues(shard controlplane.Shard, p controlplane.Point) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	r := h.rings[shard]
	if r == nil || !r.known {
		return false
	}
	_, ok := r.after(p)
	return ok || p.Compare(r.last()) > 0
}

// build takes the snapshot under the source's lock, which is quick, and
// encodes it outside.
func (h *Hub) build(s *snapshot, shard controlplane.Shard) {
	var snap ledger.ShardSnapshot
	var ok bool
	h.cfg.Source.View(func(st *ledger.State) { snap, ok = st.ShardSnapshot(shard) })
	if !ok {
		s.grow(nil, true, errNoShard)
		close(s.taken)
		return
	}
	s.point, s.sender, s.spans = snap.Info.Last, snap.Info.Epoch, snap.Info.Spans
	close(s.taken)
	err := h.encode(s, snap)
	if err != nil {
		h.cfg.Logger.Error("feed: a snapshot cannot be encoded", "shard", shard, "err", err)
		h.forget(shard, s)
	}
	s.grow(nil, true, err)
}

func (h *Hub) encode(s *snapshot, snap ledger.ShardSnapshot) (err error) {
	info := snap.Info
	var buf []byte
	add := func(f *feed.Frame) bool {
		if h.ctx.Err() != nil {
			err = h.ctx.Err()
			return false
		}
		f.Shard, f.Sender = info.Shard, info.Epoch
		if buf, err = feed.AppendFrame(buf, f); err != nil {
			return false
		}
		if len(buf) >= chunkBytes {
			s.grow(buf, false, nil)
			buf = make([]byte, 0, chunkBytes+chunkBytes/8)
		}
		return true
	}
	if !add(&feed.Frame{Type: feed.FrameReset, Members: info.Members, Home: info.Home}) {
		return err
	}
	digest := registry.NewDigester()
	for rec := range snap.Records {
		b, encErr := registry.EncodeRecord(rec)
		if encErr != nil {
			return encErr
		}
		digest.Record(b)
		if !add(&feed.Frame{Type: feed.FrameRecord, Record: b}) {
			return err
		}
	}
	for rev := range snap.Revocations {
		digest.Revocation(rev)
		if !add(&feed.Frame{Type: feed.FrameRevocation, Revocation: &rev}) {
			return err
		}
	}
	sum := digest.Sum()
	if add(&feed.Frame{Type: feed.FrameEnd, Point: info.Last, Digest: sum[:]}) && len(buf) > 0 {
		s.grow(buf, false, nil)
	}
	return err
}

func (s *snapshot) grow(chunk []byte, done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if chunk != nil {
		s.chunks = append(s.chunks, chunk)
	}
	if done {
		s.done, s.err = true, err
	}
	close(s.grown)
	s.grown = make(chan struct{})
}

// chunk returns chunk i, or nil if there is none yet (wait for grown), or
// last if there is none any more.
func (s *snapshot) chunk(i int) (b []byte, last bool, grown <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i < len(s.chunks) {
		return s.chunks[i], false, s.grown, nil
	}
	return nil, s.done, s.grown, s.err
}

// ServeSnapshot answers with the shard as a whole, as frames, if this node's
// copy ends in exactly at. Who may ask is the caller's to decide.
func (h *Hub) ServeSnapshot(ctx context.Context, rw http.ResponseWriter, shard controlplane.Shard, at controlplane.Point) error {
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		return errors.New("too many nodes take snapshots here")
	}
	s, err := h.snapshotOf(ctx, shard, at)
	if err != nil {
		return err
	}
	if s.point != at {
		return fmt.Errorf("shard %s is at %s.%d by now", shard, s.point.Epoch, s.point.Seq)
	}
	rw.Header().Set("Content-Type", "application/x-ringmain-feed")
	out := output{w: rw, rc: http.NewResponseController(rw), timeout: h.cfg.WriteTimeout}
	for i := 0; ; i++ {
		b, last, err := s.await(ctx, i)
		if err != nil {
			return err
		}
		if last {
			return out.flush()
		}
		if err := out.add(b); err != nil {
			return err
		}
	}
}

// await returns chunk i as soon as there is one, or last if there will be none.
func (s *snapshot) await(ctx context.Context, i int) (b []byte, last bool, err error) {
	for {
		b, last, grown, err := s.chunk(i)
		if b != nil || last || err != nil {
			return b, last, err
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}
