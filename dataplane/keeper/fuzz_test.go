package keeper

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// FuzzFamilies: whatever a worker says are its metrics, the page is written, and
// has the keeper's own.
func FuzzFamilies(f *testing.F) {
	registry := prometheus.NewRegistry()
	count := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "requests_total", Help: "h"}, []string{"code"})
	count.WithLabelValues("200").Inc()
	took := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "took_seconds", Help: "h"})
	took.Observe(1)
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "go_goroutines", Help: "h"})
	registry.MustRegister(count, took, gauge)
	families, err := registry.Gather()
	if err != nil {
		f.Fatal(err)
	}
	page := func(families ...*dto.MetricFamily) []byte {
		var b bytes.Buffer
		e := expfmt.NewEncoder(&b, expfmt.NewFormat(expfmt.TypeProtoDelim))
		for _, family := range families {
			if err := e.Encode(family); err != nil {
				f.Fatal(err)
			}
		}
		return b.Bytes()
	}
	f.Add(page(families...))
	f.Add(page(families[0]))
	f.Add(page(families...)[:20])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{})
	own := prometheus.NewRegistry()
	own.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "ringmain_of_the_keeper", Help: "h"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		worker := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return decodeFamilies(b) })
		h := promhttp.HandlerFor(prometheus.Gatherers{worker, own}, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Code != http.StatusOK || !bytes.Contains(w.Body.Bytes(), []byte("\nringmain_of_the_keeper 0\n")) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}
