package feed

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
)

// Handler serves /feed/v1/* on a mutual-TLS listener made by identity: who
// asks is read from the connection and nowhere else. Ask for it once the
// source is open: from then on the hub also asks peers for what they know.
func (h *Hub) Handler() http.Handler {
	h.inheritOnce()
	return h.mux
}

func (h *Hub) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathWatch, h.serve(h.watch))
	mux.HandleFunc("POST "+PathVerdicts, h.serve(h.receiveVerdicts))
	mux.HandleFunc("GET "+PathVerdicts, h.serve(h.table))
	mux.HandleFunc("POST "+PathRevoke, h.serve(h.receiveRevocations))
	mux.HandleFunc("POST "+PathHeld, h.serve(h.receiveHeld))
	mux.HandleFunc("GET "+PathPosition, h.serve(h.position))
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
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return refuse(http.StatusBadRequest, "body: %v", err)
	}
	if len(b) > maxBody {
		return refuse(http.StatusRequestEntityTooLarge, "body: at most %d bytes", maxBody)
	}
	if err := decMode.Unmarshal(b, v); err != nil {
		return refuse(http.StatusBadRequest, "body: %v", err)
	}
	if *cluster != h.cfg.Cluster {
		return refuse(http.StatusForbidden, "cluster %q: %v", *cluster, controlplane.ErrWrongCluster)
	}
	return nil
}
