package exchange

import (
	"context"
	"net/http"
	"sync"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/relay"
)

const (
	pathReceipts = "/v1/receipts"
	pathKeySet   = "/.well-known/jwks.json"
)

// maxInline bounds the plain answers whose receipt is signed at once, in bytes.
const maxInline = 1 << 20

// statement is the memory that a receipt is made in, lent to one request until
// its receipt is committed, which copies what it needs.
type statement struct {
	receipt.Hasher
	facts receipt.Facts
}

var statements = sync.Pool{New: func() any { return new(statement) }}

// proof is what a receipt says of one request, as far as it has come. Only the
// node that answers the client makes one, and only for callers that it knows.
type proof struct {
	leaf    string     // its name in the batch; empty = none is made
	made    *statement // nil until something is hashed
	inline  bool       // the client wants it signed at once
	summed  bool       // the answer's hash is final
	wrote   int64      // bytes of the answer's body
	cut     bool       // they are not all of it
	refused bool
	ended   meter.End
	status  int // as it is recorded
}

// hashBody starts to hash the request's body as it arrives.
func (x *exchange) hashBody() *receipt.Hasher {
	h := x.hasher()
	h.Begin(x.algorithm(int(max(0, x.r.ContentLength))))
	return h
}

// stateBody notes the hash of the request's body, which is whole.
func (x *exchange) stateBody() { x.proof.made.facts.StateRequest(x.proof.made.Sum()) }

// algorithm is how a body of that many bytes is hashed; 0 = not known.
func (x *exchange) algorithm(size int) receipt.Algorithm {
	if x.node.Setup.ReceiptHash == string(receipt.SHA256) {
		return receipt.SHA256
	}
	return receipt.Fastest(size)
}

func (x *exchange) hasher() *receipt.Hasher {
	if x.proof.made == nil {
		x.proof.made = statements.Get().(*statement) //nolint:forcetypeassert // only these are put
	}
	return &x.proof.made.Hasher
}

// leaf names the receipt of this request, if there will be one.
func (x *exchange) leaf() string {
	if x.proof.leaf == "" && x.front && x.known && x.endpoint != nil {
		x.proof.leaf = x.node.Receipts.Reserve()
		x.proof.inline = len(x.r.Header["Idc-Receipt"]) > 0
	}
	return x.proof.leaf
}

// reserve names the receipt in the answer's head.
func (x *exchange) reserve(h http.Header) {
	if leaf := x.leaf(); leaf != "" {
		h[hReceipt] = x.value(leaf)
	}
}

// begun says that the head of an answer of size bytes goes out now, and starts
// to hash what follows; 0 = its size is not known.
func (x *exchange) begun(size int) {
	if x.proof.leaf != "" {
		x.hasher().Begin(x.algorithm(size))
	}
	x.written = true
}

// prove signs the receipt of a whole answer at once, if the client wants that.
// The answer's bytes are b, which are about to be sent.
func (x *exchange) prove(h http.Header, status int, b []byte) {
	p := &x.proof
	if p.leaf == "" || !p.inline || len(b) > maxInline {
		return
	}
	_, _ = p.made.Write(b) // never fails
	x.state(status)
	jws, err := x.node.Receipts.Inline(p.leaf, &p.made.facts)
	if err != nil { // too long for a header, mostly: the leaf is named already
		x.node.Log.Debug("a receipt could not be signed at once", "request", x.id, "error", err)
		return
	}
	h[hReceipt] = x.value(jws)
}

// restate takes back that the answer b was stated as a whole: of a receipt that
// was signed at once, the batch tells what became of it.
func (x *exchange) restate(b []byte) {
	p := &x.proof
	if !p.summed {
		return
	}
	p.summed = false
	p.made.Begin(x.algorithm(len(b)))
	_, _ = p.made.Write(b[:p.wrote]) // never fails
}

// hand gives a part of the answer to the server.
func (x *exchange) hand(b []byte) error {
	_, err := x.rw.Write(b) //nolint:gosec // G705: declared as what it is, and not to be sniffed
	return err              //nolint:wrapcheck // only whether it failed matters
}

// send writes a part of the answer to the client.
func (x *exchange) send(b []byte) error {
	err := x.hand(b)
	if err == nil {
		x.hash(b)
	}
	return err
}

// flush writes a part of the answer and sends it off.
func (x *exchange) flush(b []byte, control *http.ResponseController) error {
	err := x.hand(b)
	if err == nil {
		err = control.Flush()
	}
	if err == nil {
		x.hash(b)
	}
	return err
}

// end writes the end of a plain answer. Whether the client has it nobody knows:
// it is stated as it is handed over.
func (x *exchange) end(b []byte) error {
	x.hash(b)
	return x.hand(b)
}

func (x *exchange) hash(b []byte) {
	x.proof.wrote += int64(len(b))
	if x.proof.made != nil && !x.proof.summed {
		_, _ = x.proof.made.Write(b) // never fails
	}
}

// finish writes the end of a streamed answer. Whoever has it finds the receipt.
func (x *exchange) finish(events, last []byte, control *http.ResponseController) error {
	x.hash(events)
	x.hash(last)
	x.commit(http.StatusOK)
	err := x.hand(events)
	if err == nil {
		err = x.hand(last)
	}
	if err == nil {
		err = control.Flush()
	}
	return err
}

// concluded notes how the answer ends, for the receipt.
func (x *exchange) concluded(rec *meter.Record) {
	x.proof.ended, x.proof.refused, x.proof.status = rec.Ended, rec.Refused, rec.Status
}

// state completes the facts, once.
func (x *exchange) state(status int) {
	p := &x.proof
	if p.summed {
		return
	}
	p.summed = true
	f := &p.made.facts
	if x.written {
		f.StateResponse(p.made.Sum())
	}
	if p.cut {
		f.Written = p.wrote
	}
	f.RequestID, f.At, f.Endpoint = x.id, x.arrived.UnixMilli(), x.path
	f.Key, f.Org, f.Project = x.caller.Key.ID, x.caller.Org.Meta.ID, x.caller.Project.Meta.ID
	f.Model, f.Served = x.model, x.walk.By.Served
	f.EntryRegion, f.EntryNode = x.node.Setup.Region, x.node.Setup.Node
	f.Region, f.Node = x.node.Setup.Region, x.node.Setup.Node
	if x.walk.By.Remote != nil {
		f.Region, f.Node = x.walk.By.Remote.Region[0], x.walk.By.Remote.Node[0]
	}
	if x.decided {
		f.Project, f.Residency = x.decision.Billed.Meta.ID, x.decision.Residency()
		f.Pool, f.Retention = x.decision.Pool, x.decision.Retention()
	}
	if f.Attempts = x.walk.Tried; p.refused { // a stream tells only as it goes on
		if last := len(f.Attempts) - 1; last >= 0 && f.Attempts[last].Outcome == breaker.OK.String() {
			f.Attempts[last].Outcome = breaker.Refused.String()
		}
	}
	f.Status, f.Streamed, f.Refused, f.Ended = status, x.query.Stream, p.refused, string(p.ended)
	f.Confinement = receipt.Confinement(x.node.Confined())
}

// commit puts the receipt of an answer that ended with status into the next
// batch. Where none began it says how far the request came: a provider may have
// seen it.
func (x *exchange) commit(status int) {
	p := &x.proof
	if p.leaf != "" {
		if status == statusGone {
			status = p.status
		}
		x.hasher()
		x.state(status)
		x.node.Receipts.Commit(p.leaf, &p.made.facts)
	}
	if p.made == nil {
		return
	}
	p.made.facts = receipt.Facts{}
	statements.Put(p.made)
	p.made, p.leaf = nil, ""
}

var (
	errNoReceipt   = dialect.Fail(dialect.NotFound, "There is no receipt of that request for this key or its organisation: receipts are of answered requests, by their idc-request-id, and those of pinned requests stay in their jurisdiction.")
	errReceiptAway = dialect.Fail(dialect.NotReady, "The node that answered the request cannot be asked for its receipt at the moment: retry shortly.")
)

// receipt answers GET /v1/receipts/{request-id}.
func (x *exchange) receipt(id string) {
	defer x.departs()
	if e := x.arrive(); e != nil {
		x.fail(e, 0)
		return
	}
	if !receipt.ValidID(id) {
		x.fail(errNoReceipt, 0)
		return
	}
	org, key := x.caller.Org.Meta.ID, x.caller.Key.ID
	doc, err := x.node.Receipts.Within(x.r.Context(), id, org, key, x.node.Setup.Jurisdiction)
	away := err != nil
	if doc == nil && !away {
		doc, away = x.distantReceipt(id, org, key)
	}
	switch {
	case doc != nil:
	case away:
		x.fail(errReceiptAway, 0)
		return
	default:
		x.fail(errNoReceipt, 0)
		return
	}
	x.rw.Header()["Cache-Control"] = []string{"private, no-store"}
	x.writeOK("application/json", doc)
}

// receiptWait bounds the search for a receipt at other nodes, which may have to
// wait for a checkpoint and for their keepers.
const receiptWait = 5 * time.Second

// distantReceipt asks the nodes that may have answered the request, within
// where its caller's requests may run. away: one of them could not be asked.
func (x *exchange) distantReceipt(id, org, key string) (doc []byte, away bool) {
	ctx, cancel := context.WithTimeout(x.r.Context(), receiptWait)
	defer cancel()
	for _, n := range x.node.Ground.Peers().Nodes {
		if !receipt.AnsweredBy(id, n.Region, n.Node) || !x.decision.MayRun(x.jurisdictionOf(n.Region)) {
			continue
		}
		found, err := receipt.AskPeer(ctx, x.node.Ground.Client.PeerTransport(), relay.PeerBase(n.Region, n.Node), id, org, key)
		if found != nil {
			return found, false
		}
		if err != nil {
			away = true
			x.node.Log.Debug("a peer could not be asked for a receipt", "peer_region", n.Region, "peer_node", n.Node, "error", err)
		}
	}
	return nil, away
}

// keySet answers with the keys that receipts are signed by.
func (x *exchange) keySet() {
	x.rw.Header()["Cache-Control"] = []string{receipt.KeySetCache}
	x.writeOK(receipt.KeySetType, x.node.Receipts.KeySet())
}
