// Package revoke refuses keys, credentials, nodes and tokens for good: who is told
// before the commit, who must be asked first, and who is known to hold it when the
// answer is given.
package revoke

import (
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/audit"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/homes"
	"ringmain/controlplane/registry"
)

// Sink tells data nodes of a revocation before it is committed. It
// must not block. hub.Hub is one.
type Sink interface{ PushRevocations([]registry.Revocation) }

// Holders says how far data nodes are, as they say themselves. hub.Hub is one.
type Holders interface {
	HeldBy(region, node string, shard controlplane.Shard) (controlplane.Point, bool)
	// HeldChanged is closed when HeldBy may answer otherwise.
	HeldChanged() <-chan struct{}
}

// Homes says how far the regions hold a shard.
type Homes interface {
	Reach(shard controlplane.Shard) (homes.Reach, error)
}

// Config configures a Desk. All but the first four may be nil.
type Config struct {
	Region  string
	Records *records.Records
	HeldIn  time.Duration // how long an answer waits for regions and data nodes on their way to it
	Now     func() time.Time

	Tokens    []gate.Token
	Homes     Homes
	Sink      Sink
	Announced func(registry.Kind, string) bool // revocations that this node has heard of before they are committed
	Nodes     func() []api.Node                // what gossip knows
	Holders   Holders                          // what data nodes say before gossip does
	Audit     audit.Log
}

// Desk revokes.
type Desk struct {
	cfg     Config
	records *records.Records
}

// New makes a Desk.
func New(cfg Config) *Desk { return &Desk{cfg, cfg.Records} }
