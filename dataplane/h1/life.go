package h1

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// life is the context of a request, from its head to the end of its handler or
// of its connection. It is what context.WithCancel gives, without its memory
// where nobody waits: most requests are answered before somebody does.
type life struct {
	conn   context.Context       //nolint:containedctx // its values, and the server's end
	waited atomic.Pointer[child] // nil = nobody has asked when it ends

	mu    sync.Mutex
	err   error
	calls []*call  // when it ends
	first [1]*call // memory of calls: mostly there is one
}

// child is of the connection's context, and ends with the life.
type child struct {
	context.Context //nolint:containedctx // it is one

	cancel context.CancelFunc
}

type call struct{ f func() }

// end ends it, if it has not ended.
func (l *life) end() {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = context.Canceled
	calls := l.calls
	l.calls = nil
	l.mu.Unlock()
	if w := l.waited.Load(); w != nil {
		w.cancel()
	}
	for _, c := range calls {
		go c.f()
	}
}

// Deadline implements context.Context.
func (l *life) Deadline() (time.Time, bool) { return l.conn.Deadline() }

// Done implements context.Context. Contexts that are derived from l find the
// child in it, and need no goroutine to hear of its end.
func (l *life) Done() <-chan struct{} {
	if w := l.waited.Load(); w != nil {
		return w.Done()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.waited.Load()
	if w == nil {
		w = new(child)
		w.Context, w.cancel = context.WithCancel(l.conn)
		if l.err != nil {
			w.cancel()
		}
		l.waited.Store(w)
	}
	return w.Done()
}

// Err implements context.Context.
func (l *life) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	return l.conn.Err() //nolint:wrapcheck // as contexts do
}

// Value implements context.Context.
func (l *life) Value(key any) any {
	if w := l.waited.Load(); w != nil {
		return w.Value(key)
	}
	return l.conn.Value(key)
}

// AfterFunc is context.AfterFunc.
func (l *life) AfterFunc(f func()) (stop func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		go f()
		return func() bool { return false }
	}
	c := &call{f}
	if l.calls == nil {
		l.calls = l.first[:0]
	}
	l.calls = append(l.calls, c)
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		i := slices.Index(l.calls, c)
		if i >= 0 {
			l.calls = slices.Delete(l.calls, i, i+1)
		}
		return i >= 0
	}
}
