// Package bulletin merges what nodes say about their own health and what
// observers say about regions. It is pure: no clock, no network, no goroutine;
// whoever calls passes the time. Encoding and spreading belong to gossip,
// decisions that follow from health to whoever reads the view.
package bulletin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Key names a node.
type Key struct{ Region, Node string }

// String gives "region/node".
func (k Key) String() string { return k.Region + "/" + k.Node }

// Version orders what is said about one node. A restarted node has a higher
// incarnation; within one, the sequence counts.
type Version struct{ Incarnation, Seq uint64 }

// Compare returns -1, 0 or +1 as v precedes, equals or follows w.
func (v Version) Compare(w Version) int {
	if c := cmp.Compare(v.Incarnation, w.Incarnation); c != 0 {
		return c
	}
	return cmp.Compare(v.Seq, w.Seq)
}

// Digest is what a node says about itself. Of one version there is one digest:
// only the node itself writes it.
type Digest struct {
	Region      string            `cbor:"1,keyasint"`
	Node        string            `cbor:"2,keyasint"`
	Role        string            `cbor:"3,keyasint,omitempty"` // control or data
	Incarnation uint64            `cbor:"4,keyasint"`           // start time, Unix milliseconds
	Seq         uint64            `cbor:"5,keyasint"`
	Ready       bool              `cbor:"6,keyasint,omitempty"`
	Draining    bool              `cbor:"7,keyasint,omitempty"`
	WorkerAlive bool              `cbor:"8,keyasint,omitempty"` // data nodes
	InFlight    uint32            `cbor:"9,keyasint,omitempty"` // requests
	Capacity    uint32            `cbor:"10,keyasint,omitempty"`
	Peer        string            `cbor:"11,keyasint,omitempty"` // host:port for other nodes
	API         string            `cbor:"12,keyasint,omitempty"` // host:port for clients
	Pools       []string          `cbor:"13,keyasint,omitempty"`
	Position    string            `cbor:"14,keyasint,omitempty"` // how far its state is, in short
	Breakers    map[string]string `cbor:"15,keyasint,omitempty"` // those that are not closed, and their state

	// What data nodes say of changes that may break one.
	Proven   string   `cbor:"16,keyasint,omitempty"` // how far the configuration is that its worker lives with
	Suspects []string `cbor:"17,keyasint,omitempty"` // changes on which a process died once
	LeftOut  []string `cbor:"18,keyasint,omitempty"` // and twice

	StateAge uint32 `cbor:"19,keyasint,omitempty"` // data nodes: seconds since their state was last known to be current, in tens
}

// Obituary says that a node was dead as of a version. Only nodes of its own
// region, which watch it closely, write one; the node itself does to say that
// it leaves. A later digest refutes it.
type Obituary struct {
	Region      string `cbor:"1,keyasint"`
	Node        string `cbor:"2,keyasint"`
	Incarnation uint64 `cbor:"3,keyasint"`
	Seq         uint64 `cbor:"4,keyasint"`
	By          string `cbor:"5,keyasint"` // a node of the same region; the node itself means it left
}

// Claim is what one observer says about whether a region can be reached.
type Claim struct {
	Region      string `cbor:"1,keyasint"` // the observer's
	Node        string `cbor:"2,keyasint"`
	Subject     string `cbor:"3,keyasint"` // the region it is about
	Up          bool   `cbor:"4,keyasint"`
	Incarnation uint64 `cbor:"5,keyasint"` // the observer's
	Seq         uint64 `cbor:"6,keyasint"`
}

// Key is the node the digest is of.
func (d *Digest) Key() Key { return Key{d.Region, d.Node} }

// Version is the digest's place among those of its node.
func (d *Digest) Version() Version { return Version{d.Incarnation, d.Seq} }

// Key is the node that died.
func (o *Obituary) Key() Key { return Key{o.Region, o.Node} }

// Version is the last digest the obituary knew.
func (o *Obituary) Version() Version { return Version{o.Incarnation, o.Seq} }

// Observer is the node that claims.
func (c *Claim) Observer() Key { return Key{c.Region, c.Node} }

// Version is the claim's place among those of its observer about its subject.
func (c *Claim) Version() Version { return Version{c.Incarnation, c.Seq} }

// Limits of what one node may say, so that no peer can bloat the others.
const (
	maxName = 63
	maxText = 256
	maxList = 64
)

// Check refuses what no honest node would say.
func (d *Digest) Check() error {
	if err := checkNames(d.Region, d.Node); err != nil {
		return err
	}
	short := []string{d.Role, d.Peer, d.API, d.Position, d.Proven}
	short = append(append(append(short, d.Pools...), d.Suspects...), d.LeftOut...)
	for name, state := range d.Breakers {
		short = append(short, name, state)
	}
	if len(d.Pools) > maxList || len(d.Breakers) > maxList || len(d.Suspects) > maxList || len(d.LeftOut) > maxList ||
		slices.ContainsFunc(short, func(s string) bool { return len(s) > maxText }) {
		return fmt.Errorf("bulletin: digest of %s is too large", d.Key())
	}
	return nil
}

func checkNames(names ...string) error {
	for _, n := range names {
		if n == "" || len(n) > maxName {
			return fmt.Errorf("bulletin: %q is no name of a region or node", n)
		}
	}
	return nil
}

// NodeView is what is known of one node. It is advisory.
type NodeView struct {
	Digest
	Alive bool      // its digest stands, and membership agrees
	Left  bool      // it said goodbye
	Since time.Time // when Alive last changed here; zero if it never did
}

// Table holds the newest of everything heard. It is not safe for concurrent
// use. Merging is idempotent and takes the same messages in any order to the
// same end.
type Table struct {
	nodes   map[Key]*entry
	claims  map[claimKey]*heard
	regions map[string]*region
	barred  map[Key]struct{}
}

type entry struct {
	digest Digest
	obit   Obituary
	member bool // what membership says here
	alive  bool
	since  time.Time
}

type claimKey struct {
	observer Key
	subject  string
}

type heard struct {
	claim Claim
	at    time.Time
}

// New returns an empty Table.
func New() *Table {
	return &Table{nodes: map[Key]*entry{}, claims: map[claimKey]*heard{}, regions: map[string]*region{}, barred: map[Key]struct{}{}}
}

// Bar drops what the node said and what is known of it, and lets nothing of it
// or about it in again.
func (t *Table) Bar(k Key, now time.Time) {
	t.barred[k] = struct{}{}
	delete(t.nodes, k)
	maps.DeleteFunc(t.claims, func(c claimKey, _ *heard) bool { return c.observer == k })
	t.advance(now)
}

// Barred reports whether nothing is to be heard of the node.
func (t *Table) Barred(k Key) bool {
	_, barred := t.barred[k]
	return barred
}

// Merge takes a digest and reports whether it was news.
func (t *Table) Merge(d Digest, now time.Time) bool {
	if d.Check() != nil || d.Version() == (Version{}) || t.Barred(d.Key()) {
		return false
	}
	e := t.entry(d.Key())
	if d.Version().Compare(e.digest.Version()) <= 0 {
		return false
	}
	e.digest = d
	t.know(d.Region)
	e.settle(now)
	return true
}

// MergeObituary takes an obituary and reports whether it was news.
func (t *Table) MergeObituary(o Obituary, now time.Time) bool {
	if checkNames(o.Region, o.Node, o.By) != nil || o.Version() == (Version{}) || t.Barred(o.Key()) || t.Barred(Key{o.Region, o.By}) {
		return false
	}
	e := t.entry(o.Key())
	// Of two for one version, the node's own word counts more.
	switch c := o.Version().Compare(e.obit.Version()); {
	case c < 0, c == 0 && (o.By != o.Node || e.obit.By == o.Node):
		return false
	}
	e.obit = o
	e.settle(now)
	return true
}

// MergeClaim takes an observer's claim and reports whether it was news.
func (t *Table) MergeClaim(c Claim, now time.Time) bool {
	if checkNames(c.Region, c.Node, c.Subject) != nil || t.Barred(c.Observer()) {
		return false
	}
	key := claimKey{c.Observer(), c.Subject}
	if old := t.claims[key]; old != nil && c.Version().Compare(old.claim.Version()) <= 0 {
		return false
	}
	t.claims[key] = &heard{c, now}
	t.know(c.Region)
	t.know(c.Subject)
	t.advance(now)
	return true
}

// SetMember records whether membership holds the node to be there. Nobody is a
// member until this says so.
func (t *Table) SetMember(k Key, member bool, now time.Time) {
	if t.Barred(k) {
		return
	}
	e := t.entry(k)
	e.member = member
	e.settle(now)
}

// Node is what is known of one node, if it has a digest.
func (t *Table) Node(k Key) (NodeView, bool) {
	e := t.nodes[k]
	if e == nil || e.digest.Version() == (Version{}) {
		return NodeView{}, false
	}
	return e.view(), true
}

// Nodes lists every node with a digest, by region and name.
func (t *Table) Nodes() []NodeView {
	views := make([]NodeView, 0, len(t.nodes))
	for _, e := range t.nodes {
		if e.digest.Version() != (Version{}) {
			views = append(views, e.view())
		}
	}
	slices.SortFunc(views, func(a, b NodeView) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Node, b.Node))
	})
	return views
}

// Dump returns what a peer that knows nothing must be told, but for nodes that
// have been gone for longer than age: those are on their way to be forgotten.
func (t *Table) Dump(now time.Time, age time.Duration) (digests []Digest, obituaries []Obituary, claims []Claim) {
	for _, k := range slices.SortedFunc(maps.Keys(t.nodes), compareKeys) {
		e := t.nodes[k]
		if !e.alive && !e.since.IsZero() && now.Sub(e.since) > age {
			continue
		}
		if e.digest.Version() != (Version{}) {
			digests = append(digests, e.digest)
		}
		if e.obit.Version() != (Version{}) {
			obituaries = append(obituaries, e.obit)
		}
	}
	for _, h := range t.claims {
		if now.Sub(h.at) <= claimLife {
			claims = append(claims, h.claim)
		}
	}
	return digests, obituaries, claims
}

// Forget drops nodes that have been gone, and claims that have been silent,
// for longer than age.
func (t *Table) Forget(now time.Time, age time.Duration) {
	maps.DeleteFunc(t.nodes, func(_ Key, e *entry) bool {
		return !e.alive && !e.member && now.Sub(e.since) > age
	})
	maps.DeleteFunc(t.claims, func(_ claimKey, h *heard) bool { return now.Sub(h.at) > age })
	used := map[string]bool{}
	for k := range t.nodes {
		used[k.Region] = true
	}
	for k := range t.claims {
		used[k.subject], used[k.observer.Region] = true, true
	}
	maps.DeleteFunc(t.regions, func(name string, _ *region) bool { return !used[name] })
}

func (t *Table) entry(k Key) *entry {
	e := t.nodes[k]
	if e == nil {
		e = &entry{}
		t.nodes[k] = e
	}
	return e
}

// settle derives whether the node is alive.
func (e *entry) settle(now time.Time) {
	alive := e.member && e.digest.Version().Compare(e.obit.Version()) > 0
	if alive != e.alive || e.since.IsZero() {
		e.alive, e.since = alive, now
	}
}

func (e *entry) view() NodeView {
	return NodeView{Digest: e.digest, Alive: e.alive, Left: e.left(), Since: e.since}
}

// left says that the node's last word was goodbye.
func (e *entry) left() bool {
	return e.obit.By != "" && e.obit.By == e.obit.Node && e.obit.Version().Compare(e.digest.Version()) >= 0
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Node, b.Node))
}
