// Package store is what raft keeps on a node's disk: its log, its terms and
// votes, and its snapshots, every payload sealed and every description vouched
// for; and the directory they share, which belongs to one node and one process.
//
// It finds damage and names it, and mends what a crash leaves behind. What an
// entry or a snapshot means may not enter: the registry's image, which is beside
// them on the disk, is another room.
package store

import (
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft-wal/types"

	"ringmain/controlplane/seal"
)

// Config says whose files they are. All of it is needed, but for Files.
type Config struct {
	Dir     string // see Claim
	Cluster string
	Region  string
	Sealer  *seal.Sealer
	Logger  hclog.Logger

	SegmentBytes int         // size of the log's files, allotted ahead
	Fatal        func(error) // called when the log can no longer be trusted: stop the node
	Files        types.VFS   // the disk under the log; nil = the real one
}
