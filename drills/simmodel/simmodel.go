// Package simmodel is a scripted model provider that speaks the OpenAI and the
// Anthropic wire format: deterministic answers, configurable pace, faults by
// model name, and exact counts of what it served.
//
// It is the one room under drills that production may import, and only for
// `ringmain dev`. Nothing of ringmain may enter it: it plays the outside world.
package simmodel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// MaxBody is the largest request body that is read, in bytes.
const MaxBody = 33 << 20

// Config says how a Provider behaves. The zero value answers at once.
type Config struct {
	Name            string        // shown in ids, in owned_by and in the counts; "" = "sim"
	Models          []string      // what GET /v1/models lists; empty = "sim-chat" and every fault. Any other name answers too
	FirstToken      time.Duration // wait before the first byte of an answer
	TokensPerSecond float64       // pace after the first token; 0 = as fast as it goes
	Jitter          float64       // share of FirstToken that varies, 0..1; 0 = none
	Seed            uint64        // seeds the jitter only: answers depend on nothing but the prompt and the model
	Credential      string        // required as bearer token or x-api-key; "" = anything is accepted

	// OnRequest, if set, sees every request that arrives, with its whole body,
	// before it is answered. It must not keep or change either.
	OnRequest func(r *http.Request, body []byte)
}

// Provider is the http.Handler. It starts no goroutine and needs no Close: a
// request ends when its client goes away or its server is closed.
type Provider struct {
	cfg    Config
	counts counts
	once   seen
	serial atomic.Uint64
	jitter atomic.Uint64
}

// New gives a Provider with empty counts.
func New(cfg Config) *Provider {
	if cfg.Name == "" {
		cfg.Name = "sim"
	}
	if len(cfg.Models) == 0 {
		cfg.Models = append([]string{"sim-chat"}, Faults()...)
	}
	return &Provider{cfg: cfg}
}

// Counts is a copy of what was counted so far.
func (p *Provider) Counts() Counts { return p.counts.snapshot(p.cfg.Name) }

// ServeHTTP answers POST /v1/chat/completions and /v1/messages, GET /v1/models
// and GET /sim/counts.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var d dialect = openAI{}
	if r.URL.Path == "/v1/messages" || r.Header.Get("anthropic-version") != "" {
		d = anthropic{}
	}
	serial := p.serial.Add(1)
	w.Header().Set(d.requestIDHeader(), fmt.Sprintf("req_%s_%d", p.cfg.Name, serial))

	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/sim/counts":
		writeJSON(w, http.StatusOK, p.Counts())
		return
	case r.Method == http.MethodPost && (r.URL.Path == "/v1/chat/completions" || r.URL.Path == "/v1/messages"),
		r.Method == http.MethodGet && r.URL.Path == "/v1/models":
	default:
		fail(w, d, apiError{http.StatusNotFound, "not_found_error", "not_found", "nothing is served at " + r.Method + " " + r.URL.Path})
		return
	}

	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			fail(w, d, apiError{http.StatusRequestEntityTooLarge, "request_too_large", "request_too_large", "the body is over 33 MiB"})
		}
		return
	}
	if p.cfg.OnRequest != nil {
		p.cfg.OnRequest(r, body)
	}
	if !p.authorized(r) {
		p.counts.add("", func(m *ModelCounts) { m.Requests++; m.Unauthorized++ })
		fail(w, d, apiError{http.StatusUnauthorized, "authentication_error", "invalid_api_key", "this is not the provider's credential"})
		return
	}
	if r.Method == http.MethodGet {
		writeJSON(w, http.StatusOK, d.models(p.cfg.Models, p.cfg.Name))
		return
	}
	c, err := parse(body)
	if err != nil {
		p.counts.add("", func(m *ModelCounts) { m.Requests++; m.Failed++ })
		fail(w, d, apiError{http.StatusBadRequest, "invalid_request_error", "invalid_request", err.Error()})
		return
	}
	c.provider, c.serial, c.created = p.cfg.Name, serial, time.Now().Unix()
	p.pace(c)
	p.answer(w, r, d, c)
}

func (p *Provider) authorized(r *http.Request) bool {
	if p.cfg.Credential == "" {
		return true
	}
	bearer, _ := strings.CutPrefix(r.Header.Get("authorization"), "Bearer ")
	return bearer == p.cfg.Credential || r.Header.Get("x-api-key") == p.cfg.Credential
}

// pace settles how long c waits: the configuration, its jitter, then the
// suffixes of the model name (":ft=250ms", ":tps=20").
func (p *Provider) pace(c *call) {
	first, tps := p.cfg.FirstToken, p.cfg.TokensPerSecond
	if p.cfg.Jitter > 0 {
		rng := rand.New(rand.NewPCG(p.cfg.Seed, p.jitter.Add(1))) //nolint:gosec // G404: spreads latencies, guards nothing
		first = time.Duration(float64(first) * (1 + p.cfg.Jitter*(2*rng.Float64()-1)))
	}
	if c.suffix.first != nil {
		first = *c.suffix.first
	}
	if c.suffix.tps != nil {
		tps = *c.suffix.tps
	}
	c.first = first
	if tps > 0 {
		c.perToken = time.Duration(float64(time.Second) / tps)
	}
}

// apiError is what a dialect turns into its own error body.
type apiError struct {
	status  int
	kind    string // Anthropic's word for it; OpenAI's type follows from the status
	code    string
	message string
}

func fail(w http.ResponseWriter, d dialect, e apiError) { writeJSON(w, e.status, d.errorBody(e)) }

func writeJSON(w http.ResponseWriter, status int, v any) {
	writeBody(w, status, mustJSON(v))
}

func writeBody(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("content-type", "application/json")
	w.Header().Set("content-length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone; nothing is left to tell it
}

// mustJSON encodes values made only of strings, numbers, maps and slices.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("simmodel: " + err.Error())
	}
	return b
}
