package feed

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/internal/testkit/synckit"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestComesBackSoon: however long a region was down, it is asked again within
// seconds of its return, and meanwhile not so often that a thousand watchers
// would keep its nodes from starting.
func TestComesBackSoon(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		const down = time.Hour
		begun, tries, late := time.Now(), 0, time.Duration(0)
		err := Watch(ctx, WatchConfig{Cluster: "test", Region: "eu-fra", Targets: Fixed("a:1", "b:1", "c:1"),
			HTTP: &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
				if gone := time.Since(begun); gone < down {
					tries++
				} else {
					late = gone - down
					cancel()
				}
				return nil, errors.New("connection refused")
			})},
			From: func() controlplane.Position { return nil },
			Sink: func(*Frame) error { return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		if mean := down / time.Duration(tries); late > 5*time.Second || mean < 2*time.Second || mean > 3*time.Second {
			t.Errorf("asked %v after the return, and before each %v", late, mean)
		}
	})
}
