package rig

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
)

// RunProxy is the plain proxy's process: it prints its address and ends with its
// standard input or ctx.
func RunProxy(ctx context.Context, providers []string, dir string, h2 bool) error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return err
	}
	rootPEM, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(rootPEM)
	addr, err := ServeTLS(ctx, "127.0.0.1:0", pair, true, plainProxy(providers, roots, h2))
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, addr); err != nil {
		return err
	}
	// Standard input ends with the bench, however it ends.
	closed := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(closed)
	}()
	select {
	case <-closed:
	case <-ctx.Done():
	}
	return nil
}

type bufferPool struct{ sync.Pool }

func (p *bufferPool) Get() []byte {
	if b, ok := p.Pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 32<<10)
}
func (p *bufferPool) Put(b []byte) { p.Pool.Put(&b) }

// plainProxy is net/http's own reverse proxy with a buffer pool that reads the
// body first, and nothing else.
func plainProxy(providers []string, roots *x509.CertPool, h2 bool) http.Handler {
	var next atomic.Uint64
	rp := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "https", Host: providers[next.Add(1)%uint64(len(providers))]})
		},
		BufferPool:    &bufferPool{},
		FlushInterval: -1,
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
			MaxIdleConns:        4096,
			MaxIdleConnsPerHost: 4096,
			ForceAttemptHTTP2:   h2,
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == AllocPath {
			_, _ = fmt.Fprintf(w, "go_memstats_alloc_bytes_total %d\n", allocated())
			return
		}
		// Without reading the body first an early answer can cut the upload.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		rp.ServeHTTP(w, r)
	})
}
