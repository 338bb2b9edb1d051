package dialect

import (
	"strings"

	"ringmain/dataplane/dialect/jsontext"
)

// Usage is what a provider says an answer cost. The zero Usage says nothing.
type Usage struct {
	Input      int64 // prompt tokens; Anthropic: those neither read from nor written to its cache
	Output     int64
	CacheRead  int64 // OpenAI: part of Input; Anthropic: beside it
	CacheWrite int64 // OpenAI: part of Input; Anthropic: beside it
	Final      bool  // the provider's own closing figures

	beside besides
}

// besides are figures that Anthropic tells beside its totals, and bills too.
// Usage has them in its own.
type besides struct{ input, output, cacheRead, cacheWrite int64 }

func (u *Usage) add(b besides, sign int64) {
	u.Input += sign * b.input
	u.Output += sign * b.output
	u.CacheRead += sign * b.cacheRead
	u.CacheWrite += sign * b.cacheWrite
}

// Costs reports whether any figure is more than 0. Zeros stand where a provider
// has none to tell.
func (u *Usage) Costs() bool { return u.Input|u.Output|u.CacheRead|u.CacheWrite != 0 }

// EstimateTokens is how many tokens n bytes of text stand for, where a
// provider's own figure never came: four bytes a token, rounded up. Such
// figures are marked as estimated wherever they appear.
func EstimateTokens(n int64) int64 { return (n + 3) / 4 }

// Answer is what a plain (not streamed) 200 body says about itself.
type Answer struct {
	Usage   Usage
	Refused bool // the provider's safety system declined
	Deep    bool // it is none that can be read, for it nests too deep: as its model was asked to, perhaps
}

// ReadAnswer reads a plain 200 body of the given content type. ok is false
// where the body is not an answer of the endpoint: no JSON object, an error
// object, or one that says that it failed. Of a body that is not JSON, where
// the endpoint may answer so, nothing is known but that it is no error.
func ReadAnswer(ep *Endpoint, contentType string, body []byte) (a Answer, ok bool) {
	if ep.Binary && !saysJSON(contentType) {
		return Answer{}, len(body) > 0
	}
	c := jsontext.Cursor{Data: body}
	if c.Peek() != '{' {
		return Answer{}, false
	}
	r := answerReader{Cursor: c, ep: ep}
	r.Object(r.member)
	if !r.End() || r.failed && !r.declined {
		return Answer{Deep: r.Cursor.Deep}, false
	}
	r.answer.Refused = r.answer.Refused || r.declined
	r.answer.Usage.Final = r.told.Closes(ep.Streams && !ep.Media) && r.answer.Usage.Costs()
	return r.answer, true
}

// saysJSON reports whether a content type is that of JSON, whatever its parameters.
func saysJSON(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(media), "application/json")
}

// answerReader is one pass over a plain answer.
type answerReader struct {
	jsontext.Cursor
	ep       *Endpoint
	answer   Answer
	told     Told
	failed   bool // it says that it failed
	declined bool // and that a refusal was why
}

// member takes one field at the top of an answer.
func (r *answerReader) member(key []byte) {
	switch string(key) {
	case "error":
		r.failed = r.failed || !r.IsNull()
		r.ObjectOr(func(key []byte) {
			if s, ok := r.problemText(key); ok && IsRefusalCode(s) {
				r.declined = true
			}
		})
	case "status": // of a response
		if s, _ := r.Text(); string(s) == "failed" {
			r.failed = true
		}
	case "incomplete_details":
		r.ObjectOr(func(key []byte) {
			if string(key) != "reason" {
				r.Value()
			} else if s, _ := r.Text(); string(s) == "content_filter" {
				r.answer.Refused = true
			}
		})
	case "usage":
		if r.ep.Usage == UsageNone {
			r.Value()
		} else {
			r.told |= ReadUsage(r.ep.Dialect, &r.Cursor, &r.answer.Usage)
		}
	case "stop_reason":
		if s, _ := r.Text(); r.ep.Dialect == Anthropic && string(s) == "refusal" {
			r.answer.Refused = true
		}
	case "choices":
		r.each(r.choice)
	case "output":
		r.each(r.item)
	default:
		r.Value()
	}
}

// problemText takes the value of key and gives it if key is a code or type.
func (r *answerReader) problemText(key []byte) (s []byte, ok bool) {
	if string(key) != "code" && string(key) != "type" {
		r.Value()
		return nil, false
	}
	return r.Text()
}

// each takes the objects of an array, or any other value whole.
func (r *answerReader) each(member func(key []byte)) {
	if r.Peek() != '[' {
		r.Value()
		return
	}
	r.Array(func() { r.ObjectOr(member) })
}

// choice takes one field of a chat or text completion's choice.
func (r *answerReader) choice(key []byte) {
	switch string(key) {
	case "finish_reason":
		if s, _ := r.Text(); string(s) == "content_filter" {
			r.answer.Refused = true
		}
	case "message":
		r.ObjectOr(func(key []byte) {
			if string(key) != "refusal" {
				r.Value()
			} else if s, _ := r.Text(); len(s) > 0 {
				r.answer.Refused = true
			}
		})
	case "content_filter_results", "content_filter_result":
		if Filtered(&r.Cursor) {
			r.answer.Refused = true
		}
	default:
		r.Value()
	}
}

// item takes one field of an output item of a response: messages have parts,
// of which one may be a refusal.
func (r *answerReader) item(key []byte) {
	if string(key) != "content" {
		r.Value()
		return
	}
	if RefusalPart(&r.Cursor) {
		r.answer.Refused = true
	}
}

// Filtered takes what Azure's filters say of a choice, {"hate": {"filtered":
// true}}, and reports whether one of them held it back.
func Filtered(c *jsontext.Cursor) (found bool) {
	c.ObjectOr(func([]byte) {
		c.ObjectOr(func(key []byte) {
			if s := c.Span(); string(key) == "filtered" && string(s.Of(c.Data)) == "true" {
				found = true
			}
		})
	})
	return found
}

// RefusalPart takes the content of a response's output item and reports whether
// one of its parts is a refusal.
func RefusalPart(c *jsontext.Cursor) (found bool) {
	if c.Peek() != '[' {
		c.Value()
		return false
	}
	c.Array(func() {
		c.ObjectOr(func(key []byte) {
			if string(key) != "type" {
				c.Value()
			} else if s, _ := c.Text(); string(s) == "refusal" {
				found = true
			}
		})
	})
	return found
}

// Told says which figures a usage value held.
type Told uint8

const (
	toldInput Told = 1 << iota
	toldOutput
	toldOdd // one that is no count
)

// Closes reports whether the figures are fit to close an account: of what
// writes text, output belongs to them.
func (t Told) Closes(writes bool) bool {
	return t&toldOdd == 0 && (t&toldOutput != 0 || t != 0 && !writes)
}

// maxTokens bounds what a provider is believed. No answer costs as much.
const maxTokens = 1 << 32

// ReadUsage takes a usage value. Figures that are absent, null or no counts
// keep what u has.
func ReadUsage(d Dialect, c *jsontext.Cursor, u *Usage) Told {
	var t Told
	var total, thought int64
	u.add(u.beside, -1)
	c.ObjectOr(func(key []byte) {
		switch string(key) {
		case "input_tokens":
			t |= tally(c, &u.Input, toldInput)
			return
		case "output_tokens":
			t |= tally(c, &u.Output, toldOutput)
			return
		}
		if d == Anthropic {
			switch string(key) {
			case "cache_read_input_tokens":
				t |= tally(c, &u.CacheRead, 0)
			case "cache_creation_input_tokens":
				t |= tally(c, &u.CacheWrite, 0)
			case "iterations":
				t |= iterations(c, &u.beside)
			default:
				c.Value()
			}
			return
		}
		switch string(key) {
		case "prompt_tokens":
			t |= tally(c, &u.Input, toldInput)
		case "completion_tokens":
			t |= tally(c, &u.Output, toldOutput)
		case "prompt_tokens_details", "input_tokens_details":
			c.ObjectOr(func(key []byte) {
				switch string(key) {
				case "cached_tokens":
					t |= tally(c, &u.CacheRead, 0)
				case "cache_write_tokens":
					t |= tally(c, &u.CacheWrite, 0)
				default:
					c.Value()
				}
			})
		case "completion_tokens_details", "output_tokens_details":
			c.ObjectOr(func(key []byte) {
				if string(key) == "reasoning_tokens" {
					thought = c.Count()
				} else {
					c.Value()
				}
			})
		case "total_tokens":
			total = c.Count()
		default:
			c.Value()
		}
	})
	// xAI counts what thinking cost beside the completion, and not in it
	// (https://docs.x.ai/docs/key-information/consumption-and-rate-limits): its total says so.
	if t == toldInput|toldOutput && thought > 0 && total <= maxTokens && total == u.Input+u.Output+thought {
		u.Output += thought
	}
	u.add(u.beside, 1)
	return t
}

// maxIterations bounds how many are added up; an answer with more is not
// believed.
const maxIterations = 1 << 10

// iterations takes the list of what an answer of the Messages API is made of.
// The totals hold what its own model read and wrote, but not what a compaction
// or an advisor did (anthropic-sdk-go v1.84, BetaUsage.Iterations).
func iterations(c *jsontext.Cursor, all *besides) Told {
	if c.Peek() != '[' {
		c.Value()
		return 0
	}
	var t Told
	var sum besides
	n := 0
	c.Array(func() {
		var one besides
		apart := false
		c.ObjectOr(func(key []byte) {
			switch string(key) {
			case "type":
				s, _ := c.Text()
				apart = string(s) == "compaction" || string(s) == "advisor_message"
			case "input_tokens":
				t |= tally(c, &one.input, 0)
			case "output_tokens":
				t |= tally(c, &one.output, 0)
			case "cache_read_input_tokens":
				t |= tally(c, &one.cacheRead, 0)
			case "cache_creation_input_tokens":
				t |= tally(c, &one.cacheWrite, 0)
			default:
				c.Value()
			}
		})
		if n++; n > maxIterations {
			t |= toldOdd
		} else if apart {
			sum.input, sum.output = sum.input+one.input, sum.output+one.output
			sum.cacheRead, sum.cacheWrite = sum.cacheRead+one.cacheRead, sum.cacheWrite+one.cacheWrite
		}
	})
	*all = sum
	return t
}

// tally takes a value and counts it, unless it is null. It gives what if it
// did, and toldOdd where the value is no count of tokens.
func tally(c *jsontext.Cursor, n *int64, what Told) Told {
	if c.IsNull() {
		c.Value()
		return 0
	}
	v, ok := jsontext.Whole(c.Span().Of(c.Data))
	if !ok || v < 0 || v > maxTokens {
		return toldOdd
	}
	*n = v
	return what
}
