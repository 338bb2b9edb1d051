package adminclient

import (
	"context"
	crand "crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"ringmain/controlplane/admin/api"
)

// Members lists the Raft of region; "" = the one that is asked.
func (c *Client) Members(ctx context.Context, region string) (*api.MemberList, error) {
	out := new(api.MemberList)
	return out, c.call(ctx, request{method: http.MethodGet, path: "/members", query: atRegion(region)}, out)
}

// AddMember adds a node to the Raft of region. It may be repeated.
func (c *Client) AddMember(ctx context.Context, region string, in api.MemberInput) (*api.MemberList, error) {
	out := new(api.MemberList)
	return out, c.call(ctx, request{method: http.MethodPost, path: "/members", query: atRegion(region), body: in}, out)
}

// MoveMember notes that a node of the Raft of region is at another address. It
// may be repeated.
func (c *Client) MoveMember(ctx context.Context, region, node, address string) (*api.MemberList, error) {
	out := new(api.MemberList)
	return out, c.call(ctx, request{method: http.MethodPut, path: "/members/" + esc(node) + "/address", query: atRegion(region), body: api.MemberAddress{Address: address}}, out)
}

// RemoveMember removes a node from the Raft of region. It may be repeated.
func (c *Client) RemoveMember(ctx context.Context, region, node string, force bool) (*api.MemberList, error) {
	query := url.Values{}
	if region != "" {
		query.Set("region", region)
	}
	if force {
		query.Set("force", "true")
	}
	out := new(api.MemberList)
	return out, c.call(ctx, request{method: http.MethodDelete, path: "/members/" + esc(node), query: query}, out)
}

// TransferLeadership has another node lead region.
func (c *Client) TransferLeadership(ctx context.Context, region, to string) (*api.MemberList, error) {
	out := new(api.MemberList)
	return out, c.call(ctx, request{method: http.MethodPost, path: "/members/transfer", query: atRegion(region), body: api.TransferInput{To: to}}, out)
}

// Backup writes a sealed backup by the first server that answers to w. Until it
// returns nil, what was written is not whole.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	server := c.servers[int(c.current.Load())%len(c.servers)]
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.String()+"/admin/v1/backup", nil)
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	patient := *c.http
	patient.Timeout = 0 // ctx bounds it
	resp, err := patient.Do(req)
	if err != nil {
		return fmt.Errorf("%s cannot be reached: %w", server, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		p := new(api.Problem)
		if text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20)); err == nil && json.Unmarshal(text, p) == nil && p.Code != "" {
			return p
		}
		return fmt.Errorf("%s answered %s", server, resp.Status)
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("the backup was cut: try again: %w", err)
	}
	if resp.Trailer.Get(api.TrailerWhole) != "true" {
		return fmt.Errorf("the backup was cut by %s, whose log says why: try again", server)
	}
	return nil
}

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

// ChangePin begins an org's change of pin, goes on with it, or finishes it. It
// may be repeated.
func (c *Client) ChangePin(ctx context.Context, org string, in api.PinInput) (*api.PinChange, error) {
	return create[api.PinChange](ctx, c, "/orgs/"+esc(org)+"/pin", in)
}

// Pin says how far an org's change of pin is.
func (c *Client) Pin(ctx context.Context, org string) (*api.PinChange, error) {
	return get[api.PinChange](ctx, c, "/orgs/"+esc(org)+"/pin")
}

// PinKeys lists the old keys of an org that changes its pin, with those that take
// their place.
func (c *Client) PinKeys(ctx context.Context, org string) ([]api.PinKey, error) {
	items, _, err := all[api.PinKey](ctx, c, "/orgs/"+esc(org)+"/pin/keys", nil)
	return items, err
}

// ReissueKey makes the key that takes the place of one whose org changes its
// pin. Its Whole is shown in this answer and never again.
func (c *Client) ReissueKey(ctx context.Context, id string) (*api.Key, error) {
	return create[api.Key](ctx, c, "/keys/"+esc(id)+"/reissue", nil)
}

// RevokeCredential has no upstream called with this one's credential any more.
func (c *Client) RevokeCredential(ctx context.Context, upstream string) (*api.Revoked, error) {
	return create[api.Revoked](ctx, c, "/upstreams/"+esc(upstream)+"/revoke-credential", nil)
}

// RevokeNode refuses a node by its name, for good: one that gossip does not know
// only if unseen is set. Repeating it is harmless.
func (c *Client) RevokeNode(ctx context.Context, region, role, node string, unseen bool) (*api.Revoked, error) {
	r := request{method: http.MethodPost, path: "/nodes/" + esc(region) + "/" + esc(role) + "/" + esc(node) + "/revoke", once: crand.Text()}
	if unseen {
		r.query = url.Values{"unseen": {"true"}}
	}
	out := new(api.Revoked)
	if err := c.call(ctx, r, out); err != nil {
		return nil, err
	}
	return out, nil
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
