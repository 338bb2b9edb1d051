package dialect

import (
	"bytes"
	"unicode/utf8"
)

// Usage is what a provider says an answer cost. The zero Usage says nothing.
type Usage struct {
	Input      int64 // prompt tokens; Anthropic: those neither read from nor written to its cache
	Output     int64
	CacheRead  int64 // OpenAI: part of Input; Anthropic: beside it
	CacheWrite int64 // Anthropic only
	Final      bool  // the provider's own closing figures
}

// EstimateTokens is how many tokens n bytes of text stand for, where a
// provider's own figure never came: four bytes a token, rounded up. Such
// figures are marked as estimated wherever they appear.
func EstimateTokens(n int64) int64 { return (n + 3) / 4 }

// Answer is what a plain (not streamed) 200 body says about itself.
type Answer struct {
	Usage   Usage
	Refused bool // the provider's safety system declined
}

// ReadAnswer reads a plain 200 body. ok is false where the body is not an
// answer of the dialect: no JSON object, or an error object.
func ReadAnswer(d Dialect, body []byte) (a Answer, ok bool) {
	c := cursor{b: body}
	if c.peek() != '{' {
		return Answer{}, false
	}
	failed := false
	c.object(func(key []byte) {
		switch string(key) {
		case "error":
			failed = failed || !c.isNull()
			c.value()
		case "usage":
			readUsage(d, &c, &a.Usage)
		case "stop_reason":
			if s, _ := c.text(); d == Anthropic && string(s) == "refusal" {
				a.Refused = true
			}
		case "choices":
			if d != OpenAI || c.peek() != '[' {
				c.value()
				return
			}
			c.array(func() {
				if readChoice(&c, nil) {
					a.Refused = true
				}
			})
		default:
			c.value()
		}
	})
	a.Usage.Final = a.Usage != Usage{}
	return a, c.end() && !failed && utf8.Valid(body)
}

// readChoice takes one element of choices and reports whether it is a refusal.
// Bytes of text in a delta are added to *text.
func readChoice(c *cursor, text *int64) (refused bool) {
	c.objectOr(func(key []byte) {
		switch string(key) {
		case "finish_reason":
			if s, _ := c.text(); string(s) == "content_filter" {
				refused = true
			}
		case "message", "delta":
			c.objectOr(func(key []byte) {
				isRefusal := string(key) == "refusal"
				if c.peek() != '"' {
					s := c.span()
					if s.End-s.Start > len("null") && text != nil {
						*text += int64(s.End - s.Start) // tool calls, as JSON
					}
					return
				}
				raw, _ := c.str()
				if isRefusal && len(raw) > 0 {
					refused = true
				}
				if text != nil && string(key) != "role" {
					*text += int64(len(raw))
				}
			})
		default:
			c.value()
		}
	})
	return refused
}

// readUsage takes a usage value. Figures that are absent keep what u has.
func readUsage(d Dialect, c *cursor, u *Usage) {
	c.objectOr(func(key []byte) {
		if d == Anthropic {
			switch string(key) {
			case "input_tokens":
				u.Input = c.count()
			case "output_tokens":
				u.Output = c.count()
			case "cache_read_input_tokens":
				u.CacheRead = c.count()
			case "cache_creation_input_tokens":
				u.CacheWrite = c.count()
			default:
				c.value()
			}
			return
		}
		switch string(key) {
		case "prompt_tokens":
			u.Input = c.count()
		case "completion_tokens":
			u.Output = c.count()
		case "prompt_tokens_details":
			c.objectOr(func(key []byte) {
				if string(key) == "cached_tokens" {
					u.CacheRead = c.count()
				} else {
					c.value()
				}
			})
		default:
			c.value()
		}
	})
}

// Refusal codes that providers use for "our safety system declines", in
// error.code, error.type or error.innererror.code.
var refusalCodes = []string{
	"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation", "invalid_prompt",
	"moderation_blocked", "safety_violation", "cyber_policy_violation", "refusal",
}

// Problem is what an upstream's error body says.
type Problem struct {
	Refused       bool // a refusal: final, passed on as it is
	ContextLength bool // the prompt is too long for the model
}

// ReadProblem reads an upstream's error body in either dialect. A body that is
// not understood is no problem in particular.
func ReadProblem(body []byte) (p Problem) {
	note := func(s []byte) {
		for _, code := range refusalCodes {
			if string(s) == code {
				p.Refused = true
			}
		}
		if string(s) == string(ContextLengthExceeded) {
			p.ContextLength = true
		}
	}
	c := cursor{b: body}
	c.objectOr(func(key []byte) {
		if string(key) != "error" {
			c.value()
			return
		}
		c.objectOr(func(key []byte) {
			switch string(key) {
			case "code", "type":
				s, _ := c.text()
				note(s)
			case "message":
				s, _ := c.text()
				if bytes.Contains(s, []byte("prompt is too long")) || bytes.Contains(s, []byte("maximum context length")) {
					p.ContextLength = true
				}
			case "innererror":
				c.objectOr(func(key []byte) {
					if string(key) != "code" {
						c.value()
						return
					}
					s, _ := c.text()
					note(s)
				})
			default:
				c.value()
			}
		})
	})
	if !c.end() {
		return Problem{}
	}
	return p
}
