package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"

	"ringmain/drills/simmodel"
)

const question = "Which region feeds the ring when one is cut?"

// The official clients, with only base URL, key and CA set.

func openaiClient(d *devCluster, base, key string, more ...option.RequestOption) openai.Client {
	return openai.NewClient(append([]option.RequestOption{option.WithBaseURL(base + "/v1"), option.WithAPIKey(key), option.WithHTTPClient(d.client(true)), option.WithMaxRetries(0)}, more...)...)
}

func anthropicClient(d *devCluster, base, key string, more ...anthropicoption.RequestOption) anthropic.Client {
	return anthropic.NewClient(append([]anthropicoption.RequestOption{anthropicoption.WithBaseURL(base), anthropicoption.WithAPIKey(key), anthropicoption.WithHTTPClient(d.client(true)), anthropicoption.WithMaxRetries(0)}, more...)...)
}

func entries(t testing.TB) map[string]string {
	all := map[string]string{"front door": shared(t).FrontDoor}
	for _, r := range shared(t).Regions {
		all[r.Name] = r.API
	}
	return all
}

var clientRoutes sync.Once

// routed is the shared cluster with the models of node/routes.yaml, which the
// clients from Node are tested with too.
func routed(t testing.TB) *devCluster {
	t.Helper()
	d := shared(t)
	clientRoutes.Do(func() {
		if stdout, stderr, code := d.cli(t, "apply", "--yes", "-f", "node/routes.yaml"); code != 0 {
			t.Fatalf("exit %d: %s%s", code, stdout, stderr)
		}
	})
	eventually(t, 10*time.Second, func() error {
		for _, r := range d.Regions {
			for _, n := range r.Nodes {
				if n.Role != "data" {
					continue
				}
				if a := d.ask(t, "GET", n.API+"/v1/models", "", d.bearer()...); !strings.Contains(a.body, "e2e-refusal-finish") {
					return fmt.Errorf("%s does not know the routes yet: %d", n.Name, a.status)
				}
			}
		}
		return nil
	})
	return d
}

func chatAsk(model string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)}}
}

func messageAsk(model string) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{Model: model, MaxTokens: 2048, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(question))}}
}

func responseAsk(model string) responses.ResponseNewParams {
	return responses.ResponseNewParams{Model: model, Store: openai.Bool(false), Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(question)}}
}

// streamChat reads a streamed answer as the client gives it.
func streamChat(ctx context.Context, c *openai.Client, params openai.ChatCompletionNewParams) (openai.ChatCompletionAccumulator, error) {
	var acc openai.ChatCompletionAccumulator
	stream := c.Chat.Completions.NewStreaming(ctx, params)
	for stream.Next() {
		acc.AddChunk(stream.Current())
	}
	return acc, stream.Err()
}

func streamMessage(ctx context.Context, c *anthropic.Client, params anthropic.MessageNewParams) (anthropic.Message, error) {
	var whole anthropic.Message
	stream := c.Messages.NewStreaming(ctx, params)
	for stream.Next() {
		if err := whole.Accumulate(stream.Current()); err != nil {
			return whole, err
		}
	}
	return whole, stream.Err()
}

func streamResponse(ctx context.Context, c *openai.Client, params responses.ResponseNewParams) (deltas string, last responses.Response, err error) {
	stream := c.Responses.NewStreaming(ctx, params)
	for stream.Next() {
		switch e := stream.Current(); e.Type {
		case "response.output_text.delta":
			deltas += e.Delta
		case "response.completed", "response.incomplete":
			last = e.Response
		}
	}
	return deltas, last, stream.Err()
}

func TestOpenAIClient(t *testing.T) {
	want := simmodel.Answer(shared(t).Model, []simmodel.Message{{Role: "user", Text: question}})
	for name, base := range entries(t) {
		for _, model := range []string{shared(t).Model, shared(t).RemoteModel} {
			t.Run(name+" "+model, func(t *testing.T) {
				c := openaiClient(shared(t), base, shared(t).APIKey)
				params := chatAsk(model)
				var resp *http.Response
				plain, err := c.Chat.Completions.New(t.Context(), params, option.WithResponseInto(&resp))
				if err != nil {
					t.Fatal(err)
				}
				if model == shared(t).Model && plain.Choices[0].Message.Content != want {
					t.Fatalf("answer %q, want %q", plain.Choices[0].Message.Content, want)
				}
				if model == shared(t).RemoteModel && resp.Header.Get("idc-region") != shared(t).Regions[len(shared(t).Regions)-1].Name {
					t.Fatalf("idc-region %q", resp.Header.Get("idc-region"))
				}
				for _, name := range simmodel.AccountHeaders() {
					if resp.Header.Get(name) != "" {
						t.Errorf("the provider's %s came through", name)
					}
				}
				if plain.Usage.TotalTokens == 0 {
					t.Fatal("no usage")
				}
				whole, err := streamChat(t.Context(), &c, params)
				if err != nil {
					t.Fatal(err)
				}
				if whole.Usage.TotalTokens != 0 {
					t.Error("usage was shown to a client that did not ask for it")
				}
				if text := whole.Choices[0].Message.Content; text != plain.Choices[0].Message.Content {
					t.Fatalf("stream %q is not the plain answer %q", text, plain.Choices[0].Message.Content)
				}
			})
		}
	}
}

func TestAnthropicClient(t *testing.T) {
	for name, base := range entries(t) {
		t.Run(name, func(t *testing.T) {
			c := anthropicClient(shared(t), base, shared(t).APIKey)
			params := messageAsk(shared(t).MessagesModel)
			plain, err := c.Messages.New(t.Context(), params)
			if err != nil {
				t.Fatal(err)
			}
			whole, err := streamMessage(t.Context(), &c, params)
			if err != nil {
				t.Fatal(err)
			}
			if len(plain.Content) == 0 || plain.Content[0].Text == "" || whole.Content[0].Text != plain.Content[0].Text {
				t.Fatalf("plain %+v, stream %+v", plain.Content, whole.Content)
			}
		})
	}
}

var weather = map[string]any{"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}, "days": map[string]any{"type": "integer"}}}

const weatherCall = `{"city":"Zürich","days":7}`

func TestOpenAIClientEndpoints(t *testing.T) {
	d := routed(t)
	want := simmodel.Answer(d.Model, []simmodel.Message{{Role: "user", Text: question}})
	for _, r := range d.Regions[:2] {
		t.Run(r.Name, func(t *testing.T) {
			c := openaiClient(d, r.API, d.APIKey)
			params := chatAsk(d.Model)
			params.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{Name: "weather", Parameters: weather})}
			whole, err := streamChat(t.Context(), &c, params)
			if err != nil || len(whole.Choices[0].Message.ToolCalls) != 1 || whole.Choices[0].Message.ToolCalls[0].Function.Arguments != weatherCall {
				t.Fatalf("tools: %v %+v", err, whole.Choices)
			}
			params.Messages = append(params.Messages, whole.Choices[0].Message.ToParam(), openai.ToolMessage("sunny", whole.Choices[0].Message.ToolCalls[0].ID))
			if after, err := c.Chat.Completions.New(t.Context(), params); err != nil || after.Choices[0].Message.Content == "" {
				t.Errorf("after the tool's result: %v %+v", err, after)
			}

			spliced := chatAsk("e2e-splice")
			spliced.Temperature = openai.Float(0)
			if whole, err := streamChat(t.Context(), &c, spliced); err != nil || whole.Choices[0].Message.Content != want {
				t.Errorf("spliced: %v %+v, want %q", err, whole.Choices, want)
			}

			plain, err := c.Responses.New(t.Context(), responseAsk(d.Model))
			if err != nil || plain.OutputText() != want {
				t.Fatalf("responses: %v %+v", err, plain)
			}
			deltas, last, err := streamResponse(t.Context(), &c, responseAsk(d.Model))
			if err != nil || deltas != want || last.OutputText() != want || last.Usage.TotalTokens != plain.Usage.TotalTokens {
				t.Errorf("responses streamed: %v %q %+v", err, deltas, last.Usage)
			}
			ask := responseAsk(d.Model)
			ask.Tools = []responses.ToolUnionParam{responses.ToolParamOfFunction("weather", weather, true)}
			if _, last, err := streamResponse(t.Context(), &c, ask); err != nil || last.Output[0].Arguments.OfString != weatherCall {
				t.Errorf("responses, tools: %v %+v", err, last.Output)
			}

			comp, err := c.Completions.New(t.Context(), openai.CompletionNewParams{Model: openai.CompletionNewParamsModel(d.Model), Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String(question)}})
			if err != nil || comp.Choices[0].Text != want {
				t.Errorf("completions: %v %+v", err, comp)
			}

			vector := simmodel.Embedding("sim-embed", "three", 8)
			for _, format := range []openai.EmbeddingNewParamsEncodingFormat{openai.EmbeddingNewParamsEncodingFormatFloat, openai.EmbeddingNewParamsEncodingFormatBase64} {
				e, err := c.Embeddings.New(t.Context(), openai.EmbeddingNewParams{Model: "e2e-embed", Dimensions: openai.Int(8), EncodingFormat: format,
					Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"one two", "three"}}})
				if err != nil || len(e.Data) != 2 || e.Usage.PromptTokens != 3 {
					t.Fatalf("embeddings %s: %v", format, err)
				}
				if format == openai.EmbeddingNewParamsEncodingFormatBase64 {
					continue // this client leaves the text as it is
				}
				for i, x := range e.Data[1].Embedding {
					if float32(x) != vector[i] {
						t.Fatalf("dimension %d: %v, want %v", i, x, vector[i])
					}
				}
			}
			heard, err := c.Audio.Transcriptions.New(t.Context(), openai.AudioTranscriptionNewParams{Model: "e2e-ear", File: bytes.NewReader(make([]byte, 1<<16))})
			if err != nil || heard.Text == "" {
				t.Errorf("transcription: %v", err)
			}
		})
	}
}

func TestAnthropicClientEndpoints(t *testing.T) {
	d := routed(t)
	for _, r := range d.Regions[:2] {
		t.Run(r.Name, func(t *testing.T) {
			c := anthropicClient(d, r.API, d.APIKey)
			params := messageAsk(d.MessagesModel)
			plain, err := c.Messages.New(t.Context(), params)
			if err != nil {
				t.Fatal(err)
			}
			n, err := c.Messages.CountTokens(t.Context(), anthropic.MessageCountTokensParams{Model: params.Model, Messages: params.Messages})
			if err != nil || n.InputTokens != plain.Usage.InputTokens {
				t.Errorf("count_tokens: %v %+v, billed %d", err, n, plain.Usage.InputTokens)
			}
			spliced := messageAsk("e2e-splice-messages")
			spliced.Temperature = anthropic.Float(0)
			if m, err := streamMessage(t.Context(), &c, spliced); err != nil || m.Content[0].Text != plain.Content[0].Text || m.StopReason != "end_turn" {
				t.Errorf("spliced: %v %+v, want %q", err, m, plain.Content[0].Text)
			}
			params.Thinking = anthropic.ThinkingConfigParamOfEnabled(1024)
			params.Tools = []anthropic.ToolUnionParam{anthropic.ToolUnionParamOfTool(anthropic.ToolInputSchemaParam{Properties: weather["properties"]}, "weather")}
			m, err := streamMessage(t.Context(), &c, params)
			if err != nil || len(m.Content) != 2 || m.Content[0].Signature == "" || string(m.Content[1].Input) != weatherCall || m.StopReason != "tool_use" {
				t.Errorf("thinking and tools: %v %+v", err, m)
			}
		})
	}
}

// aborts is how often clients of a model left a stream that was going on, as
// the first region's provider counted.
func (d *devCluster) aborts(t testing.TB, model string) int64 {
	t.Helper()
	var c simmodel.Counts
	if err := json.Unmarshal([]byte(d.ask(t, "GET", d.Upstreams[0].URL+"/sim/counts", "").body), &c); err != nil {
		t.Fatal(err)
	}
	return c.Models[model].Aborted
}

func TestAbortsReachTheProvider(t *testing.T) {
	d := routed(t)
	for _, r := range d.Regions[:2] {
		oc, ac := openaiClient(d, r.API, d.APIKey), anthropicClient(d, r.API, d.APIKey)
		for name, leave := range map[string]func(context.Context) bool{
			"chat": func(ctx context.Context) bool {
				return oc.Chat.Completions.NewStreaming(ctx, chatAsk("e2e-abort")).Next()
			},
			"responses": func(ctx context.Context) bool {
				return oc.Responses.NewStreaming(ctx, responseAsk("e2e-abort")).Next()
			},
			"messages": func(ctx context.Context) bool {
				return ac.Messages.NewStreaming(ctx, messageAsk("e2e-abort-messages")).Next()
			},
		} {
			model := map[bool]string{false: "sim-abort", true: "sim-abort-messages"}[name == "messages"]
			before := d.aborts(t, model)
			ctx, cancel := context.WithCancel(t.Context())
			began := leave(ctx)
			cancel()
			if !began {
				t.Fatalf("%s at %s: no event", name, r.Name)
			}
			eventually(t, 5*time.Second, func() error {
				if n := d.aborts(t, model); n != before+1 {
					return fmt.Errorf("%s at %s: %d aborts reached the provider, want 1", name, r.Name, n-before)
				}
				return nil
			})
		}
	}
}

func TestClientsUnderstandErrors(t *testing.T) {
	d := routed(t)
	for _, tc := range []struct {
		name, model   string
		key           string
		header, value string
		status        []int // of the first, or, where the circuit is open by now, the second
		code, kind    string
	}{
		{name: "unknown model", model: "no-such-model", status: []int{404}, code: "model_not_found", kind: "not_found_error"},
		{name: "wrong key", model: d.Model, key: "idc_live_any_wrong", status: []int{401}, code: "invalid_api_key", kind: "authentication_error"},
		{name: "unknown hint", model: d.Model, header: "idc-region-hint", value: "nowhere", status: []int{400}, code: "unknown_region_hint", kind: "invalid_request_error"},
		{name: "two values", model: d.Model, header: "idc-no-retention", value: "maybe", status: []int{400}, code: "invalid_header", kind: "invalid_request_error"},
		{name: "another org's project", model: d.Model, header: "idc-project-id", value: "prj_nobody", status: []int{403}, code: "project_forbidden", kind: "permission_error"},
		{name: "too long a prompt", model: "e2e-context", status: []int{400}, code: "context_length_exceeded", kind: "invalid_request_error"},
		{name: "failing provider", model: "e2e-503", status: []int{502, 503}, code: "upstream_error", kind: "api_error"},
		{name: "silent provider", model: "e2e-silence", status: []int{504, 503}, code: "upstream_timeout", kind: "timeout_error"},
		{name: "conflict at the provider", model: "e2e-status-409", status: []int{409}, code: "invalid_request", kind: "invalid_request_error"},
		{name: "not processed by the provider", model: "e2e-status-422", status: []int{422}, code: "invalid_request", kind: "invalid_request_error"},
		{name: "provider that refuses our account", model: "e2e-status-401", status: []int{502, 503}, code: "upstream_error", kind: "api_error"},
		{name: "overloaded provider", model: "e2e-status-529", status: []int{503}, code: "upstream_saturated", kind: "overloaded_error"},
		{name: "busy provider", model: "e2e-429", status: []int{503, 503}, code: "upstream_saturated", kind: "overloaded_error"},
	} {
		for _, r := range d.Regions[:2] {
			t.Run(tc.name+" "+r.Name, func(t *testing.T) {
				key := tc.key
				if key == "" {
					key = d.APIKey
				}
				var oo []option.RequestOption
				var ao []anthropicoption.RequestOption
				if tc.header != "" {
					oo, ao = append(oo, option.WithHeader(tc.header, tc.value)), append(ao, anthropicoption.WithHeader(tc.header, tc.value))
				}
				oc, ac := openaiClient(d, r.API, key, oo...), anthropicClient(d, r.API, key, ao...)
				_, err := oc.Chat.Completions.New(t.Context(), chatAsk(tc.model))
				var oe *openai.Error
				if !errors.As(err, &oe) || !slices.Contains(tc.status, oe.StatusCode) || oe.Code != tc.code && !(oe.StatusCode == http.StatusServiceUnavailable && oe.Code == "no_healthy_route") {
					t.Errorf("OpenAI: %v", err)
				} else if h := oe.Response.Header; h.Get("idc-error-code") != oe.Code || h.Get("x-should-retry") != strconv.FormatBool(oe.StatusCode == http.StatusServiceUnavailable) {
					t.Errorf("OpenAI: headers %v", h)
				} else if !strings.HasPrefix(h.Get("x-request-id"), "req_") || oe.Message == "" {
					t.Errorf("OpenAI: request %q, message %q", h.Get("x-request-id"), oe.Message)
				}
				model := tc.model
				if strings.HasPrefix(model, "e2e-") {
					model += "-messages"
				} else if model == d.Model {
					model = d.MessagesModel
				}
				_, err = ac.Messages.New(t.Context(), messageAsk(model))
				var ae *anthropic.Error
				if !errors.As(err, &ae) || !slices.Contains(tc.status, ae.StatusCode) || string(ae.Type()) != tc.kind && !(ae.StatusCode == http.StatusServiceUnavailable && ae.Type() == "overloaded_error") {
					t.Errorf("Anthropic: %v", err)
				} else if ae.RequestID == "" || ae.RequestID != ae.Response.Header.Get("idc-request-id") {
					t.Errorf("Anthropic: request %q", ae.RequestID)
				}
			})
		}
	}
	c := openaiClient(d, d.Regions[0].API, d.APIKey)
	for _, model := range []string{"e2e-cut", "e2e-late-error"} {
		if _, err := streamChat(t.Context(), &c, chatAsk(model)); err == nil {
			t.Errorf("%s: a broken stream raised nothing", model)
		}
		if _, _, err := streamResponse(t.Context(), &c, responseAsk(model)); err == nil {
			t.Errorf("%s: a broken response raised nothing", model)
		}
		ac := anthropicClient(d, d.Regions[0].API, d.APIKey)
		if _, err := streamMessage(t.Context(), &ac, messageAsk(model+"-messages")); err == nil {
			t.Errorf("%s: a broken message raised nothing", model)
		}
	}
}

// A client repeats where x-should-retry says so, after retry-after-ms, and
// nowhere else.
func TestClientsHonourRetryHeaders(t *testing.T) {
	d := routed(t)
	var wire hearer
	oc := openaiClient(d, d.Regions[0].API, d.APIKey, option.WithMaxRetries(1), option.WithMiddleware(wire.note))
	ac := anthropicClient(d, d.Regions[1].API, d.APIKey, anthropicoption.WithMaxRetries(1), anthropicoption.WithMiddleware(wire.note))
	for _, tc := range []struct {
		name  string
		call  func() error
		calls int
	}{
		{"openai, saturated", func() error { _, err := oc.Chat.Completions.New(t.Context(), chatAsk("e2e-429")); return err }, 2},
		{"anthropic, saturated", func() error {
			_, err := ac.Messages.New(t.Context(), messageAsk("e2e-429-messages"))
			return err
		}, 2},
		{"openai, unknown model", func() error { _, err := oc.Chat.Completions.New(t.Context(), chatAsk("no-such-model")); return err }, 1},
		{"anthropic, unknown model", func() error {
			_, err := ac.Messages.New(t.Context(), messageAsk("no-such-model"))
			return err
		}, 1},
	} {
		if err := tc.call(); err == nil {
			t.Errorf("%s: answered", tc.name)
		}
		all := wire.take()
		if len(all) != tc.calls {
			t.Errorf("%s: %d calls, want %d: %v", tc.name, len(all), tc.calls, all)
		} else if tc.calls == 2 && (all[0].pause <= 0 || all[1].at.Sub(all[0].at) < all[0].pause) {
			t.Errorf("%s: waited %v: %v", tc.name, all[1].at.Sub(all[0].at), all)
		}
	}
}

// hearer notes what a client hears, request by request, as its middleware.
type hearer struct {
	mu  sync.Mutex
	all []heard
}

// heard is one request of a client, and what it heard.
type heard struct {
	at     time.Time
	status int
	code   string
	pause  time.Duration // that was asked for
	err    error
}

func (h heard) String() string {
	if h.err != nil {
		return h.err.Error()
	}
	return fmt.Sprintf("%d %s, pause %v", h.status, h.code, h.pause)
}

func (h *hearer) note(req *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	one := heard{at: time.Now()}
	resp, err := next(req)
	if one.err = err; resp != nil {
		ms, _ := strconv.Atoi(resp.Header.Get("retry-after-ms"))
		one.status, one.code, one.pause = resp.StatusCode, resp.Header.Get("idc-error-code"), time.Duration(ms)*time.Millisecond
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, one)
	return resp, err
}

// take gives what was heard, and forgets it.
func (h *hearer) take() []heard {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := h.all
	h.all = nil
	return all
}
