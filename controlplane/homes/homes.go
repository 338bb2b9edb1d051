// Package homes runs the ownership protocol between regions, on each region's
// leader: it tells the others how far this region's copies are, finds out what
// a majority has accepted, seals, copies, opens, moves and takes over.
//
// What may happen to a copy is decided by ownership and registry; what is
// decided here is only when to ask whom. Records, Raft and the management API
// may not enter.
package homes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/retry"
)

// Errors beside controlplane's sentinels. Each names the caller's next move.
var (
	// ErrDeposed: another region became home before the entry was confirmed; it may be in quarantine.
	ErrDeposed = errors.New("another region became the home of this shard before the write was confirmed: read before retrying, and look into the quarantine")
	// ErrHomeLives: nothing was done.
	ErrHomeLives = errors.New("the shard's home answers: move the shard instead, or take it over live, which stops its writes")
	// ErrNoMajority: the shard may be sealed by those who answered, and then has no home until somebody takes it over.
	ErrNoMajority = errors.New("no majority of the shard's members answered: take it over again when they do")
	// ErrRival: the shard has a home, another one than asked for.
	ErrRival = errors.New("another region became the home of this shard meanwhile: look again")
	// ErrMoveAborted: nothing was lost; the former home takes the shard back within seconds.
	ErrMoveAborted = errors.New("the move was given up, because the former home could not hand over all it has: it takes the shard back; try again then")
	// ErrNotMember: nothing was done.
	ErrNotMember = errors.New("this region is no member of the shard and cannot become its home: choose a member")
	// ErrFormerLife: nothing was done.
	ErrFormerLife = errors.New("this region was restored or recovered since it was a member of the shard, and may lack what it held then: take the shard over at another member; if no other is left, or all are lost too, name this region itself among the lost: what came after the backup is given up with that")
	// ErrParted: nothing was done.
	ErrParted = errors.New("the region to be added holds records that were acknowledged multi-region and are not in this history, because both went on by force: keep a backup of it for what it alone has, restore it from one made before the two parted, and add it then")
	// ErrAlreadyHome: nothing was done.
	ErrAlreadyHome = errors.New("this region is the shard's home already")
	// ErrBusy: nothing was done.
	ErrBusy = errors.New("this region is already about to become the home of this shard: wait for it")
	// ErrManual: nothing was done.
	ErrManual = errors.New("with fewer than three members a lost home cannot be told from a lost network: take over by hand")
)

// Store is the region's replicated registry. quorum.Quorum is one.
type Store interface {
	View(f func(*ledger.State))
	Propose(ctx context.Context, shard controlplane.Shard, changes []registry.Change) (ledger.Outcome, error)
	ProposeCommand(ctx context.Context, cmd *registry.Command) (ledger.Outcome, error)
	// Leading yields whether this node leads, at once and after every change.
	Leading() <-chan bool
	Leader() (node, addr string, ok bool)
	// Raise has the region apply the ownership protocol from now on. It does
	// nothing if the region does already.
	Raise(ctx context.Context) error
}

// Config configures a Homes. Zero values take the defaults in brackets.
type Config struct {
	Cluster string
	Region  string
	Node    string
	Store   Store
	Since   func() uint64 // which life of the region this is, as the region's log knows it [always 0: the first]
	// Snapshot answers a candidate with a shard as a whole, as frames of the
	// feed, if this copy ends in exactly at. [nil = this node sends none]
	Snapshot func(ctx context.Context, w http.ResponseWriter, shard controlplane.Shard, at controlplane.Point) error

	// Addresses lists the internal addresses (host:port) of a region's control
	// nodes. It is asked often and must not block.
	Addresses func(region string) []string
	// HTTP gives the client for a region: mutual TLS, with that region's control
	// nodes and no others, because a question tells something before it is answered;
	// nil for a region that this node does not know.
	HTTP func(region string) *http.Client

	// Published tells which regions observers hold to be up. [nil = no
	// automatic takeover]
	Published func() map[string]bool
	// AutomaticAfter is how long a home must have been published as down
	// before the other members take its shards over by themselves. Too short
	// a time turns every short cut into a takeover. [0 = never]
	AutomaticAfter time.Duration

	// Retake has the feed bring a shard in anew, because this copy differs from
	// its home's. [nil = drift is only reported]
	Retake func(home string, shard controlplane.Shard)

	Word     time.Duration // how often members hear from each other when nothing happens [1 s]
	Isolated time.Duration // a home that no majority answers for so long is isolated [10 s]
	Confirm  time.Duration // how far the confirmed sequence in the log may lag behind [500 ms]
	Reclaim  time.Duration // after which a former home takes back a shard that somebody sealed and nobody opened, once or twice over [4 s]
	Call     time.Duration // one question to another region, retries included [3 s]

	Logger     *slog.Logger          // [discards]
	Registerer prometheus.Registerer // nil = no metrics
}

const confirmEntries = 1000 // unconfirmed in the log before the confirmed sequence is written early

func (c *Config) fill() error {
	if c.Cluster == "" || c.Region == "" || c.Node == "" || c.Store == nil || c.Addresses == nil || c.HTTP == nil {
		return errors.New("homes: cluster, region, node, store, addresses and HTTP clients are needed")
	}
	if c.Since == nil {
		c.Since = func() uint64 { return 0 }
	}
	c.Word = cmp.Or(c.Word, time.Second)
	c.Isolated = cmp.Or(c.Isolated, 10*time.Second)
	c.Confirm = cmp.Or(c.Confirm, 500*time.Millisecond)
	c.Reclaim = cmp.Or(c.Reclaim, 4*time.Second)
	c.Call = cmp.Or(c.Call, 3*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Homes is one control node's part. All of it but the answer "ask the leader"
// happens while this node leads its region.
type Homes struct {
	cfg     Config
	log     *slog.Logger
	metrics metrics
	client  *client
	mux     *http.ServeMux
	cancel  context.CancelFunc
	ctx     context.Context
	group   *errgroup.Group
	term    atomic.Pointer[term] // nil unless this node leads

	mu      sync.Mutex
	closed  bool
	serving sync.WaitGroup
}

// Open starts following the region's leadership.
func Open(ctx context.Context, cfg Config) (*Homes, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	h := &Homes{cfg: cfg, log: cfg.Logger}
	h.client = newClient(&h.cfg)
	h.mux = h.routes()
	if err := h.metrics.register(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("homes: metrics: %w", err)
	}
	ctx, h.cancel = context.WithCancel(ctx)
	h.group, h.ctx = errgroup.WithContext(ctx)
	h.group.Go(func() error { return h.follow(h.ctx) })
	return h, nil
}

// Close stops everything, waits, and returns the first failure.
func (h *Homes) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	h.serving.Wait()
	err := h.group.Wait()
	h.metrics.unregister(h.cfg.Registerer)
	return err
}

// Applied tells what a command did to the region's state. Call it for every
// command; it does not wait.
func (h *Homes) Applied(out ledger.Outcome) {
	if t := h.term.Load(); t != nil && len(out.Reports) > 0 {
		t.kick()
	}
}

// follow runs a term whenever this node leads. A term that ends forgets all it
// knew: a candidacy is abandoned, a home counts anew.
func (h *Homes) follow(ctx context.Context) error {
	var t *term
	end := func() error {
		if t == nil {
			return nil
		}
		h.term.Store(nil)
		err := t.end()
		t = nil
		return err
	}
	for changes := h.cfg.Store.Leading(); ; {
		select {
		case <-ctx.Done():
			return end()
		case leading, ok := <-changes:
			if err := end(); err != nil || !ok {
				return err
			}
			if leading {
				t = newTerm(ctx, h)
				h.term.Store(t)
			}
		}
	}
}

// leading returns the present term, or says who leads. A node that has just
// begun to lead is waited for.
func (h *Homes) leading(ctx context.Context) (*term, error) {
	for {
		if t := h.term.Load(); t != nil {
			return t, nil
		}
		node, _, ok := h.cfg.Store.Leader()
		if ok && node != h.cfg.Node {
			return nil, fmt.Errorf("%w (%s)", controlplane.ErrNotLeader, node)
		}
		if !ok || !h.beginning(ctx) {
			return nil, controlplane.ErrNoLeader
		}
	}
}

// beginning waits a moment for a term; false if none is to be expected.
func (h *Homes) beginning(ctx context.Context) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	return retry.Sleep(ctx, 5*time.Millisecond)
}

// Confirmed returns once the shard's entry at point is confirmed: accepted,
// with all before it, by a majority of the members, this home included. Errors:
// ErrNotLeader, ErrNoLeader and ErrNotHome as everywhere, ErrDeposed, or the
// context's: then it may still be confirmed later.
func (h *Homes) Confirmed(ctx context.Context, shard controlplane.Shard, point controlplane.Point) error {
	t, err := h.leading(ctx)
	if err != nil {
		return err
	}
	return t.confirmed(ctx, shard, point)
}

// TakeoverOptions loosen what Takeover refuses. The zero value is the safe one.
type TakeoverOptions struct {
	// Live takes the shard from a home that answers. Its writes stop; nothing
	// that was copied is lost.
	Live bool
	// Lost names members declared lost for ever: nobody waits for their word,
	// every other member's is required, and they leave the shard until they
	// are added again. Without a majority that can lose records acknowledged
	// multi-region: Result.Lossless says whether it could have. If they live
	// on, what they write from then on ends in quarantine.
	//
	// A region that was restored or recovered names itself: its former life is
	// lost, and it takes its place.
	Lost []string
	// Add names regions that become members, or members again after a life in
	// which they may have lost something. They must be running, so that their
	// word can be heard, and must not have parted from this history (ErrParted).
	// A home may add to its own shard.
	Add []string
}

// Result is how a region became home.
type Result struct {
	Shard  controlplane.Shard
	Epoch  controlplane.Epoch // opened
	Base   controlplane.Point // what it continues
	From   string             // region whose tail was copied; "" = this one's own was the highest
	Copied int                // entries; 0 if a snapshot was taken
	// Lossless: every record acknowledged multi-region is in Base.
	Lossless bool

	// Since the call: sealed by enough members; opened here; confirmed, so that writes are taken.
	Sealed, Opened, Confirmed time.Duration
}

// Takeover makes this region home of a shard whose home is lost. Without a
// deadline it goes on asking until enough members answer. After an error the
// shard may be sealed, and so without a home, until it is taken over again.
func (h *Homes) Takeover(ctx context.Context, shard controlplane.Shard, opts TakeoverOptions) (Result, error) {
	t, err := h.leading(ctx)
	if err != nil {
		return Result{}, err
	}
	return t.takeover(ctx, shard, opts)
}

// Move makes this region home of a shard whose home answers, which seals
// itself and hands over all it has: nothing is lost, and writes are refused
// for the moment between. Ask the region that is to become home.
func (h *Homes) Move(ctx context.Context, shard controlplane.Shard) (Result, error) {
	t, err := h.leading(ctx)
	if err != nil {
		return Result{}, err
	}
	return t.move(ctx, shard)
}

// Reach is what this region's leader knows of a shard's members.
type Reach struct {
	Shard     controlplane.Shard
	Role      string // home, opening, candidate, sealed, follower
	Home      string // of the last epoch opened
	Promised  controlplane.Epoch
	Last      controlplane.Point
	Confirmed uint64
	Members   []MemberReach
	// Isolated is since when no majority of the members answers this home;
	// zero if one does, for a member that is not home, and within the first
	// ten seconds.
	Isolated time.Time
}

// MemberReach is one member, as it was when last heard.
type MemberReach struct {
	Region   string
	Heard    time.Time // zero = not since this node leads
	Promised controlplane.Epoch
	Last     controlplane.Point
}

// Reach tells who of the shard's members answers. It is the leader that knows.
func (h *Homes) Reach(shard controlplane.Shard) (Reach, error) {
	t := h.term.Load()
	if t == nil {
		return Reach{}, controlplane.ErrNotLeader
	}
	return t.reach(shard)
}
