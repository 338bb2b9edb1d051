package feed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// PushVerdicts shares verdicts made at this node: with its watchers, and with
// every other control node. It never blocks; a verdict that is lost on the way
// costs somebody one bcrypt.
func (h *Hub) PushVerdicts(verdicts []Verdict) { h.push(h.keepVerdicts(h.own(), verdicts), nil) }

// PushRevocations tells data nodes everywhere of revocations, before or
// without a commit: call it on receipt. It never blocks. Hints are kept, and
// repeated to each new watcher, until the revocation is committed.
func (h *Hub) PushRevocations(revocations []registry.Revocation) {
	h.push(nil, h.keepHints(h.own(), revocations))
}

// Announced reports whether a revocation that is not committed here yet was
// pushed to this hub.
func (h *Hub) Announced(kind registry.Kind, id string) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	_, ok := h.hints.get(hintKey{kind, id})
	return ok
}

// own is this node as a peer of itself.
func (h *Hub) own() identity.ID {
	return identity.ID{Cluster: h.cfg.Cluster, Region: h.cfg.Region, Role: identity.RoleControl, Node: h.cfg.Node}
}

// push queues what is to be forwarded.
func (h *Hub) push(verdicts []Verdict, revocations []registry.Revocation) {
	for len(verdicts) > 0 || len(revocations) > 0 {
		b := Batch{Verdicts: verdicts[:min(len(verdicts), maxBatch)], Revocations: revocations[:min(len(revocations), maxBatch)]}
		verdicts, revocations = verdicts[len(b.Verdicts):], revocations[len(b.Revocations):]
		select {
		case h.out <- b:
		default:
			h.metrics.dropped.Inc()
		}
	}
}

// keyShard is the pinned shard of a key, as its id says; "" for unpinned keys.
func keyShard(id string) controlplane.Shard {
	parts := strings.SplitN(id, "_", 3)
	if len(parts) != 3 || parts[1] == controlplane.JurisdictionAny {
		return ""
	}
	return controlplane.ShardPinned(parts[1])
}

// keepVerdicts puts into the table what from may speak of and is not overtaken
// by the key's record, and returns what was news.
func (h *Hub) keepVerdicts(from identity.ID, verdicts []Verdict) (news []Verdict) {
	if len(verdicts) == 0 {
		return nil
	}
	valid := make([]Verdict, 0, len(verdicts))
	h.cfg.Source.View(func(s *registry.State) {
		for _, v := range verdicts {
			if _, revoked := s.Revoked(registry.KindKey, v.Key); revoked {
				continue
			}
			if rec, ok := s.Get(registry.KindKey, v.Key); !ok || rec.Meta.Revision <= v.Revision {
				valid = append(valid, v)
			}
		}
	})
	h.refresh() // who may speak of what
	h.steady(&h.mu, func() {
		for _, v := range valid {
			if old, ok := h.verdicts.get(v.Key); ok && (old.Revision > v.Revision || old == v) {
				continue
			}
			if !h.mayHear(from, keyShard(v.Key)) {
				continue
			}
			h.verdicts.put(v.Key, v)
			news = append(news, v)
		}
		if len(news) > 0 {
			h.notify()
		}
	})
	return news
}

// keepHints is keepVerdicts for revocations. Known ones, committed or not, are no news.
func (h *Hub) keepHints(from identity.ID, revocations []registry.Revocation) (news []registry.Revocation) {
	if len(revocations) == 0 {
		return nil
	}
	valid := make([]registry.Revocation, 0, len(revocations))
	h.cfg.Source.View(func(s *registry.State) {
		for _, r := range revocations {
			if _, done := s.Revoked(r.Kind, r.ID); !done && r.ID != "" {
				valid = append(valid, r)
			}
		}
	})
	h.refresh() // who may speak of what
	h.steady(&h.mu, func() {
		for _, r := range valid {
			key := hintKey{r.Kind, r.ID}
			if _, ok := h.hints.get(key); ok || !h.mayHear(from, r.Shard) {
				continue
			}
			h.hints.put(key, r)
			if r.Kind == registry.KindKey {
				h.verdicts.drop(r.ID)
			}
			news = append(news, r)
		}
		if len(news) > 0 {
			h.notify()
		}
	})
	for _, r := range news {
		h.cfg.Hinted(r)
	}
	return news
}

func (h *Hub) receiveVerdicts(w http.ResponseWriter, r *http.Request, peer identity.ID) error {
	var b Batch
	if err := h.decode(r, &b.Cluster, &b); err != nil {
		return err
	}
	if len(b.Revocations) > 0 {
		return refuse(http.StatusBadRequest, "revocations go to %s", PathRevoke)
	}
	h.metrics.received.WithLabelValues("verdict").Add(float64(len(b.Verdicts)))
	news := h.keepVerdicts(peer, b.Verdicts)
	if peer.Role == identity.RoleData {
		h.push(news, nil)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *Hub) receiveRevocations(w http.ResponseWriter, r *http.Request, peer identity.ID) error {
	if peer.Role != identity.RoleControl {
		return refuse(http.StatusForbidden, "only control nodes announce revocations")
	}
	var b Batch
	if err := h.decode(r, &b.Cluster, &b); err != nil {
		return err
	}
	if len(b.Verdicts) > 0 {
		return refuse(http.StatusBadRequest, "verdicts go to %s", PathVerdicts)
	}
	h.metrics.received.WithLabelValues("revocation").Add(float64(len(b.Revocations)))
	h.keepHints(peer, b.Revocations)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// table answers with all verdicts and hints that peer may hear, as frames.
func (h *Hub) table(rw http.ResponseWriter, r *http.Request, peer identity.ID) error {
	if peer.Role != identity.RoleControl {
		return refuse(http.StatusForbidden, "a data node gets the table with its watch")
	}
	h.refresh() // who may hear what
	rw.Header().Set("Content-Type", "application/x-ringmain-feed")
	w := &watcher{hub: h, peer: peer, req: WatchRequest{Verdicts: true}, started: true}
	w.out = output{w: rw, rc: http.NewResponseController(rw), timeout: h.cfg.WriteTimeout}
	for more := true; more && r.Context().Err() == nil && h.ctx.Err() == nil; {
		p := pulled{}
		h.steady(h.mu.RLocker(), func() { w.pullTables(&p) })
		if err := w.tell(p); err != nil {
			return err
		}
		more = p.more
	}
	return w.out.flush()
}

// inherit fills the empty table of a new hub from the first peer that answers,
// own region first.
func (h *Hub) inherit(ctx context.Context) error {
	for wait := (backoff{base: 100 * time.Millisecond, limit: 30 * time.Second}); ; {
		peers := slices.Clone(h.cfg.Peers())
		rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] }) //nolint:gosec // spreads questions, guards nothing
		slices.SortStableFunc(peers, func(a, b Peer) int {
			switch own := h.cfg.Region; {
			case a.Region == own && b.Region != own:
				return -1
			case a.Region != own && b.Region == own:
				return 1
			}
			return 0
		})
		for _, p := range peers {
			err := h.inheritFrom(ctx, p)
			if err == nil {
				return nil
			}
			h.cfg.Logger.Debug("feed: no verdicts from peer", "peer", p.Node, "err", err)
		}
		if !sleep(ctx, wait.next()) {
			return nil
		}
	}
}

func (h *Hub) inheritFrom(ctx context.Context, p Peer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.Addr+PathVerdicts, nil)
	if err != nil {
		return err
	}
	resp, err := h.cfg.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	from, err := answeredBy(resp, p.Region)
	if err != nil {
		return err
	}
	for r := NewReader(resp.Body); ; {
		f, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		h.receive(from, f)
	}
}

// receive takes a verdict or hint frame from another control node; it is not
// forwarded, since who made it public told everybody.
func (h *Hub) receive(from identity.ID, f *Frame) {
	switch f.Type {
	case FrameVerdicts:
		h.keepVerdicts(from, f.Verdicts)
	case FrameRevocation:
		h.keepHints(from, []registry.Revocation{*f.Revocation})
	}
}

// answeredBy checks an answer's status and that a control node of region gave it.
func answeredBy(resp *http.Response, region string) (identity.ID, error) {
	if resp.TLS == nil {
		return identity.ID{}, errors.New("feeds need mutual TLS")
	}
	id, err := identity.PeerID(*resp.TLS)
	if err != nil {
		return id, err
	}
	if err := identity.AllowControl(region)(id); err != nil {
		return id, err
	}
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // the status says enough without it
		return id, &statusError{id.String(), resp.StatusCode, resp.Header.Get("Retry-After"), strings.TrimSpace(string(text))}
	}
	return id, nil
}

// statusError is an answer other than success.
type statusError struct {
	peer       string
	status     int
	retryAfter string
	text       string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s answers %d: %s", e.peer, e.status, e.text)
}

// PostVerdicts gives verdicts to the control node at addr (host:port) in
// region. A failure is not worth more than a few retries.
func PostVerdicts(ctx context.Context, client *http.Client, region, addr, cluster string, verdicts []Verdict) error {
	for b := range slices.Chunk(verdicts, maxBatch) {
		if err := post(ctx, client, region, addr, PathVerdicts, Batch{Cluster: cluster, Verdicts: b}); err != nil {
			return err
		}
	}
	return nil
}

func post(ctx context.Context, client *http.Client, region, addr, path string, b Batch) error {
	body, err := encMode.Marshal(b)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = answeredBy(resp, region)
	return err
}
