package nemesis

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/fault"
	"ringmain/drills/history/client"
)

// diskBytes is the size of a node's disk that can stall, most of it never used.
const diskBytes = 1 << 30

// hung is how long a thread must have waited for its disk to count as held up.
const hung = 300 * time.Millisecond

// stallable gives one node of each region a disk of its own that can stall.
func (n *nemesis) stallable(ctx context.Context) error {
	for _, r := range n.c.Regions {
		victim := n.w.of(r.Name)[1]
		if err := n.without(ctx, victim, func(dir string) error {
			disk, err := fault.OpenDisk(ctx, dir, filepath.Join(n.c.Dir, victim.Name+".disk"), diskBytes)
			if err == nil {
				n.disks[r.Name] = disk
				n.c.After(disk.Close)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// without does something to a node's data directory while it does not run.
func (n *nemesis) without(ctx context.Context, victim client.Node, do func(dir string) error) (err error) {
	if err := n.c.Supervisor.Hold(ctx, victim.Region); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.c.Supervisor.Release(ctx, victim.Region)) }()
	ps, err := n.running(ctx, victim.Region, victim.Name)
	if err != nil {
		return err
	}
	if _, err := fault.KillEach(ps); err != nil {
		return err
	}
	return do(dataDir(n.c, victim))
}

// stall holds up what a node writes: mostly a leader, until another leads, or
// shorter than a node bears.
func (n *nemesis) stall(ctx context.Context) error {
	region := n.region()
	victim, long := n.w.of(region)[1], n.random.IntN(2) == 0
	if n.random.IntN(4) != 0 {
		if err := insist(ctx, victim.Name+" leads", recoverIn, func() (bool, string) {
			leader, err := n.leader(ctx, region)
			if err != nil || leader == victim.Name {
				return err == nil, fmt.Sprint(err)
			}
			r := n.patient(ctx, http.MethodPost, victim.Admin+"/admin/v1/members/transfer?region="+region, api.TransferInput{To: victim.Name})
			return false, fmt.Sprint(leader, " leads, and answers ", r.Status, " ", r.Code())
		}); err != nil {
			return err
		}
	}
	before, err := n.leader(ctx, region)
	if err != nil {
		return err
	}
	ps, err := n.running(ctx, region, victim.Name)
	if err != nil {
		return err
	}
	at := n.w.rec.Now()
	thaw, err := n.disks[region].Stall()
	if err != nil {
		return err
	}
	proof := "nothing of it waited"
	thread := fault.Hangs(ctx, ps[0].PID, hung, 5*time.Second)
	if thread != "" {
		proof = fmt.Sprintf("%s, pid %d: thread %s did not come back from its disk", victim.Name, ps[0].PID, thread)
	}
	after := before
	switch {
	case long && before == victim.Name:
		err = insist(ctx, region+" is led by another than "+victim.Name+", whose disk stalls", recoverIn, func() (bool, string) {
			after, err = n.leader(ctx, region)
			return err == nil && after != victim.Name, after
		})
		proof += fmt.Sprintf("; it led %s, and %s does after %.1f s", region, after, (n.w.rec.Now() - at).Seconds())
	case long:
		time.Sleep(6 * time.Second)
	default:
		time.Sleep(time.Second + time.Duration(n.random.Int64N(int64(2*time.Second))))
	}
	frozen := n.w.rec.Now() - at
	if err := errors.Join(err, thaw()); err != nil {
		return err
	}
	if thread != "" {
		n.proven("stalled disk", at, "%s; thawed after %.1f s", proof, frozen.Seconds())
	}
	return n.given(ctx, victim, ps[0].PID)
}

// given waits until a node runs whose disk stalled. One that bore no more of it
// ends as soon as its disk lets it, and is started again.
func (n *nemesis) given(ctx context.Context, victim client.Node, before int) error {
	var pid int
	look := func() (bool, string) {
		ps, err := n.processes(ctx, victim.Region, victim.Name)
		if pid = 0; err == nil {
			pid = ps[0].PID
		}
		return err == nil, fmt.Sprint(err)
	}
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if look(); pid != before {
			break
		}
	}
	return insist(ctx, victim.Name+" runs", recoverIn, look)
}
