package load

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// answer is what a 200 turned out to be. err is set where it broke off.
type answer struct {
	class  Class
	detail string
	text   string
	model  string
	err    error
}

const maxAnswer = 8 << 20 // bytes

// chatChoice is a choice of a plain answer (Message) or of a chunk (Delta).
type chatChoice struct {
	Message chatText `json:"message"`
	Delta   chatText `json:"delta"`
}

type chatText struct {
	Content string `json:"content"`
	Refusal string `json:"refusal"`
}

// chatBody is a chat completion or a chunk of one.
type chatBody struct {
	Model   string          `json:"model"`
	Choices []chatChoice    `json:"choices"`
	Error   json.RawMessage `json:"error"`
}

// messagesBody is a message or an event of its stream.
type messagesBody struct {
	Type       string          `json:"type"`
	Model      string          `json:"model"`
	StopReason string          `json:"stop_reason"`
	Error      json.RawMessage `json:"error"`
	Content    []struct {
		Text string `json:"text"`
	} `json:"content"`
	Message struct {
		Model string `json:"model"`
	} `json:"message"`
	Delta struct {
		Text       string `json:"text"`
		StopReason string `json:"stop_reason"`
	} `json:"delta"`
}

var errNotJSON = errors.New("not JSON where JSON was due")

// readAnswer reads a 200 to its end. firstToken is called when the first
// content is there.
func readAnswer(body io.Reader, r Request, firstToken func()) answer {
	if r.Stream {
		return readStream(body, r.Messages, firstToken)
	}
	b, err := io.ReadAll(io.LimitReader(body, maxAnswer))
	if err != nil {
		return answer{err: err}
	}
	firstToken()
	if r.Messages {
		var m messagesBody
		if json.Unmarshal(b, &m) != nil {
			return answer{err: errNotJSON}
		}
		a := answer{class: OK, model: m.Model}
		for _, part := range m.Content {
			a.text += part.Text
		}
		return a.ifRefused(m.StopReason == "refusal")
	}
	var c chatBody
	if json.Unmarshal(b, &c) != nil {
		return answer{err: errNotJSON}
	}
	if len(c.Choices) != 1 {
		return answer{class: WronglyComplete, detail: fmt.Sprintf("%d choices where one was due", len(c.Choices))}
	}
	m := c.Choices[0].Message
	return answer{class: OK, model: c.Model, text: m.Content}.ifRefused(m.Refusal != "")
}

func (a answer) ifRefused(refused bool) answer {
	if refused {
		a.class, a.detail = Failed, "refused by the model"
	}
	return a
}

// readStream reads server-sent events until the connection ends. A stream that
// ends cleanly without its last event passes for complete with the official
// SDKs, so it does here: that is what makes it wrong.
func readStream(body io.Reader, messages bool, firstToken func()) answer {
	var (
		a        = answer{class: OK}
		text     strings.Builder
		finished bool
		refused  bool
	)
	take := func(content string) {
		if content != "" && text.Len() == 0 {
			firstToken()
		}
		text.WriteString(content)
	}
	event := func(data string) error {
		if data == "[DONE]" && !messages {
			finished = true
			return nil
		}
		if messages {
			var m messagesBody
			if json.Unmarshal([]byte(data), &m) != nil {
				return errNotJSON
			}
			switch m.Type {
			case "error":
				a.class, a.detail = InBandError, clip(string(m.Error))
			case "message_start":
				a.model = m.Message.Model
			case "content_block_delta":
				take(m.Delta.Text)
			case "message_delta":
				refused = m.Delta.StopReason == "refusal"
			case "message_stop":
				finished = true
			}
			return nil
		}
		var c chatBody
		if json.Unmarshal([]byte(data), &c) != nil {
			return errNotJSON
		}
		if len(c.Error) > 0 && string(c.Error) != "null" {
			a.class, a.detail = InBandError, clip(string(c.Error))
		}
		if c.Model != "" {
			a.model = c.Model
		}
		for _, choice := range c.Choices {
			take(choice.Delta.Content)
			refused = refused || choice.Delta.Refusal != ""
		}
		return nil
	}

	lines := bufio.NewScanner(io.LimitReader(body, maxAnswer))
	lines.Buffer(nil, 1<<20)
	var data []string
	for lines.Scan() {
		line := lines.Text()
		if value, ok := strings.CutPrefix(line, "data:"); ok {
			data = append(data, strings.TrimPrefix(value, " "))
			continue
		}
		if line != "" || len(data) == 0 {
			continue
		}
		if err := event(strings.Join(data, "\n")); err != nil {
			return answer{err: err}
		}
		data = data[:0]
	}
	a.text = text.String()
	switch {
	case a.class == InBandError: // the client was told, whatever came after
	case finished: // the last event is what counts, not how the connection ended
		a = a.ifRefused(refused)
	case lines.Err() != nil:
		a.err = lines.Err()
	default:
		a.class, a.detail = WronglyComplete, "the stream ended cleanly without its last event"
	}
	return a
}
