package view

import (
	"testing"

	"ringmain/controlplane"
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
		if err := s.Pin(b); err != nil {
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
