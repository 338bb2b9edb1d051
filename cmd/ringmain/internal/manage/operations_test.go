package manage_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/backup"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
	"ringmain/internal/clusterfile"
	"ringmain/internal/testkit/controlkit"
)

// region is a region's Raft as commands see it: joining nodes vote at the
// second look.
type region struct {
	mu      sync.Mutex
	members []api.Member
	looks   int
	sealer  *seal.Sealer
	cut     bool
}

func (r *region) Members() api.MemberList {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.looks++; r.looks > 2 {
		for i := range r.members {
			r.members[i].Role = "voter"
		}
	}
	return api.MemberList{Region: "us-east", Answered: "us-east-c1", Items: append([]api.Member{}, r.members...)}
}

func (r *region) Add(_ context.Context, node, address string, _ bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looks = 0
	r.members = append(r.members, api.Member{Node: node, Address: address, Role: "joining"})
	return nil
}

func (r *region) Move(_ context.Context, node, address string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.members {
		if r.members[i].Node == node {
			r.members[i].Address = address
		}
	}
	return nil
}

func (r *region) Remove(_ context.Context, node string, force bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, m := range r.members {
		if m.Node != node {
			continue
		}
		if m.Leader && !force {
			return controlplane.Refuse(controlplane.RuleConflict, "node", "%s leads the region", node)
		}
		r.members = append(r.members[:i], r.members[i+1:]...)
		return nil
	}
	return nil
}

func (r *region) Transfer(_ context.Context, to string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.members {
		r.members[i].Leader = r.members[i].Node == to
	}
	return nil
}

func (r *region) Backup(_ context.Context, w io.Writer) error {
	s := ledger.New()
	e, err := s.Next("us", []registry.Change{{Op: registry.OpOpen, Members: []string{"us-east"}, Home: "us-east"}})
	if err != nil {
		return err
	}
	enc, err := registry.EncodeEntry(e)
	if err != nil {
		return err
	}
	if out := s.Apply(&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{enc}}); out.Err != nil {
		return out.Err
	}
	_, err = backup.Create(w, r.sealer, backup.Source{Cluster: "dev-1", Region: "us-east", Node: "us-east-c1", Taken: time.Now(), Applied: 9, Term: 2}, s)
	if r.cut {
		return errors.New("cut")
	}
	return err
}

func startOperations(t *testing.T) (*program, *region) {
	t.Helper()
	r := &region{members: []api.Member{{Node: "us-east-c1", Address: "a:1", Role: "voter", Leader: true}, {Node: "us-east-c2", Address: "a:2", Role: "voter"}}}
	c := &program{t: t, dir: t.TempDir(), env: map[string]string{}}
	c.cluster = controlkit.Start(t, io.Discard, []string{"us-east:us"}, func(cfg *admin.Config) { cfg.Operations = r })
	c.write("token", controlkit.Token+"\n")
	c.write("ca.pem", string(c.cluster.RootPEM))
	file := clusterfile.Cluster{Ready: true, CAFile: c.path("ca.pem"), AdminTokenFile: c.path("token"),
		Regions: []clusterfile.Region{{Name: "us-east", Jurisdiction: "us", Admin: c.cluster.Regions[0].Nodes[0].URL}}}
	if err := file.Write(c.path("cluster.json")); err != nil {
		t.Fatal(err)
	}
	if err := seal.CreateKeyFile(c.path("seal.key")); err != nil {
		t.Fatal(err)
	}
	holder, err := seal.OpenFileHolder(c.path("seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	r.sealer = seal.New(holder)
	return c, r
}

func TestNodeCommands(t *testing.T) {
	c, _ := startOperations(t)
	if out := c.ok("node", "members"); !strings.Contains(out, "us-east-c2") || !strings.Contains(out, "voter") {
		t.Errorf("members:\n%s", out)
	}
	if out := c.ok("node", "transfer", "--to", "us-east-c2", "--region", "us-east", "-o", "json"); !strings.Contains(out, `"leader": true`) {
		t.Errorf("transfer:\n%s", out)
	}
	if _, stderr, status := c.run("node", "remove", "us-east-c2", "--cluster", c.path("cluster.json")); status != 1 || !strings.Contains(stderr, "leads the region") {
		t.Errorf("a refusal: %d, %s", status, stderr)
	}
	// The leader is replaced: the newcomer votes, leads, and then the old one goes.
	out := c.ok("node", "replace", "us-east-c2", "us-east-c3", "a:3", "-o", "json")
	var l api.MemberList
	if err := json.Unmarshal([]byte(out), &l); err != nil || len(l.Items) != 2 || l.Items[1].Node != "us-east-c3" || !l.Items[1].Leader {
		t.Errorf("replace: %v\n%s", err, out)
	}
	c.ok("node", "add", "us-east-c4", "a:4")
	if out := c.ok("node", "move", "us-east-c4", "a:44", "--region", "us-east"); !strings.Contains(out, "a:44") {
		t.Errorf("move:\n%s", out)
	}
	c.ok("node", "remove", "us-east-c4")
	if _, stderr, status := c.run("node", "remove", "us-east-c4", "--cluster", c.path("cluster.json")); status != 0 || !strings.Contains(stderr, "nothing was removed") {
		t.Errorf("removed again: %d, %s", status, stderr)
	}
}

const nodeFile = `cluster: dev-1
region: us-east
node: us-east-c1
role: control
data_dir: DIR/data
listen: {internal: "127.0.0.1:1", admin: "127.0.0.1:2", metrics: "127.0.0.1:3"}
gossip: {lan: "127.0.0.1:4", wan: "127.0.0.1:5", lan_key_file: a, wan_key_file: b}
identity: {dir: i, tls_cert: c, tls_key: k}
seal_key_file: DIR/seal.key
cluster_secret_file: cs
regions:
  - name: us-east
    jurisdiction: us
    endpoint: https://127.0.0.1:8441
    control:
      - {node: us-east-c1, internal: "127.0.0.1:1"}
`

func TestBackupCommands(t *testing.T) {
	c, r := startOperations(t)
	file, key, config := c.path("us-east.backup"), c.path("seal.key"), c.write("node.yaml", strings.ReplaceAll(nodeFile, "DIR", c.dir))
	if out := c.ok("backup", "create", file, "-o", "json"); !strings.Contains(out, `"file": "`+file+`"`) || strings.Contains(out, `"bytes": 0`) {
		t.Errorf("create: %s", out)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	fails := func(status int, word string, args ...string) {
		t.Helper()
		_, stderr, got := c.run(append(args, "--cluster", c.path("cluster.json"))...)
		if got != status || !strings.Contains(stderr, word) {
			t.Errorf("%v: %d\n%s", args, got, stderr)
		}
	}
	fails(2, "exists", "backup", "create", file)
	c.write("us-east.backup3.part", "half")
	fails(1, "remove it", "backup", "create", file+"3")
	r.cut = true
	fails(1, "cut", "backup", "create", file+"2")
	if _, err := os.Stat(file + "2.part"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a backup was left: %v", err)
	}
	fails(2, "--key", "backup", "inspect", file)
	if out := c.ok("backup", "inspect", file, "--key", key); !strings.Contains(out, "us-east") {
		t.Errorf("inspect:\n%s", out)
	}
	fails(1, "no node's directory", "node", "recover", "--config", config, "--peers", "us-east-c1=127.0.0.1:1")
	fails(2, "--config", "backup", "restore", file, "--key", key)
	c.ok("backup", "restore", file, "--key", key, "--config", config)
	fails(1, "empty directory", "backup", "restore", file, "--key", key, "--config", config)
	fails(2, "name=host:port", "node", "recover", "--config", config, "--peers", "us-east-c1")
	fails(1, "us-east-c1 itself", "node", "recover", "--config", config, "--peers", "us-east-c2=127.0.0.1:9")
	other := c.write("other.yaml", strings.Replace(strings.ReplaceAll(nodeFile, "DIR", c.dir), "cluster: dev-1", "cluster: dev-2", 1))
	fails(1, "dev-1", "node", "recover", "--config", other, "--peers", "us-east-c1=127.0.0.1:1")
	c.ok("node", "recover", "--config", config, "--peers", "us-east-c1=127.0.0.1:1")
	if _, err := os.Stat(c.path("data/quorum/recover.json")); err != nil {
		t.Error(err)
	}
}
