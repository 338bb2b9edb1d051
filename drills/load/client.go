package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"ringmain/drills/simmodel"
)

// client keeps one transport per protocol, as two kinds of SDK would: Node and
// Python speak HTTP/1.1 with many connections, Go speaks HTTP/2 with one.
type client struct {
	cfg  Config
	urls map[string]string // by entry
	h1   *http.Transport
	h2   *http.Transport
}

func newClient(cfg Config) *client {
	c := &client{cfg: cfg, urls: map[string]string{FrontDoor: cfg.FrontDoor}}
	for _, r := range cfg.Regions {
		c.urls[r.Name] = r.URL
	}
	transport := func(h2 bool) *http.Transport {
		t := &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
			TLSClientConfig:     &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS13},
			TLSHandshakeTimeout: 3 * time.Second,
			MaxIdleConnsPerHost: 32,
			DisableCompression:  true,
			Protocols:           new(http.Protocols),
		}
		t.Protocols.SetHTTP1(!h2)
		t.Protocols.SetHTTP2(h2)
		return t
	}
	c.h1, c.h2 = transport(false), transport(true)
	return c
}

func (c *client) close() {
	c.h1.CloseIdleConnections()
	c.h2.CloseIdleConnections()
}

// do makes the attempts of r.
func (c *client) do(ctx context.Context, r Request) Result {
	res := Result{Request: r}
	messages := []simmodel.Message{{Role: "user", Text: r.prompt(c.cfg.Seed)}}
	for _, entry := range c.entries(r) {
		a := c.attempt(ctx, r, entry, messages)
		res.Attempts = append(res.Attempts, a)
		if a.Class != Failed || a.Status != 0 || ctx.Err() != nil {
			break
		}
	}
	return res
}

// entries lists where r may be asked: its entry, then the other regions that
// its pin allows.
func (c *client) entries(r Request) []string {
	out := []string{r.Entry}
	if r.Entry == FrontDoor {
		return out
	}
	for _, region := range c.cfg.Regions {
		if region.Name != r.Entry && (r.Residency == "" || region.Jurisdiction == r.Residency) {
			out = append(out, region.Name)
		}
	}
	return out
}

func (c *client) attempt(ctx context.Context, r Request, entry string, messages []simmodel.Message) Attempt {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	now := func() time.Duration { return time.Since(c.cfg.Start) }
	a := Attempt{Entry: entry, Sent: now()}
	end := func(class Class, detail string) Attempt {
		a.Class, a.Detail, a.End = class, detail, now()
		return a
	}

	path, length := "/v1/chat/completions", c.cfg.PlainTokens
	if r.Messages {
		path = "/v1/messages"
	}
	if r.Stream {
		length = c.cfg.StreamTokens
	}
	// min_tokens is what vLLM and the simulated provider read; others ignore it.
	body, err := json.Marshal(map[string]any{
		"model": r.Model, "stream": r.Stream, "temperature": 0, "max_tokens": length, "min_tokens": length,
		"messages": []map[string]string{{"role": messages[0].Role, "content": messages[0].Text}},
	})
	if err != nil {
		return end(Failed, err.Error())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.urls[entry]+path, bytes.NewReader(body))
	if err != nil {
		return end(Failed, err.Error())
	}
	req.Header.Set("content-type", "application/json")
	if r.Messages {
		req.Header.Set("x-api-key", c.cfg.Key.Reveal())
		req.Header.Set("anthropic-version", "2023-06-01")
	} else {
		req.Header.Set("authorization", "Bearer "+c.cfg.Key.Reveal())
	}
	if r.Residency != "" {
		req.Header.Set("idc-residency", r.Residency)
	}
	transport := c.h1
	if r.HTTP2 {
		transport = c.h2
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return end(Failed, describe(ctx, err))
	}
	defer resp.Body.Close()
	a.Status, a.Code = resp.StatusCode, resp.Header.Get("idc-error-code")
	a.RequestID, a.EntryWas = resp.Header.Get("idc-request-id"), resp.Header.Get("idc-entry-region")
	a.Ran, a.Route = resp.Header.Get("idc-region"), resp.Header.Get("idc-route")

	if resp.StatusCode != http.StatusOK {
		class := Failed
		if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("retry-after") != "" {
			class = Shed
		}
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if err != nil {
			text = append(text, " … "+err.Error()...)
		}
		return end(class, clip(string(text)))
	}
	out := readAnswer(resp.Body, r, func() { a.FirstToken = now() })
	if out.err != nil {
		return end(Truncated, describe(ctx, out.err))
	}
	if out.class == WronglyComplete && ctx.Err() != nil { // the answer ended because we hung up
		return end(Truncated, describe(ctx, ctx.Err()))
	}
	if out.class == OK && !matches(out, r, messages, length) {
		return end(WronglyComplete, clip("not the answer expected: "+out.text))
	}
	return end(out.class, out.detail)
}

// matches compares with the simulated provider's answer, by the model asked
// for or, where a route renames it, by the model that says it answered.
func matches(out answer, r Request, messages []simmodel.Message, length int) bool {
	for _, model := range []string{r.Model, out.model} {
		if want, _ := simmodel.Tokens(model, messages, length, length); strings.Join(want, "") == out.text {
			return true
		}
	}
	return false
}

// describe says in few words why nothing, or nothing more, came.
func describe(ctx context.Context, err error) string {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "timeout"
	case ctx.Err() != nil:
		return "cancelled"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "connection ended early"
	}
	return clip(err.Error())
}

func clip(s string) string {
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}
