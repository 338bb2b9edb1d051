// Package config reads a node's one YAML file, strictly, with environment and
// flags laid over it. It knows names, addresses and files; it opens none of them.
package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// Role is what a node is.
type Role string

// Roles.
const (
	Control Role = "control"
	Data    Role = "data"
)

// Config is one node's configuration. Every field without a default named here
// must be set; Validate says which is missing.
type Config struct {
	Cluster  string `yaml:"cluster"`   // id of the cluster; a data directory remembers it and refuses another
	Region   string `yaml:"region"`    // this node's region; must be listed under regions
	Node     string `yaml:"node"`      // unique in the cluster; two nodes with one name refuse each other
	Role     Role   `yaml:"role"`      // control or data
	DataDir  string `yaml:"data_dir"`  // this node's own; created 0700
	LogLevel string `yaml:"log_level"` // debug, info, warn, error; empty = info

	Listen   Listen   `yaml:"listen"`
	Gossip   Gossip   `yaml:"gossip"`
	Identity Identity `yaml:"identity"`

	SealKeyFile       string `yaml:"seal_key_file"`       // the region's key-encryption key; losing it loses everything at rest
	BackupKeyFile     string `yaml:"backup_key_file"`     // control: the key that backups are sealed under; empty = seal_key_file
	ClusterSecretFile string `yaml:"cluster_secret_file"` // 32 bytes shared by all nodes; derives the verdict keys
	UpstreamCAFile    string `yaml:"upstream_ca_file"`    // data: extra roots for providers; empty = the system's only
	ServerCAFile      string `yaml:"server_ca_file"`      // control: extra roots for other regions' client listeners; empty = the system's only

	AdminTokens []AdminToken `yaml:"admin_tokens"` // control
	Regions     []Region     `yaml:"regions"`      // in order; the first is home of the global shard
	Pools       []string     `yaml:"pools"`        // data; empty = standard and zero-retention
	Documents   Documents    `yaml:"documents"`    // data; each may be empty: then clients are told that there is none
	Receipts    Receipts     `yaml:"receipts"`     // data
	HTTP1       string       `yaml:"http1"`        // data: empty = our own server side for clients; standard = net/http's, at a fifth more CPU
	HTTP2       string       `yaml:"http2"`        // data: empty = our own server side for clients; standard = net/http's, at half again the CPU
	Takeover    Takeover     `yaml:"takeover"`     // control
	Raft        Raft         `yaml:"raft"`         // control; the same on all control nodes of a region, since whoever leads decides
	Tunables    Tunables     `yaml:"tunables"`

	load func() (*Config, error)
}

// Again reads anew what the configuration was loaded from.
func (c *Config) Again() (*Config, error) {
	if c.load == nil {
		return c, nil
	}
	return c.load()
}

// Takeover says what a region does about shards whose home is lost.
type Takeover struct {
	// AutomaticAfter is how long the home must have been published as down
	// before another member takes its shards over by itself; shards with fewer
	// than three members are taken over by hand only. Too short a time makes a
	// takeover of every short cut. 0 = never.
	AutomaticAfter time.Duration `yaml:"automatic_after"`
}

// Raft says what a region's leader does about its members by itself.
type Raft struct {
	// PromoteAfter is how long a node that was added must have kept up before it
	// votes; 0 = 10s. One that votes too early and falls behind again counts
	// for the majority, and holds up writes.
	PromoteAfter time.Duration `yaml:"promote_after"`
	// RemoveDeadAfter is how long a voter may be silent before it is removed,
	// if three others remain and a majority of them answers; 0 = never. At
	// least 1m; below some hours, maintenance looks like death, and a node that
	// comes back has to be added anew.
	RemoveDeadAfter time.Duration `yaml:"remove_dead_after"`
}

// Listen holds host:port addresses.
type Listen struct {
	Internal string `yaml:"internal"` // control: mutual TLS, raft and feeds
	Admin    string `yaml:"admin"`    // control: TLS, operators
	API      string `yaml:"api"`      // data: TLS, clients
	Peer     string `yaml:"peer"`     // data: mutual TLS, other data nodes
	Metrics  string `yaml:"metrics"`  // plain HTTP: must be loopback
}

// Gossip holds the memberlist addresses and keys (32 bytes, base64, in files).
type Gossip struct {
	LAN        string `yaml:"lan"`
	WAN        string `yaml:"wan"`
	LANKeyFile string `yaml:"lan_key_file"`
	WANKeyFile string `yaml:"wan_key_file"`
}

// Identity names certificate files.
type Identity struct {
	Dir     string `yaml:"dir"`      // node.pem, node.key, roots.pem
	TLSCert string `yaml:"tls_cert"` // PEM chain shown to clients or operators
	TLSKey  string `yaml:"tls_key"`
}

// Documents names files that a data node publishes as they are: text,
// Markdown, HTML, JSON or PDF, by their ending.
type Documents struct {
	SecurityTxt string `yaml:"security_txt"` // RFC 9116; at /.well-known/security.txt. One that has expired keeps the node from starting
	DPA         string `yaml:"dpa"`          // at /legal/dpa
	AUP         string `yaml:"aup"`          // at /legal/aup
	Compliance  string `yaml:"compliance"`   // at /legal/compliance
}

// Receipts says how a data node states what passed through it.
type Receipts struct {
	// Hash of bodies: sha-256 for all of them, where evidence must be made with
	// what FIPS 140 approves; empty = BLAKE3 for those of 64 KiB and more, which
	// takes 40 % of the time. Receipts name the hash of each body.
	Hash string `yaml:"hash"`
}

// AdminToken is one bearer token of /admin/v1, by its hash.
type AdminToken struct {
	Name    string    `yaml:"name"`
	SHA256  string    `yaml:"sha256"`  // hex, of the token's text
	Expires time.Time `yaml:"expires"` // RFC 3339
}

// Region is one failure domain, as every node must know it before it knows anything else.
type Region struct {
	Name         string        `yaml:"name"`
	Jurisdiction string        `yaml:"jurisdiction"`
	Endpoint     string        `yaml:"endpoint"` // https URL that clients use
	Control      []ControlNode `yaml:"control"`
	Data         []DataNode    `yaml:"data"` // observed for health; may be empty
}

// ControlNode is one control node's addresses: the first contact. Who belongs to
// a region, and where, is known by its control nodes once one of them answers.
type ControlNode struct {
	Node     string `yaml:"node"`
	Reader   bool   `yaml:"reader"` // it never votes, and serves feeds to data nodes: after its first start, `ringmain node add --reader`
	Internal string `yaml:"internal"`
	LAN      string `yaml:"lan"`
	WAN      string `yaml:"wan"`
}

// DataNode is one data node's addresses.
type DataNode struct {
	Node string `yaml:"node"`
	API  string `yaml:"api"`
	Peer string `yaml:"peer"`
}

// Tunables may be changed without changing what the node is.
type Tunables struct {
	Capacity     uint32        `yaml:"capacity"`      // data: requests in flight before shedding; 0 = 4096
	DrainTimeout time.Duration `yaml:"drain_timeout"` // data: how long a stop waits for streams; 0 = 30s
	RecordMemory uint32        `yaml:"record_memory"` // data: bytes of metadata records held while the disk takes none, before requests are refused; 0 = 32 MiB
	RecordDisk   uint64        `yaml:"record_disk"`   // data: bytes of metadata records kept on disk, before requests are refused; 0 = 4 GiB
	RecordAge    time.Duration `yaml:"record_age"`    // data: metadata records older than this are removed; 0 = 720h
	ReceiptDisk  uint64        `yaml:"receipt_disk"`  // data: bytes of signed receipts kept on disk, the oldest give way (a 404 from then on, however young); 0 = 1 GiB
	ReceiptAge   time.Duration `yaml:"receipt_age"`   // data: receipts older than this are removed; 0 = 24h
	Edge         Edge          `yaml:"edge"`          // data
	KeyAge       KeyAge        `yaml:"key_age"`
}

// KeyAge says how long keys and tokens are accepted by a node that cannot know
// whether they were revoked meanwhile. After that they are refused with 503
// not_ready, until it hears of the control plane again. How long that has been is
// ringmain_data_position_age_seconds.
type KeyAge struct {
	// Live and Test are for API keys at a data node that no control node of its
	// region reaches; 0 = for ever: a region without its control plane goes on,
	// and so does a key revoked meanwhile. What is set here turns the loss of the
	// control plane into a loss of service. At least 10s.
	Live time.Duration `yaml:"live"`
	Test time.Duration `yaml:"test"`
	// Admin is for operators' tokens at a control node that hears no leader of
	// its region; 0 = 5m. A region that is cut off from all others still accepts
	// them: they are what takes its shards over. At least 10s.
	Admin time.Duration `yaml:"admin"`
}

// Edge bounds what strangers may do at the listener for clients. A change in
// the file is in force within half a minute, or at SIGHUP; connections that are
// open stay. A source is an IPv4 address, or the /64 of an IPv6 address. Behind
// a balancer that hides its clients all of them are one source: then the limits
// of a source must be as wide as those of the node, and a flood of wrong keys
// makes everybody's wrong keys wait.
type Edge struct {
	Conns       uint32        `yaml:"conns"`             // open connections of a source; 0 = 16384, and an eighth of total_conns if that is 0, too
	Silent      uint32        `yaml:"silent"`            // of those, how many may not have sent a request yet; 0 = 512. Too few turn away customers behind one address who connect at once
	NewConns    uint32        `yaml:"new_conns"`         // new connections of a source a second, and twice that at once; 0 = 1000. Each costs a handshake
	TotalConns  uint32        `yaml:"total_conns"`       // open connections in all; 0 = as many as half of the memory holds at 50 KiB each, and 131072 at most
	Aborts      uint32        `yaml:"aborts"`            // requests a connection may break off in 10 s, if they are most of it; 0 = 200
	ConnAge     time.Duration `yaml:"conn_age"`          // after which a connection is told to go; 0 = 10m. Short ones cost handshakes, long ones stay with a node that is no longer the nearest
	WrongKeys   uint32        `yaml:"wrong_keys"`        // refused keys of a source a second that are answered without delay; 0 = 20
	WrongDelay  time.Duration `yaml:"wrong_delay"`       // the longest that a refused key beyond that waits; 0 = 500ms, at most 10s
	WrongHeld   uint32        `yaml:"wrong_held"`        // refused keys of a source that wait at once; 0 = 64. One more ends its connection
	WrongHeldBy uint32        `yaml:"wrong_held_by_all"` // of all sources; 0 = 1024, at about 30 KiB each
	WrongByAll  uint32        `yaml:"wrong_keys_by_all"` // refused keys of all sources a second that are answered without delay; 0 = 1000
}

var (
	nameRE         = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	jurisdictionRE = regexp.MustCompile(`^[a-z]{2,4}$`)
)

// Load reads file strictly (an unknown field is an error with its line), lays
// environment variables RINGMAIN_<PATH> (such as RINGMAIN_LISTEN_API) over its
// scalar fields, and validates the result.
func Load(file string, environ []string) (*Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c := new(Config)
	if err := yaml.UnmarshalWithOptions(b, c, yaml.Strict()); err != nil {
		if at := wrongDuration(b); at != nil { // the library names no place for these
			return nil, fmt.Errorf("configuration %s: %w", file, locate(b, at))
		}
		return nil, fmt.Errorf("configuration %s:\n%s", file, Plain(yaml.FormatError(err, false, true)))
	}
	if err := overlay(reflect.ValueOf(c).Elem(), "RINGMAIN", environ); err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		var fe *FieldError
		if errors.As(err, &fe) {
			if name := variable(fe.Field); name != "" {
				if _, set := lookup(environ, name); set {
					return nil, fmt.Errorf("environment %s: %w", name, err)
				}
			}
		}
		return nil, fmt.Errorf("configuration %s: %w", file, locate(b, err))
	}
	c.load = func() (*Config, error) { return Load(file, environ) }
	return c, nil
}

// Locate adds to err, which names a field of the configuration in file, the
// field's line; without one it gives err as it is.
func Locate(file string, err error) error {
	b, readErr := os.ReadFile(file)
	if readErr != nil {
		return err
	}
	return locate(b, err)
}

// variable is the environment variable that sets a scalar field; "" for a field in a list.
func variable(field string) string {
	if strings.Contains(field, "[") {
		return ""
	}
	return "RINGMAIN_" + strings.ToUpper(strings.ReplaceAll(field, ".", "_"))
}

// durations names the fields of t that are durations, those of structs in it too.
func durations(prefix string, t reflect.Type) (fields []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		switch name := prefix + f.Tag.Get("yaml"); {
		case f.Type == reflect.TypeFor[time.Duration]():
			fields = append(fields, name)
		case f.Type.Kind() == reflect.Struct:
			fields = append(fields, durations(name+".", f.Type)...)
		}
	}
	return fields
}

// wrongDuration finds the first duration in file that is none.
func wrongDuration(file []byte) error {
	for _, field := range append(durations("tunables.", reflect.TypeFor[Tunables]()), slices.Concat(durations("takeover.", reflect.TypeFor[Takeover]()), durations("raft.", reflect.TypeFor[Raft]()))...) {
		path, err := yaml.PathString("$." + field)
		if err != nil {
			continue
		}
		node, err := path.ReadNode(strings.NewReader(string(file)))
		if err != nil || node.GetToken() == nil {
			continue
		}
		if _, err := time.ParseDuration(node.GetToken().Value); err != nil {
			return bad(field, "want a duration such as 30s or 24h, got %q", node.GetToken().Value)
		}
	}
	return nil
}

var wrongType = regexp.MustCompile(`cannot unmarshal (\S+) into Go (?:struct field \S+|value) of type (\S+)(?: \( overflow \))?`)

// Plain turns the YAML library's words about Go types into plain ones.
func Plain(text string) string {
	return wrongType.ReplaceAllStringFunc(text, func(m string) string {
		switch kind := wrongType.FindStringSubmatch(m)[2]; {
		case strings.HasPrefix(kind, "uint"):
			return "want a whole number, 0 or more"
		case strings.HasPrefix(kind, "int"):
			return "want a whole number"
		case kind == "bool":
			return "want true or false"
		case kind == "time.Duration":
			return "want a duration such as 30s or 24h"
		case kind == "time.Time":
			return "want a date and time such as 2027-06-30T00:00:00Z"
		case kind == "string":
			return "want text"
		}
		return m
	})
}

// overlay sets scalar fields from environment variables.
func overlay(v reflect.Value, prefix string, environ []string) error {
	for i := range v.NumField() {
		name := prefix + "_" + strings.ToUpper(v.Type().Field(i).Tag.Get("yaml"))
		f := v.Field(i)
		if !f.CanSet() {
			continue
		}
		if f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[time.Time]() {
			if err := overlay(f, name, environ); err != nil {
				return err
			}
			continue
		}
		text, ok := lookup(environ, name)
		if !ok {
			continue
		}
		switch {
		case f.Type() == reflect.TypeFor[time.Duration]():
			d, err := time.ParseDuration(text)
			if err != nil {
				return fmt.Errorf("environment %s: %w", name, err)
			}
			f.SetInt(int64(d))
		case f.Kind() == reflect.String:
			f.SetString(text)
		case f.CanUint():
			n, err := strconv.ParseUint(text, 10, f.Type().Bits())
			if err != nil {
				return fmt.Errorf("environment %s: %w", name, err)
			}
			f.SetUint(n)
		default:
			return fmt.Errorf("environment %s: this field can only be set in the file", name)
		}
	}
	return nil
}

func lookup(environ []string, name string) (string, bool) {
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}

// FieldError names the field that is wrong.
type FieldError struct{ Field, Message string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Message }

func bad(field, format string, args ...any) error {
	return &FieldError{Field: field, Message: fmt.Sprintf(format, args...)}
}

// locate adds the line of the wrong field's last named part, when the file has it.
func locate(file []byte, err error) error {
	var fe *FieldError
	if !errors.As(err, &fe) {
		return err
	}
	path := "$." + fe.Field
	for path != "$" {
		if p, perr := yaml.PathString(path); perr == nil {
			if node, nerr := p.ReadNode(strings.NewReader(string(file))); nerr == nil && node.GetToken() != nil {
				return fmt.Errorf("line %d: %w", node.GetToken().Position.Line, err)
			}
		}
		if i := strings.LastIndexAny(path, ".["); i > 0 {
			path = path[:i]
		} else {
			break
		}
	}
	return err
}

// Validate checks what can be checked without opening a file or a socket.
func (c *Config) Validate() error {
	for _, f := range []struct{ field, value string }{{"cluster", c.Cluster}, {"region", c.Region}, {"node", c.Node}} {
		if !nameRE.MatchString(f.value) {
			return bad(f.field, "want 1-63 lowercase letters, digits and hyphens, starting with a letter; got %q", f.value)
		}
	}
	listens := map[string]string{"listen.metrics": c.Listen.Metrics, "gossip.lan": c.Gossip.LAN, "gossip.wan": c.Gossip.WAN}
	switch c.Role {
	case Control:
		listens["listen.internal"], listens["listen.admin"] = c.Listen.Internal, c.Listen.Admin
	case Data:
		listens["listen.api"], listens["listen.peer"] = c.Listen.API, c.Listen.Peer
	default:
		return bad("role", "want control or data, got %q", c.Role)
	}
	seen := map[string]string{}
	for _, field := range slices.Sorted(maps.Keys(listens)) {
		addr := listens[field]
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return bad(field, "want host:port, got %q", addr)
		}
		if other, ok := seen[addr]; ok {
			return bad(field, "is the same address as %s", other)
		}
		seen[addr] = field
	}
	if host, _, _ := net.SplitHostPort(c.Listen.Metrics); net.ParseIP(host) == nil || !net.ParseIP(host).IsLoopback() {
		return bad("listen.metrics", "is plain HTTP and must be a loopback address, got %q", c.Listen.Metrics)
	}
	for _, f := range []struct{ field, value string }{
		{"data_dir", c.DataDir}, {"seal_key_file", c.SealKeyFile}, {"cluster_secret_file", c.ClusterSecretFile},
		{"identity.dir", c.Identity.Dir}, {"identity.tls_cert", c.Identity.TLSCert}, {"identity.tls_key", c.Identity.TLSKey},
		{"gossip.lan_key_file", c.Gossip.LANKeyFile}, {"gossip.wan_key_file", c.Gossip.WANKeyFile},
	} {
		if f.value == "" {
			return bad(f.field, "is missing")
		}
	}
	switch c.LogLevel {
	case "", "debug", "info", "warn", "error":
	default:
		return bad("log_level", "want debug, info, warn or error, got %q", c.LogLevel)
	}
	for _, f := range []struct{ field, value string }{{"http1", c.HTTP1}, {"http2", c.HTTP2}} {
		if f.value != "" && f.value != "standard" {
			return bad(f.field, "want standard or nothing, got %q", f.value)
		}
	}
	if h := c.Receipts.Hash; h != "" && h != "sha-256" {
		return bad("receipts.hash", "want sha-256 or nothing, got %q", h)
	}
	for i, pool := range c.Pools {
		org, dedicated := strings.CutPrefix(pool, "dedicated:")
		if pool != "standard" && pool != "zero-retention" && (!dedicated || !strings.HasPrefix(org, "org_")) {
			return bad(fmt.Sprintf("pools[%d]", i), "want standard, zero-retention or dedicated: with an org's id (org_…), got %q", pool)
		}
	}
	for _, f := range []struct {
		field string
		value time.Duration
	}{{"tunables.drain_timeout", c.Tunables.DrainTimeout}, {"tunables.record_age", c.Tunables.RecordAge}, {"tunables.receipt_age", c.Tunables.ReceiptAge},
		{"tunables.edge.conn_age", c.Tunables.Edge.ConnAge}, {"tunables.edge.wrong_delay", c.Tunables.Edge.WrongDelay}, {"takeover.automatic_after", c.Takeover.AutomaticAfter},
		{"raft.promote_after", c.Raft.PromoteAfter}, {"raft.remove_dead_after", c.Raft.RemoveDeadAfter}} {
		if f.value < 0 {
			return bad(f.field, "is negative: want a duration such as 24h, or 0s for the default")
		}
	}
	if d := c.Raft.RemoveDeadAfter; d > 0 && d < time.Minute {
		return bad("raft.remove_dead_after", "want 1m at least, or 0s for never: a node that restarts is silent for a while")
	}
	for field, age := range map[string]time.Duration{
		"live": c.Tunables.KeyAge.Live, "test": c.Tunables.KeyAge.Test, "admin": c.Tunables.KeyAge.Admin,
	} {
		if age != 0 && age < 10*time.Second {
			return bad("tunables.key_age."+field, "want 10s at least, or 0s: an election or a control node that restarts would refuse every key")
		}
	}
	if c.Tunables.Edge.WrongDelay > 10*time.Second {
		return bad("tunables.edge.wrong_delay", "want 10s at most: whoever waits holds memory")
	}
	for i, t := range c.AdminTokens {
		if h, err := hex.DecodeString(t.SHA256); err != nil || len(h) != 32 {
			return bad(fmt.Sprintf("admin_tokens[%d].sha256", i), "want 64 hex digits")
		}
		if t.Name == "" || t.Expires.IsZero() {
			return bad(fmt.Sprintf("admin_tokens[%d]", i), "name and expires are required")
		}
	}
	return c.validateRegions()
}

func (c *Config) validateRegions() error {
	var own *Region
	nodes, names := map[string]bool{}, map[string]bool{}
	for i := range c.Regions {
		r := &c.Regions[i]
		at := fmt.Sprintf("regions[%d]", i)
		if !nameRE.MatchString(r.Name) || names[r.Name] {
			return bad(at+".name", "want a unique name of lowercase letters, digits and hyphens, got %q", r.Name)
		}
		names[r.Name] = true
		if !jurisdictionRE.MatchString(r.Jurisdiction) || r.Jurisdiction == "any" {
			return bad(at+".jurisdiction", "want two to four lowercase letters other than any, got %q", r.Jurisdiction)
		}
		if u, err := url.Parse(r.Endpoint); err != nil || u.Scheme != "https" || u.Host == "" {
			return bad(at+".endpoint", "want an https URL, got %q", r.Endpoint)
		}
		if !slices.ContainsFunc(r.Control, func(n ControlNode) bool { return !n.Reader }) {
			return bad(at+".control", "names no control node that votes: a region has at least one")
		}
		for j, n := range r.Control {
			if nodes[n.Node] {
				return bad(fmt.Sprintf("%s.control[%d].node", at, j), "two nodes are named %q: names are unique in the cluster", n.Node)
			}
			nodes[n.Node] = true
		}
		for j, n := range r.Data {
			if nodes[n.Node] {
				return bad(fmt.Sprintf("%s.data[%d].node", at, j), "two nodes are named %q: names are unique in the cluster", n.Node)
			}
			nodes[n.Node] = true
		}
		if r.Name == c.Region {
			own = r
		}
	}
	if own == nil {
		return bad("region", "%q is not listed under regions", c.Region)
	}
	if c.Role == Control {
		for _, n := range own.Control {
			if n.Node == c.Node {
				return nil
			}
		}
		return bad("node", "%q is not among the control nodes of region %s", c.Node, c.Region)
	}
	return nil
}

// Own returns this node's region.
func (c *Config) Own() *Region {
	for i := range c.Regions {
		if c.Regions[i].Name == c.Region {
			return &c.Regions[i]
		}
	}
	return nil
}
