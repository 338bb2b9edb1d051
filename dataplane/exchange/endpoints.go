package exchange

import (
	"fmt"
	"net/http"
	"strings"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/request"
	"ringmain/dataplane/documents"
)

// Endpoints that this node answers by itself; dialect lists those that it
// passes on. Metric labels are these paths, or "other".
const (
	pathModels = "/v1/models"
	pathLive   = "/livez"
	pathReady  = "/readyz"
	pathOther  = "other"
)

// ServeAPI is the handler of the client-facing listener.
func (n *Node) ServeAPI(rw http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor > 1 {
		_ = deep(r.ProtoMajor)
	}
	if e := misshapen(r); e != nil {
		n.refuseShape(rw, r, e)
		return
	}
	if ep, ok := dialect.EndpointOf(r.URL.Path); ok {
		x := n.newExchange(rw, r, ep.Path)
		x.endpoint = ep
		if ep.Stores {
			x.storage()
			return
		}
		x.dialect = ep.Dialect
		if x.allow(http.MethodPost) {
			x.inference()
		}
		return
	}
	n.serveOwn(rw, r)
}

// serveOwn answers what needs no upstream.
func (n *Node) serveOwn(rw http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if name, ok := documents.Find(path); ok {
		if x := n.newExchange(rw, r, path); x.allow(readMethods...) {
			x.document(name)
		}
		return
	}
	switch {
	case path == pathModels || strings.HasPrefix(path, pathModels+"/"):
		if x := n.newExchange(rw, r, pathModels); x.allow(readMethods...) {
			x.models(strings.TrimPrefix(strings.TrimPrefix(path, pathModels), "/"))
		}
	case path == pathKeySet:
		if x := n.newExchange(rw, r, path); x.allow(readMethods...) {
			x.keySet()
		}
	case strings.HasPrefix(path, pathReceipts+"/"):
		if x := n.newExchange(rw, r, pathReceipts); x.allow(readMethods...) {
			x.receipt(strings.TrimPrefix(path, pathReceipts+"/"))
		}
	case path == pathLive || path == pathReady:
		x := n.newExchange(rw, r, path)
		switch {
		case !x.allow(readMethods...):
		case path == pathReady && n.Revoked():
			x.fail(dialect.Fail(dialect.NotReady, "This node is revoked, for good: send requests to another."), 0)
		case path == pathReady && !n.Ready():
			x.fail(dialect.Fail(dialect.NotReady, "This node is draining, or has no state loaded yet: send requests to another."), 0)
		case path == pathReady:
			x.writeOK("text/plain; charset=utf-8", fmt.Appendf(nil, "ok\nstate: current as of %.0f s ago\n", n.Age().Seconds()))
		default:
			x.writeOK("text/plain; charset=utf-8", []byte("ok\n"))
		}
	default:
		x := n.newExchange(rw, r, pathOther)
		x.fail(dialect.Fail(dialect.NotFound, "There is no such endpoint: check the path."), 0)
	}
}

// misshapen says what is wrong with a request that no endpoint could answer,
// whatever its path.
func misshapen(r *http.Request) *dialect.Error {
	switch {
	case r.Method == http.MethodConnect:
		return dialect.Fail(dialect.MethodNotAllowed, "This is an API, not a proxy: send the request itself, without CONNECT.")
	case len(r.Header["Upgrade"]) > 0:
		return dialect.Fail(dialect.InvalidRequest, "This endpoint does not speak WebSocket, nor any other protocol to upgrade to: use HTTP streaming (`stream: true`).")
	case r.URL.Host != "":
		return dialect.Fail(dialect.InvalidRequest, "The request's target is a whole URL, as a proxy takes it: this is an API, send the path alone.")
	case strings.ContainsAny(r.Host, "/?#@\\"):
		return dialect.Fail(dialect.InvalidRequest, "The request's host is no host: send a name, or an address, and a port.")
	case len(r.URL.Path) == 0 || r.URL.Path[0] != '/':
		return dialect.Fail(dialect.InvalidRequest, "The request's target is no path: send the path of an endpoint, such as /v1/chat/completions.")
	}
	return nil
}

// refuseShape answers a misshapen request. Whoever sent it may take what
// follows on the connection for something else than HTTP: it ends here.
func (n *Node) refuseShape(rw http.ResponseWriter, r *http.Request, e *dialect.Error) {
	x := n.newExchange(rw, r, pathOther)
	if e.Code == dialect.MethodNotAllowed {
		rw.Header()["Allow"] = []string{"GET, POST"}
	}
	if r.ProtoMajor == 1 {
		rw.Header()["Connection"] = n.fixed.connClose
	}
	x.fail(e, 0)
}

// storage answers the endpoints that exist to keep something. None is offered;
// whoever must not store is told so.
func (x *exchange) storage() {
	defer x.departs()
	e := x.arrive()
	if e == nil && x.decision.ZeroRetention {
		e = request.StorageRefusal(x.endpoint, nil, x.r.Header)
	}
	if e == nil {
		e = dialect.Fail(dialect.NotFound, "Files and other objects that a provider would keep are not offered here: send the content within each request.")
	}
	x.refuse(e, 0)
}

// deep makes room on the stack for all that a request calls. HTTP/2 serves each
// in a new goroutine, whose small stack would otherwise be doubled, and copied
// with all that is on it, again and again as the calls go deeper.
//
//go:noinline
func deep(i int) byte {
	var room [stackRoom]byte
	return room[i]
}

const stackRoom = 7 << 10 // bytes; with what is in use, it makes a stack of 16 KiB
