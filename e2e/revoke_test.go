package e2e

import (
	"encoding/json"
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane/admin/api"
)

// The answer to a revocation names every region and data node that holds it,
// and a data node that stands still among those that do not, though it is not
// known to be dead.
func TestRevocationNamesItsHolders(t *testing.T) {
	t.Parallel()
	d := small(t, 18440, "us-east:us,eu-fra:eu")
	revoke := func(key string) *api.Held {
		t.Helper()
		began := time.Now()
		stdout, stderr, code := d.cli(t, "key", "revoke", key, "-o", "json")
		var answer struct{ Held *api.Held }
		if err := json.Unmarshal([]byte(stdout), &answer); err != nil || code != 0 || answer.Held == nil {
			t.Fatalf("exit %d: %v %s %s", code, err, stdout, stderr)
		}
		t.Logf("after %v: %s", time.Since(began).Round(time.Millisecond), answer.Held)
		return answer.Held
	}
	account := field(t, made(t, d, "org", "create", "revocations", "--state", "verified"), "id")
	project := field(t, made(t, d, "project", "create", "p", "--org", account), "id")
	newKey := func() string { return field(t, made(t, d, "key", "create", "k", "--project", project), "id") }
	regions, nodes := []string{"eu-fra", "us-east"}, []string{d.node(t, 1, "data").Name, d.node(t, 0, "data").Name}
	eventually(t, 20*time.Second, func() error { // a home names as unknown whom it has not heard since it began
		if h := revoke(newKey()); !h.All() {
			return errors.New(h.String())
		}
		return nil
	})
	for range 3 {
		h := revoke(newKey())
		if slices.Sort(h.Nodes); !h.All() || !slices.Equal(h.Regions, regions) || !slices.Equal(h.Nodes, nodes) {
			t.Errorf("held by %+v", h)
		}
	}
	stopped := d.now(t, nodes[0])
	if stopped.PID <= 1 {
		t.Fatal(stopped)
	}
	key := newKey()
	if err := syscall.Kill(stopped.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := func() { _ = syscall.Kill(stopped.PID, syscall.SIGCONT) }
	defer goOn()
	h := revoke(key)
	if h.All() || slices.Contains(h.Nodes, nodes[0]) || !slices.Contains(h.Nodes, nodes[1]) || !slices.Equal(h.Regions, regions) {
		t.Errorf("with %s stopped it is held by %+v", nodes[0], h)
	}
	goOn()
	eventually(t, 20*time.Second, func() error {
		if h := revoke(key); !h.All() {
			return errors.New(h.String())
		}
		return nil
	})
}

// made is what a command that makes something prints.
func made(t *testing.T, d *devCluster, args ...string) string {
	t.Helper()
	stdout, stderr, code := d.cli(t, append(args, "-o", "json")...)
	if code != 0 {
		t.Fatalf("ringmain %v: exit %d: %s", args, code, stderr)
	}
	return stdout
}
