package h2

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	prefaceWait   = 10 * time.Second // for the preface and the first settings
	lingerWait    = time.Second      // after the last frame, so that the client reads it before the connection is reset
	lingerBytes   = 4 << 20
	tableSize     = 4096 // of fields that the client may refer to
	defaultWindow = 65535
	maxWindow     = 1<<31 - 1
)

// conn is one connection. Its own goroutine reads frames and does what they
// ask; what is to be written is written by whoever has it, see out.
type conn struct {
	server  *server
	limits  *limits
	nc      net.Conn // speaks TLS
	below   net.Conn // that TLS is spoken on
	handler http.Handler
	ctx     context.Context //nolint:containedctx // those of requests are below it
	cancel  context.CancelFunc
	tls     *tls.ConnectionState
	remote  string
	framer  *http2.Framer     // the reader's
	from    *portion          // that it reads
	names   map[string]string // likewise
	tasks   sync.WaitGroup    // handlers, and writes that nobody waits for

	mu      sync.Mutex
	watcher *time.Timer
	streams map[uint32]*stream // open on either side
	last    uint32             // highest stream that the client opened
	late    []late             // that were reset here, the oldest first
	running int                // handlers
	waiting []*stream          // for one of them to end
	parked  []hand             // without a request
	err     error              // the connection is broken

	trusted    atomic.Bool // changes with mu held; see Strangers
	unanswered int         // requests
	fewer      sync.Cond   // of them, where somebody waits for that
	rested     time.Time   // nothing is read until then; zero = it never rested
	waker      *time.Timer // ends that

	out     out
	window  int64     // bytes of bodies that the client takes
	initial int64     // the same, of a new stream
	queue   []*stream // that could send, but for window and out
	intake  intake

	unacked   int       // settings
	settled   bool      // the client's settings came
	nuisance  int       // frames that ask for nothing, less what requests excuse
	lastFrame time.Time // when one came
	quiet     time.Time // since when no stream is open; zero = one is
	pinged    bool      // and not answered
	leaving   bool      // the client was told to go
	named     uint32    // and that this is the last stream which is served
	done      bool      // and all is written
	fatal     bool      // for an error
}

func newConn(ctx context.Context, s *server, nc, below net.Conn, state *tls.ConnectionState, h http.Handler) *conn {
	ctx, cancel := context.WithCancel(ctx)
	l, now := &s.limits, time.Now()
	c := &conn{
		server: s, limits: l, nc: nc, below: below, handler: h, ctx: ctx, cancel: cancel, tls: state, remote: nc.RemoteAddr().String(),
		streams: make(map[uint32]*stream), window: defaultWindow, initial: defaultWindow,
		intake: intake{left: l.connWindow, most: l.connWindow}, unacked: 1, lastFrame: now, quiet: now,
	}
	c.fewer.L = &c.mu
	c.out.settings( // before anything else is written
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: l.streams},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: l.headers},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(l.streamWindow)},
	)
	if more := l.connWindow - defaultWindow; more > 0 {
		c.out.windowUpdate(0, uint32(more))
	}
	return c
}

func (c *conn) logf(format string, args ...any) {
	if l := c.server.hs.ErrorLog; l != nil {
		l.Printf(format, args...)
	}
}

// serve reads until the connection ends, and waits for its handlers.
func (c *conn) serve() {
	defer c.tasks.Wait()
	defer c.nc.Close() // what there was to say is said
	err := c.begin()
	if err == nil {
		err = c.read()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watcher.Stop()
	if c.waker != nil {
		c.waker.Stop()
	}
	c.fail(err)
}

// begin exchanges prefaces.
func (c *conn) begin() error {
	c.mu.Lock()
	if !c.leaving {
		_ = c.nc.SetReadDeadline(c.lastFrame.Add(prefaceWait)) // a connection that is closed says so when it is read
	}
	c.watcher = time.AfterFunc(c.untilWatch(c.lastFrame), c.watch)
	c.flushSoon()
	c.mu.Unlock()
	var preface [len(http2.ClientPreface)]byte
	if _, err := io.ReadFull(c.nc, preface[:]); err != nil {
		return fmt.Errorf("read the preface: %w", err)
	}
	if string(preface[:]) != http2.ClientPreface {
		return errors.New("what came is no preface")
	}
	c.from = &portion{from: c.nc}
	c.framer = http2.NewFramer(nil, c.from)
	c.framer.SetReuseFrames()
	c.framer.SetMaxReadFrameSize(maxFrame)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(tableSize, nil)
	c.framer.MaxHeaderListSize = c.limits.headers
	return nil
}

// read takes frames until the connection ends.
func (c *conn) read() error {
	for {
		f, err := c.readFrame()
		now := time.Now()
		c.mu.Lock()
		if _, its := asStreamError(err); err == nil || its {
			err = c.take(f, err, now)
		}
		for err == nil && c.crowded() {
			c.fewer.Wait()
		}
		code, ours := codeOf(err)
		switch {
		case c.err != nil:
			err, ours = c.err, false
		case ours:
			c.goAway(code, err.Error())
			c.flushSoon()
		}
		c.mu.Unlock()
		if ours {
			c.linger()
		}
		if err != nil {
			return err
		}
	}
}

// readFrame reads a frame. A head whose block was not decoded is an error of the
// connection (RFC 9113, 4.3 and 6.2): the tables of both sides are no longer alike.
func (c *conn) readFrame() (http2.Frame, error) {
	c.from.left = 2*int(c.limits.headers) + 2*maxFrame // as much of a block as the framer takes, and then some
	h, err := c.framer.ReadFrameHeader()
	if err != nil {
		return nil, err //nolint:wrapcheck // it may have a code
	}
	f, err := c.framer.ReadFrameForHeader(h)
	if se, its := asStreamError(err); its && se.Cause == nil && h.Type == http2.FrameHeaders {
		return nil, errProtocol
	}
	return f, err //nolint:wrapcheck // likewise
}

// portion gives so many bytes for a frame, the rest of a head's block included:
// of that the framer bounds what it says, but not how many frames say nothing.
type portion struct {
	from io.Reader
	left int
}

func (p *portion) Read(b []byte) (int, error) {
	if p.left <= 0 {
		return 0, http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	n, err := p.from.Read(b[:min(len(b), p.left)])
	p.left -= n
	return n, err //nolint:wrapcheck // it may have a code
}

func asStreamError(err error) (se http2.StreamError, ok bool) {
	return se, err != nil && errors.As(err, &se)
}

// codeOf is what the client is told of an error that ends the connection, if anything.
func codeOf(err error) (http2.ErrCode, bool) {
	var ce http2.ConnectionError
	switch {
	case err == nil:
	case errors.As(err, &ce):
		return http2.ErrCode(ce), true
	case errors.Is(err, http2.ErrFrameTooLarge):
		return http2.ErrCodeFrameSize, true
	}
	return 0, false
}

// linger reads and drops for a while: a connection that is closed with bytes
// unread is reset, and what was written last may be lost with that.
func (c *conn) linger() {
	_ = c.nc.SetReadDeadline(time.Now().Add(lingerWait))
	_, _ = io.CopyN(io.Discard, c.nc, lingerBytes)
}

// fail notes that the connection is broken. The caller holds mu.
func (c *conn) fail(err error) {
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("h2: the connection ended: %w", err)
	c.cancel()
	c.fewer.Signal()
	for _, s := range c.streams {
		s.end(c.err)
	}
	c.opened(-len(c.streams))
	clear(c.streams)
	for _, s := range c.waiting {
		s.release()
	}
	c.waiting = nil
	c.dismiss(0)
}

// breakOff is fail for those who do not read: it wakes the reader. The caller holds mu.
func (c *conn) breakOff(err error) {
	c.fail(err)
	_ = c.below.Close() // TLS would wait for the client
}

// retire tells the client to go: requests that run are finished, and no others taken.
func (c *conn) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.goAway(http2.ErrCodeNo, "")
	c.flushSoon()
}

// goAway says once, or again for an error, that no more streams are taken. The
// caller holds mu, and flushes.
func (c *conn) goAway(code http2.ErrCode, why string) {
	if c.err != nil || c.fatal || c.leaving && code == http2.ErrCodeNo {
		return
	}
	if !c.leaving {
		c.leaving, c.named = true, c.last
		c.fewer.Signal()
	}
	c.fatal = code != http2.ErrCodeNo
	c.out.goAway(c.named, code, why)
	c.emptied()
}

// emptied notes that no stream is open, if so. The caller holds mu.
func (c *conn) emptied() {
	if len(c.streams) == 0 {
		c.quiet = time.Now()
		c.dismiss(1)
		c.windUp()
	}
}

// windUp ends a connection that is to go, once its last answer is written. The
// caller holds mu.
func (c *conn) windUp() {
	if c.leaving && !c.done && len(c.streams) == 0 && !c.out.writing && len(c.out.frames) == 0 {
		c.done = true
		_ = c.nc.SetReadDeadline(time.Now().Add(lingerWait)) // ends the reader
	}
}

// untilWatch is when the connection must be looked after next. The caller holds mu.
func (c *conn) untilWatch(now time.Time) time.Duration {
	next := time.Hour
	if idle := c.limits.idle; idle > 0 && !c.leaving {
		next = min(next, idle)
		if !c.quiet.IsZero() {
			next = min(next, c.quiet.Add(idle).Sub(now))
		}
	}
	if ping := c.limits.ping; ping > 0 {
		if c.pinged {
			ping += c.limits.pong
		}
		next = min(next, c.lastFrame.Add(ping).Sub(now))
	}
	return max(next, time.Millisecond)
}

// watch pings a silent client, and tells one to go that asks nothing.
func (c *conn) watch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	now := time.Now()
	if !c.quiet.IsZero() {
		c.dismiss(0)
	}
	if c.limits.idle > 0 && !c.quiet.IsZero() && now.Sub(c.quiet) >= c.limits.idle {
		c.goAway(http2.ErrCodeNo, "")
	}
	if silent := now.Sub(c.lastFrame); c.limits.ping > 0 && silent >= c.limits.ping {
		switch {
		case !c.pinged:
			c.pinged = true
			c.out.ping(0, [8]byte{})
		case silent >= c.limits.ping+c.limits.pong:
			c.breakOff(errors.New("a ping was not answered"))
			return
		}
	}
	c.flushSoon()
	c.watcher.Reset(c.untilWatch(now))
}
