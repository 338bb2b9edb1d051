package exchange

import (
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/dataplane/breaker"
)

// Metrics of requests. Labels name endpoints, codes and upstreams; never a key,
// an org or a user.
type Metrics struct {
	requests   *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	firstToken *prometheus.HistogramVec
	tokens     *prometheus.CounterVec
	attempts   *prometheus.CounterVec
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

// NewMetrics makes the metrics; who reads them registers them.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	seconds := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: seconds}, []string{"endpoint"})
	}
	m := &Metrics{
		requests:   counter("ringmain_requests_total", "Answered requests; code is empty for good answers, status 499 means that the client was gone before it had the whole answer.", "endpoint", "code", "status"),
		duration:   histogram("ringmain_request_duration_seconds", "From a request's head to its answer's end."),
		firstToken: histogram("ringmain_time_to_first_token_seconds", "From a request's head to the first event, or the whole plain answer."),
		tokens:     counter("ringmain_tokens_total", "Tokens metered, in prompts and in answers.", "direction"),
		attempts:   counter("ringmain_upstream_attempts_total", "Attempts at upstreams and, as peer/<region>, at other regions' nodes.", "upstream", "outcome"),
	}
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
	return m
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.duration, m.firstToken, m.tokens, m.attempts, m.splices, m.repairs}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

// Attempted counts one attempt at an upstream or, as peer/<region>, at a node.
func (m *Metrics) Attempted(upstream string, o breaker.Outcome) {
	m.outcomes.of(outcomeLabels{upstream, o}).Inc()
}

func (m *Metrics) answered(endpoint, code string, status int, took time.Duration) {
	m.answers.of(answerLabels{endpoint, code, status}).Inc()
	m.took.of(endpoint).Observe(took.Seconds())
}
