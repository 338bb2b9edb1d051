package trial

import (
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// Past collects the versions of records that a span replaced. Give Touch every
// frame that is on disk, oldest first, then Keep, again all of them.
type Past struct {
	span   Span
	within map[string][]*registry.Record // nil = deleted
	before map[string]*registry.Record
}

// NewPast returns an empty Past of s.
func NewPast(s Span) *Past {
	return &Past{span: s, within: map[string][]*registry.Record{}, before: map[string]*registry.Record{}}
}

// Touch notes which records the span changed.
func (p *Past) Touch(f *feed.Frame) error {
	return p.look(f, func(id string, seq uint64, rec *registry.Record) {
		if p.span.From <= seq && seq <= p.span.To {
			p.within[id] = append(p.within[id], rec)
		}
	})
}

// Keep notes what those were before it.
func (p *Past) Keep(f *feed.Frame) error {
	return p.look(f, func(id string, seq uint64, rec *registry.Record) {
		switch {
		case p.within[id] == nil || seq >= p.span.From:
		case rec == nil:
			delete(p.before, id)
		default:
			p.before[id] = rec
		}
	})
}

// Before is what was found, by id and encoded. Upstreams are narrowed by what
// the span made of them: leaving it out must not have them called on terms, or
// in places, that it ended.
func (p *Past) Before() (map[string][]byte, error) {
	all := make(map[string][]byte, len(p.before))
	for id, rec := range p.before {
		if rec.Kind == registry.KindUpstream {
			narrow := *rec
			for _, later := range p.within[id] {
				if later == nil {
					narrow.Upstream = narrow.Upstream.Narrowed(nil)
				} else if later.Upstream != nil {
					narrow.Upstream = narrow.Upstream.Narrowed(later.Upstream)
				}
			}
			rec = &narrow
		}
		b, err := registry.EncodeRecord(rec)
		if err != nil {
			return nil, err
		}
		all[id] = b
	}
	return all, nil
}

// look calls each for all that a frame of the span's shard says of a record; a
// nil record was deleted.
func (p *Past) look(f *feed.Frame, each func(id string, seq uint64, rec *registry.Record)) error {
	if f.Shard != p.span.Shard {
		return nil
	}
	switch f.Type {
	case feed.FrameRecord:
		rec, err := registry.DecodeRecord(f.Record)
		if err != nil {
			return err
		}
		each(rec.Meta.ID, rec.Meta.Revision, rec)
	case feed.FrameEntry:
		e, err := registry.DecodeEntry(f.Entry)
		if err != nil {
			return err
		}
		for i := range e.Changes {
			switch c := &e.Changes[i]; c.Op {
			case registry.OpPut:
				rec := *c.Record
				rec.Meta.Shard, rec.Meta.Revision = e.Shard, e.Seq
				each(rec.Meta.ID, e.Seq, &rec)
			case registry.OpDelete:
				each(c.ID, e.Seq, nil)
			default:
			}
		}
	default:
	}
	return nil
}
