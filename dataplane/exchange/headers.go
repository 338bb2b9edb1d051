package exchange

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/edge"
	"ringmain/dataplane/link"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/receipt"
)

// Response headers, in the canonical form of the header map.
const (
	hRequestID    = "Idc-Request-Id"
	hEntryRegion  = "Idc-Entry-Region"
	hRegion       = "Idc-Region"
	hReplica      = "Idc-Replica"
	hPool         = "Idc-Pool"
	hUpstream     = "Idc-Upstream"
	hUpstreamID   = "Idc-Upstream-Request-Id"
	hRoute        = "Idc-Route"
	hResidency    = "Idc-Residency"
	hRetention    = "Idc-Retention"
	hAttempts     = "Idc-Attempts"
	hHintResult   = "Idc-Region-Hint-Result"
	hEndpoint     = "Idc-Endpoint"
	hErrorCode    = "Idc-Error-Code"
	hReceipt      = "Idc-Receipt"
	hShouldRetry  = "X-Should-Retry"
	hRetryAfter   = "Retry-After"
	hRetryAfterMS = "Retry-After-Ms"
	hContentType  = "Content-Type"
	hContentLen   = "Content-Length"
)

// fixedHeaders are values that are the same on every answer of this node; the
// slices are shared by all answers, and nobody changes them.
type fixedHeaders struct {
	self               string // region/node, the start of every idc-route
	tag                string // of this node, in every request id
	region, node       []string
	standard, zeroPool []string // pools
	metadata, zero     []string // retention classes
	unpinned           []string
	jsonType, sseType  []string
	noCache, noBuffer  []string
	noSniff            []string
	yes, no, connClose []string
}

func newFixedHeaders(s *link.Setup) fixedHeaders {
	return fixedHeaders{
		self:   s.Region + "/" + s.Node,
		tag:    receipt.NodeTag(s.Region, s.Node),
		region: []string{s.Region}, node: []string{s.Node},
		standard: []string{policy.PoolStandard}, zeroPool: []string{policy.PoolZeroRetention},
		metadata: []string{"metadata"}, zero: []string{"zero"}, unpinned: []string{policy.Unpinned},
		jsonType: []string{"application/json"}, sseType: []string{"text/event-stream; charset=utf-8"},
		noCache: []string{"no-cache"}, noBuffer: []string{"no"},
		noSniff: []string{"nosniff"}, yes: []string{"true"}, no: []string{"false"}, connClose: []string{"close"},
	}
}

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// newRequestID is "req_" and a ULID: 48 bits of milliseconds, 20 that name this
// node, by which its receipt is found, and 60 of chance.
func newRequestID(now time.Time, tag string) string {
	var b [4 + 26]byte
	copy(b[:], "req_")
	ms := uint64(now.UnixMilli())
	for i := 13; i >= 4; i-- {
		b[i] = crockford[ms&31]
		ms >>= 5
	}
	copy(b[receipt.TagAt:], tag)
	x := rand.Uint64() //nolint:gosec // names a request, guards nothing
	for i := receipt.TagAt + receipt.TagSize; i < len(b); i++ {
		b[i] = crockford[x&31]
		x >>= 5
	}
	return string(b[:])
}

// value makes a header value of s, in memory that came with the exchange.
func (x *exchange) value(s string) []string {
	if x.nvalues == len(x.values) {
		return []string{s}
	}
	x.values[x.nvalues] = s
	x.nvalues++
	return x.values[x.nvalues-1 : x.nvalues : x.nvalues]
}

// name puts the request's id on the answer, under the names that clients of
// both dialects look for.
func (x *exchange) name(h http.Header) {
	id := x.value(x.id)
	h[hRequestID], h["X-Request-Id"], h["Request-Id"] = id, id, id
	if x.node.draining.Load() || x.front && edge.Aged(x.r.Context(), x.arrived) {
		h["Connection"] = x.node.fixed.connClose
	}
}

// stamp sets every header that says what happened to the request.
func (x *exchange) stamp(h http.Header) {
	f := &x.node.fixed
	x.name(h)
	h[hEntryRegion] = x.entryRegion
	x.stampClass(h)
	x.reserve(h)
	region, node, way := f.region, f.node, x.way
	if x.walk.By.Remote != nil {
		region, node, way = x.walk.By.Remote.Region, x.walk.By.Remote.Node, x.walk.By.Remote.Way
	} else if x.walk.By.Upstream != "" {
		way += " > " + x.walk.By.Upstream
	}
	h[hRegion], h[hReplica], h[hRoute] = region, node, x.value(way)
	if x.walk.By.Upstream != "" {
		h[hUpstream] = x.value(x.walk.By.Upstream)
	}
	if x.walk.By.UpstreamID != "" {
		h[hUpstreamID] = x.value(x.walk.By.UpstreamID)
	}
	h[hAttempts] = x.value(strconv.Itoa(x.walk.Attempts))
	if x.walk.Plan != nil && x.asked.RegionHint != "" {
		executed := ""
		if x.answered {
			executed = region[0]
		}
		h[hHintResult] = x.value(x.walk.Plan.Hint(executed))
	}
}

// stampClass says which class the request was served in. One that was turned
// away before it had any shows what holds for it: metadata is kept.
func (x *exchange) stampClass(h http.Header) {
	f := &x.node.fixed
	h[hPool], h[hRetention] = f.standard, f.metadata
	if !x.decided {
		return
	}
	d := &x.decision
	if d.ZeroRetention {
		h[hRetention] = f.zero
	}
	switch d.Pool {
	case "", policy.PoolStandard:
	case policy.PoolZeroRetention:
		h[hPool] = f.zeroPool
	default:
		h[hPool] = x.value(d.Pool)
	}
	h[hResidency] = f.unpinned
	if d.Pin != "" {
		h[hResidency] = x.value(d.Pin)
	}
}

// maxRetryAfter bounds what a client is asked to wait.
const maxRetryAfter = 30 * time.Second

// stampError adds what every 4xx and 5xx carries. wait is what the upstream
// asked for; 0 = it did not.
func (x *exchange) stampError(h http.Header, code dialect.Code, retry bool, wait time.Duration) {
	f := &x.node.fixed
	h[hErrorCode] = []string{string(code)}
	h[hShouldRetry] = f.no
	if !retry {
		return
	}
	h[hShouldRetry] = f.yes
	if wait <= 0 {
		wait = time.Second
	}
	// Jitter, so that everybody who was turned away does not come back at once.
	wait = min(wait+rand.N(wait/2+4*time.Second), maxRetryAfter) //nolint:gosec // jitter
	seconds := (wait + time.Second - 1) / time.Second
	h[hRetryAfter] = []string{strconv.FormatInt(int64(seconds), 10)}
	h[hRetryAfterMS] = []string{strconv.FormatInt(wait.Milliseconds(), 10)}
}
