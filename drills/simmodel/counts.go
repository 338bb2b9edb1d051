package simmodel

import "sync"

// maxModels bounds how many model names are counted apart.
const maxModels = 1024

// ModelCounts is what was served under one model name (suffixes taken off).
// Every request ends in exactly one of Completed, Failed, Unauthorized, Cut
// and ClientGone; requests still running make up the difference.
type ModelCounts struct {
	Requests     int64 `json:"requests"`
	Completed    int64 `json:"completed"`    // whole answer written, refusals included
	Refused      int64 `json:"refused"`      // of those completed: refusals
	Failed       int64 `json:"failed"`       // ended with an error, in the status or in the stream
	Unauthorized int64 `json:"unauthorized"` // wrong credential
	Cut          int64 `json:"cut"`          // ended by a fault without an error: reset, cut, garbage
	ClientGone   int64 `json:"client_gone"`  // the client left first, silence and stall included
	Aborted      int64 `json:"aborted"`      // of those: left a stream that was going on

	PromptTokens     int64 `json:"prompt_tokens"`     // of completed answers
	CompletionTokens int64 `json:"completion_tokens"` // of completed answers
	UnfinishedTokens int64 `json:"unfinished_tokens"` // written in answers that did not complete
}

// Counts is the body of GET /sim/counts. "Written" means handed to the server's
// connection, which is not yet read by the client.
type Counts struct {
	Name   string                 `json:"name"`
	Models map[string]ModelCounts `json:"models"` // "" holds requests whose model could not be read
	Total  ModelCounts            `json:"total"`
}

type counts struct {
	mu     sync.Mutex
	models map[string]*ModelCounts
}

func (c *counts) add(model string, change func(*ModelCounts)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.models[model]
	if m == nil {
		if len(c.models) >= maxModels {
			model = "other"
		}
		if c.models == nil {
			c.models = map[string]*ModelCounts{}
		}
		if m = c.models[model]; m == nil {
			m = &ModelCounts{}
			c.models[model] = m
		}
	}
	change(m)
}

func (c *counts) snapshot(name string) Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := Counts{Name: name, Models: make(map[string]ModelCounts, len(c.models))}
	for model, m := range c.models {
		out.Models[model] = *m
		t := &out.Total
		t.Requests += m.Requests
		t.Completed += m.Completed
		t.Refused += m.Refused
		t.Failed += m.Failed
		t.Unauthorized += m.Unauthorized
		t.Cut += m.Cut
		t.ClientGone += m.ClientGone
		t.Aborted += m.Aborted
		t.PromptTokens += m.PromptTokens
		t.CompletionTokens += m.CompletionTokens
		t.UnfinishedTokens += m.UnfinishedTokens
	}
	return out
}

// seen remembers prompts for sim-500-once, within a bound: when it is full it
// starts anew, and prompts seen before fail once more.
type seen struct {
	mu  sync.Mutex
	set map[string]bool
}

func (s *seen) first(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set[key] {
		return false
	}
	if s.set == nil || len(s.set) >= 1<<16 {
		s.set = map[string]bool{}
	}
	s.set[key] = true
	return true
}
