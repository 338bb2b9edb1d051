package quorum

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
)

func TestMetrics(t *testing.T) {
	dir := fastDir(t)
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		c := newCluster(t, dir, 1, newMemNet())
		c.adjust = func(cfg *Config) { cfg.Registerer = registry }
		c.startAll()
		nd := c.leader()
		for i := range 5 {
			c.mustPropose(nd, create(orgID(i), "a"))
		}
		// The image follows within 100 ms.
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if image, applied := nd.q.machine.image.Mark().Applied, nd.q.Stats().Applied; image != applied {
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

func TestRaftLoggerRepeatsSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newRaftLogger(slog.New(slog.NewTextHandler(&out, nil)))
		for range 40 {
			l.With("a", 1).Error("failed to heartbeat to", "peer", hclog.Fmt("%s", "c2"), "error", errors.New("refused"))
			l.Info("of no interest")
			time.Sleep(250 * time.Millisecond)
		}
		if n := strings.Count(out.String(), "failed to heartbeat to"); n != 2 {
			t.Errorf("in 10 s it was said %d times:\n%s", n, out.String())
		}
		if !strings.Contains(out.String(), "peer=c2") || strings.Contains(out.String(), "interest") {
			t.Errorf("it said:\n%s", out.String())
		}
	})
}
