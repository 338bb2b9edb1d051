package quorum

import (
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/internal/testkit/diskkit"
	"ringmain/internal/testkit/memnet"
	"ringmain/internal/testkit/synckit"
)

func TestMetrics(t *testing.T) {
	dir := diskkit.Fast(t)
	synckit.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		c := newCluster(t, dir, 1)
		c.adjust = func(cfg *Config) { cfg.Registerer = registry }
		c.startAll()
		nd := c.leader()
		for i := range 5 {
			c.mustPropose(nd, create(orgID(i), "a"))
		}
		// The image follows within 100 ms.
		time.Sleep(100 * time.Millisecond)
		synckit.Wait()
		if image, applied := nd.q.machine.Saved().Applied, nd.q.Stats().Applied; image != applied {
			t.Errorf("100 ms after the last write the image is at %d of %d", image, applied)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]float64)
		for _, f := range families {
			m := f.GetMetric()[0]
			got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
		stats := nd.q.Stats()
		for name, want := range map[string]float64{
			"ringmain_raft_leader":              1,
			"ringmain_raft_term":                float64(stats.Term),
			"ringmain_raft_applied_index":       float64(stats.Applied),
			"ringmain_raft_last_index":          float64(stats.LastIndex),
			"ringmain_raft_commit_seconds":      5,
			"ringmain_raft_elections_total":     1,
			"ringmain_raft_candidacies_total":   1,
			"ringmain_raft_image_flush_seconds": got["ringmain_raft_image_flush_seconds"],
		} {
			if value, ok := got[name]; !ok || value != want {
				t.Errorf("%s is %v, want %v", name, value, want)
			}
		}
		if got["ringmain_raft_image_flush_seconds"] < 1 {
			t.Error("no flush was timed")
		}
		c.stopAll()
		c.startAll() // registers again
		c.stopAll()
	})
}

// TestRefusedCandidacyIsNoElection: a follower that does not hear a leader that the
// others hear asks them in vain, and is counted apart.
func TestRefusedCandidacyIsNoElection(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		registries := make(map[string]*prometheus.Registry)
		c.adjust = func(cfg *Config) {
			registries[cfg.Node] = prometheus.NewRegistry()
			cfg.Registerer = registries[cfg.Node]
		}
		sum := func(name string) (all float64) {
			for _, r := range registries {
				families, err := r.Gather()
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range families {
					if f.GetName() == name {
						all += f.GetMetric()[0].GetCounter().GetValue()
					}
				}
			}
			return all
		}
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		term, elections, candidacies := lead.q.Stats().Term, sum("ringmain_raft_elections_total"), sum("ringmain_raft_candidacies_total")
		deaf := c.nodes[slices.IndexFunc(c.nodes, func(nd *node) bool { return nd != lead })]
		const times = 5
		for range times {
			c.net.Set(lead.addr, deaf.addr, memnet.Dark)
			for range 4 {
				c.mustPropose(lead, put(orgID(1), "meanwhile"))
				time.Sleep(time.Second)
			}
			c.net.Set(lead.addr, deaf.addr, memnet.Open)
			time.Sleep(4 * time.Second)
		}
		c.converged()
		if s := lead.q.Stats(); s.Term != term || !s.Leading {
			t.Errorf("it went from term %d to %d, leading: %v", term, s.Term, s.Leading)
		}
		if got := sum("ringmain_raft_elections_total") - elections; got != 0 {
			t.Errorf("%v elections", got)
		}
		if got := sum("ringmain_raft_candidacies_total") - candidacies; got < times {
			t.Errorf("%v candidacies of a node that was deaf %d times", got, times)
		}
	})
}
