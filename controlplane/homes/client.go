package homes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/retry"
	"ringmain/controlplane/strict"
)

// client asks the leaders of other regions.
type client struct {
	cfg *Config

	mu      sync.Mutex
	leaders map[string]string // by region: the address that answered last
}

func newClient(cfg *Config) *client { return &client{cfg: cfg, leaders: make(map[string]string)} }

// refusedError is a member's refusal: it has promised a higher epoch.
type refusedError struct {
	region string
	report report
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("%s has promised epoch %s of shard %s", e.region, e.report.Promised, e.report.Shard)
}

// errSnapshot: only a snapshot helps.
var errSnapshot = errors.New("the member does not hold the entries asked for one by one any more")

// answerError is an answer that the same question would get again.
type answerError struct {
	region string
	status int
	text   string
}

func (e *answerError) Error() string {
	return fmt.Sprintf("%s answers %d: %s", e.region, e.status, e.text)
}

const (
	retryMin = 30 * time.Millisecond
	retryMax = time.Second
)

// ask puts q to region's leader, whichever node that is, until ctx ends. Every
// question may be asked twice.
func (c *client) ask(ctx context.Context, region, path string, q, answer message) error {
	body, err := strict.Marshal(q)
	if err != nil {
		return err
	}
	return c.each(ctx, region, func(addr string) (next string, again bool, err error) {
		resp, next, again, err := c.post(ctx, region, addr, path, body)
		if err != nil {
			return next, again, err
		}
		defer func() { _ = resp.Body.Close() }()
		return "", true, decode(resp.Body, maxAnswer, answer)
	})
}

// each calls try with the region's nodes, the last known leader first, until
// one succeeds or fails for good. Try may name another node to ask next.
func (c *client) each(ctx context.Context, region string, try func(addr string) (next string, again bool, err error)) error {
	var last error
	for wait := (retry.Backoff{Base: retryMin, Limit: retryMax}); ; {
		for _, addr := range c.order(region) {
			for hops := 0; addr != "" && hops < 3; hops++ {
				next, again, err := try(addr)
				if err == nil {
					c.remember(region, addr)
					return nil
				}
				if last = err; !again {
					return err
				}
				addr = next
			}
			if ctx.Err() != nil {
				break
			}
		}
		if !retry.Sleep(ctx, wait.Next()) {
			return fmt.Errorf("region %s: %w: %w", region, controlplane.ErrUnreachable, errors.Join(last, context.Cause(ctx)))
		}
	}
}

// order is the region's nodes, who answered last first.
func (c *client) order(region string) []string {
	addrs := slices.Clone(c.cfg.Addresses(region))
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(addrs, c.leaders[region]); i > 0 {
		addrs[0], addrs[i] = addrs[i], addrs[0]
	}
	return addrs
}

func (c *client) remember(region, addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaders[region] = addr
}

// post asks one node. It returns an answer 200 only; otherwise whom to ask
// instead, if the node says so, and whether the question is worth repeating.
func (c *client) post(ctx context.Context, region, addr, path string, body []byte) (_ *http.Response, next string, again bool, _ error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, "", false, err
	}
	to := c.cfg.HTTP(region)
	if to == nil {
		return nil, "", true, fmt.Errorf("region %s is not in this node's configuration: add it", region)
	}
	resp, err := to.Do(req)
	if err != nil {
		return nil, "", true, err
	}
	if err := answeredBy(resp, region); err != nil {
		_ = resp.Body.Close()
		return nil, "", true, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, "", false, nil
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusConflict:
		no := &refusedError{region: region}
		if err := decode(resp.Body, maxAnswer, &no.report); err != nil {
			return nil, "", true, err
		}
		return nil, "", false, no
	case http.StatusGone:
		return nil, "", false, errSnapshot
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // the status says enough without it
	err = &answerError{region, resp.StatusCode, strings.TrimSpace(string(text))}
	switch resp.StatusCode {
	case http.StatusMisdirectedRequest:
		if next = resp.Header.Get(headerLeader); !slices.Contains(c.cfg.Addresses(region), next) {
			next = "" // a region's nodes are those configured
		}
		return nil, next, true, err
	case http.StatusServiceUnavailable, http.StatusNotFound: // 404: a release without ownership
		return nil, "", true, err
	}
	return nil, "", false, err
}

// answeredBy checks that a control node of region answered.
func answeredBy(resp *http.Response, region string) error {
	if resp.TLS == nil {
		return errors.New("regions talk over mutual TLS only")
	}
	id, err := identity.PeerID(*resp.TLS)
	if err != nil {
		return err
	}
	return identity.AllowControl(region)(id)
}
