package rules_test

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	kit "ringmain/internal/testkit/recordkit"
)

const (
	ok        = controlplane.RuleCode("")
	bad       = controlplane.RuleInvalid
	absent    = controlplane.RuleNotFound
	conflict  = controlplane.RuleConflict
	stale     = controlplane.RuleRevision
	forbidden = controlplane.RuleForbidden
)

// with returns r after change has had its way.
func with(r *registry.Record, change func(r *registry.Record)) *registry.Record {
	change(r)
	return r
}

func TestRules(t *testing.T) {
	global := controlplane.ShardGlobal
	newOrg := func(change func(*registry.Org)) []registry.Change {
		return []registry.Change{kit.Put(with(kit.Org("org_any_0000000009", kit.AnyEast, "any", "build", "verified"), func(r *registry.Record) { change(r.Org) }))}
	}
	usOrg := func(plan string) []registry.Change {
		return []registry.Change{kit.Put(kit.Org("org_us_0000000009", kit.PinUS, "us", plan, "verified"))}
	}
	newKey := func(change func(*registry.Key)) []registry.Change {
		return []registry.Change{kit.Put(with(kit.Key("key_any_0000000000000009", kit.AnyEast, kit.PrjAny, "live"), func(r *registry.Record) { change(r.Key) }))}
	}
	newUps := func(change func(*registry.Upstream)) []registry.Change {
		return []registry.Change{kit.Put(with(kit.Upstream("ups_0000000009", "new", "us-east"), func(r *registry.Record) { change(r.Upstream) }))}
	}
	newRoute := func(change func(*registry.Route)) []registry.Change {
		return []registry.Change{kit.Put(with(kit.Route("rte_0000000009", "new", "openai-us"), func(r *registry.Record) { change(r.Route) }))}
	}
	newPolicy := func(change func(*registry.Policy)) []registry.Change {
		return []registry.Change{kit.Put(with(kit.Policy("pol_any_0000000009", kit.AnyEast, kit.OrgAny, ""), func(r *registry.Record) { change(r.Policy) }))}
	}
	newRegion := func(change func(*registry.Region)) []registry.Change {
		return []registry.Change{kit.Put(with(kit.Region("ap-sg", "apac"), func(r *registry.Record) { change(r.Region) }))}
	}
	meta := func(change func(*registry.Record)) []registry.Change {
		return []registry.Change{kit.Put(with(kit.Project("prj_any_0000000009", kit.AnyEast, kit.OrgAny, "new"), change))}
	}
	rev := func(c registry.Change, revision uint64) []registry.Change {
		c.IfRevision = revision
		return []registry.Change{c}
	}
	long := strings.Repeat("ü", 101)

	tests := []struct {
		name    string
		shard   controlplane.Shard
		changes []registry.Change
		code    controlplane.RuleCode
		field   string
	}{
		{"no change", kit.AnyEast, nil, bad, "changes"},
		{"too many changes", kit.AnyEast, make([]registry.Change, registry.MaxChanges+1), bad, "changes"},
		{"no such shard", "any-nowhere", newOrg(func(*registry.Org) {}), absent, "shard"},
		{"no operation", kit.AnyEast, []registry.Change{{}}, bad, "op"},
		{"unknown operation", kit.AnyEast, []registry.Change{{Op: 99}}, bad, "op"},
		{"put of nothing", kit.AnyEast, []registry.Change{{Op: registry.OpPut}}, bad, "record"},
		{"put with an id beside", kit.AnyEast, []registry.Change{{Op: registry.OpPut, Record: kit.Project("prj_any_0000000009", kit.AnyEast, kit.OrgAny, "x"), ID: "x"}}, bad, "record"},

		{"body of another kind", kit.AnyEast, meta(func(r *registry.Record) { r.Kind = registry.KindOrg }), bad, "kind"},
		{"two bodies", kit.AnyEast, meta(func(r *registry.Record) { r.Org = &registry.Org{} }), bad, "kind"},
		{"unknown kind", kit.AnyEast, meta(func(r *registry.Record) { r.Kind = 77 }), bad, "kind"},
		{"id of another kind", kit.AnyEast, meta(func(r *registry.Record) { r.Meta.ID = "org_any_0000000009" }), bad, "meta.id"},
		{"short id", kit.AnyEast, meta(func(r *registry.Record) { r.Meta.ID = "prj_any_1" }), bad, "meta.id"},
		{"id with other characters", kit.AnyEast, meta(func(r *registry.Record) { r.Meta.ID = "prj_any_00000/0000" }), bad, "meta.id"},
		{"id without jurisdiction", kit.AnyEast, meta(func(r *registry.Record) { r.Meta.ID = "prj_0000000009" }), bad, "meta.id"},
		{"id of another jurisdiction", kit.AnyEast, meta(func(r *registry.Record) { r.Meta.ID = "prj_eu_0000000009" }), bad, "meta.shard"},
		{"stamped with another shard", kit.AnyEast, meta(func(r *registry.Record) { r.Meta.Shard = kit.PinEU }), bad, "meta.shard"},
		{"tenant in global", global, meta(func(r *registry.Record) { r.Meta.Shard = global }), bad, "meta.shard"},
		{"negative time", kit.AnyEast, meta(func(r *registry.Record) { r.Meta.Created = -1 }), bad, "meta.created"},

		{"revision fits", kit.AnyEast, rev(kit.Put(kit.Project(kit.PrjAny, kit.AnyEast, kit.OrgAny, "web2")), 2), ok, ""},
		{"revision stale", kit.AnyEast, rev(kit.Put(kit.Project(kit.PrjAny, kit.AnyEast, kit.OrgAny, "web2")), 1), stale, "revision"},
		{"revision of nothing", kit.AnyEast, rev(kit.Put(kit.Project("prj_any_0000000009", kit.AnyEast, kit.OrgAny, "x")), 2), absent, "id"},
		{"absent fits", kit.AnyEast, rev(kit.Put(kit.Project("prj_any_0000000009", kit.AnyEast, kit.OrgAny, "x")), registry.RevisionAbsent), ok, ""},
		{"exists already", kit.AnyEast, rev(kit.Put(kit.Project(kit.PrjAny, kit.AnyEast, kit.OrgAny, "web2")), registry.RevisionAbsent), conflict, "id"},
		{"delete stale", kit.AnyEast, rev(kit.Delete(registry.KindProject, kit.PrjNew), 1), stale, "revision"},
		{"revoke stale", kit.AnyEast, rev(kit.Revoke(kit.KeyAny, 5), 1), stale, "revision"},

		{"org", kit.AnyEast, newOrg(func(*registry.Org) {}), ok, ""},
		{"org without name", kit.AnyEast, newOrg(func(o *registry.Org) { o.Name = "" }), bad, "name"},
		{"org with padded name", kit.AnyEast, newOrg(func(o *registry.Org) { o.Name = " x" }), bad, "name"},
		{"org with long name", kit.AnyEast, newOrg(func(o *registry.Org) { o.Name = long }), bad, "name"},
		{"org with 100 runes", kit.AnyEast, newOrg(func(o *registry.Org) { o.Name = strings.Repeat("ü", 100) }), ok, ""},
		{"org with line break", kit.AnyEast, newOrg(func(o *registry.Org) { o.Name = "a\nb" }), bad, "name"},
		{"org with reordering", kit.AnyEast, newOrg(func(o *registry.Org) { o.Name = "a\u202eb" }), bad, "name"},
		{"org with a family", kit.AnyEast, newOrg(func(o *registry.Org) { o.Name = "👩‍👩‍👧" }), ok, ""},
		{"org not UTF-8", kit.AnyEast, newOrg(func(o *registry.Org) { o.Name = "a\xff" }), bad, "name"},
		{"org plan", kit.AnyEast, newOrg(func(o *registry.Org) { o.Plan = "gold" }), bad, "plan"},
		{"org state", kit.AnyEast, newOrg(func(o *registry.Org) { o.State = "" }), bad, "state"},
		{"org roaming", kit.AnyEast, newOrg(func(o *registry.Org) { o.Roaming = true }), ok, ""},
		{"org moves", kit.AnyEast, newOrg(func(o *registry.Org) { o.Jurisdiction = "eu" }), bad, "jurisdiction"},
		{"org in eu on any plan", kit.PinEU, []registry.Change{kit.Put(kit.Org("org_eu_0000000009", kit.PinEU, "eu", "trial", "unverified"))}, ok, ""},
		{"org in eu roams", kit.PinEU, []registry.Change{kit.Put(with(kit.Org(kit.OrgEU, kit.PinEU, "eu", "trial", "verified"), func(r *registry.Record) { r.Org.Roaming = true }))}, bad, "roaming"},
		{"org in us", kit.PinUS, usOrg("enterprise"), ok, ""},
		{"org in us on a small plan", kit.PinUS, usOrg("scale"), forbidden, "jurisdiction"},
		{"org in the wrong shard", kit.PinEU, []registry.Change{kit.Put(kit.Org("org_us_0000000009", kit.PinEU, "us", "enterprise", "verified"))}, bad, "meta.shard"},
		{"org in use", kit.AnyEast, []registry.Change{kit.Delete(registry.KindOrg, kit.OrgAny)}, conflict, "id"},
		{"org with a policy", kit.AnyEast, []registry.Change{kit.Put(kit.Policy(kit.PolAny, kit.AnyEast, kit.OrgNew, "")), kit.Delete(registry.KindProject, kit.PrjNew), kit.Delete(registry.KindOrg, kit.OrgNew)}, conflict, "changes[2].id"},
		{"org and all it has", kit.AnyEast, []registry.Change{kit.Delete(registry.KindProject, kit.PrjNew), kit.Delete(registry.KindOrg, kit.OrgNew)}, ok, ""},

		{"project of no org", kit.AnyEast, []registry.Change{kit.Put(kit.Project("prj_any_0000000009", kit.AnyEast, "org_any_0000000009", "x"))}, absent, "org"},
		{"project of an org elsewhere", kit.AnyEast, []registry.Change{kit.Put(kit.Project("prj_any_0000000009", kit.AnyEast, kit.OrgEU, "x"))}, absent, "org"},
		{"project of a project", kit.AnyEast, []registry.Change{kit.Put(kit.Project("prj_any_0000000009", kit.AnyEast, kit.PrjAny, "x"))}, absent, "org"},
		{"project moves", kit.AnyEast, []registry.Change{kit.Put(kit.Project(kit.PrjAny, kit.AnyEast, kit.OrgNew, "other"))}, bad, "org"},
		{"project name taken", kit.AnyEast, []registry.Change{kit.Put(kit.Project("prj_any_0000000009", kit.AnyEast, kit.OrgAny, "web"))}, conflict, "name"},
		{"project after its org", kit.AnyEast, []registry.Change{newOrg(func(*registry.Org) {})[0], kit.Put(kit.Project("prj_any_0000000009", kit.AnyEast, "org_any_0000000009", "x"))}, ok, ""},
		{"project before its org", kit.AnyEast, []registry.Change{kit.Put(kit.Project("prj_any_0000000009", kit.AnyEast, "org_any_0000000009", "x")), newOrg(func(*registry.Org) {})[0]}, absent, "changes[0].org"},
		{"project in use", kit.AnyEast, []registry.Change{kit.Delete(registry.KindProject, kit.PrjAny)}, conflict, "id"},
		{"project with a policy", kit.AnyEast, []registry.Change{kit.Put(kit.Policy(kit.PolAny, kit.AnyEast, kit.OrgNew, kit.PrjNew)), kit.Delete(registry.KindProject, kit.PrjNew)}, conflict, "changes[1].id"},

		{"key", kit.AnyEast, newKey(func(*registry.Key) {}), ok, ""},
		{"key class", kit.AnyEast, newKey(func(k *registry.Key) { k.Class = "prod" }), bad, "class"},
		{"key of no project", kit.AnyEast, newKey(func(k *registry.Key) { k.Project = kit.PrjEU }), absent, "project"},
		{"key without hash", kit.AnyEast, newKey(func(k *registry.Key) { k.Hash = nil }), bad, "hash"},
		{"key with huge hash", kit.AnyEast, newKey(func(k *registry.Key) { k.PrevHash = make([]byte, 129) }), bad, "hash"},
		{"key hint", kit.AnyEast, newKey(func(k *registry.Key) { k.Hint = "\x1b[2J" }), bad, "hint"},
		{"key expires before time", kit.AnyEast, newKey(func(k *registry.Key) { k.Expires = -1 }), bad, "expires"},
		{"key revoked by hand", kit.AnyEast, newKey(func(k *registry.Key) { k.Revoked = 1 }), bad, "revoked"},
		{"live key of an unverified org", kit.AnyEast, newKey(func(k *registry.Key) { k.Project = kit.PrjNew }), forbidden, "class"},
		{"test key of an unverified org", kit.AnyEast, newKey(func(k *registry.Key) { k.Project, k.Class = kit.PrjNew, "test" }), ok, ""},
		{"key moves", kit.AnyEast, []registry.Change{kit.Put(kit.Key(kit.KeyAny, kit.AnyEast, kit.PrjNew, "live"))}, bad, "project"},
		{"key changes class", kit.AnyEast, []registry.Change{kit.Put(kit.Key(kit.KeyAny, kit.AnyEast, kit.PrjAny, "test"))}, bad, "class"},
		{"key id of another length", kit.AnyEast, []registry.Change{kit.Put(kit.Key("key_any_00000000000000001", kit.AnyEast, kit.PrjAny, "live"))}, bad, "meta.id"},
		{"key in force deleted", kit.AnyEast, []registry.Change{kit.Delete(registry.KindKey, kit.KeyAny)}, conflict, "id"},
		{"key revoked and deleted", kit.AnyEast, []registry.Change{kit.Revoke(kit.KeyAny, 5), kit.Delete(registry.KindKey, kit.KeyAny)}, ok, ""},
		{"revoke nothing", kit.AnyEast, []registry.Change{kit.Revoke("key_any_0000000000000009", 5)}, absent, "id"},
		{"revoke without time", kit.AnyEast, []registry.Change{kit.Revoke(kit.KeyAny, 0)}, bad, "at"},
		{"revoke elsewhere", kit.AnyEast, []registry.Change{kit.Revoke(kit.KeyEU, 5)}, bad, "id"},
		{"revoke a project", kit.AnyEast, []registry.Change{{Op: registry.OpRevoke, Kind: registry.KindProject, ID: kit.PrjAny, At: 5}}, bad, "kind"},
		{"delete nothing", kit.AnyEast, []registry.Change{kit.Delete(registry.KindProject, "prj_any_0000000009")}, absent, "id"},
		{"delete another kind", kit.AnyEast, []registry.Change{kit.Delete(registry.KindOrg, kit.PrjAny)}, bad, "id"},

		{"upstream", global, newUps(func(*registry.Upstream) {}), ok, ""},
		{"upstream name", global, newUps(func(u *registry.Upstream) { u.Name = "a b" }), bad, "name"},
		{"upstream name taken", global, newUps(func(u *registry.Upstream) { u.Name = "openai-us" }), conflict, "name"},
		{"upstream provider", global, newUps(func(u *registry.Upstream) { u.Provider = "" }), bad, "provider"},
		{"upstream region", global, newUps(func(u *registry.Upstream) { u.Region = "mars" }), absent, "region"},
		{"upstream dialect", global, newUps(func(u *registry.Upstream) { u.Dialect = "grpc" }), bad, "dialect"},
		{"upstream auth", global, newUps(func(u *registry.Upstream) { u.Auth = "basic" }), bad, "auth"},
		{"upstream without credential", global, newUps(func(u *registry.Upstream) { u.Credential = nil }), bad, "credential"},
		{"upstream of none with credential", global, newUps(func(u *registry.Upstream) { u.Auth = "none" }), bad, "credential"},
		{"upstream credential with line break", global, newUps(func(u *registry.Upstream) { u.Credential = []byte("a\r\nx: y") }), bad, "credential"},
		{"upstream renamed", global, []registry.Change{kit.Put(kit.Upstream(kit.UpsEU, "openai-fra", "eu-fra"))}, ok, ""},
		{"upstream renamed in use", global, []registry.Change{kit.Put(kit.Upstream(kit.UpsUS, "openai-usa", "us-east"))}, conflict, "name"},
		{"upstream deleted", global, []registry.Change{kit.Delete(registry.KindUpstream, kit.UpsEU)}, ok, ""},
		{"upstream deleted in use", global, []registry.Change{kit.Delete(registry.KindUpstream, kit.UpsUS)}, conflict, "id"},
		{"upstream and route deleted", global, []registry.Change{kit.Delete(registry.KindRoute, kit.RteOne), kit.Delete(registry.KindUpstream, kit.UpsUS)}, ok, ""},
		{"upstream revoked", global, []registry.Change{{Op: registry.OpRevoke, Kind: registry.KindUpstream, ID: kit.UpsUS, At: 5}}, ok, ""},
		{"terms retention zero", global, newUps(func(u *registry.Upstream) { u.Terms.Retention = "zero" }), ok, ""},
		{"terms training", global, newUps(func(u *registry.Upstream) { u.Terms.Training = "opt-out" }), bad, "terms.training"},
		{"terms cache", global, newUps(func(u *registry.Upstream) { u.Terms.PromptCache = "" }), bad, "terms.prompt_cache"},
		{"terms contract short", global, newUps(func(u *registry.Upstream) { u.Terms.Contract = "abcd" }), bad, "terms.contract"},
		{"terms contract not hex", global, newUps(func(u *registry.Upstream) { u.Terms.Contract = strings.Repeat("g", 64) }), bad, "terms.contract"},
		{"terms date", global, newUps(func(u *registry.Upstream) { u.Terms.Dated = "2026-02-30" }), bad, "terms.dated"},

		{"route", global, newRoute(func(*registry.Route) {}), ok, ""},
		{"route model", global, newRoute(func(r *registry.Route) { r.Model = "a b" }), bad, "model"},
		{"route model taken", global, newRoute(func(r *registry.Route) { r.Model = "gpt-x" }), conflict, "model"},
		{"route without target", global, newRoute(func(r *registry.Route) { r.Targets = nil }), bad, "targets"},
		{"route with too many", global, newRoute(func(r *registry.Route) { r.Targets = make([]registry.Target, 64+1) }), bad, "targets"},
		{"route to nowhere", global, newRoute(func(r *registry.Route) { r.Targets[0].Upstream = "nowhere" }), absent, "targets[0].upstream"},
		{"route to no model", global, newRoute(func(r *registry.Route) { r.Targets[0].Model = "" }), bad, "targets[0].model"},
		{"route target twice", global, newRoute(func(r *registry.Route) { r.Targets = append(r.Targets, r.Targets[0]) }), bad, "targets[1].upstream"},
		{"route to two models of one upstream", global, newRoute(func(r *registry.Route) {
			r.Targets = append(r.Targets, registry.Target{Upstream: "openai-us", Model: "m-2"})
		}), ok, ""},

		{"policy", kit.AnyEast, newPolicy(func(p *registry.Policy) { p.Residency = "eu" }), ok, ""},
		{"policy org", kit.AnyEast, newPolicy(func(p *registry.Policy) { p.Org = kit.OrgEU }), absent, "org"},
		{"policy project", kit.AnyEast, newPolicy(func(p *registry.Policy) { p.Project = "prj_any_0000000009" }), absent, "project"},
		{"policy project of another org", kit.AnyEast, newPolicy(func(p *registry.Policy) { p.Project = kit.PrjNew }), bad, "project"},
		{"policy in no region", kit.AnyEast, newPolicy(func(p *registry.Policy) { p.Residency = "apac" }), bad, "residency"},
		{"policy in any", kit.AnyEast, newPolicy(func(p *registry.Policy) { p.Residency = "any" }), bad, "residency"},
		{"policy contradicts the pin", kit.PinEU, []registry.Change{kit.Put(with(kit.Policy("pol_eu_0000000009", kit.PinEU, kit.OrgEU, ""), func(r *registry.Record) { r.Policy.Residency = "us" }))}, bad, "residency"},
		{"policy repeats the pin", kit.PinEU, []registry.Change{kit.Put(with(kit.Policy("pol_eu_0000000009", kit.PinEU, kit.OrgEU, ""), func(r *registry.Record) { r.Policy.Residency = "eu" }))}, ok, ""},
		{"policy models", kit.AnyEast, newPolicy(func(p *registry.Policy) { p.Models = []string{"a", ""} }), bad, "models[1]"},
		{"policy model twice", kit.AnyEast, newPolicy(func(p *registry.Policy) { p.Models = []string{"a", "a"} }), bad, "models[1]"},
		{"policy with too many models", kit.AnyEast, newPolicy(func(p *registry.Policy) { p.Models = make([]string, 256+1) }), bad, "models"},
		{"second policy", kit.AnyEast, []registry.Change{kit.Put(kit.Policy(kit.PolAny, kit.AnyEast, kit.OrgAny, "")), newPolicy(func(*registry.Policy) {})[0]}, conflict, "changes[1].project"},
		{"policy moves", kit.AnyEast, []registry.Change{kit.Put(kit.Policy(kit.PolAny, kit.AnyEast, kit.OrgAny, "")), kit.Put(kit.Policy(kit.PolAny, kit.AnyEast, kit.OrgAny, kit.PrjAny))}, bad, "changes[1].project"},

		{"region", global, newRegion(func(*registry.Region) {}), ok, ""},
		{"region without endpoint", global, newRegion(func(r *registry.Region) { r.Endpoint = "" }), ok, ""},
		{"region endpoint with path", global, newRegion(func(r *registry.Region) { r.Endpoint += "/v1" }), bad, "endpoint"},
		{"region jurisdiction", global, newRegion(func(r *registry.Region) { r.Jurisdiction = "any" }), bad, "jurisdiction"},
		{"region state", global, newRegion(func(r *registry.Region) { r.State = "up" }), bad, "state"},
		{"region renamed", global, newRegion(func(r *registry.Region) { r.Name = "ap-x" }), bad, "name"},
		{"region drained", global, []registry.Change{kit.Put(with(kit.Region("eu-fra", "eu"), func(r *registry.Record) { r.Region.State = "drained" }))}, ok, ""},
		{"region moves", global, []registry.Change{kit.Put(kit.Region("eu-fra", "us"))}, bad, "jurisdiction"},
		{"region with upstreams", global, []registry.Change{kit.Delete(registry.KindRegion, "reg_eu-fra")}, conflict, "id"},
		{"region with shards", global, []registry.Change{kit.Delete(registry.KindUpstream, kit.UpsEU), kit.Delete(registry.KindRegion, "reg_eu-fra")}, conflict, "changes[1].id"},
		{"region unused", global, []registry.Change{newRegion(func(*registry.Region) {})[0], kit.Delete(registry.KindRegion, "reg_ap-sg")}, ok, ""},

		{"open", "apac", []registry.Change{kit.Open("ap-sg", "ap-sg")}, ok, ""},
		{"open again", kit.PinEU, []registry.Change{kit.Open("eu-fra", "eu-fra")}, ok, ""},
		{"open in the middle", kit.PinEU, []registry.Change{kit.Delete(registry.KindOrg, kit.OrgEU), kit.Open("eu-fra", "eu-fra")}, conflict, "changes[0].id"},
		{"open second", kit.AnyEast, []registry.Change{newOrg(func(*registry.Org) {})[0], kit.Open("us-east", "us-east")}, bad, "changes[1].op"},
		{"open no shard", "Global", []registry.Change{kit.Open("eu-fra", "eu-fra")}, bad, "shard"},
		{"open any", "any", []registry.Change{kit.Open("eu-fra", "eu-fra")}, bad, "shard"},
		{"open without members", "apac", []registry.Change{kit.Open("ap-sg")}, bad, "home"},
		{"open for a stranger", "apac", []registry.Change{kit.Open("ap-sg", "ap-tk")}, bad, "home"},
		{"open with a region twice", "apac", []registry.Change{kit.Open("ap-sg", "ap-sg", "ap-sg")}, bad, "members"},
		{"open with a malformed region", "apac", []registry.Change{kit.Open("ap-sg", "ap-sg", "AP")}, bad, "members"},
		{"open outside the jurisdiction", kit.PinEU, []registry.Change{kit.Open("eu-fra", "eu-fra", "us-east")}, forbidden, "members"},
	}
	s := world(t)
	before := kit.Snapshot(t, s)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			changes := slices.Clone(tt.changes)
			var sent registry.Record
			if len(changes) > 0 && changes[0].Record != nil {
				sent = *changes[0].Record
			}
			err := s.Check(tt.shard, changes)
			if rule := kit.RuleError(t, err); rule == nil && tt.code != ok || rule != nil && (rule.Code != tt.code || rule.Field != tt.field) {
				t.Fatalf("%v, but %q for %q expected", describe(rule), tt.code, tt.field)
			}
			if !reflect.DeepEqual(changes, tt.changes) || len(changes) > 0 && changes[0].Record != nil && !reflect.DeepEqual(sent, *changes[0].Record) {
				t.Error("Check changed what it was given")
			}
			if !bytes.Equal(before, kit.Snapshot(t, s)) {
				t.Fatal("Check changed the state")
			}
		})
	}
}

func describe(r *controlplane.RuleError) string {
	if r == nil {
		return "no error"
	}
	return fmt.Sprintf("%q for %q (%s)", r.Code, r.Field, r.Message)
}

// An org that takes another's place is kept until its pin is in force, whatever this
// region knows of the other: a home that held more than another would keep less.
func TestASuccessorIsKeptUntilItsPinIsInForce(t *testing.T) {
	const successor, unknown = "org_eu_0000000002", "org_eu_0000000009"
	s := world(t)
	if out := s.Apply(&registry.Command{Type: registry.CmdVersion, Version: registry.Version}); out.Err != nil {
		t.Fatal(out.Err)
	}
	for id, from := range map[string]string{successor: kit.OrgNew, unknown: "org_any_0000000009"} {
		rel := &registry.Record{Kind: registry.KindRelocation, Meta: registry.Meta{ID: registry.RelocationID(id), Shard: kit.PinEU},
			Relocation: &registry.Relocation{Org: id, From: from, Shard: kit.AnyEast}}
		mustPropose(t, s, kit.PinEU, kit.Put(kit.Org(id, kit.PinEU, "eu", "trial", "verified")), kit.Put(rel))
		gone := []registry.Change{kit.Delete(registry.KindRelocation, rel.Meta.ID), kit.Delete(registry.KindOrg, id)}
		if rule := kit.RuleError(t, s.Check(kit.PinEU, gone)); rule == nil || rule.Code != controlplane.RuleConflict {
			t.Errorf("%s: %v", id, rule)
		}
		done := *rel
		done.Relocation = &registry.Relocation{Org: id, From: from, Shard: kit.AnyEast, Copied: 1, InForce: 1}
		if err := s.Check(kit.PinEU, append([]registry.Change{kit.Put(&done)}, gone...)); err != nil {
			t.Errorf("%s, in force: %v", id, err)
		}
	}
}
