package drills

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/drills/load"
	"ringmain/drills/timeline"
	"ringmain/internal/clusterfile"
)

// How often the observer looks.
const (
	pollEvery        = 100 * time.Millisecond // what survivors publish
	probeEvery       = 20 * time.Millisecond  // connects to the lost region, from the kill on
	probeEveryBefore = 250 * time.Millisecond // the same before: each one is a handshake broken off
	lookTimeout      = time.Second
)

// observer collects what a run is judged by. Its clock starts with the load.
type observer struct {
	client *http.Client
	token  controlplane.Secret
	start  time.Time

	mu           sync.Mutex
	results      []load.Result
	probes       []timeline.Probe
	publications []timeline.Publication
}

func newObserver(roots *x509.CertPool, token controlplane.Secret) *observer {
	return &observer{token: token, client: &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
		DialContext:         (&net.Dialer{Timeout: lookTimeout}).DialContext,
		MaxIdleConnsPerHost: 2,
	}}}
}

func (o *observer) close() { o.client.CloseIdleConnections() }

func (o *observer) now() time.Duration { return time.Since(o.start) }

func (o *observer) result(r load.Result) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.results = append(o.results, r)
}

// tally counts the results so far of requests planned from a moment on.
func (o *observer) tally(from time.Duration) (n, good int, example string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.results {
		r := &o.results[i]
		if r.At < from {
			continue
		}
		n++
		if r.First().Class == load.OK {
			good++
		} else if example == "" {
			a := r.First()
			example = fmt.Sprintf("%s at %s: %d %s %s", a.Class, a.Entry, a.Status, a.Code, strings.Join(strings.Fields(a.Detail), " "))
		}
	}
	return n, good, example
}

// lag is the given percentile of how late requests were sent so far.
func (o *observer) lag(p int) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	lags := make([]time.Duration, len(o.results))
	for i := range o.results {
		lags[i] = o.results[i].First().Sent - o.results[i].At
	}
	slices.Sort(lags)
	return timeline.Percentile(lags, p)
}

// probe connects to the data nodes of region until ctx ends.
func (o *observer) probe(ctx context.Context, region *clusterfile.Region, every time.Duration) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range region.Nodes {
		if n.API == "" {
			continue
		}
		u, err := url.Parse(n.API)
		if err != nil {
			return fmt.Errorf("address of %s: %w", n.Name, err)
		}
		g.Go(func() error {
			d := net.Dialer{Timeout: lookTimeout}
			for tick := time.NewTicker(every); ; {
				at := o.now()
				conn, err := d.DialContext(ctx, "tcp", u.Host)
				if err == nil {
					_ = conn.Close() // it was only to see whether somebody accepts
				}
				if ctx.Err() == nil {
					o.mu.Lock()
					o.probes = append(o.probes, timeline.Probe{At: at, Node: n.Name, OK: err == nil})
					o.mu.Unlock()
				}
				select {
				case <-ctx.Done():
					tick.Stop()
					return nil
				case <-tick.C:
				}
			}
		})
	}
	return g.Wait()
}

// watch polls what each region but lost publishes about lost, until ctx ends.
func (o *observer) watch(ctx context.Context, regions []clusterfile.Region, lost string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range regions {
		if r.Name == lost {
			continue
		}
		g.Go(func() error {
			last := "up"
			for tick := time.NewTicker(pollEvery); ; {
				// A survivor that does not answer has published nothing.
				if says, err := o.published(ctx, r.Admin); err == nil && says[lost] != "" && says[lost] != last {
					last = says[lost]
					o.mu.Lock()
					o.publications = append(o.publications, timeline.Publication{At: o.now(), Observer: r.Name, Down: last == "down"})
					o.mu.Unlock()
				}
				select {
				case <-ctx.Done():
					tick.Stop()
					return nil
				case <-tick.C:
				}
			}
		})
	}
	return g.Wait()
}

// published asks one region's control plane what it says of every region: "up"
// or "down", by name.
func (o *observer) published(ctx context.Context, admin string) (map[string]string, error) {
	body, err := o.get(ctx, admin+"/admin/v1/regions", "Bearer "+o.token.Reveal())
	if err != nil {
		return nil, err
	}
	var page struct {
		Items []struct {
			Name      string `json:"name"`
			Published string `json:"published"`
		} `json:"items"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return nil, fmt.Errorf("%s/admin/v1/regions: %w", admin, err)
	}
	out := make(map[string]string, len(page.Items))
	for _, r := range page.Items {
		out[r.Name] = r.Published
	}
	return out, nil
}

// get reads a 200. authorization is for the admin API alone: nobody else sees the token.
func (o *observer) get(ctx context.Context, address, authorization string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("authorization", authorization)
	}
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d", address, resp.StatusCode)
	}
	return body, nil
}

// notReady lists the nodes of regions that do not say they are ready.
func (o *observer) notReady(ctx context.Context, regions []clusterfile.Region) []string {
	var (
		mu  sync.Mutex
		out []string
		g   errgroup.Group
	)
	for _, r := range regions {
		for _, n := range r.Nodes {
			// A control node is ready when it serves; whether its region has a leader shows in what it publishes.
			check := n.Admin + "/livez"
			if n.Role == "data" {
				check = n.API + "/readyz"
			}
			g.Go(func() error {
				if _, err := o.get(ctx, check, ""); err != nil {
					mu.Lock()
					defer mu.Unlock()
					out = append(out, n.Name)
				}
				return nil
			})
		}
	}
	_ = g.Wait() // its functions return nil
	return out
}
