// Package neighbours is a node's place in gossip: how it gets in, what it says of
// itself, and what it makes of what others say, in the words of those who ask.
// What follows from that is theirs: nothing is decided here but that the younger
// of two nodes of one name gives way.
package neighbours

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

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/roster"
	"ringmain/gossip"
	"ringmain/gossip/bulletin"
)

// Room is the node's membership in both groups.
type Room struct {
	*gossip.Gossip
	cfg       *config.Config
	log       *slog.Logger
	nameTaken chan error // receives once if another node has this node's name and this one came later
}

// newcomer is how young a node is that gives way to another of its name. One
// is noticed within half of that, so the elder is older and stays.
const newcomer = time.Minute

// Alone waits until ctx ends, or until this node must give way.
func (g *Room) Alone(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-g.nameTaken:
		return err
	}
}

// Open joins both groups as cfg says. first is what the node says of itself until
// it publishes more.
func Open(ctx context.Context, cfg *config.Config, logger *slog.Logger, registerer prometheus.Registerer, first bulletin.Digest) (*Room, error) {
	logger = logger.With("room", "gossip")
	lanKey, err := config.ReadKey(cfg.Gossip.LANKeyFile)
	if err != nil {
		return nil, err
	}
	wanKey, err := config.ReadKey(cfg.Gossip.WANKeyFile)
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
	lan, wan := readContacts(cfg, logger)
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
		Logger: logger, Registerer: registerer,
	})
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return &Room{g, cfg, logger, nameTaken}, nil
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

func contactsFile(cfg *config.Config) string { return filepath.Join(cfg.DataDir, "gossip.json") }

// readContacts gives what was remembered. Nothing depends on it.
func readContacts(cfg *config.Config, logger *slog.Logger) (lan, wan []string) {
	var c contacts
	text, err := os.ReadFile(contactsFile(cfg))
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		logger.Warn("the members of gossip are not remembered: those configured are asked", "err", err)
	}
	broken := func(addr string) bool { _, _, err := net.SplitHostPort(addr); return err != nil }
	return slices.DeleteFunc(c.LAN, broken), slices.DeleteFunc(c.WAN, broken)
}

// Remember keeps the file of contacts current until ctx ends.
func (g *Room) Remember(ctx context.Context) {
	var last contacts
	for tick := time.NewTicker(contactsEvery); ; {
		var now contacts
		now.LAN, now.WAN = g.Contacts(maxContacts)
		if len(now.LAN)+len(now.WAN) > 0 && !reflect.DeepEqual(now, last) { // alone, the old ones are worth more
			text, err := json.Marshal(now)
			if err == nil {
				err = os.WriteFile(contactsFile(g.cfg)+".part", text, 0o600)
			}
			if err == nil {
				err = os.Rename(contactsFile(g.cfg)+".part", contactsFile(g.cfg))
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

// Leave says goodbye, so that nobody has to find out, and closes.
func (g *Room) Leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := g.Gossip.Leave(ctx); err != nil {
		// Nobody may be left to hear it; the others find out by themselves.
		g.log.Warn("nobody confirmed this node's goodbye", "err", err)
	}
	return g.Close()
}

// Nodes is the table as the admin API shows it.
func (g *Room) Nodes() []api.Node {
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

// Published is the state of each region that observers spoke of.
func (g *Room) Published() map[string]bool {
	out := map[string]bool{}
	for name, r := range g.Table().Regions {
		out[name] = r.Up && !r.LastHealthy
	}
	return out
}

// Up is which regions observers hold to be up, drained or not.
func (g *Room) Up() map[string]bool {
	out := map[string]bool{}
	for name, r := range g.Table().Regions {
		out[name] = r.Up
	}
	return out
}

// ShortPosition is a position in short: shards' sequences, in order. It lets an
// operator compare nodes at a glance; the epochs are in the status.
func ShortPosition(p controlplane.Position) string {
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

// Targets are the other regions, each with the two paths by which this
// node observes it: the clients' (a data node's readiness over public TLS) and
// the nodes' own (a control node over mutual TLS).
func Targets(cfg *config.Config, book *roster.Book, inner *http.Client) ([]gossip.Target, func(), error) {
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
