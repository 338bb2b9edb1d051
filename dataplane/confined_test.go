package dataplane_test

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/link"
	"ringmain/dataplane/receipt/proof"
	"ringmain/dataplane/relay"
)

// verified fetches the receipt of an answer and verifies it without the bodies.
func (c *cell) verified(t *testing.T, key string, answer *reply) *proof.Verdict {
	t.Helper()
	doc, anchors := c.receiptText(t, key, answer.header.Get("idc-request-id"))
	v := proof.Verify(doc, anchors, proof.Bodies{})
	if !v.Verified {
		t.Fatalf("%s\n%s", v.Reason, doc)
	}
	return v
}

// TestReceiptsStateWhatConfinedThePeer: the worker that executed the request
// says what it measured of itself, answer or error, and the receipt of the node
// that answered the client states it beside its own.
func TestReceiptsStateWhatConfinedThePeer(t *testing.T) {
	r, us, ap, _ := zeroRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	r.load()
	lost := allHolds
	lost.NoSwap = false
	type asked struct {
		name     string
		measured proof.Confinement
		reply    *reply
	}
	var all []asked
	for name, measured := range map[string]link.Confinement{"all holds": allHolds, "one is lost": lost, "nothing holds": {}} {
		ap.confinement.Store(&measured)
		for how, in := range map[string]call{
			"plain": {body: ask("there", false)}, "stream": {body: ask("there", true)},
			"inline": {body: ask("there", false), header: map[string]string{"idc-receipt": "inline"}},
		} {
			in.path, in.key = chat, key
			all = append(all, asked{how + ", " + name, proof.Confinement(measured), us.do(us.client(how != "plain"), in)})
		}
	}
	for _, x := range all {
		if x.reply.status != 200 {
			t.Fatalf("%s: %d %s", x.name, x.reply.status, x.reply.body)
		}
		v := us.verified(t, key, x.reply)
		if a := v.Facts.Attempts; len(a) != 1 || a[0].Node != "ap-sg-d1" || a[0].Confinement == nil || *a[0].Confinement != x.measured ||
			v.Facts.Confinement != proof.Confinement(allHolds) || v.Facts.Retention != "metadata" || len(v.Warnings) > 0 {
			t.Errorf("%s: %+v", x.name, v)
		}
		if strings.HasPrefix(x.name, "inline") {
			jws := x.reply.header.Get("idc-receipt")
			_, anchors := us.receiptText(t, key, x.reply.header.Get("idc-request-id"))
			if v := proof.Verify([]byte(jws), anchors, proof.Bodies{}); !v.Verified || *v.Facts.Attempts[0].Confinement != x.measured {
				t.Errorf("%s: %+v", x.name, v)
			}
		}
	}
	// Of its own attempts the entry node's statement is the one.
	if f := us.verified(t, key, us.do(us.client(true), call{path: chat, key: key, body: ask("here", false)})).Facts; len(f.Attempts) != 1 || f.Attempts[0].Confinement != nil {
		t.Errorf("executed here: %+v", f)
	}
	// A peer that answers with an error was sent the request, too: one that is
	// not confined, and one that has not learned of its caller.
	ap.confinement.Store(&lost)
	reply := us.do(us.client(true), call{path: chat, key: key, body: ask("there", false), header: noRetention})
	reply.wantError(t, dialect.OpenAI, dialect.ZeroRetentionUnavailable)
	v := us.verified(t, key, reply)
	if a := v.Facts.Attempts; len(a) != 1 || a[0].Outcome == "ok" || a[0].Confinement == nil || *a[0].Confinement != proof.Confinement(lost) || len(v.Warnings) != 1 {
		t.Errorf("refused there: %+v", v)
	}
	late, _ := r.org("late", "any", "verified", "live")
	us.load(r.state)
	reply = us.do(us.client(true), call{path: chat, key: late, body: ask("there", false)})
	reply.wantError(t, dialect.OpenAI, dialect.NotReady)
	if a := us.verified(t, late, reply).Facts.Attempts; len(a) != 1 || a[0].Outcome != "behind" || a[0].Confinement == nil {
		t.Errorf("behind: %+v", a)
	}
}

// TestConfinementThatEndsUnderway: zero retention was checked when the request
// came to the peer, and a control ended before the peer's answer.
func TestConfinementThatEndsUnderway(t *testing.T) {
	r, us, ap, providers := zeroRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	r.load()
	lost := allHolds
	lost.NoSwap = false
	sim := providers["ap-sg"].next
	var ends atomic.Bool
	providers["ap-sg"].next = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if ends.Load() {
			ap.confinement.Store(&lost)
		}
		sim.ServeHTTP(w, q)
	})
	for _, broken := range []bool{false, true} {
		ends.Store(broken)
		reply := us.do(us.client(true), call{path: chat, key: key, body: ask("there", true), header: noRetention})
		if reply.status != 200 || reply.header.Get("idc-retention") != "zero" {
			t.Fatalf("%d %v %s", reply.status, reply.header, reply.body)
		}
		v := us.verified(t, key, reply)
		if c := v.Facts.Attempts[0].Confinement; c == nil || c.Holds() == broken || (len(v.Warnings) > 0) != broken {
			t.Errorf("ended under way %t: %+v", broken, v)
		}
		if broken && !strings.Contains(v.Warnings[0], "ap-sg/ap-sg-d1, which was sent the request, was not confined: landlock ABI 7, no file write: true, no dump: true, no swap: false") {
			t.Errorf("%q", v.Warnings)
		}
	}
}

// TestPeersThatSayNothingOfUse: a node of an earlier release says nothing of its
// confinement, and what is not the one form of it is nothing. The answer counts
// all the same, and nothing is stated.
func TestPeersThatSayNothingOfUse(t *testing.T) {
	r := newRing(t)
	for _, d := range []string{"openai", "anthropic"} {
		r.upstream(d+"-ap-sg", "ap-sg", d, provider(t, newAnswering(answered)))
	}
	r.route("there", registry.Target{Upstream: "openai-ap-sg", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	us := r.start("us-east", "us", patient)
	var said atomic.Pointer[[]string]
	said.Store(new([]string))
	peer := r.fakePeer("ap-sg", "apac", func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == relay.ProbePath {
			return
		}
		_, _ = io.Copy(io.Discard, q.Body)
		h := w.Header()
		h["Content-Type"] = []string{"application/json"}
		h[relay.HeaderOutcome], h[relay.HeaderLeft], h[relay.HeaderServed] = []string{relay.OutcomeAnswer}, []string{"2"}, []string{"m"}
		h[relay.HeaderTried] = []string{"openai-ap-sg", "server_error", "openai-ap-sg", "ok"}
		h[relay.HeaderConfined] = *said.Load()
		_, _ = io.WriteString(w, plainAnswer)
	})
	r.mu.Lock()
	r.cells["ap-sg"] = peer
	r.mu.Unlock()
	r.load()
	whole := proof.Confinement(allHolds).String()
	cases := []struct {
		said  []string
		taken bool
	}{
		{nil, false}, {[]string{whole}, true}, {[]string{"landlock=0"}, true},
		{[]string{""}, false}, {[]string{whole, whole}, false}, {[]string{whole + ", tee"}, false}, {[]string{strings.ToUpper(whole)}, false},
		{[]string{strings.ReplaceAll(whole, ", ", ",")}, false}, {[]string{"landlock=-1"}, false}, {[]string{strings.Repeat(whole+", ", 100)}, false},
	}
	replies := make([]*reply, len(cases))
	for i := range cases {
		said.Store(&cases[i].said)
		replies[i] = us.do(us.client(true), call{path: chat, key: key, body: ask("there", false)})
		if reply := replies[i]; reply.status != 200 || reply.header.Get(relay.HeaderConfined) != "" {
			t.Fatalf("%.200q: %d %v %s", cases[i].said, reply.status, reply.header, reply.body)
		}
	}
	for i, c := range cases {
		f := us.verified(t, key, replies[i]).Facts
		if len(f.Attempts) != 2 || f.Node != "ap-sg-d1" {
			t.Fatalf("%+v", f)
		}
		for _, a := range f.Attempts { // each of them was that worker's
			if (a.Confinement != nil) != c.taken || c.taken && a.Confinement.String() != c.said[0] {
				t.Errorf("%.200q is stated as %+v", c.said, a.Confinement)
			}
		}
	}
}
