package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"ringmain/internal/clusterfile"
)

// api is the management API of a running cluster: each write replaces the name
// of an org, acknowledged by its region.
type api struct {
	base, token string
	http        *http.Client
	orgs        []string // one per writer
}

func openAPI(ctx context.Context, file string) (*api, error) {
	c, err := clusterfile.Read(file)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Clean(c.AdminTokenFile))
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(filepath.Clean(c.CAFile))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	a := &api{base: c.Regions[0].Admin + "/admin/v1", token: string(bytes.TrimSpace(token)), http: &http.Client{
		Transport: &http.Transport{ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}}}}
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

func (a *api) name() string { return "management API" }

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
	return err
}
