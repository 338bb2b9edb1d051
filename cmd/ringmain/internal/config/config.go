// Package config reads a node's one YAML file, strictly, with environment and
// flags laid over it. It knows names, addresses and files; it opens none of them.
package config

import "time"

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
	DrainTimeout time.Duration `yaml:"drain_timeout"` // data: how long a stop waits for streams, before it ends them with an error; 0 = 30s
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
	TotalConns  uint32        `yaml:"total_conns"`       // open connections in all; 0 = as many as half of the memory holds at 50 KiB each, half of the files that may be open, and 131072 at most
	Aborts      uint32        `yaml:"aborts"`            // requests a connection may break off in 10 s, if they are most of it; 0 = 200
	ConnAge     time.Duration `yaml:"conn_age"`          // after which a connection is told to go; 0 = 10m. Short ones cost handshakes, long ones stay with a node that is no longer the nearest
	WrongKeys   uint32        `yaml:"wrong_keys"`        // refused keys of a source a second that are answered without delay; 0 = 20
	WrongDelay  time.Duration `yaml:"wrong_delay"`       // the longest that a refused key beyond that waits; 0 = 500ms, at most 10s
	WrongHeld   uint32        `yaml:"wrong_held"`        // refused keys of a source that wait at once; 0 = 64. One more ends its connection
	WrongHeldBy uint32        `yaml:"wrong_held_by_all"` // of all sources; 0 = 1024, at about 30 KiB each
	WrongByAll  uint32        `yaml:"wrong_keys_by_all"` // refused keys of all sources a second; 0 = 1000. Beyond that strangers' connections are slowed down
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
