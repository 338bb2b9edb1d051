// Package exchange is all that happens to one request at a node: who asks and
// what they may do, its body, the walk to somebody who answers, the answer on
// its way back, and what is recorded and stated of it. It also answers what
// needs no upstream: models, receipts, documents, health.
//
// Nothing here listens, starts or ends: the worker around it does. Nothing of a
// request's content leaves it but towards who serves the request.
package exchange

import (
	"log/slog"
	"sync/atomic"
	"time"

	"ringmain/controlplane"
	"ringmain/dataplane/admission"
	"ringmain/dataplane/body"
	"ringmain/dataplane/caller"
	"ringmain/dataplane/documents"
	"ringmain/dataplane/edge"
	"ringmain/dataplane/link"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/view"
	"ringmain/dataplane/walk"
)

// Config of a Node. All of it must be set.
type Config struct {
	Setup    *link.Setup // who this node is, and the documents it publishes; not changed
	Store    *view.Store
	Ground   *walk.Ground
	Checker  *caller.Checker
	Receipts *receipt.Log
	Gate     *admission.Gate
	Guard    *edge.Guard
	Metrics  *Metrics
	Log      *slog.Logger
	// Emit hands one encoded record over, and returns when it is sure to be kept.
	// The record may be changed once it returned.
	Emit func(record []byte) error
	// Room reports whether what happens to one more request can be recorded.
	Room       func() bool
	Confined   func() link.Confinement // what holds for this process, as last measured
	Revoked    func() bool             // whether this node is
	Attempts   int                     // at upstreams for one request, over all regions
	WriteStall time.Duration           // how long a client may take nothing
	Bodies     int64                   // bytes of large request bodies held at once
}

// Node is what all requests of this node share.
type Node struct {
	Config
	bodies   *body.Pool
	fixed    fixedHeaders
	pages    *documents.Pages
	meeting  atomic.Int64 // requests whose key is being checked
	draining atomic.Bool
	ending   atomic.Bool
}

// New makes a Node.
func New(cfg Config) *Node {
	return &Node{
		Config: cfg, bodies: body.NewPool(cfg.Bodies), fixed: newFixedHeaders(cfg.Setup), pages: documents.NewPages(cfg.Setup.Documents),
	}
}

// Age is how long this node has not known that its state is current.
func (n *Node) Age() time.Duration {
	now, v := time.Now(), n.Store.View()
	return max(v.Age(controlplane.JurisdictionAny, now), v.Age(n.Setup.Jurisdiction, now))
}

// Ready reports whether requests should be sent here.
func (n *Node) Ready() bool {
	v := n.Store.View()
	return v.Loaded() && !v.SafetyUnknown() && !n.draining.Load() && !n.Revoked()
}

// Drain has the node say from now on that it is not ready, and tell connections
// to go with their next answer. It goes on answering.
func (n *Node) Drain() { n.draining.Store(true) }

// Draining reports whether Drain was called.
func (n *Node) Draining() bool { return n.draining.Load() }

// End has requests that are under way end with an error that says why, as soon as
// their contexts end.
func (n *Node) End() { n.ending.Store(true) }

// Busy reports whether a request is under way.
func (n *Node) Busy() bool { return n.Gate.InFlight() > 0 || n.meeting.Load() > 0 }

// regionUp reports whether gossip publishes region as up; one that nobody spoke
// of is.
func (n *Node) regionUp(region string) bool {
	for _, r := range n.Ground.Peers().Regions {
		if r.Region == region {
			return r.Up
		}
	}
	return true
}
