package exchange

import (
	"net/http"
	"time"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/request"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/walk"
)

// inference serves one request that an upstream answers.
func (x *exchange) inference() {
	defer x.departs()
	if e := x.enter(); e != nil {
		x.refuse(e, 0)
		return
	}
	x.body = x.node.bodies.Get()
	defer x.body.Release()
	defer x.walk.Leave()
	defer x.account()
	if e := x.node.bodies.Read(x.body, x.r, x.hashBody()); e != nil {
		x.refuse(e, 0)
		return
	}
	x.stateBody()
	if e := x.reconsider(); e != nil {
		x.refuse(e, 0)
		return
	}
	x.left = x.node.Attempts
	if e := x.prepare(); e != nil {
		x.refuse(e, 0)
		return
	}
	x.run()
}

// enter decides all that can be decided before the body is read.
func (x *exchange) enter() *dialect.Error {
	if e := x.arrive(); e != nil {
		return e
	}
	switch {
	case !x.welcome():
		return walk.ErrShed
	case !x.node.Room():
		return walk.ErrMetering
	}
	return form(x.endpoint, x.r.Header)
}

// reconsider identifies the caller again if the state moved, or the confinement
// ended, while the body arrived, which may have taken minutes.
func (x *exchange) reconsider() *dialect.Error {
	v := x.node.Store.View()
	if v == x.view && (!x.decision.ZeroRetention || x.node.Confined().Holds()) {
		return nil
	}
	x.view, x.decided = v, false
	return x.identify()
}

// prepare scans the body and plans the way.
func (x *exchange) prepare() *dialect.Error {
	query, bad := request.Scan(x.endpoint, x.contentType(), x.body.Bytes())
	if bad != nil {
		return bad
	}
	x.query = query
	if e := x.suits(); e != nil {
		return e
	}
	ask := walk.Request{
		ID: x.id, Path: x.path, Endpoint: x.endpoint, Query: &x.query, Body: x.body, ContentType: x.contentType(), Header: x.r.Header,
		Front: x.front, Hint: x.asked.RegionHint, Way: x.way, Key: x.caller.Key.ID, Decision: &x.decision,
		Arrived: x.arrived, Attempts: x.left, Within: x.within, Decider: x,
	}
	if e := x.walk.Start(x.node.Ground, x.view, &ask); e != nil {
		return e
	}
	x.model = query.Model
	return nil
}

// refuse answers with an error, and records it if the caller is known.
func (x *exchange) refuse(e *dialect.Error, wait time.Duration) {
	if x.known {
		rec := x.record(meter.EndError)
		rec.Status, rec.Code, rec.Source = e.Code.Status(), string(e.Code), meter.SourceNone
		if err := x.emit(rec); err != nil {
			x.node.Log.Warn("an error answer could not be recorded", "request", x.id, "error", err)
		}
	}
	x.fail(e, wait)
}

// account records a request of which nothing is recorded when it is over: a bug
// made it panic. Its client sees the connection break.
func (x *exchange) account() {
	if !x.known || x.recorded {
		return
	}
	status, end := dialect.UpstreamError.Status(), meter.EndError
	if x.written {
		status, end = http.StatusOK, meter.EndTruncated
		x.proof.cut = true
	}
	rec := x.record(end)
	rec.Status, rec.Code, rec.Source = status, string(dialect.UpstreamError), meter.SourceNone
	if x.walk.Attempts > 0 {
		x.settle(rec, dialect.Usage{}, 0)
	}
	if err := x.emit(rec); err != nil {
		x.node.Log.Warn("an abandoned answer could not be recorded", "request", x.id, "error", err)
	}
	x.counted(string(dialect.UpstreamError), status)
}
