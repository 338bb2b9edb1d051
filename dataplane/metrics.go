package dataplane

import (
	"errors"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
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
	load       prometheus.Collector
	certs      prometheus.Collector
	state      prometheus.Collector
	bcrypt     *prometheus.CounterVec
	confined   *prometheus.GaugeVec
	security   *prometheus.GaugeVec // without labels: absent where there is no security.txt
	splices    *prometheus.CounterVec
	repairs    *prometheus.CounterVec

	tokensIn, tokensOut prometheus.Counter

	answers  children[answerLabels, prometheus.Counter]
	took     children[string, prometheus.Observer]
	firsts   children[string, prometheus.Observer]
	outcomes children[outcomeLabels, prometheus.Counter]
}

type answerLabels struct {
	endpoint, code string
	status         int
}

type outcomeLabels struct {
	upstream string
	outcome  breaker.Outcome
}

// children are the metrics of a vector that every request needs: the vector
// itself hashes and locks each time. There are as many as there are labels.
type children[K comparable, M any] struct {
	make   func(K) M
	known  atomic.Pointer[map[K]M]
	adding sync.Mutex
}

func (c *children[K, M]) of(key K) M {
	if known := c.known.Load(); known != nil {
		if m, ok := (*known)[key]; ok {
			return m
		}
	}
	c.adding.Lock()
	defer c.adding.Unlock()
	more := make(map[K]M)
	if known := c.known.Load(); known != nil {
		maps.Copy(more, *known)
	}
	m := c.make(key)
	more[key] = m
	c.known.Store(&more)
	return m
}

// withdrawn says how much the state does not let be called.
func (w *Worker) withdrawn() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ringmain_upstreams_withdrawn", Help: "Upstreams that are not called, because their credential is revoked.",
	}, func() float64 { return float64(w.cfg.Store.View().Withdrawn()) })
}

func newMetrics(r prometheus.Registerer, load, certs, state prometheus.Collector) (*metrics, error) {
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
		load:       load,
		certs:      certs,
		bcrypt:     counter("ringmain_bcrypt_total", "Keys checked with bcrypt: good, bad, error.", "result"),
		confined:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ringmain_confined", Help: "Whether a control that confines this worker is in force; zero retention needs all of them."}, []string{"control"}),
		security:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ringmain_security_txt_expires", Help: "When the published security.txt expires, in Unix seconds."}, nil),
	}
	m.state = state
	m.splices = counter("ringmain_splices_total", "Broken streams that were asked for elsewhere: spliced, diverged, failed, late, refused.", "result")
	m.repairs = counter("ringmain_stream_repairs_total", "Malformed events that were left out (skipped), and closing events that the upstream owed (finished).", "what")
	m.tokensIn, m.tokensOut = m.tokens.WithLabelValues("in"), m.tokens.WithLabelValues("out")
	m.answers.make = func(l answerLabels) prometheus.Counter {
		return m.requests.WithLabelValues(l.endpoint, l.code, strconv.Itoa(l.status))
	}
	m.took.make = func(endpoint string) prometheus.Observer { return m.duration.WithLabelValues(endpoint) }
	m.firsts.make = func(endpoint string) prometheus.Observer { return m.firstToken.WithLabelValues(endpoint) }
	m.outcomes.make = func(l outcomeLabels) prometheus.Counter {
		return m.attempts.WithLabelValues(l.upstream, l.outcome.String())
	}
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
	return []prometheus.Collector{m.requests, m.duration, m.firstToken, m.tokens, m.attempts, m.breakers, m.load, m.certs, m.bcrypt, m.confined, m.security, m.splices, m.repairs, m.state}
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
	m.outcomes.of(outcomeLabels{upstream, o}).Inc()
}

func (m *metrics) answered(endpoint, code string, status int, took time.Duration) {
	m.answers.of(answerLabels{endpoint, code, status}).Inc()
	m.took.of(endpoint).Observe(took.Seconds())
}
