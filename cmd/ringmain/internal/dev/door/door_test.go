package door

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"ringmain/internal/testkit/netkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers every line with its name until closed.
func echo(t *testing.T, name string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error {
		for {
			c, err := l.Accept()
			if err != nil {
				return nil
			}
			g.Go(func() error {
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintln(c, name)
				}
				return nil
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); _ = g.Wait() })
	return l
}

func askLine(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	fmt.Fprintln(c, "?")
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func TestBalancerTakesTheFirstReady(t *testing.T) {
	first, second := echo(t, "first"), echo(t, "second")
	a, b := &Backend{Addr: first.Addr().String()}, &Backend{Addr: second.Addr().String()}
	p := &Balancer{Addr: netkit.Address(), Backends: []*Backend{a, b}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	expect := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			got, err := askLine(p.Addr)
			if got == want && (want == "") == (err != nil) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("answered by %q (%v), want %q", got, err, want)
			}
		}
	}
	expect("") // nothing is ready: connections are refused
	b.ready.Store(true)
	expect("second")
	a.ready.Store(true)
	expect("first")
	_ = first.Close() // dead, and not noticed yet: the next in line is dialled
	expect("second")
	a.ready.Store(false)
	b.ready.Store(false)
	expect("")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A listener may be shut before the goroutine that accepts from it runs.
func TestBalancerEndsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if err := (&Balancer{Addr: "127.0.0.1:0", Always: true}).Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
