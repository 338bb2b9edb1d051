package nemesis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/fault"
	"ringmain/drills/history"
	"ringmain/drills/history/client"
)

// attempt is one of two rival takeovers.
type attempt struct {
	region     string
	began, end time.Duration
	reply      client.Reply
	moved      api.ShardMoved
}

func (a *attempt) String() string {
	if a.reply.Outcome() == history.Done {
		return fmt.Sprintf("%s won epoch %s", a.region, a.moved.Epoch)
	}
	return fmt.Sprintf("%s was told %d %s", a.region, a.reply.Status, a.reply.Code())
}

// rivals has two regions take over the same shard at the same moment: from a
// home that stands still, or from under one that answers. Whatever the two were
// told, every region follows the same one afterwards.
func (n *nemesis) rivals(ctx context.Context) error {
	shard, home, err := n.anyShard(ctx)
	if err != nil {
		return err
	}
	var two []*attempt
	for _, r := range n.c.Regions {
		if r.Name != home {
			two = append(two, &attempt{region: r.Name})
		}
	}
	var frozen string
	resume := func() error { return nil }
	if n.random.IntN(2) == 0 {
		at := n.w.rec.Now()
		ps, err := n.running(ctx, home, "")
		if err != nil {
			return err
		}
		resume = sync.OnceValue(func() error { _, err := fault.Continue(ps); return err })
		defer func() { _ = resume() }()
		if frozen, err = fault.Stop(ps); err != nil {
			return err
		}
		n.proven("stop region", at, "%s", frozen)
	}
	at := n.w.rec.Now()
	var wg sync.WaitGroup
	for _, a := range two {
		wg.Go(func() {
			a.began = n.w.rec.Now()
			a.reply = n.patient(ctx, http.MethodPost, n.w.of(a.region)[0].Admin+"/admin/v1/shards/"+shard+"/takeover?region="+a.region, api.TakeoverInput{Live: true})
			a.end = n.w.rec.Now()
			if a.reply.Outcome() == history.Done {
				a.reply.Err = json.Unmarshal(a.reply.Body, &a.moved)
			}
		})
	}
	wg.Wait()
	x, y := two[0], two[1]
	if x.moved.Epoch != "" && x.moved.Epoch == y.moved.Epoch {
		return fmt.Errorf("%s and %s both won epoch %s of %s", x.region, y.region, x.moved.Epoch, shard)
	}
	if x.moved.Epoch == "" && y.moved.Epoch == "" { // the operator asks again
		if _, err := n.rehome(ctx, shard, x.region, "takeover"); err != nil {
			return fmt.Errorf("after %s and %s: %w", x, y, err)
		}
	}
	if err := errors.Join(resume(), n.settled(ctx, false)); err != nil {
		return fmt.Errorf("after %s and %s: %w", x, y, err)
	}
	winner, err := n.home(ctx, shard)
	if err != nil {
		return err
	}
	if winner == home {
		return fmt.Errorf("%s is home of %s again, though %s and %s", home, shard, x, y)
	}
	if together := min(x.end, y.end) - max(x.began, y.began); together > 0 {
		n.proven("rival takeovers", at, "of %s from %s, both under way for %d ms: %s, %s; all follow %s now", shard, home, together.Milliseconds(), x, y, winner)
	}
	return nil
}
