// Package nemesis makes a history of real processes: clients work on the
// management API while what they talk to is killed, stopped, stalled, replaced,
// cut off and moved. It sees a cluster from outside: HTTP, /proc and the
// supervisor's socket. Whether what it wrote down is right is for history to say.
//
//	go test ./drills/history/nemesis                                # a minute, seed 1
//	go test ./drills/history/nemesis -run TestCluster -for 10m -seed 7 -timeout 20m
//
// As root, with nft, the test runs itself again in a network namespace of its
// own and cuts regions off from each other as well, both ways and one way, and
// freezes the file system under a node's log; without, it says that it does not.
//
// History, faults and verdict stay in the directory of -keep, as JSON lines,
// beside a picture of every register whose history is none (porcupine's HTML).
// A seed replays the schedule of faults, not the interleaving. Every run plants
// lies in its own history and fails if the checker does not find them;
// -run TestFiled -history FILE judges a file again.
package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/drills/cluster"
	"ringmain/drills/fault"
	"ringmain/drills/history"
	"ringmain/drills/history/client"
)

// Run works on c for as long as it is told to, until the nemesis, whose order the
// seed decides, has done everything once, and until so much was answered as load
// says, if that takes no more than four times as long. It returns what happened. The error says what the cluster failed to
// do at all; whether what it did was right is for Check to say. There is a
// history whenever the clients have worked.
//
// A nil net cuts nothing off; disks tells whether nodes' disks can be made to
// stall here, by fault.OpenDisk.
func Run(ctx context.Context, c *cluster.Cluster, net *fault.Network, disks bool, load Load, lasts time.Duration) (*history.History, error) {
	w := &workload{c: c, http: c.HTTP(), load: load, nodes: client.ControlNodes(c), rec: history.NewRecorder(time.Now())}
	defer w.http.CloseIdleConnections()
	n := &nemesis{net: net, c: c, w: w, disks: map[string]*fault.Disk{}, random: rand.New(rand.NewPCG(load.Seed, 0)), //nolint:gosec // G404: a schedule to be replayed, no secret
		ask: &client.Client{HTTP: w.http, Token: c.Token, Rec: w.rec}}
	if net != nil {
		var regions []string
		for _, r := range c.Regions {
			regions = append(regions, r.Name)
		}
		if err := net.Name(ctx, regions); err != nil {
			return nil, err
		}
	}
	if disks {
		if err := n.stallable(ctx); err != nil {
			return nil, err
		}
	}
	if err := n.settled(ctx, false); err != nil {
		return nil, fmt.Errorf("before the first fault: %w", err)
	}
	if err := w.prepare(ctx); err != nil {
		return nil, err
	}
	w.rec.Begin(time.Now())
	until := time.Now().Add(lasts)
	working, done := context.WithCancel(ctx)
	defer done()
	g := new(errgroup.Group)
	g.Go(func() error { return w.run(working) })
	g.Go(func() error {
		defer done()
		return n.run(working, lasts)
	})
	g.Go(func() error {
		err := n.members(working, w.random(-1000), until)
		if err != nil {
			done()
		}
		return err
	})
	err := g.Wait()
	ended := w.rec.Now()
	if err == nil {
		err = n.settled(ctx, true)
	}
	found, lastErr := w.last(ctx)
	cuts, cutErr := n.cuts(ctx)
	h := w.rec.Ended(cuts, found)
	h.Ended = ended
	return h, errors.Join(err, lastErr, cutErr)
}
