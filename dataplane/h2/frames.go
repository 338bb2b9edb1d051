package h2

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/net/http2"
)

const (
	// maxNuisance is how many frames may come that ask for nothing, or that are
	// wrong, beyond those that requests excuse.
	maxNuisance = 10000
	excused     = 100 // such frames for each request
	maxSettings = 100
)

var errReset = errors.New("h2: the client took its request back")

// intake is one flow-control window for what comes, of the connection or a stream.
type intake struct {
	left   int64 // bytes that the client may send
	credit int64 // bytes that were read since it was told so
	most   int64
}

// take counts n bytes that came; false: they are more than was allowed.
func (w *intake) take(n int64) bool {
	if n > w.left {
		return false
	}
	w.left -= n
	return true
}

// free counts n bytes that were read, and gives how much the client is to be
// told it may send more, if that is worth a frame.
func (w *intake) free(n int64) (more uint32) {
	w.credit += n
	if w.credit < w.most/4 && w.credit < w.left {
		return 0
	}
	more = uint32(w.credit)
	w.left += w.credit
	w.credit = 0
	return more
}

// take does what a frame asks, or answers its error if that is a stream's. The
// caller holds mu. What is given back ends the connection.
func (c *conn) take(f http2.Frame, err error, now time.Time) error {
	if c.err != nil { // a write failed: no stream may begin
		return c.err
	}
	c.lastFrame, c.pinged = now, false
	if err == nil {
		err = c.process(f)
	}
	if se, ok := asStreamError(err); ok {
		c.refuse(se)
		err = nil
	}
	if c.nuisance > maxNuisance {
		err = http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	if c.out.control > maxControl {
		c.breakOff(errControl)
	}
	c.flushSoon()
	return err
}

// refuse resets a stream for an error of the client's.
func (c *conn) refuse(se http2.StreamError) {
	c.nuisance++
	if id := se.StreamID; id%2 == 1 && id > c.last && se.Cause != nil { // a malformed head, which opened the stream
		c.last = id
		c.cutOff(id, c.limits.streamWindow)
	}
	if s := c.streams[se.StreamID]; s != nil {
		c.cutOff(s.id, s.intake.left)
		c.forget(s, se)
	}
	c.out.reset(se.StreamID, se.Code)
}

// late is a stream that was reset here before the client may have sent all of
// its request: what is on its way yet is no error of the client's (RFC 9113, 5.1).
type late struct {
	id   uint32
	left int64 // bytes that the client may send, as far as it knows
}

const maxLate = 64

// cutOff notes that a stream is reset. The caller holds mu.
func (c *conn) cutOff(id uint32, left int64) {
	if len(c.late) == maxLate {
		c.late = slices.Delete(c.late, 0, 1)
	}
	c.late = append(c.late, late{id, left})
}

// isLate takes n bytes of a stream that is not open; false: the client knew that.
func (c *conn) isLate(id uint32, n int64, end bool) bool {
	i := slices.IndexFunc(c.late, func(l late) bool { return l.id == id })
	if i < 0 {
		return false
	}
	c.late[i].left -= n
	is := c.late[i].left >= 0
	if end || !is {
		c.late = slices.Delete(c.late, i, i+1)
	}
	return is
}

const errProtocol = http2.ConnectionError(http2.ErrCodeProtocol)

func streamError(id uint32, code http2.ErrCode) error {
	return http2.StreamError{StreamID: id, Code: code}
}

func (c *conn) process(f http2.Frame) error {
	if _, ok := f.(*http2.SettingsFrame); !ok && !c.settled {
		return errProtocol
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return c.headers(f)
	case *http2.DataFrame:
		return c.data(f)
	case *http2.WindowUpdateFrame:
		return c.windowUpdate(f)
	case *http2.RSTStreamFrame:
		return c.reset(f)
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			c.nuisance++
			c.out.ping(http2.FlagPingAck, f.Data)
		}
	case *http2.GoAwayFrame: // it asks nothing more
		c.nuisance++
		c.goAway(http2.ErrCodeNo, "")
	case *http2.PriorityFrame:
		c.nuisance++
		if f.StreamDep == f.StreamID {
			return streamError(f.StreamID, http2.ErrCodeProtocol)
		}
	case *http2.PushPromiseFrame:
		return errProtocol
	default: // of an extension
		c.nuisance++
	}
	return nil
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		if c.unacked--; c.unacked < 0 {
			return errProtocol
		}
		return nil
	}
	if !c.settled {
		c.settled = true
		if !c.leaving {
			_ = c.nc.SetReadDeadline(time.Time{}) // a connection that is closed says so when it is read
		}
	}
	c.nuisance += max(1, f.NumSettings()) // each may move the windows of all streams
	if f.NumSettings() > maxSettings {
		return errProtocol
	}
	if err := f.ForeachSetting(c.setting); err != nil {
		return err //nolint:wrapcheck // it has a code
	}
	c.out.settingsAck()
	return nil
}

// setting takes one setting. Those that are not named here bound what is not done anyway.
func (c *conn) setting(s http2.Setting) error {
	if err := s.Valid(); err != nil {
		return err //nolint:wrapcheck // it has a code
	}
	if s.ID != http2.SettingInitialWindowSize {
		return nil
	}
	more := int64(s.Val) - c.initial
	c.initial += more
	for _, s := range c.streams {
		if s.window += more; s.window > maxWindow {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		s.writable.Signal()
	}
	return nil
}

func (c *conn) windowUpdate(f *http2.WindowUpdateFrame) error {
	id, more := f.StreamID, int64(f.Increment)
	if id == 0 {
		if c.window += more; c.window > maxWindow {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		c.next()
		return nil
	}
	s := c.streams[id]
	switch {
	case s == nil && c.idle(id):
		return errProtocol
	case s == nil: // it is over here, which the client did not know
		return nil
	}
	if s.window += more; s.window > maxWindow {
		return streamError(id, http2.ErrCodeFlowControl)
	}
	s.writable.Signal()
	return nil
}

// idle reports whether a stream was never opened.
func (c *conn) idle(id uint32) bool { return id%2 == 0 || id > c.last }

func (c *conn) reset(f *http2.RSTStreamFrame) error {
	c.nuisance++
	if c.idle(f.StreamID) {
		return errProtocol
	}
	if s := c.streams[f.StreamID]; s != nil {
		c.forget(s, errReset)
	}
	return nil
}

func (c *conn) data(f *http2.DataFrame) error {
	id, n, b := f.StreamID, int64(f.Length), f.Data()
	if c.idle(id) {
		return errProtocol
	}
	if !c.intake.take(n) {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	if len(b) == 0 && !f.StreamEnded() {
		c.nuisance++
	}
	s := c.streams[id]
	code := http2.ErrCodeNo
	switch {
	case s == nil && (c.leaving || c.isLate(id, n, f.StreamEnded())): // it may be one that was not taken
		c.freed(nil, n)
		return nil
	case s == nil || s.endedIn:
		code = http2.ErrCodeStreamClosed
	case !s.intake.take(n):
		code = http2.ErrCodeFlowControl
	case s.declaredIn >= 0 && (s.got+int64(len(b)) > s.declaredIn || f.StreamEnded() && s.got+int64(len(b)) != s.declaredIn):
		code = http2.ErrCodeProtocol
	}
	if code != http2.ErrCodeNo {
		c.freed(nil, n)
		return streamError(id, code)
	}
	s.got += int64(len(b))
	if f.StreamEnded() {
		c.endIn(s)
	}
	if s.shut {
		c.freed(nil, n)
		return nil
	}
	s.body.add(b)
	c.freed(s, n-int64(len(b))) // padding
	s.readable.Signal()
	return nil
}

// freed gives n bytes of the windows back. The caller holds mu, and flushes.
func (c *conn) freed(s *stream, n int64) {
	if n == 0 {
		return
	}
	if more := c.intake.free(n); more > 0 {
		c.out.windowUpdate(0, more)
	}
	if s != nil && !s.endedIn && s.err == nil {
		if more := s.intake.free(n); more > 0 {
			c.out.windowUpdate(s.id, more)
		}
	}
}

// endIn notes that the client has sent all of a request.
func (c *conn) endIn(s *stream) {
	s.endedIn = true
	if s.endedOut {
		c.forget(s, nil)
	}
}

// forget takes a stream out of those that are open: it ended, or by err.
func (c *conn) forget(s *stream, err error) {
	if err != nil {
		s.end(err)
	}
	if c.streams[s.id] == s {
		delete(c.streams, s.id)
		c.opened(-1)
		c.emptied()
	}
}

func (c *conn) headers(f *http2.MetaHeadersFrame) error {
	id := f.StreamID
	if s := c.streams[id]; s != nil {
		return c.trailers(s, f)
	}
	if c.leaving && id > c.named && id%2 == 1 { // it will be asked elsewhere; its trailers come here too
		c.nuisance++
		c.last = max(c.last, id)
		return nil
	}
	if !c.idle(id) && c.isLate(id, 0, f.StreamEnded()) { // trailers
		return nil
	}
	if !c.idle(id) || id%2 == 0 {
		return errProtocol
	}
	c.last = id
	err := c.open(f)
	if err != nil && !f.StreamEnded() {
		c.cutOff(id, c.limits.streamWindow)
	}
	return err
}

// open begins a request.
func (c *conn) open(f *http2.MetaHeadersFrame) error {
	id := f.StreamID
	switch {
	case f.HasPriority() && f.Priority.StreamDep == id:
		return streamError(id, http2.ErrCodeProtocol)
	case len(c.streams) >= int(c.limits.streams) && c.unacked > 0: // the limit may not be known yet
		return streamError(id, http2.ErrCodeRefusedStream)
	case len(c.streams) >= int(c.limits.streams):
		return streamError(id, http2.ErrCodeProtocol)
	case len(c.waiting) >= maxWaiting*int(c.limits.streams): // opened and taken back, again and again
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	if err := c.full(id); err != nil {
		return err
	}
	s, ok := c.newStream(f)
	if !ok {
		return streamError(id, http2.ErrCodeProtocol)
	}
	c.nuisance = max(0, c.nuisance-excused)
	c.quiet = time.Time{}
	c.streams[id] = s
	c.opened(1)
	c.asked(s)
	c.run(s)
	return nil
}

// trailers end a request. What they say is dropped.
func (c *conn) trailers(s *stream, f *http2.MetaHeadersFrame) error {
	switch {
	case s.endedIn:
		return streamError(s.id, http2.ErrCodeStreamClosed)
	case !f.StreamEnded(), len(f.PseudoFields()) > 0, s.declaredIn >= 0 && s.got != s.declaredIn:
		return streamError(s.id, http2.ErrCodeProtocol)
	}
	c.endIn(s)
	s.readable.Signal()
	return nil
}
