package link

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// ErrBusy means that the other side reads too slowly for more: drop or wait.
var ErrBusy = errors.New("the other side of the worker socket is behind")

// queueBytes bounds what waits to be written on one connection. A message
// larger than it still passes when nothing else waits.
const queueBytes = 4 << 20

// Conn carries messages both ways. Sending is safe for concurrent use;
// Receive belongs to one goroutine.
type Conn struct {
	nc  net.Conn
	dec decoder

	mu    sync.Mutex
	batch *batch // collects what the writer takes next
	err   error  // why sending ended
	wake  chan struct{}
	quit  chan struct{}
	wg    sync.WaitGroup
}

// batch is what one Write hands to the kernel.
type batch struct {
	buf  []byte
	done chan struct{} // closed when written or failed
	err  error         // read after done
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// NewConn takes over nc. Close it to end its goroutine.
func NewConn(nc net.Conn) *Conn {
	c := &Conn{
		nc: nc, dec: decoder{r: bufio.NewReaderSize(nc, 64<<10)},
		batch: newBatch(), wake: make(chan struct{}, 1), quit: make(chan struct{}),
	}
	c.wg.Go(c.write)
	return c
}

// Receive returns the next message; io.EOF when the other side closed cleanly.
func (c *Conn) Receive() (*Message, error) { return c.dec.next() }

// TrySend queues m, or returns ErrBusy at once.
func (c *Conn) TrySend(m *Message) error {
	b, err := Encode(m)
	if err != nil {
		return err
	}
	_, _, err = c.enqueue(b)
	return err
}

// Send queues m, waiting for room.
func (c *Conn) Send(ctx context.Context, m *Message) error {
	b, err := Encode(m)
	if err != nil {
		return err
	}
	for {
		_, full, err := c.enqueue(b)
		if !errors.Is(err, ErrBusy) {
			return err
		}
		if err := c.written(ctx, full); err != nil {
			return err
		}
	}
}

// Deliver queues m like Send and waits until the kernel has it: from then on
// it reaches the other side even if this process dies.
func (c *Conn) Deliver(ctx context.Context, m *Message) error {
	b, err := Encode(m)
	if err != nil {
		return err
	}
	for {
		in, full, err := c.enqueue(b)
		switch {
		case err == nil:
			return c.written(ctx, in)
		case !errors.Is(err, ErrBusy):
			return err
		}
		if err := c.written(ctx, full); err != nil {
			return err
		}
	}
}

// enqueue adds an encoded message to the batch that it returns as in; if that
// is full, it returns it as full with ErrBusy.
func (c *Conn) enqueue(b []byte) (in, full *batch, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, nil, c.err
	}
	if len(c.batch.buf) > 0 && len(c.batch.buf)+len(b) > queueBytes {
		return nil, c.batch, ErrBusy
	}
	c.batch.buf = append(c.batch.buf, b...)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return c.batch, nil, nil
}

// written waits until b was handed to the kernel.
func (c *Conn) written(ctx context.Context, b *batch) error {
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write hands one batch after another to the kernel.
func (c *Conn) write() {
	var spare []byte
	for {
		select {
		case <-c.wake:
		case <-c.quit:
			c.fail(net.ErrClosed)
			return
		}
		c.mu.Lock()
		b := c.batch
		c.batch = newBatch()
		c.batch.buf = spare[:0]
		c.mu.Unlock()
		_, err := c.nc.Write(b.buf)
		spare, b.buf = b.buf, nil
		if cap(spare) > 256<<10 {
			spare = nil
		}
		if err != nil {
			err = fmt.Errorf("write to the worker socket: %w", err)
		}
		b.err = err
		close(b.done)
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// fail makes err the answer to everything that waits and that is still sent.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	c.batch.err = err
	close(c.batch.done)
}

// Close drops what was not written, and waits for the connection's goroutine.
// It may be called more than once.
func (c *Conn) Close() error {
	c.mu.Lock()
	select {
	case <-c.quit:
	default:
		close(c.quit)
	}
	c.mu.Unlock()
	err := c.nc.Close()
	c.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
