package manage

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ringmain/controlplane/admin/api"
)

// Shards lists what region holds; "" = the one that is asked.
func (c *Client) Shards(ctx context.Context, region string) (*api.ShardList, error) {
	out := new(api.ShardList)
	return out, c.call(ctx, request{method: http.MethodGet, path: "/shards", query: atRegion(region)}, out)
}

// MoveShard makes region the home of a shard whose home answers.
func (c *Client) MoveShard(ctx context.Context, shard, region string) (*api.ShardMoved, error) {
	out := new(api.ShardMoved)
	return out, c.call(ctx, request{method: http.MethodPost, path: "/shards/" + esc(shard) + "/move", query: atRegion(region)}, out)
}

// TakeOverShard makes region the home of a shard whose home is lost.
func (c *Client) TakeOverShard(ctx context.Context, shard, region string, in api.TakeoverInput) (*api.ShardMoved, error) {
	out := new(api.ShardMoved)
	return out, c.call(ctx, request{method: http.MethodPost, path: "/shards/" + esc(shard) + "/takeover", query: atRegion(region), body: in}, out)
}

// Quarantine lists what region keeps in quarantine of the shard.
func (c *Client) Quarantine(ctx context.Context, shard, region string) (*api.QuarantineList, error) {
	out := new(api.QuarantineList)
	return out, c.call(ctx, request{method: http.MethodGet, path: "/shards/" + esc(shard) + "/quarantine", query: atRegion(region)}, out)
}

// ResolveQuarantine replays or discards entries; nil replays all of the
// shard's, and discards none. It may be repeated.
func (c *Client) ResolveQuarantine(ctx context.Context, what, shard, region string, ids []string) (*api.QuarantineResult, error) {
	out := new(api.QuarantineResult)
	return out, c.call(ctx, request{method: http.MethodPost, path: "/shards/" + esc(shard) + "/quarantine/" + what, query: atRegion(region), body: api.QuarantineVerdict{IDs: ids}}, out)
}

func atRegion(region string) url.Values {
	if region == "" {
		return nil
	}
	return url.Values{"region": {region}}
}

var shardColumns = []column[api.Shard]{
	{"SHARD", func(s api.Shard) string { return s.Shard }},
	{"HOME", func(s api.Shard) string { return s.Home }},
	{"EPOCH", func(s api.Shard) string { return s.Epoch }},
	{"ROLE", func(s api.Shard) string { return s.Role }},
	{"POSITION", func(s api.Shard) string { return s.Position }},
	{"CONFIRMED", func(s api.Shard) string { return strconv.FormatUint(s.Confirmed, 10) }},
	{"MEMBERS", func(s api.Shard) string {
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
	}},
	{"QUARANTINED", func(s api.Shard) string { return strconv.Itoa(s.Quarantined) }},
}

func (t *tool) shardCommand() *cobra.Command {
	var region, to string
	list := t.command("list", "list a region's shards: homes, members, how far each is", "  ringmain shard list\n  ringmain shard list --region eu-fra", func(ctx context.Context, c *Client, _ []string) error {
		l, err := c.Shards(ctx, region)
		if err != nil {
			return err
		}
		if t.output != "table" {
			return t.encode(l)
		}
		for _, s := range l.Items {
			if !s.SurvivesRegionLoss {
				t.say("%s is held by %s alone: nothing in it survives the loss of that region but a backup", s.Shard, s.Home)
			}
			if s.IsolatedSince != nil {
				t.say("%s: no majority of its members has been heard since %s", s.Shard, when(s.IsolatedSince))
			}
		}
		return show(t, l.Items, false, shardColumns)
	})
	list.Flags().StringVar(&region, "region", "", "region whose own copies are meant (default: the one that answers)")
	move := t.command("move SHARD", "make another region the home of a shard whose home answers", "  ringmain shard move any-us-east --to eu-fra", func(ctx context.Context, c *Client, args []string) error {
		if to == "" {
			return usagef("--to is needed: the region that becomes home")
		}
		return t.showMoved(c.MoveShard(ctx, args[0], to))
	})
	move.Long = "Make another region the home of a shard whose home answers. The present home\nhands over all it has: nothing is lost, and writes are refused for less than a second."
	var in api.TakeoverInput
	takeover := t.command("takeover SHARD", "make another region the home of a shard whose home is lost", "  ringmain shard takeover any-us-east --to eu-fra", func(ctx context.Context, c *Client, args []string) error {
		if to == "" {
			return usagef("--to is needed: the region that becomes home")
		}
		m, err := c.TakeOverShard(ctx, args[0], to, in)
		if err == nil && !m.Lossless {
			t.say("fewer than a majority of the members were heard: records that were acknowledged multi-region may be missing")
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
	return group("shard", "see and move shards: which region writes which records", "  ringmain shard list\n  ringmain shard takeover any-us-east --to eu-fra", list, move, takeover)
}

var movedColumns = []column[api.ShardMoved]{
	{"SHARD", func(m api.ShardMoved) string { return m.Shard }},
	{"HOME", func(m api.ShardMoved) string { return m.Home }},
	{"EPOCH", func(m api.ShardMoved) string { return m.Epoch }},
	{"CONTINUES", func(m api.ShardMoved) string { return m.Base }},
	{"COPIED-FROM", func(m api.ShardMoved) string { return m.From }},
	{"LOSSLESS", func(m api.ShardMoved) string { return yesNo(m.Lossless) }},
	{"TOOK", func(m api.ShardMoved) string { return fmt.Sprintf("%d ms", m.ConfirmedMillis) }},
}

func (t *tool) showMoved(m *api.ShardMoved, err error) error {
	if err != nil {
		return err
	}
	return show(t, []api.ShardMoved{*m}, true, movedColumns)
}

var quarantineColumns = []column[api.QuarantinedEntry]{
	{"ID", func(q api.QuarantinedEntry) string { return q.ID }},
	{"ASKED", func(q api.QuarantinedEntry) string { return q.Level }},
	{"WHAT", func(q api.QuarantinedEntry) string {
		var all []string
		for _, c := range q.Changes {
			all = append(all, strings.TrimSpace(c.Op+" "+c.Kind+" "+c.ID+" "+c.Name))
		}
		return strings.Join(all, "; ")
	}},
	{"NOW", func(q api.QuarantinedEntry) string {
		var all []string
		for _, c := range q.Changes {
			all = append(all, c.Present)
		}
		return strings.Join(all, "; ")
	}},
	{"LOST-TO", func(q api.QuarantinedEntry) string { return q.By }},
}

func (t *tool) quarantineCommand() *cobra.Command {
	var region string
	list := t.command("list SHARD", "list writes of a former home that no later home has", "  ringmain quarantine list any-us-east --region us-east", func(ctx context.Context, c *Client, args []string) error {
		l, err := c.Quarantine(ctx, args[0], region)
		if err != nil {
			return err
		}
		if t.output != "table" {
			return t.encode(l)
		}
		t.say("%d in the quarantine of region %s", len(l.Items), l.Region)
		return show(t, l.Items, false, quarantineColumns)
	})
	one := t.command("show SHARD ID", "show one quarantined write", "  ringmain quarantine show any-us-east 1/us-east.42 --region us-east", func(ctx context.Context, c *Client, args []string) error {
		l, err := c.Quarantine(ctx, args[0], region)
		if err != nil {
			return err
		}
		for _, q := range l.Items {
			if q.ID == args[1] {
				return show(t, []api.QuarantinedEntry{q}, true, quarantineColumns)
			}
		}
		return fmt.Errorf("entry %s of shard %s: %w in the quarantine of region %s", args[1], args[0], ErrNotFound, l.Region)
	})
	resolve := func(what, short, long string) *cobra.Command {
		var all bool
		c := t.command(what+" SHARD", short, "  ringmain quarantine "+what+" any-us-east --id 1/us-east.42 --region us-east", nil)
		var ids []string
		c.Long = long
		c.Flags().StringSliceVar(&ids, "id", nil, "entry, as list shows it; may be repeated")
		c.Flags().BoolVar(&all, "all", false, "every entry of the shard that the quarantine has now")
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if err := t.checkOutput(); err != nil {
				return err
			}
			if all == (len(ids) > 0) {
				return usagef("say which: --id ID, or --all")
			}
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			if all {
				l, err := client.Quarantine(cmd.Context(), args[0], region)
				if err != nil {
					return err
				}
				for _, q := range l.Items {
					ids = append(ids, q.ID)
				}
				if len(ids) == 0 {
					t.say("nothing of shard %s is in the quarantine of region %s", args[0], l.Region)
					return t.showResolved(&api.QuarantineResult{})
				}
			}
			res, err := client.ResolveQuarantine(cmd.Context(), what, args[0], region, ids)
			if err != nil {
				return err
			}
			return t.showResolved(res)
		}
		return c
	}
	replay := resolve("replay", "write quarantined entries anew, at the shard's present home", "Write quarantined entries anew, in their order, at the shard's present home. What is\nthere already leaves the quarantine; what was changed since, or is refused, stays.")
	discard := resolve("discard", "drop quarantined entries for good", "")
	for _, c := range []*cobra.Command{list, one, replay, discard} {
		c.Flags().StringVar(&region, "region", "", "region whose quarantine is meant (default: the one that answers)")
	}
	return group("quarantine", "see to writes of a former home that no later home has", "  ringmain quarantine list any-us-east --region us-east\n  ringmain quarantine replay any-us-east --region us-east --all", list, one, replay, discard)
}

var outcomeColumns = []column[api.QuarantineOutcome]{
	{"ID", func(o api.QuarantineOutcome) string { return o.ID }},
	{"OUTCOME", func(o api.QuarantineOutcome) string { return o.Outcome }},
	{"DETAIL", func(o api.QuarantineOutcome) string { return o.Detail }},
}

func (t *tool) showResolved(res *api.QuarantineResult) error {
	if err := show(t, res.Items, false, outcomeColumns); err != nil {
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
