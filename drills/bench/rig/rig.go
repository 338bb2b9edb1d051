// Package rig starts what the bench compares: a provider, nginx, HAProxy, a plain
// reverse proxy and a data node, each but the provider in processes of its own.
package rig

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ringmain/internal/clusterfile"
)

// Names of the contenders.
const (
	Direct   = "direct"
	Nginx    = "nginx"
	HAProxy  = "haproxy"
	Proxy    = "proxy" // net/http's, with a buffer pool
	Ringmain = "ringmain"
	Before   = "before" // another build of ringmain
)

// Contender is one thing under test.
type Contender struct {
	Name string
	Addr string // host:port
	Key  string // ringmain's API key
	PIDs []int  // what is measured; empty = nothing
	HTTP *http.Client

	root int // process: it and its descendants are measured
}

// Rig is everything that runs during a bench.
type Rig struct {
	Dir        string
	Roots      *x509.CertPool // of the provider, the contenders and ringmain
	Contenders []*Contender
	Cluster    *clusterfile.Cluster
	Perf       bool     // this machine counts instructions
	NotRun     []string // what is missing here, and how to get it

	stops []func() error
}

// Stop ends every child, the last one first.
func (r *Rig) Stop() (err error) {
	for _, f := range slices.Backward(r.stops) {
		err = errors.Join(err, f())
	}
	return err
}

const (
	// PerAddress is how many idle streams use one pair of addresses: ports of one
	// pair are few, and a node admits only so many connections of one source.
	PerAddress = 10000
	// perUpstream is how many a node gives one upstream that has not answered yet.
	perUpstream = 900
)

// New prepares a directory, a certificate and room for open files; ctx ends
// with the rig.
func New(parent context.Context) (r *Rig, ctx context.Context, pair tls.Certificate, err error) {
	ctx, cancel := context.WithCancel(parent)
	r = &Rig{stops: []func() error{func() error { cancel(); return nil }}}
	if r.Dir, err = os.MkdirTemp("", "ringmain-bench-"); err == nil {
		r.stops = append(r.stops, func() error { return os.RemoveAll(r.Dir) })
		err = raiseFiles()
	}
	if err == nil {
		pair, r.Roots, err = certificate(r.Dir)
	}
	if err != nil {
		return nil, nil, pair, errors.Join(err, r.Stop())
	}
	return r, ctx, pair, nil
}

// Options of a rig.
type Options struct {
	Binary     string // ringmain
	Before     string // another build of it, a contender of its own; empty = none
	Port       int    // the first of those ringmain takes
	Idle       int    // streams that will be held open at once
	UpstreamH2 bool   // the provider speaks HTTP/2 with those who can
	Without    []string
	Progress   func(format string, args ...any)
}

// Start starts the provider and every contender that is installed.
func Start(ctx context.Context, o Options) (_ *Rig, err error) {
	r, ctx, pair, err := New(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Stop())
		}
	}()
	var providers []string
	for i := range 1 + (o.Idle-1)/PerAddress {
		addr, err := ServeTLS(ctx, fmt.Sprintf("127.0.0.%d:0", i+1), pair, o.UpstreamH2, http.HandlerFunc(provide))
		if err != nil {
			return nil, err
		}
		providers = append(providers, addr)
	}
	direct, err := ServeTLS(ctx, "127.0.0.1:0", pair, true, http.HandlerFunc(provide))
	if err != nil {
		return nil, err
	}
	if !slices.Contains(o.Without, Direct) {
		r.Contenders = append(r.Contenders, &Contender{Name: Direct, Addr: direct})
	}
	for _, peer := range []struct {
		name, binary string
		config       func(dir, addr string, providers []string) string
		args         func(file string) []string
	}{
		{Nginx, "nginx", nginxConfig, func(f string) []string { return []string{"-c", f} }},
		{HAProxy, "haproxy", haproxyConfig, func(f string) []string { return []string{"-db", "-f", f} }},
	} {
		if slices.Contains(o.Without, peer.name) {
			continue
		}
		path := lookFor(peer.binary)
		if path == "" {
			r.NotRun = append(r.NotRun, peer.name+" is not installed: apt-get install nginx-light haproxy")
			o.Progress("%s", r.NotRun[len(r.NotRun)-1])
			continue
		}
		c, err := r.startPeer(ctx, peer.name, path, peer.config, peer.args, providers)
		if err != nil {
			return nil, err
		}
		r.Contenders = append(r.Contenders, c)
	}
	if !slices.Contains(o.Without, Proxy) {
		c, err := r.startProxy(ctx, providers, o.UpstreamH2)
		if err != nil {
			return nil, err
		}
		r.Contenders = append(r.Contenders, c)
	}
	seed, capacity := manifest(providers, o.Idle), max(4096, 2*o.Idle)
	if o.Before != "" {
		c, _, err := r.startNode(ctx, Before, o.Before, seed, capacity, o.Port+portsOfNode)
		if err != nil {
			return nil, err
		}
		r.Contenders = append(r.Contenders, c)
	}
	c, err := r.StartRingmain(ctx, o.Binary, seed, capacity, o.Port)
	if err != nil {
		return nil, err
	}
	r.Contenders = append(r.Contenders, c)
	for _, c := range r.Contenders {
		if c.root != 0 {
			c.PIDs = append(c.PIDs, tree(c.root)...)
		}
	}
	counter, err := CountInstructions(os.Getpid())
	if r.Perf = err == nil; r.Perf {
		return r, counter.Close()
	}
	r.NotRun = append(r.NotRun, fmt.Sprintf("instructions (%v): CPU seconds only; `go run ./drills/bench/count` counts in an emulated machine", err))
	o.Progress("%s", r.NotRun[len(r.NotRun)-1])
	return r, nil
}

// raiseFiles lifts the limit of open files as far as it goes, children included.
func raiseFiles() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	if more := (syscall.Rlimit{Cur: 300000, Max: 300000}); l.Max < more.Max && syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
		return nil
	}
	l.Cur = l.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
}

// lookFor finds a daemon that may be outside an ordinary user's PATH.
func lookFor(binary string) string {
	for _, name := range []string{binary, "/usr/sbin/" + binary} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// child runs cmd until the rig stops and keeps its output for a failure.
func (r *Rig) child(cmd *exec.Cmd, name string) (ended chan struct{}, log string, err error) {
	log = filepath.Join(r.Dir, name+".log")
	f, err := os.Create(log)
	if err != nil {
		return nil, "", err
	}
	defer f.Close() // the child has its own
	if cmd.Stdout == nil {
		cmd.Stdout = f
	}
	cmd.Stderr = f
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	ended = make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended shows in its log
		close(ended)
	}()
	r.stops = append(r.stops, func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		select {
		case <-ended:
			return nil
		case <-time.After(40 * time.Second):
			return errors.Join(fmt.Errorf("%s did not stop in 40 s", name), cmd.Process.Kill())
		}
	})
	return ended, log, nil
}

// startPeer runs nginx or HAProxy on a port that was free a moment ago.
func (r *Rig) startPeer(ctx context.Context, name, path string, config func(dir, addr string, providers []string) string, args func(string) []string, providers []string) (*Contender, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // binding does not wait
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	file := filepath.Join(r.Dir, name+".conf")
	if err := os.WriteFile(file, []byte(config(r.Dir, addr, providers)), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args(file)...) //nolint:noctx // ended by the rig, by SIGTERM first
	ended, log, err := r.child(cmd, name)
	if err != nil {
		return nil, err
	}
	return &Contender{Name: name, Addr: addr, root: cmd.Process.Pid}, r.await(ctx, name, addr, ended, log)
}

// await waits until addr takes connections.
func (r *Rig) await(ctx context.Context, name, addr string, ended chan struct{}, log string) error {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr); err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log) // best effort: it explains the failure
			return fmt.Errorf("%s ended:\n%s", name, text)
		default:
		}
	}
	return fmt.Errorf("%s does not answer at %s", name, addr)
}

// RefusedPath is where nginx answers everything with the same 401.
const RefusedPath = "/bench/refused"

func nginxConfig(dir, addr string, providers []string) string {
	var servers, temps strings.Builder
	for _, p := range providers {
		fmt.Fprintf(&servers, "server %s;\n", p)
	}
	for _, t := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temps, "%s_temp_path %s;\n", t, dir)
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // its workers must reach the directory
	}
	return fmt.Sprintf(`%s
daemon off; worker_processes 2; pid %[2]s/nginx.pid; error_log stderr crit; worker_rlimit_nofile %[6]d;
events { worker_connections 131072; }
http {
access_log off; %[3]s
upstream provider { %[4]s keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }
server {
listen %[5]s ssl http2 backlog=4096;
ssl_certificate %[2]s/server.pem; ssl_certificate_key %[2]s/server.key; ssl_protocols TLSv1.3;
keepalive_requests 1000000000; keepalive_timeout 1h; http2_max_concurrent_streams 250;
client_max_body_size 64m; client_body_buffer_size 8m;
location = `+RefusedPath+` { return 401 '{"error":{"message":"The API key is missing or not valid.","type":"authentication_error","param":null,"code":"invalid_api_key"}}'; }
location / {
proxy_pass https://provider; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 1h;
proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; proxy_ssl_trusted_certificate %[2]s/server.pem; proxy_ssl_server_name on; proxy_ssl_name localhost;
} } }
`, user, dir, temps.String(), servers.String(), addr, OpenFiles())
}

// OpenFiles is how many files a process may have open.
func OpenFiles() uint64 {
	var l syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) // raised just before
	return l.Cur
}

func haproxyConfig(dir, addr string, providers []string) string {
	var servers strings.Builder
	for i, p := range providers {
		fmt.Fprintf(&servers, "server p%d %s ssl verify required ca-file %s/%s sni str(localhost) verifyhost localhost pool-max-conn -1\n", i, p, dir, certFile)
	}
	return fmt.Sprintf(`global
nbthread 2
maxconn %d
ssl-default-bind-options ssl-min-ver TLSv1.3
ssl-default-server-options ssl-min-ver TLSv1.3
tune.h2.max-concurrent-streams 250
defaults
mode http
option http-no-delay
timeout connect 10s
timeout client 1h
timeout server 1h
timeout http-keep-alive 1h
frontend in
bind %s ssl crt %s alpn h2,http/1.1
default_backend out
backend out
http-reuse always
%s`, OpenFiles()/2-100, addr, filepath.Join(dir, bothFile), servers.String())
}

// AllocPath is where the plain proxy says what it has allocated.
const AllocPath = "/bench/allocated"

// startProxy runs the plain proxy in a process of its own.
func (r *Rig) startProxy(_ context.Context, providers []string, h2 bool) (*Contender, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	//nolint:noctx // ended by the rig, by SIGTERM first
	cmd := exec.Command(exe, "-as-proxy", strings.Join(providers, ","), "-proxy-dir", r.Dir, fmt.Sprintf("-upstream-h2=%t", h2))
	if _, err := cmd.StdinPipe(); err != nil { // held open until this process ends
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	cmd.Stdout = write
	_, log, err := r.child(cmd, Proxy)
	_ = write.Close() // the child has its own
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(read).ReadString('\n')
	if err != nil {
		text, _ := os.ReadFile(log) // best effort: it explains the failure
		return nil, fmt.Errorf("the plain proxy ended: %w\n%s", err, text)
	}
	return &Contender{Name: Proxy, Addr: strings.TrimSpace(line), root: cmd.Process.Pid}, nil
}

// manifest declares the provider's addresses as upstreams of one model, as often
// as idle streams need.
func manifest(providers []string, idle int) string {
	var up, targets strings.Builder
	for i := range max(len(providers), 1+idle/perUpstream) {
		fmt.Fprintf(&up, "  - {name: bench-%d, provider: bench, region: us-east, dialect: openai, base_url: \"https://%s\", auth: none, simulated: true, %s}\n",
			i, providers[i%len(providers)], Terms)
		fmt.Fprintf(&targets, "{upstream: bench-%d, model: bench}, ", i)
	}
	return fmt.Sprintf("upstreams:\n%sroutes:\n  - model: bench\n    targets: [%s]\n    timeouts: {between_events_ms: 600000, total_ms: 600000}\n",
		up.String(), strings.TrimSuffix(targets.String(), ", "))
}

// Terms of a simulated upstream, for a manifest.
var Terms = `terms: {retention: zero, prompt_cache: none, training: never, contract: "` + strings.Repeat("0", 64) + `", dated: "2026-01-01"}`

// portsOfNode is more than a cluster of one data node takes.
const portsOfNode = 200

// StartRingmain runs a one-region cluster with one data node, which takes
// capacity requests at once, on port and those after it.
func (r *Rig) StartRingmain(ctx context.Context, binary, seed string, capacity, port int) (c *Contender, err error) {
	c, r.Cluster, err = r.startNode(ctx, Ringmain, binary, seed, capacity, port)
	return c, err
}

func (r *Rig) startNode(ctx context.Context, name, binary, seed string, capacity, port int) (*Contender, *clusterfile.Cluster, error) {
	file, data := filepath.Join(r.Dir, name+".yaml"), filepath.Join(r.Dir, name)
	if err := os.WriteFile(file, []byte(seed), 0o600); err != nil {
		return nil, nil, err
	}
	//nolint:noctx // ended by the rig, by SIGTERM first
	cmd := exec.Command(binary, "dev", "--regions", "us-east:us", "--control", "1", "--data", "1",
		"--dir", data, "--port", strconv.Itoa(port), "--seed", file, "--upstream-ca", filepath.Join(r.Dir, certFile))
	cmd.Env = append(os.Environ(), fmt.Sprintf("RINGMAIN_TUNABLES_CAPACITY=%d", capacity))
	ended, log, err := r.child(cmd, name)
	if err != nil {
		return nil, nil, err
	}
	var cluster *clusterfile.Cluster
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if cluster, err = clusterfile.Read(filepath.Join(data, "cluster.json")); err == nil && cluster.Ready {
			break
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log) // best effort: it explains the failure
			return nil, nil, fmt.Errorf("%s dev ended:\n%s", binary, text)
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		default:
		}
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("%s dev was not ready in 60 s", binary)
		}
	}
	ca, err := os.ReadFile(cluster.CAFile)
	if err != nil {
		return nil, nil, err
	}
	r.Roots.AppendCertsFromPEM(ca)
	n := dataNode(cluster)
	return &Contender{Name: name, Addr: strings.TrimPrefix(n.API, "https://"), Key: cluster.APIKey, PIDs: []int{n.PID, n.WorkerPID}}, cluster, nil
}

// Node is the data node under test.
func (r *Rig) Node() clusterfile.Node { return dataNode(r.Cluster) }

func dataNode(c *clusterfile.Cluster) clusterfile.Node {
	nodes := c.Regions[0].Nodes
	return nodes[slices.IndexFunc(nodes, func(n clusterfile.Node) bool { return n.Role == "data" })]
}
