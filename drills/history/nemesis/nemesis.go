package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/cluster"
	"ringmain/drills/fault"
	"ringmain/drills/history"
	"ringmain/drills/history/client"
)

// nemesis does one thing after the other to the cluster, and notes only what it
// has proven. Between two of them it waits until all regions write again, so
// that no shard ever lacks a majority of its regions.
type nemesis struct {
	net    *fault.Network // nil: nothing is cut off
	c      *cluster.Cluster
	w      *workload
	ask    *client.Client // whose questions are no part of the history
	random *rand.Rand
	disks  map[string]*fault.Disk // of one node of each region, by region; none if they cannot stall here

	acting   sync.Mutex  // held while something is done to the cluster by run
	changing string      // region whose membership changes: run leaves its nodes alone. Guarded by acting
	newcomer client.Node // its node beyond those the cluster began with, if any. Guarded by acting
}

// recoverIn is how long the cluster may take until every shard is written
// again, after the last fault has ended.
const recoverIn = 40 * time.Second

// calm is how long nothing is done between two acts.
const calm = 500 * time.Millisecond

// run goes on for so long, until everything was done once, and until as much was
// answered as is to be: a slow machine is given four times as long.
func (n *nemesis) run(ctx context.Context, lasts time.Duration) error {
	begun := time.Now()
	enough := func() bool {
		took := time.Since(begun)
		return took >= lasts && n.w.rec.Answered() >= n.w.load.Answered || took >= 4*lasts
	}
	type act struct {
		name string
		do   func(context.Context) error
	}
	acts := []act{
		{"kill the leader", n.killLeader},
		{"stop a node", n.stopNode},
		{"zombie home", n.zombie},
		{"hand over", n.handOver},
		{"move", n.move},
		{"kill a region", n.killRegion},
		{"rival takeovers", n.rivals},
	}
	if n.net != nil {
		acts = append(acts, act{"one-way partition", n.oneWay}, act{"isolated home", n.isolate})
	}
	if len(n.disks) > 0 {
		acts = append(acts, act{"stalled disk", n.stall})
	}
	for round := 0; ; round++ {
		pause(ctx, calm)
		// Each act once in every round, in an order that the seed decides.
		for _, i := range n.random.Perm(len(acts)) {
			if ctx.Err() != nil || round > 0 && enough() {
				return nil
			}
			if err := n.act(context.WithoutCancel(ctx), acts[i].do); err != nil {
				return fmt.Errorf("%s: %w", acts[i].name, err)
			}
			pause(ctx, calm)
		}
	}
}

// act does one thing, and waits until the cluster has got over it.
func (n *nemesis) act(ctx context.Context, do func(context.Context) error) error {
	n.acting.Lock()
	defer n.acting.Unlock()
	if err := do(ctx); err != nil {
		return err
	}
	if err := n.settled(ctx, false); err != nil {
		return fmt.Errorf("afterwards: %w", err)
	}
	return nil
}

// proven notes a fault.
func (n *nemesis) proven(name string, at time.Duration, format string, args ...any) {
	n.w.rec.Fault(history.Fault{Fault: name, At: at, Took: n.w.rec.Now() - at, Proof: fmt.Sprintf(format, args...)})
}

// region is one whose nodes may be harmed.
func (n *nemesis) region() string { return n.other(n.changing) }

// other is a region beside the one given.
func (n *nemesis) other(than string) string {
	for {
		if r := n.c.Regions[n.random.IntN(len(n.c.Regions))].Name; r != than {
			return r
		}
	}
}

// anyShard is a shard whose home may be harmed; one is moved there if need be.
func (n *nemesis) anyShard(ctx context.Context) (shard, home string, err error) {
	for _, i := range n.random.Perm(len(n.c.Regions)) {
		shard = shardOf(n.c.Regions[i].Name)
		if home, err = n.home(ctx, shard); err != nil || home != n.changing {
			return shard, home, err
		}
	}
	home = n.region()
	_, err = n.rehome(ctx, shard, home, "move")
	return shard, home, err
}

// running lists the control processes of region, once they run; node "" is all.
// One whose disk or machine held it up for long has ended by itself, and is
// started anew.
func (n *nemesis) running(ctx context.Context, region, node string) (found []fault.Process, err error) {
	err = insist(ctx, "nodes of "+region, recoverIn, func() (bool, string) {
		var why error
		found, why = n.processes(ctx, region, node)
		return why == nil, fmt.Sprint(why)
	})
	return found, err
}

func (n *nemesis) processes(ctx context.Context, region, node string) ([]fault.Process, error) {
	all, err := n.c.Supervisor.Status(ctx)
	if err != nil {
		return nil, err
	}
	var found []fault.Process
	for _, p := range all {
		if p.Region == region && p.Role == "control" && (node == "" || p.Name == node) {
			if p.State != fault.StateRunning || p.PID <= 1 {
				if region == n.changing {
					continue
				}
				return nil, fmt.Errorf("%s is %s", p.Name, p.State)
			}
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the supervisor knows no %s/%s", region, node)
	}
	return found, nil
}

// nodesOf lists the nodes of a region as they are now.
func (n *nemesis) nodesOf(region string) []client.Node {
	nodes := n.w.of(region)
	if n.newcomer.Region == region {
		nodes = append(nodes, n.newcomer)
	}
	return nodes
}

// leader is the name of the node that says it leads a region.
func (n *nemesis) leader(ctx context.Context, region string) (string, error) {
	var leader string
	err := insist(ctx, "leader of "+region, recoverIn, func() (bool, string) {
		for _, node := range n.nodesOf(region) {
			var st api.Status
			r := n.ask.Ask(ctx, http.MethodGet, node.Admin+"/admin/v1/status", nil)
			if r.Outcome() == history.Done && r.Decode(&st) == nil && st.Leads {
				leader = node.Name
				return true, ""
			}
		}
		return false, "none leads"
	})
	return leader, err
}

// shardOf is the shard that a region is the first home of.
func shardOf(region string) string { return "any-" + region }

// shard is one shard as the leader of region has it.
func (n *nemesis) shard(ctx context.Context, region, name string) (api.Shard, error) {
	var list api.ShardList
	why := ""
	for _, node := range n.w.of(region) {
		r := n.ask.Ask(ctx, http.MethodGet, node.Admin+"/admin/v1/shards?region="+region, nil)
		if r.Outcome() != history.Done || r.Decode(&list) != nil {
			why = fmt.Sprint(r.Status, r.Code(), r.Err)
			continue
		}
		for _, s := range list.Items {
			if s.Shard == name {
				return s, nil
			}
		}
		why = region + " does not hold " + name
	}
	return api.Shard{}, errors.New(why)
}

// rehome makes region the home of the shard, how = takeover or move.
func (n *nemesis) rehome(ctx context.Context, shard, region, how string) (api.ShardMoved, error) {
	var moved api.ShardMoved
	i := 0
	err := insist(ctx, how+" of "+shard+" to "+region, recoverIn, func() (bool, string) {
		nodes := n.w.of(region)
		node := nodes[i%len(nodes)]
		i++
		r := n.patient(ctx, http.MethodPost, node.Admin+"/admin/v1/shards/"+shard+"/"+how+"?region="+region, nil)
		if r.Outcome() == history.Done && r.Decode(&moved) == nil {
			return true, ""
		}
		if s, err := n.shard(ctx, region, shard); err == nil && s.Home == region && s.Role == "home" {
			moved = api.ShardMoved{Shard: shard, Home: region, Epoch: s.Epoch} // an earlier one got through
			return true, ""
		}
		return false, fmt.Sprintf("%d %s %v %s", r.Status, r.Code(), r.Err, r.Body)
	})
	return moved, err
}

// patient asks what may take as long as a takeover.
func (n *nemesis) patient(ctx context.Context, method, url string, body any) client.Reply {
	ctx, cancel := context.WithTimeout(ctx, 12*time.Second)
	defer cancel()
	return n.ask.AskFor(ctx, method, url, body)
}

// home is the region that says it writes a shard.
func (n *nemesis) home(ctx context.Context, shard string) (string, error) {
	home := ""
	err := insist(ctx, "home of "+shard, recoverIn, func() (bool, string) {
		for _, r := range n.c.Regions {
			if s, err := n.shard(ctx, r.Name, shard); err == nil && s.Role == "home" {
				home = r.Name
				return true, ""
			}
		}
		return false, "nobody is"
	})
	return home, err
}

// settled waits until every node runs, every region has a leader, and every
// shard a home that the others follow; equal: as far as it has got, which only happens once nobody
// writes any more.
func (n *nemesis) settled(ctx context.Context, equal bool) error {
	for _, r := range n.c.Regions {
		if _, err := n.running(ctx, r.Name, ""); err != nil {
			return err
		}
		if _, err := n.leader(ctx, r.Name); err != nil {
			return err
		}
	}
	for _, r := range n.c.Regions {
		shard := shardOf(r.Name)
		if err := insist(ctx, "members of "+shard+" follow its home", recoverIn, func() (bool, string) {
			return n.together(ctx, shard, equal)
		}); err != nil {
			return err
		}
	}
	return nil
}

// together says whether all regions are in the same epoch of a shard, one of
// them as its home.
func (n *nemesis) together(ctx context.Context, shard string, equal bool) (bool, string) {
	homes, epochs, positions, why := 0, map[string]bool{}, map[string]bool{}, ""
	for _, r := range n.c.Regions {
		s, err := n.shard(ctx, r.Name, shard)
		if err != nil {
			return false, err.Error()
		}
		if s.Role == "home" {
			homes++
		} else if s.Role != "follower" {
			return false, r.Name + " is " + s.Role
		}
		epochs[s.Epoch], positions[s.Position] = true, true
		why += fmt.Sprintf("%s: %s in %s at %s; ", r.Name, s.Role, s.Epoch, s.Position)
	}
	return homes == 1 && len(epochs) == 1 && (!equal || len(positions) == 1), why
}

// cuts collects every region's quarantine.
func (n *nemesis) cuts(ctx context.Context) ([]history.Cut, error) {
	var all []history.Cut
	for _, r := range n.c.Regions {
		for _, of := range n.c.Regions {
			shard := shardOf(of.Name)
			var list api.QuarantineList
			if err := insist(ctx, "quarantine of "+r.Name, recoverIn, func() (bool, string) {
				a := n.patient(ctx, http.MethodGet, n.w.of(r.Name)[0].Admin+"/admin/v1/shards/"+shard+"/quarantine?region="+r.Name, nil)
				return a.Outcome() == history.Done && a.Decode(&list) == nil, fmt.Sprint(a.Status, a.Code(), a.Err)
			}); err != nil {
				return nil, err
			}
			for _, e := range list.Items {
				for _, change := range e.Changes {
					all = append(all, history.Cut{Region: r.Name, Position: e.Shard + "=" + e.ID, Level: e.Level, Op: change.Op, Record: change.ID, Name: change.Name})
				}
			}
		}
	}
	return all, nil
}
