package operate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/dataplane/keeper/trial"
)

var rolloutColumns = []cli.Column[api.Node]{
	cli.Col("REGION", func(n api.Node) string { return n.Region }),
	cli.Col("NODE", func(n api.Node) string { return n.Name }),
	cli.Col("LIVES-WITH", func(n api.Node) string { return n.Proven }),
	cli.Col("DIED-ONCE-ON", func(n api.Node) string { return strings.Join(n.Suspects, " ") }),
	cli.Col("LEFT-OUT", func(n api.Node) string { return strings.Join(n.LeftOut, " ") }),
}

func (t *tool) rolloutCommand() *cobra.Command {
	return t.Command("rollout", "see how far each data node is with the configuration, and which changes crash them", "  ringmain rollout", func(ctx context.Context, c *adminclient.Client, _ []string) error {
		all, err := c.Nodes(ctx)
		if err != nil {
			return err
		}
		nodes := []api.Node{}
		for _, n := range all {
			if n.Role == "data" && n.Alive {
				nodes = append(nodes, n)
			}
		}
		if err := cli.Show(t.Tool, nodes, false, rolloutColumns); err != nil {
			return err
		}
		return t.explainLeftOut(ctx, c, nodes)
	})
}

// explainLeftOut says what was left out, and how to go on or back.
func (t *tool) explainLeftOut(ctx context.Context, c *adminclient.Client, nodes []api.Node) error {
	by := map[string][]string{}
	for _, n := range nodes {
		for _, change := range n.LeftOut {
			by[change] = append(by[change], n.Name)
		}
	}
	changes := make([]string, 0, len(by))
	for change := range by {
		changes = append(changes, change)
	}
	slices.Sort(changes)
	for _, change := range changes {
		span, err := trial.ParseSpan(change)
		if err != nil {
			continue // of another release
		}
		records, err := changedBy(ctx, c, span)
		if err != nil {
			return err
		}
		t.Say("%s crashed %s twice: data nodes do without it and keep what was before.", change, strings.Join(by[change], ", "))
		switch {
		case len(records) > 0:
			t.Say("  It changed %s. Back: write what was before (`ringmain apply` of the former manifest). On: change it again, or upgrade the nodes; any newer version is tried on one node first.", strings.Join(records, ", "))
		case span.Shard == controlplane.ShardGlobal:
			t.Say("  No route, upstream or region is as it left them: there is nothing more to do.")
		default:
			t.Say("  It is a change of an account in shard %s: the audit log of its home names the record at this sequence. Write it again, or upgrade the nodes.", span.Shard)
		}
	}
	return nil
}

// changedBy names what is still as the span left it.
func changedBy(ctx context.Context, c *adminclient.Client, span trial.Span) (names []string, err error) {
	if span.Shard != controlplane.ShardGlobal {
		return nil, nil
	}
	add := func(kind, name string, m api.Meta) {
		if span.From <= m.Revision && m.Revision <= span.To {
			names = append(names, fmt.Sprintf("%s %s", kind, name))
		}
	}
	routes, err := c.Routes(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		add("route", r.Model, r.Meta)
	}
	upstreams, err := c.Upstreams(ctx)
	if err != nil {
		return nil, err
	}
	for _, u := range upstreams {
		add("upstream", u.Name, u.Meta)
	}
	regions, err := c.Regions(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range regions {
		add("region", r.Name, r.Meta)
	}
	return names, nil
}
