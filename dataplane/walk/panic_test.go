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
	ticket, _ := g.Upstreams.Allow(l.circuit())
	ticket.Done(breaker.Transport)
	ep, _ := dialect.EndpointOf("/v1/chat/completions")
	for i := range 2 {
		time.Sleep(5 * time.Millisecond) // the circuit is half open
		b := body.NewPool(1).Get()
		w := &Walk{ground: g, Plan: &route.Plan{Route: &registry.Route{}}, deadline: time.Now().Add(time.Minute), request: Request{
			Header: http.Header{}, Endpoint: ep, Query: new(request.Request), Decision: new(policy.Decision), Body: b,
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
