package nemesis

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/fault"
)

func (n *nemesis) killLeader(ctx context.Context) error {
	at, region := n.w.rec.Now(), n.region()
	before, err := n.leader(ctx, region)
	if err != nil {
		return err
	}
	ps, err := n.running(ctx, region, before)
	if err != nil {
		return err
	}
	proof, err := fault.KillEach(ps)
	if err != nil {
		return err
	}
	after, err := n.leader(ctx, region)
	if err != nil {
		return err
	}
	n.proven("kill leader", at, "%s; %s led %s, now %s does", proof, before, region, after)
	return nil
}

// handOver has a leader make another node lead.
func (n *nemesis) handOver(ctx context.Context) error {
	at, region := n.w.rec.Now(), n.region()
	before, err := n.leader(ctx, region)
	if err != nil {
		return err
	}
	after := before
	if err := insist(ctx, "another leader of "+region, recoverIn, func() (bool, string) {
		r := n.patient(ctx, http.MethodPost, n.w.of(region)[0].Admin+"/admin/v1/members/transfer?region="+region, nil)
		after, err = n.leader(ctx, region)
		return err == nil && after != before, fmt.Sprint(after, r.Status, r.Code(), err)
	}); err != nil {
		return err
	}
	n.proven("hand over", at, "%s led %s, now %s does", before, region, after)
	return nil
}

func (n *nemesis) stopNode(ctx context.Context) error {
	at, region := n.w.rec.Now(), n.region()
	nodes := n.w.of(region)
	node := nodes[n.random.IntN(len(nodes))].Name
	if n.random.IntN(2) == 0 { // the leader matters most
		var err error
		if node, err = n.leader(ctx, region); err != nil {
			return err
		}
	}
	ps, err := n.running(ctx, region, node)
	if err != nil {
		return err
	}
	proof, err := fault.Stop(ps)
	if err == nil {
		time.Sleep(time.Second + time.Duration(n.random.Int64N(int64(2*time.Second))))
	}
	more, err2 := fault.Continue(ps)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	n.proven("stop node", at, "%s, then: %s", proof, more)
	return nil
}

// zombie stops a whole home, has another region take its shard over, and lets
// the old home come back.
func (n *nemesis) zombie(ctx context.Context) error {
	at := n.w.rec.Now()
	shard, home, err := n.anyShard(ctx)
	if err != nil {
		return err
	}
	to := n.other(home)
	ps, err := n.running(ctx, home, "")
	if err != nil {
		return err
	}
	proof, err := fault.Stop(ps)
	var moved api.ShardMoved
	if err == nil {
		n.proven("stop region", at, "%s", proof)
		at = n.w.rec.Now()
		moved, err = n.rehome(ctx, shard, to, "takeover")
	}
	if err == nil {
		n.proven("takeover", at, "%s is home of %s since epoch %s, base %s, open after %d ms, while %s stands still", to, shard, moved.Epoch, moved.Base, moved.ConfirmedMillis, home)
		at = n.w.rec.Now()
		time.Sleep(time.Duration(n.random.Int64N(int64(2 * time.Second))))
	}
	probing, end := context.WithCancel(ctx)
	defer n.w.probe(probing, shard, home)()
	defer end()
	more, err2 := fault.Continue(ps)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	if err := insist(ctx, home+" learns that it is deposed", recoverIn, func() (bool, string) {
		s, err := n.shard(ctx, home, shard)
		return err == nil && s.Home == to, fmt.Sprint(s.Home, " ", s.Role, " ", err)
	}); err != nil {
		return err
	}
	n.proven("zombie returns", at, "%s; %s now names %s as home of %s", more, home, to, shard)
	return nil
}

// place tells the network who is of which region.
func (n *nemesis) place(ctx context.Context) error {
	for _, r := range n.c.Regions {
		ps, err := n.running(ctx, r.Name, "")
		if err != nil {
			return err
		}
		for _, p := range ps {
			if err := n.net.Place(r.Name, p.PID); err != nil {
				return err
			}
		}
	}
	return nil
}

// healed ends a partition and notes it, if it was one.
func (n *nemesis) healed(ctx context.Context, name string, at time.Duration) error {
	proof, dead, err := n.net.Heal(ctx)
	if err != nil {
		return err
	}
	if dead == 0 {
		n.proven(name, at, "%s", proof)
	}
	return nil
}

// oneWay drops what one region sends to another.
func (n *nemesis) oneWay(ctx context.Context) error {
	if err := n.place(ctx); err != nil {
		return err
	}
	at, from := n.w.rec.Now(), n.region()
	if err := n.net.Cut(ctx, [2]string{from, n.other(from)}); err != nil {
		return err
	}
	time.Sleep(2*time.Second + time.Duration(n.random.Int64N(int64(3*time.Second))))
	return n.healed(ctx, "one-way partition", at)
}

// isolate cuts a home off from all others, which goes on serving those clients
// that reach it, and has another region take its shard over in half of the cases.
func (n *nemesis) isolate(ctx context.Context) error {
	if err := n.place(ctx); err != nil {
		return err
	}
	shard, home, err := n.anyShard(ctx)
	if err != nil {
		return err
	}
	var pairs [][2]string
	for _, r := range n.c.Regions {
		if r.Name != home {
			pairs = append(pairs, [2]string{home, r.Name}, [2]string{r.Name, home})
		}
	}
	at := n.w.rec.Now()
	if err := n.net.Cut(ctx, pairs...); err != nil {
		return err
	}
	probing, end := context.WithCancel(ctx)
	defer n.w.probe(probing, shard, home)()
	defer end()
	if to := n.other(home); n.random.IntN(2) == 0 {
		began := n.w.rec.Now()
		var moved api.ShardMoved
		if moved, err = n.rehome(ctx, shard, to, "takeover"); err == nil {
			n.proven("takeover", began, "%s is home of %s since epoch %s, base %s, open after %d ms, while %s is cut off", to, shard, moved.Epoch, moved.Base, moved.ConfirmedMillis, home)
		}
	}
	if err == nil {
		time.Sleep(time.Second + time.Duration(n.random.Int64N(int64(2*time.Second))))
	}
	return errors.Join(err, n.healed(ctx, "isolated home", at))
}

func (n *nemesis) move(ctx context.Context) error {
	at := n.w.rec.Now()
	shard := shardOf(n.other(""))
	from, err := n.home(ctx, shard)
	if err != nil {
		return err
	}
	to := n.other(from)
	moved, err := n.rehome(ctx, shard, to, "move")
	if err != nil {
		return err
	}
	s, err := n.shard(ctx, to, shard)
	if err != nil {
		return err
	}
	n.proven("move", at, "%s went from %s to %s, whose role is %s in epoch %s; open after %d ms", shard, from, to, s.Role, s.Epoch, moved.ConfirmedMillis)
	return nil
}

// killRegion kills all control nodes of a region, now and then has another take
// its shard over meanwhile, and lets them come back.
func (n *nemesis) killRegion(ctx context.Context) error {
	at, region := n.w.rec.Now(), n.region()
	if err := n.c.Supervisor.Hold(ctx, region); err != nil {
		return err
	}
	ps, err := n.running(ctx, region, "")
	var proof string
	if err == nil {
		proof, err = fault.KillEach(ps)
	}
	if err == nil {
		n.proven("kill region", at, "%s", proof)
		at = n.w.rec.Now()
		time.Sleep(time.Second)
		if shard := shardOf(region); n.random.IntN(2) == 0 {
			var moved api.ShardMoved
			to := n.other(region)
			if s, e := n.shard(ctx, to, shard); e == nil && s.Home == region {
				if moved, err = n.rehome(ctx, shard, to, "takeover"); err == nil {
					n.proven("takeover", at, "%s is home of %s since epoch %s, base %s, open after %d ms, while %s is dead", to, shard, moved.Epoch, moved.Base, moved.ConfirmedMillis, region)
					at = n.w.rec.Now()
				}
			}
		}
	}
	if err := errors.Join(err, n.c.Supervisor.Release(ctx, region)); err != nil {
		return err
	}
	leader, err := n.leader(ctx, region)
	if err != nil {
		return err
	}
	n.proven("region returns", at, "%s leads %s", leader, region)
	return nil
}
