package h1_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestClosed: nobody reads another's answer through what he once had.
func TestClosed(t *testing.T) {
	s := serve(t, false, saying(good))
	p := s.pool(t)
	r, err := p.Do(t.Context(), request(t), within(patient))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); string(b) != "hello" || err != nil {
		t.Fatal(b, err)
	}
	_, _ = r.Close(), r.Close()
	next, err := p.Do(t.Context(), request(t), within(patient))
	if err != nil {
		t.Fatal(err)
	}
	r.Deadline(time.Now())
	if n, err := r.Read(make([]byte, 10)); n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Error(n, err)
	}
	_ = r.Close()
	if b, err := io.ReadAll(next); string(b) != "hello" || err != nil {
		t.Error(b, err)
	}
	_ = next.Close()
	if s.conns.Load() != 1 {
		t.Error("not the same connection")
	}
}

// TestNoMixUp: many at once, over connections that are cut, reset, left and
// answered in every form, and each gets its own answer or none.
func TestNoMixUp(t *testing.T) {
	for _, secure := range []bool{false, true} {
		s := serve(t, secure, func(c *talk) {
			random := rand.New(rand.NewPCG(uint64(c.n), 7))
			for {
				q, err := http.ReadRequest(c.br)
				if err != nil {
					return
				}
				id, _ := io.ReadAll(q.Body)
				text := strings.Repeat(string(id)+" ", 1+random.IntN(2000))
				switch random.IntN(8) {
				case 0:
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text[:random.IntN(len(text))])
					return
				case 1:
					c.reset()
					return
				case 2:
					// In one write: what comes unasked only after the next request was sent
					// cannot be told from its answer, by any client.
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong", len(text), text)
				case 3, 4, 5:
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
					for rest := text; len(rest) > 0; {
						n := 1 + random.IntN(len(rest))
						fmt.Fprintf(c, "%x\r\n%s\r\n", n, rest[:n])
						rest = rest[n:]
					}
					c.say("0\r\n\r\n")
				default:
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
				}
			}
		})
		p := s.pool(t)
		var group errgroup.Group
		var whole atomic.Int64
		for worker := range 16 {
			group.Go(func() error {
				random := rand.New(rand.NewPCG(uint64(worker), 9))
				for i := range 100 {
					ctx, leave := context.WithCancel(t.Context())
					if random.IntN(10) == 0 {
						time.AfterFunc(time.Duration(random.IntN(1000))*time.Microsecond, leave)
					}
					id := fmt.Sprintf("%d-%d", worker, i)
					v, err := askH1(ctx, p, request(t, []byte(id)), patient)
					leave()
					if strings.Trim(strings.ReplaceAll(v.Body, id+" ", ""), " ") != "" && !strings.HasPrefix(id+" ", strings.ReplaceAll(v.Body, id+" ", "")) {
						return fmt.Errorf("%s got %q", id, v.Body[:min(len(v.Body), 100)])
					}
					if err == nil {
						whole.Add(1)
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
		if whole.Load() < 800 {
			t.Errorf("tls=%t: only %d of 1600 answers were whole", secure, whole.Load())
		}
	}
}

// TestWhatCameTogether: chunks that are there, each in a TLS record of its own,
// are one read; one that is there alone waits for no other.
func TestWhatCameTogether(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, together := range []bool{false, true} {
			read, written := make(chan bool), make(chan bool)
			s := serve(t, secure, func(c *talk) {
				c.request()
				c.say(ok + chunked)
				for range 100 {
					c.say("5\r\nhello\r\n")
					if !together {
						<-read
					}
				}
				c.say("0\r\n\r\n")
				close(written)
				c.wait()
			})
			r, err := s.pool(t).Do(t.Context(), request(t), within(patient))
			if err != nil {
				t.Fatal(err)
			}
			if together {
				<-written
			}
			buf := make([]byte, 8192)
			reads, all := 0, 0
			for {
				n, err := r.Read(buf)
				if all += n; err != nil {
					if !errors.Is(err, io.EOF) {
						t.Error(err)
					}
					break
				}
				if reads++; !together {
					read <- true
				}
			}
			_ = r.Close()
			if all != 500 || together && reads > 3 || !together && reads != 100 {
				t.Errorf("tls=%t, together=%t: %d bytes in %d reads", secure, together, all, reads)
			}
		}
	}
}
