// Package members looks after who belongs to a region's Raft: it adds, moves and
// removes nodes by command, and while its node leads it looks at every member,
// makes a voter of one that has kept up, writes down where one has moved to, and
// removes the dead if it is told to.
//
// Raft's configuration is the only record of the membership. How messages reach
// a node may not enter, nor what the log holds.
package members

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Config is what a Keeper needs of its node. All of it is needed, but for the
// durations: 0 = at once, and never.
type Config struct {
	Raft *raft.Raft
	Self string // this node's name

	Leads     func() (term uint64, ok bool) // whether this node leads, and takes writes
	Elsewhere func() error                  // what to answer if it does not
	// Pulse sends a member a heartbeat beside raft's own, in a term that this
	// node leads in.
	Pulse func(term uint64, s raft.Server) (*raft.AppendEntriesResponse, error)
	// Moved is where a node answers that is not at replicated; "" otherwise.
	Moved func(id raft.ServerID, replicated string) string

	Promote    time.Duration // how long a node must have kept up before it votes
	RemoveDead time.Duration // after how long a silent voter is removed
	Logger     *slog.Logger
}

// Max is how many nodes a region may have.
const Max = 64

// readerMark begins the address of a reader in raft's configuration.
const readerMark = "reader@"

// Keeper looks after the membership. It is safe for concurrent use.
type Keeper struct {
	cfg     Config
	watch   watch
	changes chan change
	ended   chan struct{}         // closed when Run ends
	outside atomic.Pointer[error] // why this node is no member of its region
	led     time.Time             // when there last was a leader; of Run
}

// New returns a Keeper that Run has to be called of.
func New(cfg Config) *Keeper {
	return &Keeper{cfg: cfg, changes: make(chan change), ended: make(chan struct{}), watch: watch{busy: make(map[raft.ServerID]bool)}}
}

func (k *Keeper) leads() bool {
	_, ok := k.cfg.Leads()
	return ok
}

func (k *Keeper) servers() []raft.Server {
	return k.cfg.Raft.GetConfiguration().Configuration().Servers
}

// Peer is one control node of the region.
type Peer struct {
	Node string
	Addr string // host:port of its raft streams
}
