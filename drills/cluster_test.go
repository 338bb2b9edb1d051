package drills_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/drills/fault"
	"ringmain/drills/simmodel"
	"ringmain/internal/clusterfile"
	"ringmain/internal/testkit/netkit"
)

// This file is a whole cluster in miniature: each node a process of its own
// (this test binary, started again), so that a drill can really kill it.

const asNode = "DRILLS_TEST_NODE"

func TestMain(m *testing.M) {
	if role := os.Getenv(asNode); role != "" {
		beNode(role)
		return
	}
	goleak.VerifyTestMain(m)
}

// nodeConfig reaches a node by its environment.
type nodeConfig struct {
	Role, Region, Addr, Cert, Key string
	Data                          map[string]string // data node addresses, by region
}

// beNode serves until standard input ends, which it does with the test.
func beNode(config string) {
	var c nodeConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		panic(err)
	}
	sim := simmodel.New(simmodel.Config{FirstToken: 10 * time.Millisecond, TokensPerSecond: 200})
	mux := http.NewServeMux()
	ok := func(http.ResponseWriter, *http.Request) {}
	mux.HandleFunc("GET /readyz", ok)
	mux.HandleFunc("GET /livez", ok)
	if c.Role == "data" {
		mux.HandleFunc("POST /v1/", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("idc-entry-region", c.Region)
			w.Header().Set("idc-region", c.Region)
			w.Header().Set("idc-route", c.Region+"/"+c.Region+"-d1 > sim")
			sim.ServeHTTP(w, r)
		})
	} else {
		mux.HandleFunc("GET /admin/v1/regions", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("authorization") != "Bearer admin-token" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			var items []map[string]string
			for region, addr := range c.Data {
				state := "down"
				if conn, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
					_ = conn.Close()
					state = "up"
				}
				items = append(items, map[string]string{"name": region, "published": state})
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"items": items})
		})
	}
	srv := &http.Server{Addr: c.Addr, Handler: mux, ReadHeaderTimeout: time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)} // probes break handshakes off
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	panic(srv.ListenAndServeTLS(c.Cert, c.Key))
}

// cluster is the supervisor and the front door of the miniature.
type cluster struct {
	t     *testing.T
	file  string
	nodes []*clusterNode
	wg    sync.WaitGroup

	mu     sync.Mutex
	held   map[string]int
	lie    map[string]int // pid that status gives instead, by node
	frozen bool           // the front door never turns from its first region
}

type clusterNode struct {
	name, region, role string
	config             string
	pid                int
}

func startCluster(t *testing.T, change func(*cluster)) *cluster {
	t.Helper()
	dir := t.TempDir()
	cert, key := certificate(t, dir)
	c := &cluster{t: t, file: filepath.Join(dir, "cluster.json"), held: map[string]int{}, lie: map[string]int{}}
	regions := []string{"eu-fra", "us-east"}
	addresses := netkit.Addresses(5) // a node must come back under the address it had
	data := map[string]string{"eu-fra": addresses[0], "us-east": addresses[2]}
	file := clusterfile.Cluster{
		Ready: true, CAFile: cert, Model: "sim-chat", MessagesModel: "sim-messages", RemoteModel: "sim-far", APIKey: "idc_live_any_x",
		Supervisor: filepath.Join(dir, "supervisor.sock"), AdminTokenFile: filepath.Join(dir, "token"), FrontDoor: "https://" + addresses[4],
	}
	if err := os.WriteFile(file.AdminTokenFile, []byte("admin-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, region := range regions {
		api, admin := addresses[2*i], addresses[2*i+1]
		r := clusterfile.Region{Name: region, Jurisdiction: region[:2], API: "https://" + api, Admin: "https://" + admin, Nodes: []clusterfile.Node{
			{Name: region + "-c1", Role: "control", Admin: "https://" + admin}, {Name: region + "-d1", Role: "data", API: "https://" + api},
		}}
		file.Regions = append(file.Regions, r)
		for _, n := range r.Nodes {
			addr := admin
			if n.Role == "data" {
				addr = api
			}
			config, err := json.Marshal(nodeConfig{Role: n.Role, Region: region, Addr: addr, Cert: cert, Key: key, Data: data})
			if err != nil {
				t.Fatal(err)
			}
			c.nodes = append(c.nodes, &clusterNode{name: n.Name, region: region, role: n.Role, config: string(config)})
		}
	}
	if err := file.Write(c.file); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		c.wg.Wait()
	})
	for _, n := range c.nodes {
		c.wg.Go(func() { c.supervise(ctx, n) })
	}
	c.listen(ctx, "unix", file.Supervisor, c.attend)
	c.listen(ctx, "tcp", addresses[4], func(conn net.Conn) { c.pass(conn, data[regions[0]], data[regions[1]]) })
	return c
}

// supervise keeps one node running, unless its region is held.
func (c *cluster) supervise(ctx context.Context, n *clusterNode) {
	for ctx.Err() == nil {
		c.mu.Lock()
		held := c.held[n.region] > 0
		c.mu.Unlock()
		if held {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), asNode+"="+n.config)
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			if ctx.Err() == nil {
				c.t.Error(err)
			}
			return
		}
		c.setPID(n, cmd.Process.Pid)
		_ = cmd.Wait() // it was killed: by the drill, or at the end
		_ = stdin.Close()
		c.setPID(n, 0)
	}
}

func (c *cluster) setPID(n *clusterNode, pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n.pid = pid
}

func (c *cluster) heldNow(region string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held[region]
}

func (c *cluster) listen(ctx context.Context, network, address string, handle func(net.Conn)) {
	l, err := net.Listen(network, address)
	if err != nil {
		c.t.Fatal(err)
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	c.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			c.wg.Go(func() {
				defer stop()
				handle(conn)
				_ = conn.Close()
			})
		}
	})
}

func (c *cluster) attend(conn net.Conn) {
	held := map[string]bool{}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for r := range held {
			c.held[r]--
		}
	}()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var req struct{ Op, Region string }
		if json.Unmarshal(lines.Bytes(), &req) != nil {
			return
		}
		var processes []fault.Process
		c.mu.Lock()
		switch {
		case req.Op == "hold" && !held[req.Region]:
			held[req.Region] = true
			c.held[req.Region]++
		case req.Op == "release" && held[req.Region]:
			delete(held, req.Region)
			c.held[req.Region]--
		}
		for _, n := range c.nodes {
			p := fault.Process{Name: n.name, Region: n.region, Role: n.role, PID: n.pid, State: fault.StateRunning}
			if pid := c.lie[n.name]; pid != 0 {
				p.PID = pid
			}
			if p.PID == 0 {
				p.State = fault.StateHeld
			}
			processes = append(processes, p)
		}
		c.mu.Unlock()
		if json.NewEncoder(conn).Encode(map[string]any{"ok": true, "processes": processes}) != nil {
			return
		}
	}
}

// pass gives a connection to the first backend that accepts.
func (c *cluster) pass(conn net.Conn, backends ...string) {
	if c.frozen {
		backends = backends[:1]
	}
	for _, b := range backends {
		out, err := net.DialTimeout("tcp", b, time.Second)
		if err != nil {
			continue
		}
		var both sync.WaitGroup
		for _, way := range [][2]net.Conn{{conn, out}, {out, conn}} {
			both.Go(func() {
				_, _ = io.Copy(way[0], way[1])
				_, _ = conn.Close(), out.Close()
			})
		}
		both.Wait()
		return
	}
}

func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{netkit.Host()}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, key = write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", pkcs8)
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		t.Fatal(err)
	}
	return cert, key
}
