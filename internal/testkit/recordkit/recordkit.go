// Package recordkit makes records, changes and commands for the tests of the rooms
// that read them: two regions with a little of everything, and the golden files
// that freeze encodings.
package recordkit

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
)

const (
	AnyEast = controlplane.Shard("any-us-east")
	PinEU   = controlplane.Shard("eu")
	PinUS   = controlplane.Shard("us")

	OrgAny     = "org_any_0000000001"
	OrgNew     = "org_any_0000000002" // unverified
	OrgEU      = "org_eu_0000000001"
	PrjAny     = "prj_any_0000000001"
	PrjNew     = "prj_any_0000000002"
	PrjEU      = "prj_eu_0000000001"
	KeyAny     = "key_any_0000000000000001"
	KeyEU      = "key_eu_0000000000000001"
	UpsUS      = "ups_0000000001"
	UpsEU      = "ups_0000000002"
	RteOne     = "rte_0000000001"
	PolAny     = "pol_any_0000000001"
	bcryptHash = "$2a$10$abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0"
	Created    = 1_800_000_000_000
)

// The first two epochs of AnyEast, and a member of both.
var (
	One  = controlplane.Epoch{Counter: 1, Region: "us-east"}
	Two  = controlplane.Epoch{Counter: 2, Region: "eu-fra"}
	East = ownership.Member{Region: "us-east"}
)

func record(kind registry.Kind, id string, shard controlplane.Shard) *registry.Record {
	return &registry.Record{Kind: kind, Meta: registry.Meta{ID: id, Shard: shard, Created: Created, Updated: Created}}
}

func Org(id string, shard controlplane.Shard, jurisdiction, plan, state string) *registry.Record {
	r := record(registry.KindOrg, id, shard)
	r.Org = &registry.Org{Name: "Acme", Plan: plan, State: state, Jurisdiction: jurisdiction}
	return r
}

func Project(id string, shard controlplane.Shard, org, name string) *registry.Record {
	r := record(registry.KindProject, id, shard)
	r.Project = &registry.Project{Org: org, Name: name}
	return r
}

func Key(id string, shard controlplane.Shard, project, class string) *registry.Record {
	r := record(registry.KindKey, id, shard)
	r.Key = &registry.Key{Project: project, Name: "laptop", Class: class, Hash: []byte(bcryptHash), Hint: id[len(id)-4:]}
	return r
}

func Upstream(id, name, region string) *registry.Record {
	r := record(registry.KindUpstream, id, controlplane.ShardGlobal)
	r.Upstream = &registry.Upstream{
		Name: name, Provider: "openai", Region: region, Dialect: "openai",
		BaseURL: "https://api.example.com/base", Auth: "bearer", Credential: []byte("sk-1"),
		Terms: registry.Terms{
			Retention: "30d", PromptCache: "memory", Training: "never", Dated: "2026-11-01",
			Contract: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		},
	}
	return r
}

func Route(id, model string, upstreams ...string) *registry.Record {
	r := record(registry.KindRoute, id, controlplane.ShardGlobal)
	r.Route = &registry.Route{Model: model}
	for _, u := range upstreams {
		r.Route.Targets = append(r.Route.Targets, registry.Target{Upstream: u, Model: "m-1"})
	}
	return r
}

func Policy(id string, shard controlplane.Shard, org, project string) *registry.Record {
	r := record(registry.KindPolicy, id, shard)
	r.Policy = &registry.Policy{Org: org, Project: project}
	return r
}

func Region(name, jurisdiction string) *registry.Record {
	r := record(registry.KindRegion, registry.RegionID(name), controlplane.ShardGlobal)
	r.Region = &registry.Region{Name: name, Jurisdiction: jurisdiction, Endpoint: "https://" + name + ".example.com", State: "active"}
	return r
}

func Put(r *registry.Record) registry.Change { return registry.Change{Op: registry.OpPut, Record: r} }

func Delete(k registry.Kind, id string) registry.Change {
	return registry.Change{Op: registry.OpDelete, Kind: k, ID: id}
}

func Revoke(id string, at int64) registry.Change {
	return registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: id, At: at}
}

func Open(home string, m ...string) registry.Change {
	return registry.Change{Op: registry.OpOpen, Home: home, Members: m}
}

func Entry(t testing.TB, e *registry.Entry) []byte {
	t.Helper()
	b, err := registry.EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Command is what a home's log commits for the changes: next makes the entry.
func Command(t testing.TB, next interface {
	Next(controlplane.Shard, []registry.Change) (*registry.Entry, error)
}, shard controlplane.Shard, changes ...registry.Change,
) *registry.Command {
	t.Helper()
	e, err := next.Next(shard, changes)
	if err != nil {
		t.Fatal(err)
	}
	return &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{Entry(t, e)}}
}

// Snapshot is all that s writes.
func Snapshot(t testing.TB, s interface{ Snapshot(io.Writer) error }) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// RuleError is err as the rule that was broken; nil if none was.
func RuleError(t testing.TB, err error) *controlplane.RuleError {
	t.Helper()
	var rule *controlplane.RuleError
	if err != nil && !errors.As(err, &rule) {
		t.Fatalf("%v (%T) is not a rule error", err, err)
	}
	return rule
}

// Step is what one entry of World changes.
type Step struct {
	Shard   controlplane.Shard
	Changes []registry.Change
}

// World is how two regions come to hold a little of everything.
func World() (steps []Step) {
	add := func(shard controlplane.Shard, changes ...registry.Change) {
		steps = append(steps, Step{Shard: shard, Changes: changes})
	}
	add(controlplane.ShardGlobal, Open("us-east", "us-east", "eu-fra"),
		Put(Region("us-east", "us")), Put(Region("eu-fra", "eu")))
	add(controlplane.ShardGlobal,
		Put(Upstream(UpsUS, "openai-us", "us-east")), Put(Upstream(UpsEU, "openai-eu", "eu-fra")),
		Put(Route(RteOne, "gpt-x", "openai-us")))
	add(AnyEast, Open("us-east", "us-east", "eu-fra"))
	add(AnyEast,
		Put(Org(OrgAny, AnyEast, "any", "build", "verified")), Put(Org(OrgNew, AnyEast, "any", "trial", "unverified")),
		Put(Project(PrjAny, AnyEast, OrgAny, "web")), Put(Project(PrjNew, AnyEast, OrgNew, "web")))
	add(AnyEast, Put(Key(KeyAny, AnyEast, PrjAny, "live")))
	add(PinEU, Open("eu-fra", "eu-fra"))
	add(PinEU, Put(Org(OrgEU, PinEU, "eu", "trial", "verified")), Put(Project(PrjEU, PinEU, OrgEU, "web")),
		Put(Key(KeyEU, PinEU, PrjEU, "test")))
	add(PinUS, Open("us-east", "us-east"))
	return steps
}

// Commands2 are commands of version 2, of every kind.
func Commands2(t testing.TB) []*registry.Command {
	e := Entry(t, registry.NextAfter(AnyEast, controlplane.Point{Epoch: One, Seq: 6}, []registry.Change{Revoke(KeyAny, 5)}))
	members := []ownership.Member{{Region: "eu-fra", Since: 3}, East}
	spans := []registry.Span{{Epoch: One, Start: 1, Members: []ownership.Member{East}}, {Epoch: Two, Start: 5, Members: members, Forced: true}}
	a := &registry.Adopt{Shard: AnyEast, Snapshot: "s1", Members: []string{"eu-fra", "us-east"}, Home: "eu-fra",
		Point: controlplane.Point{Epoch: Two, Seq: 9}, Digest: make([]byte, 32), Spans: spans, Repair: true}
	return []*registry.Command{
		{Type: registry.CmdEntry, Entries: [][]byte{e}, Levels: []registry.Level{registry.LevelMultiRegion}},
		{Type: registry.CmdAccept, Sender: Two, Entries: [][]byte{e}, Confirmed: 4},
		{Type: registry.CmdAdopt, Sender: Two, Adopt: a, Confirmed: 7},
		{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: AnyEast, Epoch: Two}},
		{Type: registry.CmdTake, Take: &registry.Take{Shard: AnyEast, Epoch: Two, Base: controlplane.Point{Epoch: One, Seq: 7}, Entries: [][]byte{e},
			Members: members, Forced: true, Known: controlplane.Point{Epoch: One, Seq: 6}}},
		{Type: registry.CmdTake, Take: &registry.Take{Shard: AnyEast, Epoch: Two, Base: a.Point, Snapshot: a, Members: members}},
		{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: AnyEast, Epoch: Two, Seq: 9}},
		{Type: registry.CmdResolve, Resolve: &registry.Resolve{Shard: AnyEast, Entries: []controlplane.Point{{Epoch: One, Seq: 7}}, Verdict: registry.VerdictDiscarded}},
		{Type: registry.CmdVersion, Version: 2},
	}
}

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

func Golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name+".hex")
	if *rewrite {
		var text strings.Builder
		for line := range slices.Chunk(got, 40) {
			text.WriteString(hex.EncodeToString(line) + "\n")
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(text.String()), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: its bytes are not the frozen ones: raise the format version", name)
	}
}

func Frozen(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "golden", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
