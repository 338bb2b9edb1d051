package dataplane

import (
	"context"
	"net/http"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/admission"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/route"
)

// TestPanicWithinAnAttempt: its place at the upstream is given back, and its
// circuit lets another trial through.
func TestPanicWithinAnAttempt(t *testing.T) {
	w := &Worker{ // without a client, which makes every attempt panic
		upstreams: breaker.New(breaker.Rules{Run: 1, Rest: time.Millisecond}, nil),
		limits:    admission.NewLimits(admission.LimitsConfig{}), budgets: breaker.NewBudgets(breaker.BudgetRules{}),
	}
	up := &registry.Record{Upstream: &registry.Upstream{Name: "up", Concurrency: 1}}
	l := &leg{Stop: route.Stop{Upstream: up, Model: "m"}}
	ticket, _ := w.upstreams.Allow(l.circuit())
	ticket.Done(breaker.Transport)
	ep, _ := dialect.EndpointOf("/v1/chat/completions")
	for i := range 2 {
		time.Sleep(5 * time.Millisecond) // the circuit is half open
		x := &exchange{
			w: w, r: &http.Request{Header: http.Header{}}, endpoint: ep, plan: &route.Plan{Route: &registry.Route{}},
			body: &body{content: dialect.Conceal([]byte("{}")), hold: dialect.NewHold(func() {})}, deadline: time.Now().Add(time.Minute),
		}
		panicked := false
		func() {
			defer func() { panicked = recover() != nil }()
			defer x.leaveUpstream()
			_, _ = x.attempt(context.Background(), l)
		}()
		if !panicked || w.limits.Used("up") != 0 {
			t.Fatalf("try %d: panicked %t, %d places are taken", i, panicked, w.limits.Used("up"))
		}
	}
}
