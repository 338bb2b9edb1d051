package simmodel

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"ringmain/drills/simmodel/wire"
)

// answer serves c and counts how it ended.
func (p *Provider) answer(w http.ResponseWriter, r *http.Request, ep *endpoint, c *call) {
	p.counts.add(c.base, func(m *ModelCounts) { m.Requests++ })
	if ep.plain == nil {
		ep = &endpoint{dialect: ep.dialect, plain: func(c *call) (string, []byte) { return "application/json", wire.MustJSON(ep.dialect.Plain(&c.Answer)) }}
	}
	failed := func(e wire.Error) {
		p.ended(c, 0, func(m *ModelCounts) { m.Failed++ })
		fail(w, ep.dialect, e)
	}
	switch c.fault {
	case Fault429:
		setRetryAfter(w.Header(), c.suffix.retry)
		failed(rateLimited)
		return
	case Fault503:
		failed(overloaded)
		return
	case Fault500Once:
		if p.once.first(string(promptHash(c.base, c.messages))) {
			failed(oncePrompt)
			return
		}
	case FaultReset:
		p.ended(c, 0, func(m *ModelCounts) { m.Cut++ })
		reset(w)
	case FaultSilence:
		<-r.Context().Done()
		p.gone(c, 0)
	case Refusal400:
		failed(declined)
		return
	case RefusalAzure:
		failed(declinedAzure())
		return
	case QuirkContext:
		failed(tooLong)
		return
	case QuirkStatus:
		status := c.suffix.status
		if status == 0 {
			status = http.StatusInternalServerError
		}
		failed(withStatus(status))
		return
	case QuirkRedirect:
		w.Header().Set("location", RedirectPath)
		failed(withStatus(http.StatusFound))
		return
	case QuirkHugeHeaders:
		for i := range 64 {
			w.Header().Set(fmt.Sprintf("x-sim-huge-%d", i), strings.Repeat("h", 4<<10))
		}
	}
	if !wait(r.Context(), c.first) {
		p.gone(c, 0)
	}
	if c.stream {
		p.answerStream(w, r, ep.dialect, c)
	} else {
		p.answerPlain(w, r, ep, c)
	}
}

// setRetryAfter asks for a pause of d, 1 s where none is set.
func setRetryAfter(h http.Header, d time.Duration) {
	if d == 0 {
		d = time.Second
	} else {
		h.Set("retry-after-ms", strconv.FormatInt(d.Milliseconds(), 10))
	}
	h.Set("retry-after", strconv.Itoa(int(math.Ceil(d.Seconds()))))
}

func (p *Provider) answerPlain(w http.ResponseWriter, r *http.Request, ep *endpoint, c *call) {
	contentType, body := ep.plain(c)
	half := c.Output / 2
	cut := func(written int) { p.ended(c, written, func(m *ModelCounts) { m.Cut++ }) }
	switch c.fault {
	case FaultEarlyError, FaultLateError:
		p.ended(c, 0, func(m *ModelCounts) { m.Failed++ })
		fail(w, ep.dialect, broken)
		return
	case FaultGarbage:
		cut(0)
		writeBody(w, http.StatusOK, "application/json", []byte("<html>\x00\xff this is no JSON"))
		return
	}
	if !wait(r.Context(), c.perToken*time.Duration(max(0, c.Output-1))) {
		p.gone(c, 0)
	}
	w.Header().Set("content-type", contentType)
	switch c.fault {
	case FaultCut, FaultStall:
		w.Header().Set("content-length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:len(body)/2])
		flush(w)
		if c.fault == FaultStall {
			<-r.Context().Done()
			p.gone(c, half)
		}
		cut(half)
		panic(http.ErrAbortHandler) // the server's way to break a connection or stream mid-answer
	case FaultCutClean:
		_, _ = w.Write(body[:len(body)/2])
		cut(half)
		return
	case QuirkSlowHead:
		if p.slowly(w, r, c, contentType, body) {
			return
		}
	}
	p.completed(c) // before the last byte: whoever has the answer finds it counted
	writeBody(w, http.StatusOK, contentType, body)
}

func (p *Provider) answerStream(w http.ResponseWriter, r *http.Request, d wire.Dialect, c *call) {
	const contentType = "text/event-stream; charset=utf-8"
	if c.fault == QuirkSlowHead && p.slowly(w, r, c, contentType, whole(d, c)) {
		return
	}
	w.Header().Set("content-type", contentType)
	w.Header().Set("cache-control", "no-cache")
	if c.suffix.gap > 0 {
		flush(w)
		if !wait(r.Context(), c.suffix.gap) {
			p.left(c, 0)
		}
	}
	if c.fault == FaultEarlyError {
		p.ended(c, 0, func(m *ModelCounts) { m.Failed++ })
		_, _ = w.Write(d.ErrorEvent(&c.Answer, overloaded))
		return
	}
	out, sent, tokens := d.Start(&c.Answer), 0, 0
	for i, part := range c.Parts {
		for j, piece := range part.Pieces {
			if sent > 0 && !wait(r.Context(), c.perToken*time.Duration(piece.Tokens-tokens)) {
				p.left(c, tokens)
			}
			if sent == c.at {
				c.send(w, out)
				if out = out[:0]; p.breakStream(w, r, d, c, tokens) {
					return
				}
			}
			if j == 0 {
				out = append(out, d.Open(&c.Answer, i)...)
			}
			out = append(out, d.Piece(&c.Answer, i, piece.Text)...)
			if j == len(part.Pieces)-1 {
				out = append(out, d.Close(&c.Answer, i)...)
			}
			if !c.send(w, out) {
				p.left(c, tokens)
			}
			sent, tokens, out = sent+1, piece.Tokens, out[:0]
		}
	}
	if sent == c.at && p.breakStream(w, r, d, c, tokens) {
		return
	}
	if r.Context().Err() != nil {
		p.left(c, tokens)
	}
	end, mark := d.End(&c.Answer)
	p.completed(c)
	c.send(w, append(out, end...))
	switch c.fault {
	case QuirkNoMark:
	case QuirkNoMarkOpen:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	default:
		c.send(w, mark)
	}
}

// whole renders a stream at once.
func whole(d wire.Dialect, c *call) []byte {
	out := d.Start(&c.Answer)
	for i, part := range c.Parts {
		out = append(out, d.Open(&c.Answer, i)...)
		for _, piece := range part.Pieces {
			out = append(out, d.Piece(&c.Answer, i, piece.Text)...)
		}
		out = append(out, d.Close(&c.Answer, i)...)
	}
	end, mark := d.End(&c.Answer)
	return append(append(out, end...), mark...)
}

// send writes b, in pieces where the call asks for that, and reports whether
// the client was still there.
func (c *call) send(w http.ResponseWriter, b []byte) bool {
	for len(b) > 0 {
		n := len(b)
		if c.write > 0 {
			n = min(n, c.write)
		}
		if _, err := w.Write(b[:n]); err != nil {
			return false
		}
		flush(w)
		b = b[n:]
	}
	return true
}

// breakStream plays the fault due here and reports whether the stream is over.
func (p *Provider) breakStream(w http.ResponseWriter, r *http.Request, d wire.Dialect, c *call, tokens int) bool {
	ended := func(how func(*ModelCounts)) { p.ended(c, tokens, how) }
	switch c.fault {
	case FaultCut:
		ended(func(m *ModelCounts) { m.Cut++ })
		panic(http.ErrAbortHandler)
	case FaultCutClean:
		ended(func(m *ModelCounts) { m.Cut++ })
	case FaultStall:
		<-r.Context().Done()
		p.gone(c, tokens)
	case FaultLateError:
		ended(func(m *ModelCounts) { m.Failed++ })
		_, _ = w.Write(d.ErrorEvent(&c.Answer, overloaded))
	case FaultGarbage:
		ended(func(m *ModelCounts) { m.Cut++ })
		_, _ = w.Write([]byte(noEvent))
	case QuirkBadEvent:
		c.send(w, []byte(noEvent))
		return false
	default:
		return false
	}
	return true
}

const noEvent = "data: {\"id\": \x00\xff\xfe not an event\n\n"

// slowly writes a whole answer whose head trickles, on a connection of its own;
// over HTTP/2, where no head can trickle, it waits and returns false.
func (p *Provider) slowly(w http.ResponseWriter, r *http.Request, c *call, contentType string, body []byte) bool {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		if !wait(r.Context(), 500*time.Millisecond) {
			p.gone(c, 0)
		}
		return false
	}
	defer conn.Close()
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", contentType, len(body))
	for i := range len(head) {
		time.Sleep(4 * time.Millisecond)
		if _, err := conn.Write([]byte{head[i]}); err != nil {
			p.ended(c, 0, func(m *ModelCounts) { m.ClientGone++ })
			return true
		}
	}
	p.completed(c)
	_, _ = conn.Write(body)
	return true
}

func (p *Provider) completed(c *call) {
	p.counts.add(c.base, func(m *ModelCounts) {
		m.Completed++
		if c.Declined() {
			m.Refused++
		}
		m.PromptTokens += int64(c.Prompt)
		m.CompletionTokens += int64(c.Output)
	})
}

func (p *Provider) ended(c *call, written int, how func(*ModelCounts)) {
	p.counts.add(c.base, func(m *ModelCounts) {
		how(m)
		m.UnfinishedTokens += int64(written)
	})
}

// gone counts a client that left and breaks what is left of its connection: a
// mere return would end the answer as if it were complete. It does not return.
func (p *Provider) gone(c *call, written int) {
	p.ended(c, written, func(m *ModelCounts) { m.ClientGone++ })
	panic(http.ErrAbortHandler)
}

// left is gone for a client that left in the middle of a stream that was going on.
func (p *Provider) left(c *call, written int) {
	p.counts.add(c.base, func(m *ModelCounts) { m.Aborted++ })
	p.gone(c, written)
}

// reset breaks the connection so that its peer gets a TCP reset. HTTP/2 shares
// its connection with other requests: there the stream is reset. It does not return.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	raw := conn
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		raw = t.NetConn() // below TLS: a TLS close would say goodbye first
	}
	if tcp, ok := raw.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = raw.Close()
	panic(http.ErrAbortHandler)
}

// wait sleeps for d and reports whether ctx was still alive then.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }
