package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"ringmain/drills/cluster"
)

// api is the management API of a cluster: each write replaces the name
// of an org, acknowledged by its region.
type api struct {
	base, token string
	http        *http.Client
	orgs        []string // one per writer
	stop        func() error
}

// openAPI finds the cluster, or starts one region of its own on the same disk.
// Writes go to the leader, as etcd's do.
func openAPI(ctx context.Context, o options) (_ *api, err error) {
	a := &api{}
	var c *cluster.Cluster
	if o.ringmain != "" {
		if c, err = cluster.Start(ctx, o.ringmain, o.dir, o.port+100, 1, "--regions", "us-east:us"); err != nil {
			return nil, err
		}
		a.stop = c.Stop
	} else {
		if c, err = cluster.Open(ctx, o.cluster); err != nil {
			return nil, err
		}
		a.stop = c.Supervisor.Close
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.stop())
		}
	}()
	a.token, a.http = c.Token, c.HTTP()
	a.http.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	for _, n := range c.Regions[0].Nodes {
		if n.Role != "control" {
			continue
		}
		var st struct {
			Leads bool `json:"leads"`
		}
		if a.base = n.Admin + "/admin/v1"; a.do(ctx, http.MethodGet, "/status", "", &st) == nil && st.Leads {
			break
		}
	}
	for i := range writers[len(writers)-1] {
		var org struct {
			ID string `json:"id"`
		}
		if err := a.do(ctx, http.MethodPost, "/orgs", fmt.Sprintf(`{"name":"bench %d"}`, i), &org); err != nil {
			return nil, err
		}
		a.orgs = append(a.orgs, org.ID)
	}
	return a, nil
}

func (a *api) do(ctx context.Context, method, path, body string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Ringmain-Acknowledge", "region")
	resp, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

func (a *api) name() string { return apiName }

func (a *api) load(ctx context.Context, n int, window time.Duration) (sample, error) {
	return hammer(ctx, n, window, func(ctx context.Context, writer, i int) error {
		return a.do(ctx, http.MethodPut, "/orgs/"+a.orgs[writer], fmt.Sprintf(`{"name":"bench %d of writer %d"}`, i, writer), nil)
	})
}

func (a *api) close() (err error) {
	for _, id := range a.orgs {
		err = errors.Join(err, a.do(context.Background(), http.MethodDelete, "/orgs/"+id, "", nil))
	}
	a.http.CloseIdleConnections()
	return errors.Join(err, a.stop())
}
