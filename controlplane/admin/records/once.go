package admin

import (
	"context"
	"crypto/hkdf"
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
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/registry"
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

// once is what an Idempotency-Key makes of one request.
type once struct {
	seed   [sha256.Size]byte
	first  time.Time // when this node first saw it
	replay bool      // the outcome is that of an earlier request
}

// onceOf reads the request's Idempotency-Key; nil if it has none.
func (a *API) onceOf(r *http.Request, x *exchange) (*once, error) {
	values := r.Header.Values(api.HeaderIdempotency)
	if len(values) == 0 {
		return nil, nil
	}
	if len(values) > 1 || !idempotencyKey.MatchString(values[0]) {
		return nil, problem(http.StatusBadRequest, api.CodeInvalidHead, api.HeaderIdempotency,
			"Send one value of 16 to 128 visible ASCII characters, new and random for each request, such as a UUID.")
	}
	mac := hmac.New(sha256.New, a.onceKey)
	for _, part := range []string{x.actor, r.Method, r.URL.Path, values[0]} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		mac.Write(n[:])
		mac.Write([]byte(part))
	}
	o := &once{}
	mac.Sum(o.seed[:0])
	o.first = a.firsts.note(o.seed, a.cfg.Now())
	return o, nil
}

func onceKey(clusterSecret []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, clusterSecret, nil, "ringmain idempotency/1", sha256.Size)
}

// drawn gives the same bytes for the same seed and purpose.
func (o *once) drawn(purpose string) io.Reader {
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

// newID makes the id of the record that the request creates in the shard: the
// id of the one that it has created already, if it is a repetition.
func (a *API) newID(ctx context.Context, kind registry.Kind, jurisdiction string, shard controlplane.Shard) string {
	o := exchangeOf(ctx).once
	if o == nil {
		return registry.NewID(kind.Prefix(), jurisdiction, a.cfg.Now(), a.cfg.Random)
	}
	// An unpinned org belongs to the region that was asked, which may have been
	// another the first time: its id must not be used twice.
	id := func(shard controlplane.Shard, at time.Time) string {
		return registry.NewID(kind.Prefix(), jurisdiction, at, o.drawn("id in "+string(shard)))
	}
	own := id(shard, o.first)
	a.view(func(s *registry.State) {
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
func elsewhere(s *registry.State, kind registry.Kind, shard controlplane.Shard) []controlplane.Shard {
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

// newKey makes a whole key with the id of a record to be, or that is there.
func (a *API) newKey(ctx context.Context, class, recordID string) (controlplane.Secret, apikey.Parsed, error) {
	parsed, err := apikey.FromRecord(class, recordID)
	if err != nil {
		return controlplane.Secret{}, apikey.Parsed{}, err
	}
	random := a.cfg.Random
	if o := exchangeOf(ctx).once; o != nil {
		random = o.drawn("secret of " + recordID)
	}
	whole, err := apikey.NewSecretFor(parsed, random)
	return whole, parsed, err
}

// rotation makes the next secret of a key. done says that it is the present
// one: the request has been here before.
func (a *API) rotation(ctx context.Context, rec *registry.Record) (whole controlplane.Secret, done bool, err error) {
	parsed, err := apikey.FromRecord(rec.Key.Class, rec.Meta.ID)
	if err != nil {
		return controlplane.Secret{}, false, err
	}
	o := exchangeOf(ctx).once
	if o == nil {
		whole, err = apikey.NewSecretFor(parsed, a.cfg.Random)
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
			return controlplane.Secret{}, false, problem(http.StatusConflict, string(controlplane.RuleConflict), api.HeaderIdempotency,
				"The key was rotated again since this request was made first: its secret cannot be shown again.")
		}
	}
	return whole, false, nil
}

// replayed returns what an earlier request with the same Idempotency-Key made
// of rec. The error says that the earlier one asked for something else.
func (a *API) replayed(rec *registry.Record) (written, error) {
	var at controlplane.Point
	stored, err := a.get(rec.Kind, rec.Meta.ID)
	if err != nil {
		return written{}, err
	}
	a.view(func(s *registry.State) {
		info, _ := s.Shard(stored.Meta.Shard)
		at = info.Last
	})
	asked, err := copyOf(rec)
	if err != nil {
		return written{}, err
	}
	asked.Meta = stored.Meta
	if asked.Key != nil {
		asked.Key.Hash = stored.Key.Hash // salted anew each time
	}
	same, err := equal(asked, stored)
	if err != nil {
		return written{}, err
	}
	if untouched := stored.Meta.Created == stored.Meta.Updated; !same && untouched {
		return written{}, problem(http.StatusUnprocessableEntity, api.CodeReused, api.HeaderIdempotency,
			"An earlier request with this key asked for something else, and made "+rec.Meta.ID+": use a new key for each request.")
	}
	return written{stored, at}, nil
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
