package keeper

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"ringmain/dataplane/link"
)

// stats are the keeper's own counts.
type stats struct {
	restarts    atomic.Uint64
	diskErrors  atomic.Uint64
	watchEnds   atomic.Uint64
	resyncs     atomic.Uint64
	heardWorker atomic.Int64
	confinement atomic.Pointer[link.Confinement]

	mu       sync.Mutex
	asked    uint64
	answers  map[uint64]chan []byte
	families []prometheus.Collector
}

func (s *stats) confined(c link.Confinement) { s.confinement.Store(&c) }

// register makes the families that read the keeper when they are asked for.
func (s *stats) register(k *Keeper) error {
	s.confinement.CompareAndSwap(nil, new(link.Confinement))
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	counter := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value)
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	s.families = []prometheus.Collector{
		gauge("ringmain_data_position_age_seconds", "Time since the control plane's clock up to which this node's state is known to be current; +Inf before the first word.", k.age),
		gauge("ringmain_lkg_generation", "Generation of the last known good state in use; 0 = none.", func() float64 { return float64(k.disk.Stats().Generation) }),
		gauge("ringmain_lkg_delta_bytes", "Bytes of deltas on top of that generation.", func() float64 { return float64(k.disk.Stats().DeltaBytes) }),
		gauge("ringmain_lkg_failing", "1 while the disk takes no state.", func() float64 { return truth(k.disk.Failing() != nil) }),
		gauge("ringmain_lkg_rolled_back", "1 if the state found at start was older than the node had had.", func() float64 { return truth(k.disk.Stats().RolledBack) }),
		gauge("ringmain_safety_revocations", "Revocations in the safety file.", func() float64 { return float64(k.disk.Stats().Revocations) }),
		gauge("ringmain_safety_unknown", "1 while the safety file could not be read and no full state arrived since: keys are refused with 503.", func() float64 { return truth(k.flow.unknown.Load()) }),
		gauge("ringmain_trial_suspects", "Changes of the state that a worker died on once and did not survive since.", func() float64 { n, _ := k.trials.Counts(); return float64(n) }),
		gauge("ringmain_trial_isolated", "Changes of the state that are left out on this node because processes died on them: see `ringmain rollout`.", func() float64 { _, n := k.trials.Counts(); return float64(n) }),
		gauge("ringmain_trial_skipped_generations", "Generations of the last known good state on disk that are not read because keepers died on them.", func() float64 { return float64(k.trials.Skipped()) }),
		gauge("ringmain_rollout_waiting", "Frames of the configuration that wait until other data nodes have shown that they live with it.", k.waiting),
		gauge("ringmain_spool_bytes", "Bytes of metadata records on disk.", func() float64 { return float64(k.spool.Stats().Bytes) }),
		gauge("ringmain_spool_waiting_bytes", "Bytes of metadata records that are not on disk yet.", func() float64 { return float64(k.spool.Stats().Waiting) }),
		gauge("ringmain_spool_oldest_seconds", "Age of the oldest metadata records on disk, counted from when their segment was begun; 0 = there are none.", func() float64 {
			if oldest := k.spool.Stats().Oldest; !oldest.IsZero() {
				return max(0, time.Since(oldest).Seconds())
			}
			return 0
		}),
		gauge("ringmain_spool_failing", "1 while metadata records cannot be written.", func() float64 { return truth(k.spool.Stats().Failing != nil) }),
		gauge("ringmain_receipts_bytes", "Bytes of signed receipts on disk.", func() float64 { return float64(k.proofs.Stats().Bytes) }),
		gauge("ringmain_receipts_waiting_bytes", "Bytes of signed receipts that are not on disk yet.", func() float64 { return float64(k.proofs.Stats().Waiting) }),
		gauge("ringmain_receipts_failing", "1 while signed receipts cannot be written.", func() float64 { return truth(k.proofs.Stats().Failing != nil) }),
		gauge("ringmain_receipts_damaged", "Batches of receipts found damaged on disk at start, or when they were asked for.", func() float64 { return float64(k.proofs.Stats().Damaged) }),
		gauge("ringmain_worker_up", "1 while a worker runs and has spoken within 3 s.", func() float64 {
			return truth(k.WorkerPID() != 0 && time.Since(time.UnixMilli(s.heardWorker.Load())) < silence)
		}),
		counter("ringmain_worker_restarts_total", "Workers that ended and were replaced.", func() float64 { return float64(s.restarts.Load()) }),
		counter("ringmain_lkg_write_errors_total", "Times the disk took no state.", func() float64 { return float64(s.diskErrors.Load()) }),
		counter("ringmain_feed_halts_total", "Times the feed ended with an entry this version does not know.", func() float64 { return float64(s.watchEnds.Load()) }),
		counter("ringmain_worker_resyncs_total", "Frames that the worker could not apply.", func() float64 { return float64(s.resyncs.Load()) }),
	}
	for _, kind := range []string{"generation", "delta", "safety"} {
		s.families = append(s.families, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ringmain_lkg_damaged_files", Help: "Files found damaged at start.", ConstLabels: prometheus.Labels{"file": kind},
		}, func() float64 { return float64(k.disk.Stats().Damage[kind]) }))
	}
	for control, holds := range map[string]func(*link.Confinement) bool{
		"landlock":      func(c *link.Confinement) bool { return c.Landlock > 0 },
		"no_file_write": func(c *link.Confinement) bool { return c.NoFileWrite },
		"no_dump":       func(c *link.Confinement) bool { return c.NoDump },
		"no_swap":       func(c *link.Confinement) bool { return c.NoSwap },
	} {
		s.families = append(s.families, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ringmain_confinement", Help: "1 if the control holds for the worker, as it measured.",
			ConstLabels: prometheus.Labels{"control": control},
		}, func() float64 { return truth(holds(s.confinement.Load())) }))
	}
	if k.cfg.Registerer == nil {
		return nil
	}
	for _, c := range s.families {
		if err := k.cfg.Registerer.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

func (s *stats) unregister(k *Keeper) {
	if k.cfg.Registerer == nil {
		return
	}
	for _, c := range s.families {
		k.cfg.Registerer.Unregister(c)
	}
}

// age is how old the state may be, by the control plane's clock.
func (k *Keeper) age() float64 {
	at := k.flow.asOf.Load()
	if at == 0 {
		return math.Inf(1)
	}
	return max(0, time.Since(time.UnixMilli(at)).Seconds())
}

// answered hands a worker's metrics to whoever asked.
func (s *stats) answered(seq uint64, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.answers[seq]; c != nil {
		c <- b // has room for its one answer
		delete(s.answers, seq)
	}
}

const metricsTimeout = time.Second

// workerFamilies asks the worker for its metrics. Without an answer in time it
// returns none: the keeper's own are still worth showing.
func (k *Keeper) workerFamilies() ([]*dto.MetricFamily, error) {
	w := k.current()
	if w == nil {
		return nil, nil
	}
	s := &k.stats
	answer := make(chan []byte, 1)
	s.mu.Lock()
	s.asked++
	seq := s.asked
	if s.answers == nil {
		s.answers = make(map[uint64]chan []byte)
	}
	s.answers[seq] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.answers, seq)
		s.mu.Unlock()
	}()
	if !w.post(&link.Message{Type: link.TypeMetricsAsk, Seq: seq}) {
		return nil, nil
	}
	timer := time.NewTimer(metricsTimeout)
	defer timer.Stop()
	select {
	case b := <-answer:
		return decodeFamilies(b)
	case <-timer.C:
		return nil, nil
	}
}

// decodeFamilies reads delimited families. Those of the Go runtime and of the
// process are named as the worker's, since the keeper has its own.
func decodeFamilies(b []byte) ([]*dto.MetricFamily, error) {
	var families []*dto.MetricFamily
	for len(b) > 0 {
		// The decoder makes room for whatever length it reads.
		size, head := binary.Uvarint(b)
		if head <= 0 || size > uint64(len(b)-head) {
			return families, errors.New("metrics of the worker: a family is cut short")
		}
		one := b[:head+int(size)]
		b = b[len(one):]
		f := new(dto.MetricFamily)
		if err := expfmt.NewDecoder(bytes.NewReader(one), expfmt.NewFormat(expfmt.TypeProtoDelim)).Decode(f); err != nil {
			return families, fmt.Errorf("metrics of the worker: %w", err)
		}
		if strings.HasPrefix(f.GetName(), "go_") || strings.HasPrefix(f.GetName(), "process_") {
			name := "ringmain_worker_" + f.GetName()
			f.Name = &name
		}
		families = append(families, f)
	}
	return families, nil
}

// MetricsHandler serves the families of worker and keeper together. It must
// not be reachable from outside the host.
func (k *Keeper) MetricsHandler() http.Handler {
	gatherers := prometheus.Gatherers{prometheus.GathererFunc(k.workerFamilies)}
	if k.cfg.Gatherer != nil {
		gatherers = append(gatherers, k.cfg.Gatherer)
	}
	return promhttp.HandlerFor(gatherers, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// serveMetrics answers /metrics until ctx ends.
func (k *Keeper) serveMetrics(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", k.MetricsHandler())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // scrapes are not waited for
	defer stop()
	if err := server.Serve(k.cfg.Metrics); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
