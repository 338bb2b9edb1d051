package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ringmain/internal/clusterfile"
)

// Four regions, two of them in the EU: a pinned org survives the loss of one.
func TestFourRegionsTwoInTheEU(t *testing.T) {
	dir := t.TempDir()
	args := []string{"--regions", "us-east:us,eu-fra:eu,eu-ams:eu,ap-sg:apac", "--control", "1", "--data", "1"}
	d, err := startDev(dir, 21440, args...)
	if err != nil {
		t.Fatal(err)
	}
	d.tells(t)
	key := newKey(t, d, "eu")
	for _, entry := range []int{1, 2} {
		eventually(t, 5*time.Second, func() error {
			return asked(d.ask(t, "POST", d.Regions[entry].API+"/v1/chat/completions", chat(d.Model), "authorization", "Bearer "+key), 200, "eu")
		})
	}
	// Restarts are withheld while this connection is open.
	hold, err := net.Dial("unix", d.Supervisor)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(hold, `{"op":"hold","region":"eu-fra"}`)
	if _, err := hold.Read(make([]byte, 256)); err != nil {
		t.Fatal(err)
	}
	for _, n := range d.Regions[1].Nodes {
		for _, pid := range []int{n.PID, n.WorkerPID} {
			if pid != 0 {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	a := d.ask(t, "POST", d.Regions[2].API+"/v1/chat/completions", chat(d.Model), "authorization", "Bearer "+key)
	if err := asked(a, 200, "eu"); err != nil || a.header.Get("idc-region") != "eu-ams" {
		t.Fatalf("the other EU region: %v, %v", err, a.header)
	}
	// Stopped while a region is dead and held: nothing may be left.
	_ = hold.Close()
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}

	// A second start resumes: same key, same org, nothing made anew.
	oldKey := d.APIKey
	d, err = startDev(dir, 21440, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	}()
	if d.APIKey != oldKey {
		t.Error("the second start made another key")
	}
	for entry, k := range map[int]string{0: d.APIKey, 2: key} {
		eventually(t, 5*time.Second, func() error {
			a := d.ask(t, "POST", d.Regions[entry].API+"/v1/chat/completions", chat(d.Model), "authorization", "Bearer "+k)
			if a.status != 200 {
				return fmt.Errorf("%d %s", a.status, a.body)
			}
			return nil
		})
	}
	// A second one on the same directory is refused before it touches anything.
	out, err := exec.CommandContext(t.Context(), binary, "dev", "--dir", d.dir, "--port", "22440").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another `ringmain dev` runs") {
		t.Errorf("a second one on a running directory: %v: %s", err, out)
	}
}

func TestPortInUseIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = startDev(t.TempDir(), l.Addr().(*net.TCPAddr).Port, "--regions", "us-east:us", "--control", "1", "--data", "1")
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "--port") {
		t.Fatalf("got %v", err)
	}
}

// newKey makes a verified org of jurisdiction with one project and key.
func newKey(t *testing.T, d *devCluster, jurisdiction string) string {
	t.Helper()
	run := func(args ...string) string {
		stdout, stderr, code := d.cli(t, append(args, "-o", "json")...)
		if code != 0 {
			t.Fatalf("ringmain %s: exit %d: %s", strings.Join(args, " "), code, stderr)
		}
		return stdout
	}
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	org := field(t, run("org", "create", name, "--plan", "enterprise", "--state", "verified", "--jurisdiction", jurisdiction), "id")
	project := field(t, run("project", "create", "p", "--org", org), "id")
	return field(t, run("key", "create", "k", "--project", project), "key")
}

func asked(a answer, status int, residency string) error {
	if a.status != status || a.header.Get("idc-residency") != residency {
		return fmt.Errorf("%d, residency %q: %s", a.status, a.header.Get("idc-residency"), a.body)
	}
	return nil
}

// The control plane being down never turns a good key into 401, and never
// revives a revoked one, also across a restart of the data nodes.
func TestControlPlaneDown(t *testing.T) {
	d, err := startDev(t.TempDir(), 25440, "--regions", "us-east:us,ap-sg:apac", "--control", "1", "--data", "1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	}()
	d.tells(t)
	good, revoked := newKey(t, d, "any"), newKey(t, d, "any")
	api := d.node(t, 0, "data").API // not the balancer, which may find it slow
	use := func(key string) answer {
		return d.ask(t, "POST", api+"/v1/chat/completions", chat(d.Model), "authorization", "Bearer "+key)
	}
	eventually(t, 5*time.Second, func() error { return asked(use(revoked), 200, "unpinned") })
	id := keyID(t, d, revoked)
	if _, stderr, code := d.cli(t, "key", "revoke", id); code != 0 {
		t.Fatal(stderr)
	}
	eventually(t, 5*time.Second, func() error { return asked(use(revoked), 401, "") })

	hold, err := net.Dial("unix", d.Supervisor)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	fmt.Fprintln(hold, `{"op":"hold","region":"us-east"}`)
	if _, err := hold.Read(make([]byte, 256)); err != nil {
		t.Fatal(err)
	}
	for _, n := range d.Regions[0].Nodes {
		if n.Role == "control" {
			if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(when string) {
		t.Helper()
		for range 20 {
			if a := use(good); a.status != 200 {
				t.Fatalf("%s: a good key got %d %s", when, a.status, a.body)
			}
			if a := use(revoked); a.status != 401 {
				t.Fatalf("%s: a revoked key got %d", when, a.status)
			}
		}
	}
	check("control plane down")
	// The worker dies too: its keeper starts another from the disk alone.
	var node clusterfile.Node
	for _, n := range d.Regions[0].Nodes {
		if n.Role == "data" {
			node = n
		}
	}
	if err := syscall.Kill(node.WorkerPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		a, err := d.tryAsk(t.Context(), d.client(false), "GET", node.API+"/readyz", "")
		if err != nil || a.status != 200 {
			return fmt.Errorf("worker not back: %w %d", err, a.status)
		}
		return nil
	})
	eventually(t, 5*time.Second, func() error { return asked(use(good), 200, "unpinned") })
	check("control plane down, worker restarted from disk")

	// The keeper dies: the worker serves on without it.
	if err := syscall.Kill(node.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	check("control plane and keeper down")
}

func keyID(t *testing.T, d *devCluster, whole string) string {
	t.Helper()
	parts := strings.Split(whole, "_")
	return "key_" + parts[2] + "_" + parts[3]
}

// What rests on disk is sealed: no whole key, no key hash and no upstream name in the clear.
func TestFilesAreSealed(t *testing.T) {
	secret := strings.Split(shared(t).APIKey, "_")[4]
	markers := []string{secret, "$2a$10$", "sim-us-east"}
	err := filepath.WalkDir(shared(t).dir, func(path string, e os.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a directory that was replaced meanwhile
		}
		if err != nil || !e.Type().IsRegular() || !strings.Contains(path, "/data/") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil // replaced meanwhile
		}
		for _, m := range markers {
			if strings.Contains(string(b), m) {
				t.Errorf("%s holds %.8q… in the clear", path, m)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(shared(t).dir, "*", "*", "node.log"))
	if err != nil || len(logs) < 10 {
		t.Fatalf("%d logs found: %v", len(logs), err)
	}
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []string{secret, question} {
			if strings.Contains(string(b), m) {
				t.Errorf("%s holds %.8q…", path, m)
			}
		}
	}
}
