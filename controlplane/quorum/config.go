package quorum

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"
	"github.com/prometheus/client_golang/prometheus"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/members"
	"ringmain/controlplane/quorum/raftlog"
	"ringmain/controlplane/quorum/store"
	"ringmain/controlplane/quorum/wire"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
)

// maxCommand bounds an encoded command, in bytes: a follower that lags gets up
// to 64 of them in one message. Stage a shard snapshot in smaller chunks.
const maxCommand = 4 << 20

// Peer is one control node of the region.
type Peer struct {
	Node string `json:"node"`
	Addr string `json:"addr"` // host:port of its raft streams
}

// ShardSpec is a shard that the region is home of.
type ShardSpec struct {
	Shard   controlplane.Shard
	Members []string // regions that hold it, the home among them
}

// Config describes one control node. The zero value of a field is not allowed
// unless its comment says otherwise.
type Config struct {
	Cluster string
	Region  string
	Node    string
	Dir     string // directory of this node alone; made if absent, mode 0700

	// Peers are the nodes that found the region, the same list on all of them,
	// and this node. Afterwards they are the first contact only: who belongs
	// to the region, and where, is replicated, and changed by Add, Move and
	// Remove. A node is also looked for at its address here if it is not where
	// it was added.
	Peers []Peer
	// Reader says that this node is to be added as a reader: it founds nothing,
	// whatever its peers say.
	Reader bool
	// Expect is how many peers found the region, once all of them answer. A
	// node with an empty Dir and fewer peers waits to be contacted. 0 = as many
	// as Peers.
	Expect int
	// Homes are the shards to open, at first leadership, if they do not exist.
	// A member added later is let in by the next epoch. May be nil.
	Homes []ShardSpec

	// Since says which life of the region this is: a region that may have lost
	// commits begins another, and is let in as a new member. 0 = the first.
	Since uint64

	// Listener yields raft streams whose handshake is done; Dial opens one to
	// the named peer at addr, handshake included, and must fail if another node
	// answers there: its votes would count twice. Quorum closes the listener.
	Listener net.Listener
	Dial     func(ctx context.Context, node, addr string) (net.Conn, error)

	Sealer *seal.Sealer // of the region: its nodes read each other's snapshots

	// OnApply is told, in order, of every command that takes effect, those
	// replayed at start included. After a snapshot from the leader it gets an
	// Outcome with nothing but Points, Reset and Reports. It must not block. May be nil.
	OnApply func(out ledger.Outcome, sender controlplane.Epoch)

	Tunables   Tunables
	Logger     *slog.Logger          // nil = none
	Registerer prometheus.Registerer // nil = none

	logFiles types.VFS // tests: the disk under the raft log; nil = the real one
}

// Tunables have defaults, in brackets, for three nodes in one region. They must
// be the same on all of its nodes.
type Tunables struct {
	// Heartbeat is the least time without a leader before a follower asks for
	// an election; it asks after one to two of it. Leaders beat ten times as
	// often. Below 300 ms a busy machine mistakes itself for a dead one. [500 ms]
	Heartbeat time.Duration
	// Election is how long a candidate waits before it tries again, once or
	// twice over. Never less than Heartbeat. [Heartbeat]
	Election time.Duration
	// Lease is how long a leader believes in itself without a majority. Reads
	// do not rely on it, so it need not be short; it ends writes that cannot
	// succeed. Never more than Heartbeat. [Heartbeat]
	Lease time.Duration
	// Commit is how long followers may go without hearing of a commit, once or
	// twice over, when no further write tells them. Costs idle CPU. [20 ms]
	Commit time.Duration
	// Flush is how far the image on disk may lag behind. [80 ms]
	Flush time.Duration
	// Queue is how many proposals may wait; more get ErrOverloaded. [4096]
	Queue int
	// TrailingLogs is how many entries stay in the log behind a snapshot, so
	// that a node that was away need not copy everything. [10240]
	TrailingLogs uint64
	// SnapshotEntries is how many entries since the last snapshot warrant the
	// next, looked at every one to two SnapshotEvery. [8192, 30 s]
	SnapshotEntries uint64
	SnapshotEvery   time.Duration
	// SegmentBytes is the size of the log's files, allotted ahead. [16 MiB]
	SegmentBytes int
	// Stall is how long a write to the disk may take before the node gives up,
	// so that another leads. [5 s]
	Stall time.Duration
	// Promote is how long a node that was added must have kept up before it
	// votes. [10 s]
	Promote time.Duration
	// RemoveDead is after how long without an answer a voter is removed, if
	// three others remain and a majority of them answers. 0 = never. Below some
	// hours, maintenance looks like death.
	RemoveDead time.Duration
}

func (t *Tunables) setDefaults() {
	setDefault(&t.Heartbeat, 500*time.Millisecond)
	setDefault(&t.Election, t.Heartbeat)
	setDefault(&t.Lease, t.Heartbeat)
	setDefault(&t.Commit, 20*time.Millisecond)
	setDefault(&t.Flush, 80*time.Millisecond)
	setDefault(&t.Queue, 4096)
	setDefault(&t.TrailingLogs, 10240)
	setDefault(&t.SnapshotEntries, 8192)
	setDefault(&t.SnapshotEvery, 30*time.Second)
	setDefault(&t.SegmentBytes, 16<<20)
	setDefault(&t.Stall, 5*time.Second)
	setDefault(&t.Promote, 10*time.Second)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// check reports the first thing that cannot work, and sets defaults.
func (c *Config) check() error {
	c.Tunables.setDefaults()
	setDefault(&c.Expect, len(c.Peers))
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for name, value := range map[string]string{"Cluster": c.Cluster, "Region": c.Region, "Node": c.Node, "Dir": c.Dir} {
		if value == "" {
			return fmt.Errorf("quorum: %s is not set", name)
		}
	}
	switch {
	case c.Listener == nil || c.Dial == nil || c.Sealer == nil:
		return errors.New("quorum: Listener, Dial and Sealer must be set")
	case c.self().Node == "":
		return fmt.Errorf("quorum: node %q is not among its peers: list all control nodes of the region", c.Node)
	case c.Expect < len(c.Peers):
		return fmt.Errorf("quorum: %d nodes are expected but %d listed: make them equal", c.Expect, len(c.Peers))
	}
	nodes, addrs := make(map[string]bool), make(map[string]bool)
	for _, p := range c.Peers {
		switch {
		case p.Node == "" || p.Addr == "":
			return errors.New("quorum: a peer has no name or no address")
		case nodes[p.Node]:
			return fmt.Errorf("quorum: two peers are named %q: names are unique", p.Node)
		case addrs[p.Addr]:
			return fmt.Errorf("quorum: two peers have the address %s", p.Addr)
		}
		nodes[p.Node], addrs[p.Addr] = true, true
	}
	return nil
}

func (c *Config) self() Peer {
	for _, p := range c.Peers {
		if p.Node == c.Node {
			return p
		}
	}
	return Peer{}
}

func (c *Config) wire(logger hclog.Logger) wire.Config {
	w := wire.Config{Node: c.Node, Addrs: make(map[string]string), Listener: c.Listener, Dial: c.Dial, Version: registry.Version, Logger: logger}
	for _, p := range c.Peers {
		w.Addrs[p.Node] = p.Addr
	}
	return w
}

func (c *Config) store(fatal func(error)) store.Config {
	return store.Config{Dir: c.Dir, Cluster: c.Cluster, Region: c.Region, Sealer: c.Sealer, Logger: raftlog.New(c.Logger),
		SegmentBytes: c.Tunables.SegmentBytes, Fatal: fatal, Files: c.logFiles}
}

func (q *Quorum) membersConfig() members.Config {
	return members.Config{Raft: q.raft, Self: q.cfg.Node, Leads: q.leadsIn, Elsewhere: q.elsewhere, Pulse: q.pulse, Moved: q.trans.Moved,
		Promote: q.cfg.Tunables.Promote, RemoveDead: q.cfg.Tunables.RemoveDead, Logger: q.log}
}

// founders is the membership with which a fresh region begins.
func (c *Config) founders() raft.Configuration {
	var conf raft.Configuration
	for _, p := range c.Peers {
		conf.Servers = append(conf.Servers, raft.Server{
			Suffrage: raft.Voter,
			ID:       raft.ServerID(p.Node),
			Address:  raft.ServerAddress(p.Addr),
		})
	}
	return conf
}

func (c *Config) raftConfig(notify chan<- bool) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.Node)
	rc.HeartbeatTimeout = c.Tunables.Heartbeat
	rc.ElectionTimeout = c.Tunables.Election
	rc.LeaderLeaseTimeout = c.Tunables.Lease
	rc.CommitTimeout = c.Tunables.Commit
	rc.BatchApplyCh = true
	rc.TrailingLogs = c.Tunables.TrailingLogs
	rc.SnapshotThreshold = c.Tunables.SnapshotEntries
	rc.SnapshotInterval = c.Tunables.SnapshotEvery
	rc.NoSnapshotRestoreOnStart = true // the image is as far, or reconcile brought it there
	rc.NotifyCh = notify
	rc.ShutdownOnRemove = false // it says what happened, and can be added again
	rc.Logger = raftlog.New(c.Logger)
	rc.NoLegacyTelemetry = true
	return rc
}
