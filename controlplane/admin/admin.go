// Package admin is /admin/v1, the operators' management API: an OpenAPI 3.1
// description and the handlers behind it. Every control node answers every
// request; what another node must answer is sent there whole, over mutual TLS,
// and that node runs the same handlers.
//
// Rules about records belong to registry, and Raft to quorum: this room reads
// a State, proposes changes and says in HTTP what came of it.
package admin

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// Store is the region's replicated registry, as this room needs it.
type Store interface {
	// View runs f with the node's own copy, which f must only read, and not keep.
	View(f func(*registry.State))
	// ProposeLevel commits changes to a shard. Only the leader of the shard's home
	// succeeds; others get ErrNotLeader, ErrNotHome or ErrNoLeader.
	// The level is what the writer asked for; it is kept with what may yet be undone.
	ProposeLevel(ctx context.Context, shard controlplane.Shard, level registry.Level, changes []registry.Change) (registry.Outcome, error)
	// ProposeCommand commits what is no entry of this region's.
	ProposeCommand(ctx context.Context, cmd *registry.Command) (registry.Outcome, error)
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

// Forwarder sends a request to a control node of another region, or to the
// leader of this one. ringmain/controlplane/admin/forward has the real one.
type Forwarder interface {
	// Forward sends r, whose body is buffered, to region. A response of any
	// status is an answer; its body must be closed. The error is one of the
	// sentinels ErrUnreachable, ErrNoLeader and ErrUncertain.
	Forward(ctx context.Context, region string, r *http.Request) (*http.Response, error)
}

// VerdictSink takes the verdict on a key just made, so that its first use
// costs no bcrypt. It must not block. feed.Hub is one.
type VerdictSink interface{ PushVerdicts([]feed.Verdict) }

// RevocationSink tells data nodes of a revocation before it is committed. It
// must not block. feed.Hub is one.
type RevocationSink interface{ PushRevocations([]registry.Revocation) }

// Holders says how far data nodes are, as they say themselves. feed.Hub is one.
type Holders interface {
	HeldBy(region, node string, shard controlplane.Shard) (controlplane.Point, bool)
	// HeldChanged is closed when HeldBy may answer otherwise.
	HeldChanged() <-chan struct{}
}

// Lag is how far this node's copy of a shard was behind its home when that was last heard.
type Lag struct {
	Behind uint64 // entries
	Heard  time.Time
}

// Token is one operator's bearer token.
type Token struct {
	Name    string            // the actor in audit facts
	SHA256  [sha256.Size]byte // of the token's text
	Expires time.Time         // refused from then on; the zero time is in the past
}

// Config configures an API. Fields not marked optional must be set.
type Config struct {
	Cluster, Region, Node string
	Version               string // of the program; optional

	Store     Store
	Forwarder Forwarder // optional: nil answers ErrUnreachable for what other nodes must do

	Tokens        []Token // empty: every request is refused
	ClusterSecret []byte  // derives the verdict keys; 32 bytes

	TokenAge    time.Duration                     // optional: how long this copy may not have been known to be current and tokens still be accepted, since one may be revoked [5 min]
	Homes       Homes                             // optional: nil acknowledges "region" and moves no shard
	ConfirmIn   time.Duration                     // optional: how long an answer waits for other regions to confirm a write [3 s]
	HeldIn      time.Duration                     // optional: how long the answer to a revocation waits for regions and data nodes on their way to it [2 s]
	Operations  Operations                        // optional: the region's Raft and its backup
	Verdicts    VerdictSink                       // optional
	Revocations RevocationSink                    // optional
	Announced   func(registry.Kind, string) bool  // optional: revocations that this node has heard of before they are committed
	Nodes       func() []api.Node                 // optional: what gossip knows
	Holders     Holders                           // optional: what data nodes say before gossip does
	Published   func() map[string]bool            // optional: region name -> up
	Lags        func() map[controlplane.Shard]Lag // optional: shards homed elsewhere

	Now    func() time.Time                          // optional: time.Now
	Random io.Reader                                 // cryptographically random; crypto/rand.Reader
	Hash   func(controlplane.Secret) ([]byte, error) // optional: what is kept of a key, some bcrypt of its digest [apikey.Hash]

	Logger     *slog.Logger
	Registerer prometheus.Registerer // optional
}

// Bounds of one request.
const (
	MaxBody     = 1 << 20          // bytes
	answerIn    = 10 * time.Second // after which a request is given up
	visibleIn   = time.Second      // how long a forwarded write waits for the local copy
	leaderIn    = time.Second      // how long a follower waits for its leader's answer to a read
	maxAnswer   = 64 << 20         // bytes of another node's answer
	writeTries  = 16               // of an unconditional update that others overtake
	defaultPage = 100
	maxPage     = 500
)

// API answers /admin/v1. It starts no goroutine of its own.
type API struct {
	cfg     Config
	mux     *http.ServeMux
	hashing chan struct{} // places for bcrypt
	onceKey []byte
	firsts  firsts
	began   time.Time

	audit   Audit
	metrics *metrics
}

// New checks cfg and builds the API.
func New(cfg Config) (*API, error) {
	switch {
	case cfg.Cluster == "" || cfg.Region == "" || cfg.Node == "":
		return nil, errors.New("admin: cluster, region and node must be named")
	case cfg.Store == nil || cfg.Random == nil || cfg.Logger == nil:
		return nil, errors.New("admin: store, randomness and logger are needed")
	case len(cfg.ClusterSecret) < 16:
		return nil, fmt.Errorf("admin: the cluster secret has %d bytes, want 32", len(cfg.ClusterSecret))
	}
	for _, t := range cfg.Tokens {
		if t.Name == "" || t.SHA256 == ([sha256.Size]byte{}) {
			return nil, errors.New("admin: every token needs a name and the SHA-256 of its text")
		}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Hash == nil {
		cfg.Hash = apikey.Hash
	}
	cfg.ConfirmIn = cmp.Or(cfg.ConfirmIn, 3*time.Second)
	cfg.HeldIn = cmp.Or(cfg.HeldIn, 2*time.Second)
	cfg.TokenAge = cmp.Or(cfg.TokenAge, 5*time.Minute)
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	key, err := onceKey(cfg.ClusterSecret)
	if err != nil {
		return nil, fmt.Errorf("admin: the cluster secret cannot be used: %w", err)
	}
	a := &API{
		onceKey: key,
		cfg:     cfg, mux: http.NewServeMux(), audit: Audit{cfg.Logger.With("log", "audit")}, metrics: m,
		hashing: make(chan struct{}, runtime.GOMAXPROCS(0)), began: cfg.Now(),
	}
	if err := a.register(); err != nil {
		return nil, err
	}
	return a, nil
}

// Handler serves operators: /admin/v1 for bearers of a token, /openapi.json,
// /livez and /readyz for everybody.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/admin/v1/", a.prepare(a.authenticate(a.routes())))
	mux.Handle("/", a.prepare(a.routes()))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", a.ready)
	return mux
}

// ready says whether this node can answer: it has a copy of the global shard,
// and its region has a leader.
func (a *API) ready(w http.ResponseWriter, _ *http.Request) {
	var loaded bool
	a.cfg.Store.View(func(s *registry.State) { _, loaded = s.Shard(controlplane.ShardGlobal) })
	_, _, led := a.cfg.Store.Leader()
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
func (a *API) Internal() http.Handler {
	return a.prepare(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := peerOf(r)
		if err == nil {
			err = identity.AllowControl("")(peer)
		}
		if err != nil {
			a.audit.AccessRefused(r.RemoteAddr, peer.String(), err.Error())
			writeProblem(w, problem(http.StatusForbidden, api.CodeUnauthorized, "", "Only control nodes may call this."))
			return
		}
		x := exchangeOf(r.Context())
		entry, _, _ := strings.Cut(r.Header.Get(api.HeaderEntry), "/")
		x.actor, x.entry, x.internal = r.Header.Get(api.HeaderActor), entry, true
		if entry != peer.Region || x.actor == "" {
			writeProblem(w, problem(http.StatusBadRequest, api.CodeInvalidHead, "", "The asking node must name the actor and itself."))
			return
		}
		http.StripPrefix(api.InternalPrefix, a.routes()).ServeHTTP(w, r)
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
		ReadTimeout:       answerIn,
		WriteTimeout:      answerIn + 5*time.Second,
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
