// Package link is what a data node's keeper and its worker have between them:
// a local socket with one framed message type, and for metadata records a ring
// in shared memory. Nothing in it touches a disk.
package link

import (
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
)

// Type says which field of a Message is set.
type Type uint8

// Messages of protocol version 2.
const (
	TypeHello         Type = iota + 1 // worker -> keeper, first
	TypeSetup                         // keeper -> worker, answer to Hello; again with renewed certificates
	TypeState                         // keeper -> worker: feed frames, each encoded as on the feed
	TypePeers                         // keeper -> worker: the gossip table
	TypeDrain                         // keeper -> worker: stop accepting, finish what runs, within Seq ms if that is not 0
	TypeMetricsAsk                    // keeper -> worker
	TypeMetrics                       // worker -> keeper: answer
	TypeLog                           // worker -> keeper: one slog line in JSON
	TypeWake                          // worker -> keeper: records lie in the ring
	TypeVerdicts                      // worker -> keeper: new verdicts to share
	TypeHealth                        // worker -> keeper: what gossip should say
	TypeLoaded                        // keeper -> worker: the state is complete; serve. May come again when Unknown changes
	TypePin                           // keeper -> worker: a record of the safety file, in Bytes: nothing older may loosen it
	TypeResync                        // worker -> keeper: a frame did not fit; send Shard again
	TypeReceipts                      // worker -> keeper: a signed batch of receipts, in Bytes; Seq is its checkpoint's number
	TypeReceiptsAck                   // keeper -> worker: batch Seq is on disk
	TypeReceiptAsk                    // worker -> keeper: the receipt of the request in Bytes; Seq names the question
	TypeReceiptAnswer                 // keeper -> worker: the entry in Bytes; none = there is none
)

// Message is one frame on the socket.
type Message struct {
	Type     Type               `cbor:"1,keyasint"`
	Hello    *Hello             `cbor:"2,keyasint,omitempty"`
	Setup    *Setup             `cbor:"3,keyasint,omitempty"`
	Frames   [][]byte           `cbor:"4,keyasint,omitempty"` // State: feed.EncodeFrame
	Peers    *Peers             `cbor:"5,keyasint,omitempty"`
	Seq      uint64             `cbor:"6,keyasint,omitempty"` // MetricsAsk, Metrics; Drain; Pin: counter of the epoch of a change that has not arrived
	Bytes    []byte             `cbor:"7,keyasint,omitempty"` // Log, Pin, Metrics (delimited protobuf families)
	Verdicts []feed.Verdict     `cbor:"8,keyasint,omitempty"`
	Health   *Health            `cbor:"9,keyasint,omitempty"`
	Unknown  bool               `cbor:"10,keyasint,omitempty"` // Loaded: revocations could not be read; see view.View.SafetyUnknown
	Shard    controlplane.Shard `cbor:"11,keyasint,omitempty"` // Resync
}

// Hello is how a worker names itself, to the keeper that started it and to one that adopts it.
type Hello struct {
	PID         int                   `cbor:"1,keyasint"`
	Cluster     string                `cbor:"2,keyasint"` // empty until Setup
	Region      string                `cbor:"3,keyasint"`
	Node        string                `cbor:"4,keyasint"`
	Build       string                `cbor:"5,keyasint"`
	Loaded      bool                  `cbor:"6,keyasint"` // holds state; an adopting keeper need not replay its disk
	Confinement Confinement           `cbor:"7,keyasint"`
	Run         uint64                `cbor:"8,keyasint"` // number of this worker's ring; its records count from 1
	Position    controlplane.Position `cbor:"9,keyasint"` // of the state it holds
}

// Confinement states which controls hold for the worker, as it measured them itself.
type Confinement struct {
	Landlock    int  `cbor:"1,keyasint" json:"landlock"`      // ABI in force; 0 = none
	NoFileWrite bool `cbor:"2,keyasint" json:"no_file_write"` // RLIMIT_FSIZE is 0
	NoDump      bool `cbor:"3,keyasint" json:"no_dump"`       // PR_GET_DUMPABLE is 0 and RLIMIT_CORE is 0
	NoSwap      bool `cbor:"4,keyasint" json:"no_swap"`       // /proc/swaps empty or memory.swap.max 0
}

// Holds reports whether every control is in force.
func (c Confinement) Holds() bool {
	return c.Landlock > 0 && c.NoFileWrite && c.NoDump && c.NoSwap
}

// Setup is all a worker needs to know; it opens no file for it.
type Setup struct {
	Cluster       string   `cbor:"1,keyasint"`
	Region        string   `cbor:"2,keyasint"`
	Jurisdiction  string   `cbor:"3,keyasint"`
	Node          string   `cbor:"4,keyasint"`
	APICert       []byte   `cbor:"5,keyasint"`            // PEM chain
	APIKey        []byte   `cbor:"6,keyasint"`            // PEM
	NodeCert      []byte   `cbor:"7,keyasint"`            // PEM chain: leaf, region issuer
	NodeKey       []byte   `cbor:"8,keyasint"`            // PEM
	Roots         []byte   `cbor:"9,keyasint"`            // PEM: cluster roots
	UpstreamCA    []byte   `cbor:"10,keyasint,omitempty"` // PEM, beside the system's roots; empty = none
	VerdictSecret []byte   `cbor:"11,keyasint"`
	Pools         []string `cbor:"12,keyasint"`
	Capacity      uint32   `cbor:"13,keyasint"` // requests in flight before shedding; 0 = 4096

	Documents   []Document `cbor:"14,keyasint,omitempty"` // published under /legal and /.well-known
	ReceiptHash string     `cbor:"15,keyasint,omitempty"` // sha-256 = no other hash of bodies in receipts; empty = the fastest for the size

	StandardHTTP2 bool `cbor:"16,keyasint,omitempty"` // clients are served by net/http's HTTP/2, not by ours
	StandardHTTP1 bool `cbor:"18,keyasint,omitempty"` // by its HTTP/1.1, likewise

	Edge Edge `cbor:"17,keyasint,omitzero"` // sent again when it changes

	KeyAge map[string]time.Duration `cbor:"18,keyasint,omitempty"` // by class of keys; see caller.Config.MaxAge
}

// Edge is what strangers may do at the clients' listener; see edge.Limits,
// whose fields and defaults these are.
type Edge struct {
	Conns     int           `cbor:"1,keyasint,omitempty"`
	Silent    int           `cbor:"2,keyasint,omitempty"`
	PerSecond int           `cbor:"3,keyasint,omitempty"`
	Total     int           `cbor:"4,keyasint,omitempty"`
	Aborts    int           `cbor:"5,keyasint,omitempty"`
	Age       time.Duration `cbor:"6,keyasint,omitempty"`
	Wrong     int           `cbor:"7,keyasint,omitempty"`
	Late      time.Duration `cbor:"8,keyasint,omitempty"`
	Held      int           `cbor:"9,keyasint,omitempty"`
	HeldTotal int           `cbor:"10,keyasint,omitempty"`

	WrongTotal int `cbor:"11,keyasint,omitempty"`
}

// Document is one page that the operator supplies; see package documents.
type Document struct {
	Name string `cbor:"1,keyasint"`
	Type string `cbor:"2,keyasint"` // content type
	Body []byte `cbor:"3,keyasint"`
}

// Peers is what gossip knows of other data nodes and of regions. It is advisory.
type Peers struct {
	Nodes   []Peer       `cbor:"1,keyasint"`
	Regions []PeerRegion `cbor:"2,keyasint"`
}

// Peer is one other data node.
type Peer struct {
	Region   string   `cbor:"1,keyasint"`
	Node     string   `cbor:"2,keyasint"`
	Addr     string   `cbor:"3,keyasint"` // host:port of its peer listener
	Alive    bool     `cbor:"4,keyasint"`
	Ready    bool     `cbor:"5,keyasint"`
	Draining bool     `cbor:"6,keyasint"`
	InFlight uint32   `cbor:"7,keyasint"`
	Capacity uint32   `cbor:"8,keyasint"`
	Pools    []string `cbor:"9,keyasint"`

	Breakers map[string]string `cbor:"10,keyasint,omitempty"` // as in its Health
}

// PeerRegion is the published state of one region.
type PeerRegion struct {
	Region string `cbor:"1,keyasint"`
	Up     bool   `cbor:"2,keyasint"`
	Since  int64  `cbor:"3,keyasint"` // Unix milliseconds
}

// Health is what a worker lets gossip say about it.
type Health struct {
	Ready    bool              `cbor:"1,keyasint"`
	Draining bool              `cbor:"2,keyasint"`
	InFlight uint32            `cbor:"3,keyasint"`
	Capacity uint32            `cbor:"4,keyasint"`
	Breakers map[string]string `cbor:"5,keyasint,omitempty"` // not closed: "upstream/model/path" or "peer/node" -> open, half-open

	Confinement Confinement `cbor:"6,keyasint"` // as last measured; filled in by the Attendant

	StateAge uint32 `cbor:"7,keyasint,omitempty"` // seconds since the state was last known to be current
}
