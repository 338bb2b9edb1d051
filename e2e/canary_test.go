package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper"
)

// What no process may write anywhere but into an encrypted connection: text of
// a prompt, and text of an answer.
const (
	promptCanary = "kestrelprompt7f3a9c51d2"
	answerCanary = "kestrelanswer4b8e0d66f7"
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
)

// canaryProvider quotes prompts wherever a provider can say something.
type canaryProvider struct {
	mu      sync.Mutex
	prompts map[string]int // requests that carried the canary, by path
	cut     map[string]bool
}

func (p *canaryProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	p.mu.Lock()
	if bytes.Contains(body, []byte(promptCanary)) {
		p.prompts[r.URL.Path]++
	}
	first := !p.cut[r.URL.Path]
	p.mu.Unlock()
	var asked struct {
		Model  string
		Stream bool
	}
	if err := json.Unmarshal(body, &asked); err != nil { // multipart
		for _, m := range []string{modelEcho, modelFail} {
			if bytes.Contains(body, []byte("\r\n\r\n"+m+"\r\n")) {
				asked.Model = m
			}
		}
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
	case modelOnce:
		if first && asked.Stream {
			p.mu.Lock()
			p.cut[r.URL.Path] = true
			p.mu.Unlock()
			asked.Model = modelCut
		}
	}
	if !asked.Stream {
		w.Header().Set("Content-Type", "application/json")
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
	case "/v1/audio/transcriptions":
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
	t.Cleanup(s.Close)
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
	for _, u := range []struct{ name, region, dialect string }{
		{"near-a", "eu-fra", "openai"}, {"near-b", "eu-fra", "openai"}, {"near-anthropic", "eu-fra", "anthropic"},
		{"far", "eu-ams", "openai"}, {"far-anthropic", "eu-ams", "anthropic"},
	} {
		fmt.Fprintf(&b, "  - {name: %s, provider: canary, region: %s, dialect: %s, base_url: %q, auth: none, terms: %s}\n", u.name, u.region, u.dialect, url, terms)
	}
	b.WriteString("routes:\n")
	for _, m := range []string{modelEcho, modelCut, modelFail, modelRefuse, modelGarbage, modelLate, modelLong, modelHeaders, modelOnce} {
		fmt.Fprintf(&b, "  - {model: %s, targets: [{upstream: near-a, model: %s}, {upstream: near-b, model: %s, order: 1}, {upstream: near-anthropic, model: %s}]}\n", m, m, m, m)
		fmt.Fprintf(&b, "  - {model: far-%s, targets: [{upstream: far, model: %s}, {upstream: far-anthropic, model: %s}]}\n", m, m, m)
	}
	path := filepath.Join(t.TempDir(), "canary.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// canaryTraffic sends the canaries every way there is into the cluster. It
// gives how many answers brought the answer's canary back to the client.
func canaryTraffic(t *testing.T, d *devCluster) (heard int) {
	t.Helper()
	h1, h2 := d.client(false), d.client(true)
	entry := d.node(t, 0, "data").API
	send := func(c *http.Client, method, url, contentType string, body []byte, header ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if contentType != "" {
			req.Header.Set("Content-Type", contentType)
		}
		req.Header.Set("Authorization", "Bearer "+d.APIKey)
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := c.Do(req)
		if err != nil {
			return err.Error() // a broken stream, or a client that left: what was written counts
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if strings.Contains(string(b), answerCanary) {
			heard++
		}
		return fmt.Sprintf("%d %s", resp.StatusCode, b)
	}
	jsonType := "application/json"
	bodies := map[string]string{
		"/v1/chat/completions":      `{"model":%q,"stream":%v,"temperature":0,"user":"` + promptCanary + `","messages":[{"role":"system","content":"` + promptCanary + `"},{"role":"user","content":"` + promptCanary + `"}]}`,
		"/v1/completions":           `{"model":%q,"stream":%v,"temperature":0,"prompt":"` + promptCanary + `"}`,
		"/v1/responses":             `{"model":%q,"stream":%v,"temperature":0,"store":false,"input":"` + promptCanary + `","instructions":"` + promptCanary + `"}`,
		"/v1/embeddings":            `{"model":%q,"input":"` + promptCanary + `"}`,
		"/v1/messages":              `{"model":%q,"stream":%v,"temperature":0,"max_tokens":64,"system":"` + promptCanary + `","messages":[{"role":"user","content":"` + promptCanary + `"}]}`,
		"/v1/messages/count_tokens": `{"model":%q,"messages":[{"role":"user","content":"` + promptCanary + `"}]}`,
	}
	models := []string{modelEcho, modelCut, modelFail, modelRefuse, modelGarbage, modelLate, modelLong, modelHeaders, modelOnce, "far-" + modelEcho, "far-" + modelCut, "far-" + modelRefuse}
	for path, format := range bodies {
		for _, model := range models {
			for _, stream := range []bool{false, true} {
				var body string
				if strings.Contains(format, "%v") {
					body = fmt.Sprintf(format, model, stream)
				} else if stream {
					continue
				} else {
					body = fmt.Sprintf(format, model)
				}
				got := send(h1, "POST", entry+path, jsonType, []byte(body))
				if model == modelEcho && !strings.HasPrefix(got, "200 ") {
					t.Errorf("POST %s (stream %v): %s", path, stream, got)
				}
				send(h2, "POST", entry+path, jsonType, []byte(body), "idc-no-retention", "true")
			}
		}
	}
	for _, model := range []string{modelEcho, modelFail} {
		var form bytes.Buffer
		w := multipart.NewWriter(&form)
		_ = w.WriteField("model", model)
		f, err := w.CreateFormFile("file", promptCanary+".wav")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(f, strings.Repeat(promptCanary, 100))
		_ = w.Close()
		got := send(h1, "POST", entry+"/v1/audio/transcriptions", w.FormDataContentType(), form.Bytes())
		if model == modelEcho && !strings.HasPrefix(got, "200 ") {
			t.Errorf("POST /v1/audio/transcriptions: %s", got)
		}
	}

	// Mistakes, and prompts in places where none belongs.
	chat := entry + "/v1/chat/completions"
	send(h1, "POST", chat, jsonType, []byte(`{"model":"echo","messages":[{"role":"user","content":"`+promptCanary))
	send(h1, "POST", chat, jsonType, []byte(`{"model":"`+promptCanary+`","messages":[]}`))
	send(h1, "POST", chat, jsonType, []byte(`{"model":"echo","model":"`+promptCanary+`"}`))
	send(h1, "POST", chat, jsonType, []byte(`{"model":"echo","stream":"`+promptCanary+`"}`))
	send(h1, "POST", chat, "text/"+promptCanary, []byte(promptCanary))
	send(h1, "POST", chat, "multipart/form-data; boundary="+promptCanary, []byte("--"+promptCanary+"\r\n"))
	send(h1, "POST", entry+"/v1/"+promptCanary+"?q="+promptCanary, jsonType, []byte(promptCanary))
	send(h1, "GET", entry+"/v1/models/"+promptCanary, "", nil)
	send(h1, "GET", entry+"/v1/receipts/"+promptCanary, "", nil)
	send(h1, "POST", entry+"/v1/files", jsonType, []byte(promptCanary))
	for _, name := range []string{"idc-residency", "idc-region-hint", "idc-project-id", "idc-no-retention", "idc-receipt", "idc-" + promptCanary, "openai-project", "anthropic-beta", "anthropic-version", "x-stainless-lang", "user-agent", "cookie", "traceparent"} {
		send(h1, "POST", chat, jsonType, fmt.Appendf(nil, bodies["/v1/chat/completions"], modelEcho, false), name, promptCanary)
	}
	send(h1, "POST", chat, jsonType, fmt.Appendf(nil, bodies["/v1/chat/completions"], modelEcho, false), "authorization", "Bearer "+promptCanary)
	large := fmt.Sprintf(`{"model":"echo","messages":[{"role":"user","content":%q}]}`, strings.Repeat(promptCanary+" ", 50_000))
	send(h1, "POST", chat, jsonType, []byte(large))
	send(h2, "POST", chat, jsonType, []byte(strings.Repeat(large, 40))) // over the bound

	// A client that leaves in the middle.
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, chat, strings.NewReader(fmt.Sprintf(bodies["/v1/chat/completions"], modelEcho, true)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+d.APIKey)
	req.Header.Set("Content-Type", jsonType)
	if resp, err := h1.Do(req); err == nil {
		_, _ = resp.Body.Read(make([]byte, 10))
		leave()
		_ = resp.Body.Close()
	}
	leave()
	return heard
}

// needles are the forms in which a canary might lie about.
func needles() map[string][]byte {
	all := make(map[string][]byte)
	for name, c := range map[string]string{"prompt": promptCanary, "answer": answerCanary} {
		all[name] = []byte(c)
		all[name+" in hex"] = []byte(hex.EncodeToString([]byte(c)))
		for shift := range 3 {
			enc := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + c + "xx"))
			all[fmt.Sprintf("%s in base64 (%d)", name, shift)] = []byte(enc[4 : len(enc)-8])
		}
	}
	return all
}

// scan adds to found what of the needles is in b.
func scan(found map[string]string, where string, b []byte) {
	for form, n := range needles() {
		if i := bytes.Index(b, n); i >= 0 {
			found[where+": "+form] = fmt.Sprintf("%q", b[max(0, i-60):min(len(b), i+60)])
		}
	}
}

// memfds reads what the processes share in memory.
func memfds(found map[string]string, pids []int) (n int) {
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if to, err := os.Readlink(filepath.Join(dir, e.Name())); err != nil || !strings.HasPrefix(to, "/memfd:") {
				continue
			}
			if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
				scan(found, "shared memory of a data node", b)
				n++
			}
		}
	}
	return n
}

// canaryRun starts a cluster of bin under strace, sends the canaries through
// it, and gives what of them was found outside of encrypted connections.
func canaryRun(t *testing.T, bin string, port int) (found map[string]string) {
	t.Helper()
	found = make(map[string]string)
	t.Setenv("GODEBUG", "http2debug=2") // makes net/http print headers and frames
	provider, url, ca := startCanaryProvider(t)
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace")
	d, err := startDevAs([]string{"strace", "-f", "-qq", "--seccomp-bpf", "-s", "2000000", "-o", trace,
		"-e", "trace=write,pwrite64,writev,pwritev,pwritev2,sendto,sendmsg,sendmmsg,vmsplice,process_vm_writev", bin},
		dir, port, "--regions", "eu-fra:eu,eu-ams:eu", "--control", "1", "--data", "1", "--seed", canaryManifest(t, url), "--upstream-ca", ca)
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	defer func() {
		if !stopped {
			_ = d.stop()
		}
	}()
	eventually(t, 15*time.Second, func() error {
		a, err := d.tryAsk(t.Context(), d.client(false), "GET", d.node(t, 0, "data").API+"/v1/models/far-"+modelEcho, "", d.bearer()...)
		if err != nil || a.status != 200 {
			return fmt.Errorf("far-echo: %w %d", err, a.status)
		}
		return nil
	})
	heard := canaryTraffic(t, d)
	provider.mu.Lock()
	t.Logf("the provider received the canary: %v; %d answers brought theirs back", provider.prompts, heard)
	for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens", "/v1/audio/transcriptions"} {
		if provider.prompts[path] == 0 {
			t.Errorf("no canary reached the provider over %s: the run proves nothing about it", path)
		}
	}
	provider.mu.Unlock()
	if heard < 20 {
		t.Errorf("only %d answers reached the client", heard)
	}
	var pids []int
	spliced := false
	for i := range d.Regions {
		n := d.node(t, i, "data")
		p := d.now(t, n.Name)
		pids = append(pids, p.PID, p.WorkerPID)
		a, err := d.tryAsk(t.Context(), http.DefaultClient, "GET", n.Metrics, "")
		if err != nil || a.status != 200 {
			t.Errorf("metrics of %s: %v %d", n.Name, err, a.status)
		}
		scan(found, "metrics of "+n.Name, []byte(a.body))
		spliced = spliced || strings.Contains(a.body, `ringmain_splices_total{result="spliced"} `)
	}
	if !spliced {
		t.Error("no stream was spliced: the run proves nothing about splices")
	}
	shared := memfds(found, pids)
	stopped = true
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	scan(found, "what ringmain dev printed", []byte(d.out.String()))
	files, size := 0, int64(0)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files, size = files+1, size+int64(len(b))
		where := strings.TrimPrefix(path, dir+"/")
		if path == trace {
			where = "a system call that writes"
			if bytes.Count(b, []byte("write(")) < 1000 {
				t.Errorf("the trace holds hardly any writes: %d", bytes.Count(b, []byte("write(")))
			}
		}
		scan(found, where, b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	records := 0
	for i := range d.Regions {
		n := d.node(t, i, "data")
		conf := readNodeYAML(t, n)
		holder, err := seal.OpenFileHolder(conf.SealKeyFile)
		if err != nil {
			t.Fatal(err)
		}
		err = keeper.ReadSpool(n.DataDir, conf.Cluster, conf.Node, seal.New(holder), func(raw []byte) error {
			scan(found, "a metadata record", raw)
			records++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if records < 50 {
		t.Errorf("only %d metadata records", records)
	}
	t.Logf("scanned %d files (%d MiB, the trace of every write among them), %d records, %d pieces of shared memory", files, size>>20, records, shared)
	return found
}

// edit changes one place of a source file, or adds a file where before is empty.
type edit struct{ file, before, after string }

// planted builds ringmain with its source changed, such as by the leak that a
// scan must find.
func planted(t *testing.T, edits ...edit) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for i, e := range edits {
		path, err := filepath.Abs(filepath.Join("..", e.file))
		if err != nil {
			t.Fatal(err)
		}
		source := []byte(e.after)
		if e.before != "" {
			if source, err = os.ReadFile(cmp.Or(replace[path], path)); err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(source), e.before); n != 1 {
				t.Fatalf("%s holds the place to change %d times: %s", e.file, n, e.before)
			}
			source = []byte(strings.Replace(string(source), e.before, e.after, 1))
		}
		replace[path] = filepath.Join(dir, fmt.Sprintf("changed%d.go", i))
		if err := os.WriteFile(replace[path], source, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "ringmain")
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", bin, "ringmain/cmd/ringmain").CombinedOutput(); err != nil {
		t.Fatalf("build with changed source: %v\n%s", err, out)
	}
	return bin
}

// Prompts and answers pass through every endpoint, error path, failover and
// splice. No process writes them to a file, a pipe or a socket in the clear, no
// file, log, record or metric holds them, and the same search finds two leaks
// that were planted.
func TestContentIsKeptNowhere(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("strace is needed in CI")
		}
		t.Skip("NOT RUN: no strace on this machine")
	}
	t.Run("as built", func(t *testing.T) {
		for where, text := range canaryRun(t, binary, 27440) {
			t.Errorf("%s\n\t%s", where, text)
		}
	})
	t.Run("with planted leaks", func(t *testing.T) {
		bin := planted(t, edit{leakFile, leakBefore, leakAfter})
		found := canaryRun(t, bin, 27440)
		for _, want := range []string{"node.log: prompt", "a system call that writes: prompt", "a metadata record: prompt"} {
			seen := false
			for where := range found {
				seen = seen || strings.Contains(where, want)
			}
			if !seen {
				t.Errorf("the planted leak was not found in %q; found: %v", want, found)
			}
		}
	})
}

// The planted leaks: prompts in the log, and in the metadata record.
const (
	leakFile   = "dataplane/exchange/record.go"
	leakBefore = "\trec.Receipt = x.leaf()\n"
	leakAfter  = leakBefore + `	if x.body != nil {
		prompt := string(x.body.Bytes())
		prompt = prompt[:min(len(prompt), 400)]
		x.node.Log.Warn("planted", "prompt", prompt)
		rec.Upstream = prompt
	}
`
)
