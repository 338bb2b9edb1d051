package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/roster"
	"ringmain/gossip"
	"ringmain/gossip/bulletin"
)

// gossipRoom is the node's membership in both groups, as the other rooms see it.
type gossipRoom struct {
	*gossip.Gossip
	log       *slog.Logger
	nameTaken chan error // receives once if another node has this node's name and this one came later
}

// newcomer is how young a node is that gives way to another of its name. One
// is noticed within half of that, so the elder is older and stays.
const newcomer = time.Minute

// alone waits until ctx ends, or until this node must give way.
func (g *gossipRoom) alone(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-g.nameTaken:
		return err
	}
}

func openGossip(ctx context.Context, env Env, first bulletin.Digest) (*gossipRoom, error) {
	cfg := env.Config
	lanKey, err := key32(cfg.Gossip.LANKeyFile)
	if err != nil {
		return nil, err
	}
	wanKey, err := key32(cfg.Gossip.WANKeyFile)
	if err != nil {
		return nil, err
	}
	var lanSeeds, wanSeeds []string
	for _, r := range cfg.Regions {
		for _, n := range r.Control {
			wanSeeds = append(wanSeeds, n.WAN)
			if r.Name == cfg.Region {
				lanSeeds = append(lanSeeds, n.LAN)
			}
		}
	}
	lan, wan := readContacts(env)
	lanSeeds, wanSeeds = append(lanSeeds, lan...), append(wanSeeds, wan...)
	began, nameTaken := time.Now(), make(chan error, 1)
	first.Incarnation = uint64(began.UnixMilli())
	g, err := gossip.Open(ctx, gossip.Config{
		Cluster: cfg.Cluster, Region: cfg.Region, Node: cfg.Node, Role: string(cfg.Role),
		LANBind: cfg.Gossip.LAN, WANBind: cfg.Gossip.WAN, LANKey: lanKey, WANKey: wanKey,
		LANSeeds: lanSeeds, WANSeeds: wanSeeds, Digest: first,
		OnConflict: func(err error) {
			if time.Since(began) > newcomer {
				return // the other one goes; gossip has logged it
			}
			select {
			case nameTaken <- fmt.Errorf("node %s: %w", cfg.Node, err):
			default: // said before
			}
		},
		Logger: env.Logger.With("room", "gossip"), Registerer: env.Registry,
	})
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return &gossipRoom{g, env.Logger.With("room", "gossip"), nameTaken}, nil
}

// contacts are the members of both groups that a node remembers, so that it
// finds the others again when those configured have been replaced.
type contacts struct {
	LAN []string `json:"lan"`
	WAN []string `json:"wan"`
}

const (
	maxContacts   = 8 // of each group
	contactsEvery = 10 * time.Second
)

func contactsFile(env Env) string { return filepath.Join(env.Config.DataDir, "gossip.json") }

// readContacts gives what was remembered. Nothing depends on it.
func readContacts(env Env) (lan, wan []string) {
	var c contacts
	text, err := os.ReadFile(contactsFile(env))
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		env.Logger.Warn("the members of gossip are not remembered: those configured are asked", "err", err)
	}
	broken := func(addr string) bool { _, _, err := net.SplitHostPort(addr); return err != nil }
	return slices.DeleteFunc(c.LAN, broken), slices.DeleteFunc(c.WAN, broken)
}

// remember keeps the file of contacts current until ctx ends.
func (g *gossipRoom) remember(ctx context.Context, env Env) {
	var last contacts
	for tick := time.NewTicker(contactsEvery); ; {
		var now contacts
		now.LAN, now.WAN = g.Contacts(maxContacts)
		if len(now.LAN)+len(now.WAN) > 0 && !reflect.DeepEqual(now, last) { // alone, the old ones are worth more
			text, err := json.Marshal(now)
			if err == nil {
				err = os.WriteFile(contactsFile(env)+".part", text, 0o600)
			}
			if err == nil {
				err = os.Rename(contactsFile(env)+".part", contactsFile(env))
			}
			if err != nil {
				g.log.Warn("the members of gossip are not remembered", "err", err)
			}
			last = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// leave says goodbye, so that nobody has to find out, and closes.
func (g *gossipRoom) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := g.Leave(ctx); err != nil {
		// Nobody may be left to hear it; the others find out by themselves.
		g.log.Warn("nobody confirmed this node's goodbye", "err", err)
	}
	return g.Close()
}

// nodes is the table as the admin API shows it.
func (g *gossipRoom) nodes() []api.Node {
	var out []api.Node
	for _, n := range g.Table().Nodes {
		out = append(out, api.Node{
			Region: n.Region, Name: n.Node, Role: n.Role, Alive: n.Alive, Ready: n.Alive && n.Ready, Draining: n.Draining,
			InFlight: n.InFlight, Capacity: n.Capacity, Pools: n.Pools, API: n.API, Position: n.Position, Breakers: n.Breakers,
			Proven: n.Proven, Suspects: n.Suspects, LeftOut: n.LeftOut, StateAge: n.StateAge,
		})
	}
	return out
}

// published is the state of each region that observers spoke of.
func (g *gossipRoom) published() map[string]bool {
	out := map[string]bool{}
	for name, r := range g.Table().Regions {
		out[name] = r.Up && !r.LastHealthy
	}
	return out
}

// up is which regions observers hold to be up, drained or not.
func (g *gossipRoom) up() map[string]bool {
	out := map[string]bool{}
	for name, r := range g.Table().Regions {
		out[name] = r.Up
	}
	return out
}

// position in short: shards' sequences, in order. It lets an operator compare
// nodes at a glance; the epochs are in the status.
func shortPosition(p controlplane.Position) string {
	shards := make([]controlplane.Shard, 0, len(p))
	for s := range p {
		shards = append(shards, s)
	}
	slices.Sort(shards)
	parts := make([]string, 0, len(shards))
	for _, s := range shards {
		parts = append(parts, fmt.Sprintf("%s=%d", s, p[s].Seq))
	}
	return strings.Join(parts, " ")
}

// regionTargets are the other regions, each with the two paths by which this
// node observes it: the clients' (a data node's readiness over public TLS) and
// the nodes' own (a control node over mutual TLS).
func regionTargets(cfg *config.Config, book *roster.Book, inner *http.Client) ([]gossip.Target, func(), error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool() // a machine without roots of its own
	}
	if cfg.ServerCAFile != "" {
		pem, err := os.ReadFile(cfg.ServerCAFile)
		if err != nil {
			return nil, nil, err
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, nil, fmt.Errorf("server_ca_file: %s holds no certificate", cfg.ServerCAFile)
		}
	}
	outer := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 1,
	}}
	var targets []gossip.Target
	for _, r := range cfg.Regions {
		if r.Name == cfg.Region {
			continue
		}
		var public []string
		for _, n := range r.Data {
			public = append(public, "https://"+n.API+"/readyz")
		}
		internal := func() (urls []string) {
			for _, addr := range book.Addresses(r.Name) {
				urls = append(urls, "https://"+addr+"/livez")
			}
			return urls
		}
		t := gossip.Target{Region: r.Name, Paths: []func(context.Context) error{anyAnswers(inner, internal)}}
		if len(public) > 0 {
			t.Paths = append(t.Paths, anyAnswers(outer, func() []string { return public }))
		}
		targets = append(targets, t)
	}
	return targets, outer.CloseIdleConnections, nil
}

// anyAnswers asks one URL after another, beginning with the one that answered
// last, until one answers 200.
func anyAnswers(client *http.Client, urls func() []string) func(context.Context) error {
	last := "" // one caller at a time
	return func(ctx context.Context) error {
		var errs error
		all := urls()
		begin := max(0, slices.Index(all, last))
		for i := range all {
			url := all[(begin+i)%len(all)]
			err := answers(ctx, client, url)
			if err == nil {
				last = url
				return nil
			}
			errs = errors.Join(errs, err)
		}
		return cmp.Or(errs, errors.New("no address to probe"))
	}
}

func answers(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 4096))
	_ = resp.Body.Close() // read side
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return err
}
