package simmodel

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"strconv"
	"strings"
	"time"

	"ringmain/drills/simmodel/wire"
)

// call is one request, parsed, with the answer it shall get.
type call struct {
	wire.Answer

	base     string // without suffixes: decides answer and fault
	suffix   suffix
	messages []Message
	stream   bool
	base64   bool // embeddings
	size     int  // embeddings: dimensions
	format   string

	fault string // one of Faults, Refusals or Quirks; "" = none
	at    int    // the piece before which a fault inside the answer acts

	first    time.Duration
	perToken time.Duration
	chunk    int
	write    int
}

// input is the union of the bodies: the fields used here do not clash.
type input struct {
	Model    string `json:"model"`
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	} `json:"messages"`
	System        json.RawMessage `json:"system"`
	Prompt        json.RawMessage `json:"prompt"`
	Input         json.RawMessage `json:"input"`
	Instructions  string          `json:"instructions"`
	Stream        bool            `json:"stream"`
	StreamOptions *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	N                   *int            `json:"n"`
	MinTokens           int             `json:"min_tokens"`
	MaxTokens           int             `json:"max_tokens"`
	MaxCompletionTokens int             `json:"max_completion_tokens"`
	MaxOutputTokens     int             `json:"max_output_tokens"`
	Tools               []tool          `json:"tools"`
	ToolChoice          json.RawMessage `json:"tool_choice"`
	ParallelToolCalls   *bool           `json:"parallel_tool_calls"`
	Thinking            *struct {
		Type string `json:"type"`
	} `json:"thinking"`
	Reasoning *struct {
		Summary string `json:"summary"`
	} `json:"reasoning"`
	EncodingFormat string          `json:"encoding_format"`
	Dimensions     int             `json:"dimensions"`
	ResponseFormat json.RawMessage `json:"response_format"`
	StreamFormat   string          `json:"stream_format"`
	PartialImages  int             `json:"partial_images"`
	Text           struct {
		Format format `json:"format"`
	} `json:"text"`
	OutputConfig struct {
		Format format `json:"format"`
	} `json:"output_config"`

	answered bool // the last message brings a tool's result
}

// tool is one of either dialect's.
type tool struct {
	Type     string `json:"type"`
	Name     string `json:"name"`
	Function struct {
		Name       string `json:"name"`
		Parameters schema `json:"parameters"`
	} `json:"function"`
	Parameters  schema `json:"parameters"`
	InputSchema schema `json:"input_schema"`
}

// format is the shape that an answer is asked to have.
type format struct {
	Schema *schema `json:"schema"`
}

// shape is the schema that the answer must fit, nil for free text. Chat,
// responses and messages each say it elsewhere.
func (in *input) shape() *schema {
	var chat struct {
		JSONSchema format `json:"json_schema"`
	}
	_ = json.Unmarshal(in.ResponseFormat, &chat) // it is the name of a file format elsewhere
	return cmp.Or(chat.JSONSchema.Schema, in.Text.Format.Schema, in.OutputConfig.Format.Schema)
}

// parse reads the body and composes the answer.
func (c *call) parse(ep *endpoint, contentType string, body []byte) error {
	var in input
	if ep.multipart {
		if err := in.fromForm(contentType, body); err != nil {
			return err
		}
	} else if err := json.Unmarshal(body, &in); err != nil {
		return fmt.Errorf("the body is not the JSON expected: %w", err)
	}
	if in.Model == "" {
		return errors.New("model is missing")
	}
	if in.N != nil && *in.N != 1 {
		return errors.New("only n = 1 is simulated")
	}
	c.Model, c.stream = in.Model, (in.Stream || in.StreamFormat == "sse") && ep.streams
	var err error
	if c.base, c.suffix, err = splitModel(in.Model); err != nil {
		return err
	}
	c.Usage = in.StreamOptions != nil && in.StreamOptions.IncludeUsage
	c.base64, c.size = in.EncodingFormat == "base64", in.Dimensions
	_ = json.Unmarshal(in.ResponseFormat, &c.format) // of a chat it is no string
	if in.Instructions != "" {
		c.messages = append(c.messages, Message{Role: "system", Text: in.Instructions})
	}
	if len(in.System) > 0 {
		text, err := flatten(in.System)
		if err != nil {
			return fmt.Errorf("system: %w", err)
		}
		c.messages = append(c.messages, Message{Role: "system", Text: text})
	}
	if err := ep.read(&in, c); err != nil {
		return err
	}
	c.Prompt, c.Partial = PromptTokens(c.messages), in.PartialImages
	if ep.media != nil {
		c.Media = ep.media(c)
	}
	c.compose(&in)
	return nil
}

// fromForm reads a multipart body. The file counts as a prompt where none is given.
func (in *input) fromForm(contentType string, body []byte) error {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return fmt.Errorf("want multipart/form-data: %w", err)
	}
	var prompt string
	for form := multipart.NewReader(bytes.NewReader(body), params["boundary"]); ; {
		field, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("the body is not the form expected: %w", err)
		}
		value, err := io.ReadAll(field)
		if err != nil {
			return fmt.Errorf("the body is not the form expected: %w", err)
		}
		switch field.FormName() {
		case "model":
			in.Model = string(value)
		case "prompt":
			prompt = string(value)
		case "stream":
			in.Stream = string(value) == "true"
		case "partial_images":
			if in.PartialImages, err = strconv.Atoi(string(value)); err != nil {
				return fmt.Errorf("partial_images: %w", err)
			}
		case "response_format":
			in.ResponseFormat = wire.MustJSON(string(value))
		case "file", "image", "image[]":
			if prompt == "" {
				prompt = fmt.Sprintf("a file of %d bytes", len(value))
			}
		}
	}
	in.Prompt = wire.MustJSON(prompt)
	return nil
}

func readMessages(in *input, c *call) error {
	if len(in.Messages) == 0 {
		return errors.New("messages is missing")
	}
	for i, m := range in.Messages {
		text, err := flatten(m.Content)
		if err != nil {
			return fmt.Errorf("messages[%d].content: %w", i, err)
		}
		c.messages = append(c.messages, Message{Role: m.Role, Text: text})
		in.answered = m.Role == "tool" || bytes.Contains(m.Content, []byte(`"tool_result"`))
	}
	return nil
}

// readPrompt takes prompt, a string or a list of one, as a user's message.
func readPrompt(in *input, c *call) error {
	texts, err := list(in.Prompt)
	if err != nil || len(texts) != 1 {
		return errors.New("prompt: want a string, or a list of one")
	}
	c.messages = append(c.messages, Message{Role: "user", Text: texts[0]})
	return nil
}

// readSpeech takes input as a user's message.
func readSpeech(in *input, c *call) error {
	in.Prompt = in.Input
	return readPrompt(in, c)
}

// readTexts takes each of the texts to embed as a message.
func readTexts(in *input, c *call) error {
	texts, err := list(in.Input)
	if err != nil || len(texts) == 0 {
		return errors.New("input: want a string, a list of strings, a list of tokens or a list of such lists")
	}
	for _, t := range texts {
		c.messages = append(c.messages, Message{Role: "user", Text: t})
	}
	return nil
}

// readInput reads the items of a response's input.
func readInput(in *input, c *call) error {
	var text string
	if json.Unmarshal(in.Input, &text) == nil {
		c.messages = append(c.messages, Message{Role: "user", Text: text})
		return nil
	}
	var items []struct {
		Type    string          `json:"type"`
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
		Output  json.RawMessage `json:"output"`
	}
	if err := json.Unmarshal(in.Input, &items); err != nil || len(items) == 0 {
		return errors.New("input: want a string or a list of items")
	}
	for i, item := range items {
		in.answered = item.Type == "function_call_output"
		raw, role := item.Content, item.Role
		if in.answered {
			raw, role = item.Output, "tool"
		}
		text, err := flatten(raw)
		if err != nil {
			return fmt.Errorf("input[%d]: %w", i, err)
		}
		c.messages = append(c.messages, Message{Role: role, Text: text})
	}
	return nil
}

// list gives texts from a string or a list of strings; tokens stand as their
// numbers in words.
func list(raw json.RawMessage) ([]string, error) {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}, nil
	}
	var many []string
	if json.Unmarshal(raw, &many) == nil {
		return many, nil
	}
	words := func(tokens []int) string { return strings.Trim(fmt.Sprint(tokens), "[]") }
	var tokens []int
	if json.Unmarshal(raw, &tokens) == nil {
		return []string{words(tokens)}, nil
	}
	var lists [][]int
	if err := json.Unmarshal(raw, &lists); err != nil {
		return nil, err
	}
	for _, l := range lists {
		many = append(many, words(l))
	}
	return many, nil
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
