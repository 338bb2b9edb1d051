package view

import (
	"fmt"
	"hash/maphash"
	"maps"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// checkBody makes sure that the one body that Kind names is there, so that
// readers need not ask.
func checkBody(r *registry.Record) error {
	var has bool
	switch r.Kind {
	case registry.KindOrg:
		has = r.Org != nil
	case registry.KindProject:
		has = r.Project != nil
	case registry.KindKey:
		has = r.Key != nil
	case registry.KindUpstream:
		has = r.Upstream != nil
	case registry.KindRoute:
		has = r.Route != nil
	case registry.KindPolicy:
		has = r.Policy != nil
	case registry.KindRegion:
		has = r.Region != nil
	case registry.KindRelocation:
		has = r.Relocation != nil
	}
	if !has || r.Meta.ID == "" {
		return fmt.Errorf("record %q of kind %d has no id, no body, or a kind of a later version: %w",
			r.Meta.ID, r.Kind, controlplane.ErrUnknownEntry)
	}
	return nil
}

// put adds or replaces a record in next.
func (s *Store) put(next *View, rec *registry.Record) error {
	id := rec.Meta.ID
	switch rec.Kind {
	case registry.KindKey:
		shard, err := s.shardNumber(next, rec.Meta.Shard)
		if err != nil {
			return err
		}
		p, err := packKey(nil, shard, rec.Meta, rec.Key)
		if err != nil {
			return err
		}
		return s.editKeys(next, id, func(t *keyTable) (*keyTable, error) { return t.put(s.edit, next.seed, p) })
	case registry.KindOrg:
		next.orgs.set(s.edit, next.seed, id, rec)
	case registry.KindProject:
		next.projects.set(s.edit, next.seed, id, rec)
	case registry.KindPolicy:
		s.removePolicy(next, id)
		s.addPolicy(next, rec)
	case registry.KindRoute, registry.KindUpstream, registry.KindRegion:
		rec = next.bare(rec)
		next.edit(rec.Kind, func(byID map[string]*registry.Record) { byID[id] = rec })
	case registry.KindRelocation: // the management API's; a pin that comes with it is in the safety set
	}
	return nil
}

func (s *Store) remove(next *View, kind registry.Kind, id string) error {
	switch kind {
	case registry.KindKey:
		return s.editKeys(next, id, func(t *keyTable) (*keyTable, error) { return t.remove(s.edit, next.seed, id), nil })
	case registry.KindOrg:
		next.orgs.remove(s.edit, next.seed, id)
	case registry.KindProject:
		next.projects.remove(s.edit, next.seed, id)
	case registry.KindPolicy:
		s.removePolicy(next, id)
	case registry.KindRoute, registry.KindUpstream, registry.KindRegion:
		next.edit(kind, func(byID map[string]*registry.Record) { delete(byID, id) })
	case registry.KindRelocation:
	default:
		return fmt.Errorf("%w: removal of %q of kind %d", controlplane.ErrUnknownEntry, id, kind)
	}
	return nil
}

// bare returns rec; of an upstream whose credential is revoked, one that is
// disabled and from which the credential is gone: it leaves this node's memory.
func (v *View) bare(rec *registry.Record) *registry.Record {
	if rec.Kind != registry.KindUpstream || len(rec.Upstream.Credential) == 0 {
		return rec
	}
	if _, gone := v.Revoked(registry.KindCredential, registry.CredentialID(rec.Upstream.Credential)); !gone {
		return rec
	}
	r, up := *rec, *rec.Upstream
	up.Credential, up.Disabled = nil, true
	r.Upstream = &up
	return &r
}

// narrowing is what a change of an upstream forbids that may not have arrived.
type narrowing struct {
	ahead *registry.Record
	epoch uint64 // counter of the change's
}

// callable returns rec as requests may use it: an upstream as it was narrowed ahead.
func (v *View) callable(rec *registry.Record) *registry.Record {
	n, ok := v.narrowed[rec.Meta.ID]
	if rec.Kind != registry.KindUpstream || !ok || n.ahead.Meta.Revision <= rec.Meta.Revision {
		return rec
	}
	r := *rec
	r.Upstream = rec.Upstream.Narrowed(n.ahead.Upstream)
	return &r
}

// narrow has an upstream called no more as a version of it forbids that has not
// arrived yet.
func (v *View) narrow(ahead *registry.Record, epoch uint64) {
	id := ahead.Meta.ID
	if old, ok := v.narrowed[id]; ok && old.ahead.Meta.Revision >= ahead.Meta.Revision && old.epoch >= epoch {
		return
	}
	if held := v.upstreams.byID[id]; held != nil && held.Meta.Revision >= ahead.Meta.Revision {
		return
	}
	v.narrowed = maps.Clone(v.narrowed)
	if v.narrowed == nil {
		v.narrowed = make(map[string]narrowing)
	}
	v.narrowed[id] = narrowing{ahead, epoch}
	v.edit(registry.KindUpstream, func(map[string]*registry.Record) {})
}

// widen ends what was narrowed ahead by changes of shard before epoch: they are
// in the view by now, or were cut off.
func (v *View) widen(shard controlplane.Shard, epoch uint64) {
	narrowed := maps.Clone(v.narrowed)
	maps.DeleteFunc(narrowed, func(_ string, n narrowing) bool { return n.ahead.Meta.Shard == shard && n.epoch < epoch })
	if len(narrowed) == len(v.narrowed) {
		return
	}
	v.narrowed = narrowed
	v.edit(registry.KindUpstream, func(map[string]*registry.Record) {})
}

// withdraw lets go of the credentials that are revoked.
func (v *View) withdraw() {
	v.edit(registry.KindUpstream, func(byID map[string]*registry.Record) {
		for id, rec := range byID {
			byID[id] = v.bare(rec)
		}
	})
}

// confine keeps the org that the pin is of where the pin says.
func (v *View) confine(pin string) {
	org, jurisdiction, ok := registry.ParsePinID(pin)
	if !ok {
		return
	}
	if there := v.confined[org]; there != "" && there != jurisdiction {
		jurisdiction = nowhere
	}
	v.confined = maps.Clone(v.confined)
	if v.confined == nil {
		v.confined = make(map[string]string)
	}
	v.confined[org] = jurisdiction
}

// edit changes the table of routes, upstreams or regions.
func (v *View) edit(kind registry.Kind, change func(byID map[string]*registry.Record)) {
	table := &v.regions
	switch kind {
	case registry.KindRoute:
		table = &v.routes
	case registry.KindUpstream:
		table = &v.upstreams
	default:
	}
	*table = table.edited(change, v.callable)
}

// editKeys replaces the piece of the key table that id belongs to.
func (s *Store) editKeys(next *View, id string, change func(*keyTable) (*keyTable, error)) error {
	if next.keys == nil {
		next.keys, next.keyEdit = new([fan]*keyTable), s.edit
	} else if next.keyEdit != s.edit {
		fresh := *next.keys
		next.keys, next.keyEdit = &fresh, s.edit
	}
	slot := &next.keys[maphash.String(next.seed, id)>>56]
	before := 0
	if *slot != nil {
		before = (*slot).count
	}
	t, err := change(*slot)
	if err != nil {
		return err
	}
	*slot = t
	if t != nil {
		next.keyCount += t.count - before
	}
	return nil
}

// Policies are read by org but change by id: policyOrg leads from one to the other.
func (s *Store) addPolicy(next *View, rec *registry.Record) {
	list, _ := next.policies.get(next.seed, rec.Policy.Org)
	list = append(slices.Clip(list), rec)
	next.policies.set(s.edit, next.seed, rec.Policy.Org, list)
	next.policyOrg.set(s.edit, next.seed, rec.Meta.ID, rec.Policy.Org)
}

func (s *Store) removePolicy(next *View, id string) {
	org, ok := next.policyOrg.get(next.seed, id)
	if !ok {
		return
	}
	next.policyOrg.remove(s.edit, next.seed, id)
	list, _ := next.policies.get(next.seed, org)
	list = slices.DeleteFunc(slices.Clone(list), func(r *registry.Record) bool { return r.Meta.ID == id })
	if len(list) == 0 {
		next.policies.remove(s.edit, next.seed, org)
		return
	}
	next.policies.set(s.edit, next.seed, org, list)
}

// stage collects the snapshot of one shard. It is never published; End moves
// its content into the view in one step.
type stage struct {
	shard   controlplane.Shard
	seed    maphash.Seed
	keys    [fan]*keyTable
	others  map[registry.Kind]map[string]*registry.Record
	updated int64
	scratch []byte
}

// A stage owns all its pieces in one edit, which no published view has.
const stageEdit = 0

func newStage(shard controlplane.Shard, seed maphash.Seed) *stage {
	return &stage{shard: shard, seed: seed, others: make(map[registry.Kind]map[string]*registry.Record)}
}

func (st *stage) put(rec *registry.Record) error {
	st.updated = max(st.updated, rec.Meta.Updated)
	if rec.Kind != registry.KindKey {
		m := st.others[rec.Kind]
		if m == nil {
			m = make(map[string]*registry.Record)
			st.others[rec.Kind] = m
		}
		m[rec.Meta.ID] = rec
		return nil
	}
	// The shard's number is stamped in at End, when the view's list is known.
	p, err := packKey(st.scratch[:0], 0, rec.Meta, rec.Key)
	if err != nil {
		return err
	}
	st.scratch = p
	slot := &st.keys[maphash.String(st.seed, rec.Meta.ID)>>56]
	*slot, err = (*slot).put(stageEdit, st.seed, p)
	return err
}

// adopt replaces the content of the stage's shard in next by the stage's.
func (s *Store) adopt(next *View, st *stage) error {
	if err := s.adoptKeys(next, st); err != nil {
		return err
	}
	stale := func(kind registry.Kind, rec *registry.Record) bool {
		_, stays := st.others[kind][rec.Meta.ID]
		return rec.Meta.Shard == st.shard && !stays
	}
	s.adoptMap(next, &next.orgs, st.others[registry.KindOrg], stale)
	s.adoptMap(next, &next.projects, st.others[registry.KindProject], stale)
	var gone []string
	for _, list := range next.policies.all {
		for _, rec := range list {
			if stale(registry.KindPolicy, rec) {
				gone = append(gone, rec.Meta.ID)
			}
		}
	}
	for _, id := range gone {
		s.removePolicy(next, id)
	}
	for _, rec := range st.others[registry.KindPolicy] {
		s.removePolicy(next, rec.Meta.ID)
		s.addPolicy(next, rec)
	}
	for _, kind := range []registry.Kind{registry.KindRoute, registry.KindUpstream, registry.KindRegion} {
		next.edit(kind, func(byID map[string]*registry.Record) {
			for id, rec := range byID {
				if stale(kind, rec) {
					delete(byID, id)
				}
			}
			for id, rec := range st.others[kind] {
				byID[id] = next.bare(rec)
			}
		})
	}
	return nil
}

func (s *Store) adoptMap(next *View, table *cow[*registry.Record], fresh map[string]*registry.Record,
	stale func(registry.Kind, *registry.Record) bool) {
	var gone []string
	for id, rec := range table.all {
		if stale(rec.Kind, rec) {
			gone = append(gone, id)
		}
	}
	for _, id := range gone {
		table.remove(s.edit, next.seed, id)
	}
	for id, rec := range fresh {
		table.set(s.edit, next.seed, id, rec)
	}
}

func (s *Store) adoptKeys(next *View, st *stage) error {
	number, err := s.shardNumber(next, st.shard)
	if err != nil {
		return err
	}
	tables := new([fan]*keyTable)
	count := 0
	for i := range tables {
		var old *keyTable
		if next.keys != nil {
			old = next.keys[i]
		}
		add := st.keys[i]
		st.keys[i] = nil // so that the stage shrinks while the table grows
		add.each(func(p packed) { p.setShard(number) })
		keep := func(p packed) bool {
			return p.shard() != number && add.find(maphash.Bytes(next.seed, p.id()), string(p.id())) == nil
		}
		tables[i] = rebuild(s.edit, next.seed, old, keep, add)
		count += tables[i].count
	}
	next.keys, next.keyEdit, next.keyCount = tables, s.edit, count
	return nil
}
