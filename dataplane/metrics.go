package dataplane

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/dataplane/breaker"
)

// metrics are the process's own; those of requests are the exchange's.
type metrics struct {
	registerer prometheus.Registerer // nil = nobody reads them
	collectors []prometheus.Collector

	breakers *prometheus.GaugeVec
	bcrypt   *prometheus.CounterVec
	confined *prometheus.GaugeVec
	security *prometheus.GaugeVec // without labels: absent where there is no security.txt
}

// withdrawn says how much the state does not let be called.
func (w *Worker) withdrawn() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ringmain_upstreams_withdrawn", Help: "Upstreams that are not called, because their credential is revoked.",
	}, func() float64 { return float64(w.cfg.Store.View().Withdrawn()) })
}

// newMetrics registers the process's metrics, and others.
func newMetrics(r prometheus.Registerer, others ...prometheus.Collector) (*metrics, error) {
	m := &metrics{
		registerer: r,
		breakers:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ringmain_breaker_state", Help: "0 closed, 1 half-open, 2 open."}, []string{"name"}),
		bcrypt:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ringmain_bcrypt_total", Help: "Keys checked with bcrypt: good, bad, error."}, []string{"result"}),
		confined:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ringmain_confined", Help: "Whether a control that confines this worker is in force; zero retention needs all of them."}, []string{"control"}),
		security:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ringmain_security_txt_expires", Help: "When the published security.txt expires, in Unix seconds."}, nil),
	}
	m.collectors = append(others, m.breakers, m.bcrypt, m.confined, m.security)
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range m.collectors {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

// close takes the metrics out again, so that another worker may register its own.
func (m *metrics) close() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
}

func (m *metrics) bcrypted(result string) { m.bcrypt.WithLabelValues(result).Inc() }

func (m *metrics) breaker(key breaker.Key, state string) {
	value := map[string]float64{"closed": 0, "half-open": 1, "open": 2}[state]
	m.breakers.WithLabelValues(key.String()).Set(value)
}
