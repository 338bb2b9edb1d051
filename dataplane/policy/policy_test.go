package policy

import (
	"net/http"
	"testing"

	"pgregory.net/rapid"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/view"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   http.Header
		want Asked
		ok   bool
	}{
		{http.Header{"Authorization": {"x"}}, Asked{}, true},
		{http.Header{"Idc-Project-Id": {"prj_1"}}, Asked{Project: "prj_1"}, true},
		{http.Header{"Openai-Project": {"prj_1"}}, Asked{Project: "prj_1"}, true},
		{http.Header{"Openai-Project": {"prj_1"}, "Idc-Project-Id": {"prj_1"}}, Asked{Project: "prj_1"}, true},
		{http.Header{"Openai-Project": {"prj_1"}, "Idc-Project-Id": {"prj_2"}}, Asked{}, false},
		{http.Header{"Openai-Project": {"prj_1", "prj_1"}}, Asked{}, false},
		{http.Header{"Openai-Project": {""}}, Asked{}, false},
		{http.Header{"Idc-Region-Hint": {"eu-fra"}, "Idc-Residency": {"eu"}, "Idc-No-Retention": {"true"}, "Idc-Receipt": {"inline"}}, Asked{RegionHint: "eu-fra", Residency: "eu", NoRetention: true}, true},
		{http.Header{"Idc-Residency": {"e"}}, Asked{}, false},
		{http.Header{"Idc-Residency": {"europe"}}, Asked{}, false},
		{http.Header{"Idc-Residency": {"eu, us"}}, Asked{}, false},
		{http.Header{"Idc-No-Retention": {"TRUE"}}, Asked{}, false},
		{http.Header{"Idc-No-Retention": {""}}, Asked{}, false},
		{http.Header{"Idc-No-Retentions": {"true"}}, Asked{}, false},
		{http.Header{"Idc-Region": {"eu-fra"}}, Asked{}, false},
		{http.Header{"Idc_no_retention": {"true"}}, Asked{}, false}, // as environments and some proxies write it
		{http.Header{"Idc_residency": {"eu"}}, Asked{}, false},
		{http.Header{"X-Idc-No-Retention": {"true"}}, Asked{}, false},
		{http.Header{"Idcode": {"7"}, "X-Idcode": {"7"}, "Idc": {"x"}}, Asked{}, true},
	} {
		got, refused := Parse(c.in)
		if (refused == nil) != c.ok || got != c.want {
			t.Errorf("%v: %+v %v", c.in, got, refused)
		}
		if refused != nil && refused.Code != "invalid_header" {
			t.Errorf("%v: %v", c.in, refused)
		}
	}
}

type world struct {
	view *view.View
	org  *registry.Record
	key  *registry.Record
}

// newWorld holds one org with projects prj_1 and prj_2, and a region in each
// jurisdiction.
func newWorld(t interface{ Fatal(...any) }, org registry.Org, policies ...*registry.Policy) world {
	return newWorldOf(t, org, map[string]registry.Project{
		"prj_1": {Org: "org_1", CrossProvider: true}, "prj_2": {Org: "org_1"}, "prj_x": {Org: "org_x"},
	}, policies)
}

// newWorldOf takes the projects by id, prj_1 being the key's.
func newWorldOf(t interface{ Fatal(...any) }, org registry.Org, projects map[string]registry.Project, policies []*registry.Policy) world {
	const shard = controlplane.Shard("any-us-east")
	recs := []*registry.Record{{Kind: registry.KindOrg, Meta: registry.Meta{ID: "org_1"}, Org: &org}}
	for id, p := range projects {
		recs = append(recs, &registry.Record{Kind: registry.KindProject, Meta: registry.Meta{ID: id}, Project: &p})
	}
	for i, p := range policies {
		recs = append(recs, &registry.Record{Kind: registry.KindPolicy, Meta: registry.Meta{ID: "pol_" + string(rune('a'+i))}, Policy: p})
	}
	for j, name := range map[string]string{"us": "us-east", "eu": "eu-fra", "apac": "ap-sg"} {
		recs = append(recs, &registry.Record{Kind: registry.KindRegion, Meta: registry.Meta{ID: "reg_" + name},
			Region: &registry.Region{Name: name, Jurisdiction: j, Endpoint: "https://" + name, State: "active"}})
	}
	store := view.New(view.Config{})
	apply := func(f *feed.Frame) {
		if err := store.Apply(f); err != nil {
			t.Fatal(err)
		}
	}
	apply(&feed.Frame{Type: feed.FrameReset, Shard: shard})
	for _, rec := range recs {
		rec.Meta.Shard, rec.Meta.Revision = shard, 1
		b, err := registry.EncodeRecord(rec)
		if err != nil {
			t.Fatal(err)
		}
		apply(&feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: b})
	}
	apply(&feed.Frame{Type: feed.FrameEnd, Shard: shard, Point: controlplane.Point{Epoch: controlplane.Epoch{Counter: 1}, Seq: 1}})
	v := store.View()
	w := world{view: v}
	w.org, _ = v.Org("org_1")
	w.key, _ = v.Project("prj_1")
	return w
}

// TestPinsNeverLoosen: whatever is added to a request, it may run in no more
// jurisdictions than without.
func TestPinsNeverLoosen(t *testing.T) {
	all := []string{"us", "eu", "apac"}
	rapid.Check(t, func(t *rapid.T) {
		pick := func(label string) string { return rapid.SampledFrom(append([]string{""}, all...)).Draw(t, label) }
		org := registry.Org{Jurisdiction: rapid.SampledFrom([]string{"any", "us", "eu"}).Draw(t, "org"), Roaming: rapid.Bool().Draw(t, "roaming")}
		var policies []*registry.Policy
		if p := pick("org policy"); p != "" {
			policies = append(policies, &registry.Policy{Org: "org_1", Residency: p})
		}
		if p := pick("project policy"); p != "" {
			policies = append(policies, &registry.Policy{Org: "org_1", Project: "prj_2", Residency: p})
		}
		w := newWorld(t, org, policies...)
		in := Input{View: w.view, Org: w.org, Project: w.key, Class: "live", EntryJurisdiction: rapid.SampledFrom(all).Draw(t, "entry")}
		allowed := func(in Input) map[string]bool {
			d, refused := Decide(in)
			out := map[string]bool{}
			if refused != nil {
				return out
			}
			for _, j := range all {
				if d.MayRun(j) {
					out[j] = true
				}
			}
			return out
		}
		base := allowed(in)
		more := in
		if rapid.Bool().Draw(t, "bills") {
			more.Asked.Project = "prj_2"
		}
		more.Asked.Residency = pick("asked")
		more.Carried = pick("carried")
		for j := range allowed(more) {
			if !base[j] {
				t.Fatalf("%+v may run in %s, without what it asks for it may not", more.Asked, j)
			}
		}
		// The naive intersection.
		want := map[string]bool{}
		for _, j := range all {
			ok := org.Jurisdiction == "any" || org.Jurisdiction == j
			ok = ok && (more.Asked.Residency == "" || more.Asked.Residency == j) && (more.Carried == "" || more.Carried == j)
			for _, p := range policies {
				ok = ok && (p.Project != "" && p.Project != more.Asked.Project || p.Residency == j)
			}
			if more.EntryJurisdiction == "eu" && !(org.Jurisdiction == "any" && org.Roaming) {
				ok = ok && j == "eu"
			}
			want[j] = ok
		}
		pinnedElsewhere := (!want["us"] || !want["eu"] || !want["apac"]) && !want[more.EntryJurisdiction]
		got := allowed(more)
		for _, j := range all {
			if got[j] != (want[j] && !pinnedElsewhere) {
				t.Fatalf("%+v entry %s, org %+v: may run in %s: %t, want %t", more.Asked, more.EntryJurisdiction, org, j, got[j], want[j])
			}
		}
	})
}

func TestDecide(t *testing.T) {
	w := newWorld(t, registry.Org{Jurisdiction: "any"},
		&registry.Policy{Org: "org_1", Models: []string{"a", "b"}}, &registry.Policy{Org: "org_1", Project: "prj_2", Models: []string{"b", "c"}, NoRetention: true})
	in := Input{View: w.view, Org: w.org, Project: w.key, Class: "live", EntryJurisdiction: "us"}
	d, refused := Decide(in)
	if refused != nil || !d.AllowsModel("a") || d.AllowsModel("c") || !d.CrossProvider || d.Residency() != Unpinned || d.Billed.Meta.ID != "prj_1" {
		t.Errorf("%+v %v", d, refused)
	}
	for asked, code := range map[Asked]string{
		{Project: "prj_2"}:         "zero_retention_unavailable",
		{Project: "prj_x"}:         "project_forbidden",
		{Project: "prj_nowhere"}:   "project_forbidden",
		{NoRetention: true}:        "zero_retention_unavailable",
		{Residency: "eu"}:          "wrong_jurisdiction",
		{Residency: "mars"}:        "invalid_header",
		{RegionHint: "eu-nowhere"}: "unknown_region_hint",
	} {
		in.Asked = asked
		if _, refused := Decide(in); refused == nil || refused.Code != code {
			t.Errorf("%+v: %v, want %s", asked, refused, code)
		}
	}
	// The same with confinement: zero retention is decided, not refused.
	in.Confined, in.Asked = true, Asked{Project: "prj_2"}
	if d, refused = Decide(in); refused != nil || !d.ZeroRetention || d.Retention() != "zero" || d.Pool != PoolZeroRetention {
		t.Errorf("%+v %v", d, refused)
	}
	// Who is pinned elsewhere and enters in the EU is told where to go.
	in.Asked, in.EntryJurisdiction = Asked{Residency: "us"}, "eu"
	if _, refused = Decide(in); refused == nil || refused.Code != "wrong_jurisdiction" || refused.Endpoint != "https://us-east" {
		t.Errorf("%+v", refused)
	}
	for jurisdiction, want := range map[string]Refusal{
		"eu":   {Code: "wrong_jurisdiction", Jurisdiction: "eu", Endpoint: "https://eu-fra"},
		"apac": {Code: "residency_unavailable"},
		"mars": {Code: "wrong_jurisdiction", Jurisdiction: "mars"},
	} {
		got := Elsewhere(w.view, jurisdiction, func(region string) bool { return region != "ap-sg" })
		if got.Message = ""; *got != want {
			t.Errorf("%s: %+v", jurisdiction, got)
		}
	}
}
