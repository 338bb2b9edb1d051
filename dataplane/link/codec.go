package link

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"ringmain/controlplane/strict"
)

// maxMessage bounds an encoded message, in bytes: one feed frame of the
// largest size and what surrounds it.
const maxMessage = 5 << 20

// ErrMalformed means that the peer does not speak this protocol: close the
// connection. Keeper and worker of one node must be of compatible builds.
var ErrMalformed = errors.New("malformed message on the worker socket: is the other process of another version?")

// Encode returns m with its length in front: u32 big endian | CBOR.
func Encode(m *Message) ([]byte, error) {
	body, err := strict.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode message of type %d: %w", m.Type, err)
	}
	if len(body) > maxMessage {
		return nil, fmt.Errorf("message of type %d has %d bytes, at most %d fit", m.Type, len(body), maxMessage)
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	return append(b, body...), nil
}

// decoder reads messages from a stream. It belongs to one goroutine.
type decoder struct {
	r   *bufio.Reader
	buf []byte
}

// next returns the next message, io.EOF between messages, or ErrMalformed.
func (d *decoder) next() (*Message, error) {
	var head [4]byte
	if _, err := io.ReadFull(d.r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w: it ends within a length", ErrMalformed)
		}
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxMessage {
		return nil, fmt.Errorf("%w: a length of %d", ErrMalformed, n)
	}
	body, err := d.body(int(n))
	if err != nil {
		return nil, err
	}
	return decodeMessage(body)
}

// body reads n bytes. It grows with what really arrives, not with the length
// that was promised.
func (d *decoder) body(n int) ([]byte, error) {
	d.buf = d.buf[:0]
	for len(d.buf) < n {
		step := min(n-len(d.buf), max(64<<10, len(d.buf)))
		at := len(d.buf)
		d.buf = append(d.buf, make([]byte, step)...)
		if _, err := io.ReadFull(d.r, d.buf[at:]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, fmt.Errorf("%w: it ends after %d of %d bytes", ErrMalformed, at, n)
			}
			return nil, err
		}
	}
	body := d.buf
	if cap(d.buf) > 256<<10 {
		d.buf = nil // a large message is rare: do not hold on to its size
	}
	return body, nil
}

// maxPID is the most that Linux gives out. The keeper may have to kill what a
// worker names itself as, and 0, -1 and what wraps to them name many.
const maxPID = 1 << 22

// decodeMessage reads one body. What it returns shares nothing with b.
func decodeMessage(b []byte) (*Message, error) {
	m := new(Message)
	if err := strict.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	missing := m.Type == TypeHello && (m.Hello == nil || m.Hello.PID < 2 || m.Hello.PID > maxPID) || m.Type == TypeSetup && m.Setup == nil ||
		m.Type == TypePeers && m.Peers == nil || m.Type == TypeHealth && m.Health == nil
	if m.Type < TypeHello || m.Type > TypeReceiptAnswer || missing {
		return nil, fmt.Errorf("%w: type %d, without its body, or of no process", ErrMalformed, m.Type)
	}
	return m, nil
}
