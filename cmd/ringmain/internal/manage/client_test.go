package manage_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
)

// A creation is sent again until its outcome is known, and made once.
func TestCreationIsRepeatedUntilItIsKnown(t *testing.T) {
	c := start(t)
	client := c.client()
	org, err := client.CreateOrg(t.Context(), api.OrgInput{Name: "Acme", State: "verified"})
	if err != nil {
		t.Fatal(err)
	}
	project, err := client.CreateProject(t.Context(), org.ID, api.ProjectInput{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	c.cluster.Broken = func(_ string, after bool) error {
		asked++
		switch {
		case asked == 1:
			return controlplane.ErrNoLeader
		case after && asked == 3:
			return controlplane.ErrUncertain // it was committed; nobody says so
		}
		return nil
	}
	key, err := client.CreateKey(t.Context(), project.ID, api.KeyInput{Name: "ci"})
	if err != nil || key.Whole == "" {
		t.Fatalf("%+v, %v", key, err)
	}
	c.cluster.Broken = nil
	if keys, err := client.Keys(t.Context(), project.ID); err != nil || len(keys) != 1 || keys[0].ID != key.ID || asked < 3 {
		t.Errorf("%d keys, asked %d times, %v", len(keys), asked, err)
	}

	// Of an update with a condition nobody knows: that is the caller's to find out.
	c.cluster.Broken = func(_ string, after bool) error {
		if after {
			return controlplane.ErrUncertain
		}
		return nil
	}
	var p *api.Problem
	if _, err := client.UpdateKey(t.Context(), key.Meta, api.KeyInput{Name: "cd"}); !errors.As(err, &p) || p.Code != api.CodeUncertain {
		t.Errorf("%v", err)
	}
}

// Whoever waits for longer than a second is told that it is not his terminal.
func TestALongWaitIsSaid(t *testing.T) {
	c := start(t)
	slow := func(d time.Duration) (said string, took time.Duration) {
		c.cluster.Broken = func(string, bool) error { time.Sleep(d); return nil }
		defer func() { c.cluster.Broken = nil }()
		began := time.Now()
		_, stderr, status := c.run("org", "create", "Acme", "--cluster", c.path("cluster.json"))
		if status != 0 {
			t.Fatal(stderr)
		}
		return stderr, time.Since(began)
	}
	if said, took := slow(0); strings.Contains(said, "waiting") && took < time.Second {
		t.Errorf("after %v: %q", took, said)
	}
	if said, took := slow(time.Second); !strings.Contains(said, "waiting for an answer") { // before and after the commit
		t.Errorf("after %v: %q", took, said)
	}
}
