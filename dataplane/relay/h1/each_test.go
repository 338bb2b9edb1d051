package h1_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/dataplane/relay/h1"
)

// moody answers each request with its own token, in one of many ways, good and
// bad, and counts how often it has read each request whole.
type moody struct {
	mu   sync.Mutex
	seen map[string]int
}

func (m *moody) play(c *talk) {
	random := rand.New(rand.NewPCG(uint64(c.n), 11))
	for {
		q, err := http.ReadRequest(c.br)
		if err != nil {
			return
		}
		token := q.Header.Get("Token")
		text := strings.Repeat(token+" ", 1+random.IntN(600))
		early := func(status string) {
			fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s", status, len(text), text)
		}
		large := q.ContentLength > 64<<10
		if large {
			switch random.IntN(4) {
			case 0: // refused before it was read, and not read
				early("413 Too Large")
				c.reset()
				return
			case 1: // answered before it was read, and then read
				early("200 OK")
				if _, err := io.Copy(io.Discard, q.Body); err != nil {
					return
				}
				continue
			case 2: // refused before it was read; the connection stays
				early("429 Too Many")
				_, _ = io.Copy(io.Discard, q.Body)
				continue
			}
		}
		b, err := io.ReadAll(q.Body)
		if err != nil || int64(len(b)) != q.ContentLength {
			return
		}
		m.mu.Lock()
		m.seen[token]++
		m.mu.Unlock()
		chunked := func(extra, end string) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n%s\r\n", extra)
			for rest := text; len(rest) > 0; {
				n := 1 + random.IntN(len(rest))
				fmt.Fprintf(c, "%x\r\n%s\r\n", n, rest[:n])
				rest = rest[n:]
				if random.IntN(4) == 0 {
					time.Sleep(time.Duration(random.IntN(300)) * time.Microsecond)
				}
			}
			c.say(end)
		}
		whole := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		switch random.IntN(24) {
		case 0: // cut within the body
			c.say(whole[:len(whole)-1-random.IntN(len(text))])
			return
		case 1: // cut within the head
			c.say(whole[:random.IntN(20)])
			return
		case 2:
			c.reset()
			return
		case 3: // another answer that nobody asked for
			c.say(whole + "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
		case 4:
			c.say(strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 1+random.IntN(10)) + whole)
		case 5:
			chunked("Trailer: X\r\n", "0\r\nX: "+token+"\r\n\r\n")
		case 6: // within a chunk
			c.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n" + token)
			return
		case 7:
			chunked("Connection: close\r\n", "0\r\n\r\n")
			return
		case 8: // says so and does not close
			chunked("Connection: keep-alive, Close\r\n", "0\r\n\r\n")
			c.wait()
			return
		case 9: // answered, and closed at once
			c.say(whole)
			return
		case 10: // its end will tell, and then its sending side ends
			c.say("HTTP/1.1 200 OK\r\n\r\n" + text)
			c.halfClose()
			c.wait()
			return
		case 11: // both framings
			c.say("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbad\r\n0\r\n\r\n")
		case 12: // later than most clients wait
			time.Sleep(time.Duration(random.IntN(3000)) * time.Microsecond)
			c.say(whole)
		case 13: // answered, then its sending side ends, though more may be sent to it
			c.say(whole)
			c.halfClose()
			c.wait()
			return
		case 14, 15, 16, 17:
			chunked("", "0\r\n\r\n")
		default:
			c.say(whole)
		}
	}
}

// halfClose ends what the server sends, and goes on reading.
func (c *talk) halfClose() {
	if t, ok := c.Conn.(*tls.Conn); ok {
		_ = t.CloseWrite()
		return
	}
	_ = c.tcp.CloseWrite()
}

// TestEachGetsItsOwn: 20,000 requests with one token each, at servers of every
// mood, given up at random moments: whatever a client reads is its own answer,
// and no call has a server read a request twice.
func TestEachGetsItsOwn(t *testing.T) {
	const workers, each = 20, 500
	for _, secure := range []bool{false, true} {
		m := &moody{seen: make(map[string]int)}
		s := serve(t, secure, m.play)
		p := s.pool(t)
		padding := make([]byte, 300<<10)
		var group errgroup.Group
		var whole, cut, late atomic.Int64
		for worker := range workers {
			group.Go(func() error {
				random := rand.New(rand.NewPCG(uint64(worker), 13))
				buf := make([]byte, 8192)
				one := func(token string) error {
					req := request(t, []byte(token))
					req.Fields = append(req.Fields, h1.Field{Name: "Token", Value: token})
					if random.IntN(20) == 0 {
						req.Body = append(req.Body, padding[:random.IntN(len(padding))])
					}
					ctx, leave := context.WithCancel(t.Context())
					defer leave()
					if random.IntN(8) == 0 {
						time.AfterFunc(time.Duration(random.IntN(1500))*time.Microsecond, leave)
					}
					limit := patient
					if random.IntN(10) == 0 {
						limit = time.Duration(random.IntN(1500)) * time.Microsecond
					}
					resp, err := p.Do(ctx, req, within(limit))
					if err != nil {
						late.Add(1)
						return nil //nolint:nilerr // no answer is not a wrong one
					}
					most := -1 // how many bytes it reads before it loses interest
					if random.IntN(10) == 0 {
						most = random.IntN(4096)
					}
					at := 0
					want := token + " "
					for most < 0 || at < most {
						n, err := resp.Read(buf[:1+random.IntN(len(buf))])
						for _, c := range buf[:n] {
							if c != want[at%len(want)] {
								return fmt.Errorf("%s was given %q", token, buf[max(0, n-100):n])
							}
							at++
						}
						if err == nil {
							continue
						}
						if errors.Is(err, io.EOF) {
							whole.Add(1)
						} else {
							cut.Add(1)
						}
						break
					}
					if random.IntN(2) == 0 {
						go leave() // at the same time as Close
					}
					_ = resp.Close()
					return nil
				}
				for i := range each {
					if err := one(fmt.Sprintf("%d.%d", worker, i)); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			t.Errorf("tls=%t: %v", secure, err)
		}
		m.mu.Lock()
		for token, n := range m.seen {
			if n > 1 {
				t.Errorf("tls=%t: request %s was read %d times for one call", secure, token, n)
			}
		}
		t.Logf("tls=%t: %d whole, %d cut, %d without an answer; %d connections, %d requests read", secure, whole.Load(), cut.Load(), late.Load(), s.conns.Load(), len(m.seen))
		m.mu.Unlock()
		if whole.Load() < workers*each/2 {
			t.Errorf("tls=%t: only %d of %d answers were whole", secure, whole.Load(), workers*each)
		}
	}
}

// TestAnswerBeforeTheRequestIsTheLast: a server that answers before it has the
// request may take the rest of it for the next one, and a body may look like a
// request. Whoever comes next must not get the answer to that.
func TestAnswerBeforeTheRequestIsTheLast(t *testing.T) {
	// More than the system buffers, in few requests: the server parses each.
	smuggled := bytes.Repeat([]byte("GET / HTTP/1.1\r\nHost: smuggled\r\nX: "+strings.Repeat("x", 3300)+"\r\n\r\n"), 5_000)
	for _, secure := range []bool{false, true} {
		s := serve(t, secure, func(c *talk) {
			if !c.headOnly() {
				return
			}
			c.say(good)
			if c.n > 1 {
				c.wait()
				return
			}
			time.Sleep(50 * time.Millisecond) // the request fills the buffers
			for {
				q, err := http.ReadRequest(c.br)
				if err != nil {
					return
				}
				if q.Host != "smuggled" { // another's, behind what was smuggled
					c.say(ok + "Content-Length: 5\r\n\r\nwrong")
				}
			}
		})
		p := s.pool(t)
		if v, err := askH1(t.Context(), p, request(t, smuggled), patient); v.Body != "hello" {
			t.Errorf("tls=%t: %+v, %v", secure, v, err)
		}
		if v, err := askH1(t.Context(), p, request(t), patient); v.Body != "hello" || s.conns.Load() != 2 {
			t.Errorf("tls=%t: the next one gets %+v, %v, over %d connections", secure, v, err, s.conns.Load())
		}
	}
}
