package residency_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ringmain/cmd/ringmain/internal/residency"
	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/link"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/route"
	"ringmain/dataplane/view"
)

// TestReportIsWhatIsServed: the report names, for every jurisdiction and
// endpoint, exactly the regions that data nodes would plan a request over.
func TestReportIsWhatIsServed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		of := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
		homes := map[string]string{"r1": "us", "r2": "us", "r3": "eu", "r4": "eu"}
		var regions []api.Region
		var nodes []link.Peer
		var recs []*registry.Record
		for _, name := range []string{"r1", "r2", "r3", "r4"} {
			r := api.Region{Name: name}
			r.Jurisdiction, r.State = homes[name], of("state", "active", "active", "drained")
			regions = append(regions, r)
			nodes = append(nodes, link.Peer{Region: name, Node: "n-" + name, Alive: true, Ready: true})
			recs = append(recs, &registry.Record{Kind: registry.KindRegion, Meta: registry.Meta{ID: "reg_" + name},
				Region: &registry.Region{Name: name, Jurisdiction: r.Jurisdiction, State: r.State}})
		}
		apiRoute, rec := api.Route{}, &registry.Route{Model: "m"}
		apiRoute.Model = "m"
		var upstreams []api.Upstream
		for i := range rapid.IntRange(0, 6).Draw(t, "upstreams") {
			var u api.Upstream
			u.Name, u.Region, u.Provider = string(rune('a'+i)), of("region", "r1", "r2", "r3", "r4"), of("provider", "p", "p", "q")
			u.Dialect, u.Disabled, u.Dedicated = of("dialect", "openai", "openai", "anthropic"), of("off", "", "", "off") != "", of("dedicated", "", "", "org_1")
			u.Terms.Retention, u.Terms.PromptCache = of("retention", "zero", "30d"), of("cache", "memory", "disk")
			if of("some endpoints", "", "", "some") != "" {
				all := registry.EndpointsOf(u.Dialect)
				u.Endpoints = all[:rapid.IntRange(1, len(all)).Draw(t, "endpoints")]
			}
			order := uint32(rapid.IntRange(0, 2).Draw(t, "order"))
			upstreams = append(upstreams, u)
			apiRoute.Targets = append(apiRoute.Targets, api.Target{Upstream: u.Name, Model: "x", Order: order})
			rec.Targets = append(rec.Targets, registry.Target{Upstream: u.Name, Model: "x", Order: order})
			recs = append(recs, &registry.Record{Kind: registry.KindUpstream, Meta: registry.Meta{ID: "ups_" + u.Name}, Upstream: &registry.Upstream{
				Name: u.Name, Region: u.Region, Provider: u.Provider, Dialect: u.Dialect, Disabled: u.Disabled, Dedicated: u.Dedicated, Endpoints: u.Endpoints,
				Terms: registry.Terms{Retention: u.Terms.Retention, PromptCache: u.Terms.PromptCache},
			}})
		}
		recs = append(recs, &registry.Record{Kind: registry.KindRoute, Meta: registry.Meta{ID: "rte_m"}, Route: rec})
		v := viewOf(t, recs)
		for _, j := range residency.Of(regions, upstreams, []api.Route{apiRoute}).Jurisdictions {
			for _, zero := range []bool{false, true} {
				for _, dialect := range []string{"openai", "anthropic"} {
					for _, path := range registry.EndpointsOf(dialect) {
						d := &policy.Decision{Class: "live", Pool: policy.PoolStandard, ZeroRetention: zero, Billed: &registry.Record{Project: &registry.Project{Org: "org_2"}}}
						if j.Jurisdiction != "any" {
							d.Pin = j.Jurisdiction
						}
						var planned, reported []string
						for _, entry := range j.Regions {
							p, refused := route.New(route.Input{
								View: v, Decision: d, Model: "m", Dialect: dialect, Path: path, Region: entry, Jurisdiction: homes[entry],
								Peers: func() link.Peers { return link.Peers{Nodes: nodes} }, Random: func() uint64 { return 0 },
							})
							if refused != nil {
								continue
							}
							for _, s := range append(slices.Clone(p.Local()), p.Remote()...) {
								planned = append(planned, s.Region)
							}
						}
						for _, m := range j.Models {
							if m.Dialect == dialect && (len(m.Endpoints) == 0 || slices.Contains(m.Endpoints, path)) {
								reported = m.Regions
								if zero {
									reported = m.ZeroRetention
								}
							}
						}
						slices.Sort(planned)
						if planned = slices.Compact(planned); !slices.Equal(planned, reported) {
							t.Fatalf("%s in %s, zero %t: planned over %v, reported %v\n%+v", path, j.Jurisdiction, zero, planned, reported, j.Models)
						}
					}
				}
			}
		}
	})
}

func viewOf(t *rapid.T, recs []*registry.Record) *view.View {
	store := view.New(view.Config{})
	apply := func(f *feed.Frame) {
		if err := store.Apply(f); err != nil {
			t.Fatal(err)
		}
	}
	apply(&feed.Frame{Type: feed.FrameReset, Shard: controlplane.ShardGlobal})
	for _, rec := range recs {
		rec.Meta.Shard, rec.Meta.Revision = controlplane.ShardGlobal, 1
		b, err := registry.EncodeRecord(rec)
		if err != nil {
			t.Fatal(err)
		}
		apply(&feed.Frame{Type: feed.FrameRecord, Shard: controlplane.ShardGlobal, Record: b})
	}
	apply(&feed.Frame{Type: feed.FrameEnd, Shard: controlplane.ShardGlobal, Point: controlplane.Point{Epoch: controlplane.Epoch{Counter: 1}, Seq: 1}})
	return store.View()
}
