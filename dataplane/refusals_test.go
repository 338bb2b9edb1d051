package dataplane_test

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"ringmain/controlplane/registry"
)

// no is one way in which a provider's safety system refuses.
type no struct {
	name, path string
	stream     bool
	status     int // 0 = 200
	body       string
}

func refusals() []no {
	chunk := func(choice string) string {
		return `data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,` + choice + `}]}` + "\n\n"
	}
	const responses, completions = "/v1/responses", "/v1/completions"
	blocked := "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"image_generation_user_error\",\"code\":\"moderation_blocked\",\"message\":\"no\"}}\n\n"
	begun := "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"content\":[],\"usage\":{\"input_tokens\":1,\"output_tokens\":1}}}\n\n"
	ended := "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	said := `"delta":{"role":"assistant","content":"I"},"finish_reason":null`
	return []no{
		{"status and code", chat, false, 400, `{"error":{"message":"no","type":"invalid_request_error","code":"content_policy_violation"}}`},
		{"status and code, of a stream", chat, true, 400, `{"error":{"message":"no","type":"invalid_request_error","code":"content_filter"}}`},
		{"a status that is retried otherwise", chat, false, 500, `{"error":{"message":"no","code":"content_filter"}}`},
		{"a status for too many", chat, false, 429, `{"error":{"message":"no","code":"safety_violation"}}`},
		{"a status for the account", chat, false, 403, `{"error":{"message":"no","code":"cyber_policy_violation"}}`},
		{"Azure's status", chat, false, 400, `{"error":{"code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"violence":{"filtered":true}}},"message":"The response was filtered due to the prompt triggering Azure OpenAI's content management policy."}}`},
		{"Azure's inner code alone", chat, false, 400, `{"error":{"code":"x","innererror":{"code":"ResponsibleAIPolicyViolation"},"message":"no"}}`},
		{"Anthropic's status", messages, false, 400, `{"type":"error","error":{"type":"invalid_request_error","message":"Output blocked by content filtering policy"}}`},
		{"xAI's status", chat, false, 403, `{"code":"The caller does not have permission to execute the specified operation","error":"Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}`},
		{"OpenRouter's status", chat, false, 403, `{"error":{"code":403,"message":"Input was flagged","metadata":{"reasons":["violence"],"flagged_input":"no","provider_name":"p","model_slug":"m"}}}`},
		{"OpenRouter's status in a stream", chat, true, 0, chunk(said) + `data: {"error":{"code":403,"message":"Input was flagged","metadata":{"reasons":["violence"],"flagged_input":"no"}}}` + "\n\n"},
		{"finish reason", chat, false, 0, strings.Replace(plainAnswer, `"stop"`, `"content_filter"`, 1)},
		{"refusal in the message", chat, false, 0, `{"choices":[{"index":0,"message":{"role":"assistant","content":null,"refusal":"no"},"finish_reason":"stop"}]}`},
		{"Azure's filter in the answer", chat, false, 0, `{"choices":[{"index":0,"message":{"role":"assistant","content":""},"content_filter_results":{"hate":{"filtered":true,"severity":"high"}},"finish_reason":"stop"}]}`},
		{"finish reason of a completion", completions, false, 0, `{"choices":[{"index":0,"text":"","finish_reason":"content_filter"}]}`},
		{"stop reason", messages, false, 0, `{"type":"message","content":[],"stop_reason":"refusal","usage":{"input_tokens":1,"output_tokens":1}}`},
		{"incomplete response", responses, false, 0, `{"id":"r","status":"incomplete","incomplete_details":{"reason":"content_filter"},"output":[]}`},
		{"refusal in a response", responses, false, 0, `{"id":"r","status":"completed","output":[{"type":"message","content":[{"type":"refusal","refusal":"no"}]}]}`},
		{"failed response", responses, false, 0, `{"id":"r","status":"failed","error":{"code":"invalid_prompt","message":"no"},"output":[]}`},
		{"finish reason in a stream", chat, true, 0, chunk(said) + chunk(`"delta":{},"finish_reason":"content_filter"`) + done},
		{"refusal in a stream", chat, true, 0, chunk(`"delta":{"role":"assistant","refusal":"no"},"finish_reason":null`) + chunk(`"delta":{},"finish_reason":"stop"`) + done},
		{"refusal in a stream that is cut", chat, true, 0, chunk(`"delta":{"role":"assistant","refusal":"no"},"finish_reason":null`)},
		{"Azure's filter in a stream that is cut", chat, true, 0, chunk(said) + chunk(`"delta":{},"content_filter_results":{"hate":{"filtered":true}}`)},
		{"error event first", chat, true, 0, `data: {"error":{"code":"content_filter","message":"no"}}` + "\n\n"},
		{"error event later", chat, true, 0, chunk(said) + `data: {"error":{"code":"content_filter","message":"no"}}` + "\n\n"},
		{"stop reason in a stream", messages, true, 0, begun + "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"refusal\"},\"usage\":{\"output_tokens\":1}}\n\n" + ended},
		{"Anthropic's error event", messages, true, 0, begun + "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"Output blocked by content filtering policy\"}}\n\n"},
		{"refusal event", responses, true, 0, "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"r\",\"created_at\":1,\"output\":[]}}\n\nevent: response.refusal.delta\ndata: {\"type\":\"response.refusal.delta\",\"sequence_number\":1,\"item_id\":\"i\",\"output_index\":0,\"content_index\":0,\"delta\":\"no\"}\n\n"},
		{"a moderator at once", images, true, 0, blocked},
		{"a moderator after the first picture", images, true, 0, "event: image_generation.partial_image\ndata: {\"type\":\"image_generation.partial_image\",\"b64_json\":\"AAAA\"}\n\n" + blocked},
		{"failed response in a stream", responses, true, 0, "event: response.failed\ndata: {\"type\":\"response.failed\",\"sequence_number\":0,\"response\":{\"id\":\"r\",\"created_at\":1,\"status\":\"failed\",\"error\":{\"code\":\"invalid_prompt\",\"message\":\"no\"},\"output\":[]}}\n\n"},
	}
}

// TestEveryRefusalIsFinal: in whatever form a provider refuses, and whoever was
// asked before, nobody else is asked, no other model either; the client is told
// in the provider's words not to try again; record and receipt say "refused".
func TestEveryRefusalIsFinal(t *testing.T) {
	all := refusals()
	var mu sync.Mutex
	asked := map[string]int{}
	name := regexp.MustCompile(`case-(\d+)(-again)?`)
	r := newRing(t)
	url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		id := name.FindStringSubmatch(string(b))
		mu.Lock()
		asked[id[0]]++
		n := asked[id[0]]
		mu.Unlock()
		if id[2] != "" && n == 1 {
			http.Error(w, `{"error":{"message":"busy"}}`, http.StatusServiceUnavailable)
			return
		}
		var i int
		_, _ = fmt.Sscan(id[1], &i)
		one := all[i]
		w.Header().Set("content-type", "application/json")
		if one.stream && one.status == 0 {
			w.Header().Set("content-type", "text/event-stream")
		}
		w.WriteHeader(max(one.status, 200))
		_, _ = io.WriteString(w, one.body)
		_ = http.NewResponseController(w).Flush()
	}))
	for _, d := range []string{"openai", "anthropic"} {
		var targets []registry.Target
		for i := range 3 {
			up := fmt.Sprintf("%s-%d", d, i)
			r.upstream(up, "us-east", d, url, simulated)
			targets = append(targets, registry.Target{Upstream: up, Model: "m"})
		}
		r.routed(d, func(route *registry.Route) { route.Fallbacks, route.ContextFallback = []string{d + "-else"}, d+"-else" }, targets...)
		r.route(d+"-else", targets...)
	}
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	var group sync.WaitGroup
	for i, one := range all {
		for _, again := range []string{"", "-again"} {
			group.Go(func() {
				id := fmt.Sprintf("case-%d%s", i, again)
				body := map[string]string{
					chat:              `{"model":"openai","messages":[{"role":"user","content":"` + id + `"}]`,
					"/v1/completions": `{"model":"openai","prompt":"` + id + `"`,
					images:            `{"model":"openai","prompt":"` + id + `"`,
					messages:          `{"model":"anthropic","max_tokens":50,"messages":[{"role":"user","content":"` + id + `"}]`,
					"/v1/responses":   `{"model":"openai","store":false,"input":"` + id + `"`,
				}[one.path] + `,"temperature":0`
				if one.stream {
					body += `,"stream":true`
				}
				reply, err := c.try(t.Context(), c.client(i%2 == 0), call{path: one.path, key: key, body: body + "}"})
				if err != nil {
					t.Errorf("%s%s: %v", one.name, again, err)
					return
				}
				mu.Lock()
				n := asked[id]
				mu.Unlock()
				want := 1
				if again != "" {
					want = 2
				}
				rec := c.record(reply.header.Get("idc-request-id"))
				doc, _ := c.receiptText(t, key, rec.RequestID)
				outcome := strings.Contains(string(doc), `"outcome":"refused"`) || one.stream && reply.broken != nil // it broke, too
				if n != want || rec.Attempts != want || !rec.Refused || !strings.Contains(string(doc), `"refused":true`) || !outcome || rec.Fallback != "" {
					t.Errorf("%s%s: asked %d times: %+v\n%s", one.name, again, n, rec, doc)
				}
				if reply.status != max(one.status, 200) || !strings.Contains(reply.body, strings.TrimSpace(one.body)) {
					t.Errorf("%s%s: not passed on as it is: %d %v %s", one.name, again, reply.status, reply.header, reply.body)
				}
				if !one.stream || one.status != 0 {
					if reply.header.Get("x-should-retry") != "false" || reply.header.Get("idc-attempts") != fmt.Sprint(want) {
						t.Errorf("%s%s: %v", one.name, again, reply.header)
					}
				}
			})
		}
	}
	group.Wait()
}
