package homes

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/retry"
)

// log is a region's replicated log under test: quorum's, or a bare one.
type log interface {
	Store
	close() error
}

// committed survives the node that committed it, and so does its lock: who asked
// the node that is gone may still look.
type committed struct {
	mu sync.Mutex
	st *ledger.State
}

// bareLog commits without Raft: one command after the other, each after a while.
type bareLog struct {
	*committed
	region  string
	delay   time.Duration
	onApply func(ledger.Outcome, controlplane.Epoch)

	alive bool // under mu
	leads chan bool
}

func openBare(region string, kept *committed, delay time.Duration, onApply func(ledger.Outcome, controlplane.Epoch)) *bareLog {
	b := &bareLog{committed: kept, region: region, delay: delay, onApply: onApply, alive: true, leads: make(chan bool, 1)}
	b.leads <- true
	return b
}

func (b *bareLog) View(f func(*ledger.State)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b.st)
}

func (b *bareLog) Leading() <-chan bool { return b.leads }
func (b *bareLog) Leader() (node, addr string, ok bool) {
	return b.region + "-c1", b.region + ":1", true
}
func (b *bareLog) close() error { b.die(); return nil }
func (b *bareLog) die() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.alive {
		b.alive = false
		close(b.leads)
	}
}

func (b *bareLog) Raise(ctx context.Context) error {
	_, err := b.ProposeCommand(ctx, &registry.Command{Type: registry.CmdVersion, Version: registry.Version})
	return err
}

func (b *bareLog) ProposeCommand(ctx context.Context, cmd *registry.Command) (ledger.Outcome, error) {
	return b.commit(ctx, func(*ledger.State) (*registry.Command, error) { return cmd, nil })
}

func (b *bareLog) Propose(ctx context.Context, shard controlplane.Shard, changes []registry.Change) (ledger.Outcome, error) {
	return b.commit(ctx, func(s *ledger.State) (*registry.Command, error) {
		if info, ok := s.Shard(shard); ok && info.Home != b.region {
			return nil, controlplane.ErrNotHome
		}
		if err := s.Check(shard, changes); err != nil {
			return nil, err
		}
		e, err := s.Next(shard, changes)
		if err != nil {
			return nil, err
		}
		enc, err := registry.EncodeEntry(e)
		return &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{enc}}, err
	})
}

func (b *bareLog) commit(ctx context.Context, prepare func(*ledger.State) (*registry.Command, error)) (ledger.Outcome, error) {
	if !retry.Sleep(ctx, b.delay) {
		return ledger.Outcome{}, fmt.Errorf("%w: %w", controlplane.ErrUncertain, ctx.Err())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.alive {
		return ledger.Outcome{}, controlplane.ErrNoLeader
	}
	cmd, err := prepare(b.st)
	if err != nil {
		return ledger.Outcome{}, err
	}
	enc, err := registry.EncodeCommand(cmd)
	if err != nil {
		return ledger.Outcome{}, err
	}
	if cmd, err = registry.DecodeCommand(enc); err != nil {
		return ledger.Outcome{}, err
	}
	out := b.st.Apply(cmd)
	sender := cmd.Sender
	if cmd.Take != nil {
		sender = cmd.Take.Epoch
	}
	b.onApply(out, sender)
	return out, out.Err
}

// realLog is quorum's, of one node.
type realLog struct {
	*quorum.Quorum
	cancel context.CancelFunc
}

func (r realLog) close() error {
	defer r.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return r.Close(ctx)
}

// deaf is the listener of a node without peers.
type deaf struct {
	closed chan struct{}
	once   sync.Once
}

func (d *deaf) Accept() (net.Conn, error) { <-d.closed; return nil, net.ErrClosed }
func (d *deaf) Close() error              { d.once.Do(func() { close(d.closed) }); return nil }
func (d *deaf) Addr() net.Addr            { return &net.TCPAddr{} }
