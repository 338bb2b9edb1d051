package receipt

import (
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// stats are the log's counts.
type stats struct {
	leaves, dropped, lost, checkpoints atomic.Uint64

	families []prometheus.Collector
}

func (s *stats) register(l *Log) error {
	counter := func(name, help string, v *atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(v.Load()) })
	}
	s.families = []prometheus.Collector{
		counter("ringmain_receipts_total", "Receipts taken for a batch.", &s.leaves),
		counter("ringmain_receipts_dropped_total", "Receipts that found no room, or could not be signed.", &s.dropped),
		counter("ringmain_receipts_unkept_total", "Receipts that left memory before the keeper had them on disk: they cannot be fetched any more.", &s.lost),
		counter("ringmain_receipt_checkpoints_total", "Checkpoints signed.", &s.checkpoints),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ringmain_receipt_memory_bytes", Help: "Bytes of receipts held in memory."}, func() float64 {
			l.mu.Lock()
			defer l.mu.Unlock()
			return float64(l.memory)
		}),
	}
	if l.cfg.Registerer == nil {
		return nil
	}
	for _, c := range s.families {
		if err := l.cfg.Registerer.Register(c); err != nil {
			return fmt.Errorf("receipt: register metrics: %w", err)
		}
	}
	return nil
}

func (s *stats) unregister(l *Log) {
	if l.cfg.Registerer == nil {
		return
	}
	for _, c := range s.families {
		l.cfg.Registerer.Unregister(c)
	}
}
