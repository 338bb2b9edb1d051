package storm

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"ringmain/controlplane/apikey"
)

// outstanding is how many requests a connection has under way at most: servers
// announce 100 and more. What is due beyond that is held back, and counted.
const outstanding = 100

// wrongKeys presents secrets that are wrong, but well formed, for the id of the
// good caller's own key, by frames that are as cheap to make as can be.
func (a *attacker) wrongKeys(ctx context.Context) {
	parsed, err := apikey.Parse(a.Key)
	if err != nil {
		a.saw(err.Error(), 1)
		a.begun()
		return
	}
	lines := make([]*line, max(a.Conns, a.Sources))
	var all sync.WaitGroup
	for i := range lines {
		lines[i] = &line{a: a, id: parsed, from: a.source(), all: &all}
		lines[i].redial(ctx)
	}
	all.Go(func() {
		for _, l := range lines {
			for end := time.Now().Add(10 * time.Second); !l.up() && time.Now().Before(end) && ctx.Err() == nil; {
				time.Sleep(time.Millisecond)
			}
		}
		a.begun()
	})
	next := 0
	a.paced(ctx, 2*time.Millisecond, func(n int) {
		each := max(1, n/len(lines))
		for n > 0 {
			part := min(each, n)
			lines[next%len(lines)].send(ctx, part)
			next++
			n -= part
		}
	})
	all.Wait()
}

// line is one HTTP/2 connection.
type line struct {
	a    *attacker
	id   apikey.Parsed
	from net.IP
	all  *sync.WaitGroup

	mu      sync.Mutex
	conn    *tls.Conn // nil = not connected
	dialing bool
	open    int // requests under way
	stream  uint32
	out     bytes.Buffer
	head    bytes.Buffer
	enc     *hpack.Encoder
}

func (l *line) up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil
}

// redial connects in the background.
func (l *line) redial(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dialing || l.conn != nil {
		return
	}
	l.dialing = true
	l.all.Go(func() {
		conn, err := l.a.dial(ctx, l.from, "h2")
		if err == nil {
			_, err = io.WriteString(conn, http2.ClientPreface)
		}
		if err == nil {
			f := http2.NewFramer(conn, nil)
			err = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
			if err == nil {
				err = f.WriteWindowUpdate(0, 1<<30)
			}
		}
		if err != nil {
			if ctx.Err() == nil {
				l.a.saw("not connected", 1)
				time.Sleep(50 * time.Millisecond)
			}
			l.mu.Lock()
			l.dialing = false
			l.mu.Unlock()
			return
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		defer stop()
		l.a.saw("connections", 1)
		l.mu.Lock()
		l.conn, l.dialing, l.open, l.stream = conn, false, 0, 1
		l.enc = hpack.NewEncoder(&l.head)
		l.mu.Unlock()
		l.read(ctx, conn)
	})
}

// send offers n requests.
func (l *line) send(ctx context.Context, n int) {
	l.mu.Lock()
	if l.conn == nil {
		l.mu.Unlock()
		l.a.saw("held back, not connected", n)
		l.redial(ctx)
		return
	}
	defer l.mu.Unlock()
	free := n
	if !l.a.sink {
		free = min(n, outstanding-l.open)
	}
	l.a.saw("held back, unanswered before it", n-free)
	if free == 0 {
		return
	}
	l.out.Reset()
	f := http2.NewFramer(&l.out, nil)
	for range free {
		wrong, err := apikey.NewSecretFor(l.id, crand.Reader)
		if err != nil {
			l.a.saw(err.Error(), 1)
			return
		}
		l.head.Reset()
		// Sensitive fields are written as they are, whatever came before.
		for _, h := range [...][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", l.a.Path},
			{"authorization", "Bearer " + wrong.Reveal()}, {"content-type", "application/json"}} {
			_ = l.enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true}) // into memory
		}
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: l.stream, BlockFragment: l.head.Bytes(), EndHeaders: true}) // likewise
		_ = f.WriteData(l.stream, true, []byte(`{"model":"x"}`))
		l.stream += 2
	}
	l.open += free
	l.a.saw("sent", free)
	if _, err := l.conn.Write(l.out.Bytes()); err != nil {
		_ = l.conn.Close() // its reader notices
	}
}

// read counts what comes, until the connection ends.
func (l *line) read(ctx context.Context, conn *tls.Conn) {
	f := http2.NewFramer(io.Discard, conn)
	f.SetReuseFrames()
	seen := map[string]int{}
	status := ""
	decoder := hpack.NewDecoder(4096, func(h hpack.HeaderField) {
		if h.Name == ":status" {
			status = strings.Clone(h.Value)
		}
	})
	ended := func() {
		l.mu.Lock()
		l.open--
		l.mu.Unlock()
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			break
		}
		switch frame := frame.(type) {
		case *http2.HeadersFrame:
			status = ""
			if _, err := decoder.Write(frame.HeaderBlockFragment()); err == nil && status != "" {
				seen["answered "+status]++
			}
			if frame.StreamEnded() {
				ended()
			}
		case *http2.DataFrame:
			if frame.StreamEnded() {
				ended()
			}
		case *http2.RSTStreamFrame:
			if frame.ErrCode != http2.ErrCodeNo { // else it only wants no more of the request, and has answered
				seen["reset"]++
				ended()
			}
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				l.mu.Lock()
				_ = http2.NewFramer(conn, nil).WriteSettingsAck() // a failure shows here again
				l.mu.Unlock()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				l.mu.Lock()
				_ = http2.NewFramer(conn, nil).WritePing(true, frame.Data) // likewise
				l.mu.Unlock()
			}
		}
	}
	_ = conn.Close() // over
	l.mu.Lock()
	if ctx.Err() == nil {
		seen["no answer"] += l.open
	} else {
		seen["under way at the end"] += l.open
	}
	if l.conn == conn {
		l.conn = nil
	}
	l.mu.Unlock()
	for what, n := range seen {
		l.a.saw(what, n)
	}
}
