package e2e

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"ringmain/drills/simmodel"
)

const question = "Which region feeds the ring when one is cut?"

// The official clients, with only base URL, key and CA set.

func openaiClient(t testing.TB, base, key string) openai.Client {
	return openai.NewClient(option.WithBaseURL(base+"/v1"), option.WithAPIKey(key), option.WithHTTPClient(shared(t).client(true)), option.WithMaxRetries(0))
}

func anthropicClient(t testing.TB, base, key string) anthropic.Client {
	return anthropic.NewClient(anthropicoption.WithBaseURL(base), anthropicoption.WithAPIKey(key), anthropicoption.WithHTTPClient(shared(t).client(true)), anthropicoption.WithMaxRetries(0))
}

func entries(t testing.TB) map[string]string {
	all := map[string]string{"front door": shared(t).FrontDoor}
	for _, r := range shared(t).Regions {
		all[r.Name] = r.API
	}
	return all
}

func TestOpenAIClient(t *testing.T) {
	want := simmodel.Answer(shared(t).Model, []simmodel.Message{{Role: "user", Text: question}})
	for name, base := range entries(t) {
		for _, model := range []string{shared(t).Model, shared(t).RemoteModel} {
			t.Run(name+" "+model, func(t *testing.T) {
				c := openaiClient(t, base, shared(t).APIKey)
				params := openai.ChatCompletionNewParams{Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)}}
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
				if plain.Usage.TotalTokens == 0 {
					t.Fatal("no usage")
				}
				stream := c.Chat.Completions.NewStreaming(t.Context(), params)
				var text strings.Builder
				for stream.Next() {
					for _, choice := range stream.Current().Choices {
						text.WriteString(choice.Delta.Content)
					}
					if stream.Current().Usage.TotalTokens != 0 {
						t.Error("usage was shown to a client that did not ask for it")
					}
				}
				if err := stream.Err(); err != nil {
					t.Fatal(err)
				}
				if text.String() != plain.Choices[0].Message.Content {
					t.Fatalf("stream %q is not the plain answer %q", text.String(), plain.Choices[0].Message.Content)
				}
			})
		}
	}
}

func TestAnthropicClient(t *testing.T) {
	for name, base := range entries(t) {
		t.Run(name, func(t *testing.T) {
			c := anthropicClient(t, base, shared(t).APIKey)
			params := anthropic.MessageNewParams{Model: shared(t).MessagesModel, MaxTokens: 128,
				Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(question))}}
			plain, err := c.Messages.New(t.Context(), params)
			if err != nil {
				t.Fatal(err)
			}
			stream := c.Messages.NewStreaming(t.Context(), params)
			var whole anthropic.Message
			for stream.Next() {
				if err := whole.Accumulate(stream.Current()); err != nil {
					t.Fatal(err)
				}
			}
			if err := stream.Err(); err != nil {
				t.Fatal(err)
			}
			if len(plain.Content) == 0 || plain.Content[0].Text == "" || whole.Content[0].Text != plain.Content[0].Text {
				t.Fatalf("plain %+v, stream %+v", plain.Content, whole.Content)
			}
		})
	}
}

func TestClientsUnderstandErrors(t *testing.T) {
	base := shared(t).Regions[0].API
	c := openaiClient(t, base, shared(t).APIKey)
	_, err := c.Chat.Completions.New(t.Context(), openai.ChatCompletionNewParams{Model: "no-such-model",
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)}})
	var oe *openai.Error
	if !errors.As(err, &oe) || oe.StatusCode != http.StatusNotFound || oe.Code != "model_not_found" {
		t.Fatalf("got %v", err)
	}
	a := anthropicClient(t, base, "idc_live_any_wrong")
	_, err = a.Messages.New(t.Context(), anthropic.MessageNewParams{Model: "x", MaxTokens: 1,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(question))}})
	var ae *anthropic.Error
	if !errors.As(err, &ae) || ae.StatusCode != http.StatusUnauthorized || !strings.Contains(ae.RawJSON(), "authentication_error") {
		t.Fatalf("got %v", err)
	}
}
