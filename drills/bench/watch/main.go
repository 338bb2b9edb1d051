// Command watch measures what many watchers cost a region: three control nodes
// and the watchers in processes of their own, over loopback with mutual TLS,
// each watcher with a connection of its own, as data nodes have. Commits with
// and without watchers are measured in turn, then what a watcher costs in
// memory, and how long all of them need after their connections are cut at
// once. No rule of ringmain is decided here.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/controlplane/seal"
)

func main() {
	var o options
	flag.StringVar(&o.part, "part", "", "internal: be one node, or watch")
	flag.StringVar(&o.dir, "dir", "", "where the data goes [a new directory under .]")
	flag.IntVar(&o.watchers, "watchers", 1000, "how many watch")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of commits without and with watchers")
	flag.DurationVar(&o.window, "window", 6*time.Second, "of one measurement")
	flag.DurationVar(&o.pace, "pace", 100*time.Millisecond, "from the begin of one write to the next; one at a time")
	flag.IntVar(&o.keys, "keys", 1000, "keys in the state that watchers take")
	flag.IntVar(&o.port, "port", 36100, "first of three loopback ports")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := bench
	switch o.part {
	case "":
	case "watch":
		run = serveWatchers
	default:
		run = serveNode
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "watch:", err)
		os.Exit(1)
	}
}

type options struct {
	part, dir                    string
	watchers, rounds, keys, port int
	window, pace                 time.Duration
}

func (o *options) addrs() (all []string) {
	for i := range 3 {
		all = append(all, fmt.Sprintf("127.0.0.1:%d", o.port+i))
	}
	return all
}

const cluster, regionName = "bench", "bench"

// prepare makes identities and the region's key.
func prepare(dir string) error {
	ca, err := identity.CreateCA(filepath.Join(dir, "ca"), cluster)
	if err != nil {
		return err
	}
	for _, n := range []struct{ role, node string }{{identity.RoleControl, "c1"}, {identity.RoleControl, "c2"}, {identity.RoleControl, "c3"}, {identity.RoleData, "d1"}} {
		issued, err := ca.IssueNode(identity.ID{Cluster: cluster, Region: regionName, Role: n.role, Node: n.node}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
		if err == nil {
			err = os.MkdirAll(filepath.Join(dir, n.node), 0o700)
		}
		if err == nil {
			err = issued.Write(filepath.Join(dir, n.node))
		}
		if err != nil {
			return err
		}
	}
	return seal.CreateKeyFile(filepath.Join(dir, "key"))
}

// result is the last line, as JSON.
type result struct {
	Watchers, Keys          int
	Pace                    string
	Without, With           []commit // by round
	P50Without, P50With     float64  // ms, medians over the rounds
	P99Without, P99With     float64
	LagP50, LagP99, LagMax  float64 // ms, from the acknowledgement to the watchers
	NodeKiBPerWatcher       float64 // resident, of all three nodes
	NodeHeapKiBPerWatcher   float64 // live heap after a collection
	FirstSeconds            float64 // until all hold the state, at first
	StormSeconds            float64 // after all connections were cut, and the state went on
	StormCPUSeconds         float64 // of the three nodes
	SnapshotsSent, Encoded  uint64  // to all, and of those how many were made
	FileDescriptorsOfLeader int
}

type commit struct{ P50, P99 float64 } // ms

func bench(ctx context.Context, o options) (err error) {
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp(".", ".watch-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	if err := prepare(o.dir); err != nil {
		return err
	}
	var parts []*part
	defer func() {
		for _, p := range parts {
			err = errors.Join(err, p.close())
		}
	}()
	for _, name := range []string{"c1", "c2", "c3", "watch"} {
		p, err := begin(o, name)
		if err != nil {
			return err
		}
		parts = append(parts, p)
	}
	nodes, watch := parts[:3], parts[3]
	lead, err := leader(ctx, nodes)
	if err != nil {
		return err
	}
	if _, err := lead.ask(order{Do: "fill", N: o.keys}); err != nil {
		return err
	}
	r := result{Watchers: o.watchers, Keys: o.keys, Pace: o.pace.String()}
	load := func() (commit, error) {
		a, err := lead.ask(order{Do: "load", Window: o.window, Pace: o.pace})
		return commit{a.P50, a.P99}, err
	}
	if _, err := load(); err != nil { // warms up
		return err
	}
	before, err := usage(nodes)
	if err != nil {
		return err
	}
	for i := range o.rounds {
		without, err := load()
		if err != nil {
			return err
		}
		a, err := watch.ask(order{Do: "watch", N: o.watchers})
		if err != nil {
			return err
		}
		if i == 0 {
			r.FirstSeconds = a.Seconds
			after, err := usage(nodes)
			if err != nil {
				return err
			}
			r.NodeKiBPerWatcher = float64(after.resident-before.resident) / 1024 / float64(o.watchers)
			r.NodeHeapKiBPerWatcher = float64(after.heap-before.heap) / 1024 / float64(o.watchers)
		}
		with, err := load()
		if err != nil {
			return err
		}
		if i == o.rounds-1 {
			if err := storm(&r, lead, nodes, watch); err != nil {
				return err
			}
		}
		if a, err = watch.ask(order{Do: "leave"}); err != nil {
			return err
		}
		r.LagP50, r.LagP99, r.LagMax = a.P50, a.P99, a.Max
		r.Without, r.With = append(r.Without, without), append(r.With, with)
		fmt.Fprintf(os.Stdout, "round %d: p50 %.2f ms, p99 %.2f ms without; p50 %.2f ms, p99 %.2f ms with %d watchers, told after p50 %.2f ms, p99 %.2f ms\n",
			i+1, without.P50, without.P99, with.P50, with.P99, o.watchers, a.P50, a.P99)
	}
	r.P50Without, r.P99Without = medians(r.Without)
	r.P50With, r.P99With = medians(r.With)
	text, err := json.Marshal(r)
	if err == nil {
		_, err = fmt.Fprintln(os.Stdout, string(text))
	}
	return err
}

func medians(all []commit) (p50, p99 float64) {
	var a, b []float64
	for _, c := range all {
		a, b = append(a, c.P50), append(b, c.P99)
	}
	slices.Sort(a)
	slices.Sort(b)
	return a[len(a)/2], b[len(b)/2]
}

// storm cuts all connections at once while the state goes on.
func storm(r *result, lead *part, nodes []*part, watch *part) error {
	before, err := usage(nodes)
	if err != nil {
		return err
	}
	a, err := watch.ask(order{Do: "cut"})
	if err != nil {
		return err
	}
	after, err := usage(nodes)
	if err != nil {
		return err
	}
	r.StormSeconds, r.StormCPUSeconds = a.Seconds, after.cpu-before.cpu
	for _, n := range nodes {
		a, err := n.ask(order{Do: "state"})
		if err != nil {
			return err
		}
		r.SnapshotsSent, r.Encoded = r.SnapshotsSent+a.Sent, r.Encoded+a.Encoded
	}
	a, err = lead.ask(order{Do: "state"})
	r.FileDescriptorsOfLeader = a.Files
	return err
}
