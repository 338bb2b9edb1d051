package dataplane_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/link"
)

// zeroRing is us-east and ap-sg, each with an upstream of either dialect that
// keeps nothing; "here" is served in us-east, "there" in ap-sg. "kept" is
// served in us-east by an upstream that keeps for 30 days.
func zeroRing(t *testing.T) (r *ring, us, ap *cell, providers map[string]*recorder) {
	t.Helper()
	r = newRing(t)
	providers = map[string]*recorder{}
	for _, region := range []string{"us-east", "ap-sg"} {
		p, url := recorded(t)
		providers[region] = p
		for _, d := range []string{"openai", "anthropic"} {
			r.upstream(d+"-"+region, region, d, url, func(u *registry.Upstream) {
				u.Terms = registry.Terms{Retention: "zero", PromptCache: "memory", Training: "never"}
			})
			r.upstream("kept-"+d+"-"+region, region, d, url, func(u *registry.Upstream) {
				u.Terms = registry.Terms{Retention: "30d", PromptCache: "memory", Training: "never"}
			})
		}
		model := map[string]string{"us-east": "here", "ap-sg": "there"}[region]
		r.route(model, registry.Target{Upstream: "openai-" + region, Model: "sim-chat"}, registry.Target{Upstream: "anthropic-" + region, Model: "sim-chat"})
	}
	r.route("kept", registry.Target{Upstream: "kept-openai-us-east", Model: "sim-chat"}, registry.Target{Upstream: "kept-anthropic-us-east", Model: "sim-chat"})
	us, ap = r.start("us-east", "us", patient), r.start("ap-sg", "apac", patient)
	us.confinement.Store(&allHolds)
	ap.confinement.Store(&allHolds)
	return r, us, ap, providers
}

var noRetention = map[string]string{"idc-no-retention": "true"}

// TestZeroRetention: asked for by a header or by policy, here and through
// another node; the headers, the record and the witness say so, and what an
// upstream is sent asks it to keep nothing.
func TestZeroRetention(t *testing.T) {
	r, us, ap, providers := zeroRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	always, _ := r.org("always", "any", "verified", "live")
	r.policy("pol_always", &registry.Policy{Org: "org_always", NoRetention: true})
	r.load()
	for name, in := range map[string]call{"header": {key: key, header: noRetention}, "policy": {key: always}} {
		for region, model := range map[string]string{"us-east": "here", "ap-sg": "there"} {
			for _, http2 := range []bool{false, true} {
				for _, stream := range []bool{false, true} {
					in.path, in.body = "/v1/responses", fmt.Sprintf(`{"model":%q,"input":"foxes","stream":%t}`, model, stream)
					reply := us.do(us.client(http2), in)
					if reply.status != 200 || reply.broken != nil {
						t.Fatalf("%s in %s: %d %s", name, region, reply.status, reply.body)
					}
					for header, want := range map[string]string{"idc-pool": "zero-retention", "idc-retention": "zero", "idc-region": region} {
						if got := reply.header.Get(header); got != want {
							t.Errorf("%s in %s: %s is %q, want %q", name, region, header, got, want)
						}
					}
					if _, sent, _ := providers[region].last(); !strings.Contains(string(sent), `"store":false`) {
						t.Errorf("%s in %s: the provider got %s", name, region, sent)
					}
					id := reply.header.Get("idc-request-id")
					if rec := us.record(id); rec.Pool != "zero-retention" || rec.Retention != "zero" {
						t.Errorf("%+v", rec)
					}
					if region == "ap-sg" {
						if rec := ap.record(id); rec.Pool != "zero-retention" || rec.Retention != "zero" {
							t.Errorf("%+v", rec)
						}
					}
				}
			}
		}
	}
	reply := us.do(us.client(true), call{path: chat, key: key, body: ask("here", false)})
	if reply.status != 200 || reply.header.Get("idc-pool") != "standard" || reply.header.Get("idc-retention") != "metadata" {
		t.Errorf("%d %v", reply.status, reply.header)
	}

	// An upstream that keeps what it is sent is not asked, whatever the client says.
	us.do(us.client(true), call{path: chat, key: key, body: ask("kept", false), header: noRetention}).wantError(t, dialect.OpenAI, dialect.ZeroRetentionUnavailable)

	// What cannot be forced off is refused, before anybody is asked.
	for _, model := range []string{"here", "there"} {
		for name, in := range map[string]call{
			"background":          {path: "/v1/responses", body: `{"model":"` + model + `","input":"x","background":true}`},
			"previous answer":     {path: "/v1/responses", body: `{"model":"` + model + `","input":"x","previous_response_id":"resp_1"}`},
			"disk cache":          {path: chat, body: ask(model, false, `,"prompt_cache_retention":"24h"`)},
			"files beta":          {path: messages, body: ask(model, true), header: map[string]string{"anthropic-beta": "files-api-2025-04-14"}},
			"unknown beta, twice": {path: messages, body: ask(model, false), header: map[string]string{"anthropic-beta": "token-counting-2024-11-01|nobody-knows-2027"}},
		} {
			in.key = always
			providers["us-east"].request(new(http.Request), nil)
			providers["ap-sg"].request(new(http.Request), nil)
			reply := us.do(us.client(true), in)
			reply.wantError(t, dialect.OfPath(in.path), dialect.StorageNotAllowed)
			for region := range providers {
				if _, sent, _ := providers[region].last(); len(sent) > 0 {
					t.Errorf("%s: %s was sent %s", name, region, sent)
				}
			}
			in.key = key
			reply = us.do(us.client(true), in)
			if shared := name == "background" || name == "previous answer"; shared {
				reply.wantError(t, dialect.OpenAI, dialect.StorageNotAllowed)
			} else if reply.status != 200 {
				t.Errorf("%s, with retention: %d %s", name, reply.status, reply.body)
			}
		}
	}
}

// TestZeroRetentionWithoutConfinement fails closed: at the entry before a byte
// of the body is read, at the executing node, and when a control is lost while
// the body arrives.
func TestZeroRetentionWithoutConfinement(t *testing.T) {
	r, us, ap, providers := zeroRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	r.load()
	lost := allHolds
	lost.NoSwap = false
	body := ask("here", false)
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nIdc-No-Retention: true\r\nContent-Length: %d\r\n\r\n", chat, key, len(body))

	us.confinement.Store(&lost)
	raw(t, us, head).wantError(t, dialect.OpenAI, dialect.ZeroRetentionUnavailable) // nothing of the body was sent
	poll(t, "metrics to show which control is lost", func() bool {
		return gauge(t, us, "ringmain_confined", "landlock") == 1 && gauge(t, us, "ringmain_confined", "no_swap") == 0
	})
	poll(t, "the log to show it", func() bool {
		return strings.Contains(us.log.String(), "landlock=7 no_file_write=true no_dump=true no_swap=false")
	})
	if reply := us.do(us.client(true), call{path: chat, key: key, body: body}); reply.status != 200 {
		t.Errorf("without zero retention: %d %s", reply.status, reply.body)
	}

	us.confinement.Store(&allHolds)
	poll(t, "the metric to rise", func() bool { return gauge(t, us, "ringmain_confined", "no_swap") == 1 })
	providers["us-east"].request(new(http.Request), nil)
	providers["ap-sg"].request(new(http.Request), nil)
	conn := dialRaw(t, us)
	if _, err := io.WriteString(conn, head+body[:20]); err != nil {
		t.Fatal(err)
	}
	poll(t, "the request to be under way", func() bool { return us.worker.Health().InFlight == 1 })
	us.confinement.Store(&lost)
	if _, err := io.WriteString(conn, body[20:]); err != nil {
		t.Fatal(err)
	}
	readReply(t, bufio.NewReader(conn)).wantError(t, dialect.OpenAI, dialect.ZeroRetentionUnavailable)
	if _, sent, _ := providers["us-east"].last(); len(sent) > 0 {
		t.Errorf("the provider got %s", sent)
	}

	us.confinement.Store(&allHolds)
	ap.confinement.Store(&link.Confinement{})
	us.do(us.client(true), call{path: chat, key: key, body: ask("there", true), header: noRetention}).wantError(t, dialect.OpenAI, dialect.ZeroRetentionUnavailable)
	if _, sent, _ := providers["ap-sg"].last(); len(sent) > 0 {
		t.Errorf("the provider got %s", sent)
	}
	if len(us.worker.Health().Breakers) != 0 {
		t.Error("an unconfined peer opened a circuit")
	}
}

// TestZeroRetentionKnownToOneNode: whichever of entry and executing node knows
// of it, it holds.
func TestZeroRetentionKnownToOneNode(t *testing.T) {
	r, us, ap, providers := zeroRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	r.load()
	before := r.state
	r.policy("pol_zero", &registry.Policy{Org: "org_acme", NoRetention: true})
	in := call{path: "/v1/responses", key: key, body: `{"model":"there","input":"foxes"}`}

	us.load(r.state)
	reply := us.do(us.client(true), in)
	if _, sent, _ := providers["ap-sg"].last(); reply.status != 200 || !strings.Contains(string(sent), `"store":false`) || reply.header.Get("idc-retention") != "zero" {
		t.Errorf("known to the entry: %d, sent %s, %v", reply.status, sent, reply.header)
	}
	r.policy("pol_filler", &registry.Policy{Org: "org_none"}) // loads count as newer by size
	r.policy("pol_filler2", &registry.Policy{Org: "org_none"})
	ap.load(r.state)
	us.load(append(before, r.state[len(r.state)-2:]...))
	reply = us.do(us.client(true), in)
	if _, sent, _ := providers["ap-sg"].last(); reply.status != 200 || !strings.Contains(string(sent), `"store":false`) {
		t.Errorf("known to the executing node: %d, sent %s", reply.status, sent)
	}
}

// TestZeroRetentionOfPictures: no provider keeps one behind a link, be it asked
// here or through another node, in JSON or with a form.
func TestZeroRetentionOfPictures(t *testing.T) {
	r, us, _, providers := zeroRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	r.load()
	for region, model := range map[string]string{"us-east": "here", "ap-sg": "there"} {
		var b strings.Builder
		w := multipart.NewWriter(&b)
		for name, value := range map[string]string{"model": model, "prompt": "a fox", "background": "opaque"} {
			if err := w.WriteField(name, value); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for _, in := range []call{
			{path: "/v1/images/generations", body: `{"model":"` + model + `","prompt":"a fox"}`},
			{path: "/v1/images/generations", body: `{"model":"` + model + `","response_format":null,"prompt":"a fox"}`},
			{path: "/v1/images/edits", body: b.String(), header: map[string]string{"content-type": w.FormDataContentType()}},
		} {
			for _, zero := range []bool{true, false} {
				ask := in
				ask.key, ask.header = key, map[string]string{}
				maps.Copy(ask.header, in.header)
				if zero {
					ask.header["idc-no-retention"] = "true"
				}
				reply := us.do(us.client(true), ask)
				_, sent, _ := providers[region].last()
				if reply.status != 200 || strings.Contains(string(sent), "b64_json") != zero {
					t.Errorf("%s, zero retention %t: %d, the provider was sent %s", model, zero, reply.status, sent)
				}
			}
		}
		for _, body := range []string{`{"model":"` + model + `","prompt":"p","response_format":"url"}`, `{"model":"` + model + `","prompt":"p","response_format":"URL"}`, `{"model":"` + model + `","prompt":"p","persist":true}`} {
			us.do(us.client(true), call{path: "/v1/images/generations", key: key, body: body, header: noRetention}).wantError(t, dialect.OpenAI, dialect.StorageNotAllowed)
		}
	}
}

// TestPinnedRequestsNameNoParty: nobody whom the request names itself gets
// content of it, as nobody knows where he is.
func TestPinnedRequestsNameNoParty(t *testing.T) {
	r, us, _, providers := zeroRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	pinned, _ := r.org("local", "us", "verified", "live")
	r.load()
	for _, in := range []call{
		{path: "/v1/responses", body: `{"model":"here","input":"x","tools":[{"type":"mcp","server_label":"s","server_url":"https://elsewhere"}]}`},
		{path: messages, body: ask("here", false, `,"mcp_servers":[{"type":"url","name":"s","url":"https://elsewhere"}]`)},
		{path: chat, body: ask("here", false, `,"provider":{"only":["elsewhere"]}`)},
		{path: chat, body: ask("here", true, `,"tools":[{"type":"bing_grounding"}]`)},
	} {
		in.key = pinned
		us.do(us.client(true), in).wantError(t, dialect.OfPath(in.path), dialect.InvalidRequest)
		in.key, in.header = key, map[string]string{"idc-residency": "us"}
		us.do(us.client(true), in).wantError(t, dialect.OfPath(in.path), dialect.InvalidRequest)
		if providers["us-east"].got != nil {
			t.Fatal("the provider was asked")
		}
		in.header = nil
		if reply := us.do(us.client(true), in); reply.status != 200 {
			t.Errorf("not pinned: %d %s", reply.status, reply.body)
		}
		providers["us-east"].got = nil
	}
}

// TestPinnedRequestsNameNoPlace: a provider may not be told to compute elsewhere.
func TestPinnedRequestsNameNoPlace(t *testing.T) {
	r, us, _, providers := zeroRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	r.load()
	in := call{path: messages, key: key, body: ask("here", false, `,"inference_geo":"eu"`), header: map[string]string{"idc-residency": "us"}}
	us.do(us.client(true), in).wantError(t, dialect.Anthropic, dialect.InvalidRequest)
	if providers["us-east"].got != nil {
		t.Error("the provider was asked")
	}
	for name, in := range map[string]call{
		"null":       {body: ask("here", false, `,"inference_geo":null`), header: in.header},
		"not pinned": {body: in.body},
	} {
		in.path, in.key = messages, key
		if reply := us.do(us.client(true), in); reply.status != 200 {
			t.Errorf("%s: %d %s", name, reply.status, reply.body)
		}
	}
}

// gauge reads one metric, by the value of its only label.
func gauge(t *testing.T, c *cell, name, label string) float64 {
	t.Helper()
	families, err := c.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == label {
				return m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

// TestSharedAccounts: what lies in a provider's account can be named by the org
// to which the account belongs, and by nobody else.
func TestSharedAccounts(t *testing.T) {
	r := newRing(t)
	r.pools = []string{"standard", "dedicated:org_owner"}
	p, url := recorded(t)
	r.upstream("shared", "us-east", "openai", url)
	r.upstream("own", "us-east", "openai", url, func(u *registry.Upstream) { u.Dedicated = "org_owner" })
	r.route("m", registry.Target{Upstream: "shared", Model: "sim-chat"}, registry.Target{Upstream: "own", Model: "sim-chat"})
	key, _ := r.org("acme", "any", "verified", "live")
	owner, _ := r.org("owner", "any", "verified", "live")
	r.policy("pol_own", &registry.Policy{Org: "org_owner", Dedicated: true})
	us := r.start("us-east", "us", patient)
	r.load()
	in := call{path: "/v1/responses", key: key, body: `{"model":"m","input":"x","previous_response_id":"resp_1"}`}
	us.do(us.client(true), in).wantError(t, dialect.OpenAI, dialect.StorageNotAllowed)
	if p.got != nil {
		t.Error("the provider was asked")
	}
	for key, body := range map[string]string{key: strings.Replace(in.body, `"resp_1"`, "null", 1), owner: in.body} {
		in.key, in.body = key, body
		if reply := us.do(us.client(true), in); reply.status != 200 {
			t.Errorf("%s: %d %s", body, reply.status, reply.body)
		}
	}
}
