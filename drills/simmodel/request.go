package simmodel

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// call is one request, parsed, with the answer it shall get.
type call struct {
	model    string // as asked, echoed in the answer
	base     string // without suffixes: decides answer and fault
	suffix   suffix
	messages []Message
	stream   bool
	usage    bool // OpenAI: stream_options.include_usage
	tokens   []string
	whole    bool
	prompt   int // tokens

	provider string
	serial   uint64
	created  int64
	first    time.Duration
	perToken time.Duration
}

// suffix is what a model name may carry to set its own pace.
type suffix struct {
	first *time.Duration
	tps   *float64
}

// splitModel takes ":ft=<duration>" and ":tps=<number>" off a model name.
// Colons without "=" belong to the name.
func splitModel(model string) (base string, s suffix, err error) {
	parts := strings.Split(model, ":")
	kept := []string{parts[0]}
	for _, part := range parts[1:] {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case !ok:
			kept = append(kept, part)
		case key == "ft":
			d, e := time.ParseDuration(value)
			if e != nil || d < 0 {
				return "", suffix{}, fmt.Errorf("model suffix %q: want a duration such as ft=250ms", part)
			}
			s.first = &d
		case key == "tps":
			f, e := strconv.ParseFloat(value, 64)
			if e != nil || f < 0 {
				return "", suffix{}, fmt.Errorf("model suffix %q: want a number such as tps=20", part)
			}
			s.tps = &f
		default:
			return "", suffix{}, fmt.Errorf("model suffix %q: only ft and tps are known", part)
		}
	}
	return strings.Join(kept, ":"), s, nil
}

// parse reads a body of either dialect: the fields used here do not clash.
func parse(body []byte) (*call, error) {
	var in struct {
		Model    string `json:"model"`
		Messages []struct {
			Role    string          `json:"role"`
			Content json.RawMessage `json:"content"`
		} `json:"messages"`
		System        json.RawMessage `json:"system"`
		Stream        bool            `json:"stream"`
		StreamOptions *struct {
			IncludeUsage bool `json:"include_usage"`
		} `json:"stream_options"`
		N                   *int `json:"n"`
		MinTokens           int  `json:"min_tokens"`
		MaxTokens           int  `json:"max_tokens"`
		MaxCompletionTokens int  `json:"max_completion_tokens"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("the body is not the JSON expected: %w", err)
	}
	if in.Model == "" {
		return nil, errors.New("model is missing")
	}
	if len(in.Messages) == 0 {
		return nil, errors.New("messages is missing")
	}
	if in.N != nil && *in.N != 1 {
		return nil, errors.New("only n = 1 is simulated")
	}
	c := &call{model: in.Model, stream: in.Stream}
	var err error
	if c.base, c.suffix, err = splitModel(in.Model); err != nil {
		return nil, err
	}
	c.usage = in.StreamOptions != nil && in.StreamOptions.IncludeUsage
	if len(in.System) > 0 {
		text, err := flatten(in.System)
		if err != nil {
			return nil, fmt.Errorf("system: %w", err)
		}
		c.messages = append(c.messages, Message{Role: "system", Text: text})
	}
	for i, m := range in.Messages {
		text, err := flatten(m.Content)
		if err != nil {
			return nil, fmt.Errorf("messages[%d].content: %w", i, err)
		}
		c.messages = append(c.messages, Message{Role: m.Role, Text: text})
	}
	maxTokens := in.MaxTokens
	if in.MaxCompletionTokens > 0 {
		maxTokens = in.MaxCompletionTokens
	}
	c.prompt = PromptTokens(c.messages)
	c.tokens, c.whole = Tokens(c.base, c.messages, min(in.MinTokens, 1<<20), maxTokens)
	return c, nil
}

// flatten gives the text of a content that is a string, null or a list of parts.
func flatten(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return "", nil
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text, nil
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return "", errors.New("want a string or a list of parts")
	}
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text)
	}
	return b.String(), nil
}
