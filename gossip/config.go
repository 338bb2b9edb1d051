package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// Tunables may differ between nodes and change at a restart. Zero fields take
// the defaults of DESIGN.md's table.
type Tunables struct {
	LAN, WAN        Timing
	ClaimInterval   time.Duration // how often an unchanged claim is repeated; well below the 15 s it counts
	StateInterval   time.Duration // least time between two digests
	FiguresInterval time.Duration // the same where only figures moved; grows with the cluster
}

// Timing is how one group detects failures and spreads news.
type Timing struct {
	ProbeInterval   time.Duration
	ProbeTimeout    time.Duration // under half the interval, or indirect answers come too late and slow the prober down
	SuspicionMult   int           // probe intervals a suspect has to answer
	SuspicionMax    int           // times that, while nobody else confirms the suspicion
	AwarenessMax    int           // how many times slower a node that sees itself as sick may probe
	GossipInterval  time.Duration
	PushPull        time.Duration // full exchange with one random member
	Rejoin          time.Duration // how often missing nodes are tried
	StreamTimeout   time.Duration // of one exchange
	GossipToTheDead time.Duration // how long a dead node is still told, so that it can object
}

func (t Tunables) withDefaults() Tunables {
	fill(&t.ClaimInterval, 5*time.Second)
	fill(&t.StateInterval, 100*time.Millisecond)
	fill(&t.FiguresInterval, time.Second)
	t.LAN = t.LAN.withDefaults(Timing{
		ProbeInterval: 250 * time.Millisecond, ProbeTimeout: 100 * time.Millisecond,
		SuspicionMult: 3, SuspicionMax: 3, AwarenessMax: 3,
		GossipInterval: 100 * time.Millisecond, PushPull: 15 * time.Second, Rejoin: 10 * time.Second,
		StreamTimeout: 2 * time.Second, GossipToTheDead: 15 * time.Second,
	})
	t.WAN = t.WAN.withDefaults(Timing{
		ProbeInterval: time.Second, ProbeTimeout: 450 * time.Millisecond,
		SuspicionMult: 3, SuspicionMax: 3, AwarenessMax: 2,
		GossipInterval: 200 * time.Millisecond, PushPull: 30 * time.Second, Rejoin: 10 * time.Second,
		StreamTimeout: 5 * time.Second, GossipToTheDead: 60 * time.Second,
	})
	return t
}

func (t Timing) withDefaults(d Timing) Timing {
	fill(&t.ProbeInterval, d.ProbeInterval)
	fill(&t.ProbeTimeout, d.ProbeTimeout)
	fill(&t.SuspicionMult, d.SuspicionMult)
	fill(&t.SuspicionMax, d.SuspicionMax)
	fill(&t.AwarenessMax, d.AwarenessMax)
	fill(&t.GossipInterval, d.GossipInterval)
	fill(&t.PushPull, d.PushPull)
	fill(&t.Rejoin, d.Rejoin)
	fill(&t.StreamTimeout, d.StreamTimeout)
	fill(&t.GossipToTheDead, d.GossipToTheDead)
	return t
}

func fill[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

func (t Timing) apply(c *memberlist.Config) {
	c.ProbeInterval, c.ProbeTimeout = t.ProbeInterval, t.ProbeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult, c.AwarenessMaxMultiplier = t.SuspicionMult, t.SuspicionMax, t.AwarenessMax
	c.GossipInterval, c.PushPullInterval = t.GossipInterval, t.PushPull
	c.TCPTimeout, c.GossipToTheDeadTime = t.StreamTimeout, t.GossipToTheDead
}

func (c *Config) check() error {
	for field, text := range map[string]string{"Cluster": c.Cluster, "Region": c.Region, "Node": c.Node, "Role": c.Role} {
		if text == "" || len(text) > 63 {
			return fmt.Errorf("gossip: %s %q: use a name of 1 to 63 bytes", field, text)
		}
	}
	if len(c.LANKey) != 32 || len(c.WANKey) != 32 {
		return fmt.Errorf("gossip: the keys have %d and %d bytes: both need 32", len(c.LANKey), len(c.WANKey))
	}
	if c.Digest.Incarnation == 0 {
		return errors.New("gossip: the digest needs an incarnation: the start time in Unix milliseconds")
	}
	return nil
}

// listen opens the group's sockets.
func (c *Config) listen(ctx context.Context, g group, bind string, logger *log.Logger) (memberlist.NodeAwareTransport, error) {
	if c.transport != nil {
		return c.transport(g), nil
	}
	addr, err := netip.ParseAddrPort(bind)
	if err != nil {
		return nil, fmt.Errorf("gossip: %s address %q: use IP:port", g, bind)
	}
	var t *memberlist.NetTransport
	// A port the kernel picks for TCP may be in use for UDP: try another.
	for range 10 {
		t, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{addr.Addr().String()}, BindPort: int(addr.Port()), Logger: logger,
		})
		if err == nil {
			return &sockets{NetTransport: t, ctx: ctx}, nil
		}
		if addr.Port() != 0 {
			break
		}
	}
	return nil, fmt.Errorf("gossip: listen for the %s group on %s (choose another address, or end what uses it): %w", g, bind, err)
}

// sockets is memberlist's own transport, but that its outgoing connections end
// with ctx, so that Close waits for no peer.
type sockets struct {
	*memberlist.NetTransport
	ctx context.Context
}

func (s *sockets) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(s.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	return &dialed{Conn: conn, stop: context.AfterFunc(s.ctx, func() { _ = conn.Close() })}, nil
}

type dialed struct {
	net.Conn
	stop func() bool
}

func (d *dialed) Close() error {
	d.stop()
	return d.Conn.Close()
}

func splitAdvertise(addr string) (ip string, port int, err error) {
	if addr == "" {
		return "", 0, nil
	}
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("gossip: advertised address %q: use IP:port", addr)
	}
	return a.Addr().String(), int(a.Port()), nil
}
