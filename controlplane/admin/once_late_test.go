package admin_test

import (
	"testing"
	"time"

	"ringmain/controlplane/admin"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/controlkit"
	"ringmain/internal/testkit/logkit"
)

// A repeated rotation must not undo a later one.
func TestLateRepetitionOfARotation(t *testing.T) {
	c, base, cluster, _ := one(t)
	_, project := c.account(base, "any")
	key := base + "/keys/" + c.want(201, "POST", base+"/projects/"+project+"/keys", `{"name":"ci"}`).str("id")
	c.want(200, "POST", key+"/rotate", "", again)
	later := c.want(200, "POST", key+"/rotate", "", again+"-2")
	if r := c.do("POST", key+"/rotate", "", again); r.status != 409 || r.str("key") != "" {
		t.Errorf("%d %s", r.status, r.text)
	}
	rec := record(cluster.Regions[0].Nodes[0], registry.KindKey, later.str("id"))
	if err := apikey.Match(rec.Key.Hash, later.str("key")); err != nil {
		t.Errorf("the later secret is not the key's any more: %v", err)
	}
}

// The node that repeats it has a clock that is behind, just before a new window
// of ten minutes.
func TestRotationRepeatedByAClockBehind(t *testing.T) {
	edge := time.Now().Truncate(10 * time.Minute).Add(time.Hour)
	cluster := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us:2"}, func(cfg *admin.Config) {
		clock := edge.Add(5 * time.Second)
		if cfg.Node == "us-east-c2" {
			clock = edge.Add(-5 * time.Second)
		}
		cfg.Now = func() time.Time { return clock }
		for i := range cfg.Tokens {
			cfg.Tokens[i].Expires = edge.Add(time.Hour)
		}
	})
	c := caller{t, cluster.Client()}
	region := cluster.Regions[0]
	base := region.Nodes[0].URL + "/admin/v1"
	region.Lead(region.Nodes[0])
	_, project := c.account(base, "any")
	key := base + "/keys/" + c.want(201, "POST", base+"/projects/"+project+"/keys", `{"name":"ci"}`).str("id")
	first := c.want(200, "POST", key+"/rotate", "", again)
	region.Lead(region.Nodes[1])
	if second := c.want(200, "POST", key+"/rotate", "", again); second.str("key") != first.str("key") {
		t.Error("rotated twice")
	}
}
