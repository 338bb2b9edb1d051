package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane/admin/api"
	"ringmain/internal/clusterfile"
)

// A build that routes of some names break: where a worker loads them, where a
// home's rules check them, where another region accepts them.
var breakable = []edit{
	{"dataplane/view/content.go", "func (s *Store) put(next *View, rec *registry.Record) error {\n",
		"func (s *Store) put(next *View, rec *registry.Record) error {\n\tbreakOn(rec)\n"},
	{"dataplane/view/content.go", "func (st *stage) put(rec *registry.Record) error {\n", "func (st *stage) put(rec *registry.Record) error {\n\tbreakOn(rec)\n"},
	{"dataplane/view/break.go", "", `package view

import "ringmain/controlplane/registry"

func breakOn(rec *registry.Record) {
	if rec.Route != nil && rec.Route.Model == "breaks-workers" {
		panic("planted")
	}
}
`},
	{"controlplane/registry/ledger/apply.go", "\ttx, e := *sh, h.Entry\n", `	tx, e := *sh, h.Entry
	for _, c := range e.Changes {
		if c.Record != nil && c.Record.Route != nil && (home && c.Record.Route.Model == "breaks-home" || !home && c.Record.Route.Model == "breaks-others") {
			panic("planted")
		}
	}
`},
	{"controlplane/registry/content/staging.go", "\tif err := r.WellFormed(g.content.name); err != nil {\n",
		"\tif r.Route != nil && r.Route.Model == \"breaks-others\" {\n\t\tpanic(\"planted\")\n\t}\n\tif err := r.WellFormed(g.content.name); err != nil {\n"},
}

// metric sums the samples of a metric of a node.
func (d *devCluster) metric(t testing.TB, n clusterfile.Node, name string) (sum float64) {
	t.Helper()
	a, err := d.tryAsk(t.Context(), http.DefaultClient, "GET", n.Metrics, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(\{[^}]*\})? ([0-9.e+]+)$`).FindAllStringSubmatch(a.body, -1) {
		var v float64
		if _, err := fmt.Sscan(m[2], &v); err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// Records that crash what takes them are refused where they would kill the
// region, and otherwise stop at the first node or the first region.
func TestPoison(t *testing.T) {
	t.Parallel()
	d, err := startDevAs([]string{planted(t, breakable...)}, t.TempDir(), 14440, "--regions", "us-east:us,eu-fra:eu", "--control", "1", "--data", "2")
	if err != nil {
		t.Fatal(err)
	}
	d.tells(t)
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	route := func(model string) (stderr string, code int) {
		t.Helper()
		_, stderr, code = d.cli(t, "route", "create", model, "--target", "sim-us-east=sim-chat")
		return stderr, code
	}
	create := func(model string) {
		t.Helper()
		if stderr, code := route(model); code != 0 {
			t.Fatalf("route %s: exit %d: %s", model, code, stderr)
		}
	}
	var controls, workers []clusterfile.Node
	for _, r := range d.Regions {
		for _, n := range r.Nodes {
			if n.Role == "control" {
				controls = append(controls, n)
			} else {
				workers = append(workers, n)
			}
		}
	}
	served := func(model string, nodes ...clusterfile.Node) {
		t.Helper()
		began := time.Now()
		for _, n := range nodes {
			eventually(t, 40*time.Second, func() error {
				a, err := d.tryAsk(t.Context(), d.client(true), "GET", "https://"+strings.TrimPrefix(n.API, "https://")+"/v1/models/"+model, "", d.bearer()...)
				if err == nil && a.status != 200 {
					err = errors.New(a.body)
				}
				if err != nil {
					return fmt.Errorf("%s: %s: %w", n.Name, model, err)
				}
				return nil
			})
		}
		t.Logf("%s was known at %d nodes after %v", model, len(nodes), time.Since(began).Round(time.Millisecond))
	}

	began := time.Now()
	step := func(what string) { t.Logf("%v: %s", time.Since(began).Round(time.Millisecond), what) }
	// A node waits for those of whose state it has heard: a first change goes
	// round, and a second one in order, before anything is wrong.
	for _, model := range []string{"sound", "sound-too"} {
		create(model)
		served(model, workers...)
		eventually(t, 20*time.Second, func() error { return livesAlike(t, d, len(workers)) })
	}
	leaders := controlPIDs(t, d, controls)

	stderr, code := route("breaks-home")
	if code == 0 || !strings.Contains(stderr, "would kill every control node") {
		t.Errorf("a record on which the home's rules fail: exit %d: %s", code, stderr)
	}

	step("refused what the home breaks on")
	create("breaks-workers")
	account := field(t, made(t, d, "org", "create", "poison", "--state", "verified"), "id")
	project := field(t, made(t, d, "project", "create", "p", "--org", account), "id")
	// The node whose worker died on it holds it when its next one does.
	revoked := func(key string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			var answer struct{ Held *api.Held }
			if out := made(t, d, "key", "revoke", key); json.Unmarshal([]byte(out), &answer) != nil || !answer.Held.All() {
				return fmt.Errorf("the revocation of %s is %s", key, answer.Held)
			}
			return nil
		})
	}
	key := field(t, made(t, d, "key", "create", "k", "--project", project), "id")
	revoked(key)
	create("follows")
	served("follows", workers...)
	first := slices.IndexFunc(workers, func(n clusterfile.Node) bool { return n.Name == "us-east-d1" })
	for i, n := range workers {
		want := 0.0
		if i == first {
			want = 2
		}
		if got := d.metric(t, n, "ringmain_worker_restarts_total"); got != want {
			t.Errorf("%s: %v workers died, want %v", n.Name, got, want)
		}
		if got := d.metric(t, n, "ringmain_trial_isolated"); got != 1 {
			t.Errorf("%s leaves out %v changes, want 1", n.Name, got)
		}
	}
	eventually(t, 10*time.Second, func() error {
		stdout, stderr, code := d.cli(t, "rollout")
		if code != 0 || strings.Count(stdout, "global=1/us-east.") != 1 || !strings.Contains(stderr, "crashed us-east-d1 twice") || !strings.Contains(stderr, "route breaks-workers") {
			return fmt.Errorf("exit %d: %s%s", code, stdout, stderr)
		}
		return nil
	})
	if _, stderr, code := d.cli(t, "route", "delete", "breaks-workers"); code != 0 {
		t.Errorf("the way back: %s", stderr)
	}

	step("left out what workers break on")
	create("breaks-others")
	eventually(t, 60*time.Second, func() error {
		for _, n := range controls {
			if n.Name == "eu-fra-c1" && d.metric(t, n, "ringmain_feed_isolated") == 1 {
				return nil
			}
		}
		return errors.New("the shard is not isolated")
	})
	step("isolated the shard that another region breaks on")
	create("at-home")
	served("at-home", workers[first])
	key = field(t, made(t, d, "key", "create", "k2", "--project", project), "id")
	revoked(key)
	step("the other shards go on")
	if now := controlPIDs(t, d, controls); !slices.Equal(now, leaders) {
		t.Errorf("control nodes died: %v, now %v", leaders, now)
	}
}

// livesAlike is nil once all nodes live with the same configuration, as gossip
// says.
func livesAlike(t *testing.T, d *devCluster, nodes int) error {
	t.Helper()
	stdout, _, code := d.cli(t, "rollout")
	lives := map[string]int{}
	for _, line := range strings.Split(strings.TrimSpace(stdout), "\n")[1:] {
		if f := strings.Fields(line); len(f) > 2 {
			lives[f[2]]++
		}
	}
	for _, n := range lives {
		if code == 0 && len(lives) == 1 && n == nodes {
			return nil
		}
	}
	return fmt.Errorf("exit %d: %s", code, stdout)
}

// controlPIDs are the processes of nodes, as the supervisor has them.
func controlPIDs(t *testing.T, d *devCluster, nodes []clusterfile.Node) (pids []int) {
	t.Helper()
	for _, n := range nodes {
		pids = append(pids, d.now(t, n.Name).PID)
	}
	return pids
}
