// Package storm is the hostile side of the bench, in a process of its own: what
// it does must not wait for what is measured, nor the other way round. It offers
// at its rate whatever the answers are, and tells what became of each offer.
package storm

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Kinds of attack.
const (
	WrongKeys   = "wrong-keys"   // secrets that are wrong, but well formed, for one id, over HTTP/2
	SlowWriters = "slow-writers" // connections that send a byte a second
	SlowReaders = "slow-readers" // streams that are read a byte a second
	HeadBombs   = "head-bombs"   // heads of 1 MiB, each on a connection of its own
)

// Plan says what to do.
type Plan struct {
	Kind    string    `json:"kind"`
	Path    string    `json:"path"`    // of requests
	Target  string    `json:"target"`  // host:port; empty = a sink of its own that reads and answers nothing
	Rate    int       `json:"rate"`    // offers a second, of what has a rate
	Conns   int       `json:"conns"`   // at once
	Sources int       `json:"sources"` // addresses to come from, 127.0.1.1 and those after it
	From    string    `json:"from"`    // the one address, if Sources is 0
	Key     string    `json:"key"`     // of a good caller: whose id is guessed at, and who reads slowly
	Body    string    `json:"body"`    // of a good request
	Roots   []string  `json:"roots"`   // files of certificates that targets may show
	Pair    [2]string `json:"pair"`    // certificate and key of the sink, files
	Behind  bool      `json:"behind"`  // everybody else has the processor first
}

// Tally is what became of the offers, by name.
type Tally map[string]int

func (t Tally) String() string {
	var parts []string
	for what, n := range t {
		parts = append(parts, fmt.Sprintf("%s: %d", what, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// Add adds another tally.
func (t Tally) Add(more Tally) {
	for what, n := range more {
		t[what] += n
	}
}

// Storm is an attack under way.
type Storm struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

// Start runs exe, which must call Serve, and returns when the attack has begun.
// It takes one processor at most.
func Start(ctx context.Context, plan Plan, exe string, args ...string) (_ *Storm, err error) {
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &Storm{cmd, in, bufio.NewReader(out)}
	err = json.NewEncoder(in).Encode(plan)
	if err == nil {
		_, err = s.out.ReadString('\n')
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the attacker did not begin: %w", err), in.Close(), cmd.Wait())
	}
	return s, nil
}

// Stop ends the attack and gives what became of it, and the processor time it took.
func (s *Storm) Stop() (Tally, time.Duration, error) {
	_ = s.in.Close() // that is how it is told
	var t Tally
	err := json.NewDecoder(s.out).Decode(&t)
	err = errors.Join(err, s.cmd.Wait())
	if err != nil {
		return nil, 0, fmt.Errorf("the attacker: %w", err)
	}
	return t, s.cmd.ProcessState.UserTime() + s.cmd.ProcessState.SystemTime(), nil
}

// Serve is the attacker's process: it reads a plan, says when it has begun,
// attacks until in ends, and writes its tally.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return err
	}
	a := &attacker{tally: Tally{}}
	if err := json.Unmarshal(line, &a.Plan); err != nil {
		return err
	}
	a.roots = x509.NewCertPool()
	for _, file := range a.Roots {
		pem, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		a.roots.AppendCertsFromPEM(pem)
	}
	attack, ok := map[string]func(context.Context){WrongKeys: a.wrongKeys, SlowWriters: a.slowWriters, SlowReaders: a.slowReaders, HeadBombs: a.headBombs}[a.Kind]
	if !ok {
		return fmt.Errorf("there is no attack %q", a.Kind)
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) // best effort: failures to connect are counted
	}
	if a.Behind {
		if err := yield(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if a.Target == "" {
		if err := a.openSink(ctx); err != nil {
			return err
		}
	}
	a.begun = func() { _, _ = io.WriteString(out, "begun\n") }
	go func() {
		_, _ = io.Copy(io.Discard, lines) // any end means the same
		cancel()
	}()
	attack(ctx)
	return json.NewEncoder(out).Encode(a.tally)
}

// yield puts all threads of this process, and those to come, behind those of others.
func yield() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err == nil {
			err = syscall.Setpriority(syscall.PRIO_PROCESS, tid, 19)
		}
		if err != nil {
			return fmt.Errorf("thread %s: %w", t.Name(), err)
		}
	}
	return nil
}

// attacker is one plan under way.
type attacker struct {
	Plan
	roots *x509.CertPool
	sink  bool   // nothing is answered
	begun func() // to be called once

	mu    sync.Mutex
	tally Tally
	from  int // sources used so far, in turn
}

func (a *attacker) saw(what string, n int) {
	if n != 0 {
		a.mu.Lock()
		a.tally[what] += n
		a.mu.Unlock()
	}
}

// source is where the next connection comes from.
func (a *attacker) source() net.IP {
	if a.Sources == 0 {
		return net.ParseIP(a.From)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	i := a.from%a.Sources + 1
	a.from++
	return net.IPv4(127, 0, byte(1+i/250), byte(1+i%250))
}

// dial opens a TLS connection.
func (a *attacker) dial(ctx context.Context, from net.IP, protocols ...string) (*tls.Conn, error) {
	d := tls.Dialer{
		NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: 5 * time.Second},
		Config:    &tls.Config{RootCAs: a.roots, MinVersion: tls.VersionTLS13, NextProtos: protocols},
	}
	conn, err := d.DialContext(ctx, "tcp", a.Target)
	if err != nil {
		return nil, err
	}
	t, ok := conn.(*tls.Conn)
	if !ok {
		return nil, errors.New("not TLS")
	}
	return t, nil
}

// openSink makes a target that takes everything and answers nothing: what the
// attacker's own work costs the machine.
func (a *attacker) openSink(ctx context.Context) error {
	pair, err := tls.LoadX509KeyPair(a.Pair[0], a.Pair[1])
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	a.Target, a.sink = l.Addr().String(), true
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				_, _ = io.Copy(io.Discard, tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}))
			}()
		}
	}()
	return nil
}

// paced calls offer with how many are due, at the plan's rate, until ctx ends.
func (a *attacker) paced(ctx context.Context, every time.Duration, offer func(n int)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	offered := 0
	for began := time.Now(); ctx.Err() == nil; <-tick.C {
		if due := int(time.Since(began).Seconds()*float64(a.Rate)) - offered; due > 0 {
			offered += due
			offer(due)
			runtime.Gosched()
		}
	}
	a.saw("offered", offered)
}

// many runs f on Conns connections at once, each dialled again when it ends.
func (a *attacker) many(ctx context.Context, f func(ctx context.Context, conn net.Conn) string) {
	var all sync.WaitGroup
	for range a.Conns {
		all.Go(func() {
			for ctx.Err() == nil {
				conn, err := a.dial(ctx, a.source())
				if err != nil {
					if ctx.Err() == nil {
						a.saw("not connected", 1)
						time.Sleep(100 * time.Millisecond)
					}
					continue
				}
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				what := f(ctx, conn)
				stop()
				_ = conn.Close() // over
				if ctx.Err() == nil {
					a.saw(what, 1)
				}
			}
		})
	}
	time.Sleep(500 * time.Millisecond) // most are connected
	a.begun()
	all.Wait()
}

// second waits for one, or for the end.
func second(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
}

func (a *attacker) slowWriters(ctx context.Context) {
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: " + strings.Repeat("a", 100)
	a.many(ctx, func(ctx context.Context, conn net.Conn) string {
		for i := range len(head) {
			if _, err := conn.Write([]byte(head[i : i+1])); err != nil {
				return "cut off"
			}
			second(ctx)
		}
		return "let to finish"
	})
}

func (a *attacker) slowReaders(ctx context.Context) {
	a.many(ctx, func(ctx context.Context, conn net.Conn) string {
		_, err := fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", a.Key, len(a.Body), a.Body)
		if err != nil {
			return "cut off"
		}
		one := make([]byte, 1)
		for ctx.Err() == nil {
			if _, err := conn.Read(one); err != nil {
				return "cut off"
			}
			second(ctx)
		}
		return "over"
	})
}

func (a *attacker) headBombs(ctx context.Context) {
	bomb := []byte("GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Bomb: " + strings.Repeat("b", 1<<20) + "\r\n\r\n")
	var all sync.WaitGroup
	a.begun()
	a.paced(ctx, 5*time.Millisecond, func(n int) {
		for range n {
			all.Go(func() {
				conn, err := a.dial(ctx, a.source())
				if err != nil {
					a.saw("not connected", 1)
					return
				}
				defer conn.Close()
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				defer stop()
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				all.Go(func() { _, _ = conn.Write(bomb) }) // the server stops reading
				answer := make([]byte, 64)
				n, _ := io.ReadAtLeast(conn, answer, 12) // what came is counted
				if line, _, ok := strings.Cut(string(answer[:n]), "\r\n"); ok {
					a.saw(line, 1)
				} else {
					a.saw("no answer", 1)
				}
			})
		}
	})
	all.Wait()
}
