package manage

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ringmain/controlplane/admin/api"
)

// RevokeCredential has no upstream called with this one's credential any more.
func (c *Client) RevokeCredential(ctx context.Context, upstream string) (*api.Revoked, error) {
	return create[api.Revoked](ctx, c, "/upstreams/"+esc(upstream)+"/revoke-credential", nil)
}

// RevokeNode refuses a node by its name, for good. Repeating it is harmless.
func (c *Client) RevokeNode(ctx context.Context, region, role, node string) (*api.Revoked, error) {
	return create[api.Revoked](ctx, c, "/nodes/"+esc(region)+"/"+esc(role)+"/"+esc(node)+"/revoke", nil)
}

// Tokens lists the operators' tokens that the node which is asked knows.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	list, err := get[api.TokenList](ctx, c, "/tokens")
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// RevokeToken refuses a token, by name or SHA-256 in hex, for good.
func (c *Client) RevokeToken(ctx context.Context, token string) (*api.Revoked, error) {
	return create[api.Revoked](ctx, c, "/tokens/"+esc(token)+"/revoke", nil)
}

var revokedThing = []column[api.Revoked]{
	{"KIND", func(r api.Revoked) string { return r.Kind }},
	{"REVOKED", func(r api.Revoked) string { return r.Subject }},
	{"SINCE", func(r api.Revoked) string { return r.Revoked.Format(time.RFC3339) }},
	{"UPSTREAMS", func(r api.Revoked) string { return strings.Join(r.Upstreams, ",") }},
	{"ACKNOWLEDGED", func(r api.Revoked) string { return r.Acknowledged }},
}

func (t *tool) showRevoked(r *api.Revoked, err error) error {
	if err != nil {
		return err
	}
	if r.Unseen {
		t.say("gossip knows no node %s: if the name is misspelt, the node that you mean is not revoked", clean(r.Subject))
	}
	if r.Held != nil {
		t.sayHeld(r.Held)
	}
	return show(t, []api.Revoked{*r}, true, revokedThing)
}

func (t *tool) revokeCredentialCommand() *cobra.Command {
	return t.command("revoke-credential UPSTREAM", "call no upstream with this one's credential any more, for good", "  ringmain upstream revoke-credential openai-eu\n  ringmain upstream update openai-eu --credential-file new.key", func(ctx context.Context, c *Client, args []string) error {
		return t.showRevoked(c.RevokeCredential(ctx, args[0]))
	})
}

func (t *tool) revokeNodeCommand() *cobra.Command {
	c := t.command("revoke REGION/ROLE/NODE", "refuse a node by its name everywhere from now on, for good", "  ringmain node revoke eu-fra/data/eu-fra-d2", func(ctx context.Context, c *Client, args []string) error {
		parts := strings.Split(args[0], "/")
		if len(parts) != 3 || !slices.Contains([]string{"control", "data"}, parts[1]) {
			return usagef("%q: name the node as REGION/control/NODE or REGION/data/NODE, as `ringmain node list` shows them", args[0])
		}
		return t.showRevoked(c.RevokeNode(ctx, parts[0], parts[1], parts[2]))
	})
	c.Long = `Refuse a node by its name everywhere from now on, for good: its certificate in every handshake between nodes,
the connections that it has, and what it says in gossip. It stops serving when it hears of it. The name cannot be
used again: give the machine another, with a certificate for that. Who holds the node's disk also has the keys of
gossip and the region's key-encryption key: change those too. Remove a control node from its region's Raft
afterwards: ringmain node remove.`
	return c
}

var tokenColumns = []column[api.Token]{
	{"NAME", func(k api.Token) string { return k.Name }},
	{"EXPIRES", func(k api.Token) string { return k.Expires.Format(time.RFC3339) }},
	{"REVOKED", func(k api.Token) string {
		if k.Revoked == nil {
			return ""
		}
		return k.Revoked.Format(time.RFC3339)
	}},
	{"SHA256", func(k api.Token) string { return k.SHA256 }},
}

func (t *tool) tokenCommand() *cobra.Command {
	return group("token", "see and refuse operators' tokens", "  ringmain token list\n  ringmain token revoke ci",
		t.command("list", "list the tokens that a node is configured with", "  ringmain token list", func(ctx context.Context, c *Client, _ []string) error {
			list, err := c.Tokens(ctx)
			if err != nil {
				return err
			}
			return show(t, list, false, tokenColumns)
		}),
		t.command("revoke TOKEN", "refuse a token, by name or SHA-256, everywhere from now on, for good", "  ringmain token revoke ci", func(ctx context.Context, c *Client, args []string) error {
			return t.showRevoked(c.RevokeToken(ctx, args[0]))
		}))
}
