package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/bench/rig"
	"ringmain/drills/cluster"
)

const (
	regionName = "us-east"
	writers    = 16
	samples    = 10 // keys that are made and revoked one after the other
)

// region is three control nodes and two data nodes.
type region struct {
	control, data []*node
	leader        *node
	http          *http.Client
	token         string
	sealKey       string
}

// begin makes a region with `ringmain dev`, measures its API while it holds next
// to nothing, takes a backup, and ends its processes.
func begin(ctx context.Context, t *table, o options, small string) (r *region, err error) {
	c, err := cluster.Start(ctx, o.ringmain, o.dir, o.port, 2, "--regions", regionName+":us")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	r = &region{http: c.HTTP(), token: c.Token, sealKey: filepath.Join(c.Dir, regionName, "seal.key")}
	r.http.Timeout = 2 * time.Minute
	for _, n := range c.Regions[0].Nodes {
		one := &node{Node: n, dir: filepath.Dir(n.DataDir), program: o.ringmain}
		if n.Role == "control" {
			r.control = append(r.control, one)
		} else {
			r.data = append(r.data, one)
		}
	}
	if err := r.lead(ctx); err != nil {
		return nil, err
	}
	if err := r.rates(ctx, t, o, "beside none"); err != nil {
		return nil, err
	}
	return r, errors.Join(r.lead(ctx), r.backup(ctx, small))
}

// lead finds the leader, which answers writes sooner than those who pass them on.
func (r *region) lead(ctx context.Context) error {
	for _, n := range r.control {
		var st api.Status
		r.leader = n
		if err := r.call(ctx, http.MethodGet, "/status", nil, &st); err != nil || st.Leads {
			return err
		}
	}
	return errors.New("no node leads")
}

// measure does all, in an order in which waiting is not wasted.
func measure(ctx context.Context, t *table, o options) (err error) {
	small, many, again := filepath.Join(o.dir, "small.backup"), filepath.Join(o.dir, "many.backup"), filepath.Join(o.dir, "again.backup")
	r, err := begin(ctx, t, o, small)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	keys, records, err := multiply(small, many, r.sealKey, o)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return r.restore(ctx, t, many, records) },
		func() error { return r.startControl(ctx, t) },
		func() error { return r.cold(ctx, t, r.data[0], "the first") },
		func() error { return r.cold(ctx, t, r.data[1], "the second") },
		func() error { return r.rates(ctx, t, o, "beside the many") },
		func() error { return r.visible(ctx, t) },
		func() error { return r.takeBackup(ctx, t, again) },
		func() error { return r.restart(ctx, t) },
		func() error { return r.controlMemory(t) },
		func() error { return r.heap(ctx, t, o.keys) },
		func() error { return r.authenticate(ctx, t, keys, "with the control plane") },
		func() error { return r.alone(ctx, t) },
		func() error { return r.authenticate(ctx, t, keys, "without the control plane") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (r *region) stop() (err error) {
	r.http.CloseIdleConnections()
	for _, n := range slices.Concat(r.data, r.control) {
		err = errors.Join(err, n.stop())
	}
	return err
}

// backup has the leader write one to file.
func (r *region) backup(ctx context.Context, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.leader.Admin+"/admin/v1/backup", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	if err == nil && resp.Trailer.Get(api.TrailerWhole) != "true" {
		err = fmt.Errorf("backup: %s, not whole", resp.Status)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func (r *region) takeBackup(ctx context.Context, t *table, file string) error {
	began := time.Now()
	if err := r.backup(ctx, file); err != nil {
		return err
	}
	t.took("backup taken while the region runs", time.Since(began), 0, "by the API, sealed, to disk")
	size, err := onDisk(file)
	t.bytes("size of the backup", size, "")
	return err
}

// restore makes the first control node's directory from file; all others become empty.
func (r *region) restore(ctx context.Context, t *table, file string, records int) error {
	for _, n := range slices.Concat(r.control, r.data) {
		if err := os.RemoveAll(n.DataDir); err != nil {
			return err
		}
	}
	first := r.control[0]
	began := time.Now()
	cmd := exec.CommandContext(ctx, first.program, "backup", "restore", file, "--key", r.sealKey, "--config", first.config())
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, text)
	}
	took := time.Since(began)
	t.took("restore of one node from a backup", took, 0, "`ringmain backup restore`: every byte checked, image and snapshot written")
	t.add(row{What: "load rate by restore", Value: float64(records) / took.Seconds(), Unit: "records a second", How: fmt.Sprintf("%d records", records)})
	return nil
}

// startControl starts the restored node and the two empty ones.
func (r *region) startControl(ctx context.Context, t *table) error {
	took := make([]time.Duration, len(r.control))
	began := time.Now()
	var g errgroup.Group
	for i, n := range r.control {
		if err := n.start(); err != nil {
			return err
		}
		g.Go(func() error {
			err := n.ready(ctx, r.http)
			took[i] = time.Since(began)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	t.took("start of the restored region until its first node is ready", took[0], 0, "three nodes at once, two of them empty")
	t.took("and until the empty nodes hold the state too", max(took[1], took[2]), 0, "installed from the leader's snapshot")
	if err := r.takeOver(ctx); err != nil {
		return err
	}
	t.took("and until it takes a write", time.Since(began), 0, "after a takeover of each shard from the region's former life")
	for _, part := range []struct{ name, path string }{{"image", "image.db"}, {"snapshots", "snapshots"}, {"log", "log"}} {
		for i, n := range r.control[:2] {
			size, err := onDisk(filepath.Join(n.DataDir, "quorum", part.path))
			if err != nil {
				return err
			}
			t.bytes("on disk of a control node: "+part.name, size, [...]string{"restored", "installed"}[i])
		}
	}
	return nil
}

// takeOver makes the restored region home of what its former life was home of,
// as an operator does where no other region is left, and writes.
func (r *region) takeOver(ctx context.Context) error {
	if err := r.lead(ctx); err != nil {
		return err
	}
	var shards api.ShardList
	if err := r.call(ctx, http.MethodGet, "/shards", nil, &shards); err != nil {
		return err
	}
	for _, s := range shards.Items {
		if err := r.call(ctx, http.MethodPost, "/shards/"+s.Shard+"/takeover?region="+regionName, api.TakeoverInput{Lost: []string{regionName}}, nil); err != nil {
			return err
		}
	}
	return r.call(ctx, http.MethodPost, "/orgs", api.OrgInput{Name: "first"}, nil)
}

// cold starts a data node whose disk is empty.
func (r *region) cold(ctx context.Context, t *table, n *node, which string) error {
	took, err := r.startData(ctx, n)
	if err != nil {
		return err
	}
	t.took("data node with an empty disk, start until ready: "+which, took, 20, "everything over the wire, keeper and worker")
	return nil
}

func (r *region) startData(ctx context.Context, n *node) (time.Duration, error) {
	began := time.Now()
	if err := n.start(); err != nil {
		return 0, err
	}
	err := n.ready(ctx, r.http)
	return time.Since(began), err
}

// until polls the data nodes until each answers status.
func (r *region) until(ctx context.Context, key string, status int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var g errgroup.Group
	for _, n := range r.data {
		g.Go(func() error {
			for ; ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
				if got, err := get(ctx, r.http, n.API+"/v1/models", key); err == nil && got == status {
					return nil
				}
			}
			return fmt.Errorf("%s does not answer %d: %w", n.Name, status, ctx.Err())
		})
	}
	return g.Wait()
}

// visible times from the call until both data nodes answer accordingly.
func (r *region) visible(ctx context.Context, t *table) error {
	project, err := r.project(ctx, "visible")
	if err != nil {
		return err
	}
	var made, refused []time.Duration
	for i := range samples {
		var key api.Key
		began := time.Now()
		if err := r.call(ctx, http.MethodPost, "/projects/"+project+"/keys", api.KeyInput{Name: fmt.Sprint(i)}, &key); err != nil {
			return err
		}
		if err := r.until(ctx, key.Whole, http.StatusOK); err != nil {
			return err
		}
		made = append(made, time.Since(began))
		began = time.Now()
		if err := r.call(ctx, http.MethodPost, "/keys/"+key.ID+"/revoke", nil, nil); err != nil {
			return err
		}
		if err := r.until(ctx, key.Whole, http.StatusUnauthorized); err != nil {
			return err
		}
		refused = append(refused, time.Since(began))
	}
	for _, of := range []struct {
		what, how string
		took      []time.Duration
	}{
		{"key made, call until both data nodes let it in", ", hashed once, compared twice", made},
		{"key revoked, call until both data nodes refuse it", "", refused},
	} {
		slices.Sort(of.took)
		t.took(of.what+", p50", of.took[samples/2], 0, fmt.Sprintf("n %d%s", samples, of.how))
		t.took(of.what+", slowest", of.took[samples-1], 0, "")
	}
	return nil
}

// restart ends a control node and starts it from its disk.
func (r *region) restart(ctx context.Context, t *table) error {
	n := r.control[2]
	began := time.Now()
	if err := n.stop(); err != nil {
		return err
	}
	t.took("control node told to end, until it has", time.Since(began), 0, "")
	began = time.Now()
	if err := n.start(); err != nil {
		return err
	}
	if err := n.ready(ctx, r.http); err != nil {
		return err
	}
	t.took("control node from disk, start until ready", time.Since(began), 0, "")
	return nil
}

func (r *region) controlMemory(t *table) error {
	for i, n := range r.control {
		used, err := rig.UsageOf(n.cmd.Process.Pid)
		if err != nil {
			return err
		}
		peak, err := rig.Peak(n.cmd.Process.Pid)
		if err != nil {
			return err
		}
		t.bytes("resident memory of control node "+n.Name, used.RSS, fmt.Sprintf("%s; peak %d MiB", [...]string{"restored", "installed", "restarted"}[i], peak>>20))
	}
	return nil
}

// gcWithin is longer than Go lets a process be without a collection.
const gcWithin = 150 * time.Second

// heap waits for a collection of a data node's worker that begins after all is loaded.
func (r *region) heap(ctx context.Context, t *table, keys int) error {
	n := r.data[0]
	before, err := rig.Metrics(ctx, n.Metrics)
	if err != nil {
		return err
	}
	const worker = "ringmain_worker_go_memstats_"
	after := before
	for deadline := time.Now().Add(gcWithin); after[worker+"last_gc_time_seconds"] == before[worker+"last_gc_time_seconds"]; {
		if time.Now().After(deadline) {
			return fmt.Errorf("no collection in %v", gcWithin)
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		if after, err = rig.Metrics(ctx, n.Metrics); err != nil {
			return err
		}
	}
	alive := after[worker+"heap_alloc_bytes"]
	if alive == 0 {
		return errors.New("the worker does not say what its heap is")
	}
	t.add(row{What: "heap of a data node's worker, a key", Value: alive / float64(keys), Unit: "B", Most: 250, How: "after a collection, everything in it counted"})
	pid, err := n.worker(ctx)
	if err != nil {
		return err
	}
	for _, p := range []struct {
		who string
		pid int
	}{{"worker", pid}, {"keeper", n.cmd.Process.Pid}} {
		used, err := rig.UsageOf(p.pid)
		if err != nil {
			return err
		}
		peak, err := rig.Peak(p.pid)
		if err != nil {
			return err
		}
		t.bytes("resident memory of a "+p.who, used.RSS, fmt.Sprintf("peak %d MiB", peak>>20))
	}
	size, err := onDisk(n.DataDir)
	t.bytes("on disk of a data node", size, "")
	return err
}

// authenticate has the first data node let in the keys whose secrets are known.
func (r *region) authenticate(ctx context.Context, t *table, keys []knownKey, when string) error {
	for i, k := range keys {
		right, err := get(ctx, r.http, r.data[0].API+"/v1/models", k.right)
		if err != nil {
			return err
		}
		wrong, err := get(ctx, r.http, r.data[0].API+"/v1/models", k.wrong)
		if err != nil {
			return err
		}
		if right != http.StatusOK || wrong != http.StatusUnauthorized {
			return fmt.Errorf("%s: key %d of %d got %d, with a wrong secret %d", when, i+1, len(keys), right, wrong)
		}
	}
	t.add(row{What: "keys let in " + when, Value: float64(len(keys)), Unit: "of " + fmt.Sprint(len(keys)), How: "200; each with another secret: 401"})
	return nil
}

// starts is how often a data node is started from its disk.
const starts = 3

// alone starts a data node from its disk while no control node runs.
func (r *region) alone(ctx context.Context, t *table) error {
	if err := r.stop(); err != nil {
		return err
	}
	var all []time.Duration
	for range starts {
		if err := r.data[0].stop(); err != nil {
			return err
		}
		took, err := r.startData(ctx, r.data[0])
		if err != nil {
			return err
		}
		all = append(all, took)
	}
	slices.Sort(all)
	t.took("data node from its disk, start until ready, p50", all[starts/2], 0, fmt.Sprintf("n %d, no control node runs", starts))
	t.took("and slowest", all[starts-1], 5, "")
	return nil
}
