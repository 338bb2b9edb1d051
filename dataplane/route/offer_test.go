package route

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/policy"
)

// TestOfferIsWhatIsServed: a model is listed with exactly the regions and
// endpoints that a request for it would be planned over.
func TestOfferIsWhatIsServed(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		of := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(rt, label) }
		some := func(label string) bool { return rapid.IntRange(0, 3).Draw(rt, label) == 0 }
		r := &registry.Route{Model: "m"}
		var ups []*registry.Upstream
		for i := range rapid.IntRange(1, 5).Draw(rt, "upstreams") {
			u := &registry.Upstream{
				Name: string(rune('a' + i)), Region: of("region", "us-east", "us-west", "eu-fra", "ap-sg"), Provider: of("provider", "p", "p", "q"),
				Dialect: of("dialect", "openai", "openai", "anthropic"), Simulated: !some("real"), Disabled: some("off"), Dedicated: of("dedicated", "", "", "org_1", "org_2"),
				Terms: registry.Terms{Retention: of("retention", "zero", "30d"), PromptCache: of("cache", "none", "memory", "disk")},
			}
			if some("endpoints") {
				u.Endpoints = registry.EndpointsOf(u.Dialect)[:1]
			}
			ups = append(ups, u)
			r.Targets = append(r.Targets, target(u.Name, uint32(rapid.IntRange(0, 2).Draw(rt, "order")), 0))
		}
		d := &policy.Decision{
			Pin: of("pin", "", "", "us", "eu"), Class: of("class", "live", "test"), CrossProvider: rapid.Bool().Draw(rt, "cross"), ZeroRetention: some("zero"),
			Pool: of("pool", policy.PoolStandard, "dedicated:org_1"), Billed: &registry.Record{Project: &registry.Project{Org: "org_1"}},
		}
		v := world(t, of("drained", "", "eu-fra", "us-west"), r, ups...)
		got, ok := Offered(v, d, r)

		var regions, paths []string
		for _, ep := range dialect.Endpoints() {
			for _, here := range v.Regions() { // wherever it enters
				if ep.Stores || here.Region.State == "drained" {
					continue
				}
				p, refused := New(Input{
					View: v, Decision: d, Model: "m", Dialect: ep.Dialect.String(), Path: ep.Path,
					Region: here.Region.Name, Jurisdiction: here.Region.Jurisdiction, Pools: []string{d.Pool},
				})
				if refused != nil {
					continue
				}
				for i := range p.regions {
					if p.regions[i].eligible() {
						regions, paths = insert(regions, p.regions[i].name), insert(paths, ep.Path)
					}
				}
			}
		}
		if ok != (len(regions) > 0) || !slices.Equal(got.Regions, regions) || !slices.Equal(got.Endpoints, paths) {
			rt.Fatalf("offered %t %v %v\nserved %v %v", ok, got.Regions, got.Endpoints, regions, paths)
		}
		if ok && (slices.Contains(got.Retention, "metadata") == d.ZeroRetention || d.ZeroRetention && !slices.Contains(got.Retention, "zero")) {
			rt.Fatalf("retention %v", got.Retention)
		}
	})
}
