package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/internal/clusterfile"
)

// listens is a node's internal listener, as its configuration has it.
func listens(t testing.TB, n clusterfile.Node) string {
	t.Helper()
	b, err := os.ReadFile(nodeFile(n))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "listen:")
	_, rest, _ = strings.Cut(rest, "internal: ")
	addr, _, _ := strings.Cut(rest, "\n")
	if _, _, err := net.SplitHostPort(addr); err != nil {
		t.Fatal(err)
	}
	return addr
}

// stranger is a peer with a certificate of its own making, or of none.
func stranger(t testing.TB, caDir string, id *identity.ID, protocol string) *tls.Config {
	t.Helper()
	// It does not care whom it attacks.
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS13}
	if id == nil {
		return cfg
	}
	ca, err := identity.OpenCA(caDir)
	if errors.Is(err, os.ErrNotExist) {
		ca, err = identity.CreateCA(caDir, id.Cluster)
	}
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.IssueNode(*id, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(issued.Chain, issued.Key)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Certificates = []tls.Certificate{pair}
	return cfg
}

// Whoever is not who it must be, or says what it may not, is told so, and
// changes nothing.
func TestPeerMistakes(t *testing.T) {
	d := shared(t)
	ours, foreign := filepath.Join(d.dir, "ca"), filepath.Join(t.TempDir(), "ca")
	victim := d.node(t, 0, "control")
	cluster, addr := readNodeYAML(t, victim).Cluster, listens(t, victim)
	id := func(region, role, node string) *identity.ID {
		return &identity.ID{Cluster: cluster, Region: region, Role: role, Node: node}
	}
	eu := id("eu-fra", identity.RoleControl, "eu-fra-c9")
	before := shardsOf(t, d)

	for _, tc := range []struct {
		name, ca string
		id       *identity.ID
		protocol string
		says     string // in the victim's log
	}{
		{"without a certificate", "", nil, "h2", "certificate"},
		{"with a certificate of another cluster", foreign, &identity.ID{Cluster: "another", Region: "us-east", Role: identity.RoleControl, Node: "us-east-c2"}, "h2", "another"},
		{"a data node of another region", ours, id("eu-fra", identity.RoleData, "eu-fra-d1"), "h2", "eu-fra"},
		{"a control node of another region that asks for Raft", ours, eu, "ringmain-raft/1", "eu-fra"},
		{"a data node that asks for Raft", ours, id("us-east", identity.RoleData, "us-east-d1"), "ringmain-raft/1", "us-east-d1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			said := len(d.nodeLog(t, victim))
			dialer := tls.Dialer{Config: stranger(t, tc.ca, tc.id, tc.protocol)}
			conn, err := dialer.DialContext(t.Context(), "tcp", addr)
			if err == nil { // TLS 1.3 tells a client afterwards
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				_, err = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
			var timeout net.Error
			if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("it was let in: %v", err)
			}
			eventually(t, 5*time.Second, func() error {
				for line := range strings.Lines(d.nodeLog(t, victim)[said:]) {
					if strings.Contains(line, "refused") && strings.Contains(line, tc.says) {
						var said struct{ Msg, Err string }
						if err := json.Unmarshal([]byte(line), &said); err != nil {
							return err
						}
						badInput(t, "peer: "+tc.name, "the connection ends", said.Msg+": "+said.Err)
						return nil
					}
				}
				return fmt.Errorf("the node's log does not say that it refused %q: %s", tc.says, d.nodeLog(t, victim)[said:])
			})
		})
	}

	stale := controlplane.Epoch{Counter: 1, Region: "eu-fra"}
	type seal struct {
		Cluster string             `cbor:"1,keyasint"`
		Shard   string             `cbor:"2,keyasint"`
		Epoch   controlplane.Epoch `cbor:"3,keyasint"`
	}
	for _, tc := range []struct {
		name   string
		id     *identity.ID
		path   string
		body   any
		status int
		says   string
	}{
		{"a data node asks for ownership", id("us-east", identity.RoleData, "us-east-d1"), "/ownership/v1/seal", seal{cluster, "any-us-east", stale}, 403, "control"},
		{"a seal of another cluster", eu, "/ownership/v1/seal", seal{"another", "any-us-east", stale}, 403, "cluster"},
		{"a seal in the name of another region", eu, "/ownership/v1/seal", seal{cluster, "any-us-east", controlplane.Epoch{Counter: 9, Region: "ap-sg"}}, 403, "ap-sg"},
		{"a seal of a shard that the region does not hold", eu, "/ownership/v1/seal", seal{cluster, "eu", controlplane.Epoch{Counter: 9, Region: "eu-fra"}}, 404, "eu"},
		{"a stale epoch", eu, "/ownership/v1/seal", seal{cluster, "any-us-east", stale}, 409, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body, err := cbor.Marshal(tc.body)
			if err != nil {
				t.Fatal(err)
			}
			status, text := posted(t, d, tc.path, stranger(t, ours, tc.id, "h2"), body)
			if status != tc.status || !strings.Contains(text, tc.says) {
				t.Errorf("%d %q, want %d and %q", status, text, tc.status, tc.says)
			}
			if status == http.StatusConflict { // a report: what was promised already
				text = "the report names the higher epoch"
			}
			badInput(t, "peer: "+tc.name, fmt.Sprint(status), text)
		})
	}
	if after := shardsOf(t, d); after != before {
		t.Errorf("something was changed: %s, before %s", after, before)
	}
}

// posted asks whichever control node of the first region leads.
func posted(t testing.TB, d *devCluster, path string, cfg *tls.Config, body []byte) (status int, text string) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	for _, n := range d.Regions[0].Nodes {
		if n.Role != "control" {
			continue
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+listens(t, n)+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close() // read side
		if err != nil {
			t.Fatal(err)
		}
		if status, text = resp.StatusCode, strings.TrimSpace(string(b)); status != http.StatusMisdirectedRequest {
			break
		}
	}
	return status, text
}

// shardsOf tells homes and epochs, as the first region has them.
func shardsOf(t testing.TB, d *devCluster) string {
	t.Helper()
	stdout, stderr, code := d.cli(t, "shard", "list", "--region", d.Regions[0].Name, "-o", "json")
	var list struct {
		Items []struct{ Shard, Home, Epoch string }
	}
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || code != 0 || len(list.Items) == 0 {
		t.Fatalf("exit %d: %s %v", code, stderr, err)
	}
	return fmt.Sprint(list.Items)
}

// What would cost an operator dear is refused, with the way that is meant.
func TestOperatorMistakes(t *testing.T) {
	d := shared(t)
	before := shardsOf(t, d)
	victim := d.node(t, 0, "control")
	dir := t.TempDir()
	file := filepath.Join(dir, "whole.backup")
	if _, stderr, code := d.cli(t, "backup", "create", file, "--server", victim.Admin, "--token-file", d.AdminTokenFile, "--ca-file", d.CAFile); code != 0 {
		t.Fatal(stderr)
	}
	elsewhere := copied(t, d, victim)
	apart := variant(t, victim, victim.DataDir, elsewhere)
	self := listens(t, victim)
	empty := filepath.Join(dir, "empty")
	for _, tc := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"takeover of a live home", []string{"shard", "takeover", "any-us-east", "--to", "eu-fra"}, 1, []string{"shard move", "--force"}},
		{"takeover by a region that does not exist", []string{"shard", "takeover", "any-us-east", "--to", "atlantis"}, 1, []string{"atlantis"}},
		{"takeover of a shard that does not exist", []string{"shard", "takeover", "any-atlantis", "--to", "eu-fra"}, 1, []string{"eu-fra holds no shard"}},
		{"restore over live data", []string{"backup", "restore", file, "--key", readNodeYAML(t, victim).SealKeyFile, "--config", nodeFile(victim)}, 1, []string{victim.DataDir, "empty"}},
		{"restore under the wrong key", []string{"backup", "restore", file, "--key", readNodeYAML(t, d.node(t, 1, "control")).SealKeyFile, "--config", variant(t, victim, victim.DataDir, empty)}, 1, []string{"key"}},
		{"recovery without the node itself", []string{"node", "recover", "--config", apart, "--peers", "us-east-c7=127.0.0.1:9"}, 1, []string{victim.Name, "itself"}},
		{"recovery with two nodes at one address", []string{"node", "recover", "--config", apart, "--peers", victim.Name + "=" + self + ",us-east-c2=" + self}, 1, []string{"twice"}},
		{"recovery with a list that is none", []string{"node", "recover", "--config", apart, "--peers", "us-east-c2"}, 2, []string{"name=host:port"}},
		{"recovery of a node that runs", []string{"node", "recover", "--config", nodeFile(victim), "--peers", victim.Name + "=" + self}, 1, []string{"stop"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stdout, stderr, code := d.cli(t, tc.args...)
			if code != tc.code || stdout != "" {
				t.Errorf("exit %d, want %d, stdout %q: %s", code, tc.code, stdout, stderr)
			}
			for _, s := range tc.says {
				if !strings.Contains(stderr, s) {
					t.Errorf("the error does not say %q: %s", s, stderr)
				}
			}
			badInput(t, "operator: "+tc.name, fmt.Sprintf("exit %d", code), stderr)
		})
	}

	t.Run("recovery with a stranger in the list", func(t *testing.T) {
		// Only the node's own log knows who belongs to its region.
		if _, stderr, code := d.cli(t, "node", "recover", "--config", apart, "--peers", victim.Name+"="+self+",us-east-c7=127.0.0.1:9"); code != 0 {
			t.Fatal(stderr)
		}
		p := startNode(t, "control", movedTo(t, victim, 19440, elsewhere))
		code := p.exit(t, 20*time.Second)
		if message := p.lastLine(); code != 1 || !strings.Contains(message, "us-east-c7") || !strings.Contains(message, "nothing was changed") {
			t.Errorf("exit %d: %s", code, p.out)
		}
		badInput(t, "operator: recovery with a stranger in the list", fmt.Sprintf("exit %d", code), p.lastLine())
	})
	if after := shardsOf(t, d); after != before {
		t.Errorf("something was changed: %s, before %s", after, before)
	}
	if entries, err := os.ReadDir(empty); err == nil && len(entries) > 0 {
		t.Errorf("a restore under the wrong key left %v", entries)
	}
}

func movedTo(t testing.TB, n clusterfile.Node, base int, data string) string {
	t.Helper()
	return moved(t, n, base, n.DataDir, data)
}

// A manifest that would move an org to another jurisdiction while its requests
// are served: refused, and nobody notices.
func TestMovedJurisdiction(t *testing.T) {
	d := shared(t)
	ctx, cancel := context.WithCancel(t.Context())
	var served, failed atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			a, err := d.tryAsk(t.Context(), d.client(true), "POST", d.Regions[0].API+"/v1/chat/completions", chat(d.Model), d.bearer()...)
			if served.Add(1); err != nil || a.status != 200 {
				failed.Add(1)
				t.Errorf("%d %s %v", a.status, a.body, err)
			}
		}
	}()
	path := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte("orgs:\n  - name: dev\n    jurisdiction: eu\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if served.Load() == 0 {
			return errors.New("no request yet")
		}
		return nil
	})
	was, _, _ := d.cli(t, "org", "list", "-o", "json")
	stdout, stderr, code := d.cli(t, "apply", "--yes", "-f", path)
	is, _, _ := d.cli(t, "org", "list", "-o", "json")
	before := served.Load()
	eventually(t, 10*time.Second, func() error {
		if served.Load() < before+3 {
			return errors.New("no request since")
		}
		return nil
	})
	cancel()
	<-done
	if code != 1 || !strings.Contains(stderr, "--to eu`") || !strings.Contains(stderr, "manifest.yaml:") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if was != is {
		t.Errorf("orgs before: %s\nafter: %s", was, is)
	}
	badInput(t, "manifest: an org's jurisdiction moves while requests are served", fmt.Sprintf("exit %d, %d requests, %d failed", code, served.Load(), failed.Load()), stderr)
}
