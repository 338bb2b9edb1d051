package records

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// A request that creates something, or makes a secret, may carry an
// Idempotency-Key: sent again within ten minutes it has the same outcome, the
// secret included. Nothing is kept for that. Ids and secrets are drawn from the
// cluster secret, the actor, the path and the key instead of from chance, so a
// repetition arrives at the same id, finds what is there, and can show the same
// secret; after a change of leader or home too. Whoever has the cluster secret
// could draw it again if he also knew the Idempotency-Key, which is why that is
// to be random, and is not logged.

// replayFor is how long a repetition finds what the first request made.
const replayFor = 10 * time.Minute

// skew is how far the clocks of control nodes may differ for that.
const skew = 30 * time.Second

var idempotencyKey = regexp.MustCompile(`^[\x21-\x7e]{16,128}$`)

// Once is what an Idempotency-Key makes of one request.
type Once struct {
	seed   [sha256.Size]byte
	first  time.Time // when this node first saw it
	replay bool      // the outcome is that of an earlier request
}

// OnceOf reads the Idempotency-Key of req, which actor makes; nil if it has none.
func (r *Records) OnceOf(req *http.Request, actor string) (*Once, error) {
	values := req.Header.Values(api.HeaderIdempotency)
	if len(values) == 0 {
		return nil, nil
	}
	if len(values) > 1 || !idempotencyKey.MatchString(values[0]) {
		return nil, problem.New(http.StatusBadRequest, api.CodeInvalidHead, api.HeaderIdempotency,
			"Send one value of 16 to 128 visible ASCII characters, new and random for each request, such as a UUID.")
	}
	mac := hmac.New(sha256.New, r.onceKey)
	for _, part := range []string{actor, req.Method, req.URL.Path, values[0]} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		mac.Write(n[:])
		mac.Write([]byte(part))
	}
	o := &Once{}
	mac.Sum(o.seed[:0])
	o.first = r.firsts.note(o.seed, r.cfg.Now())
	return o, nil
}

// drawn gives the same bytes for the same seed and purpose.
func (o *Once) drawn(purpose string) io.Reader {
	return &drawn{seed: o.seed, purpose: purpose}
}

type drawn struct {
	seed    [sha256.Size]byte
	purpose string
	block   uint64
	rest    []byte
}

func (d *drawn) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(d.rest) == 0 {
			mac := hmac.New(sha256.New, d.seed[:])
			_ = binary.Write(mac, binary.BigEndian, d.block) // a hash takes everything
			mac.Write([]byte(d.purpose))
			d.rest = mac.Sum(nil)
			d.block++
		}
		c := copy(p[n:], d.rest)
		d.rest = d.rest[c:]
		n += c
	}
	return n, nil
}

// NewID makes the id of the record that the request creates in the shard: the
// id of the one that it has created already, if it is a repetition.
func (r *Records) NewID(ctx context.Context, kind registry.Kind, jurisdiction string, shard controlplane.Shard) string {
	o := RequestOf(ctx).Once
	if o == nil {
		return registry.NewID(kind.Prefix(), jurisdiction, r.cfg.Now(), r.cfg.Random)
	}
	// An unpinned org belongs to the region that was asked, which may have been
	// another the first time: its id must not be used twice.
	id := func(shard controlplane.Shard, at time.Time) string {
		return registry.NewID(kind.Prefix(), jurisdiction, at, o.drawn("id in "+string(shard)))
	}
	own := id(shard, o.first)
	r.View(func(s *ledger.State) {
		for _, shard := range elsewhere(s, kind, shard) {
			for age := -skew; age <= replayFor; age += time.Second {
				earlier := id(shard, o.first.Add(-age))
				if _, o.replay = s.Get(kind, earlier); o.replay {
					own = earlier
					return
				}
			}
		}
	})
	return own
}

// elsewhere lists the shards in which the same request may have made its record
// already: the given one, and the other regions' if that is one of an unpinned org.
func elsewhere(s *ledger.State, kind registry.Kind, shard controlplane.Shard) []controlplane.Shard {
	all := []controlplane.Shard{shard}
	const unpinned = "any-"
	if kind != registry.KindOrg || !strings.HasPrefix(string(shard), unpinned) {
		return all
	}
	for _, info := range s.Shards() {
		if info.Shard != shard && strings.HasPrefix(string(info.Shard), unpinned) {
			all = append(all, info.Shard)
		}
	}
	return all
}

// NewKey makes a whole key with the id of a record to be, or that is there.
func (r *Records) NewKey(ctx context.Context, class, recordID string) (controlplane.Secret, apikey.Parsed, error) {
	parsed, err := apikey.FromRecord(class, recordID)
	if err != nil {
		return controlplane.Secret{}, apikey.Parsed{}, err
	}
	random := r.cfg.Random
	if o := RequestOf(ctx).Once; o != nil {
		random = o.drawn("secret of " + recordID)
	}
	whole, err := apikey.NewSecretFor(parsed, random)
	return whole, parsed, err
}

// NextSecret makes the next secret of a key. done says that it is the present
// one: the request has been here before.
func (r *Records) NextSecret(ctx context.Context, rec *registry.Record) (whole controlplane.Secret, done bool, err error) {
	parsed, err := apikey.FromRecord(rec.Key.Class, rec.Meta.ID)
	if err != nil {
		return controlplane.Secret{}, false, err
	}
	o := RequestOf(ctx).Once
	if o == nil {
		whole, err = apikey.NewSecretFor(parsed, r.cfg.Random)
		return whole, false, err
	}
	window := o.first.Unix() / int64(replayFor/time.Second)
	for _, w := range []int64{window + 1, window - 1, window} { // the other clock may be ahead
		whole, err = apikey.NewSecretFor(parsed, o.drawn(fmt.Sprintf("rotation of %s in %d", rec.Meta.ID, w)))
		if err != nil {
			return controlplane.Secret{}, false, err
		}
		if apikey.Match(rec.Key.Hash, whole.Reveal()) == nil {
			o.replay = true
			return whole, true, nil
		}
		if len(rec.Key.PrevHash) > 0 && apikey.Match(rec.Key.PrevHash, whole.Reveal()) == nil {
			return controlplane.Secret{}, false, problem.Conflict(api.HeaderIdempotency,
				"The key was rotated again since this request was made first: its secret cannot be shown again.")
		}
	}
	return whole, false, nil
}

// Repeated is what an earlier request made of rec, once the caller has seen that
// this one repeats it.
func (r *Records) Repeated(ctx context.Context, rec *registry.Record) (Written, error) {
	if o := RequestOf(ctx).Once; o != nil {
		o.replay = true
	}
	return r.replayed(rec)
}

// replayed returns what an earlier request with the same Idempotency-Key made
// of rec. The error says that the earlier one asked for something else.
func (r *Records) replayed(rec *registry.Record) (Written, error) {
	var at controlplane.Point
	stored, err := r.Get(rec.Kind, rec.Meta.ID)
	if err != nil {
		return Written{}, err
	}
	r.View(func(s *ledger.State) {
		info, _ := s.Shard(stored.Meta.Shard)
		at = info.Last
	})
	asked, err := copyOf(rec)
	if err != nil {
		return Written{}, err
	}
	asked.Meta = stored.Meta
	if asked.Key != nil {
		asked.Key.Hash = stored.Key.Hash // salted anew each time
	}
	same, err := Equal(asked, stored)
	if err != nil {
		return Written{}, err
	}
	if untouched := stored.Meta.Created == stored.Meta.Updated; !same && untouched {
		return Written{}, problem.New(http.StatusUnprocessableEntity, api.CodeReused, api.HeaderIdempotency,
			"An earlier request with this key asked for something else, and made "+rec.Meta.ID+": use a new key for each request.")
	}
	return Written{stored, at}, nil
}

// firsts remembers when each Idempotency-Key came first, so that a repetition
// draws the same id while the first request is still under way. Older ones are
// found in the state.
type firsts struct {
	mu   sync.Mutex
	seen map[[sha256.Size]byte]time.Time
}

// firstsMax bounds the table; beyond it only repetitions that overtake their
// first request suffer.
const firstsMax = 16 << 10

func (f *firsts) note(seed [sha256.Size]byte, now time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, ok := f.seen[seed]; ok && now.Sub(at) < replayFor {
		return at
	}
	if f.seen == nil || len(f.seen) >= firstsMax {
		kept := make(map[[sha256.Size]byte]time.Time)
		for s, at := range f.seen {
			if now.Sub(at) < replayFor && len(kept) < firstsMax/2 {
				kept[s] = at
			}
		}
		f.seen = kept
	}
	f.seen[seed] = now
	return now
}
