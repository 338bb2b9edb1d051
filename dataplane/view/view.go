// Package view holds the replicated state as the request path reads it: an
// immutable View behind one atomic pointer, made from feed frames.
//
// It reads no clock on the request path, opens no file and no connection.
// Nothing about a request may enter it.
package view

import (
	"hash/maphash"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// View is one immutable state of everything this node knows. Records that it
// hands out are shared and must not be changed.
type View struct {
	seed       maphash.Seed
	keyEdit    uint64 // publication that owns keys
	keys       *[fan]*keyTable
	keyCount   int
	keyShards  []controlplane.Shard // names by the number in packed keys
	orgs       cow[*registry.Record]
	projects   cow[*registry.Record]
	policies   cow[[]*registry.Record] // by org: its own and its projects'
	policyOrg  cow[string]             // policy id -> org
	routes     named
	upstreams  named
	regions    named
	revoked    cow[registry.Revocation] // by kind byte + id
	pins       map[string][]*registry.Record
	confined   map[string]string    // org -> the jurisdiction that the safety set pins it to
	narrowed   map[string]narrowing // by id: what changes of upstreams forbid that may not have arrived
	position   controlplane.Position
	heard      *atomic.Int64
	asOf       *atomic.Int64                // by heartbeats
	stamps     map[controlplane.Shard]int64 // newest record seen, Unix milliseconds
	loaded     bool
	noSafety   bool
	generation uint64
}

// Loaded reports whether the view holds a complete state: only then may keys
// be judged by it. Before, answer 503 not_ready.
func (v *View) Loaded() bool { return v.loaded }

// SafetyUnknown reports that the file of revocations could not be read and no
// control node has delivered a full state since: a key that looks good may
// have been revoked. Answer 503 not_ready for every key, never 401.
func (v *View) SafetyUnknown() bool { return v.noSafety }

// Position says how far the view is. The caller must not change it.
func (v *View) Position() controlplane.Position { return v.position }

// HeardAt is when the last frame from a control node arrived, by this node's
// clock; zero when none has since the worker started.
func (v *View) HeardAt() time.Time { return moment(v.heard) }

// AsOf is the latest moment, by the control plane's clocks, up to which the
// keys of jurisdiction ("any" = unpinned ones) are known to be current here;
// zero when that is not known. A key id created later than AsOf minus 60 s may
// simply not have arrived: 503, not 401.
//
// A heartbeat speaks for every shard. A record speaks for its own only: the
// homes of others may be cut off.
func (v *View) AsOf(jurisdiction string) time.Time {
	oldest := int64(math.MaxInt64)
	for shard := range v.position {
		if shard == controlplane.ShardPinned(jurisdiction) ||
			jurisdiction == controlplane.JurisdictionAny && strings.HasPrefix(string(shard), string(controlplane.ShardAny(""))) {
			oldest = min(oldest, v.stamps[shard])
		}
	}
	heard := moment(v.asOf)
	if at := time.UnixMilli(oldest); oldest != math.MaxInt64 && oldest > 0 && at.After(heard) {
		return at
	}
	return heard
}

// Age is how long ago, by this node's clock, the keys of jurisdiction were last
// known to be current here: see AsOf. A revocation younger than that may not
// have arrived. It is the longest time there is while nothing is known.
func (v *View) Age(jurisdiction string, now time.Time) time.Duration {
	at := v.AsOf(jurisdiction)
	if at.IsZero() {
		return math.MaxInt64
	}
	return max(0, now.Sub(at))
}

func moment(ms *atomic.Int64) time.Time {
	if ms == nil || ms.Load() == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms.Load())
}

// Keys is how many keys the view holds.
func (v *View) Keys() int { return v.keyCount }

// Key finds a key by record id. A revoked key is found, with Revoked set.
func (v *View) Key(id string) (KeyRef, bool) {
	hash := maphash.String(v.seed, id)
	if v.keys == nil {
		return KeyRef{}, false
	}
	p := v.keys[hash>>56].find(hash, id)
	if p == nil {
		return KeyRef{}, false
	}
	k := KeyRef{ID: id}
	project, shard := p.unpack(&k)
	k.Shard = v.keyShards[shard]
	if rec, ok := v.projectRecord(project); ok {
		k.Project = rec.Meta.ID
	} else {
		k.Project = string(project)
	}
	if at, gone := v.Revoked(registry.KindKey, id); gone && k.Revoked == 0 {
		k.Revoked = max(at, 1)
	}
	return k, true
}

func (v *View) projectRecord(id []byte) (*registry.Record, bool) {
	if v.projects.pieces == nil {
		return nil, false
	}
	rec, ok := v.projects.pieces[maphash.Bytes(v.seed, id)>>56].m[string(id)]
	return rec, ok
}

// Project finds a project by id. Project is set in the record.
func (v *View) Project(id string) (*registry.Record, bool) { return v.projects.get(v.seed, id) }

// nowhere is the jurisdiction of an org that is pinned to two: no region is in it.
const nowhere = "-"

// Org finds an org by id. Org is set in the record. Where the safety set pins
// it, or stale data could have loosened its roaming, the stricter record is
// returned.
func (v *View) Org(id string) (*registry.Record, bool) {
	rec, ok := v.orgs.get(v.seed, id)
	if !ok {
		return nil, false
	}
	if pin := v.confined[id]; pin != "" && pin != rec.Org.Jurisdiction {
		strict, org := *rec, *rec.Org
		if org.Jurisdiction != controlplane.JurisdictionAny {
			pin = nowhere
		}
		org.Jurisdiction, org.Roaming = pin, false
		strict.Org = &org
		return &strict, true
	}
	for _, pin := range v.pins[id] {
		if pin.Kind == registry.KindOrg && rec.Org.Roaming && !pin.Org.Roaming {
			strict, org := *rec, *rec.Org
			org.Roaming = false
			strict.Org = &org
			return &strict, true
		}
	}
	return rec, true
}

// Route finds a model's route by public name. Route is set in the record.
func (v *View) Route(model string) (*registry.Record, bool) { return v.routes.find(model) }

// Routes returns all routes, ordered by model.
func (v *View) Routes() []*registry.Record { return v.routes.list }

// Upstream finds an upstream by public name. A revoked one is absent: what
// refers to it fails closed.
func (v *View) Upstream(name string) (*registry.Record, bool) {
	rec, ok := v.upstreams.find(name)
	if !ok {
		return nil, false
	}
	if _, gone := v.Revoked(registry.KindUpstream, rec.Meta.ID); gone {
		return nil, false
	}
	return rec, true
}

// Withdrawn is how many upstreams may not be called because their credential
// is revoked.
func (v *View) Withdrawn() (n int) {
	for _, rec := range v.upstreams.list {
		if up := rec.Upstream; up.Disabled && up.Auth != "none" && len(up.Credential) == 0 {
			n++
		}
	}
	return n
}

// Upstreams returns all upstreams that are not revoked, ordered by name.
func (v *View) Upstreams() []*registry.Record {
	all := make([]*registry.Record, 0, len(v.upstreams.list))
	for _, rec := range v.upstreams.list {
		if _, gone := v.Revoked(registry.KindUpstream, rec.Meta.ID); !gone {
			all = append(all, rec)
		}
	}
	return all
}

// Region finds a region by name. Region is set in the record.
func (v *View) Region(name string) (*registry.Record, bool) { return v.regions.find(name) }

// Regions returns all regions, ordered by name.
func (v *View) Regions() []*registry.Record { return v.regions.list }

// Revoked reports whether the credential is in the safety set, and since when
// (Unix milliseconds).
func (v *View) Revoked(kind registry.Kind, id string) (at int64, ok bool) {
	if v.revoked.entries == 0 {
		return 0, false
	}
	r, ok := v.revoked.get(v.seed, revocationKey(kind, id))
	return r.At, ok
}

func revocationKey(kind registry.Kind, id string) string { return string(rune(kind)) + id }
