package operate

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/controlplane/admin/api"
)

var shardColumns = []cli.Column[api.Shard]{
	cli.Col("SHARD", func(s api.Shard) string { return s.Shard }),
	cli.Col("HOME", func(s api.Shard) string { return s.Home }),
	cli.Col("EPOCH", func(s api.Shard) string { return s.Epoch }),
	cli.Col("ROLE", func(s api.Shard) string { return s.Role }),
	cli.Col("POSITION", func(s api.Shard) string { return s.Position }),
	cli.Col("CONFIRMED", func(s api.Shard) string { return strconv.FormatUint(s.Confirmed, 10) }),
	cli.Col("MEMBERS", func(s api.Shard) string {
		var all []string
		for _, m := range s.Members {
			text := m.Region
			if m.Heard != nil {
				if age := time.Since(*m.Heard); age > 5*time.Second {
					text += " (silent " + age.Round(time.Second).String() + ")"
				}
			} else if s.Role == "home" || s.Role == "opening" {
				text += " (not heard)"
			}
			all = append(all, text)
		}
		return strings.Join(all, ", ")
	}),
	cli.Col("QUARANTINED", func(s api.Shard) string { return strconv.Itoa(s.Quarantined) }),
}

func (t *tool) shardCommand() *cobra.Command {
	var region, to string
	list := t.Command("list", "list a region's shards: homes, members, how far each is", "  ringmain shard list\n  ringmain shard list --region eu-fra", func(ctx context.Context, c *adminclient.Client, _ []string) error {
		l, err := c.Shards(ctx, region)
		if err != nil {
			return err
		}
		if !t.Table() {
			return t.Encode(l)
		}
		for _, s := range l.Items {
			if !s.SurvivesRegionLoss {
				t.Say("%s is held by %s alone: nothing in it survives the loss of that region but a backup", s.Shard, s.Home)
			}
			if s.IsolatedSince != nil {
				t.Say("%s: no majority of its members has been heard since %s", s.Shard, cli.When(s.IsolatedSince))
			}
		}
		return cli.Show(t.Tool, l.Items, false, shardColumns)
	})
	list.Flags().StringVar(&region, "region", "", "region whose own copies are meant (default: the one that answers)")
	move := t.Command("move SHARD", "make another region the home of a shard whose home answers", "  ringmain shard move any-us-east --to eu-fra", func(ctx context.Context, c *adminclient.Client, args []string) error {
		if to == "" {
			return cli.Usagef("--to is needed: the region that becomes home")
		}
		return t.showMoved(c.MoveShard(ctx, args[0], to))
	})
	move.Long = "Make another region the home of a shard whose home answers. The present home\nhands over all it has: nothing is lost, and writes are refused for less than a second."
	var in api.TakeoverInput
	takeover := t.Command("takeover SHARD", "make another region the home of a shard whose home is lost", "  ringmain shard takeover any-us-east --to eu-fra", func(ctx context.Context, c *adminclient.Client, args []string) error {
		if to == "" {
			return cli.Usagef("--to is needed: the region that becomes home")
		}
		m, err := c.TakeOverShard(ctx, args[0], to, in)
		if err == nil && !m.Lossless {
			t.Say("fewer than a majority of the members were heard: records that were acknowledged multi-region may be missing")
		}
		return t.showMoved(m, err)
	})
	takeover.Long = `Make another region the home of a shard whose home is lost. It gets everything
that a majority of the shard's regions has, and with it every record that was
acknowledged multi-region. What the former home has beyond that goes into its
quarantine when it returns: see ` + "`ringmain quarantine list`" + `.

A region that was restored from a backup, or recovered, is no member of its own
shards any more, since it may have lost what it promised. Another member takes
them over. Where there is none, it does so itself, with --lost naming it and all
others that are gone: what came after the backup is given up with that.`
	takeover.Flags().BoolVar(&in.Live, "force", false, "take it from a home that answers: its writes stop")
	takeover.Flags().StringSliceVar(&in.Lost, "lost", nil, "region declared lost for ever: nobody waits for it, and it leaves the shard until it is added again; needed where no majority is left")
	takeover.Flags().StringSliceVar(&in.Add, "add", nil, "region that becomes a member again, after it was lost, restored or recovered; it must be up")
	for _, c := range []*cobra.Command{move, takeover} {
		c.Flags().StringVar(&to, "to", "", "region that becomes home (needed)")
	}
	return cli.Group("shard", "see and move shards: which region writes which records", "  ringmain shard list\n  ringmain shard takeover any-us-east --to eu-fra", list, move, takeover)
}

var movedColumns = []cli.Column[api.ShardMoved]{
	cli.Col("SHARD", func(m api.ShardMoved) string { return m.Shard }),
	cli.Col("HOME", func(m api.ShardMoved) string { return m.Home }),
	cli.Col("EPOCH", func(m api.ShardMoved) string { return m.Epoch }),
	cli.Col("CONTINUES", func(m api.ShardMoved) string { return m.Base }),
	cli.Col("COPIED-FROM", func(m api.ShardMoved) string { return m.From }),
	cli.Col("LOSSLESS", func(m api.ShardMoved) string { return cli.YesNo(m.Lossless) }),
	cli.Col("TOOK", func(m api.ShardMoved) string { return fmt.Sprintf("%d ms", m.ConfirmedMillis) }),
}

func (t *tool) showMoved(m *api.ShardMoved, err error) error {
	if err != nil {
		return err
	}
	return cli.Show(t.Tool, []api.ShardMoved{*m}, true, movedColumns)
}

var quarantineColumns = []cli.Column[api.QuarantinedEntry]{
	cli.Col("ID", func(q api.QuarantinedEntry) string { return q.ID }),
	cli.Col("ASKED", func(q api.QuarantinedEntry) string { return q.Level }),
	cli.Col("WHAT", func(q api.QuarantinedEntry) string {
		var all []string
		for _, c := range q.Changes {
			all = append(all, strings.TrimSpace(c.Op+" "+c.Kind+" "+c.ID+" "+c.Name))
		}
		return strings.Join(all, "; ")
	}),
	cli.Col("NOW", func(q api.QuarantinedEntry) string {
		var all []string
		for _, c := range q.Changes {
			all = append(all, c.Present)
		}
		return strings.Join(all, "; ")
	}),
	cli.Col("LOST-TO", func(q api.QuarantinedEntry) string { return q.By }),
}

func (t *tool) quarantineCommand() *cobra.Command {
	var region string
	list := t.Command("list SHARD", "list writes of a former home that no later home has", "  ringmain quarantine list any-us-east --region us-east", func(ctx context.Context, c *adminclient.Client, args []string) error {
		l, err := c.Quarantine(ctx, args[0], region)
		if err != nil {
			return err
		}
		if !t.Table() {
			return t.Encode(l)
		}
		t.Say("%d in the quarantine of region %s", len(l.Items), l.Region)
		return cli.Show(t.Tool, l.Items, false, quarantineColumns)
	})
	one := t.Command("show SHARD ID", "show one quarantined write", "  ringmain quarantine show any-us-east 1/us-east.42 --region us-east", func(ctx context.Context, c *adminclient.Client, args []string) error {
		l, err := c.Quarantine(ctx, args[0], region)
		if err != nil {
			return err
		}
		for _, q := range l.Items {
			if q.ID == args[1] {
				return cli.Show(t.Tool, []api.QuarantinedEntry{q}, true, quarantineColumns)
			}
		}
		return fmt.Errorf("entry %s of shard %s: %w in the quarantine of region %s: `ringmain quarantine list %s --region %s` shows what is", args[1], args[0], adminclient.ErrNotFound, l.Region, args[0], l.Region)
	})
	resolve := func(what, short, long string) *cobra.Command {
		var all bool
		var ids []string
		c := t.Command(what+" SHARD", short, "  ringmain quarantine "+what+" any-us-east --id 1/us-east.42 --region us-east", func(ctx context.Context, client *adminclient.Client, args []string) error {
			if all == (len(ids) > 0) {
				return cli.Usagef("say which: --id ID, or --all")
			}
			if all {
				l, err := client.Quarantine(ctx, args[0], region)
				if err != nil {
					return err
				}
				for _, q := range l.Items {
					ids = append(ids, q.ID)
				}
				if len(ids) == 0 {
					t.Say("nothing of shard %s is in the quarantine of region %s", args[0], l.Region)
					return t.showResolved(&api.QuarantineResult{})
				}
			}
			res, err := client.ResolveQuarantine(ctx, what, args[0], region, ids)
			if err != nil {
				return err
			}
			return t.showResolved(res)
		})
		c.Long = long
		c.Flags().StringSliceVar(&ids, "id", nil, "entry, as list shows it; may be repeated")
		c.Flags().BoolVar(&all, "all", false, "every entry of the shard that the quarantine has now")
		return c
	}
	replay := resolve("replay", "write quarantined entries anew, at the shard's present home", "Write quarantined entries anew, in their order, at the shard's present home. What is\nthere already leaves the quarantine; what was changed since, or is refused, stays.")
	discard := resolve("discard", "drop quarantined entries for good", "")
	for _, c := range []*cobra.Command{list, one, replay, discard} {
		c.Flags().StringVar(&region, "region", "", "region whose quarantine is meant (default: the one that answers)")
	}
	return cli.Group("quarantine", "see to writes of a former home that no later home has", "  ringmain quarantine list any-us-east --region us-east\n  ringmain quarantine replay any-us-east --region us-east --all", list, one, replay, discard)
}

var outcomeColumns = []cli.Column[api.QuarantineOutcome]{
	cli.Col("ID", func(o api.QuarantineOutcome) string { return o.ID }),
	cli.Col("OUTCOME", func(o api.QuarantineOutcome) string { return o.Outcome }),
	cli.Col("DETAIL", func(o api.QuarantineOutcome) string { return o.Detail }),
}

func (t *tool) showResolved(res *api.QuarantineResult) error {
	if err := cli.Show(t.Tool, res.Items, false, outcomeColumns); err != nil {
		return err
	}
	refused := 0
	for _, o := range res.Items {
		if o.Outcome == "refused" {
			refused++
		}
	}
	if refused > 0 {
		return fmt.Errorf("%d of %d entries stay in quarantine", refused, len(res.Items))
	}
	return nil
}
