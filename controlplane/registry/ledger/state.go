// Package ledger is the state of one region's registry, and what each command
// does to it: State, Apply, Snapshot, Restore.
//
// Here are the copies of shards that the region holds: how far each is, its
// tail, quarantine and staging, and its content, which the room content keeps.
// Who may write, and what a copy cuts, is ownership's word; what a home accepts
// is that of rules.
//
// It is pure: every replica that applies the same commands holds the same state.
// No clock, randomness, logger, goroutine, lock, disk or network may enter; times
// and ids arrive inside commands. ../DESIGN.md says why it is so.
package ledger

import (
	"cmp"
	"slices"
	"strings"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
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
func (s *State) Copies() []registry.ShardInfo {
	var infos []registry.ShardInfo
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
func (s *State) Shards() []registry.ShardInfo {
	infos := make([]registry.ShardInfo, 0, len(s.shards))
	for _, sh := range s.shards {
		if sh.known() {
			infos = append(infos, sh.info)
		}
	}
	return infos
}

// Shard returns where the shard stands; false if it was never opened.
func (s *State) Shard(name controlplane.Shard) (registry.ShardInfo, bool) {
	sh, ok := s.shard(name)
	if !ok || !sh.known() {
		return registry.ShardInfo{}, false
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
func (s *State) Get(kind registry.Kind, id string) (*registry.Record, bool) {
	jurisdiction, ok := registry.ParseID(kind, id)
	if !ok {
		return nil, false
	}
	for _, sh := range s.shards {
		if registry.Holds(sh.info.Shard, kind, jurisdiction) {
			if r, ok := sh.content.Get(id); ok {
				return r, true
			}
		}
	}
	return nil, false
}

// GetIn returns the record of that id in one shard.
func (s *State) GetIn(name controlplane.Shard, id string) (*registry.Record, bool) {
	sh, ok := s.shard(name)
	if !ok {
		return nil, false
	}
	return sh.content.Get(id)
}

// ByName returns the upstream, route (by model) or region of that name. Other
// kinds are never found.
func (s *State) ByName(kind registry.Kind, name string) (*registry.Record, bool) {
	sh, ok := s.shard(controlplane.ShardGlobal)
	if !ok || !kind.Global() {
		return nil, false
	}
	return sh.content.ByName(kind, "", name)
}

// ProjectByName returns the project of that name in the org.
func (s *State) ProjectByName(org, name string) (*registry.Record, bool) {
	o, ok := s.Get(registry.KindOrg, org)
	if !ok {
		return nil, false
	}
	sh, ok := s.shard(o.Meta.Shard)
	if !ok {
		return nil, false
	}
	return sh.content.ByName(registry.KindProject, org, name)
}

// List returns records of the kind in order of id: those after the id after
// ("" = from the first), for which keep (nil = all) is true, at most limit (0 =
// all).
func (s *State) List(kind registry.Kind, after string, limit int, keep func(*registry.Record) bool) []*registry.Record {
	if !kind.Known() {
		return nil
	}
	var out []*registry.Record
	for _, sh := range s.shards {
		n := 0
		for r := range sh.content.OfKind(kind, after) {
			if keep != nil && !keep(r) {
				continue
			}
			out = append(out, r)
			if n++; n == limit {
				break
			}
		}
	}
	slices.SortFunc(out, func(a, b *registry.Record) int { return strings.Compare(a.Meta.ID, b.Meta.ID) })
	if limit > 0 && len(out) > limit {
		out = out[:limit:limit]
	}
	return out
}

// KeysOf returns a project's keys in order of id, at most limit (0 = all), from
// after the id after.
func (s *State) KeysOf(project, after string, limit int) []*registry.Record {
	return s.children(registry.KindKey, registry.KindProject, project, after, limit)
}

// ProjectsOf returns an org's projects likewise.
func (s *State) ProjectsOf(org, after string, limit int) []*registry.Record {
	return s.children(registry.KindProject, registry.KindOrg, org, after, limit)
}

// PoliciesOf returns the policies of an org and of its projects likewise.
func (s *State) PoliciesOf(org, after string, limit int) []*registry.Record {
	return s.children(registry.KindPolicy, registry.KindOrg, org, after, limit)
}

func (s *State) children(kind, parentKind registry.Kind, parentID, after string, limit int) []*registry.Record {
	name, ok := s.ShardOf(parentKind, parentID)
	if !ok {
		return nil
	}
	sh, ok := s.shard(name)
	if !ok {
		return nil
	}
	var out []*registry.Record
	for r := range sh.content.Children(kind, parentID, after) {
		out = append(out, r)
		if len(out) == limit {
			break
		}
	}
	return out
}

// Revoked returns the revocation of (kind, id), if there is one. The record
// itself may be gone.
func (s *State) Revoked(kind registry.Kind, id string) (registry.Revocation, bool) {
	jurisdiction, ok := registry.ParseID(kind, id)
	if !ok {
		return registry.Revocation{}, false
	}
	for _, sh := range s.shards {
		if registry.Holds(sh.info.Shard, kind, jurisdiction) {
			if v, ok := sh.content.Revocation(kind, id); ok {
				return *v, true
			}
		}
	}
	return registry.Revocation{}, false
}

// Revocations returns the shard's part of the safety set by (kind, id).
func (s *State) Revocations(name controlplane.Shard) []registry.Revocation {
	return slices.Collect(s.orNew(name).snapshot().Revocations)
}

// Relocation returns the relocation that stands beside an org.
func (s *State) Relocation(org string) (*registry.Record, bool) {
	return s.Get(registry.KindRelocation, registry.RelocationID(org))
}

// ShardOf returns the shard in which the record lives or would live. It is
// false if the id is malformed, or is that of an unpinned record that s does
// not hold: such a record belongs in the shard of its org.
func (s *State) ShardOf(kind registry.Kind, id string) (controlplane.Shard, bool) {
	jurisdiction, ok := registry.ParseID(kind, id)
	switch {
	case !ok:
		return "", false
	case kind.Global():
		return controlplane.ShardGlobal, true
	case jurisdiction != controlplane.JurisdictionAny:
		return controlplane.ShardPinned(jurisdiction), true
	}
	r, ok := s.Get(kind, id)
	if !ok {
		return "", false
	}
	return r.Meta.Shard, true
}
