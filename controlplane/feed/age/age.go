package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// PathPosition answers a control node of the own region with the position of
// the state, if the answering node leads; 421 if it does not.
const PathPosition = "/feed/v1/position"

// AbreastConfig configures an Abreast. Nothing may be left out but Every.
type AbreastConfig struct {
	Region string
	Node   string
	Source Source
	// Leader names the region's leader and its internal address; false if none
	// is known.
	Leader func() (node, addr string, ok bool)
	HTTP   *http.Client  // mutual TLS, control nodes of this region
	Every  time.Duration // how often the leader is asked; 0 = 1 s
}

// Abreast knows how old a copy of the state may be: it asks the leader for its
// position, and once the copy has reached that, the copy is as of the question.
// So it shows a lost leader as well as a log that is not copied, or not applied,
// although heartbeats arrive. A leader that was cut off takes itself for one for
// no longer than its lease, so the age may be wrong by that much.
type Abreast struct {
	cfg AbreastConfig

	mu      sync.Mutex
	contact time.Time
	asked   time.Time // the question whose answer is to be reached; zero = none
	goal    controlplane.Position
}

// NewAbreast makes one that has heard nothing. Run it.
func NewAbreast(cfg AbreastConfig) *Abreast {
	def(&cfg.Every, time.Second)
	return &Abreast{cfg: cfg}
}

// Contact is when the copy was last known to be current; zero = never.
func (a *Abreast) Contact() time.Time {
	if node, _, ok := a.cfg.Leader(); ok && node == a.cfg.Node {
		return time.Now()
	}
	a.reach()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.contact
}

// Run asks until ctx ends.
func (a *Abreast) Run(ctx context.Context) {
	for tick := time.NewTicker(a.cfg.Every); ; {
		a.ask(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// reach notes whether the copy has come as far as the leader was when asked.
func (a *Abreast) reach() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked.IsZero() {
		return
	}
	reached := true
	a.cfg.Source.View(func(s *registry.State) {
		own := s.Position()
		for shard, point := range a.goal {
			reached = reached && own[shard].Compare(point) >= 0
		}
	})
	if reached {
		a.contact, a.asked, a.goal = a.asked, time.Time{}, nil
	}
}

// ask asks the leader, unless an earlier answer is not reached yet.
func (a *Abreast) ask(ctx context.Context) {
	a.reach()
	a.mu.Lock()
	waits := !a.asked.IsZero()
	a.mu.Unlock()
	node, addr, ok := a.cfg.Leader()
	switch {
	case !ok || waits:
		return
	case node == a.cfg.Node:
		a.mu.Lock()
		a.contact = time.Now()
		a.mu.Unlock()
		return
	}
	now := time.Now()
	goal, err := a.position(ctx, node, addr)
	if err != nil {
		return // asked again; the age says what it means
	}
	a.mu.Lock()
	a.asked, a.goal = now, goal
	a.mu.Unlock()
	a.reach()
}

func (a *Abreast) position(ctx context.Context, node, addr string) (controlplane.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+PathPosition, nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.cfg.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	id, err := answeredBy(resp, a.cfg.Region)
	var no *statusError
	if errors.As(err, &no) && no.status == http.StatusNotFound {
		return nil, nil // an earlier release: that it answers has to do
	}
	if err == nil && id.Node != node {
		err = fmt.Errorf("%s answers instead of %s", id, node)
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, err
	}
	var at controlplane.Position
	return at, decMode.Unmarshal(b, &at)
}

// position answers a follower that wants to know how far behind it is.
func (h *Hub) position(w http.ResponseWriter, _ *http.Request, peer identity.ID) error {
	if peer.Role != identity.RoleControl || peer.Region != h.cfg.Region {
		return refuse(http.StatusForbidden, "%s: the control nodes of a region ask their own leader", peer)
	}
	if h.cfg.Leads == nil || !h.cfg.Leads() {
		return refuse(http.StatusMisdirectedRequest, "this node does not lead")
	}
	var at controlplane.Position
	h.cfg.Source.View(func(s *registry.State) { at = s.Position() })
	b, err := encMode.Marshal(at)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}
