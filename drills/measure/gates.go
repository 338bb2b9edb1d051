package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/fault"
	"ringmain/internal/clusterfile"
)

func (m *meter) newKey(ctx context.Context, admin, project, name string) (key api.Key, err error) {
	return key, m.call(ctx, http.MethodPost, admin+"/admin/v1/projects/"+project+"/keys", api.KeyInput{Name: name}, &key)
}

// customer is an org of one region with a key of its own.
type customer struct {
	org, key string
	refused  bool // it is suspended, and its key refused
}

func (m *meter) customer(ctx context.Context, region clusterfile.Region) (*customer, error) {
	if c := m.customers[region.Name]; c != nil {
		return c, nil
	}
	org, err := m.org(ctx, region.Admin)
	if err != nil {
		return nil, err
	}
	var project api.Project
	if err := m.call(ctx, http.MethodPost, region.Admin+"/admin/v1/orgs/"+org+"/projects", api.ProjectInput{Name: "measured"}, &project); err != nil {
		return nil, err
	}
	key, err := m.newKey(ctx, region.Admin, project.ID, "measured")
	if err != nil {
		return nil, err
	}
	_, all := m.dataNodes("")
	c := &customer{org: org, key: key.Whole}
	m.customers[region.Name] = c
	return c, m.until(ctx, all, key.Whole, http.StatusOK)
}

// change times, from the call, how long a change of what a key may do takes to
// be in force in its region, and elsewhere: its org is suspended, or is not any
// more. (A new key would be timed with the slow hash that it is kept as.)
func (m *meter) change(ctx context.Context, i int) ([]time.Duration, error) {
	region := m.Regions[i%len(m.Regions)]
	c, err := m.customer(ctx, region)
	if err != nil {
		return nil, err
	}
	own, others := m.dataNodes(region.Name)
	to, status := "suspended", http.StatusForbidden
	if c.refused {
		to, status = "verified", http.StatusOK
	}
	began := time.Now()
	took := make([]time.Duration, 2)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return m.call(gctx, http.MethodPut, region.Admin+"/admin/v1/orgs/"+c.org, api.OrgInput{Name: "measured", State: to}, nil)
	})
	for j, nodes := range [][]clusterfile.Node{own, others} {
		g.Go(func() error {
			err := m.until(gctx, nodes, c.key, status)
			took[j] = time.Since(began)
			return err
		})
	}
	err = g.Wait()
	c.refused = !c.refused
	return took, err
}

func (m *meter) revocation(ctx context.Context, i int) ([]time.Duration, error) {
	project, err := m.project(ctx)
	if err != nil {
		return nil, err
	}
	admin := m.Regions[i%len(m.Regions)].Admin
	_, all := m.dataNodes("")
	key, err := m.newKey(ctx, admin, project, "measure-"+strconv.Itoa(i))
	if err != nil {
		return nil, err
	}
	if err := m.until(ctx, all, key.Whole, http.StatusOK); err != nil {
		return nil, err
	}
	// A data node forgives a source 20 wrong keys a second and makes it wait
	// beyond: asking too early, and the refusal itself, must not add up to that.
	time.Sleep(forgiven)
	began := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return m.call(gctx, http.MethodPost, admin+"/admin/v1/keys/"+key.ID+"/revoke", nil, nil)
	})
	var took time.Duration
	g.Go(func() error {
		err := m.until(gctx, all, key.Whole, http.StatusUnauthorized)
		took = time.Since(began)
		return err
	})
	err = g.Wait()
	return []time.Duration{took}, err
}

// write gives an org of region another name, through a node that is told.
func (m *meter) write(ctx context.Context, admin, org string, i int, level string) error {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	return m.put(ctx, admin, org, i, level)
}

func (m *meter) put(ctx context.Context, admin, org string, i int, level string) error {
	reached, err := m.send(ctx, http.MethodPut, admin+"/admin/v1/orgs/"+org, api.OrgInput{Name: "measured " + strconv.Itoa(i), State: "verified"}, nil, level)
	if err == nil && level != "" && reached != level {
		err = fmt.Errorf("acknowledged %s, not %s", reached, level)
	}
	return err
}

// org makes one, held by the shard of the region that is asked, so that it
// outlives that region.
func (m *meter) org(ctx context.Context, admin string) (string, error) {
	var org api.Org
	reached, err := m.send(ctx, http.MethodPost, admin+"/admin/v1/orgs", api.OrgInput{Name: "measured", State: "verified"}, &org, api.AcknowledgedMultiRegion)
	if err == nil && reached != api.AcknowledgedMultiRegion {
		err = fmt.Errorf("an org was acknowledged %s only", reached)
	}
	return org.ID, err
}

// third is a control node of region that is none of the two.
func third(region clusterfile.Region, a, b string) clusterfile.Node {
	for _, n := range region.Nodes {
		if n.Role == "control" && n.Name != a && n.Name != b {
			return n
		}
	}
	return clusterfile.Node{}
}

// handover times, from the call, until a write that was begun after it is
// acknowledged. It goes through the successor: a follower that passes a write on
// answers when its own copy has it, some 40 ms later.
func (m *meter) handover(ctx context.Context, i int) ([]time.Duration, error) {
	region := m.Regions[i%len(m.Regions)]
	before, err := m.settled(ctx, region)
	if err != nil {
		return nil, err
	}
	to := third(region, before, "")
	org, err := m.org(ctx, to.Admin)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	var g errgroup.Group
	g.Go(func() error {
		return m.call(ctx, http.MethodPost, third(region, before, to.Name).Admin+"/admin/v1/members/transfer?region="+region.Name, api.TransferInput{To: to.Name}, nil)
	})
	// The old leader still takes writes until the call has reached it.
	var took time.Duration
	for n := 0; took == 0 && time.Since(began) < 20*time.Second; n++ {
		answered, err := m.answeredBy(ctx, to.Admin, org, n)
		if err == nil && answered == region.Name+"/"+to.Name {
			took = time.Since(began)
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if took == 0 {
		return nil, fmt.Errorf("%s acknowledged no write in 20 s", to.Name)
	}
	return []time.Duration{took}, nil
}

func (m *meter) leaderKill(ctx context.Context, i int) ([]time.Duration, error) {
	region := m.Regions[0] // home of the global shard
	leader, err := m.settled(ctx, region)
	if err != nil {
		return nil, err
	}
	through := third(region, leader, "")
	org, err := m.org(ctx, through.Admin)
	if err != nil {
		return nil, err
	}
	ps, err := m.processes(ctx, region.Name, leader)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := syscall.Kill(ps[0].PID, syscall.SIGKILL); err != nil {
		return nil, err
	}
	for n := 0; time.Since(began) < 20*time.Second; n++ {
		if m.write(ctx, through.Admin, org, i, "") == nil {
			return []time.Duration{time.Since(began)}, nil
		}
		time.Sleep(poll)
	}
	return nil, errors.New("no write was acknowledged in 20 s")
}

// processes are the control nodes of region, or one of them.
func (m *meter) processes(ctx context.Context, region, node string) (found []fault.Process, err error) {
	all, err := m.sup.Status(ctx)
	for _, p := range all {
		if p.Region == region && p.Role == "control" && (node == "" || p.Name == node) && p.PID > 1 {
			found = append(found, p)
		}
	}
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s %s does not run", region, node)
	}
	return found, err
}

// takeover kills a home and has another region take its shard over.
func (m *meter) takeover(ctx context.Context, i int) (took []time.Duration, err error) {
	home, to := m.Regions[i%len(m.Regions)], m.Regions[(i+1)%len(m.Regions)]
	for _, r := range m.Regions {
		if _, err := m.settled(ctx, r); err != nil {
			return nil, err
		}
	}
	shard := "any-" + home.Name
	if err := m.home(ctx, home, shard); err != nil {
		return nil, err
	}
	org, err := m.org(ctx, home.Admin)
	if err != nil {
		return nil, err
	}
	if err := m.sup.Hold(ctx, home.Name); err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, m.sup.Release(ctx, home.Name))
		if err == nil {
			_, err = m.settled(ctx, home)
		}
		if err == nil {
			err = m.home(ctx, home, shard) // as it was
		}
	}()
	ps, err := m.processes(ctx, home.Name, "")
	if err != nil {
		return nil, err
	}
	for _, p := range ps {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	for {
		err := m.call(ctx, http.MethodPost, to.Admin+"/admin/v1/shards/"+shard+"/takeover?region="+to.Name, nil, nil)
		if err == nil {
			break
		}
		if time.Since(began) > 20*time.Second {
			return nil, err
		}
		time.Sleep(poll)
	}
	for n := 0; time.Since(began) < 20*time.Second; n++ {
		if m.write(ctx, to.Admin, org, n, api.AcknowledgedMultiRegion) == nil {
			return []time.Duration{time.Since(began)}, nil
		}
		time.Sleep(poll)
	}
	return nil, errors.New("no write was acknowledged multi-region in 20 s")
}

// home waits until region is the home of shard, or makes it so.
func (m *meter) home(ctx context.Context, region clusterfile.Region, shard string) error {
	var last error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		var list api.ShardList
		if last = m.call(ctx, http.MethodGet, region.Admin+"/admin/v1/shards?region="+region.Name, nil, &list); last != nil {
			continue
		}
		for _, s := range list.Items {
			if s.Shard == shard && s.Role == "home" {
				return nil
			}
		}
		last = m.call(ctx, http.MethodPost, region.Admin+"/admin/v1/shards/"+shard+"/move?region="+region.Name, nil, nil)
	}
	return fmt.Errorf("%s does not become home of %s: %w", region.Name, shard, last)
}

// below puts the data nodes, and this process with its cluster's supervisor,
// below the control nodes, as quorum's design asks of those who share a machine.
func (m *meter) below(ctx context.Context) error {
	const nice = 10
	all, err := m.sup.Status(ctx)
	if err != nil {
		return err
	}
	err = syscall.Setpriority(syscall.PRIO_PGRP, 0, nice)
	for _, p := range all {
		if p.Role == "data" && p.PID > 1 {
			err = errors.Join(err, syscall.Setpriority(syscall.PRIO_PGRP, p.PID, nice)) // each node is a group of its own
		}
	}
	return err
}

// Full load: closed loops that take all processors.
const (
	loadWriters = 16 // of each region
	loadCallers = 8  // of each region's data nodes
)

// fullLoad writes through the API of every region and asks its data nodes as
// fast as they answer, and counts the elections meanwhile.
func (m *meter) fullLoad(ctx context.Context, out io.Writer, span time.Duration) (elections int, err error) {
	if err := m.below(ctx); err != nil {
		return 0, err
	}
	before, err := m.elections(ctx)
	if err != nil {
		return 0, err
	}
	var writes, asked, failed atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	end := time.Now().Add(span)
	for _, r := range m.Regions {
		own, _ := m.dataNodes(r.Name)
		for range loadWriters {
			org, err := m.org(ctx, r.Admin)
			if err != nil {
				return 0, err
			}
			g.Go(func() error {
				for i := 0; time.Now().Before(end) && gctx.Err() == nil; i++ {
					if m.put(gctx, r.Admin, org, i, api.AcknowledgedRegion) == nil {
						writes.Add(1)
					} else {
						failed.Add(1)
					}
				}
				return gctx.Err()
			})
		}
		for i := range loadCallers {
			g.Go(func() error {
				for time.Now().Before(end) && gctx.Err() == nil {
					if status, err := m.models(gctx, own[i%len(own)].API, m.APIKey); err == nil && status == http.StatusOK {
						asked.Add(1)
					} else {
						failed.Add(1)
					}
				}
				return gctx.Err()
			})
		}
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	after, err := m.elections(ctx)
	if err != nil {
		return 0, err
	}
	for node, n := range after {
		if n < before[node] {
			return 0, fmt.Errorf("%s was restarted meanwhile", node)
		}
		elections += n - before[node]
	}
	_, _ = fmt.Fprintf(out, "full load for %v: %.0f writes/s, %.0f requests/s, %d failed of both, %d elections\n", span,
		float64(writes.Load())/span.Seconds(), float64(asked.Load())/span.Seconds(), failed.Load(), elections) // stdout gone: nothing to tell
	return elections, nil
}

// elections says how often each node has stood for election.
func (m *meter) elections(ctx context.Context) (map[string]int, error) {
	counts := map[string]int{}
	for _, r := range m.Regions {
		for _, n := range r.Nodes {
			if n.Role != "control" {
				continue
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.Metrics, nil)
			if err != nil {
				return nil, err
			}
			resp, err := m.http.Do(req)
			if err != nil {
				return nil, err
			}
			count := -1
			for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
				if value, ok := strings.CutPrefix(lines.Text(), "ringmain_raft_elections_total "); ok {
					f, err := strconv.ParseFloat(value, 64)
					if err != nil {
						return nil, err
					}
					count = int(f)
				}
			}
			_ = resp.Body.Close() // read side
			if count < 0 {
				return nil, fmt.Errorf("%s does not say how often it stood for election", n.Name)
			}
			counts[n.Name] = count
		}
	}
	return counts, nil
}
