package link

import (
	"bytes"
	"log/slog"
	"sync"
)

// lines carries a worker's log to its keeper. It never waits: what a keeper
// that is slow or absent cannot take is dropped and counted, but for the first
// lines, which wait for the keeper.
type lines struct {
	mu      sync.Mutex
	conn    *Conn
	early   [][]byte
	held    int // bytes in early
	dropped uint64
}

const earlyBytes = 64 << 10

// Write takes one line of JSON.
func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.conn != nil:
		if l.conn.TrySend(&Message{Type: TypeLog, Bytes: line}) != nil {
			l.dropped++
		}
	case l.held+len(line) <= earlyBytes:
		l.early = append(l.early, bytes.Clone(line))
		l.held += len(line)
	default:
		l.dropped++
	}
	return len(line), nil
}

func (l *lines) attach(conn *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	if conn == nil {
		return
	}
	for _, line := range l.early {
		if conn.TrySend(&Message{Type: TypeLog, Bytes: line}) != nil {
			l.dropped++
		}
	}
	l.early, l.held = nil, 0
}

// lost is how many lines were dropped.
func (l *lines) lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

func (l *lines) handler(level slog.Leveler) slog.Handler {
	return slog.NewJSONHandler(l, &slog.HandlerOptions{Level: level})
}
