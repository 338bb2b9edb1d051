package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"ringmain/dataplane/dialect"
)

// canaryTraffic sends the canaries every way there is into the cluster. It
// gives how many answers brought the answer's canary back to the client.
func canaryTraffic(t *testing.T, d *devCluster) (heard int, ids []string) {
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
		if id := resp.Header.Get("idc-request-id"); resp.Header.Get("idc-receipt") != "" {
			ids = append(ids, id)
		}
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
		"/v1/audio/speech":          `{"model":%q,"stream":%v,"voice":"alloy","input":"` + promptCanary + `"}`,
		"/v1/images/generations":    `{"model":%q,"stream":%v,"prompt":"` + promptCanary + `"}`,
		"/v1/images/edits":          `{"model":%q,"stream":%v,"prompt":"` + promptCanary + `","images":[{"image_url":"data:image/png;base64,` + promptCanary + `"}]}`,
	}
	paths := slices.Sorted(maps.Keys(bodies))
	good := []string{modelEcho, "far-" + modelEcho, routeFallen, routeLonger, routeAcross}
	resumed := []string{modelOnce, modelDiffer}
	var bad []string
	for _, m := range canaryModels[1:] {
		if !slices.Contains(resumed, m) {
			bad = append(bad, m)
		}
		bad = append(bad, "far-"+m)
	}
	jsons := func(models []string, answered bool) {
		for _, path := range paths {
			format := bodies[path]
			for _, model := range models {
				for _, stream := range []bool{false, true} {
					body := fmt.Sprintf(format, model, stream)
					if !strings.Contains(format, "%v") {
						body = fmt.Sprintf(format, model)
						if stream {
							continue
						}
					}
					got := send(h1, "POST", entry+path, jsonType, []byte(body))
					zero := send(h2, "POST", entry+path, jsonType, []byte(body), "idc-no-retention", "true")
					if answered && (!strings.HasPrefix(got, "200 ") || !strings.HasPrefix(zero, "200 ")) {
						t.Errorf("POST %s of %s (stream %v): %s, with zero retention %s", path, model, stream, got, zero)
					}
				}
			}
		}
	}
	forms := func(models []string, answered bool) {
		for _, path := range []string{"/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits", "/v1/images/variations"} {
			file := map[bool]string{true: "file", false: "image"}[strings.HasPrefix(path, "/v1/audio/")]
			ep, _ := dialect.EndpointOf(path)
			for _, model := range models {
				for _, stream := range []bool{false, true} {
					if stream && !ep.Streams {
						continue
					}
					var form bytes.Buffer
					w := multipart.NewWriter(&form)
					_ = w.WriteField("model", model)
					_ = w.WriteField("prompt", promptCanary)
					if stream {
						_ = w.WriteField("stream", "true")
					}
					f, err := w.CreateFormFile(file, promptCanary+".wav")
					if err != nil {
						t.Fatal(err)
					}
					_, _ = io.WriteString(f, strings.Repeat(promptCanary, 100))
					_ = w.Close()
					got := send(h1, "POST", entry+path, w.FormDataContentType(), form.Bytes())
					zero := send(h2, "POST", entry+path, w.FormDataContentType(), form.Bytes(), "idc-no-retention", "true")
					if answered && (!strings.HasPrefix(got, "200 ") || !strings.HasPrefix(zero, "200 ")) {
						t.Errorf("POST %s of %s (stream %v): %s, with zero retention %s", path, model, stream, got, zero)
					}
				}
			}
		}
	}
	// First what is answered, then what is continued elsewhere: later, circuits
	// are open.
	jsons(good, true)
	forms(good, true)
	jsons(resumed, false)
	forms(resumed, false)
	jsons(bad, false)
	forms(bad, false)

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
	plain := fmt.Appendf(nil, bodies["/v1/chat/completions"], modelEcho, false)
	send(h1, "POST", chat, jsonType, plain, "authorization", "Bearer "+promptCanary)
	send(h1, "POST", chat, jsonType, plain, "authorization", "Bearer "+d.APIKey+promptCanary)
	send(h1, "POST", chat, jsonType, plain, "content-encoding", promptCanary)
	send(h1, "POST", chat, jsonType, plain, "upgrade", promptCanary, "connection", "upgrade")
	send(h2, "POST", chat, jsonType, plain, "idc-receipt", "inline")
	send(h1, "POST", chat, jsonType, plain, "idc-region-hint", "eu-ams", "idc-receipt", "inline")
	send(h2, "OPTIONS", chat, jsonType, plain)
	for _, field := range []string{`"` + promptCanary + `":"` + promptCanary + `"`, `"file_id":"` + promptCanary + `"`, `"tools":[{"type":"` + promptCanary + `"}]`, `"store":"` + promptCanary + `"`} {
		send(h1, "POST", chat, jsonType, []byte(`{"model":"echo",`+field+`,"messages":[]}`), "idc-no-retention", "true")
	}
	send(h1, "POST", entry+"/v1/responses", jsonType, []byte(`{"model":"echo","previous_response_id":"`+promptCanary+`"}`))
	wrong := d.node(t, 2, "data").API + "/v1/chat/completions"
	for _, c := range []*http.Client{h1, h2} {
		if got := send(c, "POST", wrong, jsonType, plain, "idc-residency", "eu"); !strings.HasPrefix(got, "403 ") {
			t.Errorf("at the wrong entry: %s", got)
		}
		send(c, "POST", chat, jsonType, plain, "idc-residency", "us")
	}
	large := fmt.Sprintf(`{"model":"echo","messages":[{"role":"user","content":%q}]}`, strings.Repeat(promptCanary+" ", 50_000))
	send(h1, "POST", chat, jsonType, []byte(large))
	send(h2, "POST", chat, jsonType, []byte(strings.Repeat(large, 40))) // over the bound

	// What is no HTTP, no TLS, or ends before it is whole.
	address := strings.TrimPrefix(entry, "https://")
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + d.APIKey + "\r\nContent-Type: application/json\r\n"
	for _, raw := range []string{
		promptCanary + " " + promptCanary + "\r\n\r\n",
		head + promptCanary + "\r\n\r\n",
		head + "X-Test: " + promptCanary + "\r\n folded\r\n\r\n",
		head + "Transfer-Encoding: " + promptCanary + "\r\n\r\n",
		head + "Content-Length: " + promptCanary + "\r\n\r\n",
		head + "Content-Length: 1000\r\n\r\n" + string(plain),
		head + "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x;%s\r\n%s\r\n0\r\n%s: %s\r\n\r\n", len(plain), promptCanary, plain, promptCanary, promptCanary),
		head + "Transfer-Encoding: chunked\r\n\r\n" + promptCanary + "\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + promptCanary,
	} {
		for _, name := range []string{"127.0.0.1", promptCanary + ".example"} {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			secure := tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true})
			if _, err := io.WriteString(secure, raw); err != nil {
				t.Errorf("%.40q was not sent: %v", raw, err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)) // some of them wait for more
			_, _ = io.ReadAll(secure)
			_ = conn.Close()
		}
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, promptCanary+promptCanary); err != nil {
		t.Errorf("what is no TLS was not sent: %v", err)
	}
	_, _ = io.ReadAll(conn)
	_ = conn.Close()

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
	return heard, ids
}
