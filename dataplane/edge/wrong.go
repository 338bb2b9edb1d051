package edge

import (
	"context"
	"math/rand/v2"
	"net"
	"time"
)

// Refusals counts what became of wrong keys.
type Refusals struct {
	Prompt  uint64 // answered without delay so far
	Rested  uint64 // likewise, and then their connections were not read for a while
	Late    uint64 // made to wait so far
	Dropped uint64 // without an answer so far: too many waited
	Waiting int    // at the moment
}

// debt is what a source owes for wrong keys: one for each, of which so many a
// second are forgiven. The zero debt owes nothing.
type debt struct {
	owed float64
	at   time.Time
}

// memory is how long a source that stops is still slow, at most.
const memory = 10 * time.Second

// left is what is still owed; nothing where nobody counts.
func (d debt) left(perSecond int, now time.Time) float64 {
	if perSecond < 0 {
		return 0
	}
	return max(0, d.owed-now.Sub(d.at).Seconds()*float64(perSecond))
}

// charge adds a wrong key and gives how long its refusal must wait, so that a
// source hears no more of them a second than it is forgiven, or waits for late.
func (d *debt) charge(perSecond int, late time.Duration, now time.Time) time.Duration {
	rate := float64(perSecond)
	free := 2 * rate
	*d = debt{min(d.left(perSecond, now)+1, free+rate*memory.Seconds()), now}
	over := max(0, d.owed-free) / rate // seconds
	return min(late, time.Duration(over*float64(time.Second)))
}

// Known notes that somebody known asks on the request's connection: others'
// wrong keys never end it, since a proxy may send many people's requests on one.
func Known(ctx context.Context) {
	c, ok := ctx.Value(key{}).(*conn)
	if !ok || c.known.Load() {
		return
	}
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	if !c.known.Swap(true) && !c.closed {
		c.source.known++
	}
}

// Penance is what a refused key costs whoever presented it.
type Penance struct {
	Wait time.Duration // before the refusal; Waited must follow if it is not 0
	Rest time.Duration // after it, in which nothing more is to be read from the connection
	Mute bool          // there is no refusal: too many wait already
}

// resting is how many times Late a connection rests at most.
const resting = 10

// Wrong counts a request that is refused because of its key. rests: its server
// can leave the connection unread for a while, which is not asked of a source that
// has a connection of somebody known: it may be a proxy, and a good key may be
// behind the wrong one. A request that gets no answer
// ends its connection, unless that serves somebody known; it is not read from
// until it is closed, Late from now: one that was closed at once would come back
// at once, and a handshake costs more than many refusals.
func (g *Guard) Wrong(ctx context.Context, rests bool, now time.Time) Penance {
	c, counted := ctx.Value(key{}).(*conn)
	limits := g.limits.Load()
	if !counted || limits.Wrong < 0 {
		return Penance{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	wait := c.source.debt.charge(limits.Wrong, limits.Late, now)
	all := g.debt.charge(limits.WrongTotal, resting*limits.Late, now)
	switch {
	case wait > 0 || all <= 0:
	case rests && !c.known.Load() && c.source.known == 0: // it is one of many, and holds nothing meanwhile
		g.wrong.Rested++
		return Penance{Rest: spread(all)}
	case c.source.held < limits.Held && g.wrong.Waiting < limits.HeldTotal-limits.HeldTotal/8:
		wait = spread(min(all, limits.Late))
	}
	switch {
	case wait <= 0:
		g.wrong.Prompt++
		return Penance{}
	case c.source.held < limits.Held && g.wrong.Waiting < limits.HeldTotal:
		c.source.held++
		g.wrong.Waiting++
		g.wrong.Late++
		return Penance{Wait: wait}
	}
	g.wrong.Dropped++
	if !c.known.Load() {
		c.deafen(limits)
	}
	return Penance{Mute: true}
}

// spread gives a wait of half to one and a half times d. Requests that wait
// for equally long come back together, on and on: those who ask meanwhile would
// find the processors taken for a tenth of a second twice in each.
func spread(d time.Duration) time.Duration {
	return d/2 + time.Duration(rand.Int64N(int64(d)+1)) //nolint:gosec // jitter
}

// Waited ends the wait of one refusal.
func (g *Guard) Waited(ctx context.Context) {
	if c, ok := ctx.Value(key{}).(*conn); ok {
		g.mu.Lock()
		defer g.mu.Unlock()
		c.source.held--
		g.wrong.Waiting--
	}
}

// deafen has nothing more read from the connection, and has it closed later; if
// there are too many such, at once. The caller holds guard.mu.
func (c *conn) deafen(limits *Limits) {
	if c.closed || c.deaf.Load() != nil {
		return
	}
	ended := make(chan struct{})
	c.deaf.Store(&ended)
	c.guard.deaf++
	wait := limits.Late
	if c.guard.deaf > limits.HeldTotal {
		wait = 0
	}
	time.AfterFunc(wait, func() {
		linger(c.Conn)
		_ = c.Close() // nobody hears of it
	})
}

// Read reads from the connection as long as it is listened to.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if ended := c.deaf.Load(); ended != nil {
		<-*ended
		return 0, net.ErrClosed
	}
	return n, err //nolint:wrapcheck // the server compares it
}
