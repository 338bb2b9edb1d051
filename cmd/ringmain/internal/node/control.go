package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/cmd/ringmain/internal/node/certs"
	"ringmain/cmd/ringmain/internal/node/expelled"
	"ringmain/cmd/ringmain/internal/node/neighbours"
	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/forward"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/feed/age"
	"ringmain/controlplane/feed/hub"
	"ringmain/controlplane/feed/importer"
	"ringmain/controlplane/homes"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/roster"
	"ringmain/controlplane/seal"
	"ringmain/gossip"
	"ringmain/gossip/bulletin"
)

// protoRaft is negotiated by ALPN beside h2 on the internal listener.
const protoRaft = "ringmain-raft/1"

// control is a control node's rooms, wired.
type control struct {
	env      Env
	cfg      *config.Config
	bundle   *identity.Bundle
	calls    *http.Client            // to control nodes of any region
	callsTo  map[string]*http.Client // by region: to its control nodes and nobody else
	hub      *hub.Hub
	quorum   *quorum.Quorum
	homes    atomic.Pointer[homes.Homes] // nil until the log is open
	gossip   *neighbours.Room
	forward  *forward.Client
	roster   *roster.Book
	age      *age.Copy
	importer atomic.Pointer[importer.Importer] // nil unless this node leads
	expelled *expelled.Nodes
	revoked  chan struct{} // receives after the safety set of the global shard may have changed
}

// RunControl runs a control node until ctx ends.
func RunControl(ctx context.Context, env Env) (err error) {
	cfg := env.Config
	c := &control{env: env, cfg: cfg, revoked: make(chan struct{}, 1)}
	if c.bundle, err = loadIdentity(cfg, identity.RoleControl); err != nil {
		return err
	}
	c.expelled = expelled.New(c.bundle, env.Logger)
	holder, err := openSealKey(cfg)
	if err != nil {
		return err
	}
	secret, err := config.ReadKey(cfg.ClusterSecretFile)
	if err != nil {
		return err
	}
	public, err := certs.ReadAPI(cfg)
	if err != nil {
		return err
	}
	renew, err := certs.Open(env.Logger, env.Registry, certs.OfNode(cfg, c.bundle, func(_, _, _ []byte) {}), certs.OfAPI(cfg, public, func(_, _ []byte) {}))
	if err != nil {
		return err
	}
	internal, err := listen("listen.internal", cfg.Listen.Internal)
	if err != nil {
		return err
	}
	adminListener, err := listen("listen.admin", cfg.Listen.Admin)
	if err != nil {
		return errors.Join(err, internal.Close())
	}
	metrics, err := listen("listen.metrics", cfg.Listen.Metrics)
	if err != nil {
		return errors.Join(err, internal.Close(), adminListener.Close())
	}
	demux := identity.Listener(c.bundle.Listen(internal), c.bundle.Server([]string{protoRaft, "h2"}, c.mayCall), protoRaft, "h2")
	demux.OnRefused(func(remote net.Addr, err error) {
		env.Logger.Warn("internal connection refused", "remote", remote, "err", err)
	})
	c.calls = client(c.bundle, identity.AllowControl(""))
	defer c.calls.CloseIdleConnections()
	c.callsTo = make(map[string]*http.Client)
	for _, r := range cfg.Regions {
		c.callsTo[r.Name] = client(c.bundle, identity.AllowControl(r.Name))
		defer c.callsTo[r.Name].CloseIdleConnections()
	}

	c.roster = openRoster(env, c.calls, c.members)
	c.age = age.New(age.Config{Cluster: cfg.Cluster, Region: cfg.Region, Node: cfg.Node, Source: c, HTTP: c.callsTo[cfg.Region],
		Leader: func() (string, string, bool) { return c.quorum.Leader() }})

	// Asked to stop, the node goes on serving until it has handed leadership over.
	asked := ctx
	ctx, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	g, ctx := errgroup.WithContext(ctx)
	c.hub, err = hub.Open(ctx, hub.Config{
		Cluster: cfg.Cluster, Region: cfg.Region, Node: cfg.Node, Source: c, Contact: c.age.Contact,
		Members: c.roster.Encoded,
		Peers:   c.peers, HTTP: c.clientFor, Hinted: c.expelled.Take, Logger: env.Logger.With("room", "feed"), Registerer: env.Registry,
	})
	if err != nil {
		return errors.Join(err, demux.Close(), adminListener.Close(), metrics.Close())
	}
	c.quorum, err = quorum.Open(context.WithoutCancel(ctx), c.quorumConfig(raftOnly{demux.For(protoRaft), identity.AllowControl(cfg.Region), env.Logger}, seal.New(holder)))
	if err != nil {
		return errors.Join(err, c.hub.Close(), demux.Close(), adminListener.Close(), metrics.Close())
	}
	if c.gossip, err = neighbours.Open(ctx, cfg, env.Logger, env.Registry, bulletin.Digest{}); err != nil {
		return errors.Join(err, c.quorum.Close(ctx), c.hub.Close(), demux.Close(), adminListener.Close(), metrics.Close())
	}
	c.expelled.Hush(c.gossip)
	owners, err := c.openHomes(ctx)
	if err != nil {
		return errors.Join(err, c.gossip.Close(), c.quorum.Close(ctx), c.hub.Close(), demux.Close(), adminListener.Close(), metrics.Close())
	}
	c.forward = forward.New(forward.Config{Bundle: c.bundle, Addresses: c.roster.Addresses})
	defer c.forward.Close()
	api, err := c.openAdmin(secret)
	if err != nil {
		return errors.Join(err, owners.Close(), c.gossip.Close(), c.quorum.Close(ctx), c.hub.Close(), demux.Close(), adminListener.Close(), metrics.Close())
	}

	inner := http.NewServeMux()
	inner.Handle("/feed/v1/", c.hub.Handler())
	inner.Handle("GET "+feed.PathPosition, c.age.Handler())
	inner.Handle("POST "+roster.Path, c.roster.Handler())
	inner.Handle(homes.Prefix, owners.Handler())
	inner.Handle("/internal/v1/", api.Internal())
	inner.HandleFunc("GET /livez", live)
	operators := tls.NewListener(adminListener, public.Server([]string{"h2", "http/1.1"}))
	g.Go(func() error { return serve(ctx, demux.For("h2"), inner, env.Logger) })
	g.Go(func() error { return serveWith(ctx, operators, admin.Server(api.Handler(), env.Logger)) })
	g.Go(func() error {
		return serve(ctx, metrics, debugMux(promhttp.HandlerFor(env.Registry, promhttp.HandlerOpts{})), env.Logger)
	})
	g.Go(func() error { renew.Follow(ctx); return nil })
	g.Go(func() error { return c.followRoster(ctx) })
	g.Go(func() error { c.age.Run(ctx); return nil })
	g.Go(func() error { return c.importWhileLeading(ctx) })
	g.Go(func() error { return c.observe(ctx) })
	g.Go(func() error { return c.gossip.Alone(ctx) })
	g.Go(func() error { c.gossip.Remember(ctx); return nil })
	g.Go(func() error { c.expelled.Follow(ctx, c.View, c.revoked); return nil })
	g.Go(func() error { return c.expelled.Wait(ctx) })
	g.Go(func() error { c.expelled.Part(ctx); return nil })
	g.Go(func() error { c.publishHealth(ctx); return nil })
	g.Go(func() error {
		defer stopServing()
		var failed error
		select {
		case <-asked.Done():
		case <-ctx.Done():
		case <-c.quorum.Done():
			failed = fmt.Errorf("the region's log stopped working on this node: %w", c.quorum.Err())
		}
		wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return errors.Join(failed, c.quorum.Close(wait))
	})
	err = g.Wait()
	return errors.Join(err, owners.Close(), c.gossip.Leave(context.WithoutCancel(ctx)), c.hub.Close(), demux.Close())
}

func live(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }

// loadIdentity reads the node's certificate and checks that it names this node.
func loadIdentity(cfg *config.Config, role string) (*identity.Bundle, error) {
	b, err := identity.LoadBundle(cfg.Identity.Dir)
	if err != nil {
		return nil, fmt.Errorf("identity.dir: it must hold node.pem, node.key and roots.pem, issued for this node: %w", err)
	}
	want := identity.ID{Cluster: cfg.Cluster, Region: cfg.Region, Role: role, Node: cfg.Node}
	if b.ID() != want {
		return nil, fmt.Errorf("identity: the certificate in %s names %s, the configuration %s: point identity.dir to this node's own", cfg.Identity.Dir, b.ID().URI(), want.URI())
	}
	return b, nil
}

// openSealKey opens the region's key-encryption key.
func openSealKey(cfg *config.Config) (seal.Holder, error) {
	holder, err := seal.OpenFileHolder(cfg.SealKeyFile)
	if err != nil {
		return nil, fmt.Errorf("seal_key_file: put the region's key there; what is at rest cannot be read without it: %w", err)
	}
	return holder, nil
}

// mayCall: control nodes of any region, data nodes of this one. What each may
// ask is decided by path, from the same identity.
func (c *control) mayCall(id identity.ID) error {
	return identity.AnyOf(identity.AllowControl(""), identity.AllowData(c.cfg.Region))(id)
}

// clientFor is the client for what may be told to one region's control nodes only.
func (c *control) clientFor(region string) *http.Client { return c.callsTo[region] }

// View makes control the feed's and the admin API's source of state.
func (c *control) View(f func(*ledger.State)) { c.quorum.View(f) }

// lags tells the admin API how far behind their homes this region's copies are;
// only the leader, which imports them, knows.
func (c *control) lags() map[controlplane.Shard]admin.Lag {
	im := c.importer.Load()
	if im == nil {
		return nil
	}
	out := map[controlplane.Shard]admin.Lag{}
	for shard, l := range im.Lags() {
		out[shard] = admin.Lag{Behind: l.Behind, Heard: l.Heard}
	}
	return out
}

// observe probes the other regions and says in gossip which can be reached.
func (c *control) observe(ctx context.Context) error {
	targets, close, err := neighbours.Targets(c.cfg, c.roster, c.calls)
	if err != nil {
		return err
	}
	defer close()
	gossip.Observe(ctx, gossip.ObserveConfig{Targets: func() []gossip.Target { return targets }, Claim: c.gossip.Claim})
	return nil
}

// publishHealth keeps this node's digest current.
func (c *control) publishHealth(ctx context.Context) {
	for tick := time.NewTicker(time.Second); ; {
		_, _, led := c.quorum.Leader()
		var position controlplane.Position
		c.quorum.View(func(s *ledger.State) { position = s.Position() })
		c.gossip.Publish(func(d *bulletin.Digest) {
			d.Ready, d.Position = led, neighbours.ShortPosition(position)
		})
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
	}
}

// importWhileLeading brings in the other regions' shards whenever this node leads.
func (c *control) importWhileLeading(ctx context.Context) (err error) {
	var im *importer.Importer
	shut := func() error {
		if im == nil {
			return nil
		}
		c.importer.Store(nil)
		err := im.Close()
		im = nil
		return err
	}
	defer func() { err = errors.Join(err, shut()) }()
	changes, sources := c.quorum.Leading(), c.sources()
	defer func() {
		for _, s := range sources {
			s.HTTP.CloseIdleConnections()
		}
	}()
	for {
		var done <-chan struct{}
		if im != nil {
			done = im.Done()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-done:
			err := shut()
			return fmt.Errorf("feed import: %w", err)
		case leading, ok := <-changes:
			if err := shut(); err != nil || !ok {
				return err
			}
			if !leading {
				continue
			}
			if im, err = c.openImporter(ctx, sources); err != nil {
				return err
			}
			c.importer.Store(im)
		}
	}
}

// applied tells the rooms beside the log what a command did.
func (c *control) applied(out ledger.Outcome, sender controlplane.Epoch) {
	c.hub.Applied(out, sender)
	if slices.Contains(out.Reset, controlplane.ShardGlobal) ||
		slices.ContainsFunc(out.Touched, func(r registry.Ref) bool { return r.Kind == registry.KindNode }) {
		select {
		case c.revoked <- struct{}{}:
		default: // said before
		}
	}
	if h := c.homes.Load(); h != nil {
		h.Applied(out)
	}
}

func (c *control) openHomes(ctx context.Context) (*homes.Homes, error) {
	h, err := homes.Open(ctx, homes.Config{
		Cluster: c.cfg.Cluster, Region: c.cfg.Region, Node: c.cfg.Node, Store: c.quorum, Since: c.quorum.Since, Snapshot: c.hub.ServeSnapshot,
		Addresses: c.roster.Addresses, HTTP: c.clientFor,
		Published: c.gossip.Up, AutomaticAfter: c.cfg.Takeover.AutomaticAfter,
		Retake: func(home string, shard controlplane.Shard) {
			if im := c.importer.Load(); im != nil {
				im.Retake(home, shard)
			}
		},
		Logger: c.env.Logger.With("room", "homes"), Registerer: c.env.Registry,
	})
	if err == nil {
		c.homes.Store(h)
	}
	return h, err
}

// sources are the other regions' control nodes.
func (c *control) sources() []importer.Source {
	var out []importer.Source
	for _, r := range c.cfg.Regions {
		if r.Name != c.cfg.Region {
			out = append(out, importer.Source{Region: r.Name, Targets: watched(c.roster, r.Name, false),
				HTTP: client(c.bundle, identity.AllowControl(r.Name))})
		}
	}
	return out
}

func (c *control) openImporter(ctx context.Context, sources []importer.Source) (*importer.Importer, error) {
	return importer.Open(ctx, importer.Config{
		Cluster: c.cfg.Cluster, Region: c.cfg.Region, Sources: sources, State: c, Pushed: c.hub.Board().Receive,
		Propose: c.quorum.ProposeCommand, Logger: c.env.Logger.With("room", "feed"), Registerer: c.env.Registry,
	})
}

func (c *control) quorumConfig(raftStreams net.Listener, sealer *seal.Sealer) quorum.Config {
	peers, reader := founders(c.cfg)
	dial := func(ctx context.Context, node, addr string) (net.Conn, error) {
		want := identity.ID{Cluster: c.cfg.Cluster, Region: c.cfg.Region, Role: identity.RoleControl, Node: node}
		return c.bundle.Dialer(&net.Dialer{Timeout: 2 * time.Second}, []string{protoRaft}, identity.AllowNode(want))(ctx, "tcp", addr)
	}
	return quorum.Config{
		Cluster: c.cfg.Cluster, Region: c.cfg.Region, Node: c.cfg.Node, Dir: filepath.Join(c.cfg.DataDir, "quorum"),
		Peers: peers, Reader: reader, Homes: bornHere(c.cfg),
		Tunables: quorum.Tunables{Promote: c.cfg.Raft.PromoteAfter, RemoveDead: c.cfg.Raft.RemoveDeadAfter},
		Listener: raftStreams, Dial: dial, Sealer: sealer, OnApply: c.applied,
		Logger: c.env.Logger.With("room", "quorum"), Registerer: c.env.Registry,
	}
}

// raftOnly drops raft streams from anyone but this region's control nodes; the
// listener it shares also serves data nodes' feeds.
type raftOnly struct {
	net.Listener
	allow  func(identity.ID) error
	logger *slog.Logger
}

func (l raftOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tc, ok := conn.(*tls.Conn)
		if !ok {
			return nil, errors.Join(errors.New("a raft stream without TLS"), conn.Close())
		}
		id, err := identity.PeerID(tc.ConnectionState())
		if err == nil {
			err = l.allow(id)
		}
		if err == nil {
			return conn, nil
		}
		l.logger.Warn("raft stream refused", "remote", conn.RemoteAddr(), "err", err)
		_ = conn.Close() // refused: nothing was said on it
	}
}

func (c *control) openAdmin(secret []byte) (*admin.API, error) {
	var tokens []admin.Token
	for _, t := range c.cfg.AdminTokens {
		token := admin.Token{Name: t.Name, Expires: t.Expires}
		if n, err := hex.Decode(token.SHA256[:], []byte(t.SHA256)); err != nil || n != len(token.SHA256) {
			return nil, fmt.Errorf("admin token %s: want 64 hex digits", t.Name)
		}
		tokens = append(tokens, token)
	}
	operations, err := c.operations()
	if err != nil {
		return nil, err
	}
	return admin.New(admin.Config{
		Cluster: c.cfg.Cluster, Region: c.cfg.Region, Node: c.cfg.Node, Version: c.env.Version,
		Store: c.quorum, Homes: c.homes.Load(), Forwarder: c.forward, Tokens: tokens, TokenAge: c.cfg.Tunables.KeyAge.Admin, ClusterSecret: secret,
		Operations: operations, Verdicts: c.hub.Board(), Revocations: c.hub.Board(), Announced: c.hub.Board().Announced, Holders: c.hub.Board(),
		Nodes: c.gossip.Nodes, Published: c.gossip.Published, Lags: c.lags,
		Random: rand.Reader, Logger: c.env.Logger.With("room", "admin"), Registerer: c.env.Registry,
	})
}

// bornHere lists the shards this region is born home of: global for the first
// region, its own unpinned one, and its jurisdiction's if it is the first there.
func bornHere(cfg *config.Config) []quorum.ShardSpec {
	var all, same []string
	own := cfg.Own()
	first := ""
	for _, r := range cfg.Regions {
		all = append(all, r.Name)
		if r.Jurisdiction == own.Jurisdiction {
			same = append(same, r.Name)
			if first == "" {
				first = r.Name
			}
		}
	}
	out := []quorum.ShardSpec{{Shard: controlplane.ShardAny(cfg.Region), Members: all}}
	if cfg.Regions[0].Name == cfg.Region {
		out = append(out, quorum.ShardSpec{Shard: controlplane.ShardGlobal, Members: all})
	}
	if first == cfg.Region {
		out = append(out, quorum.ShardSpec{Shard: controlplane.ShardPinned(own.Jurisdiction), Members: same})
	}
	return out
}
