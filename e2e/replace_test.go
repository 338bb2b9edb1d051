package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/identity"
	"ringmain/internal/testkit/logkit"
)

// fleet is the nodes of a development cluster, each a process of this test's
// own: nobody restarts them, and what they are configured with stays.
type fleet struct {
	*devCluster
	t     *testing.T
	token string
	out   *logkit.Buffer

	mu     sync.Mutex
	nodes  map[string]*member
	admins map[string]string // URL by control node
}

// member is a node's process.
type member struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// newFleet takes over the nodes of a cluster that has stopped. They end with the
// test, which then shows what they said if it failed.
func newFleet(t *testing.T, d *devCluster) *fleet {
	t.Helper()
	token, err := os.ReadFile(d.AdminTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{devCluster: d, t: t, token: strings.TrimSpace(string(token)), out: new(logkit.Buffer), nodes: map[string]*member{}, admins: map[string]string{}}
	t.Cleanup(func() {
		f.stopAll()
		if t.Failed() {
			t.Log(f.out)
		}
	})
	return f
}

// start runs `ringmain control` or `ringmain data` on a node's directory.
func (f *fleet) start(region, node string) {
	f.t.Helper()
	dir := filepath.Join(f.dir, region, node)
	var cfg struct {
		Role   string
		Listen struct{ Admin string }
	}
	readYAML(f.t, filepath.Join(dir, "node.yaml"), &cfg)
	cmd := exec.Command(binary, cfg.Role, "--config", filepath.Join(dir, "node.yaml"))
	cmd.Env = append(os.Environ(), "RINGMAIN_RAFT_PROMOTE_AFTER=2s")
	cmd.Stdout, cmd.Stderr = f.out, f.out
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	m := &member{cmd: cmd, ended: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes[node] = m
	if cfg.Listen.Admin != "" {
		f.admins[node] = "https://" + cfg.Listen.Admin
	}
	go func() {
		defer close(m.ended)
		_ = cmd.Wait()
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.nodes[node] == m { // nobody stopped it
			f.t.Errorf("%s ended by itself: %v", node, cmd.ProcessState)
		}
	}()
}

// stop ends a node's process, and waits.
func (f *fleet) stop(node string) {
	f.mu.Lock()
	m := f.nodes[node]
	delete(f.nodes, node)
	delete(f.admins, node)
	f.mu.Unlock()
	if m == nil {
		return
	}
	_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-m.ended:
	case <-time.After(30 * time.Second):
		f.t.Errorf("%s does not stop", node)
		_ = m.cmd.Process.Kill()
		<-m.ended
	}
}

func (f *fleet) names() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := range f.nodes {
		all = append(all, n)
	}
	return all
}

func (f *fleet) stopAll() {
	var all sync.WaitGroup
	for _, n := range f.names() {
		all.Go(func() { f.stop(n) })
	}
	all.Wait()
}

func (f *fleet) servers() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Values(f.admins))
}

// admin asks the management API of whichever control node answers.
func (f *fleet) admin(ctx context.Context, method, path, body string) (answer, error) {
	var errs error
	for _, base := range f.servers() {
		a, err := f.tryAsk(ctx, f.client(true), method, base+"/admin/v1"+path, body, "authorization", "Bearer "+f.token)
		if err == nil && a.status < 500 {
			return a, nil
		}
		errs = errors.Join(errs, err, fmt.Errorf("%s: %d %s", base, a.status, a.body))
	}
	return answer{}, errs
}

func (f *fleet) ringmain(args ...string) string {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(args, "--server", strings.Join(f.servers(), ","), "--ca-file", f.CAFile, "--token-file", f.AdminTokenFile, "-o", "json")...)
	var stderr logkit.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		f.t.Fatalf("ringmain %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

func readYAML(t *testing.T, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = yaml.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// install makes the directory of one more control node: its identity, and a
// configuration that names itself, at five addresses from port on, and the nodes
// that were there first.
func (f *fleet) install(ca *identity.CA, cluster, region, like, node string, port int, reader bool) (internal string) {
	f.t.Helper()
	var cfg map[string]any
	readYAML(f.t, filepath.Join(f.dir, region, like, "node.yaml"), &cfg)
	var free []string
	for i := range 5 {
		free = append(free, fmt.Sprintf("127.0.0.1:%d", port+i))
	}
	dir := filepath.Join(f.dir, region, node)
	id := filepath.Join(dir, "identity")
	cfg["node"], cfg["data_dir"] = node, filepath.Join(dir, "data")
	cfg["listen"] = map[string]any{"internal": free[0], "admin": free[1], "metrics": free[2]}
	gossip, own := cfg["gossip"].(map[string]any), cfg["identity"].(map[string]any)
	gossip["lan"], gossip["wan"], own["dir"] = free[3], free[4], id
	for _, r := range cfg["regions"].([]any) {
		if r := r.(map[string]any); r["name"] == region {
			r["control"] = append(r["control"].([]any), map[string]any{"node": node, "internal": free[0], "lan": free[3], "wan": free[4], "reader": reader})
		}
	}
	issued, err := ca.IssueNode(identity.ID{Cluster: cluster, Region: region, Role: identity.RoleControl, Node: node}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err == nil {
		err = os.MkdirAll(id, 0o700)
	}
	if err == nil {
		err = issued.Write(id)
	}
	text, err2 := yaml.Marshal(cfg)
	if err := errors.Join(err, err2, os.WriteFile(filepath.Join(dir, "node.yaml"), text, 0o600)); err != nil {
		f.t.Fatal(err)
	}
	return free[0]
}

// watchers is how many feeds a control node serves.
func (f *fleet) watchers(region, node string) (n int, err error) {
	var cfg struct{ Listen struct{ Metrics string } }
	readYAML(f.t, filepath.Join(f.dir, region, node, "node.yaml"), &cfg)
	a, err := f.tryAsk(f.t.Context(), http.DefaultClient, "GET", "http://"+cfg.Listen.Metrics+"/metrics", "")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(a.body) {
		if v, ok := strings.CutPrefix(line, "ringmain_feed_watchers "); ok {
			_, err := fmt.Sscan(v, &n)
			return n, err
		}
	}
	return 0, errors.New("it does not say")
}

// Every control node of a region is replaced, one after the other, by others at
// other addresses, while writes go on, data nodes watch and another region
// follows. Nobody's configuration is changed, and all of it is found again from
// what is on disk.
func TestReplaceEveryControlNode(t *testing.T) {
	t.Parallel()
	const port = 24440
	d, err := startDev(t.TempDir(), port, "--regions", "us-east:us,eu-fra:eu", "--data", "1")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, d)
	var shape struct{ Cluster string }
	text, err := os.ReadFile(filepath.Join(d.dir, "shape.json"))
	if err == nil {
		err = json.Unmarshal(text, &shape)
	}
	ca, err2 := identity.OpenCA(filepath.Join(d.dir, "ca"))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	us, eu := "us-east", "eu-fra"
	for i := range 3 {
		f.start(us, fmt.Sprintf("%s-c%d", us, i+1))
		f.start(eu, fmt.Sprintf("%s-c%d", eu, i+1))
	}
	f.start(us, us+"-d1")
	f.start(eu, eu+"-d1")
	before := configurations(t, d.dir)

	// A reader first: the data node goes over to it.
	reader := us + "-r1"
	addr := f.install(ca, shape.Cluster, us, us+"-c1", reader, port+300, true) // behind the regions' blocks
	f.start(us, reader)
	eventually(t, 30*time.Second, func() error {
		_, err := f.admin(t.Context(), "POST", "/members?region="+us, fmt.Sprintf(`{"node":%q,"address":%q,"reader":true}`, reader, addr))
		return err
	})

	writer := f.write()
	for i := range 3 {
		old, next := fmt.Sprintf("%s-c%d", us, i+1), fmt.Sprintf("%s-c%d", us, i+4)
		addr := f.install(ca, shape.Cluster, us, us+"-c1", next, port+310+10*i, false)
		f.start(us, next)
		began := time.Now()
		var l api.MemberList
		if err := json.Unmarshal([]byte(f.ringmain("node", "replace", old, next, addr, "--region", us)), &l); err != nil || len(l.Items) != 4 {
			t.Fatalf("after %s: %v, %+v", old, err, l)
		}
		t.Logf("%s in the place of %s after %v", next, old, time.Since(began).Round(time.Millisecond))
		f.stop(old)
		f.works()
	}
	eventually(t, 90*time.Second, func() error {
		if n, err := f.watchers(us, reader); err != nil || n != 1 {
			return fmt.Errorf("%d watchers at the reader, %w", n, err)
		}
		return nil
	})
	writer.end(t)
	f.holds(writer)

	// From disk: who was replaced is gone for good.
	all := f.names()
	f.stopAll()
	for node, text := range configurations(t, d.dir) {
		if old, ok := before[node]; ok && old != text {
			t.Errorf("the configuration of %s was changed", node)
		}
	}
	for _, n := range all {
		f.start(n[:strings.LastIndexByte(n, '-')], n)
	}
	f.works()
	f.holds(writer)
	eventually(t, 60*time.Second, func() error {
		var list []api.Node
		if err := json.Unmarshal([]byte(f.ringmain("node", "list")), &list); err != nil {
			return err
		}
		alive := 0
		for _, n := range list {
			if n.Alive {
				alive++
			}
		}
		if alive != len(all) {
			return fmt.Errorf("gossip knows %d of %d nodes: %+v", alive, len(all), list)
		}
		return nil
	})
}

func configurations(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*", "node.yaml"))
	all := map[string]string{}
	for _, f := range files {
		var text []byte
		text, err = os.ReadFile(f)
		all[filepath.Base(filepath.Dir(f))] = string(text)
	}
	if err != nil || len(all) < 8 {
		t.Fatal(len(all), err)
	}
	return all
}

// works: a key that is made now is known at the data nodes of both regions
// soon, and refused there once it is revoked.
func (f *fleet) works() {
	f.t.Helper()
	name := "works-" + strings.ToLower(rand.Text()[:8])
	made := func(path, body string) map[string]any {
		f.t.Helper()
		var out map[string]any
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
	org := made("/orgs", fmt.Sprintf(`{"name":%q,"plan":"enterprise","state":"verified"}`, name))["id"].(string)
	project := made("/orgs/"+org+"/projects", `{"name":"p"}`)["id"].(string)
	key := made("/projects/"+project+"/keys", `{"name":"k"}`)
	answers := func(status int) {
		f.t.Helper()
		for _, region := range []int{0, 1} {
			url := f.node(f.t, region, "data").API + "/v1/models"
			eventually(f.t, 30*time.Second, func() error {
				a, err := f.tryAsk(f.t.Context(), f.client(false), "GET", url, "", "authorization", "Bearer "+key["key"].(string))
				if err == nil && a.status != status {
					err = fmt.Errorf("%s answers %d, want %d: %s", url, a.status, status, a.body)
				}
				return err
			})
		}
	}
	answers(200)
	made("/keys/"+key["id"].(string)+"/revoke", "{}")
	answers(401)
}

// writes are orgs that were acknowledged.
type writes struct {
	stop context.CancelFunc
	done chan struct{}
	acks []string
	gap  time.Duration // longest between two acknowledgements
	bad  error
}

// write makes orgs, one after the other, until end.
func (f *fleet) write() *writes {
	ctx, cancel := context.WithCancel(f.t.Context())
	w := &writes{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		last := time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			a, err := f.admin(ctx, "POST", "/orgs", fmt.Sprintf(`{"name":"acked-%d","plan":"trial"}`, i))
			if err != nil || a.status/100 != 2 {
				continue // not acknowledged
			}
			var org struct{ ID string }
			if err := json.Unmarshal([]byte(a.body), &org); err != nil {
				w.bad = err
				return
			}
			w.acks = append(w.acks, org.ID)
			w.gap, last = max(w.gap, time.Since(last)), time.Now()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return w
}

func (w *writes) end(t *testing.T) {
	t.Helper()
	w.stop()
	<-w.done
	t.Logf("%d writes were acknowledged, the longest gap was %v", len(w.acks), w.gap.Round(time.Millisecond))
	if w.bad != nil || len(w.acks) < 50 || w.gap > 10*time.Second {
		t.Errorf("%d writes, gap %v: %v", len(w.acks), w.gap, w.bad)
	}
}

// holds: every control node that runs, of both regions, has what was acknowledged.
func (f *fleet) holds(w *writes) {
	f.t.Helper()
	for _, base := range f.servers() {
		eventually(f.t, 30*time.Second, func() error {
			for _, id := range []string{w.acks[0], w.acks[len(w.acks)/2], w.acks[len(w.acks)-1]} {
				a, err := f.tryAsk(f.t.Context(), f.client(true), "GET", base+"/admin/v1/orgs/"+id, "", "authorization", "Bearer "+f.token)
				if err == nil && a.status != 200 {
					err = fmt.Errorf("%s answers %d for %s", base, a.status, id)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
}
