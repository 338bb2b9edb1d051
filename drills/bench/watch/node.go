package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/controlplane"
	"ringmain/controlplane/feed/hub"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
)

const shard = controlplane.Shard("any-bench")

// viewer is the state beside the hub, once the log is open.
type viewer struct{ q *quorum.Quorum }

func (v *viewer) View(f func(*ledger.State)) { v.q.View(f) }

// serveNode is one control node: log, hub and listener, as a region's are wired.
func serveNode(ctx context.Context, o options) (err error) {
	bundle, err := identity.LoadBundle(filepath.Join(o.dir, o.part))
	if err != nil {
		return err
	}
	holder, err := seal.OpenFileHolder(filepath.Join(o.dir, "key"))
	if err != nil {
		return err
	}
	var peers []quorum.Peer
	self := ""
	for i, addr := range o.addrs() {
		peers = append(peers, quorum.Peer{Node: fmt.Sprintf("c%d", i+1), Addr: addr})
		if peers[i].Node == o.part {
			self = addr
		}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", self)
	if err != nil {
		return err
	}
	const raft = "raft"
	demux := identity.Listener(l, bundle.Server([]string{raft, "h2"}, identity.AnyOf(identity.AllowControl(regionName), identity.AllowData(regionName))), raft, "h2")
	defer func() { err = errors.Join(err, demux.Close()) }()
	source, metrics := &viewer{}, prometheus.NewRegistry()
	feeds, err := hub.Open(ctx, hub.Config{Cluster: cluster, Region: regionName, Node: o.part, Source: source, Registerer: metrics,
		Members: func() []byte { return []byte("a list") }})
	if err != nil {
		return err
	}
	source.q, err = quorum.Open(ctx, quorum.Config{
		Cluster: cluster, Region: regionName, Node: o.part, Dir: filepath.Join(o.dir, o.part, "log"), Peers: peers,
		Homes:    []quorum.ShardSpec{{Shard: shard, Members: []string{regionName}}},
		Listener: demux.For(raft), Sealer: seal.New(holder), OnApply: feeds.Applied,
		Dial: func(ctx context.Context, node, addr string) (net.Conn, error) {
			want := identity.ID{Cluster: cluster, Region: regionName, Role: identity.RoleControl, Node: node}
			return bundle.Dialer(&net.Dialer{Timeout: 2 * time.Second}, []string{raft}, identity.AllowNode(want))(ctx, "tcp", addr)
		},
	})
	if err != nil {
		return errors.Join(err, feeds.Close())
	}
	defer func() { err = errors.Join(err, source.q.Close(context.WithoutCancel(ctx)), feeds.Close()) }()
	server := &http.Server{Handler: feeds.Handler(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(demux.For("h2")) }()
	defer func() {
		_ = server.Close() // streams are cut
		if e := <-served; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}()
	return obeyAll(func(ask order) (a answer, err error) {
		switch ask.Do {
		case "lead":
			a.Leads = source.q.IsLeader()
			return a, nil
		case "fill":
			return a, fill(ctx, source.q, ask.N)
		case "load":
			return load(ctx, source.q, ask)
		case "state":
			if a.Sent, a.Encoded, err = snapshots(metrics); err != nil {
				return a, err
			}
			return a, own(&a)
		}
		return a, fmt.Errorf("unknown order %q", ask.Do)
	})
}

const (
	org     = "org_any_0000000000000001"
	project = "prj_any_0000000000000001"
)

func key(n int) *registry.Record {
	return &registry.Record{Kind: registry.KindKey, Meta: registry.Meta{ID: fmt.Sprintf("key_any_%016d", n), Shard: shard, Created: 1, Updated: 1},
		Key: &registry.Key{Project: project, Name: "k", Class: "live", Hash: bytes.Repeat([]byte{byte(n)}, 60), Hint: "abcd"}}
}

// fill makes an org with a project of n keys.
func fill(ctx context.Context, q *quorum.Quorum, n int) error {
	put := func(recs ...*registry.Record) error {
		var changes []registry.Change
		for _, r := range recs {
			changes = append(changes, registry.Change{Op: registry.OpPut, Record: r})
		}
		_, err := q.Propose(ctx, shard, changes)
		return err
	}
	meta := func(id string) registry.Meta { return registry.Meta{ID: id, Shard: shard, Created: 1, Updated: 1} }
	if err := put(&registry.Record{Kind: registry.KindOrg, Meta: meta(org), Org: &registry.Org{Name: "bench", Plan: "build", State: "verified", Jurisdiction: "any"}}); err != nil {
		return err
	}
	if err := put(&registry.Record{Kind: registry.KindProject, Meta: meta(project), Project: &registry.Project{Org: org, Name: "bench"}}); err != nil {
		return err
	}
	const batch = 100
	for i := 0; i < n; i += batch {
		var recs []*registry.Record
		for k := i; k < min(i+batch, n); k++ {
			recs = append(recs, key(k))
		}
		if err := put(recs...); err != nil {
			return err
		}
	}
	return nil
}

// load writes one key after the other, at a pace. The record's time of change is
// when its write was begun, so that watchers know how old it is.
func load(ctx context.Context, q *quorum.Quorum, ask order) (a answer, err error) {
	var took []time.Duration
	begun := time.Now()
	for next := begun; time.Since(begun) < ask.Window; next = next.Add(ask.Pace) {
		time.Sleep(time.Until(next))
		rec, start := key(0), time.Now()
		rec.Meta.Updated = start.UnixMicro()
		if _, err := q.Propose(ctx, shard, []registry.Change{{Op: registry.OpPut, Record: rec}}); err != nil {
			return a, err
		}
		took = append(took, time.Since(start))
	}
	a.P50, a.P99, a.Max = quantiles(took)
	return a, nil
}

func quantiles(all []time.Duration) (p50, p99, most float64) {
	if len(all) == 0 {
		return 0, 0, 0
	}
	slices.Sort(all)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return ms(all[len(all)/2]), ms(all[len(all)*99/100]), ms(all[len(all)-1])
}

// snapshots are how many the hub sent, and how many it made for that.
func snapshots(r *prometheus.Registry) (sent, made uint64, err error) {
	all, err := r.Gather()
	for _, f := range all {
		switch f.GetName() {
		case "ringmain_feed_resets_total":
			sent = uint64(f.GetMetric()[0].GetCounter().GetValue())
		case "ringmain_feed_snapshots_total":
			made = uint64(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	return sent, made, err
}
