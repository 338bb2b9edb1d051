package simmodel

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Faults a model name asks for. Every other name gets a good answer.
const (
	Fault429        = "sim-429"         // 429 with retry-after: 1
	Fault500Once    = "sim-500-once"    // 500 the first time a prompt is asked, then good answers
	Fault503        = "sim-503"         // 503
	FaultReset      = "sim-reset"       // the TCP connection (HTTP/2: the stream) is reset before any byte
	FaultSilence    = "sim-silence"     // never answers
	FaultCut        = "sim-cut"         // connection cut half-way; plain: content-length longer than what is sent
	FaultCutClean   = "sim-cut-clean"   // ended cleanly half-way: no [DONE], no message_stop; plain: half the JSON
	FaultStall      = "sim-stall"       // half the answer, then nothing more
	FaultRefusal    = "sim-refusal"     // OpenAI refusal; Anthropic stop_reason "refusal"
	FaultEarlyError = "sim-early-error" // status 200, then an error as the first event; plain: 500
	FaultLateError  = "sim-late-error"  // half the answer, then an error event; plain: 500
	FaultGarbage    = "sim-garbage"     // half the answer, then bytes that are no event; plain: no JSON
)

// Faults lists the model names that fail.
func Faults() []string {
	return []string{
		Fault429, Fault500Once, Fault503, FaultReset, FaultSilence, FaultCut, FaultCutClean, FaultStall,
		FaultRefusal, FaultEarlyError, FaultLateError, FaultGarbage,
	}
}

// refusal is what the model says where it declines.
var refusal = []string{"I", " cannot", " help", " with", " that."}

// dialect renders one wire format. The stream of an answer is start, a delta a
// token, end.
type dialect interface {
	requestIDHeader() string
	errorBody(apiError) any
	models(names []string, owner string) any
	plain(c *call, refused bool) any
	start(c *call) []byte
	delta(c *call, token string, refused bool) []byte
	end(c *call, refused bool) []byte
	errorEvent(apiError) []byte
}

var overloaded = apiError{http.StatusServiceUnavailable, "overloaded_error", "overloaded", "the simulated provider is overloaded"}

// answer serves c and counts how it ended.
func (p *Provider) answer(w http.ResponseWriter, r *http.Request, d dialect, c *call) {
	p.counts.add(c.base, func(m *ModelCounts) { m.Requests++ })
	refused := c.base == FaultRefusal
	if refused {
		c.tokens, c.whole = refusal, true
	}
	half := len(c.tokens) / 2

	switch c.base {
	case Fault429:
		w.Header().Set("retry-after", "1")
		p.failed(w, d, c, apiError{http.StatusTooManyRequests, "rate_limit_error", "rate_limit_exceeded", "the simulated provider's rate limit is reached"})
		return
	case Fault503:
		p.failed(w, d, c, overloaded)
		return
	case Fault500Once:
		if p.once.first(string(promptHash(c.base, c.messages))) {
			p.failed(w, d, c, apiError{http.StatusInternalServerError, "api_error", "server_error", "the simulated provider fails once for each prompt"})
			return
		}
	case FaultReset:
		p.ended(c, 0, func(m *ModelCounts) { m.Cut++ })
		reset(w)
	case FaultSilence:
		<-r.Context().Done()
		p.gone(c, 0)
	}
	if !wait(r.Context(), c.first) {
		p.gone(c, 0)
	}
	if c.stream {
		p.answerStream(w, r, d, c, half)
	} else {
		p.answerPlain(w, r, d, c, half)
	}
}

func (p *Provider) answerPlain(w http.ResponseWriter, r *http.Request, d dialect, c *call, half int) {
	body := mustJSON(d.plain(c, c.base == FaultRefusal))
	switch c.base {
	case FaultEarlyError, FaultLateError:
		p.failed(w, d, c, apiError{http.StatusInternalServerError, "api_error", "server_error", "the simulated provider failed"})
		return
	case FaultGarbage:
		p.ended(c, 0, func(m *ModelCounts) { m.Cut++ })
		writeBody(w, http.StatusOK, []byte("<html>\x00\xff this is no JSON"))
		return
	}
	if !wait(r.Context(), c.perToken*time.Duration(len(c.tokens)-1)) {
		p.gone(c, 0)
	}
	switch c.base {
	case FaultCut, FaultStall:
		w.Header().Set("content-type", "application/json")
		w.Header().Set("content-length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:len(body)/2])
		flush(w)
		if c.base == FaultStall {
			<-r.Context().Done()
			p.gone(c, half)
		}
		p.ended(c, half, func(m *ModelCounts) { m.Cut++ })
		panic(http.ErrAbortHandler) // the server's way to break a connection or stream mid-answer
	case FaultCutClean:
		w.Header().Set("content-type", "application/json")
		_, _ = w.Write(body[:len(body)/2])
		p.ended(c, half, func(m *ModelCounts) { m.Cut++ })
		return
	}
	p.completed(c) // before the last byte: whoever has the answer finds it counted
	writeBody(w, http.StatusOK, body)
}

func (p *Provider) answerStream(w http.ResponseWriter, r *http.Request, d dialect, c *call, half int) {
	w.Header().Set("content-type", "text/event-stream; charset=utf-8")
	w.Header().Set("cache-control", "no-cache")
	if c.base == FaultEarlyError {
		p.ended(c, 0, func(m *ModelCounts) { m.Failed++ })
		_, _ = w.Write(d.errorEvent(overloaded))
		return
	}
	out := d.start(c)
	for i, token := range c.tokens {
		if i > 0 && !wait(r.Context(), c.perToken) {
			p.gone(c, i)
		}
		if i == half && p.breakStream(w, r, d, c, half) {
			return
		}
		out = append(out, d.delta(c, token, c.base == FaultRefusal)...)
		if _, err := w.Write(out); err != nil {
			p.gone(c, i)
		}
		flush(w)
		out = out[:0]
	}
	if r.Context().Err() != nil {
		p.gone(c, len(c.tokens))
	}
	p.completed(c)
	_, _ = w.Write(d.end(c, c.base == FaultRefusal))
}

// breakStream plays the fault due half-way, if c has one, and reports whether
// the stream is over.
func (p *Provider) breakStream(w http.ResponseWriter, r *http.Request, d dialect, c *call, half int) bool {
	switch c.base {
	case FaultCut:
		p.ended(c, half, func(m *ModelCounts) { m.Cut++ })
		panic(http.ErrAbortHandler)
	case FaultCutClean:
		p.ended(c, half, func(m *ModelCounts) { m.Cut++ })
	case FaultStall:
		<-r.Context().Done()
		p.gone(c, half)
	case FaultLateError:
		p.ended(c, half, func(m *ModelCounts) { m.Failed++ })
		_, _ = w.Write(d.errorEvent(overloaded))
	case FaultGarbage:
		p.ended(c, half, func(m *ModelCounts) { m.Cut++ })
		_, _ = w.Write([]byte("data: {\"id\": \x00\xff\xfe not an event\n\n"))
	default:
		return false
	}
	return true
}

func (p *Provider) failed(w http.ResponseWriter, d dialect, c *call, e apiError) {
	p.ended(c, 0, func(m *ModelCounts) { m.Failed++ })
	fail(w, d, e)
}

func (p *Provider) completed(c *call) {
	p.counts.add(c.base, func(m *ModelCounts) {
		m.Completed++
		if c.base == FaultRefusal {
			m.Refused++
		}
		m.PromptTokens += int64(c.prompt)
		m.CompletionTokens += int64(len(c.tokens))
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
