package homes

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

const pathCurrent = Prefix + "current"

// currentRequest asks a member what it has promised by now.
type currentRequest struct {
	Cluster string             `cbor:"1,keyasint"`
	Shard   controlplane.Shard `cbor:"2,keyasint"`
}

func (m *currentRequest) cluster() string { return m.Cluster }

func (m *currentRequest) check() error {
	if m.Shard == "" {
		return malformed("no shard")
	}
	return nil
}

// currentAnswer is the member's promise, as of a moment after it was asked.
type currentAnswer struct {
	Since    uint64             `cbor:"1,keyasint,omitempty"`
	Promised controlplane.Epoch `cbor:"2,keyasint"`
}

func (m *currentAnswer) check() error { return nil }

// Current returns nil if this region was home of the shard at some moment after
// the call: no other region can have acknowledged a write before the call that
// this copy lacks. It takes a round trip to a majority of the members, unless
// the region is one by itself. Errors: ErrNotLeader and ErrNoLeader as
// everywhere, ErrNotHome, ErrNoHome while the region is not, or no more, the
// home, and the context's if too few members answer.
//
// Whoever opens a later epoch had a majority promise it first. A majority that
// has not is therefore the proof that nobody has.
func (h *Homes) Current(ctx context.Context, shard controlplane.Shard) error {
	t, err := h.leading(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := t.during(ctx)
	defer cancel()
	t.look()
	t.mu.Lock()
	s, err := t.standingOf(shard)
	if err != nil {
		t.mu.Unlock()
		return err
	}
	c, self, role, members := s.copy, s.self, s.role, slices.Clone(s.members)
	t.mu.Unlock()
	switch role {
	case ownership.Home:
	case ownership.Opening, ownership.Candidate, ownership.Sealed:
		return fmt.Errorf("shard %s: %w", shard, controlplane.ErrNoHome)
	default:
		return fmt.Errorf("shard %s: %w", shard, controlplane.ErrNotHome)
	}
	return t.stillFollowed(ctx, shard, c, self, members)
}

// stillFollowed asks the members until a majority of each membership that
// counts follows c's epoch.
func (t *term) stillFollowed(ctx context.Context, shard controlplane.Shard, c ownership.Copy, self ownership.Member, members []string) error {
	with := []ownership.Member{self}
	if followed(c, with) {
		return nil
	}
	type word struct {
		region string
		answer currentAnswer
		err    error
	}
	heard := make(chan word, len(members))
	asking := 0
	for _, region := range members {
		if region == self.Region {
			continue
		}
		asking++
		t.background(func() {
			w := word{region: region}
			w.err = t.h.client.ask(ctx, region, pathCurrent, &currentRequest{Cluster: t.h.cfg.Cluster, Shard: shard}, &w.answer)
			heard <- w
		})
	}
	var last error
	for range asking {
		var w word
		select {
		case w = <-heard:
		case <-ctx.Done():
			return fmt.Errorf("shard %s: too few of its members answer: %w", shard, context.Cause(ctx))
		}
		switch {
		case w.err != nil:
			last = w.err
		case w.answer.Promised.Compare(c.Promised) > 0:
			last = fmt.Errorf("%s has promised epoch %s: %w", w.region, w.answer.Promised, controlplane.ErrNoHome)
		default:
			if with = append(with, ownership.Member{Region: w.region, Since: w.answer.Since}); followed(c, with) {
				return nil
			}
		}
	}
	return fmt.Errorf("shard %s: no majority of its members follows: %w", shard, last)
}

// followed reports that those in with are a majority of each membership of c
// that counts.
func followed(c ownership.Copy, with []ownership.Member) bool {
	for _, ms := range c.Memberships() {
		n := 0
		for _, m := range ms {
			if slices.Contains(with, m) {
				n++
			}
		}
		if n < ownership.Majority(len(ms)) {
			return false
		}
	}
	return true
}

// reader is a Store that can tell whether this node leads still. quorum.Quorum
// is one: a former leader that does not know it yet must not speak for its region.
type reader interface {
	Read(ctx context.Context) error
}

func (h *Homes) serveCurrent(a asked, q *currentRequest) (*currentAnswer, error) {
	if r, ok := h.cfg.Store.(reader); ok {
		if err := r.Read(a.Context()); err != nil {
			return nil, err
		}
	}
	var info registry.ShardInfo
	var held bool
	h.cfg.Store.View(func(s *ledger.State) { info, held = s.Shard(q.Shard) })
	if c := info.Copy(); !held || !slices.Contains(everOf(c, info.Members), a.region) {
		return nil, refuse(http.StatusForbidden, "shard %.80s: region %s is no member of it here", q.Shard, a.region)
	}
	return &currentAnswer{Since: h.cfg.Since(), Promised: info.Epoch}, nil
}
