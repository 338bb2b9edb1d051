package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/admin/api"
)

// call asks the leader.
func (r *region) call(ctx context.Context, method, path string, body, into any) error {
	var text []byte
	var err error
	if body != nil {
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, r.leader.Admin+"/admin/v1"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if method != http.MethodGet {
		req.Header.Set(api.HeaderAcknowledge, api.AcknowledgedRegion)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if text, err = io.ReadAll(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

func (r *region) project(ctx context.Context, name string) (string, error) {
	var org api.Org
	if err := r.call(ctx, http.MethodPost, "/orgs", api.OrgInput{Name: name, State: "verified"}, &org); err != nil {
		return "", err
	}
	var project api.Project
	return project.ID, r.call(ctx, http.MethodPost, "/orgs/"+org.ID+"/projects", api.ProjectInput{Name: name}, &project)
}

// rates measures how many projects, and keys, the API makes in a second.
func (r *region) rates(ctx context.Context, t *table, o options, beside string) error {
	var org api.Org
	if err := r.call(ctx, http.MethodPost, "/orgs", api.OrgInput{Name: "rates " + beside, State: "verified"}, &org); err != nil {
		return err
	}
	var project atomic.Pointer[string]
	for _, what := range []struct {
		name, how string
		make      func(ctx context.Context, name string) error
	}{
		{"projects", "no hash", func(ctx context.Context, name string) error {
			var p api.Project
			err := r.call(ctx, http.MethodPost, "/orgs/"+org.ID+"/projects", api.ProjectInput{Name: name}, &p)
			project.Store(&p.ID)
			return err
		}},
		{"keys", "hashing takes the machine's cores", func(ctx context.Context, name string) error {
			return r.call(ctx, http.MethodPost, "/projects/"+*project.Load()+"/keys", api.KeyInput{Name: name}, nil)
		}},
	} {
		var made, failed atomic.Int64
		var last atomic.Pointer[error]
		g, gctx := errgroup.WithContext(ctx)
		began := time.Now()
		for w := range writers {
			g.Go(func() error {
				for i := 0; time.Since(began) < o.window; i++ {
					if err := what.make(gctx, fmt.Sprintf("%d of %d", i, w)); err != nil {
						last.Store(&err) // such as an election, where all share too few cores
						failed.Add(1)
						time.Sleep(50 * time.Millisecond)
						continue
					}
					made.Add(1)
				}
				return gctx.Err()
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if err := last.Load(); made.Load() == 0 && err != nil {
			return *err
		}
		t.add(row{What: "management API, " + what.name + " made " + beside, Value: float64(made.Load()) / time.Since(began).Seconds(), Unit: "a second",
			How: fmt.Sprintf("%d writers, n %d, %d failed; %s", writers, made.Load(), failed.Load(), what.how)})
	}
	return nil
}
