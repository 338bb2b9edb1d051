package h1

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/internal/testkit/logkit"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait")) // sleeps, whatever happens
}

// identity is a certificate for 127.0.0.1, and who trusts it.
var identity = sync.OnceValues(func() (tls.Certificate, *x509.CertPool) {
	ts := httptest.NewTLSServer(nil)
	defer ts.Close()
	roots := x509.NewCertPool()
	roots.AddCert(ts.Certificate())
	return ts.TLS.Certificates[0], roots
})

// stand is a server, by this package or net/http's own.
type stand struct {
	addr   string
	hs     *http.Server
	server *Server // nil = net/http's
	log    *logkit.Buffer
}

// start runs a server until the test ends.
func start(t testing.TB, ours bool, h http.Handler, change func(*http.Server)) *stand {
	t.Helper()
	cert, _ := identity()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	st := &stand{addr: l.Addr().String(), log: new(logkit.Buffer)}
	st.hs = &http.Server{
		Handler: h, ErrorLog: log.New(st.log, "", 0), MaxHeaderBytes: 8 << 10, DisableGeneralOptionsHandler: true,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS13},
	}
	if change != nil {
		change(st.hs)
	}
	serve := func() error { return st.hs.ServeTLS(l, "", "") }
	shut := st.hs.Close
	if ours {
		st.server = New(st.hs, 10*time.Second)
		serve, shut = func() error { return st.server.ServeTLS(l) }, st.server.Close
	}
	ended := make(chan error, 1)
	go func() { ended <- serve() }()
	t.Cleanup(func() {
		if err := shut(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		if ours {
			st.server.running.Wait()
		}
	})
	return st
}

// client is net/http's.
func (st *stand) client(t testing.TB, protocols ...string) *http.Client {
	t.Helper()
	_, roots := identity()
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 100, DisableCompression: true}
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetHTTP1(len(protocols) == 0)
	tr.Protocols.SetHTTP2(len(protocols) > 0)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// dial opens a connection that is spoken on by hand.
func (st *stand) dial(t testing.TB) *tls.Conn {
	t.Helper()
	_, roots := identity()
	d := tls.Dialer{Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	nc, err := d.DialContext(ctx, "tcp", st.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return nc.(*tls.Conn)
}

// stage answers as its path says.
func stage(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/hello":
		_, _ = io.WriteString(w, "hello")
	case "/echo":
		b, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, "unreadable", http.StatusBadRequest)
			return
		}
		_, _ = w.Write(b)
	case "/seen": // the request, as handlers see it
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s %s %d.%d %d %q %q %v close=%t tls=%t", r.Method, r.URL, r.RequestURI, r.Host, r.Proto, r.ProtoMajor, r.ProtoMinor,
			r.ContentLength, r.TransferEncoding, b, err != nil, r.Close, r.TLS != nil)
		for _, name := range slices.Sorted(maps.Keys(r.Header)) {
			fmt.Fprintf(w, " %s=%q", name, r.Header[name])
		}
	case "/early":
		w.WriteHeader(http.StatusForbidden)
	case "/earlyclose":
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusForbidden)
	case "/deadline": // nothing more of the body is wanted
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
		w.WriteHeader(http.StatusForbidden)
	case "/shut":
		_ = r.Body.Close()
		if _, err := r.Body.Read(make([]byte, 1)); err == nil {
			panic("a closed body was read")
		}
		_, _ = io.WriteString(w, "shut")
	case "/bytes":
		n, _ := strconv.Atoi(r.URL.RawQuery)
		_, _ = w.Write(bytes.Repeat([]byte{'x'}, n))
	case "/pieces": // of a size each, the second one sent off
		n, _ := strconv.Atoi(r.URL.RawQuery)
		for i := range 4 {
			_, _ = w.Write(bytes.Repeat([]byte{'a' + byte(i)}, n))
			if i == 1 {
				_ = http.NewResponseController(w).Flush()
			}
		}
	case "/whole": // of a declared size
		n, _ := strconv.Atoi(r.URL.RawQuery)
		w.Header().Set("Content-Length", r.URL.RawQuery)
		w.Header().Set("Content-Type", "text/x")
		_, _ = w.Write(bytes.Repeat([]byte{'x'}, n/2))
		_, _ = w.Write(bytes.Repeat([]byte{'y'}, n-n/2))
	case "/stream":
		for range 3 {
			_, _ = io.WriteString(w, "event\n")
			_ = http.NewResponseController(w).Flush()
		}
	case "/headfirst":
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, "later")
	case "/panic":
		panic("a bug")
	case "/abort":
		panic(http.ErrAbortHandler)
	case "/torn":
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "/close":
		w.Header().Set("Connection", "close")
		_, _ = io.WriteString(w, "last")
	case "/length":
		w.Header().Set("Content-Length", "5")
		_, _ = io.WriteString(w, "hello")
	case "/short":
		w.Header().Set("Content-Length", "5")
		_, _ = io.WriteString(w, "hell")
	case "/long":
		w.Header().Set("Content-Length", "5")
		_, err := io.WriteString(w, "hello, world")
		if errors.Is(err, http.ErrContentLength) {
			_, _ = io.WriteString(w, "hello")
		}
	case "/oddlength":
		w.Header().Set("Content-Length", "five")
		_, _ = io.WriteString(w, "hello")
	case "/204", "/304", "/299", "/404":
		status, _ := strconv.Atoi(r.URL.Path[1:])
		w.WriteHeader(status)
	case "/204body":
		w.WriteHeader(http.StatusNoContent)
		if _, err := io.WriteString(w, "x"); errors.Is(err, http.ErrBodyNotAllowed) {
			return
		}
		panic("a body was taken")
	case "/103":
		w.Header().Set("Link", "</x>")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "hello")
	case "/103length":
		w.Header().Set("Content-Length", "5")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "hello")
	case "/headecho": // the head goes out before the body is read
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(w, r.Body)
	case "/twice":
		w.WriteHeader(http.StatusAccepted)
		w.WriteHeader(http.StatusOK)
		w.Header().Set("X-Late", "1")
	case "/odd":
		w.Header()["X-Bad Name"] = []string{"1"}
		w.Header()["X-Bad-Value"] = []string{"a\x00b", "good"}
		w.Header()["x-lower"] = []string{"1"}
		_, _ = io.WriteString(w, "hello")
	case "/typed":
		w.Header().Set("Content-Type", "text/x")
		w.Header().Set("Date", "now")
		_, _ = io.WriteString(w, "<html>")
	case "/html":
		_, _ = io.WriteString(w, "<html>")
	case "/wait":
		<-r.Context().Done()
	case "/nothing":
	default:
		http.Error(w, "nothing there", http.StatusNotFound)
	}
}
