package revoke

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

const confirmAbove = 100 // keys that one request may revoke without a confirmed count

func (d *Desk) revokeKey(ctx context.Context, in *gate.KeyPath) (*gate.Answer[api.Key], error) {
	rec, err := d.records.Get(registry.KindKey, in.Key)
	if err != nil {
		return nil, err
	}
	actor := records.RequestOf(ctx).Actor
	d.PushKeys(actor, rec)
	var point controlplane.Point
	if rec.Key.Revoked == 0 {
		change := registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: rec.Meta.ID, At: d.cfg.Now().UnixMilli(), Expires: rec.Key.Expires}
		if point, err = d.records.Commit(ctx, rec.Meta.Shard, change); err != nil {
			return nil, err
		}
		d.cfg.Audit.KeyRevoked(actor, rec.Meta.ID, rec.Meta.Shard, point)
		if rec, err = d.records.Get(registry.KindKey, rec.Meta.ID); err != nil {
			return nil, err
		}
	} else {
		point = d.At(rec)
	}
	key := records.ShowKey(rec)
	key.Held = d.Held(ctx, rec.Meta.Shard, point)
	return gate.Wrote(records.Written{Record: rec, Point: point}, "", key), nil
}

// revokeEarly tells data nodes while the request is still on its way to the
// key's home, if this region holds the key.
func (d *Desk) revokeEarly(r *http.Request) error {
	if rec, err := d.records.Get(registry.KindKey, r.PathValue("key")); err == nil {
		d.PushKeys(records.RequestOf(r.Context()).Actor, rec)
	}
	return nil
}

// PushKeys tells data nodes to refuse those of the keys that are not revoked yet,
// in the name of actor.
func (d *Desk) PushKeys(actor string, keys ...*registry.Record) {
	if d.cfg.Sink == nil {
		return
	}
	var news []registry.Revocation
	for _, k := range keys {
		if k.Key.Revoked == 0 {
			news = append(news, registry.Revocation{Kind: registry.KindKey, ID: k.Meta.ID, Shard: k.Meta.Shard, At: d.cfg.Now().UnixMilli(), Expires: k.Key.Expires})
		}
	}
	if len(news) == 0 {
		return
	}
	d.cfg.Sink.PushRevocations(news)
	for _, r := range news {
		d.cfg.Audit.KeyRevocationPushed(actor, r.ID)
	}
}

// At is where a revoked key's revocation stands, or later.
func (d *Desk) At(rec *registry.Record) controlplane.Point {
	var info registry.ShardInfo
	d.records.View(func(s *ledger.State) { info, _ = s.Shard(rec.Meta.Shard) })
	if epoch, exact := info.Copy().EpochAt(rec.Meta.Revision); exact {
		return controlplane.Point{Epoch: epoch, Seq: rec.Meta.Revision}
	}
	return info.Last
}

func (d *Desk) revokeProjectKeys(ctx context.Context, in *struct {
	gate.ProjectPath
	Body *api.RevokeInput
}) (*gate.Answer[api.RevokedKeys], error) {
	project, err := d.records.Get(registry.KindProject, in.Project)
	if err != nil {
		return nil, err
	}
	return d.revokeAll(ctx, "project "+project.Meta.ID, project.Meta.Shard, in.Body, func(s *ledger.State) []*registry.Record {
		return s.KeysOf(project.Meta.ID, "", 0)
	})
}

func (d *Desk) revokeOrgKeys(ctx context.Context, in *struct {
	gate.OrgPath
	Body *api.RevokeInput
}) (*gate.Answer[api.RevokedKeys], error) {
	org, err := d.records.Get(registry.KindOrg, in.Org)
	if err != nil {
		return nil, err
	}
	return d.revokeAll(ctx, "org "+org.Meta.ID, org.Meta.Shard, in.Body, func(s *ledger.State) (keys []*registry.Record) {
		for _, p := range s.ProjectsOf(org.Meta.ID, "", 0) {
			keys = append(keys, s.KeysOf(p.Meta.ID, "", 0)...)
		}
		return keys
	})
}

// revokeAll revokes the keys that list gives, in batches. Repeated after a
// failure it goes on with what is left: the count to confirm is of all keys,
// so that it stays the same.
func (d *Desk) revokeAll(ctx context.Context, of string, shard controlplane.Shard, in *api.RevokeInput, list func(*ledger.State) []*registry.Record) (*gate.Answer[api.RevokedKeys], error) {
	var keys []*registry.Record
	d.records.View(func(s *ledger.State) { keys = list(s) })
	var expect *int
	if in != nil {
		expect = in.Expect
	}
	left := slices.DeleteFunc(slices.Clone(keys), func(k *registry.Record) bool { return k.Key.Revoked != 0 })
	switch n := len(keys); {
	case expect != nil && *expect != n, expect == nil && n > confirmAbove:
		return nil, problem.New(http.StatusConflict, api.CodeCount, "expect", fmt.Sprintf(
			"Nothing was revoked: %s has %d keys, %d of them in force. Repeat the request with expect %d if all of them are meant.", of, n, len(left), n))
	}
	actor, now := records.RequestOf(ctx).Actor, d.cfg.Now().UnixMilli()
	d.PushKeys(actor, left...)
	for batch := range slices.Chunk(left, registry.MaxChanges) {
		changes := make([]registry.Change, len(batch))
		for i, k := range batch {
			changes[i] = registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: k.Meta.ID, At: now, Expires: k.Key.Expires}
		}
		point, err := d.records.Commit(ctx, shard, changes...)
		if err != nil {
			return nil, err
		}
		for _, k := range batch {
			d.cfg.Audit.KeyRevoked(actor, k.Meta.ID, shard, point)
		}
	}
	point := controlplane.Point{}
	d.records.View(func(s *ledger.State) {
		info, _ := s.Shard(shard)
		point = info.Last
	})
	return &gate.Answer[api.RevokedKeys]{
		Position: api.FormatPosition(shard, point),
		Body:     api.RevokedKeys{Keys: len(keys), Revoked: len(left), Held: d.Held(ctx, shard, point)},
	}, nil
}
