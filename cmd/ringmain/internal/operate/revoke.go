package operate

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/controlplane/admin/api"
)

func (t *tool) revokeNodeCommand() *cobra.Command {
	var unseen bool
	c := t.Command("revoke REGION/ROLE/NODE", "refuse a node by its name everywhere from now on, for good", "  ringmain node revoke eu-fra/data/eu-fra-d2", func(ctx context.Context, c *adminclient.Client, args []string) error {
		parts := strings.Split(args[0], "/")
		if len(parts) != 3 || !slices.Contains([]string{"control", "data"}, parts[1]) {
			return nodePath(ctx, c, args[0])
		}
		return t.ShowRevoked(c.RevokeNode(ctx, parts[0], parts[1], parts[2], unseen))
	})
	c.Flags().BoolVar(&unseen, "unseen", false, "even if gossip knows no node of that name, as of a machine that never came up")
	c.Long = `Refuse a node by its name everywhere from now on, for good: its certificate in every handshake between nodes,
the connections that it has, and what it says in gossip. It stops serving when it hears of it. The name cannot be
used again: give the machine another, with a certificate for that. Who holds the node's disk also has the keys of
gossip and the region's key-encryption key: change those too. Remove a control node from its region's Raft
afterwards: ringmain node remove.`
	return c
}

// nodePath is the mistake of naming a node by less than its path, with the path
// of those that may be meant.
func nodePath(ctx context.Context, c *adminclient.Client, name string) error {
	all, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	var meant []string
	for _, n := range all {
		if n.Name == path.Base(name) {
			meant = append(meant, n.Region+"/"+n.Role+"/"+n.Name)
		}
	}
	if len(meant) == 0 {
		return cli.Usagef("%q: name the node as REGION/control/NODE or REGION/data/NODE, by what `ringmain node list` shows. Nothing was revoked", name)
	}
	return cli.Usagef("%q: name the node as %s, if that one is meant. Nothing was revoked", name, strings.Join(meant, " or "))
}

var tokenColumns = []cli.Column[api.Token]{
	cli.Col("NAME", func(k api.Token) string { return k.Name }),
	cli.Col("EXPIRES", func(k api.Token) string { return k.Expires.Format(time.RFC3339) }),
	cli.Col("REVOKED", func(k api.Token) string {
		if k.Revoked == nil {
			return ""
		}
		return k.Revoked.Format(time.RFC3339)
	}),
	cli.Col("SHA256", func(k api.Token) string { return k.SHA256 }),
}

func (t *tool) tokenCommand() *cobra.Command {
	return cli.Group("token", "see and refuse operators' tokens", "  ringmain token list\n  ringmain token revoke ci",
		t.Command("list", "list the tokens that a node is configured with", "  ringmain token list", func(ctx context.Context, c *adminclient.Client, _ []string) error {
			list, err := c.Tokens(ctx)
			if err != nil {
				return err
			}
			return cli.Show(t.Tool, list, false, tokenColumns)
		}),
		t.Command("revoke TOKEN", "refuse a token, by name or SHA-256, everywhere from now on, for good", "  ringmain token revoke ci", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.ShowRevoked(c.RevokeToken(ctx, args[0]))
		}))
}
