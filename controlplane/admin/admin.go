// Package admin is /admin/v1, the operators' management API: an OpenAPI 3.1
// description and the handlers behind it. Every control node answers every
// request; what another node must answer is sent there whole, over mutual TLS,
// and that node runs the same handlers.
//
// Here the rooms below are put together, and the records of customers and of the
// catalog are served. What a record may be belongs to registry, and Raft to quorum.
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
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/audit"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/pins"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/admin/revoke"
	"ringmain/controlplane/admin/shards"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// Store is the region's replicated registry, as this API needs it.
type Store interface {
	gate.Store
	shards.Store
}

// Homes knows how far the other regions hold a shard, and moves shards between
// regions. It answers on the region's leader. homes.Homes is one.
type Homes interface {
	gate.Homes
	shards.Homes
}

// Forwarder sends a request to a control node of another region, or to the
// leader of this one. ringmain/controlplane/admin/forward has the real one.
type Forwarder = gate.Forwarder

// Token is one operator's bearer token.
type Token = gate.Token

// VerdictSink takes the verdict on a key just made, so that its first use
// costs no bcrypt. It must not block. push.Board is one.
type VerdictSink interface{ PushVerdicts([]feed.Verdict) }

// Lag is how far this node's copy of a shard was behind its home when that was last heard.
type Lag struct {
	Behind uint64 // entries
	Heard  time.Time
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
	Revocations revoke.Sink                       // optional
	Announced   func(registry.Kind, string) bool  // optional: revocations that this node has heard of before they are committed
	Nodes       func() []api.Node                 // optional: what gossip knows
	Holders     revoke.Holders                    // optional: what data nodes say before gossip does
	Published   func() map[string]bool            // optional: region name -> up
	Lags        func() map[controlplane.Shard]Lag // optional: shards homed elsewhere

	Now    func() time.Time                          // optional: time.Now
	Random io.Reader                                 // cryptographically random; crypto/rand.Reader
	Hash   func(controlplane.Secret) ([]byte, error) // optional: what is kept of a key, some bcrypt of its digest [apikey.Hash]

	Logger     *slog.Logger
	Registerer prometheus.Registerer // optional
}

// API answers /admin/v1. It starts no goroutine of its own.
type API struct {
	cfg     Config
	gate    *gate.Gate
	records *records.Records
	audit   audit.Log
	hashing chan struct{} // places for bcrypt

	deletable func(ctx context.Context, org string) error // of the room pins
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
	log := audit.To(cfg.Logger)
	recs, err := records.Open(records.Config{
		Region: cfg.Region, Store: cfg.Store, Homes: cfg.Homes, ConfirmIn: cfg.ConfirmIn, ClusterSecret: cfg.ClusterSecret,
		Now: cfg.Now, Random: cfg.Random, Audit: log, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	revokes := revoke.New(revoke.Config{
		Region: cfg.Region, Records: recs, HeldIn: cfg.HeldIn, Now: cfg.Now, Tokens: cfg.Tokens, Homes: cfg.Homes, Sink: cfg.Revocations,
		Announced: cfg.Announced, Nodes: cfg.Nodes, Holders: cfg.Holders, Audit: log,
	})
	g, err := gate.New(gate.Config{
		Region: cfg.Region, Node: cfg.Node, Store: cfg.Store, Records: recs, Homes: cfg.Homes, Forwarder: cfg.Forwarder,
		Tokens: cfg.Tokens, Refused: revokes.Refuses, TokenAge: cfg.TokenAge,
		Now: cfg.Now, Random: cfg.Random, Audit: log, Logger: cfg.Logger, Registerer: cfg.Registerer,
	})
	if err != nil {
		return nil, err
	}
	a := &API{gate: g, cfg: cfg, records: recs, audit: log, hashing: make(chan struct{}, runtime.GOMAXPROCS(0))}
	a.orgs()
	a.projects()
	a.policies()
	a.keys()
	a.upstreams()
	a.catalog()
	a.cluster()
	a.operations()
	revokes.Register(g)
	a.deletable = pins.Register(g, pins.Config{Region: cfg.Region, Records: recs, Revoke: revokes, Nodes: cfg.Nodes, Now: cfg.Now, Audit: log})
	shards.Register(g, shards.Config{Region: cfg.Region, Records: recs, Store: cfg.Store, Homes: cfg.Homes, ConfirmIn: cfg.ConfirmIn, Audit: log})
	return a, g.Describe()
}

// Handler serves operators: /admin/v1 for bearers of a token, /openapi.json,
// /livez and /readyz for everybody.
func (a *API) Handler() http.Handler { return a.gate.Handler() }

// Internal serves other control nodes, under api.InternalPrefix, on a listener
// of identity.Bundle.Server.
func (a *API) Internal() http.Handler { return a.gate.Internal() }

// Server gives an http.Server with the bounds that suit h. The listener must
// come from identity.Public or identity.Bundle.Server.
func Server(h http.Handler, logger *slog.Logger) *http.Server { return gate.Server(h, logger) }

// remove deletes the record that ref names.
func (a *API) remove(ctx context.Context, kind registry.Kind, ref string, cond records.Matching) (*gate.Answer[api.Deleted], error) {
	w, err := a.records.Remove(ctx, kind, ref, cond)
	if err != nil {
		return nil, err
	}
	return gate.Deleted(w), nil
}

// read answers with the record that ref names.
func read[T any](a *API, kind registry.Kind, ref string, show func(*registry.Record) T) (*gate.Answer[T], error) {
	rec, err := a.records.Get(kind, ref)
	if err != nil {
		return nil, err
	}
	return gate.Read(rec, show(rec)), nil
}

// wrote answers with what was written; a new record has a path of its own below another.
func wrote[T any](w records.Written, err error, below string, show func(*registry.Record) T) (*gate.Answer[T], error) {
	if err != nil {
		return nil, err
	}
	if below != "" {
		below += w.Record.Meta.ID
	}
	return gate.Wrote(w, below, show(w.Record)), nil
}
