package operate

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/controlplane/admin/api"
)

var nodeColumns = []cli.Column[api.Node]{
	cli.Col("REGION", func(n api.Node) string { return n.Region }),
	cli.Col("NAME", func(n api.Node) string { return n.Name }),
	cli.Col("ROLE", func(n api.Node) string { return n.Role }),
	cli.Col("STATE", func(n api.Node) string {
		switch {
		case !n.Alive:
			return "dead"
		case n.Draining:
			return "draining"
		case !n.Ready:
			return "not ready"
		}
		return "ready"
	}),
	cli.Col("LOAD", func(n api.Node) string {
		if n.Capacity == 0 {
			return ""
		}
		return fmt.Sprintf("%d/%d", n.InFlight, n.Capacity)
	}),
	cli.Col("POOLS", func(n api.Node) string { return strings.Join(n.Pools, ",") }),
	cli.Col("OPEN-BREAKERS", func(n api.Node) string {
		if len(n.Breakers) == 0 {
			return ""
		}
		return strconv.Itoa(len(n.Breakers))
	}),
	cli.Col("API", func(n api.Node) string { return n.API }),
}

func (t *tool) nodeCommand() *cobra.Command {
	var region string
	list := t.Command("list", "list nodes", "  ringmain node list --region eu-fra", func(ctx context.Context, c *adminclient.Client, _ []string) error {
		all, err := c.Nodes(ctx)
		if err != nil {
			return err
		}
		nodes := []api.Node{}
		for _, n := range all {
			if region == "" || n.Region == region {
				nodes = append(nodes, n)
			}
		}
		return cli.Show(t.Tool, nodes, false, nodeColumns)
	})
	list.Flags().StringVar(&region, "region", "", "only nodes of this region")
	return cli.Group("node", "see nodes, and change who is in a region", "  ringmain node list\n  ringmain node members --region eu-fra",
		append([]*cobra.Command{list, t.revokeNodeCommand()}, t.raftCommands()...)...)
}

// shardRow is one line of the status table.
type shardRow struct {
	st    api.Status
	shard api.ShardStatus
}

var statusColumns = []cli.Column[shardRow]{
	cli.Col("REGION", func(r shardRow) string { return r.st.Region }),
	cli.Col("ASKED", func(r shardRow) string { return r.st.Node }),
	cli.Col("LEADER", func(r shardRow) string { return r.st.Leader }),
	cli.Col("SHARD", func(r shardRow) string { return r.shard.Shard }),
	cli.Col("HOME", func(r shardRow) string { return r.shard.Home }),
	cli.Col("POSITION", func(r shardRow) string { return r.shard.Position }),
	cli.Col("BEHIND", func(r shardRow) string {
		if r.shard.Behind == nil {
			return ""
		}
		return strconv.FormatUint(*r.shard.Behind, 10)
	}),
}

func (t *tool) statusCommand() *cobra.Command {
	return t.Local("status", "what every region says of itself", "  ringmain status\n  ringmain status --server https://127.0.0.1:8451 -o json", func(ctx context.Context, _ []string) error {
		cfg, err := t.ClientConfig()
		if err != nil {
			return err
		}
		var all []api.Status
		var failed []error
		for _, server := range cfg.Servers {
			st, err := statusOf(ctx, server, cfg)
			if err != nil {
				failed = append(failed, err)
				t.Say("%v", err)
				continue
			}
			all = append(all, *st)
		}
		if len(all) == 0 {
			return fmt.Errorf("none of %d servers answered", len(failed))
		}
		if !t.Table() {
			return t.Encode(all)
		}
		var rows []shardRow
		for _, st := range all {
			for _, sh := range st.Shards {
				rows = append(rows, shardRow{st, sh})
			}
			if len(st.Shards) == 0 {
				rows = append(rows, shardRow{st: st})
			}
		}
		return cli.Show(t.Tool, rows, false, statusColumns)
	})
}

func statusOf(ctx context.Context, server string, cfg adminclient.Config) (*api.Status, error) {
	cfg.Servers = []string{server}
	c, err := adminclient.New(cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Status(ctx)
}
