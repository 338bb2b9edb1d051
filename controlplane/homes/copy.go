package homes

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/strict"
)

// stageBytes is about how much of a snapshot goes into one command.
const stageBytes = 1 << 20

// copyTail brings exactly the tail that region reported into take: its entries
// after the last that both copies share, or a snapshot staged here.
func (c *candidacy) copyTail(ctx context.Context, region string, theirs ownership.Copy, take *registry.Take) error {
	c.t.mu.Lock()
	own := c.s.copy
	c.t.mu.Unlock()
	after := controlplane.Point{Seq: own.Common(theirs.Last, theirs.Spans)}
	after.Epoch, _ = theirs.EpochAt(after.Seq)
	if after.Seq == 0 {
		after = controlplane.Point{}
	}
	q := &tailRequest{Cluster: c.t.h.cfg.Cluster, Shard: take.Shard, Epoch: take.Epoch, Base: take.Base, After: after}
	var tail tailAnswer
	err := c.t.h.client.ask(ctx, region, pathTail, q, &tail)
	if err == nil {
		take.Entries = tail.Entries
		return (&registry.Command{Type: registry.CmdTake, Take: take}).Readable()
	}
	if !errors.Is(err, errSnapshot) {
		return err
	}
	c.t.h.log.Info("homes: a tail is too long, or too old, to be copied by entries: taking a snapshot", "shard", take.Shard, "from", region)
	take.Snapshot, err = c.stageSnapshot(ctx, region, q, theirs)
	return err
}

// stageSnapshot stages the copy that region reported as a whole.
func (c *candidacy) stageSnapshot(ctx context.Context, region string, q *tailRequest, theirs ownership.Copy) (adopt *registry.Adopt, err error) {
	body, err := strict.Marshal(q)
	if err != nil {
		return nil, err
	}
	err = c.t.h.client.each(ctx, region, func(addr string) (string, bool, error) {
		resp, next, again, err := c.t.h.client.post(ctx, region, addr, pathSnapshot, body)
		if err != nil {
			return next, again, err
		}
		defer func() { _ = resp.Body.Close() }()
		adopt, err = c.stageFrom(ctx, resp.Body, q, theirs)
		return "", true, err
	})
	return adopt, err
}

func (c *candidacy) stageFrom(ctx context.Context, body io.Reader, q *tailRequest, theirs ownership.Copy) (*registry.Adopt, error) {
	adopt := &registry.Adopt{Shard: q.Shard, Snapshot: rand.Text(), Point: q.Base, Spans: theirs.Spans}
	next := uint64(0)
	stage, size := &registry.Stage{}, 0
	flush := func() error {
		stage.Shard, stage.Snapshot, stage.Chunk = q.Shard, adopt.Snapshot, next
		cmd := &registry.Command{Type: registry.CmdStage, Sender: q.Epoch, Stage: stage}
		if err := cmd.Readable(); err != nil {
			return err
		}
		next++
		stage, size = &registry.Stage{}, 0
		return c.t.propose(ctx, cmd)
	}
	for r := feed.NewReader(body); ; {
		f, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("shard %s: its snapshot ended early: %w", q.Shard, err)
		}
		if f.Shard != q.Shard {
			return nil, fmt.Errorf("shard %s: its snapshot holds a frame of %.80s", q.Shard, f.Shard)
		}
		switch f.Type {
		case feed.FrameReset:
			adopt.Members, adopt.Home = f.Members, f.Home
		case feed.FrameRecord:
			stage.Records = append(stage.Records, bytes.Clone(f.Record))
			size += len(f.Record)
		case feed.FrameRevocation:
			stage.Revocations = append(stage.Revocations, *f.Revocation)
			size += len(f.Revocation.ID) + 32
		case feed.FrameEnd:
			if f.Point != q.Base {
				return nil, fmt.Errorf("shard %s: the snapshot ends at %s.%d, not at what was reported", q.Shard, f.Point.Epoch, f.Point.Seq)
			}
			adopt.Digest = f.Digest
			return adopt, flush()
		default:
			return nil, fmt.Errorf("shard %s: frame %d in its snapshot", q.Shard, f.Type)
		}
		if size >= stageBytes {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
}

// parted refuses regions that could never follow the home that adds them: what
// is confirmed is not cut. As members they would keep a majority from it.
func (c *candidacy) parted(ctx context.Context) error {
	life := make(map[string]uint64)
	c.t.mu.Lock()
	role, own := c.s.role, c.s.copy
	for _, region := range c.add {
		life[region] = c.s.heard[region].word.Since
	}
	c.t.mu.Unlock()
	if role != ownership.Home {
		return nil // the base may be another's copy
	}
	for _, region := range c.add {
		theirs, err := c.t.askCopy(ctx, ownership.Member{Region: region, Since: life[region]}, c.s.shard)
		if err != nil {
			return fmt.Errorf("shard %s: nothing was done: region %s does not say how its copy stands: %w", c.s.shard, region, err)
		}
		if own.Common(theirs.Last, theirs.Spans) < min(own.Last.Seq, theirs.Confirmed) {
			return fmt.Errorf("shard %s, region %s: %w", c.s.shard, region, ErrParted)
		}
	}
	return nil
}

// askCopy has the region say how its copy stands, in that life of it: peers that
// a recovery gave up may answer too. It is the answer to a candidate to whom the
// copy is not sealed.
func (t *term) askCopy(ctx context.Context, of ownership.Member, shard controlplane.Shard) (c ownership.Copy, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.h.cfg.Call)
	defer cancel()
	q, err := strict.Marshal(&tailRequest{Cluster: t.h.cfg.Cluster, Shard: shard, Epoch: controlplane.Epoch{Counter: 1, Region: t.h.cfg.Region}})
	if err != nil {
		return c, err
	}
	err = t.h.client.each(ctx, of.Region, func(addr string) (next string, again bool, err error) {
		resp, next, again, err := t.h.client.post(ctx, of.Region, addr, pathTail, q)
		var refused *refusedError
		switch {
		case err == nil:
			return "", false, errors.Join(errMalformed, resp.Body.Close())
		case !errors.As(err, &refused):
			return next, again, err
		case refused.report.Since < of.Since:
			return "", true, fmt.Errorf("%s answers in a former life of region %s", addr, of.Region)
		}
		c = refused.report.copy()
		return "", false, nil
	})
	return c, err
}
