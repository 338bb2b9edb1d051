// Package age knows how old a node's copy of its region's state may be: it asks
// the region's leader where that is, and once the copy has come as far, it is
// as of the question. What follows from an age is the feed's to decide.
package age

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry/ledger"
)

// Config configures a Copy. Nothing may be left out but Every.
type Config struct {
	Cluster string
	Region  string
	Node    string
	Source  interface{ View(func(*ledger.State)) }
	// Leader names the region's leader and its internal address; false if none
	// is known.
	Leader func() (node, addr string, ok bool)
	HTTP   *http.Client  // mutual TLS, control nodes of this region
	Every  time.Duration // how often the leader is asked; 0 = 1 s
}

// Copy is a copy whose age is followed. That shows a lost leader as well as a
// log that is not copied, or not applied, although heartbeats arrive. A leader
// that was cut off takes itself for one for no longer than its lease, so the
// age may be wrong by that much.
type Copy struct {
	cfg Config

	mu      sync.Mutex
	contact time.Time
	asked   time.Time // the question whose answer is to be reached; zero = none
	goal    controlplane.Position
}

// New makes one that has heard nothing. Run it, and serve its Handler.
func New(cfg Config) *Copy {
	cfg.Every = cmp.Or(cfg.Every, time.Second)
	return &Copy{cfg: cfg}
}

// Contact is when the copy was last known to be current; zero = never.
func (c *Copy) Contact() time.Time {
	if c.leads() {
		return time.Now()
	}
	c.reach()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.contact
}

func (c *Copy) leads() bool {
	node, _, ok := c.cfg.Leader()
	return ok && node == c.cfg.Node
}

// Run asks until ctx ends.
func (c *Copy) Run(ctx context.Context) {
	for tick := time.NewTicker(c.cfg.Every); ; {
		c.ask(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// reach notes whether the copy has come as far as the leader was when asked.
func (c *Copy) reach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked.IsZero() {
		return
	}
	reached := true
	c.cfg.Source.View(func(s *ledger.State) {
		own := s.Position()
		for shard, point := range c.goal {
			reached = reached && own[shard].Compare(point) >= 0
		}
	})
	if reached {
		c.contact, c.asked, c.goal = c.asked, time.Time{}, nil
	}
}

// ask asks the leader, unless an earlier answer is not reached yet.
func (c *Copy) ask(ctx context.Context) {
	c.reach()
	c.mu.Lock()
	waits := !c.asked.IsZero()
	c.mu.Unlock()
	node, addr, ok := c.cfg.Leader()
	now := time.Now()
	switch {
	case !ok || waits:
		return
	case node == c.cfg.Node:
		c.mu.Lock()
		c.contact = now
		c.mu.Unlock()
		return
	}
	goal, err := c.position(ctx, node, addr)
	if err != nil {
		return // asked again; the age says what it means
	}
	c.mu.Lock()
	c.asked, c.goal = now, goal
	c.mu.Unlock()
	c.reach()
}

func (c *Copy) position(ctx context.Context, node, addr string) (at controlplane.Position, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	id, answer, err := feed.Get(ctx, c.cfg.HTTP, c.cfg.Region, addr, feed.PathPosition)
	var no *feed.StatusError
	if errors.As(err, &no) && no.Status == http.StatusNotFound {
		return nil, nil // an earlier release: that it answers has to do
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Close() }()
	if id.Node != node {
		return nil, fmt.Errorf("%s answers instead of %s", id, node)
	}
	b, err := io.ReadAll(io.LimitReader(answer, feed.MaxBody))
	if err != nil {
		return nil, err
	}
	return at, feed.Unmarshal(b, &at)
}

// Handler serves feed.PathPosition on a mutual-TLS listener made by identity:
// it answers a follower that wants to know how far behind it is.
func (c *Copy) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.mayAsk(r); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		if !c.leads() {
			http.Error(w, "this node does not lead", http.StatusMisdirectedRequest)
			return
		}
		var at controlplane.Position
		c.cfg.Source.View(func(s *ledger.State) { at = s.Position() })
		b, err := feed.Marshal(at)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(b) // who does not get it asks again
	})
}

// mayAsk lets the control nodes of this region ask.
func (c *Copy) mayAsk(r *http.Request) error {
	if r.TLS == nil {
		return errors.New("feeds need mutual TLS")
	}
	id, err := identity.PeerID(*r.TLS)
	switch {
	case err != nil:
		return err
	case id.Cluster != c.cfg.Cluster:
		return fmt.Errorf("cluster %s: %w", id.Cluster, controlplane.ErrWrongCluster)
	}
	return identity.AllowControl(c.cfg.Region)(id)
}
