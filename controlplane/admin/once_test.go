package admin_test

import (
	"strings"
	"testing"
	"time"

	"ringmain/controlplane/admin"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/controlkit"
	"ringmain/internal/testkit/logkit"
)

const again = "Idempotency-Key: 6f1ee9e0-8d83-4c4e-9f43-0d1d4f6f3a11"

func TestRepetitionHasTheSameOutcome(t *testing.T) {
	c, base, cluster, logs := one(t)
	node := cluster.Regions[0].Nodes[0]
	_, project := c.account(base, "any")
	url := base + "/projects/" + project + "/keys"
	first := c.want(201, "POST", url, `{"name":"ci"}`, again)
	if first.header.Get("Ringmain-Replayed") != "" {
		t.Error("the first request is no repetition")
	}
	second := c.want(201, "POST", url, `{"name":"ci"}`, again)
	if second.str("key") != first.str("key") || second.str("id") != first.str("id") || second.header.Get("Ringmain-Replayed") != "true" {
		t.Errorf("first %s\nagain %s %v", first.text, second.text, second.header)
	}
	if n := len(c.want(200, "GET", url, "").items()); n != 1 {
		t.Errorf("%d keys after one request, sent twice", n)
	}
	if err := apikey.Match(record(node, registry.KindKey, first.str("id")).Key.Hash, second.str("key")); err != nil {
		t.Errorf("the secret shown again is not the key's: %v", err)
	}
	other := c.want(201, "POST", url, `{"name":"ci"}`, again+"x")
	if other.str("id") == first.str("id") || other.str("key") == first.str("key") {
		t.Error("another Idempotency-Key is another request")
	}
	if r := c.want(422, "POST", url, `{"name":"else"}`, again); r.str("code") != "idempotency_reused" {
		t.Errorf("another body under the same key: %s", r.text)
	}
	for _, bad := range []string{"short", strings.Repeat("x", 129), "sixteen chars and a space"} {
		if r := c.want(400, "POST", url, `{"name":"ci"}`, "Idempotency-Key: "+bad); r.str("code") != "invalid_header" {
			t.Errorf("%q: %s", bad, r.text)
		}
	}
	if text := logs.String(); strings.Contains(text, "6f1ee9e0") || strings.Contains(text, first.str("key")) || !strings.Contains(text, "key_shown_again") {
		t.Errorf("the log must tell of the repetition, and neither key nor secret:\n%s", text)
	}

	key := base + "/keys/" + first.str("id")
	rotated := c.want(200, "POST", key+"/rotate", "", again)
	once := record(node, registry.KindKey, first.str("id")).Meta.Revision
	if r := c.want(200, "POST", key+"/rotate", "", again); r.str("key") != rotated.str("key") || r.header.Get("Ringmain-Replayed") != "true" {
		t.Errorf("rotated %s, again %s", rotated.text, r.text)
	}
	if now := record(node, registry.KindKey, first.str("id")).Meta.Revision; now != once {
		t.Errorf("a repeated rotation wrote again: revision %d, then %d", once, now)
	}
	c.want(409, "POST", url, `{"name":"ci"}`, again) // its first secret is gone

	for path, body := range map[string]string{
		"/orgs":                          `{"name":"Beta"}`,
		"/projects/" + project + "/keys": `{"name":"twin"}`,
		"/upstreams":                     upstream("twin", "us-east", `"auth":"bearer","credential":"sk-x",`),
	} {
		x, y := c.want(201, "POST", base+path, body, again+"-2"), c.want(201, "POST", base+path, body, again+"-2")
		if x.str("id") != y.str("id") || x.header.Get("Etag") != y.header.Get("Etag") {
			t.Errorf("%s: %s\n%s", path, x.text, y.text)
		}
	}
}

// Another node leads by then, and its clock is not quite the same.
func TestRepetitionAfterAChangeOfLeader(t *testing.T) {
	now := time.Now()
	for _, drift := range []time.Duration{-20 * time.Second, 0, 9 * time.Minute} {
		logs := &logkit.Buffer{}
		cluster := controlkit.Start(t, logs, []string{"us-east:us:2"}, func(cfg *admin.Config) {
			clock := now
			if cfg.Node == "us-east-c2" {
				clock = now.Add(drift)
			}
			cfg.Now = func() time.Time { return clock }
		})
		c := caller{t, cluster.Client()}
		region := cluster.Regions[0]
		base := region.Nodes[0].URL + "/admin/v1"
		region.Lead(region.Nodes[0])
		_, project := c.account(base, "any")
		first := c.want(201, "POST", base+"/projects/"+project+"/keys", `{"name":"ci"}`, again)
		region.Lead(region.Nodes[1])
		second := c.want(201, "POST", base+"/projects/"+project+"/keys", `{"name":"ci"}`, again)
		if first.str("key") != second.str("key") || second.header.Get("Ringmain-Replayed") != "true" {
			t.Errorf("%v later: %s\n%s", drift, first.text, second.text)
		}
	}
}

// Two at once, and one whose first answer was lost before the commit was known.
func TestRepetitionsAtOnce(t *testing.T) {
	c, base, _, _ := one(t)
	_, project := c.account(base, "any")
	url := base + "/projects/" + project + "/keys"
	answers := make(chan reply, 8)
	for range cap(answers) {
		go func() {
			var r reply
			defer func() { answers <- r }() // also where do ends the goroutine
			r = c.do("POST", url, `{"name":"ci"}`, again)
		}()
	}
	secrets := map[string]bool{}
	for range cap(answers) {
		r := <-answers
		if r.status != 201 {
			t.Fatalf("%d %s", r.status, r.text)
		}
		secrets[r.str("key")] = true
	}
	if n := len(c.want(200, "GET", url, "").items()); len(secrets) != 1 || n != 1 {
		t.Errorf("%d secrets shown and %d keys made by one request, sent 8 times at once", len(secrets), n)
	}
}
