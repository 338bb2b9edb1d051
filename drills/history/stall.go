package history

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/fault"
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
			disk, err := fault.OpenDisk(ctx, dir, filepath.Join(n.c.Dir, victim.name+".disk"), diskBytes)
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
func (n *nemesis) without(ctx context.Context, victim node, do func(dir string) error) (err error) {
	if err := n.c.Supervisor.Hold(ctx, victim.region); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.c.Supervisor.Release(ctx, victim.region)) }()
	ps, err := n.running(ctx, victim.region, victim.name)
	if err != nil {
		return err
	}
	if _, err := kill(ps); err != nil {
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
		if err := insist(ctx, victim.name+" leads", recoverIn, func() (bool, string) {
			leader, err := n.leader(ctx, region)
			if err != nil || leader == victim.name {
				return err == nil, fmt.Sprint(err)
			}
			r := n.patient(ctx, http.MethodPost, victim.admin+"/admin/v1/members/transfer?region="+region, api.TransferInput{To: victim.name})
			return false, fmt.Sprint(leader, " leads, and answers ", r.status, " ", r.code())
		}); err != nil {
			return err
		}
	}
	before, err := n.leader(ctx, region)
	if err != nil {
		return err
	}
	ps, err := n.running(ctx, region, victim.name)
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
		proof = fmt.Sprintf("%s, pid %d: thread %s did not come back from its disk", victim.name, ps[0].PID, thread)
	}
	after := before
	switch {
	case long && before == victim.name:
		err = insist(ctx, region+" is led by another than "+victim.name+", whose disk stalls", recoverIn, func() (bool, string) {
			after, err = n.leader(ctx, region)
			return err == nil && after != victim.name, after
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
func (n *nemesis) given(ctx context.Context, victim node, before int) error {
	var pid int
	look := func() (bool, string) {
		ps, err := n.running(ctx, victim.region, victim.name)
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
	return insist(ctx, victim.name+" runs", recoverIn, look)
}
