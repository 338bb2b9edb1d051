// Package audit records who changed what through the management API. Each fact
// has its own function, so that no fact can carry a secret: none takes a body, a
// key or a credential.
package audit

import (
	"context"
	"log/slog"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
)

// Log is where facts go.
type Log struct{ log *slog.Logger }

// To gives a Log that writes to logger.
func To(logger *slog.Logger) Log { return Log{logger.With("log", "audit")} }

func (a Log) fact(actor, fact, id string, attrs ...slog.Attr) {
	attrs = append([]slog.Attr{slog.String("fact", fact), slog.String("actor", actor), slog.String("id", id)}, attrs...)
	a.log.LogAttrs(context.Background(), slog.LevelInfo, "audit", attrs...)
}

func at(shard controlplane.Shard, point controlplane.Point) slog.Attr {
	return slog.String("position", api.FormatPosition(shard, point))
}

// Created says that a record of the kind now exists.
func (a Log) Created(actor, kind, id string, shard controlplane.Shard, point controlplane.Point) {
	a.fact(actor, kind+"_created", id, at(shard, point))
}

// Updated says that a record was replaced.
func (a Log) Updated(actor, kind, id string, shard controlplane.Shard, point controlplane.Point) {
	a.fact(actor, kind+"_updated", id, at(shard, point))
}

// Deleted says that a record is gone.
func (a Log) Deleted(actor, kind, id string, shard controlplane.Shard, point controlplane.Point) {
	a.fact(actor, kind+"_deleted", id, at(shard, point))
}

// KeyCreated says that a key was made and shown to actor.
func (a Log) KeyCreated(actor, id, project string, shard controlplane.Shard, point controlplane.Point) {
	a.fact(actor, "key_created", id, slog.String("project", project), at(shard, point))
}

// KeyShownAgain says that actor repeated the request that made a secret, and was shown it again.
func (a Log) KeyShownAgain(actor, id string) { a.fact(actor, "key_shown_again", id) }

// KeyRotated says that a key's secret was replaced and shown to actor; the old one ends after grace.
func (a Log) KeyRotated(actor, id string, grace time.Duration, shard controlplane.Shard, point controlplane.Point) {
	a.fact(actor, "key_rotated", id, slog.Duration("grace", grace), at(shard, point))
}

// KeyRevocationPushed says that data nodes were told to refuse a key, before the commit.
func (a Log) KeyRevocationPushed(actor, id string) { a.fact(actor, "key_revocation_pushed", id) }

// RevocationPushed says that nodes were told to refuse a credential, node or token, before the commit.
func (a Log) RevocationPushed(actor, kind, subject string) {
	a.fact(actor, kind+"_revocation_pushed", subject)
}

// Revoked says that such a revocation is committed.
func (a Log) Revoked(actor, kind, subject string, shard controlplane.Shard, point controlplane.Point) {
	a.fact(actor, kind+"_revoked", subject, at(shard, point))
}

// KeyRevoked says that a key's revocation is committed.
func (a Log) KeyRevoked(actor, id string, shard controlplane.Shard, point controlplane.Point) {
	a.fact(actor, "key_revoked", id, at(shard, point))
}

// ShardMoveAsked says that actor asked for region to become the home of a shard whose home answers.
func (a Log) ShardMoveAsked(actor, shard, region string) {
	a.fact(actor, "shard_move_asked", shard, slog.String("region", region))
}

// ShardTakeoverAsked says that actor asked for region to become the shard's
// home: from a home that lives, if live is set, without the lost regions, with the added ones.
func (a Log) ShardTakeoverAsked(actor, shard, region string, live bool, lost, add []string) {
	a.fact(actor, "shard_takeover_asked", shard, slog.String("region", region), slog.Bool("live", live), slog.Any("lost", lost), slog.Any("add", add))
}

// ShardMoved says that region became the shard's home.
func (a Log) ShardMoved(actor, shard, region string, epoch controlplane.Epoch, lossless bool) {
	a.fact(actor, "shard_moved", shard, slog.String("region", region), slog.String("epoch", epoch.String()), slog.Bool("lossless", lossless))
}

// QuarantineReplayed says that the entry formerly at old was written anew at point.
func (a Log) QuarantineReplayed(actor string, shard controlplane.Shard, old, point controlplane.Point) {
	a.fact(actor, "quarantine_replayed", api.FormatPosition(shard, old), at(shard, point))
}

// QuarantineResolved says that an entry left this region's quarantine, replayed or discarded.
func (a Log) QuarantineResolved(actor string, replayed bool, shard controlplane.Shard, old controlplane.Point) {
	a.fact(actor, "quarantine_resolved", api.FormatPosition(shard, old), slog.Bool("replayed", replayed))
}

// AccessRefused says that somebody came without a valid token; name is the
// token's, if it is one of ours that has ended.
func (a Log) AccessRefused(remote, name, why string) {
	a.fact(name, "access_refused", "", slog.String("remote", remote), slog.String("why", why))
}

// KeyReissued says that a key was made in the place of another, and shown to actor.
func (a Log) KeyReissued(actor, id, old string, shard controlplane.Shard, point controlplane.Point) {
	a.fact(actor, "key_reissued", id, slog.String("old", old), at(shard, point))
}

// PinBegun says that an org's change of pin began: it is narrowed and frozen.
func (a Log) PinBegun(actor, org, to string, shard controlplane.Shard, point controlplane.Point) {
	a.fact(actor, "org_pin_begun", org, slog.String("to", to), at(shard, point))
}

// PinInForce says that every data node refuses the ids of the org before.
func (a Log) PinInForce(actor, org, before string, shard controlplane.Shard, point controlplane.Point) {
	a.fact(actor, "org_pin_in_force", org, slog.String("before", before), at(shard, point))
}

// PinErased says that the records of an org that was left are deleted.
func (a Log) PinErased(actor, org, successor string) {
	a.fact(actor, "org_pin_erased", org, slog.String("successor", successor))
}

// MemberAdded says that node is a member of the region's Raft now.
func (a Log) MemberAdded(actor, node, region string) {
	a.fact(actor, "member_added", node, slog.String("region", region))
}

// MemberMoved says that a member of the region's Raft is at another address now.
func (a Log) MemberMoved(actor, node, region string) {
	a.fact(actor, "member_moved", node, slog.String("region", region))
}

// LeadershipTransferred says that another node leads the region: the one named, or any.
func (a Log) LeadershipTransferred(actor, node, region string) {
	a.fact(actor, "leadership_transferred", node, slog.String("region", region))
}

// MemberRemoved says that node is no member of the region's Raft any more.
func (a Log) MemberRemoved(actor, node, region string, force bool) {
	a.fact(actor, "member_removed", node, slog.Bool("force", force), slog.String("region", region))
}

// BackupTaken says that actor was sent the whole state of region by node.
func (a Log) BackupTaken(actor, region, node string) {
	a.fact(actor, "backup_taken", "", slog.String("region", region), slog.String("node", node))
}
