package dataplane_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/meter"
	"ringmain/drills/simmodel"
)

// threeRegions are us-east, eu-fra and ap-sg. Models "chat" and "messages-only"
// have their upstream in eu-fra, "anywhere" in eu-fra and ap-sg, "home" in
// us-east; the faults are in eu-fra.
type threeRegions struct {
	*ring
	us, eu, ap *cell
	sims       map[string]*simmodel.Provider
	key        string
	roaming    string
}

// newThreeRegions starts them; tunables are those of us-east, if given.
func newThreeRegions(t *testing.T, tunables ...dataplane.Tunables) *threeRegions {
	t.Helper()
	r := &threeRegions{ring: newRing(t), sims: map[string]*simmodel.Provider{}}
	for _, region := range []string{"us-east", "eu-fra", "ap-sg"} {
		r.sims[region] = simmodel.New(simmodel.Config{Name: region})
		url := provider(t, r.sims[region])
		for _, d := range []string{"openai", "anthropic"} {
			r.upstream(d+"-"+region, region, d, url, simulated)
		}
	}
	both := func(model string, regions ...string) {
		var targets []registry.Target
		for i, region := range regions {
			for _, d := range []string{"openai", "anthropic"} {
				targets = append(targets, registry.Target{Upstream: d + "-" + region, Model: "sim-chat:tps=400", Order: uint32(i)})
			}
		}
		r.route(model, targets...)
	}
	both("chat", "eu-fra")
	both("anywhere", "eu-fra", "ap-sg")
	both("home", "us-east")
	both("everywhere", "us-east", "eu-fra", "ap-sg")
	for _, f := range simmodel.Faults() {
		r.route(f, registry.Target{Upstream: "openai-eu-fra", Model: f + ":tps=400"}, registry.Target{Upstream: "anthropic-eu-fra", Model: f + ":tps=400"})
	}
	r.key, _ = r.org("acme", "any", "verified", "live")
	r.roaming, _ = r.org("nomad", "any", "verified", "live", func(o *registry.Org, _ *registry.Project, _ *registry.Key) { o.Roaming = true })
	r.us, r.eu, r.ap = r.start("us-east", "us", append(tunables, patient)[0]), r.start("eu-fra", "eu", patient), r.start("ap-sg", "apac", patient)
	r.load()
	return r
}

func TestForwarding(t *testing.T) {
	r := newThreeRegions(t)
	for _, http2 := range []bool{false, true} {
		for d, path := range dialects {
			for _, stream := range []bool{false, true} {
				name := fmt.Sprintf("%s stream=%t h2=%t", d, stream, http2)
				reply := r.us.do(r.us.client(http2), call{path: path, key: r.key, body: ask("chat", stream)})
				if reply.status != 200 || reply.broken != nil {
					t.Fatalf("%s: status %d, %v: %s", name, reply.status, reply.broken, reply.body)
				}
				reply.wantHeaders(t)
				checkAnswer(t, d, stream, reply.body)
				upstream := d.String() + "-eu-fra"
				for header, want := range map[string]string{
					"idc-route":        "us-east/us-east-d1 > eu-fra/eu-fra-d1 > " + upstream,
					"idc-entry-region": "us-east", "idc-region": "eu-fra", "idc-replica": "eu-fra-d1", "idc-upstream": upstream,
					"idc-attempts": "1", "idc-residency": "unpinned",
				} {
					if got := reply.header.Get(header); got != want {
						t.Errorf("%s: %s: %q, want %q", name, header, got, want)
					}
				}
				if !strings.HasPrefix(reply.header.Get("idc-upstream-request-id"), "req_eu-fra_") {
					t.Errorf("%s: %v", name, reply.header)
				}
				id := reply.header.Get("idc-request-id")
				front, witness := r.us.record(id), r.eu.record(id)
				if front.Role != meter.RoleFront || witness.Role != meter.RoleWitness || front.TokensOut == 0 || front.TokensOut != witness.TokensOut || front.TokensIn != witness.TokensIn {
					t.Errorf("%s: front %+v\nwitness %+v", name, front, witness)
				}
				if front.Region != "eu-fra" || front.Node != "eu-fra-d1" || front.Served != "sim-chat:tps=400" || front.Upstream != upstream ||
					witness.EntryRegion != "us-east" || witness.EntryNode != "us-east-d1" || witness.Key != front.Key || witness.Project != "prj_acme" || witness.Endpoint != path {
					t.Errorf("%s: front %+v\nwitness %+v", name, front, witness)
				}
			}
		}
	}
}

func TestForwardedFaults(t *testing.T) {
	quiet := patient
	quiet.ProbeEvery = time.Hour // only requests shall be able to open the peer's circuit
	r := newThreeRegions(t, quiet)
	var all sync.WaitGroup
	for _, c := range []struct {
		model  string
		stream bool
		code   dialect.Code // before the first byte; "" = a good answer
		inBand dialect.Code
	}{
		{simmodel.Fault429, false, dialect.UpstreamSaturated, ""},
		{simmodel.Fault500Once, true, "", ""},
		{simmodel.Fault503, true, dialect.UpstreamError, ""},
		{simmodel.FaultReset, false, dialect.UpstreamError, ""},
		{simmodel.FaultSilence, true, dialect.UpstreamTimeout, ""},
		{simmodel.FaultRefusal, true, "", ""},
		{simmodel.FaultEarlyError, true, dialect.UpstreamError, ""},
		{simmodel.FaultCut, true, "", dialect.UpstreamError},
		{simmodel.FaultCutClean, true, "", dialect.UpstreamError},
		{simmodel.FaultStall, true, "", dialect.UpstreamTimeout},
		{simmodel.FaultLateError, true, "", dialect.UpstreamError},
		{simmodel.FaultGarbage, true, "", dialect.UpstreamError},
	} {
		for d, path := range dialects {
			all.Go(func() {
				name := c.model + " " + d.String()
				want := c.code
				if c.model == simmodel.FaultEarlyError && d == dialect.Anthropic { // it says that it is overloaded
					want = dialect.UpstreamSaturated
				}
				reply := r.us.do(r.us.client(true), call{path: path, key: r.key, body: strings.Replace(ask(c.model, c.stream), "foxes", name, 1)})
				front := r.us.record(reply.header.Get("idc-request-id"))
				switch {
				case want != "":
					reply.wantError(t, d, want)
				case c.inBand != "":
					wantBroken(t, name, d, reply, c.inBand)
					if front.Ended != meter.EndTruncated {
						t.Errorf("%s: %+v", name, front)
					}
				default:
					if reply.status != 200 || reply.broken != nil {
						t.Errorf("%s: status %d, %v: %s", name, reply.status, reply.broken, reply.body)
					}
					checkAnswer(t, d, c.stream, reply.body)
				}
				if open := r.us.worker.Health().Breakers; open["peer/eu-fra-d1"] != "" {
					t.Errorf("%s: the upstream's fault opened the peer's circuit", name)
				}
			})
		}
	}
	all.Wait()
}

// TestFailoverToAnotherRegion: eu-fra cannot serve, ap-sg does.
func TestFailoverToAnotherRegion(t *testing.T) {
	r := newThreeRegions(t)
	r.eu.close()
	for _, stream := range []bool{false, true} {
		reply := r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("anywhere", stream)})
		if reply.status != 200 || reply.header.Get("idc-region") != "ap-sg" {
			t.Fatalf("%d %v %s", reply.status, reply.header, reply.body)
		}
	}
	reply := r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false)})
	if code := dialect.Code(reply.header.Get("idc-error-code")); code != dialect.UpstreamError && code != dialect.NoHealthyRoute {
		t.Fatalf("%d %s", reply.status, reply.body)
	}
	poll(t, "the circuit of the lost peer to open", func() bool { return r.us.worker.Health().Breakers["peer/eu-fra-d1"] != "" })
	reply = r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false)})
	reply.wantError(t, dialect.OpenAI, dialect.NoHealthyRoute)
}

// TestPeerLostInTheMiddle: the executing region dies while it streams.
func TestPeerLostInTheMiddle(t *testing.T) {
	r := newThreeRegions(t)
	again := r.us.client(true)
	for _, http2 := range []bool{false, true} {
		for d, path := range dialects {
			body := strings.Replace(ask("chat", true), `"max_tokens":40`, `"min_tokens":4000`, 1)
			resp, err := r.us.send(context.Background(), r.us.client(http2), call{path: path, key: r.key, body: body})
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != http.StatusOK {
				reply := r.us.receive(resp)
				t.Fatalf("%s http2=%t: no stream: status %d: %s\n%s", d, http2, reply.status, reply.body, r.us.log)
			}
			r.eu.peerLine.lose() // the stream would run for ten seconds
			reply := r.us.receive(resp)
			wantBroken(t, "peer lost", d, reply, dialect.UpstreamError)
			if rec := r.us.record(reply.header.Get("idc-request-id")); rec.Ended != meter.EndTruncated || rec.Source != meter.SourceEstimated || rec.Region != "eu-fra" {
				t.Errorf("%+v", rec)
			}
			r.eu.lost()
			// Bring it back for the next case. A probe sent while it was away may
			// yet count against it, which opens its circuit if it is the second
			// failure in a row: so there must be an answer in between.
			r.eu = r.start("eu-fra", "eu", patient)
			r.eu.load(r.state)
			poll(t, "the peer to answer again", func() bool {
				return r.us.do(again, call{path: chat, key: r.key, body: ask("chat", false)}).status == 200 &&
					len(r.us.worker.Health().Breakers) == 0
			})
		}
	}
}

func TestHints(t *testing.T) {
	r := newThreeRegions(t)
	for _, c := range []struct {
		from             *cell
		key, model, hint string
		region, result   string
	}{
		{r.us, r.key, "everywhere", "", "us-east", ""},
		{r.us, r.key, "everywhere", "us-east", "us-east", "honoured"},
		{r.us, r.key, "everywhere", "ap-sg", "ap-sg", "honoured"},
		{r.us, r.key, "home", "ap-sg", "us-east", "policy"},        // nothing serves it there
		{r.eu, r.key, "everywhere", "us-east", "eu-fra", "policy"}, // what entered in the EU stays
		{r.eu, r.roaming, "everywhere", "us-east", "us-east", "honoured"},
	} {
		h := map[string]string{}
		if c.hint != "" {
			h["idc-region-hint"] = c.hint
		}
		reply := c.from.do(c.from.client(true), call{path: chat, key: c.key, body: ask(c.model, false), header: h})
		if reply.status != 200 || reply.header.Get("idc-region") != c.region || reply.header.Get("idc-region-hint-result") != c.result {
			t.Errorf("%+v: %d %s %q", c, reply.status, reply.header.Get("idc-region"), reply.header.Get("idc-region-hint-result"))
		}
	}
	r.ap.close()
	reply := r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("everywhere", false), header: map[string]string{"idc-region-hint": "ap-sg"}})
	if reply.status != 200 || reply.header.Get("idc-region") != "us-east" || reply.header.Get("idc-region-hint-result") != "unhealthy" {
		t.Errorf("%d %s %q", reply.status, reply.header.Get("idc-region"), reply.header.Get("idc-region-hint-result"))
	}
}

func TestResidency(t *testing.T) {
	r := newThreeRegions(t)
	pinned, _ := r.org("euro", "eu", "verified", "live")
	byPolicy, _ := r.org("policed", "any", "verified", "live")
	r.policy("pol_policed", &registry.Policy{Org: "org_policed", Residency: "eu"})
	for _, c := range r.cells {
		c.load(r.state)
	}
	for _, c := range []struct {
		name      string
		from      *cell
		key       string
		model     string
		residency string
		want      dialect.Code // "" = 200
		region    string
		label     string
	}{
		{"unpinned", r.us, r.key, "chat", "", "", "eu-fra", "unpinned"},
		{"pinned at home", r.eu, pinned, "chat", "", "", "eu-fra", "eu"},
		{"pinned at home, narrowed to the same", r.eu, pinned, "chat", "eu", "", "eu-fra", "eu"},
		{"pinned elsewhere", r.us, pinned, "chat", "", dialect.WrongJurisdiction, "", ""},
		{"pinned by policy elsewhere", r.us, byPolicy, "chat", "", dialect.WrongJurisdiction, "", ""},
		{"pinned by header elsewhere", r.us, r.key, "chat", "eu", dialect.WrongJurisdiction, "", ""},
		{"narrowed to here", r.us, r.key, "everywhere", "us", "", "us-east", "us"},
		{"narrowed to here, nothing here", r.us, r.key, "chat", "us", dialect.ResidencyUnavailable, "", ""},
		{"pins that exclude each other", r.eu, pinned, "chat", "us", dialect.ResidencyUnavailable, "", ""},
		{"entered in the EU", r.eu, r.key, "everywhere", "", "", "eu-fra", "eu"},
		{"entered in the EU, nothing there", r.eu, r.key, "home", "", dialect.ResidencyUnavailable, "", ""},
		{"entered in the EU, roaming", r.eu, r.roaming, "home", "", "", "us-east", "unpinned"},
		{"no such jurisdiction", r.us, r.key, "chat", "mars", dialect.InvalidHeader, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := map[string]string{}
			if c.residency != "" {
				h["idc-residency"] = c.residency
			}
			before := map[string]int64{}
			for name, s := range r.sims {
				before[name] = s.Counts().Total.Requests
			}
			reply := c.from.do(c.from.client(true), call{path: chat, key: c.key, body: ask(c.model, false), header: h})
			if c.want == "" {
				if reply.status != 200 || reply.header.Get("idc-region") != c.region || reply.header.Get("idc-residency") != c.label {
					t.Fatalf("%d %v %s", reply.status, reply.header, reply.body)
				}
				return
			}
			reply.wantError(t, dialect.OpenAI, c.want)
			if endpoint := reply.header.Get("idc-endpoint"); (c.want == dialect.WrongJurisdiction) != (endpoint == "https://"+r.eu.api) {
				t.Errorf("idc-endpoint %q", endpoint)
			}
			for name, s := range r.sims {
				if s.Counts().Total.Requests != before[name] {
					t.Errorf("the request reached %s", name)
				}
			}
		})
	}
}

// TestStricterStateWins: the executing node knows more than the entry node.
func TestStricterStateWins(t *testing.T) {
	r := newThreeRegions(t)
	var keyID string
	for _, rec := range r.state {
		if rec.Kind == registry.KindKey && rec.Key.Project == "prj_acme" {
			keyID = rec.Meta.ID
		}
	}
	ask1 := func() *reply {
		return r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false)})
	}
	if reply := ask1(); reply.status != 200 {
		t.Fatal(reply.body)
	}
	if err := r.eu.store.Apply(&feed.Frame{Type: feed.FrameRevocation, Revocation: &registry.Revocation{
		Kind: registry.KindKey, ID: keyID, Shard: controlplane.ShardAny("us-east"), At: time.Now().UnixMilli(),
	}}); err != nil {
		t.Fatal(err)
	}
	reply := ask1()
	reply.wantError(t, dialect.OpenAI, dialect.InvalidAPIKey)
	if len(r.us.worker.Health().Breakers) != 0 {
		t.Error("a refusal opened a circuit")
	}
}

// TestPeerThatIsBehind: the executing node lacks the key. It is never a 401,
// and never the peer's fault.
func TestPeerThatIsBehind(t *testing.T) {
	r := newThreeRegions(t)
	late, _ := r.org("late", "any", "verified", "live")
	r.us.load(r.state)
	for range 8 {
		reply := r.us.do(r.us.client(true), call{path: chat, key: late, body: ask("chat", true)})
		reply.wantError(t, dialect.OpenAI, dialect.NotReady)
	}
	if len(r.us.worker.Health().Breakers) != 0 {
		t.Errorf("being behind opened %v", r.us.worker.Health().Breakers)
	}
	// Another region that has caught up serves.
	r.ap.load(r.state)
	reply := r.us.do(r.us.client(true), call{path: chat, key: late, body: ask("anywhere", true)})
	if reply.status != 200 || reply.header.Get("idc-region") != "ap-sg" || reply.header.Get("idc-attempts") != "1" {
		t.Errorf("%d %v %s", reply.status, reply.header, reply.body)
	}
	r.eu.load(r.state)
	reply = r.us.do(r.us.client(true), call{path: chat, key: late, body: ask("chat", true)})
	if reply.status != 200 {
		t.Errorf("%d %s", reply.status, reply.body)
	}
}

func TestClientThatLeavesCancelsTheForward(t *testing.T) {
	r := newThreeRegions(t)
	ctx, cancel := context.WithCancel(context.Background())
	var left sync.WaitGroup
	left.Go(func() {
		_, _ = r.us.try(ctx, r.us.client(false), call{path: chat, key: r.key, body: ask("sim-stall", true)})
	})
	poll(t, "the upstream to be asked", func() bool { return r.sims["eu-fra"].Counts().Models["sim-stall"].Requests == 1 })
	cancel()
	left.Wait()
	poll(t, "the upstream to notice", func() bool { return r.sims["eu-fra"].Counts().Models["sim-stall"].ClientGone == 1 })
	for _, c := range []*cell{r.us, r.eu} {
		poll(t, "a record in "+c.region, func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.records) == 1 && c.records[0].Ended == meter.EndClientGone
		})
		if open := c.worker.Health().Breakers; len(open) != 0 {
			t.Errorf("%s: %v", c.region, open)
		}
	}
}

// TestPeerListenerIsForDataNodesOnly: no certificate, a control node's, and a
// node that speaks for another are turned away.
func TestPeerListenerIsForDataNodesOnly(t *testing.T) {
	r := newThreeRegions(t)
	try := func(id identity.ID) (int, error) {
		issued, err := r.ca.IssueNode(id, nil, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := issued.Bundle()
		if err != nil {
			t.Fatal(err)
		}
		tr := &http.Transport{TLSClientConfig: bundle.Client([]string{"h2"}, identity.AllowData("eu-fra")), ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "https://"+r.eu.peer+"/internal/v1/forward", strings.NewReader(ask("chat", false)))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range map[string]string{"path": chat, "entry": "us-east/us-east-d1", "attempts": "1", "deadline-ms": "1000", "request-id": "req_x"} {
			req.Header.Set("ringmain-"+k, v)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return 0, err
		}
		_ = resp.Body.Close()
		return resp.StatusCode, nil
	}
	if _, err := try(identity.ID{Region: "us-east", Role: identity.RoleControl, Node: "us-east-c1"}); err == nil {
		t.Error("a control node was let in")
	}
	if status, err := try(identity.ID{Region: "us-east", Role: identity.RoleData, Node: "us-east-d9"}); err != nil || status != http.StatusBadRequest {
		t.Errorf("a node that speaks for another: %d, %v", status, err)
	}
	if status, err := try(identity.ID{Region: "us-east", Role: identity.RoleData, Node: "us-east-d1"}); err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("the node itself, without a key: %d, %v", status, err)
	}
}

// TestPinKnownToTheExecutorOnly: a pin that the entry node has not heard of
// yet keeps a request that entered elsewhere from running, also inside it: its
// answer would leave by the entry.
func TestPinKnownToTheExecutorOnly(t *testing.T) {
	r := newThreeRegions(t)
	r.policy("pol_new", &registry.Policy{Org: "org_acme", Residency: "eu"})
	r.eu.load(r.state)
	reply := r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false)})
	reply.wantError(t, dialect.OpenAI, dialect.WrongJurisdiction)
	if n := r.sims["eu-fra"].Counts().Total.Requests; n != 0 || reply.header.Get("idc-endpoint") == "" {
		t.Errorf("%d asked, %v", n, reply.header)
	}
}

// TestEntryRegionUnknown: without the entry's jurisdiction its pin cannot be
// known, and nothing runs.
func TestEntryRegionUnknown(t *testing.T) {
	r := newThreeRegions(t)
	r.policy("pol_filler", &registry.Policy{Org: "org_none"}) // loads count as newer by size
	var less []*registry.Record
	for _, rec := range r.state {
		if rec.Kind != registry.KindRegion || rec.Region.Name != "us-east" {
			less = append(less, rec)
		}
	}
	r.eu.load(less)
	reply := r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false)})
	reply.wantError(t, dialect.OpenAI, dialect.NotReady)
}

// TestPeerFinalIsRetryableAsItsCodeSays: a 503 of the executing node's carries
// retry-after, as ours do.
func TestPeerFinalIsRetryableAsItsCodeSays(t *testing.T) {
	r := newThreeRegions(t)
	r.policy("pol_zero", &registry.Policy{Org: "org_acme", NoRetention: true})
	r.eu.load(r.state)
	reply := r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false)})
	reply.wantError(t, dialect.OpenAI, dialect.ZeroRetentionUnavailable)
}
