package dataplane

import (
	"net/http"
	"strings"
	"time"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/route"
)

// admit takes a place among the requests under way, if there is one.
func (w *Worker) admit() bool {
	n := w.inflight.Add(1)
	if n > w.capacity {
		w.inflight.Add(-1)
		return false
	}
	w.metrics.inflight.Set(float64(n))
	return true
}

func (w *Worker) leave() { w.metrics.inflight.Set(float64(w.inflight.Add(-1))) }

var errShed = dialect.Fail(dialect.CapacityShed, "This node is at capacity: retry shortly.")

// inference serves one chat or messages request from a client.
func (x *exchange) inference() {
	if !x.w.admit() {
		x.fail(errShed, 0)
		return
	}
	defer x.w.leave()
	if e := x.identify(); e != nil {
		x.refuse(e, 0)
		return
	}
	x.body = x.w.bodies.get()
	defer x.body.hold.Release()
	if e := x.w.bodies.read(x.body, x.r); e != nil {
		x.refuse(e, 0)
		return
	}
	if e := x.reconsider(); e != nil {
		x.refuse(e, 0)
		return
	}
	x.left = x.w.tunables.Attempts
	if e := x.prepare(); e != nil {
		x.refuse(e, 0)
		return
	}
	x.run()
}

// reconsider identifies the caller again if the state moved while the body
// arrived, which may have taken minutes.
func (x *exchange) reconsider() *dialect.Error {
	v := x.w.cfg.Store.View()
	if v == x.view {
		return nil
	}
	x.view, x.decided = v, false
	return x.identify()
}

// prepare scans the body and plans the way.
func (x *exchange) prepare() *dialect.Error {
	query, bad := dialect.ScanRequest(x.dialect, x.body.bytes)
	if bad != nil {
		return bad
	}
	x.query = query
	plan, refused := route.New(route.Input{
		View: x.view, Decision: &x.decision, Model: query.Model, Dialect: x.dialect.String(), Hint: x.asked.RegionHint,
		Region: x.w.setup.Region, Jurisdiction: x.w.setup.Jurisdiction, LocalOnly: !x.front,
		Peers: x.w.cfg.Peers, RTT: x.w.trips.region, Random: random,
	})
	if refused != nil {
		return refusal(refused)
	}
	x.plan, x.model = plan, query.Model
	total := relay.TimeoutsOf(plan.Route.Timeouts).Total
	if x.deadline.IsZero() || time.Until(x.deadline) > total {
		x.deadline = x.arrived.Add(total)
	}
	return nil
}

func refusal(r *policy.Refusal) *dialect.Error {
	e := dialect.Fail(dialect.Code(r.Code), r.Message)
	if strings.HasPrefix(r.Code, "model_") {
		e.Param = "model"
	}
	return e
}

// refuse answers with an error, and records it if the caller is known.
func (x *exchange) refuse(e *dialect.Error, wait time.Duration) {
	if x.known {
		rec := x.record(meter.EndError)
		rec.Status, rec.Code, rec.Source = e.Code.Status(), string(e.Code), meter.SourceNone
		if err := x.emit(rec); err != nil {
			x.w.log.Warn("an error answer could not be recorded", "request", x.id, "error", err)
		}
	}
	x.fail(e, wait)
}

// record starts the metadata record of how the request ended.
func (x *exchange) record(end meter.End) *meter.Record {
	rec := &meter.Record{
		Role: meter.RoleFront, RequestID: x.id, At: x.arrived.UnixMilli(), Endpoint: x.endpoint,
		Model: x.model, Served: x.served, Upstream: x.upstream,
		EntryRegion: x.entryRegion[0], EntryNode: x.entryNode, Region: x.w.setup.Region, Node: x.w.setup.Node,
		Status: http.StatusOK, Streamed: x.query.Stream, Attempts: x.attempts, Ended: end,
		LatencyMS: time.Since(x.arrived).Milliseconds(), FirstTokenMS: x.firstToken.Milliseconds(),
	}
	if !x.front {
		rec.Role = meter.RoleWitness
	}
	if x.remote != nil {
		rec.Region, rec.Node = x.remote.region[0], x.remote.node[0]
	}
	if x.known {
		rec.Key, rec.Org, rec.Project = x.caller.Key.ID, x.caller.Org.Meta.ID, x.caller.Project.Meta.ID
	}
	if x.decided {
		rec.Project, rec.Residency = x.decision.Billed.Meta.ID, x.decision.Residency()
	}
	return rec
}

func (x *exchange) emit(rec *meter.Record) error {
	b, err := meter.Encode(rec)
	if err == nil {
		err = x.w.cfg.Emit(b)
	}
	if err == nil && x.front {
		x.w.metrics.tokensIn.Add(float64(rec.TokensIn))
		x.w.metrics.tokensOut.Add(float64(rec.TokensOut))
	}
	return err //nolint:wrapcheck // the callers say what could not be recorded
}

// settle fills the token counts: the provider's closing figures, or, where
// there are none, an estimate from the bytes seen, marked as such.
func (x *exchange) settle(rec *meter.Record, u dialect.Usage, textOut int64) {
	rec.TokensIn, rec.TokensOut, rec.CacheRead, rec.CacheWrite = u.Input, u.Output, u.CacheRead, u.CacheWrite
	rec.Source = meter.SourceProvider
	if u.Final {
		return
	}
	rec.Source = meter.SourceEstimated
	if u.Input == 0 {
		rec.TokensIn = dialect.EstimateTokens(int64(len(x.body.bytes)))
	}
	rec.TokensOut = max(u.Output, dialect.EstimateTokens(textOut))
}
