package sock

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a connection as net gives it, and its other end.
func pair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close(); _ = in.Close() })
	return in.(*net.TCPConn), out.(*net.TCPConn)
}

// say describes an error by all that callers look at.
func say(n int, err error) []any {
	out := []any{n, reflect.TypeOf(err)}
	for _, is := range []error{io.EOF, net.ErrClosed, os.ErrDeadlineExceeded, syscall.ECONNRESET, syscall.EPIPE} {
		out = append(out, errors.Is(err, is))
	}
	var ne net.Error
	if errors.As(err, &ne) {
		out = append(out, ne.Timeout(), ne.Temporary()) //nolint:staticcheck // crypto/tls asks for it
	}
	var op *net.OpError
	if errors.As(err, &op) {
		out = append(out, op.Op, op.Net, op.Source != nil, op.Addr != nil)
	}
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		out = append(out, sys.Syscall)
	}
	return out
}

// Each case is played to a connection of net's and to a direct one: both must
// do the same, errors included.
func TestLikeNet(t *testing.T) {
	reset := func(t *testing.T, far *net.TCPConn) {
		t.Helper()
		if err := errors.Join(far.SetLinger(0), far.Close()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	cases := map[string]func(t *testing.T, c net.Conn, far *net.TCPConn) []any{
		"read": func(_ *testing.T, c net.Conn, far *net.TCPConn) []any {
			_, _ = far.Write([]byte("abc"))
			return say(c.Read(make([]byte, 2)))
		},
		"read waits": func(_ *testing.T, c net.Conn, far *net.TCPConn) []any {
			timer := time.AfterFunc(20*time.Millisecond, func() { _, _ = far.Write([]byte("abc")) })
			defer timer.Stop()
			return say(c.Read(make([]byte, 8)))
		},
		"read nothing": func(_ *testing.T, c net.Conn, _ *net.TCPConn) []any { return say(c.Read(nil)) },
		"end": func(_ *testing.T, c net.Conn, far *net.TCPConn) []any {
			_ = far.Close()
			return say(c.Read(make([]byte, 8)))
		},
		"read after a reset": func(t *testing.T, c net.Conn, far *net.TCPConn) []any {
			reset(t, far)
			return say(c.Read(make([]byte, 8)))
		},
		"write after a reset": func(t *testing.T, c net.Conn, far *net.TCPConn) []any {
			reset(t, far)
			first := say(c.Write([]byte("x")))
			return append(first, say(c.Write([]byte("x")))...)
		},
		"read after close": func(_ *testing.T, c net.Conn, _ *net.TCPConn) []any {
			_ = c.Close()
			return say(c.Read(make([]byte, 8)))
		},
		"write after close": func(_ *testing.T, c net.Conn, _ *net.TCPConn) []any {
			_ = c.Close()
			return say(c.Write([]byte("x")))
		},
		"closed while it reads": func(_ *testing.T, c net.Conn, _ *net.TCPConn) []any {
			timer := time.AfterFunc(20*time.Millisecond, func() { _ = c.Close() })
			defer timer.Stop()
			return say(c.Read(make([]byte, 8)))
		},
		"read deadline": func(_ *testing.T, c net.Conn, _ *net.TCPConn) []any {
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			return say(c.Read(make([]byte, 8)))
		},
		"a deadline in the past ends what waits": func(_ *testing.T, c net.Conn, _ *net.TCPConn) []any {
			timer := time.AfterFunc(20*time.Millisecond, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
			defer timer.Stop()
			return say(c.Read(make([]byte, 8)))
		},
		"again after a deadline": func(_ *testing.T, c net.Conn, far *net.TCPConn) []any {
			_ = c.SetReadDeadline(time.Unix(1, 0))
			first := say(c.Read(make([]byte, 8)))
			_ = c.SetReadDeadline(time.Time{})
			_, _ = far.Write([]byte("abc"))
			return append(first, say(c.Read(make([]byte, 8)))...)
		},
		"write nothing": func(_ *testing.T, c net.Conn, _ *net.TCPConn) []any { return say(c.Write(nil)) },
	}
	for name, play := range cases {
		t.Run(name, func(t *testing.T) {
			a, farA := pair(t)
			b, farB := pair(t)
			want, got := play(t, a, farA), play(t, Direct(b), farB)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("direct %v, net %v", got, want)
			}
		})
	}
}

// A write that the other side takes slowly arrives whole, and its deadline holds.
func TestLongWrites(t *testing.T) {
	b, far := pair(t)
	c := Direct(b)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB
	got := make(chan []byte, 1)
	go func() {
		time.Sleep(20 * time.Millisecond) // until the kernel's buffers are full
		all, _ := io.ReadAll(far)
		got <- all
	}()
	if n, err := c.Write(sent); n != len(sent) || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	_ = c.Close()
	if !bytes.Equal(<-got, sent) {
		t.Error("what came is not what was sent")
	}
	b, far = pair(t)
	c = Direct(b)
	go func() { // once it writes
		_, _ = far.Read(make([]byte, 1))
		_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	}()
	if n, err := c.Write(sent); n == 0 || n == len(sent) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("to a side that reads no more: wrote %d, %v", n, err)
	}
}

func TestCopies(t *testing.T) {
	b, far := pair(t)
	c := Direct(b)
	if n, err := io.Copy(c, bytes.NewReader([]byte("hello"))); n != 5 || err != nil {
		t.Errorf("copied %d, %v", n, err)
	}
	if _, err := io.ReadFull(far, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	_, _ = far.Write([]byte("bye"))
	_ = far.Close()
	var in bytes.Buffer
	if n, err := io.Copy(&in, c); n != 3 || err != nil || in.String() != "bye" {
		t.Errorf("copied %d, %v, %q", n, err, in.String())
	}
}

func TestOthersStayAsTheyAre(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Direct(a) != a {
		t.Error("a pipe was wrapped")
	}
}

func TestNoAllocation(t *testing.T) {
	b, far := pair(t)
	c := Direct(b)
	buf := make([]byte, 64)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := c.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(far, buf); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
