package backup

import (
	"fmt"
	"io"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/seal"
)

// Target is the region that is to begin with a backup.
type Target struct {
	Dir     string // of one node's quorum: absent or empty
	Cluster string // a new one, or the backup's own if its region is gone for good
	Region  string // must be the backup's: its shards name it
	Node    string
	Peers   []quorum.Peer // all voters of the new region
	Sealer  *seal.Sealer  // the new region's, not the backup's
	Since   uint64        // which life of the region begins: now, in Unix milliseconds
}

// Restore makes the directory of one node of the target from the backup, which
// it reads and checks to its end first. Start that node and, with empty
// directories, the other peers, which copy it. Over data that is there it does
// nothing, and says what is there.
//
// The region has lost what came after the backup: it is in another life, and a
// new member to all others. Errors are as of Inspect, and
// controlplane.ErrWrongCluster for another region.
func Restore(r io.Reader, sealer *seal.Sealer, to Target) (Info, error) {
	info, state, err := Read(r, sealer)
	if err != nil {
		return info, err
	}
	if to.Region != info.Region {
		return info, fmt.Errorf("backup: it is of region %q, not %q: %w", info.Region, to.Region, controlplane.ErrWrongCluster)
	}
	err = quorum.Seed(quorum.SeedConfig{
		Dir: to.Dir, Cluster: to.Cluster, Region: to.Region, Node: to.Node, Peers: to.Peers, Sealer: to.Sealer,
		Applied: info.Applied, Term: info.Term, Life: max(to.Since, info.Since+1),
	}, state)
	if err != nil {
		return info, fmt.Errorf("backup: %w", err)
	}
	return info, nil
}
