// Package dev runs a whole ringmain on one machine: every node a process of
// its own, simulated providers and balancers beside them, a supervisor that
// restarts what ends, and a file that says where everything is.
package dev

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/cmd/ringmain/internal/dev/door"
	"ringmain/controlplane/identity"
	"ringmain/drills/simmodel"
	"ringmain/internal/clusterfile"
)

// Options are the flags of `ringmain dev`.
type Options struct {
	Dir        string // holds everything; removed first when Fresh
	Fresh      bool
	Shape      Shape     // Cluster is ignored
	SeedFile   string    // manifest to apply after the built-in one; empty = none
	UpstreamCA string    // PEM file of further roots for upstreams; empty = none
	Stdout     io.Writer // what there is to read and copy
	Stderr     io.Writer // progress and events
	Terminal   bool      // Stdout is a terminal: keep a live table
	Now        func() time.Time
}

// readyTimeout bounds the start; a cold start on two busy cores takes about 10 s.
const readyTimeout = 90 * time.Second

type cluster struct {
	opts   Options
	shape  *Shape
	dir    string
	nodes  []*node
	roots  *x509.CertPool
	probes *http.Client
	sup    *supervisor
	file   clusterfile.Cluster

	backends map[string]*door.Backend // by node name
	mu       sync.Mutex               // guards Stderr's lines
}

// Run starts the cluster, writes cluster.json, prints what to copy, and stays
// until ctx ends; then it stops every process. It returns nil after a stop that
// was asked for.
func Run(ctx context.Context, opts Options) (err error) {
	if err := opts.Shape.check(); err != nil {
		return err
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return err
	}
	if n := len(filepath.Join(dir, socketName)); n > maxSocketPath {
		return fmt.Errorf("--dir: %s is %d bytes too long for the path of a socket in it: choose a shorter one", dir, n-maxSocketPath)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if opts.Fresh {
		if err := clear(dir); err != nil {
			return err
		}
	}
	shape, err := prepare(dir, opts)
	if err != nil {
		return err
	}
	if err := shape.portsFree(dir); err != nil {
		return err
	}
	c := &cluster{opts: opts, shape: shape, dir: dir, nodes: shape.nodes(dir), backends: map[string]*door.Backend{}}
	return c.run(ctx)
}

// lock takes the directory for this process; two clusters on one would fight over it.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("another `ringmain dev` runs on %s: stop it, or choose another --dir and --port", dir)
	}
	return func() { _ = f.Close() }, nil
}

// clear empties dir but for the lock, if it is ours or empty.
func clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "shape.json")); err != nil && len(entries) > 1 {
		return fmt.Errorf("--fresh: %s holds no development cluster; nothing was removed", dir)
	}
	return empty(dir)
}

// empty removes all that dir holds but for the lock.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *cluster) logf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = fmt.Fprintf(c.opts.Stderr, c.opts.Now().Format("15:04:05 ")+format+"\n", args...) // a closed terminal is no reason to stop
}

func (c *cluster) clusterFile() string { return filepath.Join(c.dir, "cluster.json") }

func (c *cluster) run(ctx context.Context) error {
	began := c.opts.Now()
	var err error
	if c.roots, err = c.readRoots(); err != nil {
		return err
	}
	c.probes = door.Client(c.roots)
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	lifeline, keepOpen, err := os.Pipe()
	if err != nil {
		return err
	}
	defer keepOpen.Close()
	c.sup = newSupervisor(exe, lifeline, func(n *node) string { return c.shape.Regions[n.region].Name }, c.logf)
	c.describe()
	if err := c.file.Write(c.clusterFile()); err != nil {
		return err
	}

	// Two groups: what stands outside the cluster outlives the nodes, so that
	// they can drain.
	outer, outerCtx := errgroup.WithContext(context.WithoutCancel(ctx))
	outerCtx, stopOuter := context.WithCancel(outerCtx)
	defer stopOuter()
	if err := c.startModels(outerCtx, outer); err != nil {
		return err
	}
	if err := c.startOutside(outerCtx, outer); err != nil {
		return err
	}
	nodes, nodesCtx := errgroup.WithContext(ctx)
	c.logf("starting %d nodes in %d regions", len(c.nodes), len(c.shape.Regions))
	for _, n := range c.nodes {
		nodes.Go(func() error { return c.sup.run(nodesCtx, n) })
	}
	nodes.Go(func() error {
		select {
		case <-outerCtx.Done(): // a balancer failed: end everything
			if ctx.Err() == nil {
				return errors.New("a balancer or simulated provider failed")
			}
		case <-nodesCtx.Done():
		}
		return nil
	})
	nodes.Go(func() error {
		if err := c.becomeReady(nodesCtx, began); err != nil {
			if nodesCtx.Err() != nil {
				return nil // stopped while starting
			}
			return err
		}
		return c.showStatus(nodesCtx)
	})
	err = nodes.Wait()
	err = errors.Join(err, allGone(lifeline, keepOpen))
	c.logf("stopped")
	stopOuter()
	err = errors.Join(err, ignoreCanceled(outer.Wait()))
	c.file.Ready = false
	for r := range c.file.Regions {
		for i := range c.file.Regions[r].Nodes {
			c.file.Regions[r].Nodes[i].PID, c.file.Regions[r].Nodes[i].WorkerPID = 0, 0
		}
	}
	return errors.Join(err, c.file.Write(c.clusterFile()))
}

func (c *cluster) readRoots() (*x509.CertPool, error) {
	text, err := os.ReadFile(filepath.Join(c.dir, rootsName))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return roots, err
}

// allGone ends what still holds the lifeline, such as the worker of a killed
// keeper, and waits for it: once nobody can read the pipe, nobody is left.
func allGone(lifeline, keepOpen *os.File) error {
	if err := lifeline.Close(); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err := keepOpen.Write([]byte{0}); errors.Is(err, syscall.EPIPE) {
			return nil
		}
	}
	return errors.New("a process that this cluster started is still there: look for `ringmain worker`")
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// describe fills c.file with what is known before anything runs, and keeps the
// key of an earlier run: it exists nowhere else.
func (c *cluster) describe() {
	if old, err := clusterfile.Read(c.clusterFile()); err == nil {
		c.file.APIKey = old.APIKey
	}
	c.file.CAFile = filepath.Join(c.dir, rootsName)
	c.file.Model, c.file.RemoteModel, c.file.MessagesModel = chatModel, remoteModel, messagesModel
	c.file.Supervisor = filepath.Join(c.dir, socketName)
	c.file.AdminTokenFile = filepath.Join(c.dir, "admin.token")
	c.file.FrontDoor = "https://" + c.shape.addr(0)
	for r, region := range c.shape.Regions {
		c.file.Upstreams = append(c.file.Upstreams, clusterfile.Upstream{Name: "sim-" + region.Name, Region: region.Name, URL: "https://" + c.shape.model(r)})
		c.file.Regions = append(c.file.Regions, clusterfile.Region{Name: region.Name, Jurisdiction: region.Jurisdiction,
			API: "https://" + c.shape.api(r), Admin: "https://" + c.shape.admin(r)})
	}
	for _, n := range c.nodes {
		fn := clusterfile.Node{Name: n.name, Role: string(n.role), Metrics: "http://" + n.metrics + "/metrics", DataDir: n.dataDir()}
		if n.role == config.Control {
			fn.Admin = "https://" + n.admin
		} else {
			fn.API, fn.Pools = "https://"+n.api, []string{"standard", "zero-retention"}
		}
		r := &c.file.Regions[n.region]
		r.Nodes = append(r.Nodes, fn)
	}
}

// startModels serves one simulated provider per region, here: outside what a drill kills.
func (c *cluster) startModels(ctx context.Context, g *errgroup.Group) error {
	ca, err := identity.OpenCA(filepath.Join(c.dir, "ca"))
	if err != nil {
		return err
	}
	issued, err := ca.IssueServer([]string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, leafTTL)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(issued.Chain, issued.Key)
	if err != nil {
		return err
	}
	for r, region := range c.shape.Regions {
		l, err := net.Listen("tcp", c.shape.model(r)) //nolint:noctx // binding a loopback port does not wait
		if err != nil {
			return err
		}
		srv := &http.Server{
			Handler:           simmodel.New(simmodel.Config{Name: "sim-" + region.Name, FirstToken: 40 * time.Millisecond, TokensPerSecond: 200}),
			ReadHeaderTimeout: 10 * time.Second,
			TLSConfig:         identity.Public(pair, []string{"h2", "http/1.1"}),
		}
		g.Go(func() error {
			if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("simulated provider of %s: %w", region.Name, err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			return srv.Close()
		})
	}
	return nil
}

// startOutside starts what an installation has around ringmain: health checks,
// a balancer per region and for its admin API, the front door, and the
// supervisor's socket.
func (c *cluster) startOutside(ctx context.Context, g *errgroup.Group) error {
	apis, admins := make([][]*door.Backend, len(c.shape.Regions)), make([][]*door.Backend, len(c.shape.Regions))
	var all []*door.Backend
	for _, n := range c.nodes {
		b := &door.Backend{Addr: n.api, Check: "https://" + n.api + "/readyz"}
		if n.role == config.Control {
			b = &door.Backend{Addr: n.admin, Check: "https://" + n.admin + "/livez"}
			admins[n.region] = append(admins[n.region], b)
		} else {
			apis[n.region] = append(apis[n.region], b)
			all = append(all, b)
		}
		c.backends[n.name] = b
		g.Go(func() error { return b.Watch(ctx, c.probes) })
	}
	doors := []*door.Balancer{{Addr: c.shape.addr(0), Backends: all, Always: true}}
	for r := range c.shape.Regions {
		doors = append(doors, &door.Balancer{Addr: c.shape.api(r), Backends: apis[r], Spread: true},
			&door.Balancer{Addr: c.shape.admin(r), Backends: admins[r], Spread: true})
	}
	for _, d := range doors {
		g.Go(func() error { return d.Run(ctx) })
	}
	_ = os.Remove(c.file.Supervisor)                // of an earlier run; the directory is locked by us
	l, err := net.Listen("unix", c.file.Supervisor) //nolint:noctx // binding a socket file does not wait
	if err != nil {
		return err
	}
	var names []string
	for _, r := range c.shape.Regions {
		names = append(names, r.Name)
	}
	g.Go(func() error { return c.sup.serve(ctx, l, names) })
	return nil
}
