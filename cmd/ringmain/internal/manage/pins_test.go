package manage_test

import (
	"encoding/json"
	"strings"
	"testing"

	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/apikey"
)

func TestAnOrgIsPinnedByCommands(t *testing.T) {
	c := start(t)
	for _, r := range c.cluster.Regions {
		r.Raise()
	}
	var org struct{ ID string }
	if err := json.Unmarshal([]byte(c.ok("org", "create", "Acme", "--state", "verified", "-o", "json")), &org); err != nil {
		t.Fatal(err)
	}
	c.ok("project", "create", "web", "--org", "Acme")
	old := strings.TrimSpace(c.ok("key", "create", "ci", "--project", "Acme/web"))
	parsed, err := apikey.Parse(old)
	if err != nil {
		t.Fatal(err)
	}
	_, stderr, status := c.run("org", "pin", "Acme", "--to", "us", "--cluster", c.path("cluster.json"))
	if status != 1 || !strings.Contains(stderr, "enterprise") {
		t.Errorf("a plan that cannot be pinned to us: %d %q", status, stderr)
	}
	stdout, stderr, status := c.run("org", "pin", "Acme", "--to", "eu", "--cluster", c.path("cluster.json"), "-o", "json")
	var rows []struct{ Old, New, Name, Project, Key string }
	if err := json.Unmarshal([]byte(stdout), &rows); err != nil || status != 0 || len(rows) != 1 {
		t.Fatalf("pinned: %d %v %q %q", status, err, stdout, stderr)
	}
	fresh, err := apikey.Parse(rows[0].Key)
	if err != nil || fresh.Jurisdiction != "eu" || fresh.RecordID() != rows[0].New || parsed.RecordID() != rows[0].Old || rows[0].Name != "ci" || !strings.HasPrefix(rows[0].Project, "prj_eu_") {
		t.Errorf("the new key: %v %+v", err, rows[0])
	}
	for _, says := range []string{"has one region", "one time", "--finish"} {
		if !strings.Contains(stderr, says) {
			t.Errorf("it does not say %q: %q", says, stderr)
		}
	}
	// Both bear the name now: the error says which ids there are.
	if _, stderr, status = c.run("org", "pin", "Acme", "--status", "--cluster", c.path("cluster.json")); status != 1 || !strings.Contains(stderr, org.ID) || !strings.Contains(stderr, "org_eu_") {
		t.Errorf("by name: %d %q", status, stderr)
	}
	// Repeated, it shows how far it is, and no secret.
	if out := c.ok("org", "pin", org.ID, "--to", "eu"); !strings.Contains(out, "copied") || strings.Contains(out, rows[0].Key) {
		t.Errorf("repeated:\n%s", out)
	}
	// This cluster has no gossip, so nobody is known to refuse the old key.
	stdout, stderr, status = c.run("org", "pin", org.ID, "--finish", "--wait", "0s", "--cluster", c.path("cluster.json"))
	if status != 1 || !strings.Contains(stdout, "pending") || !strings.Contains(stderr, "not in force yet") || !strings.Contains(stderr, "nothing is known: ") {
		t.Errorf("finished: %d %q %q", status, stdout, stderr)
	}
	if out := c.ok("key", "get", parsed.RecordID()); !strings.Contains(out, "revoked") {
		t.Errorf("the old key:\n%s", out)
	}
	if _, stderr, status = c.run("org", "pin", "nobody", "--status", "--cluster", c.path("cluster.json")); status != 1 || !strings.Contains(stderr, "not found") {
		t.Errorf("an org that is not: %d %q", status, stderr)
	}
}

// A large org's keys come by pages, and each gets its successor.
func TestEveryKeyOfALargeOrgIsReissued(t *testing.T) {
	c := start(t)
	for _, r := range c.cluster.Regions {
		r.Raise()
	}
	c.ok("org", "create", "Acme", "--state", "verified")
	c.ok("project", "create", "web", "--org", "Acme")
	client := c.client()
	org, err := client.OrgByName(t.Context(), "Acme")
	if err != nil {
		t.Fatal(err)
	}
	project, err := client.ProjectByName(t.Context(), org.ID, "web")
	if err != nil {
		t.Fatal(err)
	}
	const many = 130
	for range many {
		if _, err := client.CreateKey(t.Context(), project.ID, api.KeyInput{Name: "ci"}); err != nil {
			t.Fatal(err)
		}
	}
	var rows []struct{ Old, New, Key string }
	if err := json.Unmarshal([]byte(c.ok("org", "pin", "Acme", "--to", "eu", "-o", "json")), &rows); err != nil || len(rows) != many {
		t.Fatalf("%d keys issued: %v", len(rows), err)
	}
	if p, err := client.Pin(t.Context(), org.ID); err != nil || p.KeysInForce != many || p.KeysUnissued != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}
