package exchange

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/dataplane/body"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/walk"
)

// ServePeer is the handler of the listener for other regions' workers.
func (n *Node) ServePeer(rw http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == relay.ProbePath && r.Method == http.MethodGet:
		rw.WriteHeader(http.StatusOK)
	case r.URL.Path == relay.ForwardPath && r.Method == http.MethodPost:
		n.forwarded(rw, r)
	case strings.HasPrefix(r.URL.Path, receipt.PeerPath):
		n.Receipts.ServePeer(rw, r, n.jurisdictionOfPeer(r))
	default:
		http.Error(rw, "no such internal endpoint", http.StatusNotFound)
	}
}

// jurisdictionOfPeer is where the node that asks is; empty = that is not known.
func (n *Node) jurisdictionOfPeer(r *http.Request) string {
	if peer, err := identity.PeerID(*r.TLS); err == nil {
		if rec, ok := n.Store.View().Region(peer.Region); ok {
			return rec.Region.Jurisdiction
		}
	}
	return ""
}

// forwarded executes a request that entered at another region's node.
func (n *Node) forwarded(rw http.ResponseWriter, r *http.Request) {
	x := n.newExchange(rw, r, r.Header.Get(relay.HeaderPath))
	x.front = false
	if !x.accept() {
		http.Error(rw, "outside the forward protocol", http.StatusBadRequest)
		return
	}
	if !n.Gate.Arrive() {
		x.failPeer(relay.OutcomeFailed, walk.ErrShed, 0)
		return
	}
	defer n.Gate.Leave()
	if outcome, e := x.recheck(); e != nil {
		x.failPeer(outcome, e, 0)
		return
	}
	if !x.welcome() {
		x.failPeer(relay.OutcomeFailed, walk.ErrShed, 0)
		return
	}
	x.body = n.bodies.Get()
	defer x.body.Release()
	defer x.walk.Leave()
	if e := n.bodies.Read(x.body, r, nil); e != nil {
		outcome := relay.OutcomeFinal
		if e == body.ErrNoRoom {
			outcome = relay.OutcomeFailed
		}
		x.failPeer(outcome, e, 0)
		return
	}
	// What moved while the body arrived counts, and so does a confinement that ended.
	if v := n.Store.View(); v != x.view || x.decision.ZeroRetention && !n.Confined().Holds() {
		x.view = v
		if outcome, e := x.recheck(); e != nil {
			x.failPeer(outcome, e, 0)
			return
		}
	}
	if e := x.prepare(); e != nil {
		x.failPeer(outcomeOf(e.Code), e, 0)
		return
	}
	x.run()
}

// outcomeOf says what the entry node should do about a refusal of ours.
func outcomeOf(code dialect.Code) string {
	switch code {
	case dialect.ModelNotFound:
		return relay.OutcomeBehind // the entry node knows the route
	case dialect.NoHealthyRoute, dialect.ZeroRetentionUnavailable:
		return relay.OutcomeFailed // another node may have the upstream, the pool, the confinement
	}
	return relay.OutcomeFinal
}

// accept reads the forward protocol's headers. It reports whether they are
// well formed and come from the node that they name.
func (x *exchange) accept() bool {
	h := x.r.Header
	entry := h.Get(relay.HeaderEntry)
	region, node, ok := strings.Cut(entry, "/")
	peer, err := identity.PeerID(*x.r.TLS)
	if err != nil || !ok || peer.Region != region || peer.Node != node {
		return false
	}
	ep, ok := dialect.EndpointOf(x.path)
	if !ok || ep.Stores || ep.Path != x.path {
		return false
	}
	left, err := strconv.Atoi(h.Get(relay.HeaderLeft))
	if err != nil || left < 1 {
		return false
	}
	ms, err := strconv.ParseInt(h.Get(relay.HeaderDeadline), 10, 64)
	id := h.Get(relay.HeaderRequestID)
	if err != nil || ms < 1 || ms > int64(24*time.Hour/time.Millisecond) || id == "" || len(id) > 64 {
		return false
	}
	x.id, x.endpoint, x.dialect = id, ep, ep.Dialect
	x.entryRegion, x.entryNode = []string{region}, node
	x.way = bounded(h.Get(relay.HeaderRoute), 256) + " > " + x.node.fixed.self
	x.left = min(left, x.node.Attempts)
	x.within = time.Duration(ms) * time.Millisecond
	return true
}

// recheck decides policy again on this node's own state: the stricter wins. A
// record that is missing here means that this node is behind, not that anybody
// did wrong.
func (x *exchange) recheck() (outcome string, e *dialect.Error) {
	h := x.r.Header
	who, refused, behind := x.node.Checker.Known(x.view, h.Get(relay.HeaderKey))
	switch {
	case behind:
		return relay.OutcomeBehind, walk.ErrBehind
	case refused != nil:
		return relay.OutcomeFinal, dialect.Fail(dialect.Code(refused.Code), refused.Message)
	}
	x.caller, x.known = who, true
	project := h.Get(relay.HeaderProject)
	if _, ok := x.view.Project(project); !ok {
		return relay.OutcomeBehind, walk.ErrBehind
	}
	entry, ok := x.view.Region(x.entryRegion[0])
	if !ok {
		return relay.OutcomeBehind, walk.ErrBehind
	}
	decision, bad := policy.Decide(policy.Input{
		View: x.view, Org: who.Org, Project: who.Project, Class: who.Key.Class,
		Asked:             policy.Asked{Project: project},
		Carried:           h.Get(relay.HeaderResidency),
		CarriedZero:       h.Get(relay.HeaderZero) != "", // whatever it says: the stricter reading
		CarriedPool:       h.Get(relay.HeaderPool),
		Confined:          x.node.Confined().Holds(),
		EntryJurisdiction: entry.Region.Jurisdiction,
	})
	if bad != nil {
		if bad.Endpoint != "" {
			x.rw.Header()[hEndpoint] = []string{bad.Endpoint}
		}
		return outcomeOf(dialect.Code(bad.Code)), dialect.Fail(dialect.Code(bad.Code), bad.Message)
	}
	x.decision, x.decided = decision, true
	if !decision.MayRun(x.node.Setup.Jurisdiction) { // the entry node does not know of the pin
		return relay.OutcomeFailed, walk.ErrPinned
	}
	if !x.node.Room() {
		return relay.OutcomeFailed, walk.ErrMetering
	}
	return "", nil
}

// failPeer tells the entry node that there is no answer, and what to do about it.
func (x *exchange) failPeer(outcome string, e *dialect.Error, wait time.Duration) {
	h := x.stampAnswer(outcome)
	x.stampError(h, e.Code, e.Code.Retry(), wait)
	if wait <= 0 {
		delete(h, hRetryAfter) // the entry node asks its client for its own jitter
		delete(h, hRetryAfterMS)
	}
	h[relay.HeaderCode] = []string{string(e.Code)}
	x.write(e.Code.Status(), x.node.fixed.jsonType, e.AppendBody(nil, x.dialect, x.id))
	x.counted(string(e.Code), e.Code.Status())
}

func bounded(s string, most int) string { return s[:min(len(s), most)] }
