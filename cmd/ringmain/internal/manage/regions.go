package manage

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/controlplane/admin/api"
)

var regionColumns = []cli.Column[api.Region]{
	cli.Col("NAME", func(r api.Region) string { return r.Name }),
	cli.Col("JURISDICTION", func(r api.Region) string { return r.Jurisdiction }),
	cli.Col("STATE", func(r api.Region) string { return r.State }),
	cli.Col("BROWNOUT", func(r api.Region) string {
		if r.Brownout == 0 {
			return "automatic"
		}
		return strconv.FormatUint(uint64(r.Brownout), 10)
	}),
	cli.Col("PUBLISHED", func(r api.Region) string { return r.Published }),
	cli.Col("ENDPOINT", func(r api.Region) string { return r.Endpoint }),
}

func (t *tool) showRegion(r *api.Region, err error) error { return show(t, r, err, regionColumns) }

func (t *tool) regionCommand() *cobra.Command {
	var in api.RegionInput
	create := t.Command("create REGION", "describe a new region", "  ringmain region create eu-ams --jurisdiction eu --endpoint https://eu-ams.example.com", func(ctx context.Context, c *adminclient.Client, args []string) error {
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
	update = t.Command("update REGION", "change a region's endpoint or state", "  ringmain region update eu-ams --state drained", func(ctx context.Context, c *adminclient.Client, args []string) error {
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
	brownout := t.Command("brownout REGION", "make a region's nodes shed load", "  ringmain region brownout ap-sg --level 2\n  ringmain region brownout ap-sg --level 0", func(ctx context.Context, c *adminclient.Client, args []string) error {
		const want = "1 to 4 forces at least that degree of load shedding, 0 leaves it to the nodes"
		switch {
		case level == noLevel:
			return cli.Usagef("--level is needed: %s", want)
		case level < 0 || level > 4:
			return cli.Usagef("--level %d: %s", level, want)
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
	return cli.Group("region", "manage regions", "  ringmain region list\n  ringmain region update ap-sg --state drained", create, update, brownout,
		t.Command("list", "list regions", "  ringmain region list", func(ctx context.Context, c *adminclient.Client, _ []string) error {
			list, err := c.Regions(ctx)
			if err != nil {
				return err
			}
			return cli.Show(t.Tool, list, false, regionColumns)
		}),
		t.Command("get REGION", "show a region", "  ringmain region get ap-sg", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.showRegion(c.GetRegion(ctx, args[0]))
		}))
}
