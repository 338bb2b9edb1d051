package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ringmain/drills/fault"
	"ringmain/internal/clusterfile"
)

// moved is a copy of a node's configuration with every port of the node's own
// moved up by 500, so that it can start beside the node.
func moved(t testing.TB, n clusterfile.Node, base int, pairs ...string) string {
	t.Helper()
	path := variant(t, n, pairs...)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, offset := range map[string][]int{"control": {110, 111, 112, 113, 114}, "data": {160, 161, 162, 163, 100}}[n.Role] {
		text = strings.ReplaceAll(text, strconv.Itoa(base+offset), strconv.Itoa(base+500+offset))
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Each mistake ends the start with one clear error; nothing is touched.
func TestStartMistakes(t *testing.T) {
	t.Parallel()
	const base = 27440
	d := small(t, base, "us-east:us")
	data, control := d.node(t, 0, "data"), d.node(t, 0, "control")
	ring := shared(t)
	foreignData, foreignControl := ring.node(t, 0, "data"), ring.node(t, 0, "control")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().String()

	for _, tc := range []struct {
		name, role, file string
		args             []string
		code             int
		says             []string
	}{
		{"data: directory of another cluster", "data", moved(t, data, base), []string{"--data-dir", copied(t, ring, foreignData)}, 1,
			[]string{"another cluster", readNodeYAML(t, foreignData).Cluster}},
		{"control: directory of another cluster", "control", moved(t, control, base), []string{"--data-dir", copied(t, ring, foreignControl)}, 1,
			[]string{"another cluster", readNodeYAML(t, foreignControl).Cluster}},
		{"data: port of clients in use", "data", moved(t, data, base, "127.0.0.1:27600", port), []string{"--data-dir", t.TempDir()}, 1,
			[]string{port, "address already in use", "listen.api"}},
		{"data: metrics port in use", "data", moved(t, data, base, "127.0.0.1:27602", port), []string{"--data-dir", t.TempDir()}, 1,
			[]string{"listen.metrics", port, "address already in use", "configure another"}},
		{"data: gossip port in use", "data", moved(t, data, base, "127.0.0.1:27603", port), []string{"--data-dir", t.TempDir()}, 1,
			[]string{"gossip", port, "address already in use"}},
		{"control: admin port in use", "control", moved(t, control, base, "127.0.0.1:27551", port), []string{"--data-dir", t.TempDir()}, 1,
			[]string{"listen.admin", port, "address already in use", "configure another"}},
		{"control: internal port in use", "control", variant(t, control), []string{"--data-dir", t.TempDir()}, 1,
			[]string{"listen.internal", "127.0.0.1:27550", "address already in use", "configure another"}},
		{"data: identity of another node", "data", moved(t, data, base, filepath.Join(nodeDir(data), "identity"), filepath.Join(nodeDir(control), "identity")),
			[]string{"--data-dir", t.TempDir()}, 1, []string{"identity.dir", "us-east-c1", "us-east-d1"}},
		{"control: identity of another cluster", "control", moved(t, control, base, filepath.Join(nodeDir(control), "identity"), filepath.Join(nodeDir(foreignControl), "identity")),
			[]string{"--data-dir", t.TempDir()}, 1, []string{"identity.dir", readNodeYAML(t, foreignControl).Cluster}},
		{"data: no identity", "data", moved(t, data, base, filepath.Join(nodeDir(data), "identity"), filepath.Join(t.TempDir(), "nothing")),
			[]string{"--data-dir", t.TempDir()}, 1, []string{"identity.dir", "node.pem", "no such file"}},
		{"data: seal key missing", "data", moved(t, data, base, "seal.key", "no.key"), []string{"--data-dir", t.TempDir()}, 1, []string{"seal_key_file", "no.key", "no such file"}},
		{"control: seal key missing", "control", moved(t, control, base, "seal.key", "no.key"), []string{"--data-dir", t.TempDir()}, 1, []string{"seal_key_file", "no.key", "no such file"}},
		{"data: seal key of another region", "data", moved(t, data, base, readNodeYAML(t, data).SealKeyFile, readNodeYAML(t, foreignData).SealKeyFile),
			[]string{"--data-dir", copied(t, d, data)}, 1, []string{"restore that key"}},
		{"control: seal key of another region", "control", moved(t, control, base, readNodeYAML(t, control).SealKeyFile, readNodeYAML(t, foreignControl).SealKeyFile),
			[]string{"--data-dir", copied(t, d, control)}, 1, []string{"restore that key"}},
		{"unknown field", "data", variant(t, data, "role: data\n", "role: data\ncolour: red\n"), nil, 2, []string{"unknown field", "colour", ">"}},
		{"field of the wrong kind", "data", variant(t, data, "role: data\n", "role: keeper\n"), nil, 2, []string{"line ", "role", "control or data"}},
		{"no such configuration", "data", filepath.Join(t.TempDir(), "node.yaml"), nil, 2, []string{"node.yaml", "no such file"}},
		{"configuration of the other role", "control", variant(t, data), nil, 2, []string{"run `ringmain data`"}},
		{"data: two nodes of one name on one directory", "data", moved(t, data, base), nil, 1, []string{"used by another keeper", "stop it first"}},
		{"control: two nodes of one name on one directory", "control", moved(t, control, base), nil, 1, []string{control.DataDir, "another"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := startNode(t, tc.role, tc.file, tc.args...)
			code := p.exit(t, 15*time.Second)
			message := p.out.String()
			if i := strings.LastIndex(message, "\nringmain: "); i >= 0 {
				message = message[i+1:]
			}
			if code != tc.code || !strings.HasPrefix(message, "ringmain: ") {
				t.Errorf("exit %d, want %d:\n%s", code, tc.code, p.out)
			}
			for _, s := range tc.says {
				if !strings.Contains(message, s) {
					t.Errorf("the error does not say %q:\n%s", s, message)
				}
			}
			badInput(t, tc.name, fmt.Sprintf("exit %d", code), message)
		})
	}
	// None of that disturbed the nodes that run.
	if a := d.ask(t, "POST", data.API+"/v1/chat/completions", chat(d.Model), d.bearer()...); a.status != 200 {
		t.Errorf("afterwards: %d %s", a.status, a.body)
	}
}

// copied is a copy of a node's directory, as it was at one moment: whoever
// writes there stands still meanwhile.
func copied(t *testing.T, d *devCluster, n clusterfile.Node) string {
	t.Helper()
	if p := d.now(t, n.Name); alive(p.PID) {
		defer func() { _ = syscall.Kill(p.PID, syscall.SIGCONT) }()
		if _, err := fault.Stop([]fault.Process{{Name: n.Name, PID: p.PID}}); err != nil {
			t.Fatal(err)
		}
	}
	to := t.TempDir()
	err := filepath.WalkDir(n.DataDir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(n.DataDir, path)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		case e.Type().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(to, rel), b, 0o600)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// A second node of a name that is taken, on another machine so to speak, gives
// way; the one that was there serves on.
func TestNameTaken(t *testing.T) {
	t.Parallel()
	const base = 28440
	d := small(t, base, "us-east:us")
	data := d.node(t, 0, "data")
	p := startNode(t, "data", moved(t, data, base), "--data-dir", t.TempDir())
	code := p.exit(t, 45*time.Second)
	message := p.lastLine()
	if code != 1 || !strings.Contains(message, "us-east-d1") || !strings.Contains(message, "give one of them another name") {
		t.Errorf("exit %d: %s", code, p.out)
	}
	badInput(t, "two nodes with one name", fmt.Sprintf("exit %d", code), message)
	if was := d.now(t, data.Name); was.PID != data.PID || was.WorkerPID != data.WorkerPID {
		t.Errorf("the first node was %+v, is %+v", data, was)
	}
	if a := d.ask(t, "POST", data.API+"/v1/chat/completions", chat(d.Model), d.bearer()...); a.status != 200 {
		t.Errorf("the first node: %d %s", a.status, a.body)
	}
}
