package homes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/strict"
)

// Handler serves Prefix on a mutual-TLS listener made by identity: whose words
// these are is read from the connection's certificate and nowhere else.
func (h *Homes) Handler() http.Handler { return h.mux }

func (h *Homes) routes() *http.ServeMux {
	mux := http.NewServeMux()
	route(h, mux, pathWord, h.serveWords)
	route(h, mux, pathSeal, h.serveSeal)
	route(h, mux, pathTail, h.serveTail)
	route(h, mux, pathRevoke, h.serveRevoke)
	route(h, mux, pathDigest, h.serveDigest)
	route(h, mux, pathCurrent, h.serveCurrent)
	mux.HandleFunc("POST "+pathSnapshot, h.guarded(h.serveSnapshot))
	return mux
}

// statusError is an answer other than 200.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func refuse(status int, format string, args ...any) error {
	return &statusError{status, fmt.Sprintf(format, args...)}
}

// asked is one question of another region to this one's leader.
type asked struct {
	*http.Request
	t      *term
	region string // who asks, by its certificate
}

const answerIn = 10 * time.Second

// route serves questions of type Q with answers of type A.
func route[Q, A any, PQ interface {
	*Q
	message
	cluster() string
}](h *Homes, mux *http.ServeMux, path string, serve func(asked, PQ) (A, error)) {
	mux.HandleFunc("POST "+path, h.guarded(func(w http.ResponseWriter, a asked) error {
		q := PQ(new(Q))
		if err := read(h, a, q); err != nil {
			return err
		}
		answer, err := serve(a, q)
		if err != nil {
			return err
		}
		return write(w, http.StatusOK, answer)
	}))
}

func read[Q interface {
	message
	cluster() string
}](h *Homes, a asked, q Q) error {
	if err := decode(a.Body, maxBody, q); err != nil {
		return refuse(http.StatusBadRequest, "body: %v", err)
	}
	if q.cluster() != h.cfg.Cluster {
		return refuse(http.StatusForbidden, "cluster %.80q: %v", q.cluster(), controlplane.ErrWrongCluster)
	}
	return nil
}

func write(w http.ResponseWriter, status int, answer any) error {
	b, err := strict.Marshal(answer)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/cbor")
	w.WriteHeader(status)
	_, err = w.Write(b)
	return err
}

// guarded lets control nodes of other regions ask the leader, and turns errors
// into answers.
func (h *Homes) guarded(serve func(http.ResponseWriter, asked) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerIn)
		defer cancel()
		region, err := h.peer(r)
		if err == nil {
			err = h.enter()
		}
		if err == nil {
			defer h.serving.Done()
			var t *term
			if t, err = h.leading(ctx); err == nil {
				ctx, end := t.during(ctx)
				defer end()
				err = serve(w, asked{r.WithContext(ctx), t, region})
			}
		}
		if err != nil {
			h.answerError(w, r, err)
		}
	}
}

// answerError says in HTTP why there is no answer.
func (h *Homes) answerError(w http.ResponseWriter, r *http.Request, err error) {
	var no *statusError
	var refused *refusedError
	switch {
	case errors.As(err, &refused):
		err = write(w, http.StatusConflict, refused.report)
	case errors.Is(err, errSnapshot):
		http.Error(w, err.Error(), http.StatusGone)
	case errors.As(err, &no):
		http.Error(w, no.text, no.status)
	case errors.Is(err, controlplane.ErrNotLeader):
		if _, addr, ok := h.cfg.Store.Leader(); ok {
			w.Header().Set(headerLeader, addr)
		}
		http.Error(w, err.Error(), http.StatusMisdirectedRequest)
	default: // an election, a disk, an end: the same question may do better later
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
	h.log.Debug("homes: a question was not answered", "path", r.URL.Path, "peer", r.RemoteAddr, "err", err)
}

// peer is the region that asks.
func (h *Homes) peer(r *http.Request) (string, error) {
	if r.TLS == nil {
		return "", refuse(http.StatusForbidden, "regions talk over mutual TLS only")
	}
	id, err := identity.PeerID(*r.TLS)
	if err == nil {
		err = identity.AllowControl("")(id)
	}
	switch {
	case err != nil:
		return "", refuse(http.StatusForbidden, "%v", err)
	case id.Cluster != h.cfg.Cluster:
		return "", refuse(http.StatusForbidden, "cluster %s: %v", id.Cluster, controlplane.ErrWrongCluster)
	case id.Region == h.cfg.Region:
		return "", refuse(http.StatusForbidden, "%s: regions ask each other, not themselves", id)
	}
	return id.Region, nil
}

// enter counts a question in; not while closing.
func (h *Homes) enter() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return controlplane.ErrNoLeader
	}
	h.serving.Add(1)
	return nil
}

// copyFor is this region's copy of a shard that the asking region is a member of.
func (a asked) copyFor(shard controlplane.Shard) (ownership.Copy, ownership.Member, error) {
	var info registry.ShardInfo
	var held bool
	a.t.h.cfg.Store.View(func(s *ledger.State) {
		if info, held = s.Shard(shard); s.Version() < registry.VersionOwnership {
			held = false
		}
	})
	c := info.Copy()
	switch {
	case !held:
		return c, ownership.Member{}, refuse(http.StatusNotFound, "shard %.80s: this region does not hold it, or not yet under ownership", shard)
	case !slices.Contains(membersOf(c), a.region):
		return c, ownership.Member{}, refuse(http.StatusForbidden, "shard %s: region %s is no member of it", shard, a.region)
	}
	return c, a.t.h.self(), nil
}

func (h *Homes) serveWords(a asked, q *words) (words, error) {
	a.t.hear(a.region, q.Words)
	return words{Cluster: h.cfg.Cluster, Words: a.t.words(a.region, q.Words)}, nil
}

func (h *Homes) serveSeal(a asked, q *sealRequest) (report, error) {
	if q.Epoch.Region != a.region {
		return report{}, refuse(http.StatusForbidden, "epoch %s is not region %s's to ask for", q.Epoch, a.region)
	}
	held, _, err := a.copyFor(q.Shard)
	if err != nil {
		return report{}, err
	}
	// A life's epochs begin at its Since: this one is of peers that a recovery
	// gave up, who have not heard yet that another life took their place.
	if slices.ContainsFunc(held.Members(), func(m ownership.Member) bool { return m.Region == a.region && q.Epoch.Counter < m.Since }) {
		return report{}, refuse(http.StatusForbidden, "epoch %s is of a former life of region %s", q.Epoch, a.region)
	}
	err = a.t.seal(a.Context(), q.Shard, q.Epoch)
	c, me, viewErr := a.copyFor(q.Shard)
	if viewErr != nil {
		return report{}, viewErr
	}
	rep := report{Shard: q.Shard, Since: me.Since, Promised: c.Promised, Last: c.Last, Spans: c.Spans, Confirmed: c.Confirmed}
	var refused *ownership.Refused
	switch {
	case err == nil && c.Promised == q.Epoch && c.Last.Epoch != q.Epoch:
		h.log.Info("homes: a shard is sealed for another region", "shard", q.Shard, "epoch", q.Epoch.String())
		a.t.look()
		return rep, nil
	case err == nil, errors.As(err, &refused):
		return report{}, &refusedError{h.cfg.Region, rep}
	}
	return report{}, err
}

// serveTail sends what a candidate lacks of the copy that was reported to it.
func (h *Homes) serveTail(a asked, q *tailRequest) (answer tailAnswer, err error) {
	if err := a.reported(q); err != nil {
		return answer, err
	}
	var held []*ledger.Held
	var ok bool
	h.cfg.Store.View(func(s *ledger.State) { held, ok = s.Tail(q.Shard, q.After, 0) })
	if !ok {
		return answer, errSnapshot
	}
	size := 0
	for _, e := range held {
		if e.Entry.Point().Compare(q.Base) > 0 {
			break
		}
		b, err := registry.EncodeEntry(e.Entry)
		if err != nil {
			return answer, err
		}
		if size += len(b); size > maxTail {
			return answer, errSnapshot
		}
		answer.Entries = append(answer.Entries, b)
	}
	return answer, nil
}

// reported refuses a candidate to whom this copy is not sealed as it says.
func (a asked) reported(q *tailRequest) error {
	c, me, err := a.copyFor(q.Shard)
	switch {
	case err != nil:
		return err
	case q.Epoch.Region != a.region:
		return refuse(http.StatusForbidden, "epoch %s is not region %s's to ask for", q.Epoch, a.region)
	case c.Promised != q.Epoch || c.Last != q.Base:
		return &refusedError{a.t.h.cfg.Region, report{Shard: q.Shard, Since: me.Since, Promised: c.Promised, Last: c.Last, Spans: c.Spans, Confirmed: c.Confirmed}}
	}
	return nil
}

// serveSnapshot sends the copy that was reported as a whole.
func (h *Homes) serveSnapshot(w http.ResponseWriter, a asked) error {
	q := new(tailRequest)
	if err := read(h, a, q); err != nil {
		return err
	}
	if err := a.reported(q); err != nil {
		return err
	}
	if h.cfg.Snapshot == nil {
		return refuse(http.StatusNotImplemented, "this node sends no snapshots")
	}
	return h.cfg.Snapshot(a.Context(), w, q.Shard, q.Base)
}

// serveRevoke makes revocations that another region accepted part of a shard
// that this one writes.
func (h *Homes) serveRevoke(a asked, q *revokeRequest) (digestAnswer, error) {
	c, me, err := a.copyFor(q.Shard)
	if err != nil {
		return digestAnswer{}, err
	}
	if c.Role(me) != ownership.Home {
		return digestAnswer{}, fmt.Errorf("shard %s: %w", q.Shard, controlplane.ErrNoHome)
	}
	var news []registry.Revocation
	h.cfg.Store.View(func(s *ledger.State) {
		for _, v := range q.Revocations {
			if _, known := s.Revoked(v.Kind, v.ID); !known && v.Shard == q.Shard {
				news = append(news, v)
			}
		}
	})
	return digestAnswer{}, a.t.commitRevocations(a.Context(), q.Shard, news)
}

// serveDigest compares copies: the digest of this one, if it is where the
// asking region's is.
func (h *Homes) serveDigest(a asked, q *digestRequest) (digestAnswer, error) {
	if _, _, err := a.copyFor(q.Shard); err != nil {
		return digestAnswer{}, err
	}
	sum, ok := a.t.digests.at(h.cfg.Store, q.Shard, q.At)
	if !ok {
		return digestAnswer{}, nil
	}
	return digestAnswer{Digest: sum[:]}, nil
}
