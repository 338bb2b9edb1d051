package quorum

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/retry"
)

// found begins a new region, or finds that there is one. A node whose directory
// is empty cannot tell a fresh region from one that it is to join, or that has
// lost its memory: so it founds nothing before every peer has answered, and
// nothing if one of them has a past. Then it waits to be contacted.
func (q *Quorum) found(ctx context.Context) error {
	if q.known {
		return nil
	}
	if q.cfg.Reader || len(q.cfg.Peers) < q.cfg.Expect {
		q.log.Info("waiting for the region's nodes to make contact", "peers", len(q.cfg.Peers), "expected", q.cfg.Expect)
		return nil
	}
	for said := false; q.raft.CurrentTerm() == 0; {
		silent, past := q.askPeers(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case past != "":
			q.log.Info("the region exists: waiting for its leader to make contact; if this node is new to it, add it there", "by", past)
			return nil
		case len(silent) == 0:
			// All nodes do the same with the same list, so whoever is elected
			// first finds the others in agreement.
			err := q.raft.BootstrapCluster(q.cfg.founders()).Error()
			if errors.Is(err, raft.ErrCantBootstrap) {
				return nil // contacted meanwhile
			}
			if err != nil {
				return fmt.Errorf("quorum: found the region: %w", image.DiskError(err))
			}
			q.log.Info("founded the region", "peers", q.cfg.Peers)
			return q.electFirst()
		case !said:
			q.log.Info("waiting for all of the region's nodes to answer before it is founded", "silent", silent)
			said = true
		}
		if !retry.Sleep(ctx, foundEvery) {
			return nil
		}
	}
	return nil
}

// electFirst has a founder ask for the first election at once, instead of after
// the time in which a leader would have been heard. It is an election like any
// other. Mostly there is one founder: who asks it afterwards hears of its past.
// If several ask for votes at once, they ask again as ever.
func (q *Quorum) electFirst() error {
	// Raft looks at its timer when the timeout becomes shorter.
	rc := q.raft.ReloadableConfig()
	rc.HeartbeatTimeout, rc.ElectionTimeout = q.cfg.Tunables.Heartbeat, q.cfg.Tunables.Election
	if err := q.raft.ReloadConfig(rc); err != nil {
		return fmt.Errorf("quorum: found the region: %w", err)
	}
	return nil
}

// founding is how much longer the timeouts of a node without a past are.
const founding = time.Millisecond

const foundEvery = 100 * time.Millisecond

// askPeers says which peers do not answer, and one that has been in a term. A
// question whether it would vote for this node in term 0 changes nothing there.
func (q *Quorum) askPeers(ctx context.Context) (silent []string, past string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	self := q.trans.EncodePeer(raft.ServerID(q.cfg.Node), q.trans.LocalAddr())
	for _, p := range q.cfg.Peers {
		if p.Node == q.cfg.Node {
			continue
		}
		wg.Go(func() {
			req := &raft.RequestPreVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(q.cfg.Node), Addr: self}}
			var resp raft.RequestPreVoteResponse
			err := q.trans.RequestPreVote(raft.ServerID(p.Node), raft.ServerAddress(p.Addr), req, &resp)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				silent = append(silent, p.Node)
			case resp.Term > 0:
				past = p.Node
			}
		})
	}
	wg.Wait()
	slices.Sort(silent)
	return silent, past
}
