package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	openaishared "github.com/openai/openai-go/v3/shared"

	"ringmain/drills/simmodel"
)

// itinerary is the shape of an answer, and itineraryAnswer what the simulated
// provider makes of it.
var itinerary = map[string]any{"type": "object", "required": []string{"city", "days", "by"}, "additionalProperties": false, "properties": map[string]any{
	"city": map[string]any{"type": "string"}, "days": map[string]any{"type": "integer"}, "by": map[string]any{"type": "string", "enum": []string{"train", "boat"}}}}

const itineraryAnswer = `{"by":"train","city":"Zürich","days":7}`

func TestOpenAIClientCallsInParallelAndStructured(t *testing.T) {
	d := routed(t)
	c := openaiClient(d, d.Regions[1].API, d.APIKey)
	ctx := t.Context()
	params := chatAsk(d.Model)
	params.ParallelToolCalls = openai.Bool(true)
	for _, name := range []string{"weather", "forecast"} {
		params.Tools = append(params.Tools, openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{Name: name, Parameters: weather}))
	}
	plain, err := c.Chat.Completions.New(ctx, params)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := streamChat(ctx, &c, params)
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range []openai.ChatCompletionMessage{plain.Choices[0].Message, whole.Choices[0].Message} {
		calls := message.ToolCalls
		if len(calls) != 2 || calls[0].Function.Name != "weather" || calls[1].Function.Name != "forecast" || calls[0].Function.Arguments != weatherCall || calls[1].Function.Arguments != weatherCall {
			t.Errorf("calls: %+v", calls)
		}
	}
	params.Messages = append(params.Messages, plain.Choices[0].Message.ToParam())
	for _, call := range plain.Choices[0].Message.ToolCalls {
		params.Messages = append(params.Messages, openai.ToolMessage("sunny", call.ID))
	}
	if after, err := c.Chat.Completions.New(ctx, params); err != nil || after.Choices[0].Message.Content == "" {
		t.Errorf("after the results: %v", err)
	}

	shaped := chatAsk(d.Model)
	shaped.ResponseFormat.OfJSONSchema = &openaishared.ResponseFormatJSONSchemaParam{JSONSchema: openaishared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "itinerary", Schema: itinerary, Strict: openai.Bool(true)}}
	if plain, err := c.Chat.Completions.New(ctx, shaped); err != nil || plain.Choices[0].Message.Content != itineraryAnswer {
		t.Errorf("structured: %v %+v", err, plain)
	}
	if whole, err := streamChat(ctx, &c, shaped); err != nil || whole.Choices[0].Message.Content != itineraryAnswer {
		t.Errorf("structured, streamed: %v %+v", err, whole.Choices)
	}

	ask := responseAsk(d.Model)
	ask.Text.Format = responses.ResponseFormatTextConfigParamOfJSONSchema("itinerary", itinerary)
	if deltas, last, err := streamResponse(ctx, &c, ask); err != nil || deltas != itineraryAnswer || last.OutputText() != itineraryAnswer {
		t.Errorf("responses, structured: %v %q", err, deltas)
	}
	ask = responseAsk(d.Model)
	ask.ParallelToolCalls = openai.Bool(true)
	ask.Tools = []responses.ToolUnionParam{responses.ToolParamOfFunction("weather", weather, true), responses.ToolParamOfFunction("forecast", weather, true)}
	if _, last, err := streamResponse(ctx, &c, ask); err != nil || len(last.Output) != 2 || last.Output[1].Name != "forecast" || last.Output[1].Arguments.OfString != weatherCall {
		t.Errorf("responses, calls in parallel: %v %+v", err, last.Output)
	}
}

func TestAnthropicClientCallsInParallelAndStructured(t *testing.T) {
	d := routed(t)
	c := anthropicClient(d, d.Regions[1].API, d.APIKey)
	params := messageAsk(d.MessagesModel)
	params.ToolChoice.OfAuto = &anthropic.ToolChoiceAutoParam{DisableParallelToolUse: anthropic.Bool(false)}
	for _, name := range []string{"weather", "forecast"} {
		params.Tools = append(params.Tools, anthropic.ToolUnionParamOfTool(anthropic.ToolInputSchemaParam{Properties: weather["properties"]}, name))
	}
	plain, err := c.Messages.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := streamMessage(t.Context(), &c, params)
	if err != nil {
		t.Fatal(err)
	}
	var results []anthropic.ContentBlockParamUnion
	for _, m := range []anthropic.Message{*plain, whole} {
		if len(m.Content) != 2 || m.Content[0].Name != "weather" || m.Content[1].Name != "forecast" || string(m.Content[1].Input) != weatherCall || m.StopReason != "tool_use" {
			t.Errorf("calls: %+v", m)
		}
		results = nil
		for _, call := range m.Content {
			results = append(results, anthropic.NewToolResultBlock(call.ID, "sunny", false))
		}
	}
	params.Messages = append(params.Messages, whole.ToParam(), anthropic.NewUserMessage(results...))
	if after, err := c.Messages.New(t.Context(), params); err != nil || after.StopReason != "end_turn" {
		t.Errorf("after the results: %v", err)
	}
	shaped := messageAsk(d.MessagesModel)
	shaped.OutputConfig.Format = anthropic.JSONOutputFormatParam{Schema: itinerary}
	if m, err := streamMessage(t.Context(), &c, shaped); err != nil || m.Content[0].Text != itineraryAnswer {
		t.Errorf("structured: %v %+v", err, m.Content)
	}
}

func TestClientsListModels(t *testing.T) {
	d := routed(t)
	oc, ac := openaiClient(d, d.Regions[0].API, d.APIKey), anthropicClient(d, d.Regions[0].API, d.APIKey)
	var names, ids []string
	models := oc.Models.ListAutoPaging(t.Context())
	for models.Next() {
		names = append(names, models.Current().ID)
	}
	infos := ac.Models.ListAutoPaging(t.Context(), anthropic.ModelListParams{Limit: anthropic.Int(3)})
	for infos.Next() {
		ids = append(ids, infos.Current().ID)
	}
	slices.Sort(names)
	slices.Sort(ids)
	if err := errors.Join(models.Err(), infos.Err()); err != nil || !slices.Equal(names, ids) || !slices.Contains(ids, d.MessagesModel) || len(slices.Compact(ids)) != len(names) {
		t.Errorf("%v: openai %v, anthropic %v", err, names, ids)
	}
	if m, err := oc.Models.Get(t.Context(), d.Model); err != nil || m.ID != d.Model || m.Created == 0 {
		t.Errorf("openai: %v %+v", err, m)
	}
	if m, err := ac.Models.Get(t.Context(), d.MessagesModel, anthropic.ModelGetParams{}); err != nil || m.ID != d.MessagesModel || m.CreatedAt.IsZero() || m.DisplayName == "" {
		t.Errorf("anthropic: %v %+v", err, m)
	}
	var oe *openai.Error
	var ae *anthropic.Error
	if _, err := oc.Models.Get(t.Context(), "no-such-model"); !errors.As(err, &oe) || oe.StatusCode != http.StatusNotFound {
		t.Errorf("openai, an unknown model: %v", err)
	}
	if _, err := ac.Models.Get(t.Context(), "no-such-model", anthropic.ModelGetParams{}); !errors.As(err, &ae) || ae.Type() != "not_found_error" {
		t.Errorf("anthropic, an unknown model: %v", err)
	}
}

func TestOpenAIClientMedia(t *testing.T) {
	d := routed(t)
	c := openaiClient(d, d.Regions[1].API, d.APIKey)
	sound, err := c.Audio.Speech.New(t.Context(), openai.AudioSpeechNewParams{Model: "e2e-speech", Input: question, Voice: openai.AudioSpeechNewParamsVoiceUnion{OfString: openai.String("alloy")}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(sound.Body)
	_ = sound.Body.Close()
	if err != nil || len(b) != 8196 || b[0] != 255 || sound.Header.Get("content-type") != "audio/mpeg" {
		t.Errorf("speech: %v, %d bytes, %v", err, len(b), sound.Header)
	}
	made, err := c.Images.Generate(t.Context(), openai.ImageGenerateParams{Model: "e2e-image", Prompt: question})
	if err != nil || len(made.Data) != 1 || made.Data[0].B64JSON == "" {
		t.Errorf("image: %v", err)
	}
	spoken, err := c.Audio.Speech.New(t.Context(), openai.AudioSpeechNewParams{Model: "e2e-speech", Input: question, StreamFormat: openai.AudioSpeechNewParamsStreamFormatSSE,
		Voice: openai.AudioSpeechNewParamsVoiceUnion{OfString: openai.String("alloy")}})
	if err != nil {
		t.Fatal(err)
	}
	b, err = io.ReadAll(spoken.Body)
	_ = spoken.Body.Close()
	if last := strings.LastIndex(string(b), "data: "); err != nil || !strings.HasPrefix(spoken.Header.Get("content-type"), "text/event-stream") || !strings.Contains(string(b[max(0, last):]), `"speech.audio.done"`) {
		t.Errorf("speech as events: %v, %v, %.200s", err, spoken.Header, b)
	}
	text, whole := "", ""
	transcript := c.Audio.Transcriptions.NewStreaming(t.Context(), openai.AudioTranscriptionNewParams{Model: "e2e-ear", File: bytes.NewReader(make([]byte, 1<<16))})
	for transcript.Next() {
		e := transcript.Current()
		text, whole = text+e.Delta, e.Text
	}
	if transcript.Err() != nil || text == "" || whole != text {
		t.Errorf("transcript: %v, %q, whole %q", transcript.Err(), text, whole)
	}
	var shown []string
	pictures := c.Images.GenerateStreaming(t.Context(), openai.ImageGenerateParams{Model: "e2e-image", Prompt: question, PartialImages: openai.Int(2)})
	for pictures.Next() {
		shown = append(shown, pictures.Current().Type+" "+pictures.Current().B64JSON)
	}
	pic := " " + made.Data[0].B64JSON
	if want := []string{"image_generation.partial_image" + pic, "image_generation.partial_image" + pic, "image_generation.completed" + pic}; pictures.Err() != nil || !slices.Equal(shown, want) {
		t.Errorf("pictures: %v %q", pictures.Err(), shown)
	}
	edits := c.Images.EditStreaming(t.Context(), openai.ImageEditParams{Model: "e2e-image", Prompt: question, Image: openai.ImageEditParamsImageUnion{OfFile: bytes.NewReader([]byte("PNG"))}})
	shown = nil
	for edits.Next() {
		shown = append(shown, edits.Current().Type)
	}
	if edits.Err() != nil || !slices.Equal(shown, []string{"image_edit.completed"}) {
		t.Errorf("edits: %v %q", edits.Err(), shown)
	}
	// This client gives what a caller decodes where base64 was asked for.
	var raw struct {
		Data []struct{ Embedding any } `json:"data"`
	}
	if _, err := c.Embeddings.New(t.Context(), openai.EmbeddingNewParams{Model: "e2e-embed", Dimensions: openai.Int(8), EncodingFormat: openai.EmbeddingNewParamsEncodingFormatBase64,
		Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String(question)}}, option.WithResponseBodyInto(&raw)); err != nil || len(raw.Data) != 1 {
		t.Fatalf("embedding: %v", err)
	}
	if text, ok := raw.Data[0].Embedding.(string); !ok || len(text) != 44 { // 8 floats of 4 bytes
		t.Errorf("embedding: %v", raw.Data[0].Embedding)
	}
}

// TestClientsSendTooMuch: whoever sends more than is taken reads that, and no
// broken connection, though the answer comes before the body is out.
func TestClientsSendTooMuch(t *testing.T) {
	d := routed(t)
	oc, ac := openaiClient(d, d.Regions[0].API, d.APIKey), anthropicClient(d, d.Regions[0].API, d.APIKey)
	huge := strings.Repeat("x", 34<<20)
	chat := chatAsk(d.Model)
	chat.Messages = []openai.ChatCompletionMessageParamUnion{openai.UserMessage(huge)}
	var oe *openai.Error
	if _, err := oc.Chat.Completions.New(t.Context(), chat); !errors.As(err, &oe) || oe.StatusCode != http.StatusRequestEntityTooLarge || oe.Code != "request_too_large" {
		t.Errorf("openai: %v", err)
	}
	message := messageAsk(d.MessagesModel)
	message.Messages = []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(huge))}
	var ae *anthropic.Error
	if _, err := ac.Messages.New(t.Context(), message); !errors.As(err, &ae) || ae.StatusCode != http.StatusRequestEntityTooLarge || ae.Type() != "request_too_large" {
		t.Errorf("anthropic: %v", err)
	}
}

// TestClientsLeavePlainRequests: what a client gives up while it waits, by
// context or by its own deadline, is given up at the provider.
func TestClientsLeavePlainRequests(t *testing.T) {
	d := routed(t)
	oc, ac := openaiClient(d, d.Regions[1].API, d.APIKey), anthropicClient(d, d.Regions[1].API, d.APIKey)
	gone := func(model string) (requests, gone int64) {
		var c simmodel.Counts
		if err := json.Unmarshal([]byte(d.ask(t, "GET", d.Upstreams[0].URL+"/sim/counts", "").body), &c); err != nil {
			t.Fatal(err)
		}
		return c.Models[model].Requests, c.Models[model].ClientGone
	}
	const ownDeadline = 2 * time.Second // the provider is asked before, also where all is slow
	for _, tc := range []struct {
		name, model string
		call        func(context.Context) error
		cancels     bool // else the call has a deadline of its own
	}{
		{"openai, context", "sim-abort", func(ctx context.Context) error {
			_, err := oc.Chat.Completions.New(ctx, chatAsk("e2e-abort"))
			return err
		}, true},
		{"openai, deadline", "sim-abort", func(ctx context.Context) error {
			_, err := oc.Chat.Completions.New(ctx, chatAsk("e2e-abort"), option.WithRequestTimeout(ownDeadline))
			return err
		}, false},
		{"anthropic, context", "sim-abort-messages", func(ctx context.Context) error {
			_, err := ac.Messages.New(ctx, messageAsk("e2e-abort-messages"))
			return err
		}, true},
		{"anthropic, deadline", "sim-abort-messages", func(ctx context.Context) error {
			_, err := ac.Messages.New(ctx, messageAsk("e2e-abort-messages"), anthropicoption.WithRequestTimeout(ownDeadline))
			return err
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked, left := gone(tc.model)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			end := make(chan error, 1)
			go func() { end <- tc.call(ctx) }()
			eventually(t, 5*time.Second, func() error {
				if n, _ := gone(tc.model); n != asked+1 {
					return fmt.Errorf("the provider was asked %d times", n-asked)
				}
				return nil
			})
			want := context.DeadlineExceeded
			if tc.cancels {
				want = context.Canceled
				cancel()
			}
			if err := <-end; !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
			eventually(t, 5*time.Second, func() error {
				if _, n := gone(tc.model); n != left+1 {
					return fmt.Errorf("the provider saw its client leave %d times", n-left)
				}
				return nil
			})
		})
	}
}
