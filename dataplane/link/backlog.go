package link

import (
	"errors"
	"sync"
)

// ErrBacklog means that records wait for the keeper's disk up to the bound:
// answer 503 metering_unavailable instead of serving unmetered.
var ErrBacklog = errors.New("too many records wait for the keeper: answer metering_unavailable")

// backlog holds records from Emit until the keeper has them on disk. Their
// numbers are contiguous from 1 within one worker process.
type backlog struct {
	limit int // bytes

	mu      sync.Mutex
	records [][]byte // records[i] has number first+i
	first   uint64
	sent    int // how many of records were queued on conn
	bytes   int
	conn    *Conn // nil without a keeper
	empty   chan struct{}
}

func newBacklog(limit int) *backlog {
	b := &backlog{limit: limit, first: 1, empty: make(chan struct{})}
	close(b.empty)
	return b
}

// add takes a record over and queues it. The batch returned is closed when the
// kernel has it; nil means that it waits in memory.
func (b *backlog) add(record []byte) (*batch, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes+len(record) > b.limit {
		return nil, ErrBacklog
	}
	if len(b.records) == 0 {
		b.empty = make(chan struct{})
	}
	b.records = append(b.records, append([]byte(nil), record...))
	b.bytes += len(record)
	last := b.pump()
	if b.sent < len(b.records) {
		return nil, nil
	}
	return last, nil
}

// pump queues what is not on the connection yet, and returns the batch of the
// last one queued. The caller holds mu.
func (b *backlog) pump() *batch {
	var last *batch
	for b.conn != nil && b.sent < len(b.records) {
		m, err := Encode(&Message{Type: TypeRecord, Seq: b.first + uint64(b.sent), Bytes: b.records[b.sent]})
		if err != nil {
			return last
		}
		in, _, err := b.conn.enqueue(m)
		if err != nil {
			return last
		}
		last = in
		b.sent++
	}
	return last
}

// nudge queues what did not fit before.
func (b *backlog) nudge() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pump()
}

// attach makes conn the way to the keeper; all that was not acknowledged goes
// out again, in order. Nil means that there is no keeper.
func (b *backlog) attach(conn *Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn, b.sent = conn, 0
	b.pump()
}

// ack forgets records up to number upto; with resend, later ones go out again.
func (b *backlog) ack(upto uint64, resend bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.records) > 0 && b.first <= upto {
		b.bytes -= len(b.records[0])
		b.records[0] = nil
		b.records = b.records[1:]
		b.first++
		b.sent = max(0, b.sent-1)
	}
	if resend {
		b.sent = 0
	}
	if len(b.records) == 0 {
		b.records = nil
		select {
		case <-b.empty:
		default:
			close(b.empty)
		}
	}
	b.pump()
}

// drained is closed once no record waits.
func (b *backlog) drained() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.empty
}

// waiting is how many bytes of records wait for the keeper's disk.
func (b *backlog) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}
