package registry

import (
	"bytes"
	"errors"
	"testing"

	"ringmain/controlplane"
)

const (
	anyEast = controlplane.Shard("any-us-east")
	pinEU   = controlplane.Shard("eu")
	pinUS   = controlplane.Shard("us")

	orgAny     = "org_any_0000000001"
	orgNew     = "org_any_0000000002" // unverified
	orgEU      = "org_eu_0000000001"
	prjAny     = "prj_any_0000000001"
	prjNew     = "prj_any_0000000002"
	prjEU      = "prj_eu_0000000001"
	keyAny     = "key_any_0000000000000001"
	keyEU      = "key_eu_0000000000000001"
	upsUS      = "ups_0000000001"
	upsEU      = "ups_0000000002"
	rteOne     = "rte_0000000001"
	polAny     = "pol_any_0000000001"
	bcryptHash = "$2a$10$abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0"
	created    = 1_800_000_000_000
)

func rec(kind Kind, id string, shard controlplane.Shard) *Record {
	return &Record{Kind: kind, Meta: Meta{ID: id, Shard: shard, Created: created, Updated: created}}
}

func org(id string, shard controlplane.Shard, jurisdiction, plan, state string) *Record {
	r := rec(KindOrg, id, shard)
	r.Org = &Org{Name: "Acme", Plan: plan, State: state, Jurisdiction: jurisdiction}
	return r
}

func project(id string, shard controlplane.Shard, org, name string) *Record {
	r := rec(KindProject, id, shard)
	r.Project = &Project{Org: org, Name: name}
	return r
}

func key(id string, shard controlplane.Shard, project, class string) *Record {
	r := rec(KindKey, id, shard)
	r.Key = &Key{Project: project, Name: "laptop", Class: class, Hash: []byte(bcryptHash), Hint: id[len(id)-4:]}
	return r
}

func upstream(id, name, region string) *Record {
	r := rec(KindUpstream, id, controlplane.ShardGlobal)
	r.Upstream = &Upstream{
		Name: name, Provider: "openai", Region: region, Dialect: "openai",
		BaseURL: "https://api.example.com/base", Auth: "bearer", Credential: []byte("sk-1"),
		Terms: Terms{
			Retention: "30d", PromptCache: "memory", Training: "never", Dated: "2026-11-01",
			Contract: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		},
	}
	return r
}

func route(id, model string, upstreams ...string) *Record {
	r := rec(KindRoute, id, controlplane.ShardGlobal)
	r.Route = &Route{Model: model}
	for _, u := range upstreams {
		r.Route.Targets = append(r.Route.Targets, Target{Upstream: u, Model: "m-1"})
	}
	return r
}

func policy(id string, shard controlplane.Shard, org, project string) *Record {
	r := rec(KindPolicy, id, shard)
	r.Policy = &Policy{Org: org, Project: project}
	return r
}

func region(name, jurisdiction string) *Record {
	r := rec(KindRegion, RegionID(name), controlplane.ShardGlobal)
	r.Region = &Region{Name: name, Jurisdiction: jurisdiction, Endpoint: "https://" + name + ".example.com", State: "active"}
	return r
}

func put(r *Record) Change                 { return Change{Op: OpPut, Record: r} }
func del(k Kind, id string) Change         { return Change{Op: OpDelete, Kind: k, ID: id} }
func revoke(id string, at int64) Change    { return Change{Op: OpRevoke, Kind: KindKey, ID: id, At: at} }
func open(home string, m ...string) Change { return Change{Op: OpOpen, Home: home, Members: m} }

func entry(t testing.TB, e *Entry) []byte {
	t.Helper()
	b, err := EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// propose applies changes as the home's leader would, through the bytes.
func propose(t testing.TB, s *State, shard controlplane.Shard, changes ...Change) Outcome {
	t.Helper()
	e, err := s.Next(shard, changes)
	if err != nil {
		t.Fatal(err)
	}
	return apply(t, s, &Command{Type: CmdEntry, Entries: [][]byte{entry(t, e)}})
}

// apply applies what cmd is after a way through the log.
func apply(t testing.TB, s *State, cmd *Command) Outcome {
	t.Helper()
	b, err := EncodeCommand(cmd)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err = DecodeCommand(b)
	if err != nil {
		t.Fatal(err)
	}
	return s.Apply(cmd)
}

func mustPropose(t testing.TB, s *State, shard controlplane.Shard, changes ...Change) Outcome {
	t.Helper()
	if err := s.Check(shard, changes); err != nil {
		t.Fatalf("check: %v", err)
	}
	out := propose(t, s, shard, changes...)
	if out.Err != nil {
		t.Fatalf("apply: %v", out.Err)
	}
	return out
}

// world returns two regions with a little of everything.
func world(t testing.TB) *State {
	s := New()
	mustPropose(t, s, controlplane.ShardGlobal, open("us-east", "us-east", "eu-fra"),
		put(region("us-east", "us")), put(region("eu-fra", "eu")))
	mustPropose(t, s, controlplane.ShardGlobal,
		put(upstream(upsUS, "openai-us", "us-east")), put(upstream(upsEU, "openai-eu", "eu-fra")),
		put(route(rteOne, "gpt-x", "openai-us")))
	mustPropose(t, s, anyEast, open("us-east", "us-east", "eu-fra"))
	mustPropose(t, s, anyEast,
		put(org(orgAny, anyEast, "any", "build", "verified")), put(org(orgNew, anyEast, "any", "trial", "unverified")),
		put(project(prjAny, anyEast, orgAny, "web")), put(project(prjNew, anyEast, orgNew, "web")))
	mustPropose(t, s, anyEast, put(key(keyAny, anyEast, prjAny, "live")))
	mustPropose(t, s, pinEU, open("eu-fra", "eu-fra"))
	mustPropose(t, s, pinEU, put(org(orgEU, pinEU, "eu", "trial", "verified")), put(project(prjEU, pinEU, orgEU, "web")),
		put(key(keyEU, pinEU, prjEU, "test")))
	mustPropose(t, s, pinUS, open("us-east", "us-east"))
	return s
}

func ruleError(t testing.TB, err error) *controlplane.RuleError {
	t.Helper()
	var rule *controlplane.RuleError
	if err != nil && !errors.As(err, &rule) {
		t.Fatalf("%v (%T) is not a rule error", err, err)
	}
	return rule
}

func snapshot(t testing.TB, s *State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
