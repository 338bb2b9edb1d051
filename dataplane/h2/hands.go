package h2

const (
	// maxWaiting is how many requests may wait for a handler of one that is
	// over, in times the streams that may be open.
	maxWaiting = 4
	maxParked  = 64 // goroutines of a busy connection that wait for a request
)

// hand is a goroutine of a connection that runs handlers, one after the other:
// a new one for each request would have to grow its stack each time. nil ends it.
type hand chan *stream

// run has a handler run for s, now or when another one ends. The caller holds mu.
func (c *conn) run(s *stream) {
	if c.running >= int(c.limits.streams) { // those of streams that are over
		c.waiting = append(c.waiting, s)
		return
	}
	c.running++
	if last := len(c.parked) - 1; last >= 0 {
		c.parked[last] <- s
		c.parked = c.parked[:last]
		return
	}
	h := make(hand, 1)
	h <- s
	c.tasks.Go(func() { c.work(h) })
}

// work runs handlers until there is none to run.
func (c *conn) work(h hand) {
	for s := range h {
		if s == nil {
			return
		}
		s.serve()
		c.mu.Lock()
		s.release()
		c.idleHand(h)
		c.mu.Unlock()
	}
}

// idleHand gives h its next request, or parks or ends it. The caller holds mu.
func (c *conn) idleHand(h hand) {
	for len(c.waiting) > 0 {
		s := c.waiting[0]
		c.waiting = c.waiting[1:]
		if s.err == nil {
			h <- s
			return
		}
		s.release() // it was taken back meanwhile
	}
	c.running--
	if c.err == nil && (len(c.parked) == 0 || len(c.streams) > 0 && len(c.parked) < maxParked) {
		c.parked = append(c.parked, h)
		return
	}
	h <- nil
}

// dismiss ends hands that are parked, but for keep. The caller holds mu.
func (c *conn) dismiss(keep int) {
	for len(c.parked) > keep {
		last := len(c.parked) - 1
		c.parked[last] <- nil
		c.parked = c.parked[:last]
	}
}
