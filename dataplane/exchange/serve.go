package exchange

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringmain/controlplane/apikey"
	"ringmain/dataplane/admission"
	"ringmain/dataplane/body"
	"ringmain/dataplane/caller"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/request"
	"ringmain/dataplane/edge"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/view"
	"ringmain/dataplane/walk"
)

// exchange is one request on its way through this node.
type exchange struct {
	node    *Node
	rw      http.ResponseWriter
	r       *http.Request
	view    *view.View
	id      string
	arrived time.Time

	path     string            // of the endpoint, as clients name it; a metric label
	endpoint *dialect.Endpoint // nil for what this node answers by itself
	dialect  dialect.Dialect
	front    bool   // this node answers the client; else the peer where the request entered
	way      string // idc-route up to this node

	entryRegion []string
	entryNode   string

	placed   bool // among the requests under way
	caller   caller.Caller
	known    bool // caller is set: what happens is recorded
	asked    policy.Asked
	decision policy.Decision
	decided  bool
	carried  carried

	body  *body.Body
	query request.Request
	model string // asked for, if a route has that name

	within time.Duration // that the entry node left for it; 0 = what the route says
	left   int           // attempts that may be made
	walk   walk.Walk     // to who answers

	answered   bool // an upstream's answer is passed on
	written    bool // the head of the answer is out
	recorded   bool // what happened was handed over
	proof      proof
	values     [10]string
	nvalues    int
	firstToken time.Duration
	replay     replay // cost of broken tries of the answer
}

func (n *Node) newExchange(rw http.ResponseWriter, r *http.Request, endpoint string) *exchange {
	now := time.Now()
	return &exchange{
		node: n, rw: rw, r: r, view: n.Store.View(), id: newRequestID(now, n.fixed.tag), arrived: now,
		path: endpoint, dialect: dialectOf(r), front: true, way: n.fixed.self,
		entryRegion: n.fixed.region, entryNode: n.Setup.Node,
	}
}

// dialectOf is the dialect that a client expects where no endpoint has one: that
// of the path, or of the header that every client of the Messages API sends.
func dialectOf(r *http.Request) dialect.Dialect {
	if len(r.Header["Anthropic-Version"]) > 0 {
		return dialect.Anthropic
	}
	return dialect.OfPath(r.URL.Path)
}

func (x *exchange) allow(methods ...string) bool {
	if slices.Contains(methods, x.r.Method) {
		return true
	}
	x.rw.Header()["Allow"] = []string{strings.Join(methods, ", ")}
	message := "This endpoint takes " + strings.Join(methods, " or ") + "."
	if x.r.Method == http.MethodOptions && len(x.r.Header["Origin"]) > 0 {
		message = "This API does not answer pages in a browser (CORS): a key in a page is given away to whoever opens it. Call it from your server."
	}
	x.fail(dialect.Fail(dialect.MethodNotAllowed, message), 0)
	return false
}

// fail answers with an error of ours. wait is how long an upstream asked us to
// leave it alone; 0 = it did not.
func (x *exchange) fail(e *dialect.Error, wait time.Duration) {
	h := x.rw.Header()
	x.stamp(h)
	x.stampError(h, e.Code, e.Code.Retry(), wait)
	b := e.AppendBody(nil, x.dialect, x.id)
	x.write(e.Code.Status(), x.node.fixed.jsonType, b)
	x.counted(string(e.Code), e.Code.Status())
}

func (x *exchange) writeOK(contentType string, b []byte) {
	x.stamp(x.rw.Header())
	x.write(http.StatusOK, []string{contentType}, b)
	x.counted("", http.StatusOK)
}

func (x *exchange) write(status int, contentType []string, b []byte) {
	h := x.rw.Header()
	h[hContentType] = contentType
	h[hContentLen] = x.value(strconv.Itoa(len(b)))
	x.begun(len(b))
	x.prove(h, status, b)
	x.rw.WriteHeader(status)
	_ = x.whole(b) // a client that left is noticed elsewhere
}

// counted notes the answer, which is over, in the metrics, and states it in its receipt. A forwarded request counts as such
// here, and by its endpoint where it entered.
func (x *exchange) counted(code string, status int) {
	x.commit(status)
	endpoint, now := x.path, time.Now()
	if x.front {
		// Of what was refused, too, some wait for no answer.
		edge.Asked(x.r.Context(), status >= 400 && x.r.Context().Err() != nil, now)
	} else {
		endpoint = relay.ForwardPath
	}
	x.node.Metrics.answered(endpoint, code, status, now.Sub(x.arrived))
}

// arrive finds out who asks, takes a place, which departs gives back, and finds
// out what the caller may do.
func (x *exchange) arrive() *dialect.Error {
	if e := x.meet(); e != nil {
		return e
	}
	if x.placed = x.node.Gate.Arrive(); !x.placed {
		return walk.ErrShed
	}
	return x.decide()
}

func (x *exchange) departs() {
	if x.placed {
		x.placed = false
		x.node.Gate.Leave()
	}
}

// welcome decides by importance, as soon as it is known who asks.
func (x *exchange) welcome() bool {
	p := admission.PriorityOf(x.caller.Org.Org.Plan, x.decision.Batch, x.caller.Key.Class == apikey.ClassTest)
	return x.node.Gate.Pass(p, rand.Uint64()) //nolint:gosec // spreads load, guards nothing
}

// identify finds out who asks and what they may do, before the body is read.
func (x *exchange) identify() *dialect.Error {
	if e := x.meet(); e != nil {
		return e
	}
	return x.decide()
}

// meet finds out who asks. It comes before a place among the requests under
// way: whoever has no key to show competes with his like alone.
func (x *exchange) meet() *dialect.Error {
	x.node.meeting.Add(1)
	defer x.node.meeting.Add(-1)
	who, refused := x.check()
	if refused != nil && refused.Stranger && !x.known {
		who, refused = x.atone(refused)
	}
	if refused != nil {
		if refused.Jurisdiction != "" {
			return x.turnAway(policy.Elsewhere(x.view, refused.Jurisdiction, x.node.regionUp))
		}
		return dialect.Fail(dialect.Code(refused.Code), refused.Message)
	}
	if !x.known {
		edge.Known(x.r.Context())
		if c, ok := x.rw.(interface{ Trust() }); ok { // HTTP/2's, see h2.Strangers
			c.Trust()
		}
	}
	x.caller, x.known = who, true
	return nil
}

// decide finds out what the caller may do.
func (x *exchange) decide() *dialect.Error {
	asked, bad := policy.Parse(x.r.Header)
	if bad == nil {
		x.asked = asked
		x.decision, bad = policy.Decide(policy.Input{
			View: x.view, Org: x.caller.Org, Project: x.caller.Project, Class: x.caller.Key.Class,
			Asked: asked, EntryJurisdiction: x.node.Setup.Jurisdiction, Confined: x.node.Confined().Holds(), Up: x.node.regionUp,
			Carried: x.carried.pin, CarriedZero: x.carried.zero, CarriedPool: x.carried.pool,
		})
	}
	if bad != nil {
		switch code := dialect.Code(bad.Code); code {
		case dialect.WrongJurisdiction, dialect.ResidencyUnavailable, dialect.ZeroRetentionUnavailable:
			return x.turnAway(bad)
		default:
			return dialect.Fail(code, bad.Message)
		}
	}
	x.decided = true
	return nil
}

func (x *exchange) check() (caller.Caller, *caller.Refusal) {
	key, refused := caller.Presented(x.r.Header)
	if refused != nil {
		return caller.Caller{}, refused
	}
	return x.node.Checker.Check(x.view, key, x.r.RemoteAddr)
}

// atone makes a source that presents many wrong keys wait for its refusals.
// Over the bound of those that wait there is no answer at all. Where the state
// moved meanwhile the key is judged again: it may be one that was new.
func (x *exchange) atone(refused *caller.Refusal) (caller.Caller, *caller.Refusal) {
	ctx := x.r.Context()
	connection, rests := x.rw.(interface{ Rest(d time.Duration) }) // HTTP/2's, see h2.Strangers
	cost := x.node.Guard.Wrong(ctx, rests, time.Now())
	switch {
	case cost.Mute:
		panic(http.ErrAbortHandler)
	case cost.Rest > 0:
		connection.Rest(cost.Rest)
	}
	if cost.Wait <= 0 {
		return caller.Caller{}, refused
	}
	pause := time.NewTimer(cost.Wait)
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
	pause.Stop()
	x.node.Guard.Waited(ctx)
	if v := x.node.Store.View(); v != x.view {
		x.view = v
		return x.check()
	}
	return caller.Caller{}, refused
}

// turnAway refuses a request whose body must not come here: the right host is
// named, if there is one, and nothing more of the body is taken in.
func (x *exchange) turnAway(refused *policy.Refusal) *dialect.Error {
	e := dialect.Fail(dialect.Code(refused.Code), refused.Message)
	if x.written {
		return e
	}
	h := x.rw.Header()
	if refused.Endpoint != "" {
		h[hEndpoint] = []string{refused.Endpoint}
	}
	if x.r.ProtoMajor == 1 {
		h["Connection"] = x.node.fixed.connClose
	}
	if x.body == nil { // past deadlines make the server's own clean-up read nothing
		_ = http.NewResponseController(x.rw).SetReadDeadline(time.Unix(1, 0))
	}
	return e
}
