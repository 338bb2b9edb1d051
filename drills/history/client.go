package history

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
)

// patience is how long a client waits for one answer.
const patience = 4 * time.Second

// client asks the management API, one request at a time, and writes it down.
type client struct {
	id    int
	http  *http.Client
	token string
	rec   *Recorder
}

// reply is an answer, or why there is none.
type reply struct {
	status int
	header http.Header
	body   []byte
	err    error
}

func (c *client) ask(ctx context.Context, method, url string, body any, header ...string) reply {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c.askFor(ctx, method, url, body, header...)
}

// askFor waits for the answer as long as ctx lasts.
func (c *client) askFor(ctx context.Context, method, url string, body any, header ...string) reply {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return reply{err: err}
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, in)
	if err != nil {
		return reply{err: err}
	}
	req.GetBody = nil // a request that may have arrived is not sent again behind our back
	req.Header.Set("Authorization", "Bearer "+c.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, b, err}
}

// outcome of a request: whether it was answered, refused, or nobody knows.
func (r reply) outcome() Outcome {
	var dial *net.OpError
	switch {
	case r.err != nil && errors.As(r.err, &dial) && dial.Op == "dial":
		return Nothing // it never left
	case r.err != nil:
		return Unknown
	case r.status < 300:
		return Done
	case r.status < 500 && r.code() != api.CodeDeposed:
		return Nothing
	}
	switch r.code() {
	case api.CodeNoLeader, api.CodeUnreachable, api.CodeOverloaded, api.CodeIsolated, api.CodeTailFull:
		return Nothing
	}
	return Unknown
}

func (r reply) code() string {
	if r.header == nil {
		return ""
	}
	return r.header.Get(api.HeaderErrorCode)
}

func (r reply) decode(v any) error {
	if err := json.Unmarshal(r.body, v); err != nil {
		return fmt.Errorf("an answer of status %d is no JSON: %w", r.status, err)
	}
	return nil
}

// note fills op with what came of it, and writes it down.
func (c *client) note(op Op, r reply) Op {
	op.Client, op.End, op.Outcome, op.Status, op.Code = c.id, c.rec.Now(), r.outcome(), r.status, r.code()
	if r.err != nil {
		op.Detail = r.err.Error()
	} else if op.Outcome != Done {
		var p api.Problem
		_ = r.decode(&p) // the status says enough
		op.Detail = p.Detail
	}
	if r.header != nil {
		op.Answered = r.header.Get(api.HeaderAnswered)
	}
	if r.header != nil && op.Outcome == Done {
		op.Reached, op.Position = r.header.Get(api.HeaderAcknowledged), r.header.Get(api.HeaderPosition)
	}
	c.rec.Op(op)
	return op
}

// write gives a register another value.
func (c *client) write(ctx context.Context, n node, org, value, level string) Op {
	op := Op{Kind: Write, Object: org, Entry: n.String(), Value: value, Level: level, Begin: c.rec.Now()}
	return c.note(op, c.ask(ctx, http.MethodPut, n.admin+"/admin/v1/orgs/"+org, api.OrgInput{Name: value, State: "verified"}, api.HeaderAcknowledge, level))
}

// read is linearizable, or has no outcome.
func (c *client) read(ctx context.Context, n node, org string) Op {
	op := Op{Kind: Read, Object: org, Entry: n.String(), Begin: c.rec.Now()}
	r := c.ask(ctx, http.MethodGet, n.admin+"/admin/v1/orgs/"+org, nil, api.HeaderConsistency, api.ConsistencyLinearizable)
	var found api.Org
	switch {
	case r.err != nil:
	case r.status == http.StatusNotFound && r.header.Get(api.HeaderConsistency) == api.ConsistencyLinearizable:
		r.status, op.Value = http.StatusOK, "(absent)" // an answer too, which no order of writes explains
	case r.status == http.StatusOK && r.header.Get(api.HeaderConsistency) != api.ConsistencyLinearizable:
		r.err = errors.New("worth less than was asked for: " + r.header.Get(api.HeaderConsistency))
	case r.status == http.StatusOK:
		r.err = r.decode(&found)
		op.Value = found.Name
	}
	return c.note(op, r)
}

// create makes a record under an Idempotency-Key; into receives it.
func (c *client) create(ctx context.Context, n node, path, key, name, level string, in any) Op {
	op := Op{Kind: Create, Object: key, Entry: n.String(), Value: name, Level: level, Begin: c.rec.Now()}
	r := c.ask(ctx, http.MethodPost, n.admin+path, in, api.HeaderIdempotency, key, api.HeaderAcknowledge, level)
	if r.outcome() == Done {
		var made struct {
			ID  string `json:"id"`
			Key string `json:"key"`
		}
		r.err = r.decode(&made)
		op.Record = made.ID
		if made.Key != "" {
			sum := sha256.Sum256([]byte(made.Key))
			op.Secret = hex.EncodeToString(sum[:8])
		}
	}
	return c.note(op, r)
}

func (c *client) revoke(ctx context.Context, n node, key string) Op {
	op := Op{Kind: Revoke, Object: key, Entry: n.String(), Begin: c.rec.Now()}
	return c.note(op, c.ask(ctx, http.MethodPost, n.admin+"/admin/v1/keys/"+key+"/revoke", nil))
}

// look reads a key: linearizable, or as n's own copy has it.
func (c *client) look(ctx context.Context, n node, key, consistency string) Op {
	op := Op{Kind: Look, Object: key, Entry: n.String(), Begin: c.rec.Now()}
	if consistency == api.ConsistencyStale {
		op.Kind = Glance
	}
	r := c.ask(ctx, http.MethodGet, n.admin+"/admin/v1/keys/"+key, nil, api.HeaderConsistency, consistency)
	var found api.Key
	if r.err == nil && r.status == http.StatusOK {
		r.err = r.decode(&found)
		op.Value = "valid"
		if found.Revoked != nil {
			op.Value = revokedValue
		}
	}
	return c.note(op, r)
}
