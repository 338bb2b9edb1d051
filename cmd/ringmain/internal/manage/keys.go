package manage

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/controlplane/admin/api"
)

var keyColumns = []cli.Column[api.Key]{
	cli.Col("ID", func(k api.Key) string { return k.ID }),
	cli.Col("NAME", func(k api.Key) string { return k.Name }),
	cli.Col("CLASS", func(k api.Key) string { return k.Class }),
	cli.Col("STATE", func(k api.Key) string {
		switch {
		case k.Revoked != nil:
			return "revoked"
		case k.Expires != nil && k.Expires.Before(time.Now()):
			return "ended"
		}
		return "in force"
	}),
	cli.Col("EXPIRES", func(k api.Key) string { return cli.When(k.Expires) }),
	cli.Col("OLD-SECRET-UNTIL", func(k api.Key) string { return cli.When(k.PrevUntil) }),
}

func (t *tool) showKey(k *api.Key, err error) error { return show(t, k, err, keyColumns) }

// showWhole prints the one answer that holds the whole key. As a table it is
// the key alone, so that a script can take it.
func (t *tool) showWhole(k *api.Key, err error) error {
	if err != nil {
		return err
	}
	if !t.Table() {
		return t.Encode(k)
	}
	t.Say("%s: this is the one time that the whole key is shown", k.ID)
	if k.PrevUntil != nil {
		t.Say("the secret before it works until %s", cli.When(k.PrevUntil))
	}
	_, err = fmt.Fprintln(t.Env.Stdout, k.Whole)
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
		return nil, cli.Usagef("--expires %q: give a time such as 2027-01-31T00:00:00Z, or how long from now, such as 720h", text)
	}
	return &at, nil
}

func (t *tool) keyCommand() *cobra.Command {
	var in api.KeyInput
	var project, expires, name string
	var grace time.Duration
	inProject := func(ctx context.Context, c *adminclient.Client) (*api.Project, error) {
		if project == "" {
			return nil, cli.Usagef("--project is needed: a project's id, or ORG/NAME")
		}
		return projectRef(ctx, c, project)
	}
	list := t.Command("list", "list the keys of a project, without their secrets", "  ringmain key list --project Acme/web", func(ctx context.Context, c *adminclient.Client, _ []string) error {
		p, err := inProject(ctx, c)
		if err != nil {
			return err
		}
		keys, err := c.Keys(ctx, p.ID)
		if err != nil {
			return err
		}
		return cli.Show(t.Tool, keys, false, keyColumns)
	})
	create := t.Command("create NAME", "make a key and show it, once", "  ringmain key create ci --project Acme/web --expires 720h\n  KEY=$(ringmain key create ci --project Acme/web)", func(ctx context.Context, c *adminclient.Client, args []string) error {
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
	update = t.Command("update KEY", "change a key's name or end", "  ringmain key update key_any_… --expires 24h", func(ctx context.Context, c *adminclient.Client, args []string) error {
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
	rotate := t.Command("rotate KEY", "replace a key's secret and show the new key, once", "  ringmain key rotate key_any_… --grace 1h", func(ctx context.Context, c *adminclient.Client, args []string) error {
		if grace < 0 {
			return cli.Usagef("--grace must not be negative")
		}
		return t.showWhole(c.RotateKey(ctx, args[0], grace))
	})
	rotate.Flags().DurationVar(&grace, "grace", 24*time.Hour, "how long the old secret works on; 0 ends it at once")
	return cli.Group("key", "manage API keys", "  ringmain key create ci --project Acme/web\n  ringmain key revoke key_any_…", list, create, update, rotate,
		t.Command("get KEY", "show a key, by id, without its secret", "  ringmain key get key_any_…", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.showKey(c.GetKey(ctx, args[0]))
		}),
		t.revokeCommand(),
		t.Command("delete KEY", "forget a revoked key", "  ringmain key delete key_any_…", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.Deleted(c.Delete(ctx, "keys", args[0]), args[0])
		}))
}

var revokedColumns = []cli.Column[api.RevokedKeys]{
	cli.Col("KEYS", func(r api.RevokedKeys) string { return strconv.Itoa(r.Keys) }),
	cli.Col("REVOKED-NOW", func(r api.RevokedKeys) string { return strconv.Itoa(r.Revoked) }),
	cli.Col("ACKNOWLEDGED", func(r api.RevokedKeys) string { return r.Acknowledged }),
}

func (t *tool) revokeCommand() *cobra.Command {
	var project, org string
	var everyKey bool
	var expect int
	var cmd *cobra.Command
	cmd = t.Command("revoke [KEY]", "refuse a key, or all of a project or org, everywhere from now on, for good", "  ringmain key revoke key_any_…\n  ringmain key revoke --project Acme/web --all --expect 240", func(ctx context.Context, c *adminclient.Client, args []string) error {
		if !everyKey {
			k, err := c.RevokeKey(ctx, args[0])
			if err == nil && k.Held != nil {
				t.SayHeld(k.Held)
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
			t.SayHeld(r.Held)
		}
		return cli.Show(t.Tool, []api.RevokedKeys{*r}, true, revokedColumns)
	})
	cmd.Long = `Refuse a key everywhere from now on, for good. The answer says how many regions
and data nodes hold the revocation; repeat the command to ask again.

With --all it refuses every key of a project or org. Above 100 keys --expect
must say how many there are, those revoked before included.`
	cmd.Args = func(_ *cobra.Command, args []string) error {
		one := !everyKey && len(args) == 1 && project == "" && org == ""
		many := everyKey && len(args) == 0 && (project == "") != (org == "")
		if !one && !many {
			return cli.Usagef("say which: KEY, or --all with --project or --org")
		}
		return nil
	}
	cmd.Flags().BoolVar(&everyKey, "all", false, "every key of the project or org")
	cmd.Flags().StringVar(&project, "project", "", "id or ORG/NAME of the project whose keys are meant")
	cmd.Flags().StringVar(&org, "org", "", "id or name of the org whose keys are meant")
	cmd.Flags().IntVar(&expect, "expect", 0, "how many keys there are; needed above 100")
	return cmd
}
