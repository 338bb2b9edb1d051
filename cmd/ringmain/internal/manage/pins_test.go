package manage_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/apikey"
	shardhomes "ringmain/controlplane/homes"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// confirming regions hold every write at once, unless they are cut off, and say
// no more of themselves.
type confirming struct {
	admin.Homes
	cut atomic.Bool
}

func (c *confirming) Confirmed(ctx context.Context, _ controlplane.Shard, _ controlplane.Point) error {
	if !c.cut.Load() {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (*confirming) Reach(controlplane.Shard) (shardhomes.Reach, error) {
	return shardhomes.Reach{}, errors.New("nobody is heard")
}

func (c *confirming) option(cfg *admin.Config) { cfg.Homes, cfg.ConfirmIn = c, 300*time.Millisecond }

func TestAnOrgIsPinnedByCommands(t *testing.T) {
	c := start(t, new(confirming).option)
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
	c := start(t, new(confirming).option)
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

// A change that waits for other regions, or was undone by a takeover, is no
// success for a script, and the next move is told.
func TestAChangeOfPinThatStoppedIsNoSuccess(t *testing.T) {
	others := new(confirming)
	c := start(t, others.option)
	for _, r := range c.cluster.Regions {
		r.Raise()
	}
	file := c.path("cluster.json")
	var org struct{ ID string }
	if err := json.Unmarshal([]byte(c.ok("org", "create", "Acme", "--state", "verified", "-o", "json")), &org); err != nil {
		t.Fatal(err)
	}
	var before controlplane.Point
	c.cluster.Regions[0].Nodes[0].View(func(s *ledger.State) { before = s.Position()["any-us-east"] })
	others.cut.Store(true)
	stdout, stderr, status := c.run("org", "pin", "Acme", "--to", "eu", "--cluster", file)
	if status != 1 || !strings.Contains(stdout, "begun") || !strings.Contains(stderr, "other regions are known to hold") || strings.Contains(stderr, "one region") {
		t.Errorf("begun: %d %q %q", status, stdout, stderr)
	}
	others.cut.Store(false)
	var p api.PinChange
	if err := json.Unmarshal([]byte(c.ok("org", "pin", org.ID, "--to", "eu", "-o", "json")), &p); err != nil || p.Phase != api.PinCopied {
		t.Errorf("copied: %v %+v", err, p)
	}

	opening := registry.Opening("eu-fra", []ownership.Member{{Region: "eu-fra"}, {Region: "us-east"}}, false)
	e := &registry.Entry{Shard: "any-us-east", Epoch: controlplane.Epoch{Counter: before.Epoch.Counter + 1, Region: "eu-fra"}, Seq: before.Seq + 1, Prev: before.Epoch, Changes: []registry.Change{opening}}
	b, err := registry.EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, region := range c.cluster.Regions {
		out, err := region.Nodes[0].ProposeCommand(t.Context(), &registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{b}})
		if err != nil || out.Err != nil || len(out.Cut) == 0 {
			t.Fatalf("%s: %v %+v", region.Name, err, out)
		}
	}
	stdout, stderr, status = c.run("org", "pin", p.Successor, "--status", "--cluster", file, "-o", "json")
	var cut api.PinChange
	if err := json.Unmarshal([]byte(stdout), &cut); err != nil || status != 1 || cut.Phase != api.PinCutOff || cut.Org != org.ID || !strings.Contains(stderr, "delete") {
		t.Errorf("cut off: %d %v %q %q", status, err, stdout, stderr)
	}
	if _, stderr, status = c.run("org", "pin", org.ID, "--to", "eu", "--cluster", file); status != 1 || !strings.Contains(stderr, p.Successor+" was to take its place") {
		t.Errorf("begun again: %d %q", status, stderr)
	}
}
