// Package simmodel is a scripted model provider that speaks the OpenAI and the
// Anthropic wire format: deterministic answers, configurable pace, faults by
// model name, and exact counts of what it served.
//
// It is the one room under drills that production may import, and only for
// `ringmain dev`. Nothing of ringmain may enter it: it plays the outside world.
package simmodel

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"ringmain/drills/simmodel/wire"
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
	Credential      string        // required as bearer token, x-api-key or api-key; "" = anything is accepted
	Chunk           int           // characters in each event of a stream; 0 = a token. The text is the same
	Write           int           // most bytes in each write of a stream; 0 = an event at a time

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

// endpoint is one path that answers POST.
type endpoint struct {
	dialect   wire.Dialect
	streams   bool
	multipart bool
	read      func(in *input, c *call) error // what of the body is the prompt
	plain     func(c *call) (string, []byte) // content type and body; nil = the dialect's
	media     func(c *call) []byte           // what is heard or seen; nil = nothing
}

var endpoints = map[string]*endpoint{
	"/v1/chat/completions":      {dialect: wire.Chat{}, streams: true, read: readMessages},
	"/v1/completions":           {dialect: wire.Completions{}, streams: true, read: readPrompt},
	"/v1/responses":             {dialect: wire.Responses{}, streams: true, read: readInput},
	"/v1/messages":              {dialect: wire.Anthropic{}, streams: true, read: readMessages},
	"/v1/messages/count_tokens": {dialect: wire.Anthropic{}, read: readMessages, plain: plainCount},
	"/v1/embeddings":            {dialect: wire.OpenAI{}, read: readTexts, plain: plainEmbeddings},
	"/v1/audio/speech":          {dialect: wire.Speech{}, streams: true, read: readSpeech, plain: plainSpeech, media: sound},
	"/v1/audio/transcriptions":  {dialect: wire.Transcript{}, streams: true, multipart: true, read: readPrompt, plain: plainTranscript},
	"/v1/audio/translations":    {dialect: wire.OpenAI{}, multipart: true, read: readPrompt, plain: plainTranscript},
	"/v1/images/generations":    {dialect: wire.Picture{Kind: "image_generation"}, streams: true, read: readPrompt, plain: plainImages, media: picture},
	"/v1/images/edits":          {dialect: wire.Picture{Kind: "image_edit"}, streams: true, multipart: true, read: readPrompt, plain: plainImages, media: picture},
	"/v1/images/variations":     {dialect: wire.OpenAI{}, multipart: true, read: readPrompt, plain: plainImages, media: picture},
}

// ServeHTTP answers POST at every path of endpoints, GET /v1/models and GET
// /sim/counts.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ep := endpoints[r.URL.Path]
	var d wire.Dialect = wire.OpenAI{}
	switch {
	case ep != nil:
		d = ep.dialect
	case r.Header.Get("anthropic-version") != "":
		d = wire.Anthropic{}
	}
	serial := p.serial.Add(1)
	for _, h := range accountHeaders {
		w.Header().Set(h[0], h[1])
	}
	w.Header().Set(d.RequestIDHeader(), fmt.Sprintf("req_%s_%d", p.cfg.Name, serial))

	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/sim/counts":
		writeJSON(w, http.StatusOK, p.Counts())
		return
	case r.URL.Path == RedirectPath:
		p.counts.add("redirected", func(m *ModelCounts) { m.Requests++; m.Failed++ })
		fail(w, d, withStatus(http.StatusNotFound))
		return
	case r.Method == http.MethodPost && ep != nil,
		r.Method == http.MethodGet && r.URL.Path == "/v1/models":
	default:
		fail(w, d, wire.Error{Status: http.StatusNotFound, Kind: "not_found_error", Code: "not_found", Message: "nothing is served at " + r.Method + " " + r.URL.Path})
		return
	}

	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			fail(w, d, wire.Error{Status: http.StatusRequestEntityTooLarge, Kind: "request_too_large", Code: "request_too_large", Message: "the body is over 33 MiB"})
		}
		return
	}
	if p.cfg.OnRequest != nil {
		p.cfg.OnRequest(r, body)
	}
	if !p.authorized(r) {
		p.counts.add("", func(m *ModelCounts) { m.Requests++; m.Unauthorized++ })
		fail(w, d, wire.Error{Status: http.StatusUnauthorized, Kind: "authentication_error", Code: "invalid_api_key", Message: "this is not the provider's credential"})
		return
	}
	if r.Method == http.MethodGet {
		writeJSON(w, http.StatusOK, d.Models(p.cfg.Models, p.cfg.Name))
		return
	}
	c := &call{Answer: wire.Answer{Provider: p.cfg.Name, Serial: serial, Created: time.Now().Unix()}, chunk: p.cfg.Chunk, write: p.cfg.Write}
	if err := c.parse(ep, r.Header.Get("content-type"), body); err != nil {
		p.counts.add("", func(m *ModelCounts) { m.Requests++; m.Failed++ })
		fail(w, d, wire.Error{Status: http.StatusBadRequest, Kind: "invalid_request_error", Code: "invalid_request", Message: err.Error()})
		return
	}
	p.pace(c)
	p.answer(w, r, ep, c)
}

func (p *Provider) authorized(r *http.Request) bool {
	if p.cfg.Credential == "" {
		return true
	}
	bearer, _ := strings.CutPrefix(r.Header.Get("authorization"), "Bearer ")
	return bearer == p.cfg.Credential || r.Header.Get("x-api-key") == p.cfg.Credential || r.Header.Get("api-key") == p.cfg.Credential
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

func fail(w http.ResponseWriter, d wire.Dialect, e wire.Error) {
	writeJSON(w, e.Status, d.ErrorBody(e))
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	writeBody(w, status, "application/json", wire.MustJSON(v))
}

func writeBody(w http.ResponseWriter, status int, contentType string, body []byte) {
	w.Header().Set("content-type", contentType)
	w.Header().Set("content-length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone; nothing is left to tell it
}
