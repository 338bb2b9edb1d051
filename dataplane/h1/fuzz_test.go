package h1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"testing"
	"time"
)

// script is a connection on which a client has said something, and then no more.
type script struct {
	in  bytes.Reader
	cut int // bytes that come at once; 0 = all
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error) {
	if s.cut > 0 && len(p) > s.cut {
		p = p[:s.cut]
	}
	return s.in.Read(p)
}
func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// asked is a request as its handler sees it.
type asked struct {
	Method, Target, Host, Proto, Path, Query string
	Header                                   http.Header
	Length                                   int64
	Body                                     []byte
	Whole                                    bool
}

func see(r *http.Request) asked {
	b, err := io.ReadAll(r.Body)
	return asked{r.Method, r.RequestURI, r.Host, r.Proto, r.URL.Path, r.URL.RawQuery, r.Header, r.ContentLength, b, err == nil}
}

// ours is what this package takes for requests, and what it answers.
func ours(sent []byte, cut int) (all []asked, said []byte) {
	s := &Server{hs: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all = append(all, see(r))
		_, _ = io.WriteString(w, "ok")
	})}, limits: limits{head: 8 << 10, stall: time.Minute}}
	nc := &script{cut: cut}
	nc.in.Reset(sent)
	c := newConn(s, nc)
	c.nc = nc
	c.serve(context.Background())
	return all, nc.out.Bytes()
}

// theirs is what net/http takes the next one for.
func theirs(in *bufio.Reader, posted bool) (asked, error) {
	if posted { // as its server does, for old clients
		peek, _ := in.Peek(4)
		n := 0
		for n < len(peek) && (peek[n] == '\r' || peek[n] == '\n') {
			n++
		}
		_, _ = in.Discard(n)
	}
	r, err := http.ReadRequest(in)
	if err != nil {
		return asked{}, err
	}
	a := see(r)
	a.Header.Del("Host")
	a.Header.Del("Trailer")
	if a.Header.Get("Pragma") == "no-cache" && a.Header.Get("Cache-Control") == "no-cache" {
		a.Header.Del("Cache-Control") // which may be made up
	}
	return a, nil
}

// FuzzRequests: whatever is taken for requests here is the same to net/http, and
// how the bytes are cut changes nothing.
func FuzzRequests(f *testing.F) {
	for _, b := range behaviours {
		f.Add([]byte(b.sent), uint16(0))
		f.Add([]byte(b.sent+probe), uint16(1))
	}
	f.Fuzz(func(t *testing.T, sent []byte, cut uint16) {
		all, said := ours(sent, 0)
		again, saidAgain := ours(sent, 1+int(cut%2000))
		if !reflect.DeepEqual(all, again) {
			t.Fatalf("in pieces of %d: %+v\nat once: %+v", 1+cut%2000, again, all)
		}
		if err := answers(said, all); err != nil {
			t.Fatalf("%v: %q", err, said)
		}
		if err := answers(saidAgain, again); err != nil {
			t.Fatalf("in pieces: %v: %q", err, saidAgain)
		}
		in := bufio.NewReader(bytes.NewReader(sent))
		for i, a := range all {
			want, err := theirs(in, i > 0 && all[i-1].Method == http.MethodPost)
			if err != nil {
				t.Fatalf("request %d is none: %v\nours %+v", i, err, a)
			}
			a.Header.Del("Trailer")
			if a.Header.Get("Pragma") == "no-cache" && a.Header.Get("Cache-Control") == "no-cache" {
				a.Header.Del("Cache-Control")
			}
			if !want.Whole || !a.Whole { // who finds a body's mistake first has less of it
				if a.Whole {
					t.Fatalf("the body of request %d is malformed to net/http, and %q here", i, a.Body)
				}
				return
			}
			if !reflect.DeepEqual(a, want) {
				t.Fatalf("request %d:\nours     %+v\nnet/http %+v", i, a, want)
			}
		}
	})
}

// answers reports whether what was said is an answer for each request, one more
// at most, and nothing else.
func answers(said []byte, all []asked) error {
	in := bufio.NewReader(bytes.NewReader(said))
	for n := 0; ; {
		method := ""
		if n < len(all) {
			method = all[n].Method
		}
		if _, err := in.Peek(1); errors.Is(err, io.EOF) {
			if n < len(all) {
				return fmt.Errorf("%d answers to %d requests", n, len(all))
			}
			return nil
		}
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return err
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			return err
		}
		if resp.StatusCode == http.StatusContinue {
			continue
		}
		if n++; n > len(all)+1 || n > len(all) && resp.StatusCode < 400 {
			return fmt.Errorf("%d answers to %d requests", n, len(all))
		}
	}
}
