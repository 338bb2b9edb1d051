package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const good = `cluster: dev-1
region: us-east
node: us-east-c1
role: control
data_dir: /x/data
listen: {internal: "127.0.0.1:1", admin: "127.0.0.1:2", metrics: "127.0.0.1:3"}
gossip: {lan: "127.0.0.1:4", wan: "127.0.0.1:5", lan_key_file: a, wan_key_file: b}
identity: {dir: i, tls_cert: c, tls_key: k}
seal_key_file: s
cluster_secret_file: cs
regions:
  - name: us-east
    jurisdiction: us
    endpoint: https://127.0.0.1:8441
    control:
      - {node: us-east-c1, internal: "127.0.0.1:1"}
      - {node: us-east-c2, internal: "127.0.0.1:9"}
`

func load(t *testing.T, text string, env ...string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(file, env)
}

func TestGoodFileLoads(t *testing.T) {
	c, err := load(t, good, "RINGMAIN_LISTEN_ADMIN=127.0.0.1:77", "RINGMAIN_TUNABLES_CAPACITY=12", "RINGMAIN_TUNABLES_DRAIN_TIMEOUT=3s")
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.Admin != "127.0.0.1:77" || c.Tunables.Capacity != 12 || c.Tunables.DrainTimeout.Seconds() != 3 {
		t.Fatalf("environment was not laid over the file: %+v", c)
	}
	c, err = load(t, strings.Replace(good, "cluster_secret_file: cs", "cluster_secret_file: cs\nraft: {promote_after: 3s, remove_dead_after: 4h}", 1))
	if err != nil || c.Raft != (Raft{PromoteAfter: 3 * time.Second, RemoveDeadAfter: 4 * time.Hour}) {
		t.Fatalf("%+v, %v", c, err)
	}
	if c.Own().Name != "us-east" {
		t.Fatal("own region not found")
	}
}

// TestAgain: the file is read anew as it was at first, environment included.
func TestAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(good)
	c, err := Load(file, []string{"RINGMAIN_TUNABLES_EDGE_WRONG_KEYS=7"})
	if err != nil {
		t.Fatal(err)
	}
	write(good + "tunables:\n  edge: {conns: 5, wrong_keys: 9, wrong_delay: 250ms}\n")
	again, err := c.Again()
	if err != nil || again.Tunables.Edge != (Edge{Conns: 5, WrongKeys: 7, WrongDelay: 250 * time.Millisecond}) {
		t.Fatalf("%+v %v", again, err)
	}
	write("nonsense: true\n")
	if _, err := again.Again(); err == nil {
		t.Error("a broken file is taken")
	}
}

func TestMistakesNameFieldAndLine(t *testing.T) {
	for name, tc := range map[string]struct{ from, to, want string }{
		"unknown field":   {"seal_key_file: s", "seal_key_fil: s", "[9:1]"},
		"role":            {"role: control", "role: boss", "line 4: role: want control or data"},
		"http1":           {"cluster_secret_file: cs", "cluster_secret_file: cs\nhttp1: fast", `line 11: http1: want standard or nothing, got "fast"`},
		"http2":           {"cluster_secret_file: cs", "cluster_secret_file: cs\nhttp2: fast", `line 11: http2: want standard or nothing, got "fast"`},
		"missing":         {"data_dir: /x/data", "data_dir: ''", "line 5: data_dir: is missing"},
		"metrics exposed": {"127.0.0.1:3", "0.0.0.0:3", "listen.metrics: is plain HTTP"},
		"same address":    {"127.0.0.1:2", "127.0.0.1:1", "is the same address as"},
		"two nodes alike": {"us-east-c2", "us-east-c1", `line 17: regions[0].control[1].node: two nodes are named "us-east-c1"`},
		"foreign region":  {"region: us-east\n", "region: mars\n", `line 2: region: "mars" is not listed`},
		"unknown node":    {"node: us-east-c1\n", "node: us-east-c9\n", "line 3: node:"},
		"plain endpoint":  {"https://127", "http://127", "line 14: regions[0].endpoint"},
		"bad pool":        {"cluster_secret_file: cs", "cluster_secret_file: cs\npools: [standard, gold]", `line 11: pools[1]: want standard, zero-retention or dedicated:`},
		"pool of a name":  {"cluster_secret_file: cs", "cluster_secret_file: cs\npools: [\"dedicated:acme\"]", `line 11: pools[0]: want`},
		"another hash":    {"cluster_secret_file: cs", "cluster_secret_file: cs\nreceipts:\n  hash: md5", `line 12: receipts.hash: want sha-256 or nothing, got "md5"`},
		"negative time":   {"cluster_secret_file: cs", "cluster_secret_file: cs\ntunables:\n  receipt_age: -1h", "line 12: tunables.receipt_age: is negative"},
		"no duration":     {"cluster_secret_file: cs", "cluster_secret_file: cs\ntunables:\n  record_age: soon", `line 12: tunables.record_age: want a duration such as 30s or 24h, got "soon"`},
		"bare duration":   {"cluster_secret_file: cs", "cluster_secret_file: cs\ntunables:\n  record_age: 5", `line 12: tunables.record_age: want a duration such as 30s or 24h, got "5"`},
		"soon to take":    {"cluster_secret_file: cs", "cluster_secret_file: cs\ntakeover:\n  automatic_after: 5", `line 12: takeover.automatic_after: want a duration such as 30s or 24h, got "5"`},
		"never to take":   {"cluster_secret_file: cs", "cluster_secret_file: cs\ntakeover:\n  automatic_after: -1m", "line 12: takeover.automatic_after: is negative"},
		"early vote":      {"cluster_secret_file: cs", "cluster_secret_file: cs\nraft:\n  promote_after: -1s", "line 12: raft.promote_after: is negative"},
		"soon dead":       {"cluster_secret_file: cs", "cluster_secret_file: cs\nraft:\n  remove_dead_after: 59s", "line 12: raft.remove_dead_after: want 1m at least"},
		"dead, bare":      {"cluster_secret_file: cs", "cluster_secret_file: cs\nraft:\n  remove_dead_after: 5", `line 12: raft.remove_dead_after: want a duration such as 30s or 24h, got "5"`},
		"raft, unknown":   {"cluster_secret_file: cs", "cluster_secret_file: cs\nraft:\n  remove_dead: 5h", "[12:3]"},
		"nobody votes": {`{node: us-east-c1, internal: "127.0.0.1:1"}
      - {node: us-east-c2, internal: "127.0.0.1:9"}`, `{node: us-east-c1, internal: "127.0.0.1:1", reader: true}`, "line 16: regions[0].control: names no control node that votes"},
		"no number":        {"cluster_secret_file: cs", "cluster_secret_file: cs\ntunables:\n  receipt_disk: 1GiB", "[12:17] want a whole number, 0 or more"},
		"edge, no number":  {"cluster_secret_file: cs", "cluster_secret_file: cs\ntunables:\n  edge:\n    wrong_keys: few", "[13:17] want a whole number, 0 or more"},
		"edge, no time":    {"cluster_secret_file: cs", "cluster_secret_file: cs\ntunables:\n  edge:\n    wrong_delay: soon", `line 13: tunables.edge.wrong_delay: want a duration such as 30s or 24h, got "soon"`},
		"edge, negative":   {"cluster_secret_file: cs", "cluster_secret_file: cs\ntunables:\n  edge:\n    conn_age: -1m", "line 13: tunables.edge.conn_age: is negative"},
		"edge, too long":   {"cluster_secret_file: cs", "cluster_secret_file: cs\ntunables:\n  edge:\n    wrong_delay: 1m", "line 13: tunables.edge.wrong_delay: want 10s at most"},
		"edge, unknown":    {"cluster_secret_file: cs", "cluster_secret_file: cs\ntunables:\n  edge:\n    wrong_kees: 1", "[13:5]"},
		"bad jurisdiction": {"jurisdiction: us", "jurisdiction: any", "line 13: regions[0].jurisdiction"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, tc.from, tc.to, 1)
			if text == good {
				t.Fatal("the mistake was not planted")
			}
			_, err := load(t, text)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("want an error with %q, got: %v", tc.want, err)
			}
		})
	}
}

func TestEnvironmentMistakeIsNamed(t *testing.T) {
	// The line in the file would be the wrong place to look.
	if _, err := load(t, good, "RINGMAIN_CLUSTER="); err == nil || !strings.Contains(err.Error(), "environment RINGMAIN_CLUSTER: cluster: want") || strings.Contains(err.Error(), "line") {
		t.Fatalf("got %v", err)
	}
	if _, err := load(t, good, "RINGMAIN_TUNABLES_CAPACITY=many"); err == nil || !strings.Contains(err.Error(), "RINGMAIN_TUNABLES_CAPACITY") {
		t.Fatalf("got %v", err)
	}
	if _, err := load(t, good, "RINGMAIN_REGIONS=x"); err == nil || !strings.Contains(err.Error(), "only be set in the file") {
		t.Fatalf("got %v", err)
	}
}
