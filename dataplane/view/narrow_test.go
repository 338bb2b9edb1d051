package view

import (
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// What a change of an upstream forbids holds before the change itself arrives,
// and until a version that is as new does.
func TestAnUpstreamIsNarrowedAhead(t *testing.T) {
	upstream := func(retention string, disabled bool) *registry.Record {
		return &registry.Record{Kind: registry.KindUpstream, Meta: registry.Meta{ID: "ups_1", Shard: controlplane.ShardGlobal},
			Upstream: &registry.Upstream{Name: "a", Region: "us", Auth: "bearer", Credential: []byte("secret"), Disabled: disabled,
				Terms: registry.Terms{Retention: retention, PromptCache: "none"}}}
	}
	s := New(Config{})
	ahead := func(seq uint64, rec *registry.Record) {
		t.Helper()
		rec.Meta.Revision = seq
		b, err := registry.EncodeRecord(rec)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Pin(b, 1); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when, retention string, disabled bool) {
		t.Helper()
		rec, ok := s.View().Upstream("a")
		if !ok || rec.Upstream.Terms.Retention != retention || rec.Upstream.Disabled != disabled || len(rec.Upstream.Credential) == 0 {
			t.Errorf("%s: %v, %+v", when, ok, rec)
		}
	}
	apply(t, s, entryFrame(t, "global", 1, put(upstream("zero", false))))
	held := s.View()
	ahead(3, upstream("30d", false))
	want("told ahead", "30d", false)
	if rec, _ := held.Upstream("a"); rec.Upstream.Terms.Retention != "zero" {
		t.Error("a view that a request holds must not change")
	}
	apply(t, s, entryFrame(t, "global", 2, put(upstream("zero", false))))
	want("an older version", "30d", false)
	ahead(2, upstream("zero", true))
	want("told what is older", "30d", false)
	apply(t, s, entryFrame(t, "global", 3, put(upstream("30d", false))))
	want("the version itself", "30d", false)
	ahead(4, upstream("30d", true))
	want("disabled ahead", "30d", true)
	apply(t, s, entryFrame(t, "global", 4, put(upstream("zero", false))))
	want("what took its place", "zero", false)
	ahead(4, upstream("zero", true))
	want("told again of what is held", "zero", false)
}

// What was told ahead of a change that a takeover cut off holds no longer than
// until the opening, or the snapshot, that took its place.
func TestACutNarrowingEnds(t *testing.T) {
	upstream := func(seq uint64, disabled bool) *registry.Record {
		return &registry.Record{Kind: registry.KindUpstream, Meta: registry.Meta{ID: "ups_1", Shard: "global", Revision: seq},
			Upstream: &registry.Upstream{Name: "a", Region: "us", Auth: "none", Disabled: disabled}}
	}
	second := controlplane.Epoch{Counter: 2, Region: "eu-fra"}
	opening := func(seq uint64) *feed.Frame {
		b, err := registry.EncodeEntry(&registry.Entry{Shard: "global", Epoch: second, Prev: epoch1, Seq: seq,
			Changes: []registry.Change{{Op: registry.OpOpen, Home: "eu-fra", Members: []string{"eu-fra", "us-east"}}}})
		if err != nil {
			t.Fatal(err)
		}
		return &feed.Frame{Type: feed.FrameEntry, Shard: "global", Sender: second, Entry: b}
	}
	snapshot := []*feed.Frame{
		{Type: feed.FrameReset, Shard: "global"},
		{Type: feed.FrameRecord, Shard: "global", Record: encoded(t, upstream(1, false))},
		{Type: feed.FrameEnd, Shard: "global", Point: controlplane.Point{Epoch: second, Seq: 2}},
	}
	for name, tc := range map[string]struct {
		epoch  uint64
		frames []*feed.Frame
		stays  bool
	}{
		"the opening that cut it off":   {1, []*feed.Frame{opening(2)}, false},
		"a snapshot behind that":        {1, snapshot, false},
		"a change behind the opening":   {2, []*feed.Frame{opening(2)}, true},
		"another entry of its history":  {1, []*feed.Frame{entryFrame(t, "global", 2)}, true},
		"another shard's next epoch":    {1, []*feed.Frame{entryFrame(t, "eu", 1)}, true},
		"one told by an older keeper":   {0, []*feed.Frame{opening(2)}, false},
		"the same snapshot, read again": {2, append(snapshot, snapshot...), true},
	} {
		s := New(Config{})
		apply(t, s, entryFrame(t, "global", 1, put(upstream(0, false))))
		if err := s.Pin(encoded(t, upstream(3, true)), tc.epoch); err != nil {
			t.Fatal(err)
		}
		if rec, ok := s.View().Upstream("a"); !ok || !rec.Upstream.Disabled {
			t.Fatal("it was not narrowed")
		}
		apply(t, s, tc.frames...)
		if rec, ok := s.View().Upstream("a"); !ok || rec.Upstream.Disabled != tc.stays {
			t.Errorf("%s: narrowed %v", name, !tc.stays)
		}
	}
}
