package feed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"ringmain/controlplane/identity"
)

// StatusError is an answer other than success.
type StatusError struct {
	Peer       string
	Status     int
	RetryAfter string // the header
	Text       string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s answers %d: %s", e.Peer, e.Status, e.Text)
}

// PostVerdicts gives verdicts to the control node at addr (host:port) in
// region. A failure is not worth more than a few retries.
func PostVerdicts(ctx context.Context, client *http.Client, region, addr, cluster string, verdicts []Verdict) error {
	for b := range slices.Chunk(verdicts, MaxBatch) {
		if err := Post(ctx, client, region, addr, PathVerdicts, Batch{Cluster: cluster, Verdicts: b}); err != nil {
			return err
		}
	}
	return nil
}

// PostHeld tells the control node at addr (host:port) in region what this data
// node holds. A failure costs the asker of a revocation a second.
func PostHeld(ctx context.Context, client *http.Client, region, addr, cluster string, held []Held) error {
	for part := range slices.Chunk(held, MaxBatch) {
		if err := Post(ctx, client, region, addr, PathHeld, Batch{Cluster: cluster, Held: part}); err != nil {
			return err
		}
	}
	return nil
}

// Post gives b to the control node at addr (host:port) in region. An answer
// other than success is a *StatusError. Client must refuse nodes of other
// regions by itself: here the answer is checked, and by then b is told.
func Post(ctx context.Context, client *http.Client, region, addr, path string, b Batch) error {
	body, err := Marshal(b)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	_, answer, err := ask(client, req, region)
	if err != nil {
		return err
	}
	return answer.Close()
}

// Get asks the control node at addr (host:port) in region, and says who
// answered. The caller closes the answer. One other than success is a
// *StatusError.
func Get(ctx context.Context, client *http.Client, region, addr, path string) (identity.ID, io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+path, nil)
	if err != nil {
		return identity.ID{}, nil, err
	}
	return ask(client, req, region)
}

func ask(client *http.Client, req *http.Request, region string) (identity.ID, io.ReadCloser, error) {
	resp, err := client.Do(req)
	if err != nil {
		return identity.ID{}, nil, err
	}
	id, err := answeredBy(resp, region)
	if err != nil {
		_ = resp.Body.Close() // read as far as it says something
		return id, nil, err
	}
	return id, resp.Body, nil
}

// answeredBy checks an answer's status and that a control node of region gave it.
func answeredBy(resp *http.Response, region string) (identity.ID, error) {
	if resp.TLS == nil {
		return identity.ID{}, errors.New("feeds need mutual TLS")
	}
	id, err := identity.PeerID(*resp.TLS)
	if err != nil {
		return id, err
	}
	if err := identity.AllowControl(region)(id); err != nil {
		return id, err
	}
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // the status says enough without it
		return id, &StatusError{id.String(), resp.StatusCode, resp.Header.Get("Retry-After"), strings.TrimSpace(string(text))}
	}
	return id, nil
}
