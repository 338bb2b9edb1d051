package simmodel_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	sdkanthropic "github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	sdkopenai "github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
	sdkresponses "github.com/openai/openai-go/v3/responses"
	"pgregory.net/rapid"

	"ringmain/drills/simmodel"
)

const question = "Which region feeds the ring?"

var answer = simmodel.Answer("sim-chat", prompt(question))

func openaiAt(url string, hc *http.Client) sdkopenai.Client {
	return sdkopenai.NewClient(openaioption.WithBaseURL(url+"/v1"), openaioption.WithAPIKey("any"), openaioption.WithHTTPClient(hc), openaioption.WithMaxRetries(0))
}

func anthropicAt(url string, hc *http.Client) sdkanthropic.Client {
	return sdkanthropic.NewClient(anthropicoption.WithBaseURL(url), anthropicoption.WithAPIKey("any"), anthropicoption.WithHTTPClient(hc), anthropicoption.WithMaxRetries(0))
}

func TestResponses(t *testing.T) {
	url, hc := serve(t, simmodel.New(simmodel.Config{}), true)
	c := openaiAt(url, hc)
	ask := sdkresponses.ResponseNewParams{Model: "sim-chat", Input: sdkresponses.ResponseNewParamsInputUnion{OfString: sdkopenai.String(question)}}
	plain, err := c.Responses.New(t.Context(), ask)
	if err != nil || plain.OutputText() != answer || plain.Status != "completed" || plain.Usage.OutputTokens == 0 {
		t.Fatalf("%v %q %+v", err, plain.OutputText(), plain.Usage)
	}
	run := func() (deltas string, last *sdkresponses.Response, kinds map[string]int, err error) {
		stream := c.Responses.NewStreaming(t.Context(), ask)
		kinds = map[string]int{}
		var n int64
		for stream.Next() {
			e := stream.Current()
			if e.SequenceNumber != n {
				t.Fatalf("event %s is number %d, want %d", e.Type, e.SequenceNumber, n)
			}
			n++
			kinds[e.Type]++
			switch e.Type {
			case "response.output_text.delta", "response.refusal.delta", "response.function_call_arguments.delta":
				deltas += e.Delta
			case "response.completed", "response.incomplete":
				last = &e.Response
			}
		}
		return deltas, last, kinds, stream.Err()
	}
	text, last, _, err := run()
	if err != nil || text != answer || last == nil || last.OutputText() != answer || last.Usage.OutputTokens != plain.Usage.OutputTokens {
		t.Fatalf("%v %q %+v", err, text, last)
	}
	ask.MaxOutputTokens = sdkopenai.Int(3)
	if _, last, _, err = run(); err != nil || last == nil || last.IncompleteDetails.Reason != "max_output_tokens" || last.Usage.OutputTokens != 3 {
		t.Errorf("cut short: %v %+v", err, last)
	}
	ask.MaxOutputTokens = sdkopenai.Int(64)
	ask.Model = simmodel.FaultRefusal
	if text, last, kinds, err := run(); err != nil || text == "" || kinds["response.refusal.done"] != 1 || last.Output[0].Content[0].Refusal != text {
		t.Errorf("refusal: %v %q %v", err, text, kinds)
	}
	ask.Model = "sim-chat"
	ask.Tools = []sdkresponses.ToolUnionParam{sdkresponses.ToolParamOfFunction("weather", weather, true)}
	text, last, kinds, err := run()
	if err != nil || text != `{"city":"Zürich","days":7}` || kinds["response.function_call_arguments.delta"] < 3 || last.Output[0].Name != "weather" {
		t.Errorf("tools: %v %q %v", err, text, kinds)
	}
	ask.Model = "sim-chat:error=2"
	if _, _, _, err := run(); err == nil || !strings.Contains(err.Error(), "overloaded") {
		t.Errorf("error in the stream read as %v", err)
	}
}

var weather = map[string]any{"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}, "days": map[string]any{"type": "integer"}}}

func TestTools(t *testing.T) {
	url, hc := serve(t, simmodel.New(simmodel.Config{}), true)
	oc := openaiAt(url, hc)
	ask := sdkopenai.ChatCompletionNewParams{Model: "sim-chat", Messages: []sdkopenai.ChatCompletionMessageParamUnion{sdkopenai.UserMessage(question)},
		Tools: []sdkopenai.ChatCompletionToolUnionParam{
			sdkopenai.ChatCompletionFunctionTool(sdkopenai.FunctionDefinitionParam{Name: "weather", Parameters: weather}),
			sdkopenai.ChatCompletionFunctionTool(sdkopenai.FunctionDefinitionParam{Name: "clock", Parameters: sdkopenai.FunctionParameters{"type": "object"}}),
		}, ParallelToolCalls: sdkopenai.Bool(true)}
	plain, err := oc.Chat.Completions.New(t.Context(), ask)
	if err != nil || plain.Choices[0].FinishReason != "tool_calls" || len(plain.Choices[0].Message.ToolCalls) != 2 {
		t.Fatalf("%v %+v", err, plain)
	}
	stream := oc.Chat.Completions.NewStreaming(t.Context(), ask)
	var acc sdkopenai.ChatCompletionAccumulator
	fragments := 0
	for stream.Next() {
		acc.AddChunk(stream.Current())
		if d := stream.Current().Choices[0].Delta; len(d.ToolCalls) > 0 && d.ToolCalls[0].Function.Arguments != "" {
			fragments++
		}
	}
	if stream.Err() != nil || fragments < 4 || len(acc.Choices[0].Message.ToolCalls) != 2 {
		t.Fatalf("%v %d %+v", stream.Err(), fragments, acc.Choices)
	}
	for i, call := range acc.Choices[0].Message.ToolCalls {
		want := plain.Choices[0].Message.ToolCalls[i].Function
		if call.Function.Name != want.Name || call.Function.Arguments != want.Arguments || !json.Valid([]byte(call.Function.Arguments)) {
			t.Errorf("call %d: %+v, want %+v", i, call.Function, want)
		}
	}
	ask.Messages = append(ask.Messages, plain.Choices[0].Message.ToParam(), sdkopenai.ToolMessage("sunny", plain.Choices[0].Message.ToolCalls[0].ID))
	if plain, err = oc.Chat.Completions.New(t.Context(), ask); err != nil || plain.Choices[0].Message.Content == "" {
		t.Errorf("after the result: %v %+v", err, plain)
	}

	ac := anthropicAt(url, hc)
	params := sdkanthropic.MessageNewParams{Model: "sim-chat", MaxTokens: 100, Thinking: sdkanthropic.ThinkingConfigParamOfEnabled(1024),
		Messages: []sdkanthropic.MessageParam{sdkanthropic.NewUserMessage(sdkanthropic.NewTextBlock(question))},
		Tools:    []sdkanthropic.ToolUnionParam{sdkanthropic.ToolUnionParamOfTool(sdkanthropic.ToolInputSchemaParam{Properties: weather["properties"]}, "weather")}}
	events := ac.Messages.NewStreaming(t.Context(), params)
	var m sdkanthropic.Message
	for events.Next() {
		if err := m.Accumulate(events.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if events.Err() != nil || len(m.Content) != 2 || m.Content[0].Type != "thinking" || m.Content[0].Signature == "" ||
		m.Content[1].Name != "weather" || string(m.Content[1].Input) != `{"city":"Zürich","days":7}` || m.StopReason != "tool_use" {
		t.Errorf("%v %+v", events.Err(), m)
	}
	params.Tools = nil
	n, err := ac.Messages.CountTokens(t.Context(), sdkanthropic.MessageCountTokensParams{Model: "sim-chat", Messages: params.Messages})
	if err != nil || n.InputTokens != m.Usage.InputTokens || n.InputTokens != int64(simmodel.PromptTokens(prompt(question))) {
		t.Errorf("count_tokens: %v %+v", err, n)
	}
}

// TestShapes: an answer fits the schema that it is asked to fit, in each place
// where that is said; calls of the Messages API are parallel where that is allowed.
func TestShapes(t *testing.T) {
	url, hc := serve(t, simmodel.New(simmodel.Config{}), true)
	const fits = `{"city":"Zürich","days":7}`
	schema := `{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}}}`
	two := `"tools":[{"name":"a","input_schema":` + schema + `},{"name":"b","input_schema":` + schema + `}]`
	for _, tc := range []struct{ path, body, want string }{
		{"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":` + schema + `}}}`, fits},
		{"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_object"}}`, `"finish_reason":"stop"`},
		{"/v1/responses", `{"model":"m","input":"x","text":{"format":{"type":"json_schema","name":"n","schema":` + schema + `}}}`, fits},
		{"/v1/responses", `{"model":"m","input":"x","text":{"format":{"type":"text"}}}`, `"status":"completed"`},
		{"/v1/messages", `{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"x"}],"output_config":{"format":{"type":"json_schema","schema":` + schema + `}}}`, fits},
		{"/v1/messages", `{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"x"}],"tool_choice":{"type":"auto","disable_parallel_tool_use":false},` + two + `}`, `"name":"b"`},
	} {
		resp, err := hc.Post(url+tc.path, "application/json", strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if got := strings.ReplaceAll(string(b), `\"`, `"`); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %v %d %s, want %s", tc.path, err, resp.StatusCode, got, tc.want)
		}
	}
}

func TestOtherEndpoints(t *testing.T) {
	url, hc := serve(t, simmodel.New(simmodel.Config{}), false)
	c := openaiAt(url, hc)
	e, err := c.Embeddings.New(t.Context(), sdkopenai.EmbeddingNewParams{Model: "sim-embed", Dimensions: sdkopenai.Int(8),
		Input: sdkopenai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"one two", "three"}}})
	if err != nil || len(e.Data) != 2 || e.Usage.PromptTokens != 3 {
		t.Fatalf("%v %+v", err, e)
	}
	want := simmodel.Embedding("sim-embed", "three", 8)
	for i, x := range e.Data[1].Embedding {
		if float32(x) != want[i] {
			t.Errorf("dimension %d: %v, want %v", i, x, want[i])
		}
	}
	resp, err := post(t.Context(), t, hc, url+"/v1/embeddings", `{"model":"sim-embed","input":"three","encoding_format":"base64","dimensions":8}`)
	if err != nil {
		t.Fatal(err)
	}
	var coded struct{ Data []struct{ Embedding string } }
	if err := json.NewDecoder(resp.Body).Decode(&coded); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(coded.Data[0].Embedding)
	if err != nil || len(raw) != 32 || math.Float32frombits(binary.LittleEndian.Uint32(raw)) != want[0] {
		t.Errorf("base64: %v, %d bytes", err, len(raw))
	}
	comp, err := c.Completions.New(t.Context(), sdkopenai.CompletionNewParams{Model: "sim-chat", Prompt: sdkopenai.CompletionNewParamsPromptUnion{OfString: sdkopenai.String(question)}})
	if err != nil || comp.Choices[0].Text != answer || comp.Usage.CompletionTokens == 0 {
		t.Errorf("completions: %v %+v", err, comp)
	}
	stream := c.Completions.NewStreaming(t.Context(), sdkopenai.CompletionNewParams{Model: "sim-chat", Prompt: sdkopenai.CompletionNewParamsPromptUnion{OfString: sdkopenai.String(question)}})
	var text strings.Builder
	for stream.Next() {
		text.WriteString(stream.Current().Choices[0].Text)
	}
	if stream.Err() != nil || text.String() != answer {
		t.Errorf("completions streamed: %v %q", stream.Err(), text.String())
	}
	speech, err := c.Audio.Speech.New(t.Context(), sdkopenai.AudioSpeechNewParams{Model: "sim-voice", Input: "hello", Voice: sdkopenai.AudioSpeechNewParamsVoiceUnion{OfString: sdkopenai.String("alloy")}})
	if err != nil || speech.Header.Get("content-type") != "audio/mpeg" {
		t.Fatalf("speech: %v", err)
	}
	sound, err := io.ReadAll(speech.Body)
	if err != nil || len(sound) != 4+8<<10 {
		t.Errorf("speech: %v, %d bytes", err, len(sound))
	}
	heard, err := c.Audio.Transcriptions.New(t.Context(), sdkopenai.AudioTranscriptionNewParams{Model: "sim-ear", File: bytes.NewReader(sound)})
	if err != nil || heard.Text == "" || heard.Usage.TotalTokens == 0 {
		t.Errorf("transcription: %v %+v", err, heard)
	}
	img, err := c.Images.Generate(t.Context(), sdkopenai.ImageGenerateParams{Model: "sim-eye", Prompt: "a ring"})
	if err != nil || img.Data[0].B64JSON == "" || img.Usage.InputTokens == 0 {
		t.Errorf("image: %v %+v", err, img)
	}
	streamedMedia(t, url, hc, sound, heard, img)
}

// streamedMedia: the same as streams, as the official client reads them.
func streamedMedia(t *testing.T, url string, hc *http.Client, sound []byte, heard *sdkopenai.AudioTranscriptionNewResponseUnion, img *sdkopenai.ImagesResponse) {
	t.Helper()
	c := openaiAt(url, hc)
	drawn, shown := c.Images.GenerateStreaming(t.Context(), sdkopenai.ImageGenerateParams{Model: "sim-eye", Prompt: "a ring", PartialImages: sdkopenai.Int(2)}), ""
	for drawn.Next() {
		if e := drawn.Current(); e.B64JSON == img.Data[0].B64JSON {
			shown += fmt.Sprintf("%s %d %d; ", e.Type, e.PartialImageIndex, e.Usage.InputTokens)
		}
	}
	if want := fmt.Sprintf("image_generation.partial_image 0 0; image_generation.partial_image 1 0; image_generation.completed 0 %d; ", img.Usage.InputTokens); drawn.Err() != nil || shown != want {
		t.Errorf("image streamed: %v %s, want %s", drawn.Err(), shown, want)
	}
	edited := c.Images.EditStreaming(t.Context(), sdkopenai.ImageEditParams{Model: "sim-eye", Prompt: "a ring", Image: sdkopenai.ImageEditParamsImageUnion{OfFile: bytes.NewReader([]byte("PNG"))}})
	if !edited.Next() || edited.Current().Type != "image_edit.completed" || edited.Next() || edited.Err() != nil {
		t.Errorf("edit streamed: %v %+v", edited.Err(), edited.Current())
	}
	hears, delta := c.Audio.Transcriptions.NewStreaming(t.Context(), sdkopenai.AudioTranscriptionNewParams{Model: "sim-ear", File: bytes.NewReader(sound)}), ""
	for hears.Next() {
		delta += hears.Current().Delta
	}
	if hears.Err() != nil || delta != heard.Text || hears.Current().Text != heard.Text || hears.Current().Usage.TotalTokens != heard.Usage.TotalTokens {
		t.Errorf("transcription streamed: %v %q %+v, want %q", hears.Err(), delta, hears.Current(), heard.Text)
	}
	resp, err := post(t.Context(), t, hc, url+"/v1/audio/speech", `{"model":"sim-voice","input":"hello","voice":"alloy","stream_format":"sse"}`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	spoken, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var said []byte
	for line := range strings.Lines(string(spoken)) {
		var e struct{ Audio []byte }
		if data, ok := strings.CutPrefix(line, "data: "); ok && json.Unmarshal([]byte(data), &e) == nil {
			said = append(said, e.Audio...)
		}
	}
	if !bytes.Equal(said, sound) || !strings.Contains(string(spoken), `"speech.audio.done"`) {
		t.Errorf("speech streamed: %d bytes of %d", len(said), len(sound))
	}
}

// Every form of refusal, as its client reads it.
func TestRefusals(t *testing.T) {
	url, hc := serve(t, simmodel.New(simmodel.Config{}), false)
	oc, ac := openaiAt(url, hc), anthropicAt(url, hc)
	for _, model := range simmodel.Refusals() {
		got, err := oc.Chat.Completions.New(t.Context(), sdkopenai.ChatCompletionNewParams{Model: model, Messages: []sdkopenai.ChatCompletionMessageParamUnion{sdkopenai.UserMessage(question)}})
		var oe *sdkopenai.Error
		switch model {
		case simmodel.FaultRefusal:
			if err != nil || got.Choices[0].Message.Refusal == "" {
				t.Errorf("%s: %v", model, err)
			}
		case simmodel.RefusalFinish:
			if err != nil || got.Choices[0].FinishReason != "content_filter" {
				t.Errorf("%s: %v", model, err)
			}
		default:
			if !errors.As(err, &oe) || oe.StatusCode != http.StatusBadRequest || oe.Code != "content_filter" || strings.Contains(oe.RawJSON(), "ResponsibleAIPolicyViolation") != (model == simmodel.RefusalAzure) {
				t.Errorf("%s: %v", model, err)
			}
		}
		m, err := ac.Messages.New(t.Context(), sdkanthropic.MessageNewParams{Model: model, MaxTokens: 99, Messages: []sdkanthropic.MessageParam{sdkanthropic.NewUserMessage(sdkanthropic.NewTextBlock(question))}})
		var ae *sdkanthropic.Error
		if (err != nil || m.StopReason != "refusal") && (!errors.As(err, &ae) || ae.StatusCode != http.StatusBadRequest) {
			t.Errorf("anthropic %s: %v %+v", model, err, m)
		}
	}
}

func TestQuirks(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		p := simmodel.New(simmodel.Config{})
		url, hc := serve(t, p, h2)
		hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		ask := func(model string, stream bool, after string) (*http.Response, string, bool) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			resp, err := post(ctx, t, hc, url+"/v1/messages", fmt.Sprintf(`{"model":%q,"stream":%t,"messages":[{"role":"user","content":%q}]}`, model, stream, question))
			if err != nil {
				t.Fatalf("%s: %v", model, err)
			}
			defer func() { _ = resp.Body.Close() }()
			var body bytes.Buffer
			for at := bufio.NewReader(resp.Body); ; {
				line, err := at.ReadString('\n')
				body.WriteString(line)
				if err != nil {
					return resp, body.String(), errors.Is(err, io.EOF)
				}
				if after != "" && strings.Contains(line, after) {
					time.AfterFunc(silent, cancel)
				}
			}
		}
		for _, c := range []struct {
			model  string
			stream bool
			status int
			ended  bool // not left open, or cut
			stop   bool // the end mark is there
			has    string
		}{
			{simmodel.QuirkNoMark, true, 200, true, false, "message_delta"},
			{simmodel.QuirkNoMarkOpen, true, 200, false, false, "message_delta"},
			{simmodel.QuirkBadEvent, true, 200, true, true, "not an event"},
			{simmodel.QuirkHugeHeaders, true, 200, true, true, ""},
			{simmodel.QuirkSlowHead, true, 200, true, true, ""},
			{simmodel.QuirkSlowHead, false, 200, true, false, "end_turn"},
			{simmodel.QuirkRedirect, false, 302, true, false, ""},
			{simmodel.QuirkContext, true, 400, true, false, "too long"},
			{simmodel.QuirkContext + ":window=1000", true, 200, true, true, ""},
			{"sim-chat:window=3", true, 400, true, false, "too long"},
			{simmodel.QuirkStatus, false, 500, true, false, "api_error"},
			{simmodel.QuirkStatus + ":status=408", true, 408, true, false, ""},
			{"sim-chat:gap=50ms", true, 200, true, true, ""},
			{"sim-chat:cut=0", true, 200, false, false, ""},
			{"sim-chat:cut=3:write=5", true, 200, false, false, "content_block_delta"},
			{"sim-chat:end=999", true, 200, true, false, "content_block_stop"},
			{"sim-chat:stall=2", true, 200, false, false, "content_block_delta"},
			{"sim-chat:bad=1", true, 200, true, true, "not an event"},
			{simmodel.Fault429 + ":retry=2500ms", true, 429, true, false, "rate_limit_error"},
		} {
			open := "" // after what it stays so
			if c.model == simmodel.QuirkNoMarkOpen || c.model == "sim-chat:stall=2" {
				open = c.has
			}
			resp, body, ended := ask(c.model, c.stream, open)
			if resp.StatusCode != c.status || ended != c.ended || strings.Contains(body, "message_stop") != c.stop || !strings.Contains(body, c.has) {
				t.Errorf("h2=%t %s stream=%t: %d ended=%t %.2000s", h2, c.model, c.stream, resp.StatusCode, ended, body)
			}
			if c.model == simmodel.Fault429+":retry=2500ms" && (resp.Header.Get("retry-after") != "3" || resp.Header.Get("retry-after-ms") != "2500") {
				t.Errorf("%s: %v", c.model, resp.Header)
			}
			for _, name := range simmodel.AccountHeaders() {
				if resp.Header.Get(name) == "" && c.model != simmodel.QuirkSlowHead {
					t.Errorf("%s: no %s", c.model, name)
				}
			}
		}
		if resp, err := hc.Get(url + simmodel.RedirectPath); err != nil || resp.StatusCode != http.StatusNotFound || p.Counts().Models["redirected"].Requests != 1 {
			t.Errorf("the place it redirects to: %v", err)
		} else {
			_ = resp.Body.Close()
		}
		eventually(t, "every request is accounted for", func() bool {
			n := p.Counts().Total
			return n.Requests == n.Completed+n.Failed+n.Unauthorized+n.Cut+n.ClientGone
		})
	}
}

// Where a stream is cut into events, writes and providers does not show in its text;
// where it drifts, it shows from there on.
func TestSameTextInOtherPieces(t *testing.T) {
	a, ac := serve(t, simmodel.New(simmodel.Config{Name: "a"}), false)
	b, bc := serve(t, simmodel.New(simmodel.Config{Name: "b", Chunk: 7, Write: 11}), false)
	read := func(url string, hc *http.Client, path, model, text string) (out string, events int, last string) {
		resp, err := post(t.Context(), t, hc, url+path, fmt.Sprintf(`{"model":%q,"stream":true,"messages":[{"role":"user","content":%q}],"prompt":%q,"input":%q}`, model, text, text, text))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(body)) {
			var e struct {
				Delta   any
				Choices []struct {
					Text  string
					Delta struct{ Content string }
				}
			}
			data, ok := strings.CutPrefix(line, "data: ")
			if !ok || json.Unmarshal([]byte(data), &e) != nil {
				continue
			}
			events, last = events+1, data
			switch d := e.Delta.(type) {
			case string:
				out += d
			case map[string]any:
				if s, ok := d["text"].(string); ok {
					out += s
				}
			}
			if len(e.Choices) > 0 {
				out += e.Choices[0].Text + e.Choices[0].Delta.Content
			}
		}
		return out, events, last
	}
	rapid.Check(t, func(r *rapid.T) {
		path := rapid.SampledFrom([]string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}).Draw(r, "path")
		text := rapid.StringMatching(`[a-z]{1,9}( [a-z]{1,9}){0,6}`).Draw(r, "text")
		drift := rapid.IntRange(0, 14).Draw(r, "drift")
		want := simmodel.Answer("sim-chat", prompt(text))
		one, n, _ := read(a, ac, path, "sim-chat", text)
		other, m, _ := read(b, bc, path, fmt.Sprintf("sim-chat:chunk=%d", rapid.IntRange(1, 40).Draw(r, "chunk")), text)
		if one != want || other != want || n == 0 || m == 0 {
			r.Fatalf("%q in %d and %q in %d events, want %q", one, n, other, m, want)
		}
		tokens, _ := simmodel.Tokens("sim-chat", prompt(text), 0, 0)
		same := strings.Join(tokens[:min(drift, len(tokens))], "")
		drifted, _, _ := read(a, ac, path, fmt.Sprintf("sim-chat:drift=%d", drift), text)
		if !strings.HasPrefix(drifted, same) || drift < len(tokens) && drifted == want {
			r.Fatalf("drift at %d: %q of %q", drift, drifted, want)
		}
	})
}

func TestAbortsAreCounted(t *testing.T) {
	p := simmodel.New(simmodel.Config{})
	url, hc := serve(t, p, true)
	for path, body := range map[string]string{
		"/v1/chat/completions": `"messages":[{"role":"user","content":"x"}]`, "/v1/responses": `"input":"x"`, "/v1/messages": `"messages":[{"role":"user","content":"x"}]`,
	} {
		ctx, cancel := context.WithCancel(t.Context())
		resp, err := post(ctx, t, hc, url+path, `{"model":"sim-abort:tps=2","stream":true,`+body+`}`)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 20)); err != nil {
			t.Fatal(err)
		}
		cancel()
		_ = resp.Body.Close()
	}
	eventually(t, "three aborts", func() bool { return p.Counts().Models["sim-abort"].Aborted == 3 })
	if n := p.Counts().Total; n.ClientGone != 3 || n.Completed != 0 {
		t.Errorf("%+v", n)
	}
}
