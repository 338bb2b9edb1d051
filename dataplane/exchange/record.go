package exchange

import (
	"net/http"
	"sync"
	"time"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/meter"
)

// records holds records and the memory that they are encoded in: one is made
// for every request.
var records = sync.Pool{New: func() any { return &recording{encoded: make([]byte, 0, 1024)} }}

type recording struct {
	meter.Record
	encoded []byte
}

// record starts the metadata record of how the request ended. It is emit's
// from then on.
func (x *exchange) record(end meter.End) *recording {
	rec, ok := records.Get().(*recording)
	if !ok {
		rec = new(recording)
	}
	rec.Record = meter.Record{
		Role: meter.RoleFront, RequestID: x.id, At: x.arrived.UnixMilli(), Endpoint: x.path,
		Model: x.model, Served: x.walk.By.Served, Upstream: x.walk.By.Upstream,
		EntryRegion: x.entryRegion[0], EntryNode: x.entryNode, Region: x.node.Setup.Region, Node: x.node.Setup.Node,
		Status: http.StatusOK, Streamed: x.query.Stream, Attempts: x.walk.Attempts, Ended: end,
		LatencyMS: time.Since(x.arrived).Milliseconds(), FirstTokenMS: x.firstToken.Milliseconds(),
	}
	rec.Splices, rec.ReplayIn, rec.ReplayOut = x.replay.splices, x.replay.in, x.replay.out
	if !x.front {
		rec.Role = meter.RoleWitness
	}
	if x.walk.By.Remote != nil {
		rec.Region, rec.Node = x.walk.By.Remote.Region[0], x.walk.By.Remote.Node[0]
	}
	if x.known {
		rec.Key, rec.Org, rec.Project = x.caller.Key.ID, x.caller.Org.Meta.ID, x.caller.Project.Meta.ID
	}
	if x.decided {
		rec.Project, rec.Residency = x.decision.Billed.Meta.ID, x.decision.Residency()
		rec.Pool, rec.Retention, rec.Plan = x.decision.Pool, x.decision.Retention(), x.decision.Plan
	}
	if x.walk.Plan != nil && x.walk.Plan.Route != nil && x.walk.Plan.Route.Model != x.model {
		rec.Fallback = x.walk.Plan.Route.Model
	}
	return rec
}

// emit hands a record over; it may not be used afterwards.
func (x *exchange) emit(rec *recording) error {
	x.concluded(&rec.Record)
	rec.Receipt = x.leaf()
	rec.encoded = meter.Append(rec.encoded[:0], &rec.Record)
	err := x.node.Emit(rec.encoded)
	x.recorded = true
	if err == nil && x.front {
		x.node.Metrics.tokensIn.Add(float64(rec.TokensIn))
		x.node.Metrics.tokensOut.Add(float64(rec.TokensOut))
	}
	records.Put(rec)
	return err //nolint:wrapcheck // the callers say what could not be recorded
}

// settle fills the token counts: the provider's closing figures, or, where
// there are none, an estimate from the bytes seen, marked as such.
func (x *exchange) settle(rec *recording, u dialect.Usage, textOut int64) {
	rec.TokensIn, rec.TokensOut, rec.CacheRead, rec.CacheWrite = u.Input, u.Output, u.CacheRead, u.CacheWrite
	rec.Source = meter.SourceProvider
	if u.Final {
		return
	}
	if ep := x.endpoint; ep != nil {
		switch {
		case ep.Body != dialect.BodyJSON, ep.Usage == dialect.UsageNone && !ep.Binary: // files and pictures, or an answer that costs nothing
			rec.Source = meter.SourceNone
			return
		case ep.Binary:
			textOut = 0 // bytes of sound
		}
	}
	rec.Source = meter.SourceEstimated
	if u.Input == 0 {
		rec.TokensIn = dialect.EstimateTokens(x.body.Len())
	}
	rec.TokensOut = max(u.Output, dialect.EstimateTokens(textOut))
}
