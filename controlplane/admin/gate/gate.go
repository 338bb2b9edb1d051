// Package gate is what a management request passes before a handler sees it:
// who asks, what exactly, which node answers, and what the answer will be worth.
// It knows the API as a list of operations and places; what an operation does it
// does not know.
package gate

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/audit"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry/ledger"
)

// Store is the region's replicated registry, as this room needs it.
type Store interface {
	// View runs f with the node's own copy, which f must only read, and not keep.
	View(f func(*ledger.State))
	// Wait returns once this node's copy of the shard has reached point.
	Wait(ctx context.Context, shard controlplane.Shard, point controlplane.Point) error
	// Read returns once this copy holds every write acknowledged before the
	// call. Only the leader can tell.
	Read(ctx context.Context) error
	// Contact is when this copy was last known to be current.
	Contact() time.Time
	// IsLeader reports whether this node leads its region.
	IsLeader() bool
	// Leader is the region's leader and its internal address, if there is one.
	Leader() (node, addr string, ok bool)
}

// Homes knows whether this region is home still.
type Homes interface {
	// Current returns nil if this region was the shard's home after the call.
	Current(ctx context.Context, shard controlplane.Shard) error
}

// Forwarder sends a request to a control node of another region, or to the
// leader of this one. ringmain/controlplane/admin/forward has the real one.
type Forwarder interface {
	// Forward sends r, whose body is buffered, to region. A response of any
	// status is an answer; its body must be closed. The error is one of the
	// sentinels ErrUnreachable, ErrNoLeader and ErrUncertain.
	Forward(ctx context.Context, region string, r *http.Request) (*http.Response, error)
}

// Token is one operator's bearer token.
type Token struct {
	Name    string            // the actor in audit facts
	SHA256  [sha256.Size]byte // of the token's text
	Expires time.Time         // refused from then on; the zero time is in the past
}

// Config configures a Gate.
type Config struct {
	Region, Node string
	Store        Store
	Records      *records.Records
	Homes        Homes                        // nil: a home is believed to be home still
	Forwarder    Forwarder                    // nil answers ErrUnreachable for what other nodes must do
	Tokens       []Token                      // empty: every request is refused
	Refused      func([sha256.Size]byte) bool // whether a token is revoked, by the hash of its text
	TokenAge     time.Duration                // how long this copy may not have been known to be current and tokens still be accepted, since one may be revoked

	Now        func() time.Time
	Random     io.Reader // cryptographically random
	Audit      audit.Log
	Logger     *slog.Logger
	Registerer prometheus.Registerer // optional
}

// Bounds of one request.
const (
	MaxBody   = 1 << 20          // bytes
	AnswerIn  = 10 * time.Second // after which a request is given up
	visibleIn = time.Second      // how long a forwarded write waits for the local copy
	leaderIn  = time.Second      // how long a follower waits for its leader's answer to a read
	maxAnswer = 64 << 20         // bytes of another node's answer
)

// Gate lets requests in. It starts no goroutine.
type Gate struct {
	cfg     Config
	mux     *http.ServeMux
	huma    huma.API
	began   time.Time
	metrics *metrics
}

const description = `Operators' API of a ringmain cluster. Any control node answers; changes are sent to the leader of the
record's home region. An acknowledged change says how safe it is ("acknowledged") and where in the history it stands
(Ringmain-Position). Errors are RFC 9457 problems: "code" is for programs, "detail" says what to do, "field" where.
Unknown fields and query parameters are refused. PUT replaces: what is left out takes its default.`

// New makes a Gate that leads nowhere yet: see Add.
func New(cfg Config) (*Gate, error) {
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	config := huma.DefaultConfig("ringmain admin", "1")
	config.Info.Description = description
	// huma builds its answer at the first request, without a lock: Describe has it made before.
	config.OpenAPIPath, config.DocsPath, config.SchemasPath, config.CreateHooks = "", "", "", nil
	config.RejectUnknownQueryParameters = true
	strict := huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: unmarshal}
	config.Formats = map[string]huma.Format{"application/json": strict, "json": strict}
	config.Transformers = []huma.Transformer{transform}
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"admin_token": {Type: "http", Scheme: "bearer"}}
	config.Security = []map[string][]string{{"admin_token": {}}}
	mux := http.NewServeMux()
	return &Gate{cfg: cfg, mux: mux, huma: humago.New(mux, config), began: cfg.Now(), metrics: m}, nil
}

// Describe serves /openapi.json: all that was added before.
func (g *Gate) Describe() error {
	// huma describes its own error type everywhere; ours is what is sent.
	schemas := g.huma.OpenAPI().Components.Schemas.Map()
	delete(schemas, "ErrorModel")
	delete(schemas, "ErrorDetail")
	spec, err := json.Marshal(g.huma.OpenAPI())
	if err != nil {
		return fmt.Errorf("admin: OpenAPI description: %w", err)
	}
	g.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(spec) // the client is gone: nobody to tell
	})
	return nil
}

// Handler serves operators: /admin/v1 for bearers of a token, /openapi.json,
// /livez and /readyz for everybody.
func (g *Gate) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/admin/v1/", g.prepare(g.authenticate(g.routes())))
	mux.Handle("/", g.prepare(g.routes()))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", g.ready)
	return mux
}

// ready says whether this node can answer: it has a copy of the global shard,
// and its region has a leader.
func (g *Gate) ready(w http.ResponseWriter, _ *http.Request) {
	var loaded bool
	g.cfg.Store.View(func(s *ledger.State) { _, loaded = s.Shard(controlplane.ShardGlobal) })
	_, _, led := g.cfg.Store.Leader()
	if loaded && led {
		_, _ = io.WriteString(w, "ok\n")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = fmt.Fprintf(w, "not ready: global shard loaded: %v, region has a leader: %v\n", loaded, led)
}

// Internal serves other control nodes, under api.InternalPrefix, on a listener
// of identity.Bundle.Server. It believes what they say of the actor: only a
// control node of this cluster gets that far.
func (g *Gate) Internal() http.Handler {
	return g.prepare(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := peerOf(r)
		if err == nil {
			err = identity.AllowControl("")(peer)
		}
		if err != nil {
			g.cfg.Audit.AccessRefused(r.RemoteAddr, peer.String(), err.Error())
			problem.Write(w, problem.New(http.StatusForbidden, api.CodeUnauthorized, "", "Only control nodes may call this."))
			return
		}
		x := exchangeOf(r.Context())
		entry, _, _ := strings.Cut(r.Header.Get(api.HeaderEntry), "/")
		x.Actor, x.Entry, x.Forwarded = r.Header.Get(api.HeaderActor), entry, true
		if entry != peer.Region || x.Actor == "" {
			problem.Write(w, problem.New(http.StatusBadRequest, api.CodeInvalidHead, "", "The asking node must name the actor and itself."))
			return
		}
		http.StripPrefix(api.InternalPrefix, g.routes()).ServeHTTP(w, r)
	}))
}

func peerOf(r *http.Request) (identity.ID, error) {
	if r.TLS == nil {
		return identity.ID{}, identity.ErrNoIdentity
	}
	return identity.PeerID(*r.TLS)
}

// Server gives an http.Server with the bounds that suit h. The listener must
// come from identity.Public or identity.Bundle.Server.
func Server(h http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       AnswerIn,
		WriteTimeout:      AnswerIn + 5*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

type metrics struct {
	requests  *prometheus.CounterVec
	seconds   prometheus.Histogram
	forwarded *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmain_admin_requests_total", Help: "Management requests answered, by method and status.",
		}, []string{"method", "status"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ringmain_admin_request_seconds", Help: "Time to answer a management request.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
		forwarded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmain_admin_forwarded_total", Help: "Management requests sent to another control node, by region.",
		}, []string{"to"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.forwarded} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("admin: metrics: %w", err)
		}
	}
	return m, nil
}
