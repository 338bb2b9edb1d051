package hub

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
)

// Handler serves /feed/v1/* on a mutual-TLS listener made by identity: who
// asks is read from the connection and nowhere else. Ask for it once the
// source is open: from then on the hub also asks peers for what they know.
func (h *Hub) Handler() http.Handler {
	h.board.Inherit()
	return h.mux
}

func (h *Hub) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+feed.PathWatch, h.serve(h.watch))
	mux.HandleFunc("POST "+feed.PathVerdicts, h.serve(h.told(func(b feed.Batch) feed.Batch { return feed.Batch{Verdicts: b.Verdicts} })))
	mux.HandleFunc("GET "+feed.PathVerdicts, h.serve(h.table))
	mux.HandleFunc("POST "+feed.PathRevoke, h.serve(h.told(func(b feed.Batch) feed.Batch { return feed.Batch{Revocations: b.Revocations} })))
	mux.HandleFunc("POST "+feed.PathHeld, h.serve(h.told(func(b feed.Batch) feed.Batch { return feed.Batch{Held: b.Held} })))
	return mux
}

// refusalError is an answer other than 200. Without later, who was refused
// decides when to ask again, and whom.
type refusalError struct {
	status int
	text   string
	later  bool // not within the next second or so
}

func (r *refusalError) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusalError{status: status, text: fmt.Sprintf(format, args...)}
}

func refuseForNow(text string) error {
	return &refusalError{http.StatusServiceUnavailable, text, true}
}

func (h *Hub) serve(handle func(http.ResponseWriter, *http.Request, identity.ID) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := refuseForNow("this node is closing: ask another")
		if h.enter() {
			defer h.serving.Done()
			var peer identity.ID
			if peer, err = h.peer(r); err == nil {
				err = handle(w, r, peer)
			}
		}
		var no *refusalError
		switch {
		case err == nil:
		case errors.As(err, &no):
			if no.later {
				w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(3))) //nolint:gosec // spreads retries, guards nothing
			}
			http.Error(w, no.text, no.status)
		default:
			h.cfg.Logger.Debug("feed: a request ended early", "path", r.URL.Path, "peer", r.RemoteAddr, "err", err)
		}
	}
}

// peer says who asks, and refuses whoever has no business here at all.
func (h *Hub) peer(r *http.Request) (identity.ID, error) {
	if r.TLS == nil {
		return identity.ID{}, refuse(http.StatusForbidden, "feeds need mutual TLS")
	}
	id, err := identity.PeerID(*r.TLS)
	if err != nil {
		return identity.ID{}, refuse(http.StatusForbidden, "%v", err)
	}
	if id.Cluster != h.cfg.Cluster {
		return identity.ID{}, refuse(http.StatusForbidden, "cluster %s: %v", id.Cluster, controlplane.ErrWrongCluster)
	}
	if id.Role != identity.RoleControl && (id.Role != identity.RoleData || id.Region != h.cfg.Region) {
		return identity.ID{}, refuse(http.StatusForbidden, "%s: a data node asks the control nodes of its own region", id)
	}
	return id, nil
}

// decode reads a request's body into v.
func (h *Hub) decode(r *http.Request, cluster *string, v any) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, feed.MaxBody+1))
	if err != nil {
		return refuse(http.StatusBadRequest, "body: %v", err)
	}
	if len(b) > feed.MaxBody {
		return refuse(http.StatusRequestEntityTooLarge, "body: at most %d bytes", feed.MaxBody)
	}
	if err := feed.Unmarshal(b, v); err != nil {
		return refuse(http.StatusBadRequest, "body: %v", err)
	}
	if *cluster != h.cfg.Cluster {
		return refuse(http.StatusForbidden, "cluster %q: %v", *cluster, controlplane.ErrWrongCluster)
	}
	return nil
}

// told takes what a path is for, and refuses a body with more than that.
func (h *Hub) told(only func(feed.Batch) feed.Batch) func(http.ResponseWriter, *http.Request, identity.ID) error {
	return func(w http.ResponseWriter, r *http.Request, peer identity.ID) error {
		if r.URL.Path == feed.PathRevoke && peer.Role != identity.RoleControl {
			return refuse(http.StatusForbidden, "only control nodes announce revocations")
		}
		var b feed.Batch
		if err := h.decode(r, &b.Cluster, &b); err != nil {
			return err
		}
		part := only(b)
		if len(part.Verdicts)+len(part.Revocations)+len(part.Held) != len(b.Verdicts)+len(b.Revocations)+len(b.Held) {
			return refuse(http.StatusBadRequest, "verdicts go to %s, revocations to %s, what is held to %s", feed.PathVerdicts, feed.PathRevoke, feed.PathHeld)
		}
		h.board.Keep(peer, part)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

// table answers with all verdicts and hints that peer may hear, as frames.
func (h *Hub) table(rw http.ResponseWriter, r *http.Request, peer identity.ID) error {
	if peer.Role != identity.RoleControl {
		return refuse(http.StatusForbidden, "a data node gets the table with its watch")
	}
	rw.Header().Set("Content-Type", "application/x-ringmain-feed")
	w := &watcher{hub: h, peer: peer, req: feed.WatchRequest{Verdicts: true}}
	w.out = output{w: rw, rc: http.NewResponseController(rw), timeout: h.cfg.WriteTimeout}
	for more := true; more && r.Context().Err() == nil && h.ctx.Err() == nil; {
		var err error
		if more, err = w.tell(); err != nil {
			return err
		}
	}
	return w.out.flush()
}
