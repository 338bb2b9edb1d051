package e2e

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A cluster of one region loses all it has and begins again from a backup, as
// RUNBOOK.md says; then it loses most of its control nodes for good. Each time
// its shards, which no other region could take over, take writes again, and the
// data node knows keys made before and after, and none made between.
func TestTheOnlyRegionBeginsAnew(t *testing.T) {
	t.Parallel()
	d, err := startDev(t.TempDir(), 19240, "--regions", "us-east:us", "--data", "1")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, d)
	region := "us-east"
	control := []string{region + "-c1", region + "-c2", region + "-c3"}
	config := func(node string) string { return filepath.Join(d.dir, region, node, "node.yaml") }
	var keys []string
	makeKey := func() string { t.Helper(); k := f.key(); keys = append(keys, k); return k }

	for _, n := range control {
		f.start(region, n)
	}
	f.start(region, region+"-d1")
	f.answers(makeKey(), 200)
	file := filepath.Join(t.TempDir(), "us-east.backup")
	f.ringmain("backup", "create", file)
	lost := f.key()
	f.answers(lost, 200)

	// RUNBOOK "A region has lost most of its control nodes for good", the whole region.
	for _, n := range control {
		f.stop(n)
		if err := os.RemoveAll(filepath.Join(d.dir, region, n, "data")); err != nil {
			t.Fatal(err)
		}
	}
	var node struct {
		SealKeyFile string `yaml:"seal_key_file"`
	}
	readYAML(t, config(control[0]), &node)
	f.offline("backup", "restore", file, "--key", node.SealKeyFile, "--config", config(control[0]))
	for _, n := range control {
		f.start(region, n)
	}
	f.takeOver(region)
	f.answers(makeKey(), 200)
	f.answers(keys[0], 200)
	f.answers(lost, 401, 503) // refused: 503 while its id is young enough to be on its way (60 s)

	// RUNBOOK again: two of three are gone for good.
	for _, n := range control {
		f.stop(n)
	}
	f.offline("node", "recover", "--config", config(control[0]), "--peers", control[0]+"="+listens(t, d.node(t, 0, "control")))
	f.start(region, control[0])
	f.takeOver(region)
	f.answers(makeKey(), 200)
	for _, k := range keys {
		f.answers(k, 200)
	}
	f.answers(lost, 401, 503)
}

// takeOver has the region take the place of its former life in all its shards,
// of which it writes none before.
func (f *fleet) takeOver(region string) {
	f.t.Helper()
	var list struct {
		Items []struct{ Shard, Role string }
	}
	eventually(f.t, 30*time.Second, func() error {
		var errs error
		for _, base := range f.servers() { // the leader knows
			a, err := f.tryAsk(f.t.Context(), f.client(true), "GET", base+"/admin/v1/shards", "", "authorization", "Bearer "+f.token)
			if err == nil {
				err = json.Unmarshal([]byte(a.body), &list)
			}
			if err == nil && len(list.Items) > 0 && list.Items[0].Role != "" {
				return nil
			}
			errs = errors.Join(errs, err, fmt.Errorf("%s: %d %s", base, a.status, a.body))
		}
		return errs
	})
	for _, s := range list.Items {
		if s.Role != "outside" {
			f.t.Errorf("%s: role %q before anybody said that the former life is lost", s.Shard, s.Role)
		}
		f.ringmain("shard", "takeover", s.Shard, "--to", region, "--lost", region)
	}
}

// offline runs a command that asks no node.
func (f *fleet) offline(args ...string) {
	f.t.Helper()
	if out, err := exec.CommandContext(f.t.Context(), binary, args...).CombinedOutput(); err != nil {
		f.t.Fatalf("ringmain %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// key makes an org, a project and a key, and returns its secret.
func (f *fleet) key() string {
	f.t.Helper()
	made := func(path, body string) (out struct{ ID, Key string }) {
		f.t.Helper()
		eventually(f.t, 30*time.Second, func() error {
			a, err := f.admin(f.t.Context(), "POST", path, body)
			if err == nil && a.status/100 != 2 {
				err = fmt.Errorf("%d %s", a.status, a.body)
			}
			if err != nil {
				return err
			}
			return json.Unmarshal([]byte(a.body), &out)
		})
		return out
	}
	org := made("/orgs", fmt.Sprintf(`{"name":"org-%s","plan":"enterprise","state":"verified"}`, strings.ToLower(rand.Text()[:8])))
	project := made("/orgs/"+org.ID+"/projects", `{"name":"p"}`)
	return made("/projects/"+project.ID+"/keys", `{"name":"k"}`).Key
}

// answers waits until the first region's data node answers the key with one of status.
func (f *fleet) answers(key string, status ...int) {
	f.t.Helper()
	url := f.node(f.t, 0, "data").API + "/v1/models"
	eventually(f.t, 30*time.Second, func() error {
		a, err := f.tryAsk(f.t.Context(), f.client(false), "GET", url, "", "authorization", "Bearer "+key)
		if err == nil && !slices.Contains(status, a.status) {
			err = fmt.Errorf("%d, want %v: %s", a.status, status, a.body)
		}
		return err
	})
}
