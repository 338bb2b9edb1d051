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
	if c, ok := ctx.Value(key{}).(*conn); ok && !c.known.Load() {
		c.known.Store(true)
	}
}

// Wrong counts a request that is refused because of its key, and gives how long
// the refusal must wait; Waited must follow if that is not 0. ok is false if too
// many wait already: the request gets no answer. Its connection is over then,
// unless it serves somebody known, and is not read from until it is closed, Late
// from now: one that was closed at once would come back at once, and a handshake
// costs more than many refusals.
func (g *Guard) Wrong(ctx context.Context, now time.Time) (wait time.Duration, ok bool) {
	c, counted := ctx.Value(key{}).(*conn)
	limits := g.limits.Load()
	if !counted || limits.Wrong < 0 {
		return 0, true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	wait = c.source.debt.charge(limits.Wrong, limits.Late, now)
	all := g.debt.charge(limits.WrongTotal, limits.Late, now)
	if wait <= 0 && c.source.held < limits.Held && g.wrong.Waiting < limits.HeldTotal-limits.HeldTotal/8 {
		wait = spread(all) // it is one of many
	}
	switch {
	case wait <= 0:
		g.wrong.Prompt++
		return 0, true
	case c.source.held < limits.Held && g.wrong.Waiting < limits.HeldTotal:
		c.source.held++
		g.wrong.Waiting++
		g.wrong.Late++
		return wait, true
	}
	g.wrong.Dropped++
	if !c.known.Load() {
		c.deafen(limits)
	}
	return 0, false
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
