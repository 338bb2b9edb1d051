package feed

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/retry"
)

// WatchConfig configures Watch. Zero values take the defaults in brackets.
type WatchConfig struct {
	Cluster string
	Region  string          // whose control nodes are asked; another region's answer is refused
	Targets func() []Target // these nodes as they are known now; asked at each connect, and it must not block
	HTTP    *http.Client    // mutual TLS over HTTP/2: see NewHTTPClient

	// Begun is called at each connect, before From: end ends that connection, for
	// a sink whose work fails between two frames, as an error of Sink's would.
	// [nobody ends one]
	Begun func(end context.CancelCauseFunc)
	// From is asked at each connect: what is held by then.
	From     func() controlplane.Position
	Homed    bool // only shards whose home is Region
	Standing bool // with Homed: how the shards stand there too (FrameStanding); the sink cuts tails that conflict
	Verdicts bool // key verdicts too

	// Members is told who runs the region's control plane, by a control node of
	// that region, at first and after each change. [not asked for]
	Members func([]byte)

	// Sink takes the frames, one at a time. An error ends the connection, and
	// the next begins at From; controlplane.ErrUnknownEntry ends Watch. Shards
	// that the server is behind in, or does not know, bring no frames.
	Sink func(*Frame) error

	Liveness   time.Duration // a connection on which nothing arrives for so long is dead [5 s]
	Patience   time.Duration // a server that for so long stays behind From, or has a copy older than that, is left for another [10 s]
	Return     time.Duration // how long a target that failed is left alone; and after which, once or twice over, a watcher leaves one for another of a lower rank [30 s]
	BackoffMin time.Duration // [100 ms]
	BackoffMax time.Duration // [5 s]: what a watcher lacks once a region is back; 1,000 of them ask 400 times a second

	Logger *slog.Logger // [discards]
}

func (c *WatchConfig) fill() error {
	if c.Cluster == "" || c.Region == "" || c.Targets == nil || c.HTTP == nil || c.From == nil || c.Sink == nil {
		return errors.New("feed watch: cluster, region, targets, HTTP client, From and Sink are needed")
	}
	c.Liveness = cmp.Or(c.Liveness, 5*time.Second)
	c.Patience = cmp.Or(c.Patience, 10*time.Second)
	c.Return = cmp.Or(c.Return, 30*time.Second)
	c.BackoffMin = cmp.Or(c.BackoffMin, 100*time.Millisecond)
	c.BackoffMax = cmp.Or(c.BackoffMax, 5*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// NewHTTPClient returns a client for feeds: HTTP/2 over config, which comes
// from identity.Bundle.Client. Close its idle connections when done with it.
func NewHTTPClient(config *tls.Config) *http.Client {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	return &http.Client{
		Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
			TLSClientConfig:       config,
			TLSHandshakeTimeout:   3 * time.Second,
			ResponseHeaderTimeout: 10 * time.Second,
			IdleConnTimeout:       90 * time.Second,
			Protocols:             &protocols,
			HTTP2:                 &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Watch keeps a feed open until ctx ends (nil) or Sink returns
// controlplane.ErrUnknownEntry, or a frame is of a type that this version does
// not know (the error). Targets of a lower rank are preferred, and those that
// did not fail lately; among equals it picks by random. After each failure it
// moves on, with full-jitter backoff that starts anew after progress.
func Watch(ctx context.Context, cfg WatchConfig) error {
	if err := cfg.fill(); err != nil {
		return err
	}
	wait := retry.Backoff{Base: cfg.BackoffMin, Limit: cfg.BackoffMax}
	for who := (chooser{shun: cfg.Return, failed: make(map[string]time.Time)}); ; {
		target, alone, ok := who.pick(cfg.Targets(), time.Now(), rand.IntN)
		var progress bool
		err := errNobody
		if ok {
			progress, err = watchOnce(ctx, &cfg, &connection{who: &who, target: target, alone: alone})
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, controlplane.ErrUnknownEntry):
			return fmt.Errorf("feed from %s: %w", target.Addr, err)
		case progress:
			wait.Reset()
		}
		delay := wait.Next()
		if errors.Is(err, errOutranked) {
			delay = 0
		} else {
			who.fail(target, time.Now())
		}
		if len(who.good(cfg.Targets(), time.Now())) == 0 {
			delay = max(delay, retryAfter(err, cfg.BackoffMax)) // nobody else is left to ask
		}
		cfg.Logger.Info("feed: connection ended; the next target is asked",
			"target", target.Addr, "region", cfg.Region, "wait", delay, "err", err)
		if !retry.Sleep(ctx, delay) {
			return nil
		}
	}
}

// connection is one attempt at a target.
type connection struct {
	who    *chooser
	target Target
	alone  bool // all others failed lately
}

var (
	errNobody    = errors.New("no control node is known")
	errOutranked = errors.New("a target of lower rank may be watched again")
)

// errIdle is the cause of a connection's end by liveness.
var errIdle = errors.New("nothing arrived in time")

// watchOnce follows one connection to its end. There was progress if it lived
// for a while, or brought a change of state and did not end because the sink
// refused one.
func watchOnce(ctx context.Context, cfg *WatchConfig, c *connection) (progress bool, err error) {
	start := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer func() {
		switch cause := context.Cause(ctx); {
		case err == nil || cause == nil || errors.Is(cause, context.Canceled):
		case errors.Is(cause, errIdle):
			err = errIdle
		default:
			progress, err = time.Since(start) > cfg.Liveness, cause
		}
	}()
	if cfg.Begun != nil {
		cfg.Begun(cancel)
	}
	from := cfg.From()
	body, err := Marshal(WatchRequest{Cluster: cfg.Cluster, From: from, Homed: cfg.Homed, Verdicts: cfg.Verdicts})
	if err != nil {
		return false, err
	}
	alive := time.AfterFunc(cfg.Liveness, func() { cancel(errIdle) })
	defer alive.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.target.Addr+PathWatch, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	if cfg.Standing {
		req.Header.Set(HeaderStanding, "1")
	}
	if cfg.Members != nil {
		req.Header.Set(HeaderMembers, "1")
	}
	resp, err := cfg.HTTP.Do(req)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := answeredBy(resp, cfg.Region); err != nil {
		return false, err
	}
	begun := time.Now()
	lag := lagJudge{from: from, homed: cfg.Homed, patience: cfg.Patience, age: ageOf(resp)}
	if lag.age > cfg.Patience && !c.alone {
		return false, errAdrift
	}
	settled := begun.Add(cfg.Return + rand.N(cfg.Return)) //nolint:gosec // spreads returns, guards nothing
	for r := NewReader(&liveReader{resp.Body, alive, cfg.Liveness}); ; {
		f, err := r.Next()
		if err != nil {
			return progress, err
		}
		switch now := time.Now(); {
		case f.Type == FrameMembers:
			if cfg.Members != nil {
				cfg.Members(f.Record)
			}
			continue
		case f.Type != FrameHeartbeat:
		case now.After(settled) && c.who.outranked(c.target, cfg.Targets(), now):
			return true, errOutranked
		default:
			if err := lag.heard(f, now); err != nil {
				return progress, err
			}
		}
		if err := cfg.Sink(f); err != nil {
			return time.Since(begun) > cfg.Liveness, err
		}
		progress = progress || f.Type == FrameEntry || f.Type == FrameEnd || time.Since(begun) > cfg.Liveness
	}
}

// liveReader arms the timer while a read waits, and only then: a slow sink is
// no sign of a dead server.
type liveReader struct {
	r     io.Reader
	timer *time.Timer
	limit time.Duration
}

func (l *liveReader) Read(b []byte) (int, error) {
	l.timer.Reset(l.limit)
	n, err := l.r.Read(b)
	l.timer.Stop()
	return n, err
}

// ageOf is how old the answering node says its copy is; 0 if it does not.
func ageOf(resp *http.Response) time.Duration {
	ms, err := strconv.ParseInt(resp.Header.Get(HeaderAge), 10, 64)
	if err != nil || ms < 0 {
		return 0
	}
	return time.Duration(min(ms, int64(24*time.Hour/time.Millisecond))) * time.Millisecond
}

// lagJudge finds servers that are not worth watching: they answer, but are
// behind what the watcher holds already, or have a copy that is old, as they
// say themselves. Two clocks are never compared, only how far each has gone.
type lagJudge struct {
	from     controlplane.Position
	homed    bool
	patience time.Duration
	age      time.Duration // of the server's copy, at the first heartbeat
	begun    time.Time     // then
	at0      int64         // and the server's contact
	good     time.Time     // when the server last looked well
	at       int64         // its latest contact
}

var (
	errBehind = errors.New("the server stays behind what this node holds already")
	errAdrift = errors.New("the server's copy is old: it has lost its leader, or does not keep up")
)

func (l *lagJudge) heard(f *Frame, now time.Time) error {
	behind := false
	for shard, point := range l.from {
		// A region's importer holds shards of every home; this server offers its own.
		if at, offered := f.Position[shard]; (offered || !l.homed) && at.Compare(point) < 0 {
			behind = true
		}
	}
	if l.begun.IsZero() {
		l.begun, l.at0 = now, f.At
	}
	old := (l.age + now.Sub(l.begun)).Milliseconds() - (f.At - l.at0)
	adrift := f.At <= l.at || old > l.patience.Milliseconds()
	l.at = max(l.at, f.At)
	switch {
	case l.good.IsZero() || !behind && !adrift:
		l.good = now
	case now.Sub(l.good) < l.patience:
	case behind:
		return errBehind
	default:
		return errAdrift
	}
	return nil
}

// retryAfter is what a refusal asks for, spread out, in [0, limit].
func retryAfter(err error, limit time.Duration) time.Duration {
	var no *StatusError
	if !errors.As(err, &no) {
		return 0
	}
	seconds, err := strconv.Atoi(no.RetryAfter)
	if err != nil || seconds <= 0 || seconds > 3600 {
		return 0
	}
	d := time.Duration(seconds) * time.Second
	return min(d/2+rand.N(d), limit) //nolint:gosec // spreads retries, guards nothing
}
