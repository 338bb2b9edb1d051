package residency_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ringmain/cmd/ringmain/internal/residency"
	"ringmain/controlplane/admin/api"
)

func TestResidencyAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		of := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
		jurisdictions := map[string]string{"r1": "us", "r2": "us", "r3": "eu", "r4": "eu", "r5": "eu"}
		var regions []api.Region
		for _, name := range slices.Sorted(maps.Keys(jurisdictions)) {
			r := api.Region{Name: name}
			r.Jurisdiction, r.State = jurisdictions[name], of("state", "active", "active", "drained")
			regions = append(regions, r)
		}
		var upstreams []api.Upstream
		var route api.Route
		route.Model = "m"
		for i := range rapid.IntRange(0, 7).Draw(t, "upstreams") {
			var u api.Upstream
			u.Name, u.Region, u.Dialect = string(rune('a'+i)), of("region", "r1", "r2", "r3", "r4", "r5"), "openai"
			u.Provider, u.Disabled, u.Dedicated = of("provider", "p", "p", "q"), rapid.Bool().Draw(t, "off"), of("dedicated", "", "", "org_1")
			upstreams = append(upstreams, u)
			route.Targets = append(route.Targets, api.Target{Upstream: u.Name, Model: "x", Order: uint32(rapid.IntRange(0, 2).Draw(t, "order"))})
		}
		served := func(regions []api.Region) map[string]bool { // by jurisdiction
			out := map[string]bool{}
			for _, j := range residency.Of(regions, upstreams, []api.Route{route}).Jurisdictions {
				for _, m := range j.Models {
					out[j.Jurisdiction] = len(m.Regions) > 0
				}
			}
			return out
		}
		whole := residency.Of(regions, upstreams, []api.Route{route})
		for _, j := range whole.Jurisdictions {
			survives := len(j.Regions) > 1
			for _, lost := range j.Regions {
				left := served(slices.DeleteFunc(slices.Clone(regions), func(r api.Region) bool { return r.Name == lost }))
				for _, m := range j.Models {
					gone := len(m.Regions) > 0 && !left[j.Jurisdiction]
					if gone != slices.Contains(m.LostWith, lost) {
						t.Fatalf("%s without %s: gone %t, report %+v", j.Jurisdiction, lost, gone, m)
					}
					survives = survives && left[j.Jurisdiction]
				}
			}
			if survives != j.SurvivesRegionLoss {
				t.Fatalf("%s survives: %t, report %+v", j.Jurisdiction, survives, j)
			}
		}
	})
}

// TestWarningsOfTerms: who wants zero retention, or only its own upstreams, is
// warned of models that have none.
// TestResidencyOfEndpoints: a region that serves a model at some endpoints only
// is no second home for the others.
func TestResidencyOfEndpoints(t *testing.T) {
	region := func(name string) (r api.Region) {
		r.Name, r.Jurisdiction, r.State = name, "us", "active"
		return r
	}
	upstream := func(name, region, provider string, endpoints ...string) (u api.Upstream) {
		u.Name, u.Region, u.Dialect, u.Provider, u.Endpoints = name, region, "openai", provider, endpoints
		return u
	}
	route := func(names ...string) (r api.Route) {
		r.Model = "m"
		for i, n := range names {
			r.Targets = append(r.Targets, api.Target{Upstream: n, Model: "m", Order: uint32(i)})
		}
		return r
	}
	const chat, embeddings = "/v1/chat/completions", "/v1/embeddings"
	regions := []api.Region{region("r1"), region("r2")}
	upstreams := []api.Upstream{upstream("chat", "r1", "p", chat), upstream("other", "r2", "p", embeddings), upstream("second", "r2", "q", chat), upstream("all", "r1", "p"), upstream("all2", "r2", "p")}
	for _, tc := range []struct {
		targets []string
		want    string // rows
	}{
		{[]string{"chat", "other"}, "/v1/chat/completions: r1 false; /v1/embeddings: r2 false"},
		{[]string{"other", "second"}, "/v1/chat/completions: r2 false; /v1/embeddings: r2 false"}, // each by its own first choice
		{[]string{"all", "all2"}, ": r1,r2 true"},
		{[]string{"all"}, ": r1 false"},
		{[]string{"chat"}, "/v1/chat/completions: r1 false"},
	} {
		report := residency.Of(regions, upstreams, []api.Route{route(tc.targets...)})
		var rows []string
		for _, m := range report.Jurisdictions[0].Models {
			for _, path := range append(m.Endpoints, "")[:max(1, len(m.Endpoints))] {
				rows = append(rows, path+": "+strings.Join(m.Regions, ",")+" "+map[bool]string{true: "true", false: "false"}[m.SurvivesRegionLoss])
			}
		}
		slices.Sort(rows)
		if got := strings.Join(rows, "; "); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.targets, got, tc.want)
		}
	}
}
