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
		return []registry.Change{put(with(org("org_any_0000000009", anyEast, "any", "build", "verified"), func(r *registry.Record) { change(r.Org) }))}
	}
	usOrg := func(plan string) []registry.Change {
		return []registry.Change{put(org("org_us_0000000009", pinUS, "us", plan, "verified"))}
	}
	newKey := func(change func(*registry.Key)) []registry.Change {
		return []registry.Change{put(with(key("key_any_0000000000000009", anyEast, prjAny, "live"), func(r *registry.Record) { change(r.Key) }))}
	}
	newUps := func(change func(*registry.Upstream)) []registry.Change {
		return []registry.Change{put(with(upstream("ups_0000000009", "new", "us-east"), func(r *registry.Record) { change(r.Upstream) }))}
	}
	newRoute := func(change func(*registry.Route)) []registry.Change {
		return []registry.Change{put(with(route("rte_0000000009", "new", "openai-us"), func(r *registry.Record) { change(r.Route) }))}
	}
	newPolicy := func(change func(*registry.Policy)) []registry.Change {
		return []registry.Change{put(with(policy("pol_any_0000000009", anyEast, orgAny, ""), func(r *registry.Record) { change(r.Policy) }))}
	}
	newRegion := func(change func(*registry.Region)) []registry.Change {
		return []registry.Change{put(with(region("ap-sg", "apac"), func(r *registry.Record) { change(r.Region) }))}
	}
	meta := func(change func(*registry.Record)) []registry.Change {
		return []registry.Change{put(with(project("prj_any_0000000009", anyEast, orgAny, "new"), change))}
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
		{"no change", anyEast, nil, bad, "changes"},
		{"too many changes", anyEast, make([]registry.Change, registry.MaxChanges+1), bad, "changes"},
		{"no such shard", "any-nowhere", newOrg(func(*registry.Org) {}), absent, "shard"},
		{"no operation", anyEast, []registry.Change{{}}, bad, "op"},
		{"unknown operation", anyEast, []registry.Change{{Op: 99}}, bad, "op"},
		{"put of nothing", anyEast, []registry.Change{{Op: registry.OpPut}}, bad, "record"},
		{"put with an id beside", anyEast, []registry.Change{{Op: registry.OpPut, Record: project("prj_any_0000000009", anyEast, orgAny, "x"), ID: "x"}}, bad, "record"},

		{"body of another kind", anyEast, meta(func(r *registry.Record) { r.Kind = registry.KindOrg }), bad, "kind"},
		{"two bodies", anyEast, meta(func(r *registry.Record) { r.Org = &registry.Org{} }), bad, "kind"},
		{"unknown kind", anyEast, meta(func(r *registry.Record) { r.Kind = 77 }), bad, "kind"},
		{"id of another kind", anyEast, meta(func(r *registry.Record) { r.Meta.ID = "org_any_0000000009" }), bad, "meta.id"},
		{"short id", anyEast, meta(func(r *registry.Record) { r.Meta.ID = "prj_any_1" }), bad, "meta.id"},
		{"id with other characters", anyEast, meta(func(r *registry.Record) { r.Meta.ID = "prj_any_00000/0000" }), bad, "meta.id"},
		{"id without jurisdiction", anyEast, meta(func(r *registry.Record) { r.Meta.ID = "prj_0000000009" }), bad, "meta.id"},
		{"id of another jurisdiction", anyEast, meta(func(r *registry.Record) { r.Meta.ID = "prj_eu_0000000009" }), bad, "meta.shard"},
		{"stamped with another shard", anyEast, meta(func(r *registry.Record) { r.Meta.Shard = pinEU }), bad, "meta.shard"},
		{"tenant in global", global, meta(func(r *registry.Record) { r.Meta.Shard = global }), bad, "meta.shard"},
		{"negative time", anyEast, meta(func(r *registry.Record) { r.Meta.Created = -1 }), bad, "meta.created"},

		{"revision fits", anyEast, rev(put(project(prjAny, anyEast, orgAny, "web2")), 2), ok, ""},
		{"revision stale", anyEast, rev(put(project(prjAny, anyEast, orgAny, "web2")), 1), stale, "revision"},
		{"revision of nothing", anyEast, rev(put(project("prj_any_0000000009", anyEast, orgAny, "x")), 2), absent, "id"},
		{"absent fits", anyEast, rev(put(project("prj_any_0000000009", anyEast, orgAny, "x")), registry.RevisionAbsent), ok, ""},
		{"exists already", anyEast, rev(put(project(prjAny, anyEast, orgAny, "web2")), registry.RevisionAbsent), conflict, "id"},
		{"delete stale", anyEast, rev(del(registry.KindProject, prjNew), 1), stale, "revision"},
		{"revoke stale", anyEast, rev(revoke(keyAny, 5), 1), stale, "revision"},

		{"org", anyEast, newOrg(func(*registry.Org) {}), ok, ""},
		{"org without name", anyEast, newOrg(func(o *registry.Org) { o.Name = "" }), bad, "name"},
		{"org with padded name", anyEast, newOrg(func(o *registry.Org) { o.Name = " x" }), bad, "name"},
		{"org with long name", anyEast, newOrg(func(o *registry.Org) { o.Name = long }), bad, "name"},
		{"org with 100 runes", anyEast, newOrg(func(o *registry.Org) { o.Name = strings.Repeat("ü", 100) }), ok, ""},
		{"org with line break", anyEast, newOrg(func(o *registry.Org) { o.Name = "a\nb" }), bad, "name"},
		{"org with reordering", anyEast, newOrg(func(o *registry.Org) { o.Name = "a\u202eb" }), bad, "name"},
		{"org with a family", anyEast, newOrg(func(o *registry.Org) { o.Name = "👩‍👩‍👧" }), ok, ""},
		{"org not UTF-8", anyEast, newOrg(func(o *registry.Org) { o.Name = "a\xff" }), bad, "name"},
		{"org plan", anyEast, newOrg(func(o *registry.Org) { o.Plan = "gold" }), bad, "plan"},
		{"org state", anyEast, newOrg(func(o *registry.Org) { o.State = "" }), bad, "state"},
		{"org roaming", anyEast, newOrg(func(o *registry.Org) { o.Roaming = true }), ok, ""},
		{"org moves", anyEast, newOrg(func(o *registry.Org) { o.Jurisdiction = "eu" }), bad, "jurisdiction"},
		{"org in eu on any plan", pinEU, []registry.Change{put(org("org_eu_0000000009", pinEU, "eu", "trial", "unverified"))}, ok, ""},
		{"org in eu roams", pinEU, []registry.Change{put(with(org(orgEU, pinEU, "eu", "trial", "verified"), func(r *registry.Record) { r.Org.Roaming = true }))}, bad, "roaming"},
		{"org in us", pinUS, usOrg("enterprise"), ok, ""},
		{"org in us on a small plan", pinUS, usOrg("scale"), forbidden, "jurisdiction"},
		{"org in the wrong shard", pinEU, []registry.Change{put(org("org_us_0000000009", pinEU, "us", "enterprise", "verified"))}, bad, "meta.shard"},
		{"org in use", anyEast, []registry.Change{del(registry.KindOrg, orgAny)}, conflict, "id"},
		{"org with a policy", anyEast, []registry.Change{put(policy(polAny, anyEast, orgNew, "")), del(registry.KindProject, prjNew), del(registry.KindOrg, orgNew)}, conflict, "changes[2].id"},
		{"org and all it has", anyEast, []registry.Change{del(registry.KindProject, prjNew), del(registry.KindOrg, orgNew)}, ok, ""},

		{"project of no org", anyEast, []registry.Change{put(project("prj_any_0000000009", anyEast, "org_any_0000000009", "x"))}, absent, "org"},
		{"project of an org elsewhere", anyEast, []registry.Change{put(project("prj_any_0000000009", anyEast, orgEU, "x"))}, absent, "org"},
		{"project of a project", anyEast, []registry.Change{put(project("prj_any_0000000009", anyEast, prjAny, "x"))}, absent, "org"},
		{"project moves", anyEast, []registry.Change{put(project(prjAny, anyEast, orgNew, "other"))}, bad, "org"},
		{"project name taken", anyEast, []registry.Change{put(project("prj_any_0000000009", anyEast, orgAny, "web"))}, conflict, "name"},
		{"project after its org", anyEast, []registry.Change{newOrg(func(*registry.Org) {})[0], put(project("prj_any_0000000009", anyEast, "org_any_0000000009", "x"))}, ok, ""},
		{"project before its org", anyEast, []registry.Change{put(project("prj_any_0000000009", anyEast, "org_any_0000000009", "x")), newOrg(func(*registry.Org) {})[0]}, absent, "changes[0].org"},
		{"project in use", anyEast, []registry.Change{del(registry.KindProject, prjAny)}, conflict, "id"},
		{"project with a policy", anyEast, []registry.Change{put(policy(polAny, anyEast, orgNew, prjNew)), del(registry.KindProject, prjNew)}, conflict, "changes[1].id"},

		{"key", anyEast, newKey(func(*registry.Key) {}), ok, ""},
		{"key class", anyEast, newKey(func(k *registry.Key) { k.Class = "prod" }), bad, "class"},
		{"key of no project", anyEast, newKey(func(k *registry.Key) { k.Project = prjEU }), absent, "project"},
		{"key without hash", anyEast, newKey(func(k *registry.Key) { k.Hash = nil }), bad, "hash"},
		{"key with huge hash", anyEast, newKey(func(k *registry.Key) { k.PrevHash = make([]byte, 129) }), bad, "hash"},
		{"key hint", anyEast, newKey(func(k *registry.Key) { k.Hint = "\x1b[2J" }), bad, "hint"},
		{"key expires before time", anyEast, newKey(func(k *registry.Key) { k.Expires = -1 }), bad, "expires"},
		{"key revoked by hand", anyEast, newKey(func(k *registry.Key) { k.Revoked = 1 }), bad, "revoked"},
		{"live key of an unverified org", anyEast, newKey(func(k *registry.Key) { k.Project = prjNew }), forbidden, "class"},
		{"test key of an unverified org", anyEast, newKey(func(k *registry.Key) { k.Project, k.Class = prjNew, "test" }), ok, ""},
		{"key moves", anyEast, []registry.Change{put(key(keyAny, anyEast, prjNew, "live"))}, bad, "project"},
		{"key changes class", anyEast, []registry.Change{put(key(keyAny, anyEast, prjAny, "test"))}, bad, "class"},
		{"key id of another length", anyEast, []registry.Change{put(key("key_any_00000000000000001", anyEast, prjAny, "live"))}, bad, "meta.id"},
		{"key in force deleted", anyEast, []registry.Change{del(registry.KindKey, keyAny)}, conflict, "id"},
		{"key revoked and deleted", anyEast, []registry.Change{revoke(keyAny, 5), del(registry.KindKey, keyAny)}, ok, ""},
		{"revoke nothing", anyEast, []registry.Change{revoke("key_any_0000000000000009", 5)}, absent, "id"},
		{"revoke without time", anyEast, []registry.Change{revoke(keyAny, 0)}, bad, "at"},
		{"revoke elsewhere", anyEast, []registry.Change{revoke(keyEU, 5)}, bad, "id"},
		{"revoke a project", anyEast, []registry.Change{{Op: registry.OpRevoke, Kind: registry.KindProject, ID: prjAny, At: 5}}, bad, "kind"},
		{"delete nothing", anyEast, []registry.Change{del(registry.KindProject, "prj_any_0000000009")}, absent, "id"},
		{"delete another kind", anyEast, []registry.Change{del(registry.KindOrg, prjAny)}, bad, "id"},

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
		{"upstream renamed", global, []registry.Change{put(upstream(upsEU, "openai-fra", "eu-fra"))}, ok, ""},
		{"upstream renamed in use", global, []registry.Change{put(upstream(upsUS, "openai-usa", "us-east"))}, conflict, "name"},
		{"upstream deleted", global, []registry.Change{del(registry.KindUpstream, upsEU)}, ok, ""},
		{"upstream deleted in use", global, []registry.Change{del(registry.KindUpstream, upsUS)}, conflict, "id"},
		{"upstream and route deleted", global, []registry.Change{del(registry.KindRoute, rteOne), del(registry.KindUpstream, upsUS)}, ok, ""},
		{"upstream revoked", global, []registry.Change{{Op: registry.OpRevoke, Kind: registry.KindUpstream, ID: upsUS, At: 5}}, ok, ""},
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

		{"policy", anyEast, newPolicy(func(p *registry.Policy) { p.Residency = "eu" }), ok, ""},
		{"policy org", anyEast, newPolicy(func(p *registry.Policy) { p.Org = orgEU }), absent, "org"},
		{"policy project", anyEast, newPolicy(func(p *registry.Policy) { p.Project = "prj_any_0000000009" }), absent, "project"},
		{"policy project of another org", anyEast, newPolicy(func(p *registry.Policy) { p.Project = prjNew }), bad, "project"},
		{"policy in no region", anyEast, newPolicy(func(p *registry.Policy) { p.Residency = "apac" }), bad, "residency"},
		{"policy in any", anyEast, newPolicy(func(p *registry.Policy) { p.Residency = "any" }), bad, "residency"},
		{"policy contradicts the pin", pinEU, []registry.Change{put(with(policy("pol_eu_0000000009", pinEU, orgEU, ""), func(r *registry.Record) { r.Policy.Residency = "us" }))}, bad, "residency"},
		{"policy repeats the pin", pinEU, []registry.Change{put(with(policy("pol_eu_0000000009", pinEU, orgEU, ""), func(r *registry.Record) { r.Policy.Residency = "eu" }))}, ok, ""},
		{"policy models", anyEast, newPolicy(func(p *registry.Policy) { p.Models = []string{"a", ""} }), bad, "models[1]"},
		{"policy model twice", anyEast, newPolicy(func(p *registry.Policy) { p.Models = []string{"a", "a"} }), bad, "models[1]"},
		{"policy with too many models", anyEast, newPolicy(func(p *registry.Policy) { p.Models = make([]string, 256+1) }), bad, "models"},
		{"second policy", anyEast, []registry.Change{put(policy(polAny, anyEast, orgAny, "")), newPolicy(func(*registry.Policy) {})[0]}, conflict, "changes[1].project"},
		{"policy moves", anyEast, []registry.Change{put(policy(polAny, anyEast, orgAny, "")), put(policy(polAny, anyEast, orgAny, prjAny))}, bad, "changes[1].project"},

		{"region", global, newRegion(func(*registry.Region) {}), ok, ""},
		{"region without endpoint", global, newRegion(func(r *registry.Region) { r.Endpoint = "" }), ok, ""},
		{"region endpoint with path", global, newRegion(func(r *registry.Region) { r.Endpoint += "/v1" }), bad, "endpoint"},
		{"region jurisdiction", global, newRegion(func(r *registry.Region) { r.Jurisdiction = "any" }), bad, "jurisdiction"},
		{"region state", global, newRegion(func(r *registry.Region) { r.State = "up" }), bad, "state"},
		{"region renamed", global, newRegion(func(r *registry.Region) { r.Name = "ap-x" }), bad, "name"},
		{"region drained", global, []registry.Change{put(with(region("eu-fra", "eu"), func(r *registry.Record) { r.Region.State = "drained" }))}, ok, ""},
		{"region moves", global, []registry.Change{put(region("eu-fra", "us"))}, bad, "jurisdiction"},
		{"region with upstreams", global, []registry.Change{del(registry.KindRegion, "reg_eu-fra")}, conflict, "id"},
		{"region with shards", global, []registry.Change{del(registry.KindUpstream, upsEU), del(registry.KindRegion, "reg_eu-fra")}, conflict, "changes[1].id"},
		{"region unused", global, []registry.Change{newRegion(func(*registry.Region) {})[0], del(registry.KindRegion, "reg_ap-sg")}, ok, ""},

		{"open", "apac", []registry.Change{open("ap-sg", "ap-sg")}, ok, ""},
		{"open again", pinEU, []registry.Change{open("eu-fra", "eu-fra")}, ok, ""},
		{"open in the middle", pinEU, []registry.Change{del(registry.KindOrg, orgEU), open("eu-fra", "eu-fra")}, conflict, "changes[0].id"},
		{"open second", anyEast, []registry.Change{newOrg(func(*registry.Org) {})[0], open("us-east", "us-east")}, bad, "changes[1].op"},
		{"open no shard", "Global", []registry.Change{open("eu-fra", "eu-fra")}, bad, "shard"},
		{"open any", "any", []registry.Change{open("eu-fra", "eu-fra")}, bad, "shard"},
		{"open without members", "apac", []registry.Change{open("ap-sg")}, bad, "home"},
		{"open for a stranger", "apac", []registry.Change{open("ap-sg", "ap-tk")}, bad, "home"},
		{"open with a region twice", "apac", []registry.Change{open("ap-sg", "ap-sg", "ap-sg")}, bad, "members"},
		{"open with a malformed region", "apac", []registry.Change{open("ap-sg", "ap-sg", "AP")}, bad, "members"},
		{"open outside the jurisdiction", pinEU, []registry.Change{open("eu-fra", "eu-fra", "us-east")}, forbidden, "members"},
	}
	s := world(t)
	before := snapshot(t, s)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			changes := slices.Clone(tt.changes)
			var sent registry.Record
			if len(changes) > 0 && changes[0].Record != nil {
				sent = *changes[0].Record
			}
			err := s.Check(tt.shard, changes)
			if rule := ruleError(t, err); rule == nil && tt.code != ok || rule != nil && (rule.Code != tt.code || rule.Field != tt.field) {
				t.Fatalf("%v, but %q for %q expected", describe(rule), tt.code, tt.field)
			}
			if !reflect.DeepEqual(changes, tt.changes) || len(changes) > 0 && changes[0].Record != nil && !reflect.DeepEqual(sent, *changes[0].Record) {
				t.Error("Check changed what it was given")
			}
			if !bytes.Equal(before, snapshot(t, s)) {
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
	for id, from := range map[string]string{successor: orgNew, unknown: "org_any_0000000009"} {
		rel := &registry.Record{Kind: registry.KindRelocation, Meta: registry.Meta{ID: registry.RelocationID(id), Shard: pinEU},
			Relocation: &registry.Relocation{Org: id, From: from, Shard: anyEast}}
		mustPropose(t, s, pinEU, put(org(id, pinEU, "eu", "trial", "verified")), put(rel))
		gone := []registry.Change{del(registry.KindRelocation, rel.Meta.ID), del(registry.KindOrg, id)}
		if rule := ruleError(t, s.Check(pinEU, gone)); rule == nil || rule.Code != controlplane.RuleConflict {
			t.Errorf("%s: %v", id, rule)
		}
		done := *rel
		done.Relocation = &registry.Relocation{Org: id, From: from, Shard: anyEast, Copied: 1, InForce: 1}
		if err := s.Check(pinEU, append([]registry.Change{put(&done)}, gone...)); err != nil {
			t.Errorf("%s, in force: %v", id, err)
		}
	}
}
