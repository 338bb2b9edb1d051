// Package operate holds the commands about the cluster itself: which region writes
// what, who is in a region, what to refuse for good, and the files of nodes that
// are stopped and of backups. It knows the cluster by its API, and files by the
// rooms that they belong to.
package operate

import (
	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/cli"
)

// tool is what one command run shares.
type tool struct{ *cli.Tool }

// Commands gives the commands, which t connects and prints for.
func Commands(shared *cli.Tool) []*cobra.Command {
	t := &tool{shared}
	return []*cobra.Command{
		t.shardCommand(), t.quarantineCommand(), t.nodeCommand(), t.rolloutCommand(), t.tokenCommand(), t.backupCommand(), t.statusCommand(),
	}
}
