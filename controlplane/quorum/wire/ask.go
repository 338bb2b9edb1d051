package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// question is a stream's only byte, in the place of the kind of a raft message,
// and no such kind. A node answers it with the same byte and its version; one of
// the first release hangs up.
const question = 'v'

// Ask returns the Version that a node was given.
func (t *Transport) Ask(ctx context.Context, node string) (version byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	c, err := t.streams.open(ctx, node)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }() // everything was said
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return 0, err
	}
	if _, err := c.Write([]byte{question}); err != nil {
		return 0, err
	}
	var answer [2]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return 0, err
	}
	if answer[0] != question {
		return 0, fmt.Errorf("it answered %x", answer)
	}
	return answer[1], nil
}

// accepted is a peer's stream. It may ask for the version instead of carrying
// raft's messages. Raft reads and writes it by turns, in one goroutine.
type accepted struct {
	net.Conn
	layer *streams
	begun bool // the first byte was read
	amid  bool // something of a message was read, and nothing answered
}

// Read gives a message that has begun a bound. Raft itself waits for the rest
// of a snapshot for ever, and gives no vote meanwhile. A leader that is heard
// beside it has longer: its disk hangs.
func (a *accepted) Read(b []byte) (int, error) {
	began := time.Now()
	var until time.Time // between messages a stream may rest
	if a.amid {
		until = began.Add(Timeout)
	}
	n, err := a.readUntil(until, b)
	if a.amid && n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && a.layer.heardSince(began.Add(Timeout/2)) {
		n, err = a.readUntil(began.Add(patience), b)
	}
	if n > 0 && !a.begun && b[0] == question {
		_ = a.SetWriteDeadline(time.Now().Add(Timeout))        // if it fails, so does the write
		_, _ = a.Conn.Write([]byte{question, a.layer.version}) // the asker asks again
		return 0, io.EOF
	}
	if n > 0 {
		a.begun, a.amid = true, true
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = a.Close() // raft would read the rest
	}
	return n, err
}

func (a *accepted) readUntil(t time.Time, b []byte) (int, error) {
	if err := a.SetReadDeadline(t); err != nil {
		return 0, err
	}
	return a.Conn.Read(b)
}

// Write answers a message.
func (a *accepted) Write(b []byte) (int, error) {
	a.amid = false
	return a.Conn.Write(b)
}
