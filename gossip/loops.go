package gossip

import (
	"context"
	"time"

	"github.com/fxamacker/cbor/v2"

	"ringmain/gossip/bulletin"
)

const (
	housekeeping = 500 * time.Millisecond
	// dumpAge is how long a dead node is still told of, forgetAge how long it is
	// remembered: the first is shorter, so that nobody is taught it again.
	dumpAge   = 10 * time.Minute
	forgetAge = 30 * time.Minute
	// A name is taken when another node used it over conflictAge, with no gap
	// longer than conflictGap. A restart at another address looks the same until
	// its former address is known to be dead in both groups.
	conflictAge = 30 * time.Second
	conflictGap = time.Minute
	// maxRelay is how many news of one exchange are passed on.
	maxRelay = 64
	// sick is the health score from which a node does not trust its own eyes.
	sick = 2
)

// receive merges what others broadcast, and passes news on.
func (g *Gossip) receive(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case msg := <-g.inbox:
			g.merge(g.memberOf(group(msg[0])), msg[1:])
		}
	}
}

func (g *Gossip) merge(from *member, msg []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	var err error
	switch kind, body := msg[0], msg[1:]; kind {
	case kindDigest:
		var d bulletin.Digest
		if err = cbor.Unmarshal(body, &d); err == nil && g.mergeDigest(&d, now) {
			from.push(digestName(&d), msg)
		}
	case kindObituary:
		var o bulletin.Obituary
		if err = cbor.Unmarshal(body, &o); err == nil && g.mergeObituary(&o, now) {
			from.push(obituaryName(&o), msg)
		}
	case kindClaim:
		var c bulletin.Claim
		if err = cbor.Unmarshal(body, &c); err == nil && g.mergeClaim(&c, now) {
			from.push(claimName(&c), msg)
		}
	}
	if err != nil {
		g.metrics.unreadable.Inc()
		g.log.Debug("unreadable broadcast", "group", from.group, "err", err)
	}
}

// mergeFull takes a push/pull exchange. Its news go on as broadcasts, since the
// peer may be new and known to nobody else; but not a whole table, as a node
// gets that has just started.
func (g *Gossip) mergeFull(from *member, buf []byte) {
	var f full
	if err := cbor.Unmarshal(buf, &f); err != nil {
		g.metrics.unreadable.Inc()
		g.log.Debug("unreadable state of a peer", "err", err)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	var news []broadcast
	for i := range f.Digests {
		if d := &f.Digests[i]; g.mergeDigest(d, now) {
			news = append(news, g.relay(digestName(d), kindDigest, d)...)
		}
	}
	for i := range f.Obituaries {
		if o := &f.Obituaries[i]; g.mergeObituary(o, now) {
			news = append(news, g.relay(obituaryName(o), kindObituary, o)...)
		}
	}
	for i := range f.Claims {
		g.mergeClaim(&f.Claims[i], now) // repeated soon anyway
	}
	if len(news) <= maxRelay {
		for _, b := range news {
			from.push(b.name, b.msg)
		}
	}
}

// localFull is what a push/pull exchange tells.
func (g *Gossip) localFull() []byte {
	g.mu.Lock()
	var f full
	f.Digests, f.Obituaries, f.Claims = g.table.Dump(time.Now(), dumpAge)
	g.mu.Unlock()
	b, err := cbor.Marshal(&f)
	if err != nil {
		g.log.Error("cannot encode the table", "err", err)
	}
	return b
}

// The merges below report whether the message is news that others should hear.

func (g *Gossip) mergeDigest(d *bulletin.Digest, now time.Time) bool {
	if d.Key() == g.self {
		// Only this node writes its digest. A later one is from a former life whose
		// clock ran ahead, or from another node of this name.
		if d.Version().Compare(g.own.Version()) > 0 {
			g.outbid(d.Version(), now)
		}
		return false
	}
	if !g.table.Merge(*d, now) {
		return false
	}
	g.notify()
	return true
}

func (g *Gossip) mergeObituary(o *bulletin.Obituary, now time.Time) bool {
	if o.Key() == g.self && !g.leaving {
		if o.Version().Compare(g.own.Version()) >= 0 {
			g.outbid(o.Version(), now)
		}
		return false
	}
	if !g.table.MergeObituary(*o, now) {
		return false
	}
	g.notify()
	return true
}

func (g *Gossip) mergeClaim(c *bulletin.Claim, now time.Time) bool {
	if c.Observer() == g.self || !g.table.MergeClaim(*c, now) {
		return false
	}
	g.notify()
	return true
}

// outbid makes the next own digest newer than v. Two nodes of one name would
// outbid each other for ever, so a second time soon after is not urgent.
func (g *Gossip) outbid(v bulletin.Version, now time.Time) {
	g.own.Incarnation, g.own.Seq = v.Incarnation, v.Seq
	if now.Sub(g.bid) < 5*time.Second {
		g.mark(figures)
	} else {
		g.mark(state)
	}
	g.bid = now
}

// obituary tells the other regions of a death seen in this one. A node that may
// itself be cut off does not speak: one whose own probes go unanswered by
// everybody, or that is left with a minority. The caller holds mu.
func (g *Gossip) obituary(k bulletin.Key, now time.Time) {
	v, ok := g.table.Node(k)
	present, known := len(g.lan.present), len(g.lan.present)+g.lan.recentlyGone(now)
	if !ok || g.leaving || !g.lan.started || 2*present < known || g.lan.list.GetHealthScore() >= sick {
		return
	}
	o := bulletin.Obituary{Region: k.Region, Node: k.Node, Incarnation: v.Incarnation, Seq: v.Seq, By: g.self.Node}
	// Sent even if another has said so: together they leave nobody out.
	g.table.MergeObituary(o, now)
	g.queue(obituaryName(&o), kindObituary, &o)
}

// send sends the own digest when it is due, and keeps house.
func (g *Gossip) send(ctx context.Context) {
	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		case <-due.C:
		case <-tick.C:
			g.keepHouse()
		}
		if wait := g.sendOwn(); wait > 0 {
			due.Reset(wait)
		}
	}
}

// sendOwn sends the own digest if it is due, and returns how long to wait if it
// is not yet.
func (g *Gossip) sendOwn() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dirty == quiet || g.leaving {
		return 0
	}
	now := time.Now()
	interval := g.cfg.Tunables.StateInterval
	if g.dirty == figures {
		// Figures of many nodes together must not fill everybody's packets.
		interval = g.cfg.Tunables.FiguresInterval * time.Duration(1+len(g.wan.present)/32)
	}
	if wait := interval - now.Sub(g.sent); wait > 0 {
		return wait
	}
	g.own.Seq++
	g.dirty, g.sent = quiet, now
	g.table.Merge(g.own, now)
	g.queue(digestName(&g.own), kindDigest, &g.own)
	g.notify()
	return 0
}

func (g *Gossip) keepHouse() {
	now := time.Now()
	g.mu.Lock()
	for name, v := range g.table.Published(now) {
		if was, ok := g.shown[name]; (ok || !v.Up) && was != v.Up {
			g.log.Warn("published state of a region changed", "region", name, "up", v.Up,
				"observers", v.Observers, "down", v.Down, "last_healthy", v.LastHealthy)
			g.notify()
		}
		g.shown[name] = v.Up
	}
	g.table.Forget(now, forgetAge)
	g.lan.forget(now)
	g.wan.forget(now)
	taken := g.conflict.taken(now)
	g.mu.Unlock()
	if taken {
		g.log.Error("another node uses this node's name", "node", g.self.Node)
		if g.cfg.OnConflict != nil {
			g.cfg.OnConflict(ErrNameTaken)
		}
	}
}

// conflict remembers since when another node uses this one's name.
type conflict struct{ first, last, told time.Time }

func (c *conflict) seen(now time.Time) {
	if now.Sub(c.last) > conflictGap {
		c.first = now
	}
	c.last = now
}

// taken says so at most once a minute.
func (c *conflict) taken(now time.Time) bool {
	if c.last.Sub(c.first) < conflictAge || now.Sub(c.last) > conflictGap || now.Sub(c.told) < conflictGap {
		return false
	}
	c.told = now
	return true
}
