package manage

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ringmain/controlplane/admin/api"
)

var regionColumns = []column[api.Region]{
	{"NAME", func(r api.Region) string { return r.Name }},
	{"JURISDICTION", func(r api.Region) string { return r.Jurisdiction }},
	{"STATE", func(r api.Region) string { return r.State }},
	{"BROWNOUT", func(r api.Region) string {
		if r.Brownout == 0 {
			return "automatic"
		}
		return strconv.FormatUint(uint64(r.Brownout), 10)
	}},
	{"PUBLISHED", func(r api.Region) string { return r.Published }},
	{"ENDPOINT", func(r api.Region) string { return r.Endpoint }},
}

func (t *tool) showRegion(r *api.Region, err error) error {
	if err != nil {
		return err
	}
	return show(t, []api.Region{*r}, true, regionColumns)
}

func (t *tool) regionCommand() *cobra.Command {
	var in api.RegionInput
	create := t.command("create REGION", "describe a new region", "  ringmain region create eu-ams --jurisdiction eu --endpoint https://eu-ams.example.com", func(ctx context.Context, c *Client, args []string) error {
		var p *api.Problem
		switch _, err := c.GetRegion(ctx, args[0]); {
		case err == nil:
			return fmt.Errorf("region %q exists: use update", args[0])
		case !errors.As(err, &p) || p.Code != api.CodeNotFound:
			return err
		}
		return t.showRegion(c.PutRegion(ctx, args[0], in))
	})
	create.Flags().StringVar(&in.Jurisdiction, "jurisdiction", "", "two to four lowercase letters (needed)")
	var update *cobra.Command
	update = t.command("update REGION", "change a region's endpoint or state", "  ringmain region update eu-ams --state drained", func(ctx context.Context, c *Client, args []string) error {
		old, err := c.GetRegion(ctx, args[0])
		if err != nil {
			return err
		}
		next := old.RegionInput
		set(update.Flags(), "endpoint", &next.Endpoint, in.Endpoint)
		set(update.Flags(), "state", &next.State, in.State)
		return t.showRegion(c.PutRegion(ctx, args[0], next))
	})
	for _, c := range []*cobra.Command{create, update} {
		c.Flags().StringVar(&in.Endpoint, "endpoint", "", "https address that clients use")
		c.Flags().StringVar(&in.State, "state", "active", "active or drained")
	}
	const noLevel = -1
	var level int
	brownout := t.command("brownout REGION", "make a region's nodes shed load", "  ringmain region brownout ap-sg --level 2\n  ringmain region brownout ap-sg --level 0", func(ctx context.Context, c *Client, args []string) error {
		const want = "1 to 4 forces at least that degree of load shedding, 0 leaves it to the nodes"
		switch {
		case level == noLevel:
			return usagef("--level is needed: %s", want)
		case level < 0 || level > 4:
			return usagef("--level %d: %s", level, want)
		}
		old, err := c.GetRegion(ctx, args[0])
		if err != nil {
			return err
		}
		next := old.RegionInput
		next.Brownout = uint32(level)
		return t.showRegion(c.PutRegion(ctx, args[0], next))
	})
	brownout.Long = `Make a region's nodes shed load, at least to the degree given, whatever they
measure themselves: 1 gives up optional work (streams that break are not
continued elsewhere), 2 refuses batch projects and test keys too, 3 trial plans,
4 all but interactive work of the enterprise and scale plans. 0 leaves it to the
nodes again.`
	brownout.Flags().IntVar(&level, "level", noLevel, "degree, 1 to 4; 0 = automatic (needed)")
	brownout.Flags().Lookup("level").DefValue = "0" // so that help shows no default
	return group("region", "manage regions", "  ringmain region list\n  ringmain region update ap-sg --state drained", create, update, brownout,
		t.command("list", "list regions", "  ringmain region list", func(ctx context.Context, c *Client, _ []string) error {
			list, err := c.Regions(ctx)
			if err != nil {
				return err
			}
			return show(t, list, false, regionColumns)
		}),
		t.command("get REGION", "show a region", "  ringmain region get ap-sg", func(ctx context.Context, c *Client, args []string) error {
			return t.showRegion(c.GetRegion(ctx, args[0]))
		}))
}

var nodeColumns = []column[api.Node]{
	{"REGION", func(n api.Node) string { return n.Region }},
	{"NAME", func(n api.Node) string { return n.Name }},
	{"ROLE", func(n api.Node) string { return n.Role }},
	{"STATE", func(n api.Node) string {
		switch {
		case !n.Alive:
			return "dead"
		case n.Draining:
			return "draining"
		case !n.Ready:
			return "not ready"
		}
		return "ready"
	}},
	{"LOAD", func(n api.Node) string {
		if n.Capacity == 0 {
			return ""
		}
		return fmt.Sprintf("%d/%d", n.InFlight, n.Capacity)
	}},
	{"POOLS", func(n api.Node) string { return strings.Join(n.Pools, ",") }},
	{"OPEN-BREAKERS", func(n api.Node) string {
		if len(n.Breakers) == 0 {
			return ""
		}
		return strconv.Itoa(len(n.Breakers))
	}},
	{"API", func(n api.Node) string { return n.API }},
}

func (t *tool) nodeCommand() *cobra.Command {
	var region string
	list := t.command("list", "list nodes", "  ringmain node list --region eu-fra", func(ctx context.Context, c *Client, _ []string) error {
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
		return show(t, nodes, false, nodeColumns)
	})
	list.Flags().StringVar(&region, "region", "", "only nodes of this region")
	return group("node", "see nodes, and change who is in a region", "  ringmain node list\n  ringmain node members --region eu-fra",
		append([]*cobra.Command{list, t.revokeNodeCommand()}, t.raftCommands()...)...)
}

// shardRow is one line of the status table.
type shardRow struct {
	st    api.Status
	shard api.ShardStatus
}

var statusColumns = []column[shardRow]{
	{"REGION", func(r shardRow) string { return r.st.Region }},
	{"ASKED", func(r shardRow) string { return r.st.Node }},
	{"LEADER", func(r shardRow) string { return r.st.Leader }},
	{"SHARD", func(r shardRow) string { return r.shard.Shard }},
	{"HOME", func(r shardRow) string { return r.shard.Home }},
	{"POSITION", func(r shardRow) string { return r.shard.Position }},
	{"BEHIND", func(r shardRow) string {
		if r.shard.Behind == nil {
			return ""
		}
		return strconv.FormatUint(*r.shard.Behind, 10)
	}},
}

func (t *tool) statusCommand() *cobra.Command {
	c := t.command("status", "what every region says of itself", "  ringmain status\n  ringmain status --server https://127.0.0.1:8451 -o json", nil)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := t.checkOutput(); err != nil {
			return err
		}
		cfg, err := t.clientConfig()
		if err != nil {
			return err
		}
		var all []api.Status
		var failed []error
		for _, server := range cfg.Servers {
			st, err := statusOf(cmd.Context(), server, cfg)
			if err != nil {
				failed = append(failed, err)
				t.say("%v", err)
				continue
			}
			all = append(all, *st)
		}
		if len(all) == 0 {
			return fmt.Errorf("none of %d servers answered", len(failed))
		}
		if t.output != "table" {
			return t.encode(all)
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
		return show(t, rows, false, statusColumns)
	}
	return c
}

func statusOf(ctx context.Context, server string, cfg ClientConfig) (*api.Status, error) {
	cfg.Servers = []string{server}
	c, err := NewClient(cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Status(ctx)
}
