package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The bytes every contender moves: about 0.5 KB up, 1.2 KB down.
var (
	requestBody = []byte(`{"model":"bench","messages":[{"role":"user","content":"` + strings.Repeat("ring main feeds every consumer ", 14) + `"}]}`)
	answerBody  = []byte(`{"id":"chatcmpl-bench","object":"chat.completion","created":1767225600,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"` +
		strings.Repeat("a cut anywhere leaves everyone supplied ", 24) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":75,"completion_tokens":160,"total_tokens":235}}`)
	streamHead = []byte(`data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1767225600,"model":"bench","choices":[{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":null}]}` + "\n\n")
)

// provider answers at once; asked to stream, it sends one event and then waits
// for the client to leave: an idle stream.
func provider(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if strings.Contains(string(body), `"stream":true`) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = w.Write(streamHead) // a client that left is no concern of a provider
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(answerBody)))
	_, _ = w.Write(answerBody) // as above
}

type bufferPool struct{ sync.Pool }

func (p *bufferPool) Get() []byte {
	if b, ok := p.Pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 32<<10)
}
func (p *bufferPool) Put(b []byte) { p.Pool.Put(&b) }

// plainProxy is what ringmain is measured against: net/http's own reverse
// proxy with a buffer pool that reads the body first, and nothing else.
func plainProxy(upstream string, roots *x509.CertPool) (http.Handler, error) {
	target, err := url.Parse(upstream)
	if err != nil {
		return nil, err
	}
	rp := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		BufferPool:    &bufferPool{},
		FlushInterval: -1,
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
			MaxIdleConns:        4096,
			MaxIdleConnsPerHost: 4096,
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Without reading the body first an early answer can cut the upload.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 32<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		rp.ServeHTTP(w, r)
	}), nil
}

// usage is what a set of processes has used so far.
type usage struct {
	cpu time.Duration
	rss int64 // bytes
}

func usageOf(pids ...int) (usage, error) {
	var u usage
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return u, err
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if len(f) < 22 {
			return u, fmt.Errorf("/proc/%d/stat is too short", pid)
		}
		for _, i := range []int{11, 12} { // utime, stime
			ticks, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				return u, err
			}
			u.cpu += time.Duration(ticks) * time.Second / 100 // USER_HZ is 100 on Linux
		}
		pages, err := strconv.ParseInt(f[21], 10, 64)
		if err != nil {
			return u, err
		}
		u.rss += pages * int64(os.Getpagesize())
	}
	return u, nil
}

// window is what one contender did in one round.
type window struct {
	requests int
	errors   int
	wall     time.Duration
	cpu      time.Duration
	latency  []time.Duration
}

func (w window) cpuPerThousand() float64 { return w.cpu.Seconds() * 1000 / float64(w.requests) }

func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// contender is one thing under test.
type contender struct {
	name string
	url  string
	key  string
	pids []int // empty = not measured (the provider itself)
	http *http.Client
}

func newClient(roots *x509.CertPool, h2 bool) *http.Client {
	t := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, ClientSessionCache: tls.NewLRUClientSessionCache(64)},
		MaxIdleConns:        4096,
		MaxIdleConnsPerHost: 4096,
		DialContext:         (&net.Dialer{}).DialContext,
		Protocols:           new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetHTTP2(h2)
	return &http.Client{Transport: t}
}

func (c *contender) request(ctx context.Context, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.key)
	return c.http.Do(req)
}

func (c *contender) once(ctx context.Context) error {
	resp, err := c.request(ctx, string(requestBody))
	if err != nil {
		return err
	}
	got, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // read side
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || len(got) != len(answerBody) {
		return fmt.Errorf("status %d, %d bytes: %.200s", resp.StatusCode, len(got), got)
	}
	return nil
}

// load runs a closed loop of n callers for d.
func (c *contender) load(ctx context.Context, n int, d time.Duration) (window, error) {
	var (
		mu    sync.Mutex
		w     window
		first error
		all   sync.WaitGroup
	)
	before, err := usageOf(c.pids...)
	if err != nil {
		return w, err
	}
	began := time.Now()
	for range n {
		all.Go(func() {
			var mine []time.Duration
			var failed int
			var last error
			for time.Since(began) < d && ctx.Err() == nil {
				at := time.Now()
				if err := c.once(ctx); err != nil {
					failed++
					last = err
					continue
				}
				mine = append(mine, time.Since(at))
			}
			mu.Lock()
			defer mu.Unlock()
			w.latency = append(w.latency, mine...)
			w.errors += failed
			if first == nil {
				first = last
			}
		})
	}
	all.Wait()
	w.wall, w.requests = time.Since(began), len(w.latency)
	after, err := usageOf(c.pids...)
	if err != nil {
		return w, err
	}
	w.cpu = after.cpu - before.cpu
	slices.Sort(w.latency)
	if w.requests == 0 {
		return w, errors.Join(errors.New("no request was answered"), first)
	}
	if w.errors > 0 {
		return w, fmt.Errorf("%s: %d of %d requests failed: %w", c.name, w.errors, w.errors+w.requests, first)
	}
	return w, nil
}

// idle opens n streams, waits until each has its first event and the process
// has settled, and returns the growth of resident memory per stream.
func (c *contender) idle(ctx context.Context, n int) (perStream, total int64, err error) {
	before, err := usageOf(c.pids...)
	if err != nil {
		return 0, 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body := strings.Replace(string(requestBody), `{"model"`, `{"stream":true,"model"`, 1)
	slots := make(chan struct{}, 32)
	failed := make(chan error, n)
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			slots <- struct{}{}
			resp, err := c.request(ctx, body)
			if err == nil {
				_, err = io.ReadAtLeast(resp.Body, make([]byte, 64), 64)
			}
			<-slots
			failed <- err
			if err == nil {
				<-ctx.Done()
				_ = resp.Body.Close() // read side
			}
		})
	}
	for range n {
		if e := <-failed; e != nil {
			err = e
		}
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
		var after usage
		after, err = usageOf(c.pids...)
		perStream, total = (after.rss-before.rss)/int64(n), after.rss
	}
	cancel()
	all.Wait()
	return perStream, total, err
}
