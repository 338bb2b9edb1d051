package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"ringmain/gossip/bulletin"
)

// group is one of the two memberlist groups.
type group byte

const (
	lan group = 'l' // the nodes of a region
	wan group = 'w' // all nodes
)

func (g group) String() string {
	if g == lan {
		return "lan"
	}
	return "wan"
}

const (
	// retransmit times log10 of the members is how often a node sends each
	// message. Memberlist's 4 leaves one in fifty unheard by a given node of a
	// small group until the next full exchange; 8 leaves one in three thousand.
	retransmit  = 8
	maxQueue    = 4096            // broadcasts waiting per group
	goneRecent  = 5 * time.Second // deaths that count when asking who is cut off
	goneLife    = 24 * time.Hour  // how long a dead node's address is tried again
	maxGone     = 1024
	joinTargets = 3                // addresses tried per round
	contest     = 10 * time.Second // how long a conflict over this node's name makes it tell its address
	settling    = 30 * time.Second // after start, missing seeds are tried more often
)

var errBarred = errors.New("the node is revoked")

// Counts says how many members of a group this node knows, itself included.
// Dead and Left are those of the last day.
type Counts struct{ Alive, Dead, Left int }

// member is this node's place in one group. It implements memberlist's
// delegates, which memberlist calls with its own locks held.
type member struct {
	g      *Gossip
	group  group
	timing Timing
	list   *memberlist.Memberlist // nil until start
	seeds  []string
	queue  *memberlist.TransmitLimitedQueue
	size   atomic.Int64 // of present; the queue asks for it at times when mu is held

	// Guarded by g.mu.
	started   bool              // list is set
	contested time.Time         // when a peer last had this node at another address
	present   map[string]string // name -> address, this node's too
	gone      map[string]gone
}

type gone struct {
	addr  string
	since time.Time
}

func newMember(g *Gossip, grp group, timing Timing) *member {
	m := &member{g: g, group: grp, timing: timing, present: map[string]string{}, gone: map[string]gone{}}
	m.queue = &memberlist.TransmitLimitedQueue{RetransmitMult: retransmit, NumNodes: func() int { return int(m.size.Load()) }}
	return m
}

func (g *Gossip) memberOf(grp group) *member {
	if grp == lan {
		return g.lan
	}
	return g.wan
}

// start listens. Joining is rejoin's part.
func (m *member) start(ctx context.Context, bind, advertise string, key []byte, seeds []string) error {
	m.seeds = seeds
	logger := log.New(&logWriter{log: m.g.log.With("group", m.group)}, "", 0)
	transport, err := m.g.cfg.listen(ctx, m.group, bind, logger)
	if err != nil {
		return err
	}
	label := m.g.cfg.Cluster + "/wan"
	if m.group == lan {
		label = m.g.cfg.Cluster + "/lan/" + m.g.cfg.Region
	}
	c := memberlist.DefaultLANConfig()
	c.Name = m.g.self.String()
	c.Label = label // bound into every message: a foreign group is refused even under the same key
	c.SecretKey = key
	c.Transport = transport
	c.Logger = logger
	c.Delegate, c.Events, c.Conflict, c.Alive = m, m, m, m
	c.EnableCompression = false // costs more than the bytes it saves
	// A name is free for another address as soon as its death is known; 0 would
	// mean never.
	c.DeadNodeReclaimTime = time.Millisecond
	c.AdvertiseAddr, c.AdvertisePort, err = splitAdvertise(advertise)
	if err != nil {
		return errors.Join(err, transport.Shutdown())
	}
	c.RetransmitMult = retransmit
	m.timing.apply(c)
	if m.list, err = memberlist.Create(c); err != nil {
		return errors.Join(fmt.Errorf("gossip: start the %s group: %w", m.group, err), transport.Shutdown())
	}
	m.g.mu.Lock()
	m.started = true
	m.g.mu.Unlock()
	return nil
}

func (m *member) stop() error {
	if m.list == nil {
		return nil
	}
	if err := m.list.Shutdown(); err != nil {
		return fmt.Errorf("gossip: stop the %s group: %w", m.group, err)
	}
	return nil
}

// leave returns once the group was told or ctx's deadline, at most five seconds,
// is over.
func (m *member) leave(ctx context.Context) error {
	timeout := 5 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(min(timeout, time.Until(deadline)), time.Millisecond) // 0 would mean for ever
	}
	if err := m.list.Leave(timeout); err != nil {
		return fmt.Errorf("gossip: leave the %s group: %w", m.group, err)
	}
	return nil
}

func (m *member) addr() string { return m.list.LocalNode().Address() }

// push queues a message for the group.
func (m *member) push(name string, msg []byte) {
	m.queue.QueueBroadcast(&broadcast{name: name, msg: msg})
	m.queue.Prune(maxQueue)
}

// rejoin joins seeds and, for ever, tries whoever is missing: memberlist forgets
// the dead, and a healed partition would otherwise stay two groups.
func (m *member) rejoin(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		targets, hurry := m.targets()
		if len(targets) > 0 {
			n, err := m.list.Join(targets)
			m.g.log.Debug("tried to join", "group", m.group, "targets", targets, "reached", n, "err", err)
		}
		wait := m.timing.Rejoin
		if hurry {
			wait = time.Second
		}
		// Nodes that started together must not go on together.
		timer.Reset(wait*3/4 + rand.N(wait/2)) //nolint:gosec // spreading load needs no secrecy
	}
}

// targets picks addresses to try: of seeds that are not members, of members that
// died, and of any member while this node is still known at a former address.
// Hurry says to try again soon.
func (m *member) targets() (picked []string, hurry bool) {
	own := m.addr()
	now := time.Now()
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	present := make(map[string]bool, len(m.present))
	for _, addr := range m.present {
		present[addr] = true
	}
	wanted := map[string]bool{}
	for _, s := range m.seeds {
		if s != own && !present[s] {
			wanted[s] = true
			hurry = hurry || now.Sub(m.g.started) < settling
		}
	}
	for name, d := range m.gone {
		if v, ok := m.g.table.Node(keyOf(name)); !present[d.addr] && d.addr != own && (!ok || !v.Left) {
			wanted[d.addr] = true
		}
	}
	if now.Sub(m.contested) < contest {
		hurry = true
		for addr := range present {
			if addr != own {
				picked = append(picked, addr)
				break
			}
		}
	}
	for addr := range wanted { // in random order, as maps are
		if picked = append(picked, addr); len(picked) >= joinTargets {
			break
		}
	}
	return picked, hurry
}

// speaksFor says whether this group decides if the node is there.
func (m *member) speaksFor(k bulletin.Key) bool {
	return (k.Region == m.g.self.Region) == (m.group == lan)
}

// NotifyAlive is memberlist's: word that a node is there. An error keeps it out.
func (m *member) NotifyAlive(n *memberlist.Node) error {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if m.g.table.Barred(keyOf(n.Name)) {
		return errBarred
	}
	return nil
}

// NotifyJoin is memberlist's: a node is there.
func (m *member) NotifyJoin(n *memberlist.Node) {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if m.g.table.Barred(keyOf(n.Name)) {
		return
	}
	m.present[n.Name] = n.Address()
	m.size.Store(int64(len(m.present)))
	delete(m.gone, n.Name)
	k := keyOf(n.Name)
	if k == m.g.self {
		return
	}
	m.g.log.Info("node is there", "group", m.group, "node", n.Name, "addr", n.Address())
	if m.speaksFor(k) {
		m.g.table.SetMember(k, true, time.Now())
		m.g.notify()
	}
}

// NotifyLeave is memberlist's: a node died or left.
func (m *member) NotifyLeave(n *memberlist.Node) {
	k := keyOf(n.Name)
	if k == m.g.self {
		return
	}
	now := time.Now()
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	delete(m.present, n.Name)
	m.size.Store(int64(len(m.present)))
	if m.g.table.Barred(k) {
		return
	}
	m.gone[n.Name] = gone{addr: n.Address(), since: now}
	m.g.log.Warn("node is gone", "group", m.group, "node", n.Name)
	if m.speaksFor(k) {
		m.g.table.SetMember(k, false, now)
		m.g.notify()
	}
	if m.group == lan {
		m.g.obituary(k, now)
	}
}

// NotifyUpdate is memberlist's: a node's meta data, which is not used.
func (m *member) NotifyUpdate(*memberlist.Node) {}

// NotifyConflict is memberlist's: two addresses claim one name.
func (m *member) NotifyConflict(known, other *memberlist.Node) {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if keyOf(known.Name) == m.g.self {
		m.contested = time.Now()
		m.g.conflict.seen(m.contested)
	}
	m.g.log.Warn("two addresses claim one node name", "group", m.group, "node", known.Name, "known", known.Address(), "other", other.Address())
}

// NodeMeta is memberlist's: none.
func (m *member) NodeMeta(int) []byte { return nil }

// NotifyMsg is memberlist's: a broadcast, to be copied and not to block.
func (m *member) NotifyMsg(msg []byte) {
	if len(msg) == 0 {
		return
	}
	select {
	case m.g.inbox <- append([]byte{byte(m.group)}, msg...):
	default:
		m.g.metrics.dropped.Inc()
	}
}

// GetBroadcasts is memberlist's: what to put into a packet with room left.
func (m *member) GetBroadcasts(overhead, limit int) [][]byte {
	return m.queue.GetBroadcasts(overhead, limit)
}

// LocalState is memberlist's: this side of a push/pull.
func (m *member) LocalState(bool) []byte { return m.g.localFull() }

// MergeRemoteState is memberlist's: the other side of a push/pull.
func (m *member) MergeRemoteState(buf []byte, _ bool) { m.g.mergeFull(m, buf) }

// recentlyGone counts the nodes that died, not left, a moment ago. The caller
// holds mu, as for the functions below.
func (m *member) recentlyGone(now time.Time) int {
	n := 0
	for name, d := range m.gone {
		if v, ok := m.g.table.Node(keyOf(name)); now.Sub(d.since) < goneRecent && (!ok || !v.Left) {
			n++
		}
	}
	return n
}

func (m *member) forget(now time.Time) {
	for name, d := range m.gone {
		if now.Sub(d.since) > goneLife || len(m.gone) > maxGone {
			delete(m.gone, name)
		}
	}
}

func (m *member) contacts(n int) []string {
	var front, back []string
	for _, name := range slices.Sorted(maps.Keys(m.present)) {
		k := keyOf(name)
		if v, ok := m.g.table.Node(k); k == m.g.self {
			continue
		} else if ok && v.Role == "control" {
			front = append(front, m.present[name])
		} else {
			back = append(back, m.present[name])
		}
	}
	front = append(front, back...)
	return front[:min(n, len(front))]
}

func (m *member) counts() Counts {
	c := Counts{Alive: len(m.present)}
	for name := range m.gone {
		if v, ok := m.g.table.Node(keyOf(name)); ok && v.Left {
			c.Left++
		} else {
			c.Dead++
		}
	}
	return c
}

// keyOf reads a member's name, "region/node".
func keyOf(name string) bulletin.Key {
	region, node, _ := strings.Cut(name, "/")
	return bulletin.Key{Region: region, Node: node}
}
