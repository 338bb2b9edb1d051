package manage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/controlplane/admin/api"
)

// reissued is one line of what the customer gets.
type reissued struct {
	Old     string `json:"old"`
	New     string `json:"new"`
	Name    string `json:"name"`
	Project string `json:"project"`
	Whole   string `json:"key"`
}

var reissuedColumns = []cli.Column[reissued]{
	cli.Col("OLD-ID", func(r reissued) string { return r.Old }),
	cli.Col("NEW-ID", func(r reissued) string { return r.New }),
	cli.Col("NAME", func(r reissued) string { return r.Name }),
	cli.Col("PROJECT", func(r reissued) string { return r.Project }),
	cli.Col("NEW-KEY", func(r reissued) string { return r.Whole }),
}

var pinColumns = []cli.Column[api.PinChange]{
	cli.Col("ORG", func(p api.PinChange) string { return p.Org }),
	cli.Col("SUCCESSOR", func(p api.PinChange) string { return p.Successor }),
	cli.Col("PHASE", func(p api.PinChange) string {
		if p.Phase == api.PinRetired {
			return "pending"
		}
		return strings.ReplaceAll(p.Phase, "_", " ")
	}),
	cli.Col("BEGAN", func(p api.PinChange) string { return cli.When(p.Began) }),
	cli.Col("IN-FORCE-SINCE", func(p api.PinChange) string { return cli.When(p.InForce) }),
	cli.Col("OLD-KEYS", func(p api.PinChange) string { return strconv.Itoa(p.KeysInForce) }),
	cli.Col("WITHOUT-SUCCESSOR", func(p api.PinChange) string { return strconv.Itoa(p.KeysUnissued) }),
}

// pinOrg finds the org by id or name. Of an org that is gone only its
// successor's id leads to the change.
func pinOrg(ctx context.Context, c *adminclient.Client, ref string) (string, error) {
	if strings.HasPrefix(ref, "org_") {
		return ref, nil
	}
	o, err := orgRef(ctx, c, ref)
	if err != nil {
		return "", err
	}
	return o.ID, nil
}

func (t *tool) pinCommand() *cobra.Command {
	var in api.PinInput
	var status, keep bool
	var wait time.Duration
	cmd := t.Command("pin ORG", "change an org's pin: another org, with new keys, takes its place", "  ringmain org pin Acme --to eu\n  ringmain org pin org_any_… --finish\n  ringmain org pin org_eu_… --status", func(ctx context.Context, c *adminclient.Client, args []string) error {
		org, err := pinOrg(ctx, c, args[0])
		if err != nil {
			return err
		}
		switch {
		case status:
			p, err := c.Pin(ctx, org)
			return t.showPin(p, err)
		case in.Finish:
			return t.finishPin(ctx, c, org, in, wait)
		}
		p, err := c.ChangePin(ctx, org, in)
		if err != nil {
			return err
		}
		if p.Phase == api.PinBegun {
			return cmp.Or(t.showPin(p, nil), errUnconfirmed)
		}
		if !p.SurvivesRegionLoss {
			t.Say("jurisdiction %s has one region: nothing of the org survives the loss of that region but a backup, and its traffic has no second home", p.To)
		}
		if keep || p.KeysUnissued == 0 {
			return t.showPin(p, nil)
		}
		return t.reissue(ctx, c, p)
	})
	cmd.Long = `Change an org's pin. The org's records are copied to another org, in the other
jurisdiction and with ids of its own, and a new key is issued for each of its
keys and shown, once. From then on the old org is frozen, and pinned already if
the new pin is the tighter one. Old and new keys both work until --finish, which
revokes the old ones and, once every data node refuses them, erases the old
org's records. Every step may be repeated. A pin cannot be exchanged for another
at once: change it to any first.`
	cmd.Flags().StringVar(&in.To, "to", "", "jurisdiction that the org is pinned to, or any")
	cmd.Flags().StringVar(&in.Region, "region", "", "with --to any: region of the present jurisdiction that the org belongs to afterwards (default: the one that answers)")
	cmd.Flags().BoolVar(&keep, "no-keys", false, "issue no keys: the customer creates them in the new org")
	cmd.Flags().BoolVar(&in.Finish, "finish", false, "revoke the old keys, and erase the old records once every data node refuses those")
	cmd.Flags().IntVar(&in.Without, "without", 0, "with --finish: how many old keys may end without another in their place")
	cmd.Flags().DurationVar(&wait, "wait", 10*time.Second, "with --finish: how long to wait for other regions and data nodes")
	cmd.Flags().BoolVar(&status, "status", false, "show how far the change is")
	return cmd
}

// reissue issues the keys that are missing. What was issued is shown even if
// not all could be: it cannot be shown again.
func (t *tool) reissue(ctx context.Context, c *adminclient.Client, p *api.PinChange) error {
	keys, err := c.PinKeys(ctx, p.Org)
	if err != nil {
		return err
	}
	var rows []reissued
	var failed error
	done := t.Progress("keys issued", p.KeysUnissued)
	for _, k := range keys {
		if k.New != "" {
			continue
		}
		key, err := c.ReissueKey(ctx, k.Old)
		if err != nil {
			failed = fmt.Errorf("key %s: %w (those above are issued; repeat the command for the rest)", k.Old, err)
			break
		}
		rows = append(rows, reissued{k.Old, key.ID, key.Name, key.Project, key.Whole})
		done(len(rows))
	}
	t.Say("%s takes the place of %s; this is the one time that the new keys are shown", p.Successor, p.Org)
	t.Say("both keys work until `ringmain org pin %s --finish`", p.Org)
	return errors.Join(cli.Show(t.Tool, rows, false, reissuedColumns), failed)
}

// finishPin finishes a change, and waits for regions and data nodes that are on
// their way.
func (t *tool) finishPin(ctx context.Context, c *adminclient.Client, org string, in api.PinInput, wait time.Duration) error {
	said := ""
	for end := time.Now().Add(wait); ; {
		p, err := c.ChangePin(ctx, org, in)
		if err != nil || p.Phase == api.PinErased {
			return t.showPin(p, err)
		}
		if time.Now().After(end) {
			return cmp.Or(t.showPin(p, nil), errUnconfirmed)
		}
		if said != p.Phase {
			until := "other regions hold what was written for the change"
			if p.Phase == api.PinRetired {
				until = "every data node refuses the old keys, which are revoked"
			}
			t.Say("waiting, for %s at most, until %s", wait, until)
			said = p.Phase
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return cmp.Or(t.showPin(p, nil), errUnconfirmed)
		}
	}
}

// errPending is what a script sees of a change that is not in force.
var errPending = errors.New("the change is not in force yet: the old keys are revoked, but not everybody is known to refuse them; repeat with --finish")

// errUnconfirmed is what a script sees of a change that stopped before its end.
var errUnconfirmed = errors.New("the change goes on once other regions are known to hold what was written for it: repeat the command")

func (t *tool) showPin(p *api.PinChange, err error) error {
	var problem *api.Problem
	if errors.As(err, &problem) && problem.Status == http.StatusNotFound {
		return fmt.Errorf("%w (of an org that was left, ask by the id of its successor)", err)
	}
	if err != nil {
		return err
	}
	if p.Held != nil {
		t.SayHeld(p.Held)
	}
	if err := cli.Show(t.Tool, []api.PinChange{*p}, true, pinColumns); err != nil {
		return err
	}
	switch p.Phase {
	case api.PinRetired:
		return errPending
	case api.PinCutOff:
		return fmt.Errorf("a takeover undid what began the change: %s is as it was, but for its pin; revoke and delete the keys of %s, delete it, and begin again", p.Org, p.Successor)
	}
	return nil
}
