package dataplane

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/dataplane/breaker"
)

// metrics are the worker's own. Labels name endpoints, codes, upstreams and
// circuits; never a key, an org or a user.
type metrics struct {
	registerer prometheus.Registerer

	requests   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	firstToken *prometheus.HistogramVec
	tokens     *prometheus.CounterVec
	attempts   *prometheus.CounterVec
	breakers   *prometheus.GaugeVec
	inflight   prometheus.Gauge
	bcrypt     *prometheus.CounterVec

	tokensIn, tokensOut prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	seconds := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: seconds}, []string{"endpoint"})
	}
	m := &metrics{
		registerer: r,
		requests:   counter("ringmain_requests_total", "Answered requests; code is empty for good answers, status 499 means the client left first.", "endpoint", "code", "status"),
		duration:   histogram("ringmain_request_duration_seconds", "From a request's head to its answer's end."),
		firstToken: histogram("ringmain_time_to_first_token_seconds", "From a request's head to the first event, or the whole plain answer."),
		tokens:     counter("ringmain_tokens_total", "Tokens metered, in prompts and in answers.", "direction"),
		attempts:   counter("ringmain_upstream_attempts_total", "Attempts at upstreams and, as peer/<region>, at other regions' nodes.", "upstream", "outcome"),
		breakers:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ringmain_breaker_state", Help: "0 closed, 1 half-open, 2 open."}, []string{"name"}),
		inflight:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "ringmain_inflight", Help: "Requests under way."}),
		bcrypt:     counter("ringmain_bcrypt_total", "Keys checked with bcrypt: good, bad, error.", "result"),
	}
	m.tokensIn, m.tokensOut = m.tokens.WithLabelValues("in"), m.tokens.WithLabelValues("out")
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range m.collectors() {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.duration, m.firstToken, m.tokens, m.attempts, m.breakers, m.inflight, m.bcrypt}
}

// close takes the metrics out again, so that another worker may register its own.
func (m *metrics) close() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors() {
		m.registerer.Unregister(c)
	}
}

func (m *metrics) bcrypted(result string) { m.bcrypt.WithLabelValues(result).Inc() }

func (m *metrics) breaker(key breaker.Key, state string) {
	value := map[string]float64{"closed": 0, "half-open": 1, "open": 2}[state]
	m.breakers.WithLabelValues(key.String()).Set(value)
}

func (m *metrics) attempt(upstream string, o breaker.Outcome) {
	m.attempts.WithLabelValues(upstream, o.String()).Inc()
}

func (m *metrics) answered(endpoint, code string, status int, took time.Duration) {
	m.requests.WithLabelValues(endpoint, code, strconv.Itoa(status)).Inc()
	m.duration.WithLabelValues(endpoint).Observe(took.Seconds())
}
