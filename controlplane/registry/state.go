// Package registry holds the replicated rules: typed records in shards, the
// frozen entry envelope, Check, Apply, Snapshot and Restore.
//
// It is pure: every replica that applies the same commands holds the same
// state. No clock, randomness, logger, goroutine, lock, disk or network may
// enter; times and ids arrive inside commands. DESIGN.md says why it is so.
package registry

import (
	"cmp"
	"slices"
	"strings"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
)

// State is the replicated registry: shards of records, and the grow-only safety
// set of revocations. It is not safe for concurrent use with Apply; any number
// of readers may share it. Clone and ShardSnapshot are cheap reads whose
// results stay valid while the State moves on. The zero State is empty.
type State struct {
	version uint64   // of the cluster; 0 is 1
	shards  []*shard // by name; a shard in it is never changed, only replaced
}

// New returns an empty State.
func New() *State { return &State{} }

// Clone returns an independent copy. It shares all structure with s, so it
// costs one small slice, whatever the number of records.
func (s *State) Clone() *State { return &State{version: s.version, shards: slices.Clone(s.shards)} }

func (s *State) index(name controlplane.Shard) (int, bool) {
	return slices.BinarySearchFunc(s.shards, name, func(sh *shard, name controlplane.Shard) int {
		return cmp.Compare(sh.info.Shard, name)
	})
}

func (s *State) shard(name controlplane.Shard) (*shard, bool) {
	if i, ok := s.index(name); ok {
		return s.shards[i], true
	}
	return nil, false
}

// orNew returns the shard, or an empty one that s does not hold yet.
func (s *State) orNew(name controlplane.Shard) *shard {
	if sh, ok := s.shard(name); ok {
		return sh
	}
	return newShard(name)
}

func (s *State) set(sh *shard) {
	i, ok := s.index(sh.info.Shard)
	if ok {
		s.shards[i] = sh
	} else {
		s.shards = slices.Insert(s.shards, i, sh)
	}
}

// known reports a shard that an entry or snapshot has opened. Staging alone does not.
func (sh *shard) known() bool { return sh.info.Last != controlplane.Point{} }

// present reports a shard of which something must be kept, staging aside.
func (sh *shard) present() bool {
	return sh.known() || sh.info.Epoch != (controlplane.Epoch{}) || sh.lost.Len() > 0
}

// Copies lists all that must be kept of the shards' places by name: also of
// those that were only sealed here, or lost all they had.
func (s *State) Copies() []ShardInfo {
	var infos []ShardInfo
	for _, sh := range s.shards {
		if sh.present() {
			infos = append(infos, sh.info)
		}
	}
	return infos
}

// Reports says of each of them where it stands.
func (s *State) Reports() []Report {
	var all []Report
	for _, sh := range s.shards {
		if sh.present() {
			all = append(all, sh.report())
		}
	}
	return all
}

// Copy returns where the shard stands, for the rules of ownership: the zero
// Copy if nothing was ever heard of it.
func (s *State) Copy(name controlplane.Shard) ownership.Copy { return s.orNew(name).info.Copy() }

// Shards lists the shards by name.
func (s *State) Shards() []ShardInfo {
	infos := make([]ShardInfo, 0, len(s.shards))
	for _, sh := range s.shards {
		if sh.known() {
			infos = append(infos, sh.info)
		}
	}
	return infos
}

// Shard returns where the shard stands; false if it was never opened.
func (s *State) Shard(name controlplane.Shard) (ShardInfo, bool) {
	sh, ok := s.shard(name)
	if !ok || !sh.known() {
		return ShardInfo{}, false
	}
	return sh.info, true
}

// Position returns the end of every shard.
func (s *State) Position() controlplane.Position {
	p := make(controlplane.Position, len(s.shards))
	for _, sh := range s.shards {
		if sh.known() {
			p[sh.info.Shard] = sh.info.Last
		}
	}
	return p
}

// Staged says how far the staging of a snapshot of the shard is; false if
// nothing is staged.
func (s *State) Staged(name controlplane.Shard) (StageInfo, bool) {
	sh, ok := s.shard(name)
	if !ok || sh.stage == nil {
		return StageInfo{}, false
	}
	return StageInfo{Snapshot: sh.stage.snapshot, Chunks: sh.stage.chunks}, true
}

// Get returns the record.
func (s *State) Get(kind Kind, id string) (*Record, bool) {
	jurisdiction, ok := parseID(kind, id)
	if !ok {
		return nil, false
	}
	for _, sh := range s.shards {
		if holds(sh.info.Shard, kind, jurisdiction) {
			if r, ok := sh.get(id); ok {
				return r, true
			}
		}
	}
	return nil, false
}

// GetIn returns the record of that id in one shard.
func (s *State) GetIn(name controlplane.Shard, id string) (*Record, bool) {
	sh, ok := s.shard(name)
	if !ok {
		return nil, false
	}
	return sh.get(id)
}

// ByName returns the upstream, route (by model) or region of that name. Other
// kinds are never found.
func (s *State) ByName(kind Kind, name string) (*Record, bool) {
	sh, ok := s.shard(controlplane.ShardGlobal)
	if !ok || !kind.global() {
		return nil, false
	}
	return sh.byName(kind, "", name)
}

// ProjectByName returns the project of that name in the org.
func (s *State) ProjectByName(org, name string) (*Record, bool) {
	o, ok := s.Get(KindOrg, org)
	if !ok {
		return nil, false
	}
	sh, ok := s.shard(o.Meta.Shard)
	if !ok {
		return nil, false
	}
	return sh.byName(KindProject, org, name)
}

// List returns records of the kind in order of id: those after the id after
// ("" = from the first), for which keep (nil = all) is true, at most limit (0 =
// all).
func (s *State) List(kind Kind, after string, limit int, keep func(*Record) bool) []*Record {
	if !kind.known() {
		return nil
	}
	prefix := kind.Prefix() + "_"
	first := max(after, prefix)
	var out []*Record
	for _, sh := range s.shards {
		n := 0
		for r := range sh.records.From(func(e *Record) int { return strings.Compare(e.Meta.ID, first) }) {
			if !strings.HasPrefix(r.Meta.ID, prefix) {
				break
			}
			if r.Meta.ID == after || keep != nil && !keep(r) {
				continue
			}
			out = append(out, r)
			if n++; n == limit {
				break
			}
		}
	}
	slices.SortFunc(out, compareIDs)
	if limit > 0 && len(out) > limit {
		out = out[:limit:limit]
	}
	return out
}

// KeysOf returns a project's keys in order of id, at most limit (0 = all), from
// after the id after.
func (s *State) KeysOf(project, after string, limit int) []*Record {
	return s.children(KindKey, KindProject, project, after, limit)
}

// ProjectsOf returns an org's projects likewise.
func (s *State) ProjectsOf(org, after string, limit int) []*Record {
	return s.children(KindProject, KindOrg, org, after, limit)
}

// PoliciesOf returns the policies of an org and of its projects likewise.
func (s *State) PoliciesOf(org, after string, limit int) []*Record {
	return s.children(KindPolicy, KindOrg, org, after, limit)
}

func (s *State) children(kind, parentKind Kind, parentID, after string, limit int) []*Record {
	name, ok := ShardOf(parentKind, parentID, s)
	if !ok {
		return nil
	}
	sh, ok := s.shard(name)
	if !ok {
		return nil
	}
	var out []*Record
	sh.children(kind, parentID, after, func(r *Record) bool {
		out = append(out, r)
		return len(out) != limit
	})
	return out
}

// Revoked returns the revocation of (kind, id), if there is one. The record
// itself may be gone.
func (s *State) Revoked(kind Kind, id string) (Revocation, bool) {
	jurisdiction, ok := parseID(kind, id)
	if !ok {
		return Revocation{}, false
	}
	for _, sh := range s.shards {
		if holds(sh.info.Shard, kind, jurisdiction) {
			if v, ok := sh.revocation(kind, id); ok {
				return *v, true
			}
		}
	}
	return Revocation{}, false
}

// Revocations returns the shard's part of the safety set by (kind, id).
func (s *State) Revocations(name controlplane.Shard) []Revocation {
	sh, ok := s.shard(name)
	if !ok {
		return nil
	}
	out := make([]Revocation, 0, sh.revoked.Len())
	for v := range sh.revoked.All() {
		out = append(out, *v)
	}
	return out
}
