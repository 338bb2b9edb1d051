package dialect

import (
	"bytes"
	"cmp"

	"ringmain/dataplane/dialect/jsontext"
)

// Codes that providers use for "our safety system declines", in the code or
// type of an error, of its innererror, or of a failed response. Sources:
// openai-go v3.96 (responses.ResponseErrorCode), and for Azure
// https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter.
var refusalCodes = []string{
	"content_filter", "content_policy_violation", "image_content_policy_violation", "ResponsibleAIPolicyViolation",
	"invalid_prompt", "moderation_blocked", "safety_violation", "cyber_policy_violation", "bio_policy",
	"misalignment_policy_violation", "refusal", "data_inspection_failed",
}

// What providers write where they give no such code: DeepSeek, Alibaba, and xAI with
// status 403, which elsewhere says that it is the account which may not ask
// (https://github.com/666ghj/BettaFish/issues/108, QwenLM/qwen-code/issues/3145,
// UKGovernmentBEIS/inspect_ai/pull/2267).
var refusalTexts = [][]byte{
	[]byte("blocked by content filtering policy"),
	[]byte("rejected as a result of our safety system"),
	[]byte("triggering Azure OpenAI's content management policy"),
	[]byte("Content Exists Risk"),
	[]byte("Algo.DataInspectionFailed"),
	[]byte("Content violates usage guidelines"),
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

// Codes and messages by which providers say, with whatever status, that it is the
// account which may not ask, not the request. Messages may quote what was asked,
// so they count only if both their ends are a provider's. Seen of Anthropic (400)
// and of OpenAI (400, 403).
var (
	accountCodes    = []string{"billing_error", "billing_hard_limit_reached", "billing_not_active", "account_deactivated"}
	accountMessages = [][2]string{
		{"Your credit balance is too low to access ", " to upgrade or purchase credits."},
		{"You have reached your specified API usage limits. ", " UTC."},
		{"This organization has been disabled", "."},
		{"Your organization must be verified to ", " for access to propagate."},
	}
)

// stands says for which status an error stands by its code, or else its type,
// where it comes within an answer of status 200. Sources: openai-go v3.96
// (responses.ResponseErrorCode), https://docs.claude.com/en/api/errors; the
// second name of 400 is vLLM's.
var stands = []struct {
	status int
	names  []string
}{
	{400, []string{
		"invalid_request_error", "BadRequestError", "image_generation_user_error", string(ContextLengthExceeded), "exceed_context_size_error",
		"invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url", "invalid_image_mode", "image_too_large", "image_too_small",
		"image_parse_error", "image_file_too_large", "unsupported_image_media_type", "empty_image_file", "failed_to_download_image", "image_file_not_found",
	}},
	{401, []string{"authentication_error", "invalid_api_key"}},
	{402, []string{"billing_error"}},
	{403, []string{"permission_error"}},
	{404, []string{"not_found_error", "model_not_found"}},
	{413, []string{"request_too_large"}},
	{429, []string{"rate_limit_error", "rate_limit_exceeded", "insufficient_quota"}},
	{529, []string{"overloaded_error"}},
}

func standsFor(name []byte) (status int) {
	for i := range stands {
		if oneOf(name, stands[i].names) {
			return stands[i].status
		}
	}
	return 0
}

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
	Account       bool // the account that asked may not: it has not paid, or is closed
	// Status is the one that the error says it stands for, by number, code or
	// type, 400 to 599; 0 = it does not say.
	Status int
}

// ReadProblem reads an upstream's error body in either dialect. A body that is
// not understood is no problem in particular.
func ReadProblem(body []byte) Problem {
	r := problemReader{Cursor: jsontext.Cursor{Data: body}}
	r.ObjectOr(func(key []byte) {
		switch {
		case string(key) != "error":
			r.member(key) // vLLM and others have no envelope
		case r.Peek() == '"': // nor has xAI
			r.message()
		default:
			r.ObjectOr(r.member)
		}
	})
	if !r.End() {
		return Problem{}
	}
	r.p.Status = cmp.Or(r.byCode, r.byType)
	return r.p
}

// name takes a code or type and notes what it says.
func (r *problemReader) name() []byte {
	s, _ := r.Text()
	r.p.Refused = r.p.Refused || IsRefusalCode(s)
	r.p.ContextLength = r.p.ContextLength || oneOf(s, lengthCodes)
	r.p.Account = r.p.Account || oneOf(s, accountCodes)
	return s
}

// message takes what is said to people and notes what it says.
func (r *problemReader) message() {
	s, _ := r.Text()
	r.p.Refused = r.p.Refused || contains(s, refusalTexts)
	r.p.ContextLength = r.p.ContextLength || contains(s, lengthTexts)
	r.p.Account = r.p.Account || framed(s, accountMessages)
}

// flagged takes OpenRouter's metadata of an error, and notes if they say why a
// moderator held the prompt back: with status 403, and no code of its own
// (https://openrouter.ai/docs/api/reference/errors-and-debugging).
func (r *problemReader) flagged() {
	r.ObjectOr(func(key []byte) {
		v := r.Span()
		if string(key) == "flagged_input" || string(key) == "reasons" {
			switch string(v.Of(r.Data)) {
			case "null", `""`, "[]":
			default:
				r.p.Refused = true
			}
		}
	})
}

// status gives the status of an error that a number is, in quotes (LiteLLM) or not.
func status(number []byte) int {
	if n, ok := jsontext.Whole(number); ok && n >= 400 && n < 600 {
		return int(n)
	}
	return 0
}

// framed reports whether s begins and ends as one of all does.
func framed(s []byte, all [][2]string) bool {
	for _, one := range all {
		if rest, ok := bytes.CutPrefix(s, []byte(one[0])); ok && bytes.HasSuffix(rest, []byte(one[1])) {
			return true
		}
	}
	return false
}

// problemReader is one pass over an error body.
type problemReader struct {
	jsontext.Cursor
	p              Problem
	byCode, byType int // statuses
}

// member takes one field of an error.
func (r *problemReader) member(key []byte) {
	switch string(key) {
	case "code":
		if r.Peek() != '"' {
			r.byCode = cmp.Or(status(r.Span().Of(r.Data)), r.byCode)
			return
		}
		s := r.name()
		r.byCode = cmp.Or(standsFor(s), status(s), r.byCode)
	case "type":
		r.byType = cmp.Or(standsFor(r.name()), r.byType)
	case "message":
		r.message()
	case "metadata":
		r.flagged()
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
