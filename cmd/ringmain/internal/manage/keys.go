package manage

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ringmain/controlplane/admin/api"
)

var keyColumns = []column[api.Key]{
	{"ID", func(k api.Key) string { return k.ID }},
	{"NAME", func(k api.Key) string { return k.Name }},
	{"CLASS", func(k api.Key) string { return k.Class }},
	{"STATE", func(k api.Key) string {
		switch {
		case k.Revoked != nil:
			return "revoked"
		case k.Expires != nil && k.Expires.Before(time.Now()):
			return "ended"
		}
		return "in force"
	}},
	{"EXPIRES", func(k api.Key) string { return when(k.Expires) }},
	{"OLD-SECRET-UNTIL", func(k api.Key) string { return when(k.PrevUntil) }},
}

func (t *tool) showKey(k *api.Key, err error) error {
	if err != nil {
		return err
	}
	return show(t, []api.Key{*k}, true, keyColumns)
}

// showWhole prints the one answer that holds the whole key. As a table it is
// the key alone, so that a script can take it.
func (t *tool) showWhole(k *api.Key, err error) error {
	if err != nil {
		return err
	}
	if t.output != "table" {
		return t.encode(k)
	}
	t.say("%s: this is the one time that the whole key is shown", k.ID)
	if k.PrevUntil != nil {
		t.say("the secret before it works until %s", when(k.PrevUntil))
	}
	_, err = fmt.Fprintln(t.env.Stdout, k.Whole)
	return err
}

// ending reads a point in time, or a time from now.
func ending(text string) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		at := time.Now().Add(d).UTC().Truncate(time.Second)
		return &at, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, usagef("--expires %q: give a time such as 2027-01-31T00:00:00Z, or how long from now, such as 720h", text)
	}
	return &at, nil
}

func (t *tool) keyCommand() *cobra.Command {
	var in api.KeyInput
	var project, expires, name string
	var grace time.Duration
	inProject := func(ctx context.Context, c *Client) (*api.Project, error) {
		if project == "" {
			return nil, usagef("--project is needed: a project's id, or ORG/NAME")
		}
		return projectRef(ctx, c, project)
	}
	list := t.command("list", "list the keys of a project, without their secrets", "  ringmain key list --project Acme/web", func(ctx context.Context, c *Client, _ []string) error {
		p, err := inProject(ctx, c)
		if err != nil {
			return err
		}
		keys, err := c.Keys(ctx, p.ID)
		if err != nil {
			return err
		}
		return show(t, keys, false, keyColumns)
	})
	create := t.command("create NAME", "make a key and show it, once", "  ringmain key create ci --project Acme/web --expires 720h\n  KEY=$(ringmain key create ci --project Acme/web)", func(ctx context.Context, c *Client, args []string) error {
		p, err := inProject(ctx, c)
		if err != nil {
			return err
		}
		if in.Expires, err = ending(expires); err != nil {
			return err
		}
		in.Name = args[0]
		return t.showWhole(c.CreateKey(ctx, p.ID, in))
	})
	create.Flags().StringVar(&in.Class, "class", "live", "live, or test (reaches simulated models only)")
	for _, c := range []*cobra.Command{list, create} {
		c.Flags().StringVar(&project, "project", "", "id or ORG/NAME of the project (needed)")
	}
	var update *cobra.Command
	update = t.command("update KEY", "change a key's name or end", "  ringmain key update key_any_… --expires 24h", func(ctx context.Context, c *Client, args []string) error {
		old, err := c.GetKey(ctx, args[0])
		if err != nil {
			return err
		}
		next := old.KeyInput
		set(update.Flags(), "name", &next.Name, name)
		if update.Flags().Changed("expires") {
			if next.Expires, err = ending(expires); err != nil {
				return err
			}
		}
		return t.showKey(c.UpdateKey(ctx, old.Meta, next))
	})
	update.Flags().StringVar(&name, "name", "", "new name")
	for _, c := range []*cobra.Command{create, update} {
		c.Flags().StringVar(&expires, "expires", "", "when the key ends, as a time or how long from now; empty = never")
	}
	rotate := t.command("rotate KEY", "replace a key's secret and show the new key, once", "  ringmain key rotate key_any_… --grace 1h", func(ctx context.Context, c *Client, args []string) error {
		if grace < 0 {
			return usagef("--grace must not be negative")
		}
		return t.showWhole(c.RotateKey(ctx, args[0], grace))
	})
	rotate.Flags().DurationVar(&grace, "grace", 24*time.Hour, "how long the old secret works on; 0 ends it at once")
	return group("key", "manage API keys", "  ringmain key create ci --project Acme/web\n  ringmain key revoke key_any_…", list, create, update, rotate,
		t.command("get KEY", "show a key, by id, without its secret", "  ringmain key get key_any_…", func(ctx context.Context, c *Client, args []string) error {
			return t.showKey(c.GetKey(ctx, args[0]))
		}),
		t.revokeCommand(),
		t.command("delete KEY", "forget a revoked key", "  ringmain key delete key_any_…", func(ctx context.Context, c *Client, args []string) error {
			return t.deleted(c.Delete(ctx, "keys", args[0]), args[0])
		}))
}

var revokedColumns = []column[api.RevokedKeys]{
	{"KEYS", func(r api.RevokedKeys) string { return strconv.Itoa(r.Keys) }},
	{"REVOKED-NOW", func(r api.RevokedKeys) string { return strconv.Itoa(r.Revoked) }},
	{"ACKNOWLEDGED", func(r api.RevokedKeys) string { return r.Acknowledged }},
}

func (t *tool) revokeCommand() *cobra.Command {
	var project, org string
	var everyKey bool
	var expect int
	var cmd *cobra.Command
	cmd = t.command("revoke [KEY]", "refuse a key, or all of a project or org, everywhere from now on, for good", "  ringmain key revoke key_any_…\n  ringmain key revoke --project Acme/web --all --expect 240", func(ctx context.Context, c *Client, args []string) error {
		if !everyKey {
			k, err := c.RevokeKey(ctx, args[0])
			if err == nil && k.Held != nil {
				t.sayHeld(k.Held)
			}
			return t.showKey(k, err)
		}
		var collection, id string
		if project != "" {
			p, err := projectRef(ctx, c, project)
			if err != nil {
				return err
			}
			collection, id = "projects", p.ID
		} else {
			o, err := orgRef(ctx, c, org)
			if err != nil {
				return err
			}
			collection, id = "orgs", o.ID
		}
		var wanted *int
		if cmd.Flags().Changed("expect") {
			wanted = &expect
		}
		r, err := c.RevokeKeys(ctx, collection, id, wanted)
		if err != nil {
			return err
		}
		if r.Held != nil {
			t.sayHeld(r.Held)
		}
		return show(t, []api.RevokedKeys{*r}, true, revokedColumns)
	})
	cmd.Long = `Refuse a key everywhere from now on, for good. The answer says how many regions
and data nodes hold the revocation; repeat the command to ask again.

With --all it refuses every key of a project or org. Above 100 keys --expect
must say how many there are, those revoked before included.`
	cmd.Args = func(_ *cobra.Command, args []string) error {
		one := !everyKey && len(args) == 1 && project == "" && org == ""
		many := everyKey && len(args) == 0 && (project == "") != (org == "")
		if !one && !many {
			return usagef("say which: KEY, or --all with --project or --org")
		}
		return nil
	}
	cmd.Flags().BoolVar(&everyKey, "all", false, "every key of the project or org")
	cmd.Flags().StringVar(&project, "project", "", "id or ORG/NAME of the project whose keys are meant")
	cmd.Flags().StringVar(&org, "org", "", "id or name of the org whose keys are meant")
	cmd.Flags().IntVar(&expect, "expect", 0, "how many keys there are; needed above 100")
	return cmd
}

// sayHeld tells who holds a revocation, and who is not known to.
func (t *tool) sayHeld(h *api.Held) {
	t.say("%s", h)
	for _, l := range []struct {
		what  string
		names []string
	}{
		{"regions that do not hold it yet", h.RegionsMissing}, {"regions not heard, so that nothing is known", h.RegionsUnknown},
		{"data nodes that do not hold it yet", h.NodesMissing}, {"silent data nodes, of which nothing is known", h.NodesUnknown},
	} {
		if len(l.names) > 0 {
			t.say("%s: %s", l.what, clean(strings.Join(l.names, ", ")))
		}
	}
}
