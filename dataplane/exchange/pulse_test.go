package exchange

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ringmain/internal/testkit/synckit"
)

// TestPulse: a client that waits for a replay hears a comment now and then, and
// none once it goes on.
func TestPulse(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		rec := httptest.NewRecorder()
		x := &exchange{rw: rec}
		quiet := x.pulse(http.NewResponseController(rec), pulseEvery, time.Minute)
		time.Sleep(2*pulseEvery + time.Second)
		quiet()
		time.Sleep(3 * pulseEvery)
		if got := rec.Body.String(); got != strings.Repeat(": keep\n\n", 2) || !rec.Flushed {
			t.Errorf("%q", got)
		}
	})
}
