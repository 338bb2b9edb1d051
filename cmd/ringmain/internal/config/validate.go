package config

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

var (
	nameRE         = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	jurisdictionRE = regexp.MustCompile(`^[a-z]{2,4}$`)
)

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
