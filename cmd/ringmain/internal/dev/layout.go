package dev

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/seal"
)

// Shape is what a development cluster looks like. A directory remembers the
// shape it was made with.
type Shape struct {
	Cluster string        `json:"cluster"`
	Regions []RegionShape `json:"regions"`
	Control int           `json:"control"` // control nodes per region
	Data    int           `json:"data"`    // data nodes per region
	Port    int           `json:"port"`    // the front door's; every other port follows from it
}

// RegionShape is one region's name and jurisdiction.
type RegionShape struct {
	Name         string `json:"name"`
	Jurisdiction string `json:"jurisdiction"`
}

var regionRE = regexp.MustCompile(`^([a-z][a-z0-9-]{1,30}):([a-z]{2,4})$`)

// ParseRegions reads "us-east:us,eu-fra:eu".
func ParseRegions(list string) ([]RegionShape, error) {
	var out []RegionShape
	for part := range strings.SplitSeq(list, ",") {
		m := regionRE.FindStringSubmatch(strings.TrimSpace(part))
		if m == nil || m[2] == "any" {
			return nil, fmt.Errorf("--regions: want name:jurisdiction, such as us-east:us, got %q", part)
		}
		r := RegionShape{Name: m[1], Jurisdiction: m[2]}
		if slices.ContainsFunc(out, func(o RegionShape) bool { return o.Name == r.Name }) {
			return nil, fmt.Errorf("--regions: %q is named twice", r.Name)
		}
		out = append(out, r)
	}
	return out, nil
}

func (s *Shape) check() error {
	switch {
	case len(s.Regions) < 1 || len(s.Regions) > 9:
		return errors.New("--regions: want one to nine regions")
	case s.Control < 1 || s.Control > 5:
		return errors.New("--control: want one to five control nodes per region")
	case s.Data < 1 || s.Data > 9:
		return errors.New("--data: want one to nine data nodes per region")
	case s.Port < 1024 || s.Port+100+100*len(s.Regions) > 65535:
		return errors.New("--port: want a port from 1024 up that leaves room for the regions' blocks of 100")
	}
	return nil
}

// Ports, from the front door's: +1… region endpoints, +11… region admin
// endpoints, +21… simulated providers, then a block of 100 per region: control
// nodes at 10, 20, … and data nodes at 60, 64, ….
func (s *Shape) addr(offset int) string  { return fmt.Sprintf("127.0.0.1:%d", s.Port+offset) }
func (s *Shape) api(region int) string   { return s.addr(1 + region) }
func (s *Shape) admin(region int) string { return s.addr(11 + region) }
func (s *Shape) model(region int) string { return s.addr(21 + region) }
func (s *Shape) control(region, i, which int) string {
	return s.addr(100*(region+1) + 10*(i+1) + which)
}
func (s *Shape) data(region, i, which int) string {
	return s.addr(100*(region+1) + 60 + 4*i + which)
}
func (s *Shape) dataWAN(region, i int) string { return s.addr(100*(region+1) + i) }

// node is one process to supervise (two, for a data node).
type node struct {
	region  int
	index   int
	name    string
	role    config.Role
	dir     string // its own directory: config, identity, data, log
	metrics string
	api     string // data
	admin   string // control
}

func (n *node) configFile() string { return filepath.Join(n.dir, "node.yaml") }
func (n *node) dataDir() string    { return filepath.Join(n.dir, "data") }

func (s *Shape) nodes(dir string) []*node {
	var all []*node
	for r, region := range s.Regions {
		for i := range s.Control {
			name := fmt.Sprintf("%s-c%d", region.Name, i+1)
			all = append(all, &node{region: r, index: i, name: name, role: config.Control, dir: filepath.Join(dir, region.Name, name),
				admin: s.control(r, i, 1), metrics: s.control(r, i, 2)})
		}
		for i := range s.Data {
			name := fmt.Sprintf("%s-d%d", region.Name, i+1)
			all = append(all, &node{region: r, index: i, name: name, role: config.Data, dir: filepath.Join(dir, region.Name, name),
				api: s.data(r, i, 0), metrics: s.data(r, i, 2)})
		}
	}
	return all
}

// topology is the regions part of every node's configuration.
func (s *Shape) topology() []config.Region {
	var out []config.Region
	for r, region := range s.Regions {
		cr := config.Region{Name: region.Name, Jurisdiction: region.Jurisdiction, Endpoint: "https://" + s.api(r)}
		for i := range s.Control {
			cr.Control = append(cr.Control, config.ControlNode{Node: fmt.Sprintf("%s-c%d", region.Name, i+1),
				Internal: s.control(r, i, 0), LAN: s.control(r, i, 3), WAN: s.control(r, i, 4)})
		}
		for i := range s.Data {
			cr.Data = append(cr.Data, config.DataNode{Node: fmt.Sprintf("%s-d%d", region.Name, i+1), API: s.data(r, i, 0), Peer: s.data(r, i, 1)})
		}
		out = append(out, cr)
	}
	return out
}

// prepare makes the directory, or checks that it holds a cluster of this shape.
func prepare(dir string, opts Options) (*Shape, error) {
	want := opts.Shape
	file := filepath.Join(dir, "shape.json")
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if entries, _ := os.ReadDir(dir); len(entries) > 1 { // the lock is there already
			return nil, fmt.Errorf("%s is not empty and holds no development cluster: choose another --dir", dir)
		}
		want.Cluster = "dev-" + strings.ToLower(rand.Text()[:8])
		b, err := json.MarshalIndent(&want, "", "  ")
		if err != nil {
			return nil, err
		}
		// Half a cluster would be taken for a stranger's files at the next start.
		if err := errors.Join(writeSecrets(dir, &want), writeFile(file, b)); err != nil {
			return nil, errors.Join(err, empty(dir))
		}
	case err != nil:
		return nil, err
	default:
		var have Shape
		if err := json.Unmarshal(b, &have); err != nil {
			return nil, fmt.Errorf("%s is damaged: start anew with FRESH=1 (--fresh): %w", file, err)
		}
		want.Cluster = have.Cluster
		if !slices.Equal(have.Regions, want.Regions) || have.Control != want.Control || have.Data != want.Data || have.Port != want.Port {
			return nil, fmt.Errorf("%s holds a cluster of another shape (%s; %d control, %d data, port %d): give the same flags, another --dir, or start anew with FRESH=1 (--fresh)",
				dir, regionList(have.Regions), have.Control, have.Data, have.Port)
		}
	}
	return &want, issue(dir, &want, opts)
}

func regionList(rs []RegionShape) string {
	parts := make([]string, len(rs))
	for i, r := range rs {
		parts[i] = r.Name + ":" + r.Jurisdiction
	}
	return strings.Join(parts, ",")
}

// writeSecrets makes what a cluster keeps for life: the CA, the seal keys, the
// gossip keys and the secret that verdict keys derive from.
func writeSecrets(dir string, s *Shape) error {
	if _, err := identity.CreateCA(filepath.Join(dir, "ca"), s.Cluster); err != nil {
		return err
	}
	if err := writeRandom(filepath.Join(dir, "wan.key")); err != nil {
		return err
	}
	if err := writeRandom(filepath.Join(dir, "cluster.secret")); err != nil {
		return err
	}
	for _, r := range s.Regions {
		if err := os.MkdirAll(filepath.Join(dir, r.Name), 0o700); err != nil {
			return err
		}
		if err := writeRandom(filepath.Join(dir, r.Name, "lan.key")); err != nil {
			return err
		}
		if err := seal.CreateKeyFile(filepath.Join(dir, r.Name, "seal.key")); err != nil {
			return err
		}
	}
	return nil
}

func writeRandom(path string) error {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (crypto/rand documents it)
	return os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(b)+"\n"), 0o600)
}

func writeFile(path string, b []byte) error {
	return os.WriteFile(path, b, 0o600) //nolint:gosec // G703: paths are made of the directory the user named
}

const (
	rootsName = "ca.pem" // what clients verify servers by
	leafTTL   = 30 * 24 * time.Hour
	tokenTTL  = 30 * 24 * time.Hour
)

// issue writes, at every start, fresh certificates, a fresh admin token and
// each node's configuration.
func issue(dir string, s *Shape, opts Options) error {
	ca, err := identity.OpenCA(filepath.Join(dir, "ca"))
	if err != nil {
		return err
	}
	token := "rma_" + rand.Text()
	if err := os.WriteFile(filepath.Join(dir, "admin.token"), []byte(token+"\n"), 0o600); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(token))
	tokens := []config.AdminToken{{Name: "dev", SHA256: hex.EncodeToString(sum[:]), Expires: opts.Now().Add(tokenTTL).UTC().Truncate(time.Second)}}
	loopback := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	server, err := ca.IssueServer([]string{"localhost"}, loopback, leafTTL)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, rootsName), ca.ServerRoots()); err != nil {
		return err
	}
	upstreamRoots := filepath.Join(dir, "upstream-ca.pem")
	var more []byte
	if opts.UpstreamCA != "" {
		if more, err = os.ReadFile(opts.UpstreamCA); err != nil {
			return fmt.Errorf("--upstream-ca: %w", err)
		}
	}
	if err := writeFile(upstreamRoots, append(ca.ServerRoots(), more...)); err != nil {
		return err
	}

	for _, n := range s.nodes(dir) {
		region := s.Regions[n.region].Name
		idDir := filepath.Join(n.dir, "identity")
		if err := os.MkdirAll(idDir, 0o700); err != nil {
			return err
		}
		issued, err := ca.IssueNode(identity.ID{Cluster: s.Cluster, Region: region, Role: string(n.role), Node: n.name}, loopback, leafTTL)
		if err != nil {
			return err
		}
		if err := issued.Write(idDir); err != nil {
			return err
		}
		cert, key := filepath.Join(idDir, "tls.pem"), filepath.Join(idDir, "tls.key")
		if err := errors.Join(writeFile(cert, server.Chain), writeFile(key, server.Key)); err != nil {
			return err
		}
		c := config.Config{
			Cluster: s.Cluster, Region: region, Node: n.name, Role: n.role, DataDir: n.dataDir(), LogLevel: "info",
			Listen:            config.Listen{Metrics: n.metrics},
			Gossip:            config.Gossip{LANKeyFile: filepath.Join(dir, region, "lan.key"), WANKeyFile: filepath.Join(dir, "wan.key")},
			Identity:          config.Identity{Dir: idDir, TLSCert: cert, TLSKey: key},
			SealKeyFile:       filepath.Join(dir, region, "seal.key"),
			ClusterSecretFile: filepath.Join(dir, "cluster.secret"),
			Regions:           s.topology(),
		}
		if n.role == config.Control {
			c.Listen.Internal, c.Listen.Admin = s.control(n.region, n.index, 0), n.admin
			c.Gossip.LAN, c.Gossip.WAN = s.control(n.region, n.index, 3), s.control(n.region, n.index, 4)
			c.AdminTokens, c.ServerCAFile = tokens, filepath.Join(dir, rootsName)
		} else {
			c.Listen.API, c.Listen.Peer = n.api, s.data(n.region, n.index, 1)
			c.Gossip.LAN, c.Gossip.WAN = s.data(n.region, n.index, 3), s.dataWAN(n.region, n.index)
			c.UpstreamCAFile = upstreamRoots
		}
		if err := c.Validate(); err != nil {
			return fmt.Errorf("configuration of %s: %w", n.name, err)
		}
		b, err := yaml.Marshal(&c)
		if err != nil {
			return err
		}
		if err := os.WriteFile(n.configFile(), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// portsFree reports the first address that something else holds.
func (s *Shape) portsFree(dir string) error {
	try := []string{s.addr(0)}
	for r := range s.Regions {
		try = append(try, s.api(r), s.admin(r), s.model(r))
	}
	for _, n := range s.nodes(dir) {
		try = append(try, n.metrics)
		if n.role == config.Control {
			try = append(try, n.admin, s.control(n.region, n.index, 0), s.control(n.region, n.index, 3), s.control(n.region, n.index, 4))
		} else {
			try = append(try, n.api, s.data(n.region, n.index, 1), s.data(n.region, n.index, 3), s.dataWAN(n.region, n.index))
		}
	}
	for _, addr := range try {
		l, err := net.Listen("tcp", addr) //nolint:noctx // binding a loopback port does not wait
		if err != nil {
			return fmt.Errorf("port in use: %w\nend what listens there, or choose other ports with --port (this one was derived from --port %d)", err, s.Port)
		}
		_ = l.Close()
	}
	return nil
}
