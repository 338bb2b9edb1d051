package dialect

import (
	"bytes"

	"ringmain/dataplane/dialect/jsontext"
)

// Codes that providers use for "our safety system declines", in the code or
// type of an error, of its innererror, or of a failed response. Sources:
// openai-go v3.96 (responses.ResponseErrorCode), and for Azure
// https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter.
var refusalCodes = []string{
	"content_filter", "content_policy_violation", "image_content_policy_violation", "ResponsibleAIPolicyViolation",
	"invalid_prompt", "moderation_blocked", "safety_violation", "cyber_policy_violation", "bio_policy",
	"misalignment_policy_violation", "refusal",
}

// What providers write where they give no such code.
var refusalTexts = [][]byte{
	[]byte("blocked by content filtering policy"),
	[]byte("rejected as a result of our safety system"),
	[]byte("triggering Azure OpenAI's content management policy"),
}

// Codes and texts that say that the prompt is too long for the model.
var (
	lengthCodes = []string{string(ContextLengthExceeded), "exceed_context_size_error"}
	lengthTexts = [][]byte{
		[]byte("prompt is too long"),
		[]byte("maximum context length"),
		[]byte("exceed context limit"),
		[]byte("exceeds the context window"),
	}
)

// IsRefusalCode reports whether a provider says by code that its safety system declines.
func IsRefusalCode(code []byte) bool { return oneOf(code, refusalCodes) }

func oneOf(s []byte, all []string) bool {
	for _, one := range all {
		if string(s) == one {
			return true
		}
	}
	return false
}

func contains(s []byte, all [][]byte) bool {
	for _, one := range all {
		if bytes.Contains(s, one) {
			return true
		}
	}
	return false
}

// Problem is what an upstream's error body says.
type Problem struct {
	Refused       bool // a refusal: final, passed on as it is
	ContextLength bool // the prompt is too long for the model
}

// ReadProblem reads an upstream's error body in either dialect. A body that is
// not understood is no problem in particular.
func ReadProblem(body []byte) Problem {
	r := problemReader{Cursor: jsontext.Cursor{Data: body}}
	r.ObjectOr(func(key []byte) {
		if string(key) == "error" {
			r.ObjectOr(r.member)
		} else {
			r.member(key) // vLLM and others have no envelope
		}
	})
	if !r.End() {
		return Problem{}
	}
	return r.p
}

// problemReader is one pass over an error body.
type problemReader struct {
	jsontext.Cursor
	p Problem
}

// member takes one field of an error.
func (r *problemReader) member(key []byte) {
	switch string(key) {
	case "code", "type":
		s, _ := r.Text()
		r.p.Refused = r.p.Refused || IsRefusalCode(s)
		r.p.ContextLength = r.p.ContextLength || oneOf(s, lengthCodes)
	case "message":
		s, _ := r.Text()
		r.p.Refused = r.p.Refused || contains(s, refusalTexts)
		r.p.ContextLength = r.p.ContextLength || contains(s, lengthTexts)
	case "innererror", "inner_error":
		r.ObjectOr(func(key []byte) {
			if string(key) != "code" {
				r.Value()
				return
			}
			s, _ := r.Text()
			r.p.Refused = r.p.Refused || IsRefusalCode(s)
		})
	default:
		r.Value()
	}
}
