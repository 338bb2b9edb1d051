// Package manage holds the management commands of the ringmain program. Here are
// those about customers and the catalog; operate has those about the cluster
// itself. They know it by its API only.
package manage

import (
	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/cmd/ringmain/internal/operate"
)

// tool is what one command run shares.
type tool struct{ *cli.Tool }

// Commands gives the management commands.
func Commands(env cli.Env) []*cobra.Command {
	t := &tool{&cli.Tool{Env: env}}
	list := append([]*cobra.Command{
		t.orgCommand(), t.projectCommand(), t.keyCommand(), t.upstreamCommand(), t.routeCommand(),
		t.policyCommand(), t.regionCommand(), t.residencyCommand(), t.applyCommand(),
	}, operate.Commands(t.Tool)...)
	t.Bind(list)
	return list
}

// show prints one record, or hands on why there is none.
func show[T any](t *tool, record *T, err error, columns []cli.Column[T]) error {
	if err != nil {
		return err
	}
	return cli.Show(t.Tool, []T{*record}, true, columns)
}
