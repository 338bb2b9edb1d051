package walk

import (
	"context"
	"net/http"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/admission"
	"ringmain/dataplane/body"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/request"
	"ringmain/dataplane/link"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/route"
)

// TestPanicWithinAnAttempt: its place at the upstream is given back, and its
// circuit lets another trial through.
func TestPanicWithinAnAttempt(t *testing.T) {
	g := &Ground{ // without a client, which makes every attempt panic
		Upstreams: breaker.New(breaker.Rules{Run: 1, Rest: time.Millisecond}, nil),
		Limits:    admission.NewLimits(admission.LimitsConfig{}), Budgets: breaker.NewBudgets(breaker.BudgetRules{}),
	}
	up := &registry.Record{Upstream: &registry.Upstream{Name: "up", Concurrency: 1}}
	l := &leg{Stop: route.Stop{Upstream: up, Model: "m"}}
	ep, _ := dialect.EndpointOf("/v1/chat/completions")
	ticket, _ := g.Upstreams.Allow(breaker.Key{Owner: "up", Part: "m", Path: ep.Path})
	ticket.Done(breaker.Transport)
	for i := range 2 {
		time.Sleep(5 * time.Millisecond) // the circuit is half open
		b := body.NewPool(1).Get()
		w := &Walk{ground: g, Plan: &route.Plan{Route: &registry.Route{}}, deadline: time.Now().Add(time.Minute), request: Request{
			Header: http.Header{}, Path: ep.Path, Endpoint: ep, Query: new(request.Request), Decision: new(policy.Decision), Body: b,
		}}
		panicked := false
		func() {
			defer func() { panicked = recover() != nil }()
			defer w.Leave()
			_, _ = w.attempt(context.Background(), l)
		}()
		if !panicked || g.Limits.Used("up") != 0 {
			t.Fatalf("try %d: panicked %t, %d places are taken", i, panicked, g.Limits.Used("up"))
		}
	}
}

// TestPanicWhileAPeerIsAsked: likewise for the circuit of a node.
func TestPanicWhileAPeerIsAsked(t *testing.T) {
	const rest = 20 * time.Millisecond
	g := &Ground{PeerNodes: breaker.New(breaker.Rules{Run: 1, Rest: rest}, nil)}
	ticket, _ := g.PeerNodes.Allow(breaker.Peer("n"))
	ticket.Done(breaker.Transport)
	time.Sleep(2 * rest) // the circuit is half open
	l := &leg{Stop: route.Stop{Peer: &link.Peer{Node: "n"}}}
	for i := range 2 {
		w := &Walk{ground: g, Plan: &route.Plan{Route: &registry.Route{}}, deadline: time.Now().Add(time.Minute), request: Request{
			Header: http.Header{}, Query: new(request.Request), Decision: new(policy.Decision),
		}}
		panicked := false
		func() {
			defer func() { panicked = recover() != nil }()
			_, _ = w.attempt(context.Background(), l)
		}()
		if !panicked {
			t.Fatalf("try %d: it was not asked", i)
		}
	}
}
