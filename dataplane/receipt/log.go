// Package receipt states, signed, what happened to a request: a leaf of
// metadata per answer, hashed into a batch whose checkpoint the node signs
// each second. What a receipt is made of, and its verifier, are in proof.
//
// Content passes through Hasher and nothing else here.
package receipt

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ringmain/dataplane/receipt/proof"
)

// What a receipt says, and one try, and what a worker measured of itself.
type (
	Facts       = proof.Facts
	Attempt     = proof.Attempt
	Confinement = proof.Confinement
)

// Unused is the outcome of an attempt of whose answer the client was given nothing.
const Unused = proof.Unused

// Config of a Log.
type Config struct {
	Cert, Key, Roots []byte // PEM of the node, as in link.Setup

	// Keep hands an encoded batch to the keeper without waiting, and reports
	// whether it was taken; else it is offered again. nil = batches stay in memory only.
	Keep func(number uint64, batch []byte) bool
	// Ask asks the keeper for a Batch.Entry; none is (nil, nil). nil = nobody to ask.
	Ask func(ctx context.Context, requestID string) ([]byte, error)

	Now        func() time.Time // nil = time.Now
	Logger     *slog.Logger     // nil = discard
	Registerer prometheus.Registerer
	Tunables   Tunables
}

// Tunables may be left zero; the defaults are in brackets.
type Tunables struct {
	Every  time.Duration // between checkpoints, while there are leaves [1 s]
	Batch  int           // bytes of leaves that make a checkpoint due sooner [1 MiB]
	Memory int64         // bytes of batches kept in memory [64 MiB]
	Age    time.Duration // how long they are kept there [10 min]
}

func (t Tunables) withDefaults() Tunables {
	if t.Every <= 0 {
		t.Every = time.Second
	}
	if t.Batch <= 0 {
		t.Batch = 1 << 20
	}
	if t.Memory <= 0 {
		t.Memory = 64 << 20
	}
	if t.Age <= 0 {
		t.Age = 10 * time.Minute
	}
	return t
}

// maxWaiting is how many full batches may wait for their checkpoint. Beyond
// that, which is more leaves than one core can hash, they are dropped and counted.
const maxWaiting = 16

// maxAsks is how many questions may be put to the keeper at once.
const maxAsks = 8

// Log collects the leaves of one worker process, signs them in batches, and
// finds them again. It is safe for concurrent use.
type Log struct {
	cfg      Config
	tunables Tunables
	log      *slog.Logger
	signer   *proof.Signer
	prefix   string // of leaf ids
	next     atomic.Uint64
	group    *errgroup.Group
	stop     context.CancelFunc
	wake     chan struct{}
	keeper   chan struct{} // another keeper is there

	pool sync.Pool     // *[]byte, for leaves on their way into a batch
	asks chan struct{} // places for questions to the keeper

	mu      sync.Mutex
	closed  bool
	open    *pending
	waiting []*pending
	spare   []*pending    // their memory, to be used again
	signed  chan struct{} // closed and replaced when a checkpoint was signed
	recent  []*kept       // oldest first
	memory  int64         // bytes of recent

	number   uint64 // of the last checkpoint; the signing goroutine's alone
	previous proof.Hash

	stats stats
}

// pending is a batch that is being filled.
type pending struct {
	leaves []byte
	ends   []uint32
	keys   []uint64
}

// kept is a batch in memory, and how far the keeper has it.
type kept struct {
	batch *proof.Batch
	size  int64
	sent  time.Time // when the connection to the present keeper took it; zero = it did not
	acked bool      // on disk
}

// resend is how long a keeper may have a batch without saying that it is on
// disk: one whose disk is full drops what does not fit in its memory.
const resend = 30 * time.Second

// Open makes the signing key, has the node's certificate vouch for it, and
// starts to sign. ctx bounds the log's life as Close does. It fails for a
// certificate that cannot sign, not for one that is out of date.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := proof.NewSigner(cfg.Cert, cfg.Key, cfg.Roots)
	if err != nil {
		return nil, err
	}
	l := &Log{
		cfg: cfg, tunables: cfg.Tunables.withDefaults(), log: cfg.Logger, signer: s, prefix: proof.LeafPrefix(s.Key()),
		wake: make(chan struct{}, 1), keeper: make(chan struct{}, 1), signed: make(chan struct{}), open: new(pending),
		asks: make(chan struct{}, maxAsks),
	}
	if err := l.stats.register(l); err != nil {
		return nil, err
	}
	ctx, l.stop = context.WithCancel(ctx)
	l.group, ctx = errgroup.WithContext(ctx)
	l.group.Go(func() error { l.run(ctx); return nil })
	if cfg.Ask != nil {
		l.keeper <- struct{}{} // there is one by now, as a rule
		l.group.Go(func() error { l.former(ctx); return nil })
	}
	return l, nil
}

// Close signs what is left, gives the keeper up to two seconds to have it, and
// waits. Leaves committed afterwards are dropped.
func (l *Log) Close() error {
	l.stop()
	err := l.group.Wait()
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.checkpoint()
	for start := time.Now(); l.offer() && time.Since(start) < 2*time.Second; {
		time.Sleep(5 * time.Millisecond)
	}
	l.stats.unregister(l)
	return err //nolint:wrapcheck // none of its goroutines fails
}

// Renew lets another certificate of the same node vouch for the signing key.
// On any error what was there stays.
func (l *Log) Renew(cert, key, roots []byte) error {
	return l.signer.Renew(cert, key, roots)
}

// KeySet is the document of /.well-known/jwks.json: the cluster's roots, this
// region's issuer, this node's signing key with the delegations of its life,
// and the keys of its processes before whose batches the keeper has.
// Send it with KeySetType and KeySetCache.
func (l *Log) KeySet() []byte { return l.signer.KeySet() }

// Headers of the key set.
const (
	KeySetType  = "application/jwk-set+json"
	KeySetCache = "public, max-age=300"
)

// Reserve names the leaf of an answer whose head goes out before its end.
func (l *Log) Reserve() string {
	var b [48]byte
	return string(strconv.AppendUint(append(b[:0], l.prefix...), l.next.Add(1), 10))
}

// Commit puts the leaf into the next checkpoint. It never blocks, and keeps
// nothing of f, but sets f.Leaf. What finds no room is dropped and counted.
func (l *Log) Commit(leaf string, f *Facts) {
	f.Leaf = leaf
	scratch, ok := l.pool.Get().(*[]byte)
	if !ok {
		scratch = new([]byte)
	}
	b := proof.AppendLeaf((*scratch)[:0], f)
	key := proof.RequestKey(f.RequestID)
	wake := false
	l.mu.Lock()
	if p := l.open; !l.closed && len(b) <= proof.MaxLeaf && len(p.leaves) < l.tunables.Batch {
		p.leaves = append(p.leaves, b...)
		p.ends = append(p.ends, uint32(len(p.leaves)))
		p.keys = append(p.keys, key)
		l.stats.leaves.Add(1)
		if len(p.leaves) >= l.tunables.Batch && len(l.waiting) < maxWaiting {
			l.turn()
			wake = true
		}
	} else {
		l.stats.dropped.Add(1)
	}
	l.mu.Unlock()
	*scratch = b
	l.pool.Put(scratch)
	if wake {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// turn puts the open batch in line for its checkpoint and opens another. The
// caller holds mu.
func (l *Log) turn() {
	l.waiting = append(l.waiting, l.open)
	if n := len(l.spare); n > 0 {
		l.open, l.spare = l.spare[n-1], l.spare[:n-1]
	} else {
		l.open = new(pending)
	}
}

// maxInline is the most bytes that Inline returns, so that all headers of an
// answer stay within 3 KB.
const maxInline = 1792

// ErrTooLong means that the signed facts would not fit the answer's headers:
// send the leaf id instead.
var ErrTooLong = errors.New("the signed facts are longer than a header may be: send the leaf id")

// Inline signs the facts at once, as a compact JWS whose kid is in KeySet. It
// sets f.Leaf. Commit the leaf as well: the JWS carries no certificates, and
// the receipt by request id does.
func (l *Log) Inline(leaf string, f *Facts) (string, error) {
	f.Leaf = leaf
	jws, err := l.signer.Sign(f)
	if err != nil {
		return "", err
	}
	if len(jws) > maxInline {
		return "", ErrTooLong
	}
	return jws, nil
}

// run signs a checkpoint each time one is due.
func (l *Log) run(ctx context.Context) {
	tick := time.NewTicker(l.tunables.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.checkpoint()
		case <-l.wake:
			l.checkpointFull()
		}
		l.offer()
	}
}

// checkpoint signs all that was committed.
func (l *Log) checkpoint() {
	l.mu.Lock()
	if len(l.open.ends) > 0 {
		l.turn()
	}
	l.mu.Unlock()
	l.checkpointFull()
	l.mu.Lock()
	l.evict(l.cfg.Now())
	l.mu.Unlock()
}

// checkpointFull signs the batches that wait for it.
func (l *Log) checkpointFull() {
	for {
		l.mu.Lock()
		if len(l.waiting) == 0 {
			l.mu.Unlock()
			return
		}
		p := l.waiting[0]
		l.mu.Unlock()
		now := l.cfg.Now()
		b, err := proof.Seal(l.signer, l.number+1, l.previous, now, slices.Clone(p.leaves), slices.Clone(p.ends), p.keys)
		l.mu.Lock()
		// Only now: until it is found among the signed, it is found waiting.
		l.waiting = l.waiting[1:]
		if len(l.spare) < 2 {
			l.spare = append(l.spare, &pending{leaves: p.leaves[:0], ends: p.ends[:0], keys: p.keys[:0]})
		}
		if err != nil {
			l.stats.dropped.Add(uint64(len(p.ends)))
			l.mu.Unlock()
			l.log.Error("a batch of receipts could not be signed and is dropped", "receipts", len(p.ends), "error", err)
			continue
		}
		l.number, l.previous = b.Number, b.Chained()
		k := &kept{batch: b, size: b.Size()}
		l.recent = append(l.recent, k)
		l.memory += k.size
		l.evict(now)
		close(l.signed)
		l.signed = make(chan struct{})
		l.mu.Unlock()
		l.stats.checkpoints.Add(1)
	}
}

// evict forgets batches beyond the bounds, the oldest first. The caller holds mu.
func (l *Log) evict(now time.Time) {
	n := 0
	for n < len(l.recent) && (l.memory > l.tunables.Memory || now.Sub(l.recent[n].batch.At) > l.tunables.Age) {
		if !l.recent[n].acked {
			l.stats.lost.Add(uint64(l.recent[n].batch.Len()))
		}
		l.memory -= l.recent[n].size
		l.recent[n] = nil
		n++
	}
	l.recent = l.recent[n:]
}

// offer gives the keeper what it does not have, oldest first. It reports
// whether the keeper took batches that it has not acknowledged yet.
func (l *Log) offer() bool {
	if l.cfg.Keep == nil {
		return false
	}
	now := l.cfg.Now()
	l.mu.Lock()
	var todo []*kept
	underway := false
	for _, k := range l.recent {
		if !k.acked && now.Sub(k.sent) > resend {
			todo = append(todo, k)
		}
		underway = underway || !k.acked && !k.sent.IsZero()
	}
	l.mu.Unlock()
	for _, k := range todo {
		b, err := k.batch.Encode()
		if err != nil || !l.cfg.Keep(k.batch.Number, b) {
			break // the rest is offered again
		}
		l.mu.Lock()
		k.sent, underway = now, true
		l.mu.Unlock()
	}
	return underway
}

// Acked notes that the keeper has the batch of that number on disk.
func (l *Log) Acked(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.recent {
		if k.batch.Number == number {
			k.acked = true
			return
		}
	}
}

// Again has everything that was not acknowledged offered again: another keeper is there.
func (l *Log) Again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.recent {
		k.sent = time.Time{}
	}
	select {
	case l.keeper <- struct{}{}:
	default:
	}
}

// former takes over, from each keeper, what this node signed with before.
func (l *Log) former(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.keeper:
		}
		b, err := l.ask(ctx, proof.AskFormer)
		if err == nil && b != nil {
			var delegations []string
			if delegations, err = proof.DecodeDelegations(b); err == nil {
				err = l.signer.Former(delegations)
			}
		}
		if err != nil && ctx.Err() == nil {
			l.log.Warn("the keeper could not be asked for the keys of former workers: inline receipts that they signed need a key set from before", "error", err)
		}
	}
}
