package simmodel_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	sdkanthropic "github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	sdkopenai "github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"ringmain/drills/simmodel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts p on loopback: TLS with HTTP/2 if h2, else plain HTTP/1.1.
func serve(t *testing.T, p *simmodel.Provider, h2 bool) (url string, client *http.Client) {
	t.Helper()
	srv := httptest.NewUnstartedServer(p)
	srv.Config.ErrorLog = nil
	if h2 {
		srv.EnableHTTP2 = true
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(func() {
		srv.Client().CloseIdleConnections()
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv.URL, srv.Client()
}

func prompt(text string) []simmodel.Message { return []simmodel.Message{{Role: "user", Text: text}} }

func post(ctx context.Context, t *testing.T, client *http.Client, url, body string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return client.Do(req)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func TestOfficialOpenAIClient(t *testing.T) {
	p := simmodel.New(simmodel.Config{Name: "eu", Credential: "provider-secret"})
	url, hc := serve(t, p, true)
	client := sdkopenai.NewClient(openaioption.WithBaseURL(url+"/v1"), openaioption.WithAPIKey("provider-secret"),
		openaioption.WithHTTPClient(hc), openaioption.WithMaxRetries(0))
	ask := sdkopenai.ChatCompletionNewParams{
		Model:    "sim-chat:tps=5000",
		Messages: []sdkopenai.ChatCompletionMessageParamUnion{sdkopenai.SystemMessage("Be brief."), sdkopenai.UserMessage("What is a ring main?")},
	}
	messages := []simmodel.Message{{Role: "system", Text: "Be brief."}, {Role: "user", Text: "What is a ring main?"}}
	want := simmodel.Answer("sim-chat", messages)
	tokens, _ := simmodel.Tokens("sim-chat", messages, 0, 0)

	got, err := client.Chat.Completions.New(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	if got.Choices[0].Message.Content != want || got.Choices[0].FinishReason != "stop" {
		t.Errorf("plain answer %q (%s), want %q", got.Choices[0].Message.Content, got.Choices[0].FinishReason, want)
	}
	if got.Usage.PromptTokens != int64(simmodel.PromptTokens(messages)) || got.Usage.CompletionTokens != int64(len(tokens)) {
		t.Errorf("usage %+v, want %d and %d", got.Usage, simmodel.PromptTokens(messages), len(tokens))
	}

	ask.StreamOptions.IncludeUsage = sdkopenai.Bool(true)
	stream := client.Chat.Completions.NewStreaming(t.Context(), ask)
	var acc sdkopenai.ChatCompletionAccumulator
	for stream.Next() {
		acc.AddChunk(stream.Current())
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if acc.Choices[0].Message.Content != want || acc.Usage.CompletionTokens != int64(len(tokens)) {
		t.Errorf("streamed %q with usage %+v, want %q", acc.Choices[0].Message.Content, acc.Usage, want)
	}

	ask.Model = simmodel.FaultRefusal
	if got, err = client.Chat.Completions.New(t.Context(), ask); err != nil || got.Choices[0].Message.Refusal == "" {
		t.Errorf("refusal: %v, %v", got, err)
	}
	ask.Model = simmodel.FaultEarlyError
	stream = client.Chat.Completions.NewStreaming(t.Context(), ask)
	for stream.Next() {
		t.Errorf("early error gave a chunk: %+v", stream.Current())
	}
	if stream.Err() == nil || !strings.Contains(stream.Err().Error(), "overloaded") {
		t.Errorf("early error read as %v", stream.Err())
	}
	if list, err := client.Models.List(t.Context()); err != nil || len(list.Data) != 1+len(simmodel.Faults()) {
		t.Errorf("models: %v, %v", list, err)
	}
	if got := p.Counts().Total; got.Completed != 3 || got.Refused != 1 || got.Failed != 1 || got.Requests != 4 {
		t.Errorf("counts %+v", got)
	}
}

func TestOfficialAnthropicClient(t *testing.T) {
	p := simmodel.New(simmodel.Config{Credential: "provider-secret"})
	url, hc := serve(t, p, true)
	client := sdkanthropic.NewClient(anthropicoption.WithBaseURL(url), anthropicoption.WithAPIKey("provider-secret"),
		anthropicoption.WithHTTPClient(hc), anthropicoption.WithMaxRetries(0))
	ask := sdkanthropic.MessageNewParams{
		Model: "sim-chat", MaxTokens: 1024,
		System:   []sdkanthropic.TextBlockParam{{Text: "Be brief."}},
		Messages: []sdkanthropic.MessageParam{sdkanthropic.NewUserMessage(sdkanthropic.NewTextBlock("What is "), sdkanthropic.NewTextBlock("a ring main?"))},
	}
	messages := []simmodel.Message{{Role: "system", Text: "Be brief."}, {Role: "user", Text: "What is a ring main?"}}
	want := simmodel.Answer("sim-chat", messages)
	tokens, _ := simmodel.Tokens("sim-chat", messages, 0, 0)

	got, err := client.Messages.New(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	if got.Content[0].Text != want || got.StopReason != "end_turn" || got.Usage.OutputTokens != int64(len(tokens)) {
		t.Errorf("plain answer %q (%s, %+v), want %q", got.Content[0].Text, got.StopReason, got.Usage, want)
	}
	accumulate := func() (sdkanthropic.Message, error) {
		stream := client.Messages.NewStreaming(t.Context(), ask)
		var m sdkanthropic.Message
		for stream.Next() {
			if err := m.Accumulate(stream.Current()); err != nil {
				t.Fatal(err)
			}
		}
		return m, stream.Err()
	}
	m, err := accumulate()
	if err != nil || m.Content[0].Text != want || m.Usage.OutputTokens != int64(len(tokens)) || m.StopReason != "end_turn" {
		t.Errorf("streamed %+v, %v; want %q", m, err, want)
	}
	ask.MaxTokens = 5
	if m, err = accumulate(); err != nil || m.StopReason != "max_tokens" || m.Content[0].Text != strings.Join(tokens[:5], "") {
		t.Errorf("cut at 5 tokens: %+v, %v", m, err)
	}
	ask.Model = simmodel.FaultRefusal
	if m, err = accumulate(); err != nil || m.StopReason != "refusal" {
		t.Errorf("refusal: %+v, %v", m, err)
	}
	ask.Model = simmodel.FaultEarlyError
	var apiErr *sdkanthropic.Error
	if _, err = accumulate(); !errors.As(err, &apiErr) || apiErr.Type() != "overloaded_error" {
		t.Errorf("early error read as %v", err)
	}
	ask.Model = simmodel.Fault429
	if _, err = client.Messages.New(t.Context(), ask); !errors.As(err, &apiErr) || apiErr.StatusCode != http.StatusTooManyRequests || apiErr.Response.Header.Get("retry-after") != "1" {
		t.Errorf("429 read as %v", err)
	}
}

// The events of both dialects, name by name, as the real providers send them.
func TestStreamShape(t *testing.T) {
	url, hc := serve(t, simmodel.New(simmodel.Config{}), false)
	ask := func(path, extra string) []string {
		resp, err := post(t.Context(), t, hc, url+path, `{"model":"sim-chat","stream":true,"max_tokens":2,"messages":[{"role":"user","content":"hi"}]`+extra+`}`)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var shape []string
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			if name != "data" {
				continue
			}
			if value == "[DONE]" {
				shape = append(shape, value)
				continue
			}
			var o struct {
				Type    string
				Usage   any
				Choices []any
			}
			if err := json.Unmarshal([]byte(value), &o); err != nil {
				t.Fatalf("%q: %v", value, err)
			}
			switch {
			case o.Type != "":
				shape = append(shape, o.Type)
			case strings.Contains(value, `"usage":null`):
				shape = append(shape, "null usage")
			case o.Usage != nil:
				shape = append(shape, fmt.Sprintf("usage, %d choices", len(o.Choices)))
			default:
				shape = append(shape, "chunk")
			}
		}
		return shape
	}
	for _, c := range []struct{ path, extra, want string }{
		{"/v1/chat/completions", ``, "chunk chunk chunk chunk [DONE]"},
		{"/v1/chat/completions", `,"stream_options":{"include_usage":false}`, "chunk chunk chunk chunk [DONE]"},
		{"/v1/chat/completions", `,"stream_options":{"include_usage":true}`, "null usage null usage null usage null usage usage, 0 choices [DONE]"},
		{"/v1/messages", ``, "message_start content_block_start ping content_block_delta content_block_delta content_block_stop message_delta message_stop"},
	} {
		if got := strings.Join(ask(c.path, c.extra), " "); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.path, c.extra, got, c.want)
		}
	}
}

// silent is how long a test listens to what stays silent.
const silent = 300 * time.Millisecond

// What each fault looks like from the client's side, in both protocols.
func TestFaults(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		p := simmodel.New(simmodel.Config{})
		url, hc := serve(t, p, h2)
		seen := func(model string, stream bool) string {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if model == simmodel.FaultSilence {
				time.AfterFunc(silent, cancel)
			}
			resp, err := post(ctx, t, hc, url+"/v1/chat/completions", fmt.Sprintf(`{"model":%q,"stream":%t,"messages":[{"role":"user","content":"%t"}]}`, model, stream, stream))
			if err != nil {
				switch {
				case ctx.Err() != nil:
					return "silence"
				case !h2 && !errors.Is(err, syscall.ECONNRESET):
					return "unexpected " + err.Error()
				default:
					return "reset"
				}
			}
			defer func() { _ = resp.Body.Close() }()
			if model == simmodel.FaultStall {
				time.AfterFunc(silent, cancel)
			}
			body, err := io.ReadAll(resp.Body)
			switch {
			case ctx.Err() != nil:
				return fmt.Sprint(resp.StatusCode, " then silence")
			case err != nil:
				return fmt.Sprint(resp.StatusCode, " then cut")
			case stream && resp.StatusCode == http.StatusOK:
				return fmt.Sprint("200 done=", strings.Contains(string(body), "[DONE]"), " error=", strings.Contains(string(body), `"error"`))
			default:
				return fmt.Sprint(resp.StatusCode, " json=", json.Valid(body))
			}
		}
		for _, c := range []struct{ model, plain, stream string }{
			{"sim-chat", "200 json=true", "200 done=true error=false"},
			{simmodel.Fault429, "429 json=true", "429 json=true"},
			{simmodel.Fault503, "503 json=true", "503 json=true"},
			{simmodel.Fault500Once, "500 json=true", "500 json=true"},
			{simmodel.Fault500Once, "200 json=true", "200 done=true error=false"},
			{simmodel.FaultReset, "reset", "reset"},
			{simmodel.FaultSilence, "silence", "silence"},
			{simmodel.FaultCut, "200 then cut", "200 then cut"},
			{simmodel.FaultCutClean, "200 json=false", "200 done=false error=false"},
			{simmodel.FaultStall, "200 then silence", "200 then silence"},
			{simmodel.FaultRefusal, "200 json=true", "200 done=true error=false"},
			{simmodel.FaultEarlyError, "500 json=true", "200 done=false error=true"},
			{simmodel.FaultLateError, "500 json=true", "200 done=false error=true"},
			{simmodel.FaultGarbage, "200 json=false", "200 done=false error=false"},
		} {
			if got := seen(c.model, false); got != c.plain {
				t.Errorf("h2=%t %s plain: %s, want %s", h2, c.model, got, c.plain)
			}
			if got := seen(c.model, true); got != c.stream {
				t.Errorf("h2=%t %s stream: %s, want %s", h2, c.model, got, c.stream)
			}
		}
		eventually(t, "every request is accounted for", func() bool {
			n := p.Counts().Total
			return n.Requests == n.Completed+n.Failed+n.Unauthorized+n.Cut+n.ClientGone && n.ClientGone == 4
		})
	}
}

// The counts say what was delivered whole, and a client that leaves is seen.
func TestCountsUnderLoadAndDisconnects(t *testing.T) {
	p := simmodel.New(simmodel.Config{FirstToken: 5 * time.Millisecond, Jitter: 0.5, TokensPerSecond: 2000})
	url, hc := serve(t, p, true)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var completion, completed int64
	for i := range 60 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			text := fmt.Sprint("prompt ", i)
			model := "sim-chat"
			if i%3 == 0 {
				model = "sim-chat:tps=1"
			}
			resp, err := post(ctx, t, hc, url+"/v1/messages", fmt.Sprintf(`{"model":%q,"stream":%t,"messages":[{"role":"user","content":%q}]}`, model, i%2 == 0 || i%3 == 0, text))
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = resp.Body.Close() }()
			if i%3 == 0 {
				return // leave in the middle
			}
			if _, err := io.ReadAll(resp.Body); err != nil {
				t.Error(err)
			}
			tokens, _ := simmodel.Tokens(model, prompt(text), 0, 0)
			mu.Lock()
			defer mu.Unlock()
			completion += int64(len(tokens))
			completed++
		})
	}
	wg.Wait()
	eventually(t, "the 20 that left are counted", func() bool { return p.Counts().Total.ClientGone == 20 })
	got := p.Counts().Models["sim-chat"]
	if got.Requests != 60 || got.Completed != completed || got.CompletionTokens != completion {
		t.Errorf("counted %+v; the clients saw %d answers of %d tokens", got, completed, completion)
	}
}

func TestCredentialAndBadRequests(t *testing.T) {
	p := simmodel.New(simmodel.Config{Credential: "right"})
	url, hc := serve(t, p, false)
	for _, c := range []struct {
		method, path, key, body string
		status                  int
	}{
		{"POST", "/v1/chat/completions", "wrong", `{}`, 401},
		{"POST", "/v1/chat/completions", "right", `{`, 400},
		{"POST", "/v1/chat/completions", "right", `{"messages":[{}]}`, 400},
		{"POST", "/v1/messages", "right", `{"model":"m"}`, 400},
		{"POST", "/v1/messages", "right", `{"model":"m:tps=fast","messages":[{"content":"x"}]}`, 400},
		{"POST", "/v1/messages", "right", `{"model":"m","messages":[{"content":7}]}`, 400},
		{"POST", "/v1/chat/completions", "right", `{"model":"m","n":2,"messages":[{"content":"x"}]}`, 400},
		{"GET", "/v1/chat/completions", "right", ``, 404},
		{"GET", "/v1/models", "right", ``, 200},
		{"GET", "/sim/counts", "", ``, 200},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, url+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("x-api-key", c.key)
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.status || !json.Valid(body) {
			t.Errorf("%s %s %s: %d %s, want %d", c.method, c.path, c.body, resp.StatusCode, body, c.status)
		}
	}
}

func TestTokens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		messages := []simmodel.Message{{Role: rapid.String().Draw(t, "role"), Text: rapid.String().Draw(t, "text")}}
		minimum, maximum := rapid.IntRange(0, 200).Draw(t, "min"), rapid.IntRange(0, 200).Draw(t, "max")
		all, _ := simmodel.Tokens("m", messages, minimum, 0)
		got, whole := simmodel.Tokens("m:tps=3", messages, minimum, maximum)
		if len(all) < minimum || (maximum > 0 && len(got) > maximum) {
			t.Fatalf("%d tokens of %d, outside %d..%d", len(got), len(all), minimum, maximum)
		}
		if !strings.HasPrefix(strings.Join(all, ""), strings.Join(got, "")) || whole != (len(got) == len(all)) {
			t.Fatalf("%q (whole: %t) is not the beginning of %q", got, whole, all)
		}
		if other, _ := simmodel.Tokens("n", messages, minimum, 0); strings.Join(other, "") == strings.Join(all, "") {
			t.Fatal("another model gave the same answer")
		}
	})
}
