package admin_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/homes"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/controlkit"
	"ringmain/internal/testkit/logkit"
)

// copies is a home that has heard from some regions, each so far behind the
// end of its own copy, and data nodes likewise.
type copies struct {
	otherRegions
	cluster *controlkit.Cluster
	regions map[string]int // entries behind; none = not heard
	nodes   []copied
}

type copied struct {
	region, name string
	behind       int // < 0 = says nothing
	dead         bool
	epoch        uint64 // 0 = the home's own
}

func (c *copies) at(shard controlplane.Shard, behind int) controlplane.Point {
	var info registry.ShardInfo
	c.cluster.Regions[0].Nodes[0].View(func(s *ledger.State) { info, _ = s.Shard(shard) })
	p := info.Last
	p.Seq -= uint64(behind)
	return p
}

func (c *copies) Reach(shard controlplane.Shard) (homes.Reach, error) {
	r := homes.Reach{Shard: shard, Role: "home"}
	for _, region := range []string{"us-east", "eu-fra", "ap-sg"} {
		m := homes.MemberReach{Region: region}
		if behind, ok := c.regions[region]; ok {
			m.Heard, m.Last = time.Now(), c.at(shard, behind)
		}
		r.Members = append(r.Members, m)
	}
	return r, nil
}

func (c *copies) list() (all []api.Node) {
	for _, n := range c.nodes {
		node := api.Node{Region: n.region, Name: n.name, Role: "data", Alive: !n.dead}
		if n.behind >= 0 {
			const shard = "any-us-east"
			p := c.at(shard, n.behind)
			if n.epoch != 0 {
				p.Epoch.Counter = n.epoch
			}
			node.Position = "global=1/us-east.7 " + api.FormatPosition(shard, p)
		}
		all = append(all, node)
	}
	return append(all, api.Node{Region: "us-east", Name: "us-east-c1", Role: "control", Alive: true})
}

func names(list any) string {
	var out []string
	all, _ := list.([]any)
	for _, v := range all {
		out = append(out, fmt.Sprint(v))
	}
	return strings.Join(out, " ")
}

// A revocation's answer says who holds it, who does not, and of whom nothing is known.
func TestRevocationSaysWhoHoldsIt(t *testing.T) {
	c := &copies{}
	kit := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us", "eu-fra:eu", "ap-sg:apac"}, func(cfg *admin.Config) {
		cfg.Homes, cfg.ConfirmIn, cfg.HeldIn, cfg.Nodes = c, 50*time.Millisecond, 300*time.Millisecond, c.list
	})
	c.cluster = kit
	call := caller{t, kit.Client()}
	base := kit.Regions[0].Nodes[0].URL + "/admin/v1"
	_, project := call.account(base, "any")
	for _, tc := range []struct {
		name    string
		regions map[string]int
		nodes   []copied
		want    map[string]string
	}{
		{"everybody", map[string]int{"eu-fra": 0, "ap-sg": 0}, []copied{{region: "us-east", name: "d1"}, {region: "eu-fra", name: "d2"}},
			map[string]string{"regions": "ap-sg eu-fra us-east", "data_nodes": "d1 d2"}},
		{"some are behind", map[string]int{"eu-fra": 1, "ap-sg": 0}, []copied{{region: "us-east", name: "d1"}, {region: "eu-fra", name: "d2", behind: 1}},
			map[string]string{"regions": "ap-sg us-east", "regions_missing": "eu-fra", "data_nodes": "d1", "data_nodes_missing": "d2"}},
		{"some are silent", map[string]int{"ap-sg": 0}, []copied{{region: "us-east", name: "d1", behind: -1}, {region: "ap-sg", name: "d2"}, {region: "ap-sg", name: "d3", dead: true}},
			map[string]string{"regions": "ap-sg us-east", "regions_unknown": "eu-fra", "data_nodes": "d2", "data_nodes_unknown": "d1 d3"}},
		{"as far in another history", map[string]int{"eu-fra": 0, "ap-sg": 0}, []copied{{region: "us-east", name: "d1", epoch: 9}},
			map[string]string{"regions": "ap-sg eu-fra us-east", "data_nodes_missing": "d1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c.regions, c.nodes = tc.regions, tc.nodes
			key := call.want(201, "POST", base+"/projects/"+project+"/keys", `{"name":"k"}`).str("id")
			for _, again := range []string{"first", "again"} {
				r := call.want(200, "POST", base+"/keys/"+key+"/revoke", "")
				held, _ := r.json["held"].(map[string]any)
				for _, field := range []string{"regions", "regions_missing", "regions_unknown", "data_nodes", "data_nodes_missing", "data_nodes_unknown"} {
					if got := names(held[field]); got != tc.want[field] {
						t.Errorf("%s: %s: %q, want %q", again, field, got, tc.want[field])
					}
				}
			}
		})
	}
	if r := call.want(200, "GET", base+"/projects/"+project+"/keys", ""); strings.Contains(r.text, "held") {
		t.Error("reads say who holds a revocation: only its answer knows")
	}
}

// All keys of a project or org are revoked at once. Above 100 somebody must
// have counted, and repeating the request goes on with what is left.
func TestRevokeAll(t *testing.T) {
	kit := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us", "eu-fra:eu"}, func(cfg *admin.Config) { cfg.HeldIn = time.Millisecond })
	node := kit.Regions[0].Nodes[0]
	call := caller{t, kit.Client()}
	base := node.URL + "/admin/v1"
	org, project := call.account(base, "any")
	call.want(201, "POST", base+"/projects/"+project+"/keys", `{"name":"k"}`)
	r := call.want(200, "POST", base+"/projects/"+project+"/keys/revoke", "")
	if r.json["keys"] != 1.0 || r.json["revoked"] != 1.0 {
		t.Errorf("one key: %s", r.text)
	}
	// Hashes are made up: bcrypt is not what this is about.
	many := project
	var changes []registry.Change
	for i := range 300 {
		id := registry.NewID("key", "any", time.Unix(1_700_000_000+int64(i), 0), strings.NewReader(strings.Repeat("x", 64)))
		changes = append(changes, registry.Change{Op: registry.OpPut, IfRevision: registry.RevisionAbsent, Record: &registry.Record{
			Kind: registry.KindKey, Meta: registry.Meta{ID: id, Shard: "any-us-east", Created: 1, Updated: 1},
			Key: &registry.Key{Project: many, Name: "k", Class: "live", Hash: []byte("$2a$10$" + strings.Repeat("h", 53)), Hint: id[len(id)-4:]},
		}})
	}
	for batch := range slices.Chunk(changes, registry.MaxChanges) {
		if out, err := node.Propose(t.Context(), "any-us-east", batch); err != nil || out.Err != nil {
			t.Fatal(err, out.Err)
		}
	}
	inForce := func() (n int) {
		node.View(func(s *ledger.State) {
			for _, k := range s.KeysOf(project, "", 0) {
				if k.Key.Revoked == 0 {
					n++
				}
			}
		})
		return n
	}
	for _, url := range []string{"/projects/" + project, "/orgs/" + org} {
		for _, body := range []string{"", "{}", `{"expect":300}`, `{"expect":1000}`} {
			r := call.want(409, "POST", base+url+"/keys/revoke", body)
			if r.str("code") != "count" || !strings.Contains(r.str("detail"), "301 keys, 300 of them in force") || inForce() != 300 {
				t.Errorf("%s %s: %s; %d in force", url, body, r.text, inForce())
			}
		}
	}
	if n := len(node.Revocations); n != 1 {
		t.Errorf("data nodes were told of %d revocations, though nothing but the first was confirmed", n)
	}
	// The second batch fails: what is done stays, and the same request goes on.
	batches := 0
	kit.Broken = func(string, bool) error {
		if batches++; batches == 3 {
			return controlplane.ErrNoLeader
		}
		return nil
	}
	call.want(503, "POST", base+"/projects/"+project+"/keys/revoke", `{"expect":301}`)
	if n := inForce(); n != 300-registry.MaxChanges {
		t.Errorf("after a failure %d are in force", n)
	}
	kit.Broken = nil
	r = call.want(200, "POST", base+"/orgs/"+org+"/keys/revoke", `{"expect":301}`)
	if r.json["keys"] != 301.0 || r.json["revoked"] != float64(300-registry.MaxChanges) || inForce() != 0 || r.header.Get("Ringmain-Position") == "" {
		t.Errorf("went on: %s; %d in force", r.text, inForce())
	}
	r = call.want(200, "POST", base+"/orgs/"+org+"/keys/revoke", `{"expect":301}`)
	if r.json["keys"] != 301.0 || r.json["revoked"] != 0.0 {
		t.Errorf("again: %s", r.text)
	}
	call.want(404, "POST", base+"/projects/prj_any_nobody/keys/revoke", "")
	call.want(422, "POST", base+"/projects/"+project+"/keys/revoke", `{"expect":-1}`)
}
