package admin_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/clockkit"
	"ringmain/internal/testkit/controlkit"
	"ringmain/internal/testkit/logkit"
)

// three regions; us-east is home of global, and the second node of us-east and
// eu-fra leads, so that the first address asked is never the right one.
func three(t *testing.T) (caller, *controlkit.Cluster, *logkit.Buffer) {
	t.Helper()
	logs := &logkit.Buffer{}
	c := controlkit.Start(t, logs, []string{"us-east:us:2", "eu-fra:eu:2", "ap-sg:apac:1"})
	for _, r := range c.Regions[:2] {
		r.Lead(r.Nodes[1])
	}
	return caller{t, c.Client()}, c, logs
}

func base(n *controlkit.Node) string { return n.URL + "/admin/v1" }

func TestEveryNodeAnswersEveryWrite(t *testing.T) {
	c, cluster, _ := three(t)
	for _, r := range cluster.Regions {
		r.Lag = 30 * time.Millisecond // a write elsewhere is not here at once
	}
	for _, r := range cluster.Regions {
		for _, n := range r.Nodes {
			// Unpinned: the shard of the region asked, whichever node of it that is.
			org := c.want(201, "POST", base(n)+"/orgs", `{"name":"Acme","state":"verified"}`)
			if org.str("shard") != "any-"+r.Name || org.header.Get(api.HeaderVisible) != "here" {
				t.Errorf("%s: shard %s, visible %s", n.Name, org.str("shard"), org.header.Get(api.HeaderVisible))
			}
			// Global: written in us-east, and then to be read here.
			name := "u-" + n.Name
			ups := c.want(201, "POST", base(n)+"/upstreams", upstream(name, r.Name, `"auth":"none",`))
			if !strings.HasPrefix(ups.header.Get(api.HeaderPosition), "global=1/us-east.") || ups.header.Get(api.HeaderVisible) != "here" ||
				ups.header.Get(api.HeaderAnswered) != "us-east/us-east-c2" {
				t.Errorf("%s: %v", n.Name, ups.header)
			}
			read := c.want(200, "GET", base(n)+"/upstreams/"+name, "")
			if leader := r.Nodes[len(r.Nodes)-1].Name; read.header.Get(api.HeaderAnswered) != r.Name+"/"+leader {
				t.Errorf("%s: a read was answered by %s, want the region's leader", n.Name, read.header.Get(api.HeaderAnswered))
			}
			etag := read.header.Get("Etag")
			put := upstream(name, r.Name, `"auth":"none","disabled":true,`)
			c.want(200, "PUT", base(n)+"/upstreams/"+name, put, "If-Match: "+etag)
			if r := c.want(412, "PUT", base(n)+"/upstreams/"+name, put, "If-Match: "+etag); r.str("code") != "revision" {
				t.Errorf("%s: %s", n.Name, r.text)
			}
			if r := c.want(422, "POST", base(n)+"/upstreams", `{"labl":"x"}`); len(r.json["errors"].([]any)) < 2 {
				t.Errorf("%s: %s", n.Name, r.text)
			}
		}
	}
}

// A follower asks its leader, and answers itself if that one cannot.
func TestReadsOutliveTheLeader(t *testing.T) {
	c, cluster, _ := three(t)
	follower, leader := cluster.Regions[0].Nodes[0], cluster.Regions[0].Nodes[1]
	c.want(201, "POST", base(leader)+"/upstreams", upstream("u", "us-east", `"auth":"none",`))
	leader.Kill()
	for _, path := range []string{"/upstreams", "/upstreams/u", "/orgs"} {
		since := clockkit.Watch(t)
		r := c.want(200, "GET", base(follower)+path, "")
		if took := since(); r.header.Get(api.HeaderAnswered) != "us-east/us-east-c1" || took > 3*time.Second {
			t.Errorf("%s: answered by %s after %s", path, r.header.Get(api.HeaderAnswered), took)
		}
	}
}

func TestPinnedOrgsStayInTheirJurisdiction(t *testing.T) {
	c, cluster, logs := three(t)
	us, eu := cluster.Regions[0].Nodes[0], cluster.Regions[1].Nodes[0]
	org, project := c.account(base(us), "eu")
	if !strings.HasPrefix(org, "org_eu_") || !strings.HasPrefix(project, "prj_eu_") {
		t.Fatalf("ids %s %s", org, project)
	}
	key := c.want(201, "POST", base(us)+"/projects/"+project+"/keys", `{"name":"ci"}`)
	if !strings.HasPrefix(key.str("key"), "idc_live_eu_") || key.header.Get(api.HeaderVisible) != "home" {
		t.Errorf("key %s %v", key.str("id"), key.header)
	}
	c.want(200, "POST", base(us)+"/keys/"+key.str("id")+"/rotate", `{"grace_seconds":1}`)
	for _, n := range []*controlkit.Node{us, eu} {
		if r := c.want(200, "GET", base(n)+"/orgs/"+org, ""); r.str("name") != "Acme" || !strings.HasPrefix(r.header.Get(api.HeaderAnswered), "eu-fra/") {
			t.Errorf("read at %s: %s", n.Name, r.text)
		}
		if items := c.want(200, "GET", base(n)+"/orgs?jurisdiction=eu", "").items(); len(items) != 1 {
			t.Errorf("eu orgs listed at %s: %v", n.Name, items)
		}
		if items := c.want(200, "GET", base(n)+"/projects/"+project+"/keys", "").items(); len(items) != 1 {
			t.Errorf("keys listed at %s: %v", n.Name, items)
		}
	}
	if r := c.want(200, "GET", base(us)+"/orgs", ""); len(r.items()) != 0 || !strings.Contains(r.text, `"not_listed":["apac","eu"]`) {
		t.Errorf("list at us-east: %s", r.text)
	}
	us.View(func(s *ledger.State) {
		if _, held := s.Shard("eu"); held {
			t.Error("us-east holds the shard of eu")
		}
	})
	c.want(200, "POST", base(us)+"/keys/"+key.str("id")+"/revoke", "")
	c.want(404, "GET", base(us)+"/orgs/org_eu_0000000000000000", "")
	if r := c.want(422, "GET", base(us)+"/orgs?jurisdiction=moon", ""); r.str("field") != "jurisdiction" {
		t.Errorf("%s", r.text)
	}
	if !strings.Contains(logs.String(), `"fact":"key_created","actor":"tester","id":"`+key.str("id")) {
		t.Error("the auditors do not know who made the key")
	}
}

// frozen is a store whose copy never moves on, like a follower's that has not
// heard of a commit yet.
type frozen struct {
	admin.Store
	state *ledger.State
}

func (f *frozen) View(look func(*ledger.State)) { look(f.state) }

func TestFollowerBehindItsLeader(t *testing.T) {
	cluster := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us:2"}, func(cfg *admin.Config) {
		if cfg.Node == "us-east-c1" {
			f := &frozen{Store: cfg.Store}
			cfg.Store.View(func(s *ledger.State) { f.state = s.Clone() })
			cfg.Store = f
		}
	})
	c, us := caller{t, cluster.Client()}, cluster.Regions[0]
	us.Lead(us.Nodes[1])
	follower, leader := base(us.Nodes[0]), base(us.Nodes[1])
	org, project := c.account(leader, "any")
	c.want(201, "POST", leader+"/upstreams", upstream("one", "us-east", `"auth":"none",`))
	c.want(200, "GET", follower+"/orgs/"+org, "")
	c.want(200, "GET", follower+"/upstreams/one", "")
	c.want(200, "GET", follower+"/orgs/"+org+"/projects", "")
	c.want(201, "POST", follower+"/projects/"+project+"/keys", `{"name":"k","class":"test"}`)
	if items := c.want(200, "GET", follower+"/orgs?name=Acme", "").items(); len(items) != 1 {
		t.Errorf("by name: %v", items)
	}
	if r := c.want(404, "GET", follower+"/orgs/org_any_0000000000", ""); r.header.Get(api.HeaderAnswered) != "us-east/us-east-c2" {
		t.Errorf("%v", r.header)
	}
	us.Lead(nil)
	c.want(404, "GET", follower+"/orgs/"+org, "") // nobody to ask
	if items := c.want(200, "GET", follower+"/orgs", "").items(); len(items) != 0 {
		t.Errorf("all: %v", items)
	}
}

func TestRevocationIsPushedWhereItArrives(t *testing.T) {
	c, cluster, _ := three(t)
	us, eu := cluster.Regions[0].Nodes[0], cluster.Regions[1].Nodes[0]
	_, project := c.account(base(eu), "any")
	key := c.want(201, "POST", base(eu)+"/projects/"+project+"/keys", `{"name":"ci"}`)
	for _, n := range cluster.Regions[1].Nodes {
		n.Kill()
	}
	r := c.want(503, "POST", base(us)+"/keys/"+key.str("id")+"/revoke", "")
	if r.str("code") != "unreachable" || len(us.Revocations) != 1 || us.Revocations[0].ID != key.str("id") {
		t.Errorf("%s, pushed %v", r.text, us.Revocations)
	}
}

func TestElections(t *testing.T) {
	c, cluster, _ := three(t)
	us, follower := cluster.Regions[0], cluster.Regions[0].Nodes[0]
	c.want(201, "POST", base(follower)+"/orgs", `{"name":"a"}`) // connections are open now
	us.Nodes[1].Kill()
	elected := time.AfterFunc(200*time.Millisecond, func() { us.Lead(follower) })
	defer elected.Stop()
	for _, n := range []*controlkit.Node{cluster.Regions[1].Nodes[0], follower} {
		if r := c.want(201, "POST", base(n)+"/upstreams", upstream("u-"+n.Name, "us-east", `"auth":"none",`)); r.header.Get(api.HeaderAnswered) != "us-east/us-east-c1" {
			t.Errorf("asked %s: %v", n.Name, r.header)
		}
	}
	us.Lead(nil)
	began := time.Now()
	r := c.want(503, "POST", base(follower)+"/orgs", `{"name":"b"}`)
	if r.str("code") != "no_leader" || r.header.Get("Retry-After") != "1" || time.Since(began) < 2*time.Second {
		t.Errorf("without a leader, after %v: %s", time.Since(began), r.text)
	}
	c.want(200, "GET", base(follower)+"/orgs", "")
}

func TestUnreachableHome(t *testing.T) {
	c, cluster, _ := three(t)
	eu := cluster.Regions[1].Nodes[0]
	for _, n := range cluster.Regions[0].Nodes {
		n.Kill()
	}
	since := clockkit.Watch(t)
	r := c.want(503, "POST", base(eu)+"/routes", `{"model":"m","targets":[]}`)
	if took := since(); r.str("code") != "unreachable" || r.header.Get("Retry-After") != "1" || took > 2*time.Second {
		t.Errorf("after %v: %s", took, r.text)
	}
	c.want(201, "POST", base(eu)+"/orgs", `{"name":"still"}`)
	c.want(200, "GET", base(eu)+"/routes", "")
}

func TestUncertainWrites(t *testing.T) {
	c, cluster, _ := three(t)
	eu, leader := cluster.Regions[1].Nodes[0], cluster.Regions[0].Nodes[1]
	var proposals atomic.Int32
	cluster.Broken = func(_ string, after bool) error {
		if after {
			return controlplane.ErrUncertain
		}
		proposals.Add(1)
		return nil
	}
	if r := c.want(503, "POST", base(eu)+"/upstreams", upstream("one", "us-east", `"auth":"none",`)); r.str("code") != "uncertain" || !strings.Contains(r.text, "read the record") {
		t.Errorf("%s", r.text)
	}
	// The leader dies after it has committed and before it has answered.
	cluster.Broken = func(_ string, after bool) error {
		if after {
			leader.Kill()
		} else {
			proposals.Add(1)
		}
		return nil
	}
	if r := c.want(503, "POST", base(eu)+"/upstreams", upstream("two", "us-east", `"auth":"none",`)); r.str("code") != "uncertain" {
		t.Errorf("%s", r.text)
	}
	if n := proposals.Load(); n != 2 {
		t.Errorf("%d proposals: a write that may have happened was repeated", n)
	}
}

func TestSlowFeedIsAdmitted(t *testing.T) {
	c, cluster, _ := three(t)
	cluster.Regions[2].Lag = time.Hour
	sg := cluster.Regions[2].Nodes[0]
	if r := c.want(201, "POST", base(sg)+"/upstreams", upstream("one", "us-east", `"auth":"none",`)); r.header.Get(api.HeaderVisible) != "home" {
		t.Errorf("visible %q", r.header.Get(api.HeaderVisible))
	}
	cluster.Regions[2].Arrive()
	deadline := time.Now().Add(20 * time.Second)
	for c.do("GET", base(sg)+"/upstreams/one", "").status != 200 {
		if time.Now().After(deadline) {
			t.Fatal("the write never arrived")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestInternalListenerIsForControlNodes(t *testing.T) {
	c, cluster, _ := three(t)
	n := cluster.Regions[0].Nodes[1]
	url := "https://" + n.Internal + api.InternalPrefix + "/admin/v1/orgs"
	as := func(region, role string) caller {
		tr := &http.Transport{TLSClientConfig: cluster.Bundle(region, role, "x1").Client([]string{"h2"}, identity.AllowControl("")), ForceAttemptHTTP2: true}
		t.Cleanup(tr.CloseIdleConnections)
		return caller{t, &http.Client{Transport: tr}}
	}
	actor, entry := "Ringmain-Actor: somebody", "Ringmain-Entry: eu-fra/x1"
	if r := as("eu-fra", identity.RoleData).want(403, "GET", url, "", actor, entry); r.str("code") != "unauthorized" {
		t.Errorf("a data node: %s", r.text)
	}
	control := as("eu-fra", identity.RoleControl)
	control.want(200, "GET", url, "", actor, entry, "Authorization: ")
	control.want(400, "GET", url, "", entry)
	control.want(400, "GET", url, "", actor, "Ringmain-Entry: us-east/x1") // not where it comes from
	// It never sends further: it says whom to ask.
	other := "https://" + cluster.Regions[1].Nodes[0].Internal + api.InternalPrefix + "/admin/v1/upstreams"
	if r := control.want(421, "POST", other, upstream("one", "us-east", `"auth":"none",`), actor, entry); r.header.Get(api.HeaderHome) != "us-east" {
		t.Errorf("%v", r.header)
	}
	// Operators' tokens mean nothing here, and node certificates nothing there.
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: cluster.Roots, InsecureSkipVerify: true}}
	t.Cleanup(tr.CloseIdleConnections)
	if resp, err := (&http.Client{Transport: tr}).Get(url); err == nil {
		resp.Body.Close()
		t.Error("the internal listener spoke with somebody without a certificate")
	}
	c.want(404, "GET", n.URL+api.InternalPrefix+"/admin/v1/orgs", "")
}

func TestReadsSayWhatTheyAreWorth(t *testing.T) {
	c := controlkit.Start(t, io.Discard, []string{"us-east:us:2", "eu-fra:eu"})
	call := caller{t, c.Client()}
	us, eu := c.Regions[0], c.Regions[1]
	base := us.Nodes[0].URL + "/admin/v1"
	org, _ := call.account(base, "any")
	const fresh, stale = "Ringmain-Consistency: linearizable", "Ringmain-Consistency: stale"
	cases := []struct {
		name, url string
		head      []string
		status    int
		want      string
	}{
		{"the leader", base + "/orgs/" + org, nil, 200, "linearizable"},
		{"a follower asks its leader", us.Nodes[1].URL + "/admin/v1/orgs/" + org, nil, 200, "linearizable"},
		{"or does not", us.Nodes[1].URL + "/admin/v1/orgs/" + org, []string{stale}, 200, "stale"},
		{"another region has its own copy", eu.Nodes[0].URL + "/admin/v1/orgs/" + org, nil, 200, "region"},
		{"or asks the home", eu.Nodes[0].URL + "/admin/v1/orgs/" + org, []string{fresh}, 200, "linearizable"},
		{"a list of several shards", base + "/orgs", nil, 200, "region"},
		{"no such thing", base + "/orgs", []string{"Ringmain-Consistency: strong"}, 400, ""},
	}
	for _, tc := range cases {
		r := call.want(tc.status, "GET", tc.url, "", tc.head...)
		if got := r.header.Get("Ringmain-Consistency"); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		if age := r.header.Get("Ringmain-Age"); (age != "") != (tc.want == "stale") {
			t.Errorf("%s: age %q", tc.name, age)
		}
	}
	us.Lead(nil)
	if r := call.want(200, "GET", base+"/orgs/"+org, ""); r.header.Get("Ringmain-Consistency") != "stale" {
		t.Errorf("without a leader: %v", r.header)
	}
	call.want(503, "GET", base+"/orgs/"+org, "", fresh)
}

// A region that another one has taken the shard from may not know it yet.
func TestHomeVouchesForItselfOnlyWithTheOthersWord(t *testing.T) {
	others := &otherRegions{}
	c := controlkit.Start(t, io.Discard, []string{"us-east:us", "eu-fra:eu"}, withOthers(others))
	call := caller{t, c.Client()}
	for _, r := range c.Regions {
		r.Raise()
	}
	base := base(c.Regions[0].Nodes[0])
	org, _ := call.account(base, "any")
	const fresh = "Ringmain-Consistency: linearizable"
	if r := call.want(200, "GET", base+"/orgs/"+org, "", fresh); r.header.Get("Ringmain-Consistency") != "linearizable" {
		t.Errorf("%v", r.header)
	}
	if r := call.want(200, "GET", base+"/orgs/"+org, ""); r.header.Get("Ringmain-Consistency") != "region" {
		t.Errorf("without the others' word: %v", r.header)
	}
	pinned, _ := call.account(base, "us")
	others.cut = true
	if r := call.want(503, "GET", base+"/orgs/"+org, "", fresh); r.str("code") != "no_majority" {
		t.Errorf("%s", r.text)
	}
	if r := call.want(200, "GET", base+"/orgs/"+pinned, "", fresh); r.header.Get("Ringmain-Consistency") != "linearizable" {
		t.Errorf("nobody else holds the shard: %v", r.header)
	}
}

// One request to create an org, sent to two regions: two orgs at worst, never
// two of the same id.
func TestRepetitionThroughAnotherRegion(t *testing.T) {
	now := time.Now()
	c := controlkit.Start(t, io.Discard, []string{"us-east:us", "eu-fra:eu"}, func(cfg *admin.Config) {
		cfg.Now = func() time.Time { return now }
	})
	call := caller{t, c.Client()}
	us, eu := base(c.Regions[0].Nodes[0]), base(c.Regions[1].Nodes[0])
	c.Regions[1].Lag = 500 * time.Millisecond
	first := call.want(201, "POST", us+"/orgs", `{"name":"Acme"}`, again)
	if second := call.want(201, "POST", eu+"/orgs", `{"name":"Acme"}`, again); second.str("id") == first.str("id") && second.str("shard") != first.str("shard") {
		t.Errorf("%s is in two shards: %s and %s", first.str("id"), first.str("shard"), second.str("shard"))
	}
	first = call.want(201, "POST", us+"/orgs", `{"name":"Beta"}`, again+"-2")
	for {
		if n := len(call.want(200, "GET", eu+"/orgs?name=Beta", "").items()); n == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if second := call.want(201, "POST", eu+"/orgs", `{"name":"Beta"}`, again+"-2"); second.str("id") != first.str("id") || second.header.Get("Ringmain-Replayed") != "true" {
		t.Errorf("what has arrived here is found: %s, then %s", first.text, second.text)
	}
}
