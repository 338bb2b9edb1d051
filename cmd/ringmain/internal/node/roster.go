package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/feed/push"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/roster"
)

// openRoster opens what this node knows of the control nodes of all regions.
// Own is nil on data nodes, which the feed tells.
func openRoster(env Env, calls *http.Client, own func() roster.List) *roster.Book {
	cfg := env.Config
	first := make(map[string][]roster.Node)
	for _, r := range cfg.Regions {
		for _, n := range r.Control {
			first[r.Name] = append(first[r.Name], roster.Node{Node: n.Node, Addr: n.Internal, Reader: n.Reader})
		}
	}
	return roster.Open(roster.Config{
		Cluster: cfg.Cluster, Region: cfg.Region, First: first, Own: own, HTTP: calls,
		File: filepath.Join(cfg.DataDir, "control-nodes.json"), Logger: env.Logger.With("room", "roster"),
	})
}

// watched are the region's control nodes as targets of a feed. Data nodes
// prefer readers, so that voters have the log to themselves; regions prefer
// voters, which are not behind.
func watched(book *roster.Book, region string, readersFirst bool) func() []feed.Target {
	return func() []feed.Target {
		var out []feed.Target
		for _, n := range book.Nodes(region) {
			t := feed.Target{Addr: n.Addr}
			if n.Reader != readersFirst {
				t.Rank = 1
			}
			out = append(out, t)
		}
		return out
	}
}

// learn takes the list that a control node of the own region pushed.
func learn(book *roster.Book, region string, list []byte, log *slog.Logger) {
	l, err := roster.ParseList(list)
	if err == nil && l.Region != region {
		err = fmt.Errorf("it is of region %q", l.Region)
	}
	if err != nil {
		log.Warn("a list of control nodes is not taken", "err", err)
		return
	}
	book.Learn(l)
}

// members is this region's list, as its log has it.
func (c *control) members() roster.List {
	r := c.quorum.Roster()
	l := roster.List{Region: c.cfg.Region, Life: r.Life, Applied: r.Applied}
	for _, m := range r.Members {
		l.Nodes = append(l.Nodes, roster.Node{Node: m.Node, Addr: m.Addr, Reader: m.Role == quorum.RoleReader})
	}
	return l
}

// peers are the other control nodes of the cluster.
func (c *control) peers() []push.Peer {
	var out []push.Peer
	for _, r := range c.cfg.Regions {
		for _, n := range c.roster.Nodes(r.Name) {
			if n.Node != c.cfg.Node {
				out = append(out, push.Peer{Region: r.Name, Node: n.Node, Addr: n.Addr})
			}
		}
	}
	return out
}

// founders are those of the configured control nodes that vote from the start,
// and this one.
func founders(cfg *config.Config) (peers []quorum.Peer, reader bool) {
	for _, n := range cfg.Own().Control {
		if !n.Reader || n.Node == cfg.Node {
			peers = append(peers, quorum.Peer{Node: n.Node, Addr: n.Internal})
		}
		reader = reader || n.Reader && n.Node == cfg.Node
	}
	return peers, reader
}

// followRoster keeps the book current until ctx ends.
func (c *control) followRoster(ctx context.Context) error {
	c.roster.Follow(ctx)
	return nil
}

// client calls control nodes; what it has with one that is revoked ends.
func client(b *identity.Bundle, allow func(identity.ID) error) *http.Client {
	c := feed.NewHTTPClient(b.Client([]string{"h2"}, allow))
	if t, ok := c.Transport.(*http.Transport); ok {
		t.DialTLSContext = b.Dialer(&net.Dialer{Timeout: 3 * time.Second}, []string{"h2"}, allow)
	}
	return c
}
