package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// canaryModel is how the provider of this file behaves, by the model's name.
const (
	modelEcho    = "echo"     // answers
	modelCut     = "cut"      // breaks off in the middle of what it says
	modelFail    = "fail"     // 500, with the prompt and more in the error body
	modelRefuse  = "refuse"   // 400 content_filter, quoting the prompt
	modelGarbage = "garbage"  // 200 and no JSON, or a stream that turns into none
	modelLate    = "late"     // an error event in the middle of a stream
	modelLong    = "long"     // context_length_exceeded, quoting the prompt
	modelHeaders = "headers"  // says it in headers
	modelOnce    = "cut-once" // breaks off the first stream of all, then answers
	modelDiffer  = "differ"   // the same, but answers otherwise
	modelStall   = "stall"    // falls silent: in the middle of a stream, or before an answer
	modelText    = "text"     // 500 in plain text
	modelMoved   = "moved"    // redirects to an address that holds the prompt
	modelPacked  = "packed"   // compresses, which nobody asked for
	modelEarly   = "early"    // refuses before it has read the request
)

// canaryModels lists them.
var canaryModels = []string{modelEcho, modelCut, modelFail, modelRefuse, modelGarbage, modelLate, modelLong, modelHeaders,
	modelOnce, modelDiffer, modelStall, modelText, modelMoved, modelPacked, modelEarly}

// Routes that lead from one provider to another.
const (
	routeFallen = "fallen" // every upstream fails, then another model answers
	routeLonger = "longer" // the prompt is too long, then another model answers
	routeAcross = "across" // the near upstream fails, then the one in the other region answers
)

// canaryProvider quotes prompts wherever a provider can say something.
type canaryProvider struct {
	mu      sync.Mutex
	prompts map[string]int // requests that carried the canary, by path
	cut     map[string]bool
}

func (p *canaryProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Canary") == modelEarly {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":{"message":%q,"type":"invalid_request_error"}}`, answerCanary)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	p.mu.Lock()
	if bytes.Contains(body, []byte(promptCanary)) {
		p.prompts[r.URL.Path]++
	}
	p.mu.Unlock()
	var asked struct {
		Model  string
		Stream bool
	}
	if err := json.Unmarshal(body, &asked); err != nil { // multipart
		for _, m := range canaryModels {
			if bytes.Contains(body, []byte("\r\n\r\n"+m+"\r\n")) {
				asked.Model = m
			}
		}
		asked.Stream = bytes.Contains(body, []byte(`name="stream"`))
	}
	said := answerCanary + " " + promptCanary
	problem := func(status int, code string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":{"message":%q,"type":"invalid_request_error","code":%q}}`, said, code)
	}
	switch asked.Model {
	case modelFail:
		problem(500, "boom")
		return
	case modelRefuse:
		problem(400, "content_filter")
		return
	case modelLong:
		problem(400, "context_length_exceeded")
		return
	case modelText:
		w.Header().Set("Content-Type", "text/plain")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, said)
		return
	case modelMoved:
		w.Header().Set("Location", "https://127.0.0.1:1/"+promptCanary+"?"+answerCanary)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	case modelPacked:
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Encoding", "x-"+answerCanary)
		_, _ = io.WriteString(w, said)
		return
	case modelStall:
		if !asked.Stream {
			<-r.Context().Done()
			return
		}
	case modelHeaders:
		w.Header().Set("X-Request-Id", answerCanary)
		w.Header().Set("X-Debug", said)
		w.Header().Set("Openai-Organization", promptCanary)
	case modelGarbage:
		if !asked.Stream {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"choices": `+said)
			return
		}
	case modelOnce, modelDiffer:
		p.mu.Lock()
		first := !p.cut[asked.Model+r.URL.Path]
		p.cut[asked.Model+r.URL.Path] = p.cut[asked.Model+r.URL.Path] || asked.Stream
		p.mu.Unlock()
		switch {
		case first && asked.Stream:
			asked.Model = modelCut
		case asked.Model == modelDiffer:
			said = promptCanary + " " + answerCanary
		}
	}
	if !asked.Stream {
		w.Header().Set("Content-Type", map[bool]string{true: "audio/mpeg", false: "application/json"}[r.URL.Path == "/v1/audio/speech"])
		_, _ = io.WriteString(w, plainCanary(r.URL.Path, said))
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	events := streamCanary(r.URL.Path, strings.Split(said+" and that is all", " "))
	for i, e := range events {
		if i == len(events)/2 {
			switch asked.Model {
			case modelCut:
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			case modelStall:
				<-r.Context().Done()
				return
			case modelGarbage:
				_, _ = io.WriteString(w, "data: "+said+"\n\n")
				return
			case modelLate:
				fmt.Fprintf(w, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":%q}}\n\n", said)
				return
			}
		}
		_, _ = io.WriteString(w, e)
		_ = http.NewResponseController(w).Flush()
	}
}

func plainCanary(path, said string) string {
	q, _ := json.Marshal(said)
	switch path {
	case "/v1/messages":
		return fmt.Sprintf(`{"id":"msg_1","type":"message","role":"assistant","model":"echo","content":[{"type":"text","text":%s}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":4}}`, q)
	case "/v1/messages/count_tokens":
		return `{"input_tokens":3}`
	case "/v1/responses":
		return fmt.Sprintf(`{"id":"resp_1","object":"response","status":"completed","model":"echo","output":[{"type":"message","id":"m1","role":"assistant","status":"completed","content":[{"type":"output_text","text":%s,"annotations":[]}]}],"usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}}`, q)
	case "/v1/embeddings":
		return `{"object":"list","model":"echo","data":[{"object":"embedding","index":0,"embedding":[0.25,0.5]}],"usage":{"prompt_tokens":3,"total_tokens":3}}`
	case "/v1/completions":
		return fmt.Sprintf(`{"id":"cmpl-1","object":"text_completion","created":1,"model":"echo","choices":[{"index":0,"text":%s,"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`, q)
	case "/v1/audio/speech":
		return said
	case "/v1/images/generations", "/v1/images/edits", "/v1/images/variations":
		return fmt.Sprintf(`{"created":1,"data":[{"b64_json":%q,"revised_prompt":%s}]}`, base64.StdEncoding.EncodeToString([]byte(said)), q)
	case "/v1/audio/transcriptions", "/v1/audio/translations":
		return fmt.Sprintf(`{"text":%s,"usage":{"type":"tokens","input_tokens":3,"output_tokens":4,"total_tokens":7}}`, q)
	default:
		return fmt.Sprintf(`{"id":"c1","object":"chat.completion","created":1,"model":"echo","choices":[{"index":0,"message":{"role":"assistant","content":%s},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`, q)
	}
}

func streamCanary(path string, words []string) (events []string) {
	data := func(name, format string, a ...any) {
		e := "data: " + fmt.Sprintf(format, a...) + "\n\n"
		if name != "" {
			e = "event: " + name + "\n" + e
		}
		events = append(events, e)
	}
	switch path {
	case "/v1/messages":
		data("message_start", `{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"echo","content":[],"stop_reason":null,"usage":{"input_tokens":3,"output_tokens":1}}}`)
		data("content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)
		for _, w := range words {
			data("content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%q}}`, w+" ")
		}
		data("content_block_stop", `{"type":"content_block_stop","index":0}`)
		data("message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}`)
		data("message_stop", `{"type":"message_stop"}`)
	case "/v1/responses":
		n := 0
		seq := func() int { n++; return n - 1 }
		data("response.created", `{"type":"response.created","sequence_number":%d,"response":{"id":"resp_1","object":"response","status":"in_progress","model":"echo","output":[]}}`, seq())
		data("response.output_item.added", `{"type":"response.output_item.added","sequence_number":%d,"output_index":0,"item":{"id":"m1","type":"message","role":"assistant","status":"in_progress","content":[]}}`, seq())
		data("response.content_part.added", `{"type":"response.content_part.added","sequence_number":%d,"item_id":"m1","output_index":0,"content_index":0,"part":{"type":"output_text","text":"","annotations":[]}}`, seq())
		for _, w := range words {
			data("response.output_text.delta", `{"type":"response.output_text.delta","sequence_number":%d,"item_id":"m1","output_index":0,"content_index":0,"delta":%q}`, seq(), w+" ")
		}
		data("response.completed", `{"type":"response.completed","sequence_number":%d,"response":{"id":"resp_1","object":"response","status":"completed","model":"echo","output":[],"usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}}}`, seq())
	case "/v1/audio/speech":
		for _, w := range words {
			data("", `{"type":"speech.audio.delta","audio":%q}`, base64.StdEncoding.EncodeToString([]byte(w)))
		}
		data("", `{"type":"speech.audio.done","usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}}`)
	case "/v1/audio/transcriptions":
		for _, w := range words {
			data("", `{"type":"transcript.text.delta","delta":%q}`, w+" ")
		}
		data("", `{"type":"transcript.text.done","text":%q,"usage":{"type":"tokens","input_tokens":3,"output_tokens":4,"total_tokens":7}}`, strings.Join(words, " "))
	case "/v1/images/generations", "/v1/images/edits":
		kind := map[bool]string{true: "image_edit", false: "image_generation"}[path == "/v1/images/edits"]
		for i, w := range words {
			data("", `{"type":"%s.partial_image","partial_image_index":%d,"b64_json":%q}`, kind, i, base64.StdEncoding.EncodeToString([]byte(w)))
		}
		data("", `{"type":"%s.completed","b64_json":%q,"usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}}`, kind, base64.StdEncoding.EncodeToString([]byte(strings.Join(words, " "))))
	case "/v1/completions":
		for _, w := range words {
			data("", `{"id":"cmpl-1","object":"text_completion","created":1,"model":"echo","choices":[{"index":0,"text":%q,"finish_reason":null}]}`, w+" ")
		}
		data("", `{"id":"cmpl-1","object":"text_completion","created":1,"model":"echo","choices":[{"index":0,"text":"","finish_reason":"stop"}]}`)
		data("", `{"id":"cmpl-1","object":"text_completion","created":1,"model":"echo","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`)
		data("", "[DONE]")
	default:
		data("", `{"id":"c1","object":"chat.completion.chunk","created":1,"model":"echo","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`)
		for _, w := range words {
			data("", `{"id":"c1","object":"chat.completion.chunk","created":1,"model":"echo","choices":[{"index":0,"delta":{"content":%q},"finish_reason":null}]}`, w+" ")
		}
		data("", `{"id":"c1","object":"chat.completion.chunk","created":1,"model":"echo","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`)
		data("", `{"id":"c1","object":"chat.completion.chunk","created":1,"model":"echo","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`)
		data("", "[DONE]")
	}
	return events
}

// startCanaryProvider serves p over TLS; ca is the file that verifies it.
func startCanaryProvider(t *testing.T) (p *canaryProvider, url, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	p = &canaryProvider{prompts: map[string]int{}, cut: map[string]bool{}}
	s := httptest.NewUnstartedServer(p)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	ca = filepath.Join(t.TempDir(), "provider.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return p, s.URL, ca
}

// canaryManifest offers every behaviour in both dialects, in the second region
// under names of their own: asked in the first, those are forwarded.
func canaryManifest(t *testing.T, url string) string {
	t.Helper()
	var b strings.Builder
	terms := fmt.Sprintf("{retention: zero, prompt_cache: none, training: never, contract: %q, dated: \"2026-01-01\"}", strings.Repeat("0", 64))
	b.WriteString("upstreams:\n")
	for _, u := range []struct{ name, region, dialect, more string }{
		{"near-a", "eu-fra", "openai", ""}, {"near-b", "eu-fra", "openai", ""}, {"near-anthropic", "eu-fra", "anthropic", ""},
		{"far", "eu-ams", "openai", ""}, {"far-anthropic", "eu-ams", "anthropic", ""},
		{"early", "eu-fra", "openai", ", headers: [{name: x-canary, value: early}]"}, {"early-anthropic", "eu-fra", "anthropic", ", headers: [{name: x-canary, value: early}]"},
	} {
		fmt.Fprintf(&b, "  - {name: %s, provider: canary, region: %s, dialect: %s, base_url: %q, auth: none, terms: %s%s}\n", u.name, u.region, u.dialect, url, terms, u.more)
	}
	b.WriteString("routes:\n")
	for _, m := range canaryModels {
		near, more := [3]string{"near-a", "near-b", "near-anthropic"}, ""
		switch m {
		case modelEarly:
			near = [3]string{"early", "near-b", "early-anthropic"}
		case modelStall:
			more = ", timeouts: {first_byte_ms: 200, between_events_ms: 200}"
		}
		fmt.Fprintf(&b, "  - {model: %s, targets: [{upstream: %s, model: %s}, {upstream: %s, model: %s, order: 1}, {upstream: %s, model: %s}]%s}\n", m, near[0], m, near[1], m, near[2], m, more)
		fmt.Fprintf(&b, "  - {model: far-%s, targets: [{upstream: far, model: %s}, {upstream: far-anthropic, model: %s}]%s}\n", m, m, m, more)
	}
	fmt.Fprintf(&b, "  - {model: %s, targets: [{upstream: near-a, model: fail}, {upstream: near-anthropic, model: fail}], fallbacks: [echo]}\n", routeFallen)
	fmt.Fprintf(&b, "  - {model: %s, targets: [{upstream: near-a, model: long}, {upstream: near-anthropic, model: long}], context_fallback: echo}\n", routeLonger)
	fmt.Fprintf(&b, "  - {model: %s, targets: [{upstream: near-a, model: fail}, {upstream: far, model: echo, order: 1}, {upstream: near-anthropic, model: fail}, {upstream: far-anthropic, model: echo, order: 1}]}\n", routeAcross)
	path := filepath.Join(t.TempDir(), "canary.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
