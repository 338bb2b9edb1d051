package link

import (
	"context"
	"errors"
	"sync"
)

// receipts is the worker's side of the keeper's store of signed receipts.
type receipts struct {
	mu    sync.Mutex
	acked func(number uint64)
	again func()
	asked uint64
	wants map[uint64]chan []byte
}

// WatchReceipts names who is told of batches that are on disk, by their
// checkpoint's number, and that another keeper is there, which may lack what
// was not. Both must be quick.
func (a *Attendant) WatchReceipts(acked func(number uint64), again func()) {
	a.receipts.mu.Lock()
	defer a.receipts.mu.Unlock()
	a.receipts.acked, a.receipts.again = acked, again
}

// KeepReceipts hands a batch to the keeper. False means that there is none, or
// that it is behind: offer the batch again.
func (a *Attendant) KeepReceipts(number uint64, batch []byte) bool {
	c := a.keeper()
	return c != nil && c.TrySend(&Message{Type: TypeReceipts, Seq: number, Bytes: batch}) == nil
}

// ErrNoKeeper means that no keeper is connected: ask again later.
var ErrNoKeeper = errors.New("the worker has no keeper at the moment: ask again later")

// AskReceipt asks the keeper for the receipt of a request; nil if it has none.
func (a *Attendant) AskReceipt(ctx context.Context, requestID string) ([]byte, error) {
	r, c := &a.receipts, a.keeper()
	if c == nil {
		return nil, ErrNoKeeper
	}
	answer := make(chan []byte, 1)
	r.mu.Lock()
	r.asked++
	seq := r.asked
	if r.wants == nil {
		r.wants = make(map[uint64]chan []byte)
	}
	r.wants[seq] = answer
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.wants, seq)
		r.mu.Unlock()
	}()
	if err := c.Send(ctx, &Message{Type: TypeReceiptAsk, Seq: seq, Bytes: []byte(requestID)}); err != nil {
		return nil, err
	}
	select {
	case b := <-answer:
		return b, nil
	case <-c.quit:
		return nil, ErrNoKeeper
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// take handles what the keeper says of receipts.
func (r *receipts) take(m *Message) {
	r.mu.Lock()
	acked, answer := r.acked, r.wants[m.Seq]
	if m.Type == TypeReceiptAnswer {
		delete(r.wants, m.Seq)
	}
	r.mu.Unlock()
	switch {
	case m.Type == TypeReceiptsAck && acked != nil:
		acked(m.Seq)
	case m.Type == TypeReceiptAnswer && answer != nil:
		answer <- m.Bytes
	}
}

// attached tells that another keeper is there.
func (r *receipts) attached() {
	r.mu.Lock()
	again := r.again
	r.mu.Unlock()
	if again != nil {
		again()
	}
}
