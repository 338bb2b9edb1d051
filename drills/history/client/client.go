// Package client is one client of the management API in a history: it asks one
// node at a time, and tells what came of a request from what nobody can know. When
// to ask for what, and what the answers are worth together, does not enter.
package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/history"
)

// patience is how long a client waits for one answer.
const patience = 4 * time.Second

// Client asks the management API, one request at a time. All but Ask and AskFor
// are written down.
type Client struct {
	ID    int
	HTTP  *http.Client
	Token string // an operator's
	Rec   *history.Recorder
}

// Reply is an answer, or why there is none.
type Reply struct {
	Status int
	Header http.Header
	Body   []byte
	Err    error
}

// Ask waits four seconds for the answer. header has names and values in turn; an
// empty value sends none.
func (c *Client) Ask(ctx context.Context, method, url string, body any, header ...string) Reply {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c.AskFor(ctx, method, url, body, header...)
}

// AskFor waits for the answer as long as ctx lasts.
func (c *Client) AskFor(ctx context.Context, method, url string, body any, header ...string) Reply {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return Reply{Err: err}
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, in)
	if err != nil {
		return Reply{Err: err}
	}
	req.GetBody = nil // a request that may have arrived is not sent again behind our back
	req.Header.Set("Authorization", "Bearer "+c.Token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return Reply{Err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return Reply{resp.StatusCode, resp.Header, b, err}
}

// Outcome of a request: whether it was answered, refused, or nobody knows.
func (r Reply) Outcome() history.Outcome {
	var dial *net.OpError
	switch {
	case r.Err != nil && errors.As(r.Err, &dial) && dial.Op == "dial":
		return history.Nothing // it never left
	case r.Err != nil:
		return history.Unknown
	case r.Status < 300:
		return history.Done
	case r.Status < 500 && r.Code() != api.CodeDeposed:
		return history.Nothing
	}
	switch r.Code() {
	case api.CodeNoLeader, api.CodeUnreachable, api.CodeOverloaded, api.CodeIsolated, api.CodeTailFull:
		return history.Nothing
	}
	return history.Unknown
}

// Code is why the API refused; "" if it does not say.
func (r Reply) Code() string {
	if r.Header == nil {
		return ""
	}
	return r.Header.Get(api.HeaderErrorCode)
}

// Decode reads an answer in JSON.
func (r Reply) Decode(v any) error {
	if err := json.Unmarshal(r.Body, v); err != nil {
		return fmt.Errorf("an answer of status %d is no JSON: %w", r.Status, err)
	}
	return nil
}

// note fills op with what came of it, and writes it down.
func (c *Client) note(op history.Op, r Reply) history.Op {
	op.Client, op.End, op.Outcome, op.Status, op.Code = c.ID, c.Rec.Now(), r.Outcome(), r.Status, r.Code()
	if r.Err != nil {
		op.Detail = r.Err.Error()
	} else if op.Outcome != history.Done {
		var p api.Problem
		_ = r.Decode(&p) // the status says enough
		op.Detail = p.Detail
	}
	if r.Header != nil {
		op.Answered = r.Header.Get(api.HeaderAnswered)
	}
	if r.Header != nil && op.Outcome == history.Done {
		op.Reached, op.Position = r.Header.Get(api.HeaderAcknowledged), r.Header.Get(api.HeaderPosition)
	}
	c.Rec.Op(op)
	return op
}

// Write gives a register another value.
func (c *Client) Write(ctx context.Context, n Node, org, value, level string) history.Op {
	op := history.Op{Kind: history.Write, Object: org, Entry: n.String(), Value: value, Level: level, Begin: c.Rec.Now()}
	return c.note(op, c.Ask(ctx, http.MethodPut, n.Admin+"/admin/v1/orgs/"+org, api.OrgInput{Name: value, State: "verified"}, api.HeaderAcknowledge, level))
}

// Read is linearizable, or has no outcome.
func (c *Client) Read(ctx context.Context, n Node, org string) history.Op {
	op := history.Op{Kind: history.Read, Object: org, Entry: n.String(), Begin: c.Rec.Now()}
	r := c.Ask(ctx, http.MethodGet, n.Admin+"/admin/v1/orgs/"+org, nil, api.HeaderConsistency, api.ConsistencyLinearizable)
	var found api.Org
	switch {
	case r.Err != nil:
	case r.Status == http.StatusNotFound && r.Header.Get(api.HeaderConsistency) == api.ConsistencyLinearizable:
		r.Status, op.Value = http.StatusOK, "(absent)" // an answer too, which no order of writes explains
	case r.Status == http.StatusOK && r.Header.Get(api.HeaderConsistency) != api.ConsistencyLinearizable:
		r.Err = errors.New("worth less than was asked for: " + r.Header.Get(api.HeaderConsistency))
	case r.Status == http.StatusOK:
		r.Err = r.Decode(&found)
		op.Value = found.Name
	}
	return c.note(op, r)
}

// Create makes a record under an Idempotency-Key; whose kind path and in say.
func (c *Client) Create(ctx context.Context, n Node, path, key, name, level string, in any) history.Op {
	op := history.Op{Kind: history.Create, Object: key, Entry: n.String(), Value: name, Level: level, Begin: c.Rec.Now()}
	r := c.Ask(ctx, http.MethodPost, n.Admin+path, in, api.HeaderIdempotency, key, api.HeaderAcknowledge, level)
	if r.Outcome() == history.Done {
		var made struct {
			ID  string `json:"id"`
			Key string `json:"key"`
		}
		r.Err = r.Decode(&made)
		op.Record = made.ID
		if made.Key != "" {
			sum := sha256.Sum256([]byte(made.Key))
			op.Secret = hex.EncodeToString(sum[:8])
		}
	}
	return c.note(op, r)
}

// Revoke revokes a key.
func (c *Client) Revoke(ctx context.Context, n Node, key string) history.Op {
	op := history.Op{Kind: history.Revoke, Object: key, Entry: n.String(), Begin: c.Rec.Now()}
	return c.note(op, c.Ask(ctx, http.MethodPost, n.Admin+"/admin/v1/keys/"+key+"/revoke", nil))
}

// Look reads a key: linearizable, or as n's own copy has it.
func (c *Client) Look(ctx context.Context, n Node, key, consistency string) history.Op {
	op := history.Op{Kind: history.Look, Object: key, Entry: n.String(), Begin: c.Rec.Now()}
	if consistency == api.ConsistencyStale {
		op.Kind = history.Glance
	}
	r := c.Ask(ctx, http.MethodGet, n.Admin+"/admin/v1/keys/"+key, nil, api.HeaderConsistency, consistency)
	var found api.Key
	if r.Err == nil && r.Status == http.StatusOK {
		r.Err = r.Decode(&found)
		op.Value = "valid"
		if found.Revoked != nil {
			op.Value = history.Revoked
		}
	}
	return c.note(op, r)
}
