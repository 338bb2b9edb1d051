package h1_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"ringmain/dataplane/relay/h1"
)

// own is a context that can do AfterFunc by itself.
type own struct {
	context.Context
	calls   chan func()
	stopped int
}

func (o *own) AfterFunc(f func()) (stop func() bool) {
	o.calls <- f
	return func() bool { o.stopped++; return true }
}

// TestContextsOwnAfterFunc: a context that has one is asked, and told when the
// request is over; what it calls gives the request up.
func TestContextsOwnAfterFunc(t *testing.T) {
	s := serve(t, false, func(c *talk) {
		if c.request() {
			c.say(good)
		}
		if c.request() {
			c.wait()
		}
	})
	p := s.pool(t)
	ctx := &own{t.Context(), make(chan func(), 1), 0}
	r, err := p.Do(ctx, request(t), within(patient))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	if <-ctx.calls; ctx.stopped != 1 {
		t.Errorf("told %d times", ctx.stopped)
	}
	go func() { (<-ctx.calls)() }()
	if _, err := p.Do(ctx, request(t), within(patient)); !errors.Is(err, h1.ErrCanceled) {
		t.Error(err)
	}
}
