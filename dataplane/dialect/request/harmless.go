package request

import (
	"strings"

	"ringmain/dataplane/dialect"
)

// HarmlessFields are the fields of a request that the scan does not read and
// that are known to have nothing kept: they shape the answer, or name who asks.
// Without retention every other one is refused, as nobody has looked at it.
type HarmlessFields struct {
	Where string // a path, the beginning of several, or the name of a dialect for all of its endpoints
	Names string // separated by spaces
}

// harmlessTable holds the fields of openai-go v3.96 and anthropic-sdk-go v1.84,
// and those of open servers (vLLM, SGLang) and of providers who extend OpenAI's.
var harmlessTable = [...]HarmlessFields{
	{"openai", "frequency_penalty logit_bias max_tokens metadata moderation presence_penalty prompt_cache_key safety_identifier service_tier stop top_p user"},
	{chatPath, "function_call functions max_completion_tokens modalities parallel_tool_calls prediction reasoning_effort response_format tool_choice verbosity"},
	{responsesPath, "access_programs context_management instructions max_output_tokens max_tool_calls parallel_tool_calls reasoning text tool_choice truncation"},
	{"/v1/completions", "echo response_format suffix"},
	{"/v1/embeddings", "dimensions embedding_type encoding_format input input_type late_chunking normalized output_dimension output_dtype task truncate truncation"},
	{"/v1/audio/", "chunking_strategy file include input instructions keywords known_speaker_names known_speaker_references language languages prompt response_format speed temperature timestamp_granularities"},
	{imagesPath + "/", "aspect_ratio background complexity frame_count frame_duration_ms guidance_scale height input_fidelity markup negative_prompt num_inference_steps output_compression output_format partial_images prompt quality resolution seed size steps style svg width"},
	// Of open servers and other providers.
	{"openai", "add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template chat_template_kwargs context_length_exceeded_behavior continue_final_message documents ebnf enable_thinking guided_choice guided_grammar guided_json guided_regex guided_whitespace_pattern grammar ignore_eos include_reasoning include_stop_str_in_output json_schema length_penalty media_io_kwargs min_p min_tokens mm_processor_kwargs priority prompt_cache_isolation_key prompt_logprobs prompt_mode prompt_truncate_len random_seed reasoning reasoning_format regex repetition_penalty return_token_ids return_tokens_as_token_ids safe_prompt separate_reasoning skip_special_tokens spaces_between_special_tokens stop_token_ids stream_reasoning structural_tag structured_outputs thinking thinking_budget thinking_token_budget top_a top_k transforms truncate_prompt_tokens typical_p usage use_beam_search"},
	{"anthropic", "anthropic_version compaction context_management max_tokens metadata output_config output_format service_tier speed stop_sequences thinking tool_choice top_k top_p"},
}

// Harmless lists them.
func Harmless() []HarmlessFields { return append([]HarmlessFields(nil), harmlessTable[:]...) }

// harmlessAt is the table by endpoint.
var harmlessAt = func() map[*dialect.Endpoint]map[string]bool {
	all := map[*dialect.Endpoint]map[string]bool{}
	for _, ep := range dialect.Endpoints() {
		names := map[string]bool{}
		for _, row := range harmlessTable {
			if row.Where == ep.Dialect.String() || row.Where == ep.Path || strings.HasSuffix(row.Where, "/") && strings.HasPrefix(ep.Path, row.Where) {
				for name := range strings.FieldsSeq(row.Names) {
					names[name] = true
				}
			}
		}
		all[ep] = names
	}
	return all
}()

// unlisted notes a field that no list knows, the nth of the request.
func (q *Request) unlisted(nth int) {
	if q.Stores == "" {
		q.Stores, q.Unlisted = otherField, nth
	}
}
