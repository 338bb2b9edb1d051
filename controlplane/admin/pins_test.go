package admin_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/homes"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/controlkit"
	"ringmain/internal/testkit/logkit"
)

// pinWorld is what homes and gossip say in a controlkit cluster: each region
// and its data node hold what the region's copy holds, but for those that are
// made to lag, be silent, or be unheard of.
type pinWorld struct {
	otherRegions
	mu      sync.Mutex
	cluster *controlkit.Cluster
	stuck   map[string]controlplane.Position // data nodes of these regions stay here
	dead    map[string]bool
	absent  map[string]bool

	unconfirmed controlplane.Shard // no other region says that it holds this one's last writes
}

func (w *pinWorld) position(region string) controlplane.Position {
	var p controlplane.Position
	w.cluster.Region(region).Nodes[0].View(func(s *ledger.State) { p = s.Position() })
	return p
}

func (w *pinWorld) Reach(shard controlplane.Shard) (homes.Reach, error) {
	r := homes.Reach{Shard: shard, Role: "home"}
	for _, region := range w.cluster.Regions {
		if p, holds := w.position(region.Name)[shard]; holds {
			r.Members = append(r.Members, homes.MemberReach{Region: region.Name, Heard: time.Now(), Last: p})
		}
	}
	return r, nil
}

func (w *pinWorld) Confirmed(ctx context.Context, shard controlplane.Shard, _ controlplane.Point) error {
	w.mu.Lock()
	cut := w.unconfirmed == shard
	w.mu.Unlock()
	if cut {
		<-ctx.Done()
	}
	return ctx.Err()
}

func (w *pinWorld) nodes() (all []api.Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, region := range w.cluster.Regions {
		if w.absent[region.Name] {
			continue
		}
		p, stuck := w.stuck[region.Name]
		if !stuck {
			p = w.position(region.Name)
		}
		var at []string
		for shard, point := range p {
			at = append(at, api.FormatPosition(shard, point))
		}
		all = append(all,
			api.Node{Region: region.Name, Name: region.Name + "-c1", Role: "control", Alive: true},
			api.Node{Region: region.Name, Name: region.Name + "-d1", Role: "data", Alive: !w.dead[region.Name], Position: strings.Join(at, " ")})
	}
	return all
}

func (w *pinWorld) say(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// pinCluster has a region in the US and two in the EU, at the newest version.
func pinCluster(t *testing.T) (caller, *controlkit.Cluster, *pinWorld, *logkit.Buffer) {
	t.Helper()
	w := &pinWorld{stuck: map[string]controlplane.Position{}, dead: map[string]bool{}, absent: map[string]bool{}}
	logs := &logkit.Buffer{}
	kit := controlkit.Start(t, logs, []string{"us-east:us", "eu-fra:eu", "eu-ams:eu"}, func(cfg *admin.Config) {
		cfg.Homes, cfg.Nodes, cfg.HeldIn, cfg.ConfirmIn = w, w.nodes, time.Millisecond, 300*time.Millisecond
	})
	w.cluster = kit
	for _, r := range kit.Regions {
		r.Raise()
	}
	return caller{t, kit.Client()}, kit, w, logs
}

func (c caller) base(kit *controlkit.Cluster, region string) string {
	return kit.Region(region).Nodes[0].URL + "/admin/v1"
}

// furnished makes an org with two projects, policies and three keys, one of
// them revoked, and returns the org and the keys in force.
func (c caller) furnished(base, jurisdiction string) (org string, keys []string) {
	c.t.Helper()
	org, web := c.account(base, jurisdiction)
	batch := c.want(201, "POST", base+"/orgs/"+org+"/projects", `{"name":"nightly","class":"batch","cross_provider":true}`).str("id")
	c.want(201, "POST", base+"/orgs/"+org+"/policies", `{"no_retention":true}`)
	c.want(201, "POST", base+"/orgs/"+org+"/policies", `{"project":"`+batch+`","models":["small"]}`)
	for i, project := range []string{web, batch, web} {
		k := c.want(201, "POST", base+"/projects/"+project+"/keys", fmt.Sprintf(`{"name":"key-%d","expires":"2099-01-01T00:00:00Z"}`, i))
		if i == 2 {
			c.want(200, "POST", base+"/keys/"+k.str("id")+"/revoke", "")
		} else {
			keys = append(keys, k.str("id"))
		}
	}
	return org, keys
}

// told is an org with all that is below it, without ids.
func told(kit *controlkit.Cluster, region, org string) string {
	var out []string
	kit.Region(region).Nodes[0].View(func(s *ledger.State) {
		o, ok := s.Get(registry.KindOrg, org)
		if !ok {
			return
		}
		out = append(out, fmt.Sprintf("org %s %s %s", o.Org.Name, o.Org.Plan, o.Org.State))
		names := map[string]string{}
		for _, p := range s.ProjectsOf(org, "", 0) {
			names[p.Meta.ID] = p.Project.Name
			out = append(out, fmt.Sprintf("project %s %s %v", p.Project.Name, p.Project.Class, p.Project.CrossProvider))
			for _, k := range s.KeysOf(p.Meta.ID, "", 0) {
				if k.Key.Revoked == 0 {
					out = append(out, fmt.Sprintf("key %s of %s, %s, to %d", k.Key.Name, p.Project.Name, k.Key.Class, k.Key.Expires))
				}
			}
		}
		for _, p := range s.PoliciesOf(org, "", 0) {
			out = append(out, fmt.Sprintf("policy of %q %s %v %v %v", names[p.Policy.Project], p.Policy.Residency, p.Policy.NoRetention, p.Policy.Models, p.Policy.Dedicated))
		}
	})
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func TestAnOrgIsPinned(t *testing.T) {
	call, kit, world, logs := pinCluster(t)
	us := call.base(kit, "us-east")
	org, keys := call.furnished(us, "any")
	before := told(kit, "us-east", org)

	// What cannot be is refused before anything is tightened.
	for _, tc := range []struct{ body, says string }{
		{`{}`, "Name the jurisdiction"},
		{`{"to":"any"}`, "already"},
		{`{"to":"apac"}`, "No region"},
		{`{"to":"EU"}`, "lowercase"},
	} {
		if r := call.do("POST", us+"/orgs/"+org+"/pin", tc.body); r.status/100 != 4 || !strings.Contains(r.text, tc.says) {
			t.Errorf("%s: %d %s, want %q", tc.body, r.status, r.text, tc.says)
		}
	}
	call.want(404, "GET", us+"/orgs/"+org+"/pin", "")
	policy := call.want(201, "POST", us+"/orgs/"+org+"/projects", `{"name":"abroad"}`).str("id")
	abroad := call.want(201, "POST", us+"/orgs/"+org+"/policies", `{"project":"`+policy+`","residency":"us"}`).str("id")
	if r := call.want(422, "POST", us+"/orgs/"+org+"/pin", `{"to":"eu"}`); !strings.Contains(r.text, "contradicts") {
		t.Errorf("a policy that contradicts the pin: %s", r.text)
	}
	call.want(200, "DELETE", us+"/policies/"+abroad, "")
	call.want(200, "DELETE", us+"/projects/"+policy, "")

	// Begun and copied, whoever is asked: here a region that may not hold the new org.
	r := call.want(200, "POST", us+"/orgs/"+org+"/pin", `{"to":"eu"}`)
	to := r.str("successor")
	if r.str("phase") != api.PinCopied || !strings.HasPrefix(to, "org_eu_") || r.json["survives_region_loss"] != true {
		t.Fatalf("begun: %s", r.text)
	}
	for _, region := range kit.Regions {
		region.Nodes[0].View(func(s *ledger.State) {
			if _, ok := s.Revoked(registry.KindPin, registry.PinID(org, "eu")); !ok {
				t.Errorf("%s: the pin is not in the safety set", region.Name)
			}
			if _, ok := s.Get(registry.KindOrg, to); ok != strings.HasPrefix(region.Name, "eu-") {
				t.Errorf("%s holds the new org: %v", region.Name, ok)
			}
		})
	}

	// Frozen, but for revocations.
	for _, write := range [][2]string{
		{"PUT /orgs/" + org, `{"name":"other","plan":"enterprise","state":"verified"}`},
		{"POST /orgs/" + org + "/projects", `{"name":"late"}`},
		{"POST /keys/" + keys[0] + "/rotate", ``},
		{"DELETE /orgs/" + org, ``},
	} {
		method, path, _ := strings.Cut(write[0], " ")
		if r := call.want(409, method, us+path, write[1]); !strings.Contains(r.text, "being changed") {
			t.Errorf("%s: %s", write[0], r.text)
		}
	}
	// The new org is managed as any other.
	extra := call.want(201, "POST", us+"/orgs/"+to+"/projects", `{"name":"extra"}`).str("id")
	call.want(200, "DELETE", us+"/projects/"+extra, "")

	// New keys, each shown once.
	for i, old := range keys {
		once := fmt.Sprintf("Idempotency-Key: 0123456789abcdef%d", i)
		first := call.want(201, "POST", us+"/keys/"+old+"/reissue", "", once)
		parsed, err := apikey.Parse(first.str("key"))
		if err != nil || parsed.Jurisdiction != "eu" || parsed.RecordID() != first.str("id") {
			t.Fatalf("reissued %v: %s", err, first.text)
		}
		again := call.want(201, "POST", us+"/keys/"+old+"/reissue", "", once)
		if again.str("key") != first.str("key") || again.header.Get(api.HeaderReplayed) != "true" {
			t.Errorf("a repetition shows another key: %s", again.text)
		}
		if r := call.want(409, "POST", us+"/keys/"+old+"/reissue", ""); !strings.Contains(r.text, first.str("id")) {
			t.Errorf("a second key for one: %s", r.text)
		}
		if i == 0 {
			if r := call.want(409, "POST", us+"/orgs/"+org+"/pin", `{"finish":true}`); r.str("code") != api.CodeCount || !strings.Contains(r.text, "1 keys") {
				t.Errorf("finished with a key that has no successor: %s", r.text)
			}
		}
	}
	if after := told(kit, "eu-ams", to); after != before {
		t.Errorf("copied:\n%s\nwas:\n%s", after, before)
	}

	// Pending as long as anybody may still take an old key.
	pending := func(field, who string) {
		t.Helper()
		r := call.want(200, "POST", us+"/orgs/"+org+"/pin", `{"finish":true}`)
		held, _ := r.json["held"].(map[string]any)
		if r.str("phase") != api.PinRetired || names(held[field]) != who || r.json["in_force"] != nil {
			t.Errorf("pending for %s %s: %s", field, who, r.text)
		}
		r = call.want(200, "GET", us+"/orgs/"+to+"/pin", "")
		if held, _ = r.json["held"].(map[string]any); r.str("phase") != api.PinRetired || names(held[field]) != who {
			t.Errorf("status pending for %s %s: %s", field, who, r.text)
		}
	}
	world.say(func() { world.stuck["us-east"] = world.position("us-east") })
	pending("data_nodes_missing", "us-east-d1")
	world.say(func() { delete(world.stuck, "us-east"); world.dead["eu-ams"] = true })
	pending("data_nodes_unknown", "eu-ams-d1")
	world.say(func() { world.dead["eu-ams"] = false; world.absent["eu-ams"] = true })
	pending("regions_unknown", "eu-ams")
	world.say(func() { world.absent["eu-ams"] = false })

	r = call.want(200, "POST", us+"/orgs/"+org+"/pin", `{"finish":true}`)
	if r.str("phase") != api.PinErased || r.str("in_force") == "" {
		t.Fatalf("finished: %s", r.text)
	}
	call.want(404, "GET", us+"/orgs/"+org, "")
	if r = call.want(200, "GET", us+"/orgs/"+to+"/pin", ""); r.str("phase") != api.PinErased || r.str("in_force") == "" || r.str("org") != org {
		t.Errorf("status at the end: %s", r.text)
	}
	for _, region := range kit.Regions {
		region.Nodes[0].View(func(s *ledger.State) {
			for kind := registry.KindOrg; kind <= registry.KindRelocation; kind++ {
				for _, r := range s.List(kind, "", 0, nil) {
					if strings.Contains(r.Meta.ID, "_any_") {
						t.Errorf("%s still holds %s", region.Name, r.Meta.ID)
					}
				}
			}
		})
	}
	if log := logs.String(); !strings.Contains(log, "org_pin_in_force") || !strings.Contains(log, "org_pin_erased") {
		t.Error("the auditors were not told")
	}

	// The way back: loosened into the shard of a region in the EU, and no id comes back.
	if r := call.want(422, "POST", us+"/orgs/"+to+"/pin", `{"to":"us"}`); !strings.Contains(r.text, "Change it to any first") {
		t.Errorf("one pin for another: %s", r.text)
	}
	if r := call.do("POST", us+"/orgs/"+to+"/pin", `{"to":"any","region":"us-east"}`); r.status/100 != 4 {
		t.Errorf("loosened into a region outside: %d %s", r.status, r.text)
	}
	if sleep := time.Until(time.Now().Truncate(time.Second).Add(time.Second)); sleep > 0 {
		time.Sleep(sleep) // ids carry the second
	}
	r = call.want(200, "POST", us+"/orgs/"+to+"/pin", `{"to":"any"}`)
	back := r.str("successor")
	if r.str("phase") != api.PinCopied || back == org || !strings.HasPrefix(back, "org_any_") {
		t.Fatalf("loosened: %s", r.text)
	}
	list, _ := r.json["keys"].([]any)
	r = call.want(200, "POST", us+"/orgs/"+to+"/pin", fmt.Sprintf(`{"finish":true,"without":%d}`, len(list)))
	if r.str("phase") != api.PinErased || len(list) != 2 {
		t.Fatalf("loosened at the end, with %d keys: %s", len(list), r.text)
	}
	call.want(404, "GET", us+"/orgs/"+to, "")
	call.want(200, "GET", us+"/orgs/"+back, "")
	r = call.want(200, "GET", us+"/orgs/"+back+"/projects", "")
	for _, p := range r.items() {
		for _, q := range call.want(200, "GET", us+"/orgs/"+back+"/policies", "").items() {
			call.want(200, "DELETE", us+"/policies/"+q["id"].(string), "")
		}
		call.want(200, "DELETE", us+"/projects/"+p["id"].(string), "")
	}
	call.want(200, "DELETE", us+"/orgs/"+back, "")
}

// Every commit of a change fails in turn, before and after it was made; the
// operator repeats the request, at another node, and it comes to the same end.
func TestAChangeOfPinGoesOnAfterEveryFailure(t *testing.T) {
	call, kit, _, _ := pinCluster(t)
	us, eu := call.base(kit, "us-east"), call.base(kit, "eu-ams")
	want := ""
	for fail, after := 1, false; ; {
		org, project := call.account(us, "any")
		call.want(201, "POST", us+"/orgs/"+org+"/policies", `{"project":"`+project+`","models":["small"]}`)
		key := registry.NewID("key", "any", time.Now(), rand.Reader) // its hash is no hash, which spares making one
		if _, err := kit.Region("us-east").Nodes[0].Propose(t.Context(), "any-us-east", []registry.Change{{Op: registry.OpPut, Record: &registry.Record{
			Kind: registry.KindKey, Meta: registry.Meta{ID: key, Shard: "any-us-east", Created: 1, Updated: 1},
			Key: &registry.Key{Project: project, Name: "only", Class: "live", Hash: []byte("none"), Hint: key[len(key)-4:]},
		}}}); err != nil {
			t.Fatal(err)
		}
		n, failed := 0, false
		var mu sync.Mutex
		kit.Broken = func(_ string, done bool) error {
			mu.Lock()
			defer mu.Unlock()
			if !done {
				n++
			}
			if n != fail || done != after || failed {
				return nil
			}
			failed = true
			if done {
				return controlplane.ErrUncertain
			}
			return controlplane.ErrOverloaded
		}
		persist := func(method, path, body string, headers ...string) reply {
			t.Helper()
			for try, base := range []string{us, eu, us} {
				r := call.do(method, base+path, body, headers...)
				if r.status/100 == 2 {
					return r
				}
				if try == 2 || r.status != 503 {
					t.Fatalf("failing at %d (after %v): %s %s: %d %s", fail, after, method, path, r.status, r.text)
				}
			}
			return reply{}
		}
		to := persist("POST", "/orgs/"+org+"/pin", `{"to":"eu"}`).str("successor")
		if r := persist("POST", "/orgs/"+to+"/pin", `{"finish":true,"without":1}`); r.str("phase") != api.PinErased {
			t.Fatalf("failing at %d (after %v): %s", fail, after, r.text)
		}
		kit.Broken = nil
		got := told(kit, "eu-fra", to)
		if want == "" {
			want = got
		}
		if got != want || strings.Count(got, "project ") != 1 {
			t.Fatalf("failing at %d (after %v):\n%s\nwant:\n%s", fail, after, got, want)
		}
		call.want(404, "GET", us+"/orgs/"+org, "")
		if !failed {
			if fail < 8 {
				t.Errorf("a change makes %d commits only", fail-1)
			}
			return
		}
		if after {
			fail++
		}
		after = !after
	}
}

// Two operators at once: before and after each commit of the one's request, the
// other makes the same, at another node and to its end. Nobody is told of a
// fault, and it comes to the same end.
func TestTwoChangeAPinAtOnce(t *testing.T) {
	call, kit, _, _ := pinCluster(t)
	us, eu := call.base(kit, "us-east"), call.base(kit, "eu-ams")
	for meet, after := 1, false; ; {
		org, project := call.account(us, "any")
		key := registry.NewID("key", "any", time.Now(), rand.Reader)
		if _, err := kit.Region("us-east").Nodes[0].Propose(t.Context(), "any-us-east", []registry.Change{{Op: registry.OpPut, Record: &registry.Record{
			Kind: registry.KindKey, Meta: registry.Meta{ID: key, Shard: "any-us-east", Created: 1, Updated: 1},
			Key: &registry.Key{Project: project, Name: "only", Class: "live", Hash: []byte("none"), Hint: key[len(key)-4:]},
		}}}); err != nil {
			t.Fatal(err)
		}
		n, met, path, body := 0, false, "", ""
		var mu sync.Mutex
		kit.Broken = func(_ string, done bool) error {
			mu.Lock()
			if !done {
				n++
			}
			now := n == meet && done == after && !met
			met = met || now
			mu.Unlock()
			if now {
				if r := call.do("POST", eu+path, body); r.status != 200 {
					t.Errorf("the other, at %d (after %v): %s %s: %d %s", meet, after, path, body, r.status, r.text)
				}
			}
			return nil
		}
		ask := func(p, b string) reply {
			t.Helper()
			path, body = p, b
			r := call.do("POST", us+p, b)
			if r.status == 409 || r.status == 404 { // the other was faster: as it stands now
				r = call.do("GET", us+p, "")
			}
			if r.status != 200 {
				t.Fatalf("at %d (after %v): %s %s: %d %s", meet, after, p, b, r.status, r.text)
			}
			return r
		}
		to := ask("/orgs/"+org+"/pin", `{"to":"eu"}`).str("successor")
		if r := ask("/orgs/"+to+"/pin", `{"finish":true,"without":1}`); r.str("phase") != api.PinErased {
			t.Fatalf("at %d (after %v): %s", meet, after, r.text)
		}
		kit.Broken = nil
		call.want(404, "GET", us+"/orgs/"+org, "")
		if !met {
			return
		}
		if after {
			meet++
		}
		after = !after
	}
}

// An org whose old records are not erased yet is not pinned elsewhere, by a
// region that cannot see them either.
func TestOneChangeAfterTheOther(t *testing.T) {
	call, kit, _, _ := pinCluster(t)
	us, eu := call.base(kit, "us-east"), call.base(kit, "eu-fra")
	org := call.want(201, "POST", eu+"/orgs", `{"name":"Acme","plan":"enterprise","state":"verified","jurisdiction":"eu"}`).str("id")
	to := call.want(200, "POST", eu+"/orgs/"+org+"/pin", `{"to":"any","region":"eu-fra"}`).str("successor")
	kit.Broken = func(string, bool) (err error) {
		kit.Region("eu-fra").Nodes[0].View(func(s *ledger.State) {
			if r, ok := s.Relocation(to); ok && r.Relocation.InForce != 0 {
				err = controlplane.ErrOverloaded
			}
		})
		return err
	}
	call.want(503, "POST", eu+"/orgs/"+to+"/pin", `{"finish":true}`)
	kit.Broken = nil
	if r := call.do("POST", us+"/orgs/"+to+"/pin", `{"to":"us"}`); r.status != 409 || !strings.Contains(r.text, "finish it first") {
		t.Errorf("%s is not erased: %d %s", org, r.status, r.text)
	}
	if r := call.want(200, "POST", eu+"/orgs/"+org+"/pin", `{"finish":true}`); r.str("phase") != api.PinErased {
		t.Errorf("finished: %s", r.text)
	}
	if r := call.want(200, "POST", us+"/orgs/"+to+"/pin", `{"to":"us"}`); r.str("phase") != api.PinCopied {
		t.Errorf("and pinned elsewhere: %s", r.text)
	}
}

// A region that is not upgraded begins no change, and nothing is tightened.
func TestNoChangeOfPinBeforeTheClusterVersion(t *testing.T) {
	c := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us", "eu-fra:eu"})
	call := caller{t, c.Client()}
	us := call.base(c, "us-east")
	org, _ := call.account(us, "any")
	if r := call.want(409, "POST", us+"/orgs/"+org+"/pin", `{"to":"eu"}`); !strings.Contains(r.text, "upgrade") {
		t.Errorf("at version 1: %s", r.text)
	}
	var body struct{ Roaming bool }
	if err := json.Unmarshal([]byte(call.want(200, "PUT", us+"/orgs/"+org, `{"name":"Acme","plan":"enterprise","state":"verified","roaming":true}`).text), &body); err != nil || !body.Roaming {
		t.Error("the org cannot be changed any more")
	}
}
