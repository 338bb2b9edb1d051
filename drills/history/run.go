package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/drills/cluster"
	"ringmain/drills/fault"
)

// Run works on c for as long as it is told to, and until the nemesis, whose order
// the seed decides, has done everything once. It returns what happened. The error says what the cluster failed to
// do at all; whether what it did was right is for Check to say. There is a
// history whenever the clients have worked.
//
// A nil net cuts nothing off; disks tells whether nodes' disks can be made to
// stall here, by fault.OpenDisk.
func Run(ctx context.Context, c *cluster.Cluster, net *Network, disks bool, load Load, lasts time.Duration) (*History, error) {
	w := &workload{c: c, http: c.HTTP(), load: load, nodes: controlNodes(c), rec: NewRecorder(time.Now())}
	defer w.http.CloseIdleConnections()
	n := &nemesis{net: net, c: c, w: w, disks: map[string]*fault.Disk{}, random: rand.New(rand.NewPCG(load.Seed, 0)), //nolint:gosec // G404: a schedule to be replayed, no secret
		ask: &client{http: w.http, token: c.Token, rec: w.rec}}
	if net != nil {
		var regions []string
		for _, r := range c.Regions {
			regions = append(regions, r.Name)
		}
		if err := net.name(ctx, regions); err != nil {
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
	w.rec.began = time.Now()
	until := time.Now().Add(lasts)
	working, done := context.WithCancel(ctx)
	defer done()
	g := new(errgroup.Group)
	g.Go(func() error { return w.run(working) })
	g.Go(func() error {
		defer done()
		return n.run(working, until)
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
