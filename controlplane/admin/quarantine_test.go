package admin_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/controlkit"
	"ringmain/internal/testkit/logkit"
)

// replayer is a control node of another region with entries in quarantine.
type replayer struct {
	caller
	url    string
	shard  controlplane.Shard
	branch controlplane.Point // where its history left the home's
	seq    uint64
}

func replays(t *testing.T, c *controlkit.Cluster, from string, node *controlkit.Node, shard controlplane.Shard) *replayer {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: c.Bundle(from, identity.RoleControl, "x1").Client([]string{"h2"}, identity.AllowControl("")), ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	q := &replayer{caller: caller{t, &http.Client{Transport: tr}}, shard: shard,
		url: "https://" + node.Internal + api.InternalPrefix + "/admin/v1/shards/" + string(shard) + "/replayed"}
	node.View(func(s *ledger.State) {
		info, _ := s.Shard(shard)
		q.branch = info.Last
	})
	q.seq = q.branch.Seq
	return q
}

// replay sends the next entry of the history that lost.
func (q *replayer) replay(seen []map[string]any, changes ...registry.Change) reply {
	q.t.Helper()
	q.seq++
	b, err := registry.EncodeEntry(&registry.Entry{Shard: q.shard, Epoch: q.branch.Epoch, Seq: q.seq, Prev: q.branch.Epoch, Changes: changes})
	if err != nil {
		q.t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"entry": b, "branch": q.branch.Seq, "seen": seen})
	if err != nil {
		q.t.Fatal(err)
	}
	return q.do("POST", q.url, string(body), "Ringmain-Actor: somebody", "Ringmain-Entry: eu-fra/x1", "Authorization: ")
}

func TestReplayOverwritesNothing(t *testing.T) {
	others := &otherRegions{}
	c := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us", "eu-fra:eu"}, withOthers(others))
	call, node := caller{t, c.Client()}, c.Regions[0].Nodes[0]
	base := node.URL + "/admin/v1"
	var names = []string{"kept", "changed", "gone", "fresh"}
	ids := map[string]string{}
	for _, n := range names {
		ids[n] = call.want(201, "POST", base+"/orgs", `{"name":"`+n+`"}`).str("id")
	}
	q := replays(t, c, "eu-fra", node, "any-us-east")
	before := map[string]*registry.Record{}
	for _, n := range names {
		before[n] = record(node, registry.KindOrg, ids[n])
	}
	// What the home that won did since.
	call.want(200, "PUT", base+"/orgs/"+ids["changed"], `{"name":"changed since"}`)
	call.want(200, "DELETE", base+"/orgs/"+ids["gone"], "")

	put := func(n, name string) registry.Change {
		r := *before[n]
		org := *r.Org
		org.Name = name
		r.Org = &org
		return registry.Change{Op: registry.OpPut, Record: &r, IfRevision: r.Meta.Revision}
	}
	remove := func(n string) registry.Change {
		return registry.Change{Op: registry.OpDelete, Kind: registry.KindOrg, ID: ids[n]}
	}
	exists := func(n string) bool { return call.do("GET", base+"/orgs/"+ids[n], "").status == 200 }

	if r := q.replay(nil, remove("changed")); r.status != 409 || !exists("changed") {
		t.Errorf("a deletion of what was changed since: %d %s", r.status, r.text)
	}
	if r := q.replay(nil, put("changed", "from quarantine")); r.status != 409 {
		t.Errorf("a change of what was changed since: %d %s", r.status, r.text)
	}
	if r := q.replay(nil, put("gone", "back")); r.status != 409 || exists("gone") {
		t.Errorf("a change of what was deleted since: %d %s", r.status, r.text)
	}
	if r := q.replay(nil, put("kept", "from quarantine")); r.status != 200 || record(node, registry.KindOrg, ids["kept"]).Org.Name != "from quarantine" {
		t.Errorf("a change of what nobody else touched: %d %s", r.status, r.text)
	}
	first := q.replay(nil, put("fresh", "one"))
	if r := q.replay(nil, put("fresh", "two")); r.status != 409 {
		t.Errorf("a second change, by a region that did not see the first replayed: %d %s", r.status, r.text)
	}
	if r := q.replay([]map[string]any{{"id": ids["fresh"], "revision": first.json["revision"]}}, put("fresh", "two")); r.status != 200 || record(node, registry.KindOrg, ids["fresh"]).Org.Name != "two" {
		t.Errorf("a second change of the same replay: %d %s", r.status, r.text)
	}
	if r := q.replay(nil, remove("gone")); r.status != 200 || r.str("outcome") != "already there" {
		t.Errorf("a deletion of what is gone: %d %s", r.status, r.text)
	}
}

// Until the replay is confirmed the quarantine has the only copy that a loss of
// the home leaves.
func TestReplayIsDoneOnceItIsConfirmed(t *testing.T) {
	others := &otherRegions{}
	c := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us", "eu-fra:eu"}, withOthers(others))
	node := c.Regions[0].Nodes[0]
	q := replays(t, c, "eu-fra", node, "any-us-east")
	id := registry.NewID(registry.KindOrg.Prefix(), "any", time.Now(), strings.NewReader(strings.Repeat("0123456789abcdef", 8)))
	create := registry.Change{Op: registry.OpPut, IfRevision: registry.RevisionAbsent, Record: &registry.Record{
		Kind: registry.KindOrg, Meta: registry.Meta{ID: id, Shard: "any-us-east", Created: 1, Updated: 1},
		Org: &registry.Org{Name: "x", Plan: "trial", State: "unverified", Jurisdiction: "any"},
	}}
	others.cut = true
	for range 2 {
		if r := q.replay(nil, create); r.status != 503 || r.str("code") != "uncertain" {
			t.Errorf("not confirmed: %d %s", r.status, r.text)
		}
	}
	others.cut = false
	if r := q.replay(nil, create); r.status != 200 || r.str("outcome") != "already there" {
		t.Errorf("confirmed: %d %s", r.status, r.text)
	}
	if r := q.replay(nil, registry.Change{Op: registry.OpPut}); r.status != 422 {
		t.Errorf("no record in a put: %d %s", r.status, r.text)
	}
}
