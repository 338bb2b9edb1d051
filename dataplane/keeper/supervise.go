package keeper

import (
	"context"
	"errors"
	"sync"
	"time"

	"ringmain/controlplane/feed"
	"ringmain/dataplane/link"
)

// supervise keeps one worker running until Close. The first may be given.
func (k *Keeper) supervise(ctx context.Context, w *worker) {
	defer k.children.Wait()
	defer func() { _ = k.asked.Wait() }() // none of them fails
	wait := time.Duration(0)
	for {
		if w == nil {
			w = k.replacement(ctx, wait)
			if w == nil {
				return
			}
		}
		began := time.Now()
		k.attend(ctx, w)
		w = nil
		if time.Since(began) > 2*time.Second {
			wait = 0 // at once, unless it keeps dying
		} else {
			wait = longer(wait)
		}
		if k.isClosing() || ctx.Err() != nil {
			return
		}
		k.stats.restarts.Add(1)
	}
}

func (k *Keeper) isClosing() bool {
	select {
	case <-k.closing:
		return true
	default:
		return false
	}
}

func longer(wait time.Duration) time.Duration {
	return min(max(2*wait, 50*time.Millisecond), 5*time.Second)
}

// replacement starts a worker, or adopts the one whose connection merely
// broke. It tries until that works; nil when the keeper ends.
func (k *Keeper) replacement(ctx context.Context, wait time.Duration) *worker {
	for ; ; wait = longer(wait) {
		select {
		case <-time.After(wait):
		case <-k.closing:
			return nil
		case <-ctx.Done():
			return nil
		}
		w, err := k.adopt(ctx)
		if err == nil && w == nil {
			w, err = k.start(ctx)
		}
		if err == nil {
			return w
		}
		k.log.Error("no worker runs; it is tried again", "wait", longer(wait), "error", err)
		if k.isClosing() || ctx.Err() != nil {
			return nil
		}
	}
}

// attend serves one worker until it is gone.
func (k *Keeper) attend(ctx context.Context, w *worker) {
	k.procMu.Lock()
	k.worker = w
	k.procMu.Unlock()
	if err := k.spool.Attach(w.ring, w.adopted); err != nil {
		k.log.Error("the spool cannot be searched for the adopted worker's records: readers will leave out those that are written twice", "error", err)
	}
	k.stats.confined(w.hello.Confinement)
	ctx, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer cancel()
		k.receive(w)
	})
	err := k.setUp(ctx, w)
	if err == nil {
		peers := k.cfg.Peers()
		err = w.conn.Send(ctx, &link.Message{Type: link.TypePeers, Peers: &peers})
	}
	if err == nil && k.isClosing() {
		err = w.conn.Send(ctx, k.drain())
	}
	if err == nil {
		err = k.fill(ctx, w)
	}
	if err != nil && ctx.Err() == nil {
		k.log.Error("the worker could not be given its state; it is replaced", "error", err)
		w.kill()
	}
	<-ctx.Done()
	given := k.detach(w)
	k.judge(w, given) // before others hear that the worker is gone
	k.procMu.Lock()
	k.worker = nil
	k.procMu.Unlock()
	k.stats.heardWorker.Store(0)
	k.cfg.Health(link.Health{}, false)
	_ = w.conn.Close() // the worker is gone, or this keeper is
	reading.Wait()
	if err := w.forget(); err != nil {
		k.log.Warn("the head of a ring stays mapped", "error", err)
	}
	if k.isClosing() && w.exited != nil {
		// It closed its socket; now it may end in its own time.
		k.awaitExit(w)
	}
}

// setUp tells the worker what it has to know. What is renewed meanwhile is sent
// too, since pushPeers may have sent it already, before what is older.
func (k *Keeper) setUp(ctx context.Context, w *worker) error {
	for {
		setup, sent := k.setupNow()
		if err := w.conn.Send(ctx, &link.Message{Type: link.TypeSetup, Setup: setup}); err != nil {
			return err
		}
		if _, now := k.setupNow(); now == sent {
			return nil
		}
	}
}

// awaitExit gives a child that closed its socket a moment to end by itself.
func (k *Keeper) awaitExit(w *worker) {
	select {
	case <-w.exited:
	case <-time.After(3 * time.Second):
		k.log.Warn("the worker closed its socket and did not end; it is killed", "pid", w.pid)
		w.kill()
	}
}

// receive reads what the worker says until the connection ends.
func (k *Keeper) receive(w *worker) {
	for {
		m, err := w.conn.Receive()
		if err != nil {
			if errors.Is(err, link.ErrMalformed) {
				k.log.Error("the worker sent something unreadable; it is replaced", "error", err)
				w.kill()
			}
			return
		}
		switch m.Type {
		case link.TypeLog:
			_, _ = k.cfg.WorkerLog.Write(m.Bytes) // a log that cannot be written has nobody to tell
		case link.TypeWake:
			k.spool.Wake()
		case link.TypeVerdicts:
			for _, v := range m.Verdicts {
				select {
				case k.verdicts <- v:
				default: // costs another node one bcrypt
				}
			}
		case link.TypeHealth:
			k.stats.confined(m.Health.Confinement)
			k.stats.heardWorker.Store(time.Now().UnixMilli())
			k.cfg.Health(*m.Health, true)
		case link.TypeMetrics:
			k.stats.answered(m.Seq, m.Bytes)
		case link.TypeResync:
			k.resync(m.Shard)
		case link.TypeReceipts:
			k.proofs.Put(w.hello.Run, m.Seq, m.Bytes)
		case link.TypeReceiptAsk:
			k.ask(w, m)
		default:
			k.log.Warn("the worker sent a message that a keeper does not take", "type", m.Type)
		}
	}
}

// damaged replaces the worker whose ring cannot be read on.
func (k *Keeper) damaged(run uint64) {
	if w := k.current(); w != nil && w.hello.Run == run {
		k.log.Error("the worker's memory for records is damaged; it is replaced", "pid", w.pid)
		w.kill()
	}
}

// pushPeers gives the worker the gossip table, and its setup, when they changed.
func (k *Keeper) pushPeers(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	due, renewed := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.renewed:
			renewed = true
		case <-k.cfg.PeersChanged:
			due = true
		case <-tick.C:
			due = due || k.cfg.PeersChanged == nil
		}
		if w := k.current(); due && w != nil {
			peers := k.cfg.Peers()
			due = !w.post(&link.Message{Type: link.TypePeers, Peers: &peers})
		}
		if w := k.current(); renewed && w != nil {
			setup, _ := k.setupNow()
			renewed = !w.post(&link.Message{Type: link.TypeSetup, Setup: setup})
		}
	}
}

// pushVerdicts hands verdicts on in batches.
func (k *Keeper) pushVerdicts(ctx context.Context) {
	for {
		var batch []feed.Verdict
		select {
		case <-ctx.Done():
			return
		case v := <-k.verdicts:
			batch = append(batch, v)
		}
		gather := time.NewTimer(20 * time.Millisecond)
	more:
		for len(batch) < 512 {
			select {
			case v := <-k.verdicts:
				batch = append(batch, v)
			case <-gather.C:
				break more
			case <-ctx.Done():
				break more
			}
		}
		gather.Stop()
		if k.cfg.ShareVerdicts == nil {
			continue
		}
		share, cancel := context.WithTimeout(ctx, 2*time.Second)
		if err := k.cfg.ShareVerdicts(share, batch); err != nil && ctx.Err() == nil {
			k.log.Debug("verdicts were not shared", "count", len(batch), "error", err)
		}
		cancel()
	}
}
