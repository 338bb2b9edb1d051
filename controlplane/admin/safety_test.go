package admin_test

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/controlkit"
	"ringmain/internal/testkit/logkit"
)

const second = "token of the second operator"

func withSecond(cfg *admin.Config) {
	cfg.HeldIn = time.Millisecond
	cfg.Tokens = append(cfg.Tokens, admin.Token{Name: "second", SHA256: sha256.Sum256([]byte(second)), Expires: time.Now().Add(time.Hour)},
		admin.Token{Name: "third", SHA256: sha256.Sum256([]byte("third")), Expires: time.Now().Add(time.Hour)})
	cfg.Nodes = func() []api.Node {
		return []api.Node{{Region: "us-east", Role: "data", Name: "us-east-d1", Alive: true}}
	}
}

// safety is what the region of n holds of a revocation.
func held(n *controlkit.Node, kind registry.Kind, id string) (v registry.Revocation, ok bool) {
	n.View(func(s *ledger.State) { v, ok = s.Revoked(kind, id) })
	return v, ok
}

// A revocation is announced where the request arrives, before it is on its way,
// and committed at the global shard's home; the answer says who holds it.
func TestRevokeBeyondKeys(t *testing.T) {
	logs := &logkit.Buffer{}
	c := controlkit.Start(t, logs, []string{"us-east:us", "eu-fra:eu"}, withSecond)
	call := caller{t, c.Client()}
	home, far := c.Regions[0].Nodes[0], c.Regions[1].Nodes[0]
	base := far.URL + "/admin/v1"
	// Two upstreams with one credential, and one with another.
	const secret, other = "sk-very-secret", "sk-other"
	first := call.want(201, "POST", base+"/upstreams", upstream("openai-us", "us-east", `"auth":"bearer","credential":"`+secret+`",`)).str("id")
	call.want(201, "POST", base+"/upstreams", upstream("openai-eu", "eu-fra", `"auth":"bearer","credential":"`+secret+`",`))
	call.want(201, "POST", base+"/upstreams", upstream("openai-2", "us-east", `"auth":"bearer","credential":"`+other+`",`))
	sum := sha256.Sum256([]byte(second))
	cases := []struct {
		name, path string
		kind       registry.Kind
		id         string
		subject    string
	}{
		{"credential", "/upstreams/openai-us/revoke-credential", registry.KindCredential, registry.CredentialID([]byte(secret)), first},
		{"node", "/nodes/us-east/data/us-east-d1/revoke", registry.KindNode, "nod_us-east/data/us-east-d1", "us-east/data/us-east-d1"},
		{"token", "/tokens/second/revoke", registry.KindToken, registry.TokenID(sum), "second"},
	}
	for _, tc := range cases {
		r := call.want(409, "POST", base+tc.path, "")
		if !strings.Contains(r.str("detail"), "Upgrade all of them") || len(far.Revocations)+len(home.Revocations) != 0 {
			t.Errorf("%s while nodes may be older: %s", tc.name, r.text)
		}
	}
	for _, r := range c.Regions {
		r.Raise()
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			call := caller{t, c.Client()}
			at := len(far.Revocations)
			// The home fails: who was told goes on refusing, and the request can be repeated.
			c.Broken = func(string, bool) error { return controlplane.ErrNoLeader }
			call.want(503, "POST", base+tc.path, "")
			c.Broken = nil
			if len(far.Revocations) != at+1 || far.Revocations[at].ID != tc.id || far.Revocations[at].Kind != tc.kind || far.Revocations[at].Shard != "global" {
				t.Fatalf("announced at the entry: %+v", far.Revocations[at:])
			}
			if _, ok := held(home, tc.kind, tc.id); ok {
				t.Fatal("committed, though it failed")
			}
			r := call.want(200, "POST", base+tc.path, "")
			regions, _ := r.json["held"].(map[string]any)
			if r.str("id") != tc.id || r.str("kind") != tc.name || r.str("subject") != tc.subject || r.header.Get("Ringmain-Position") == "" || names(regions["regions"]) == "" {
				t.Errorf("%s", r.text)
			}
			for _, n := range []*controlkit.Node{home, far} {
				if _, ok := held(n, tc.kind, tc.id); !ok {
					t.Errorf("%s does not hold it", n.Name)
				}
			}
			if again := call.want(200, "POST", base+tc.path, ""); again.str("revoked") != r.str("revoked") {
				t.Errorf("again: %s, and before %s", again.text, r.text)
			}
			if !strings.Contains(logs.String(), tc.name+"_revoked") || !strings.Contains(logs.String(), tc.name+"_revocation_pushed") {
				t.Error("the audit log does not say so")
			}
		})
	}
	if strings.Contains(logs.String(), secret) || strings.Contains(logs.String(), second) {
		t.Error("a secret is in the log")
	}

	// The credential is gone from both upstreams, and comes back by no write.
	if r := call.want(200, "POST", base+"/upstreams/openai-eu/revoke-credential", ""); names(r.json["upstreams"]) != "openai-eu openai-us" {
		t.Errorf("upstreams of the credential: %s", r.text)
	}
	var revoked []string
	for _, u := range call.want(200, "GET", base+"/upstreams", "").items() {
		if u["credential_revoked"] != nil {
			revoked = append(revoked, u["name"].(string))
		}
	}
	if slices.Sort(revoked); !slices.Equal(revoked, []string{"openai-eu", "openai-us"}) {
		t.Errorf("shown as revoked: %v", revoked)
	}
	for url, method := range map[string]string{"/upstreams": "POST", "/upstreams/openai-2": "PUT"} {
		r := call.want(409, method, base+url, upstream("openai-2", "us-east", `"auth":"bearer","credential":"`+secret+`",`))
		if r.str("field") != "upstream.credential" && r.str("field") != "credential" || !strings.Contains(r.str("detail"), "issue another") {
			t.Errorf("%s %s: %s", method, url, r.text)
		}
	}
	call.want(200, "PUT", base+"/upstreams/openai-us", upstream("openai-us", "us-east", `"auth":"bearer","disabled":true,`)) // keeps what it has
	if r := call.want(200, "PUT", base+"/upstreams/openai-us", upstream("openai-us", "us-east", `"auth":"bearer","credential":"sk-new",`)); r.json["credential_revoked"] != nil {
		t.Errorf("with another credential: %s", r.text)
	}
}

func TestRevokeRefuses(t *testing.T) {
	call, base, c, _ := one(t, withSecond)
	c.Regions[0].Raise()
	call.want(201, "POST", base+"/upstreams", upstream("open", "us-east", `"auth":"none",`))
	for path, want := range map[string]struct {
		status int
		text   string
	}{
		"/upstreams/open/revoke-credential":      {409, "disable it"},
		"/upstreams/nobody/revoke-credential":    {404, "does not exist"},
		"/nodes/us-east/owner/us-east-d1/revoke": {422, ""},
		"/nodes/us-east/data/US/revoke":          {422, "as the configuration does"},
		"/tokens/tester/revoke":                  {409, "Ask with another"},
		"/tokens/nobody/revoke":                  {404, "SHA-256"},
	} {
		if r := call.want(want.status, "POST", base+path, ""); !strings.Contains(r.str("detail"), want.text) {
			t.Errorf("%s: %s", path, r.text)
		}
	}
}

// A name that nobody bears is revoked for good only if the caller says that he
// knows: it would look as if the node that was meant were.
func TestANodeThatNobodyKnowsIsNotRevokedByMistake(t *testing.T) {
	call, base, c, _ := one(t, withSecond)
	c.Regions[0].Raise()
	home := c.Regions[0].Nodes[0]
	for path, says := range map[string]string{
		"/nodes/us-east/control/us-east-d1/revoke": "us-east/data/us-east-d1",
		"/nodes/eu-fra/data/us-east-d1/revoke":     "us-east/data/us-east-d1",
		"/nodes/us-east/data/us-east-d9/revoke":    "unseen",
	} {
		if r := call.want(404, "POST", base+path, ""); !strings.Contains(r.str("detail"), says) || !strings.Contains(r.str("detail"), "Nothing was revoked") {
			t.Errorf("%s: %s", path, r.text)
		}
	}
	if _, ok := held(home, registry.KindNode, "nod_us-east/data/us-east-d9"); ok || len(home.Revocations) != 0 {
		t.Errorf("something was revoked: %+v", home.Revocations)
	}
	if r := call.want(200, "POST", base+"/nodes/us-east/data/us-east-d9/revoke?unseen=true", ""); r.json["unseen"] != true {
		t.Errorf("unseen: %s", r.text)
	}
	// That gossip hears nothing of it is what was asked, from then on.
	if r := call.want(200, "POST", base+"/nodes/us-east/data/us-east-d9/revoke", ""); r.json["unseen"] != nil {
		t.Errorf("again: %s", r.text)
	}
}

// A name means the token that the asked node has by it, whatever the home's are.
func TestATokenIsRevokedByTheNameThatTheAskedNodeKnows(t *testing.T) {
	sum := sha256.Sum256([]byte("only here"))
	c := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us", "eu-fra:eu"}, func(cfg *admin.Config) {
		cfg.HeldIn = time.Millisecond
		own, mine := admin.Token{Name: "ci", SHA256: sha256.Sum256([]byte("another")), Expires: time.Now().Add(time.Hour)}, "tester"
		if cfg.Region == "eu-fra" {
			own.SHA256, mine = sum, "me"
		}
		cfg.Tokens[0].Name = mine
		cfg.Tokens = append(cfg.Tokens, own)
	})
	call := caller{t, c.Client()}
	for _, r := range c.Regions {
		r.Raise()
	}
	home, base := c.Regions[0].Nodes[0], c.Regions[1].Nodes[0].URL+"/admin/v1"
	if r := call.want(200, "POST", base+"/tokens/ci/revoke", ""); r.str("id") != registry.TokenID(sum) {
		t.Errorf("another token: %s", r.text)
	}
	if _, ok := held(home, registry.KindToken, registry.TokenID(sum)); !ok {
		t.Error("it is not revoked")
	}
	if _, ok := held(home, registry.KindToken, registry.TokenID(sha256.Sum256([]byte("another")))); ok {
		t.Error("the home's token of that name is")
	}
	own := sha256.Sum256([]byte(controlkit.Token))
	for _, ref := range []string{"me", hex.EncodeToString(own[:])} {
		if r := call.want(409, "POST", base+"/tokens/"+ref+"/revoke", ""); !strings.Contains(r.str("detail"), "Ask with another") {
			t.Errorf("the token that asks: %s", r.text)
		}
	}
}

// A token that is exchanged may have its successor's name: that one revokes it, by
// its hash, and no name revokes whichever comes first.
func TestATokenIsRevokedByItsSuccessorOfTheSameName(t *testing.T) {
	old := sha256.Sum256([]byte("leaked"))
	c := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us", "eu-fra:eu"}, func(cfg *admin.Config) {
		cfg.HeldIn = time.Millisecond
		cfg.Tokens = append(cfg.Tokens, admin.Token{Name: "tester", SHA256: old, Expires: time.Now().Add(time.Hour)})
	})
	call := caller{t, c.Client()}
	for _, r := range c.Regions {
		r.Raise()
	}
	home := c.Regions[0].Nodes[0]
	for _, r := range c.Regions {
		if r := call.want(409, "POST", r.Nodes[0].URL+"/admin/v1/tokens/tester/revoke", ""); !strings.Contains(r.str("detail"), "several tokens") {
			t.Errorf("by a name that two have: %s", r.text)
		}
	}
	if _, ok := held(home, registry.KindToken, registry.TokenID(old)); ok || len(home.Revocations)+len(c.Regions[1].Nodes[0].Revocations) != 0 {
		t.Error("one of them is revoked")
	}
	for _, r := range []*controlkit.Region{c.Regions[1], c.Regions[0]} {
		call.want(200, "POST", r.Nodes[0].URL+"/admin/v1/tokens/"+hex.EncodeToString(old[:])+"/revoke", "")
	}
}

// A token is refused from the announcement on, by every node that heard of it.
func TestRevokedToken(t *testing.T) {
	sum := sha256.Sum256([]byte("third"))
	announced := false
	call, base, c, logs := one(t, withSecond, func(cfg *admin.Config) {
		cfg.Announced = func(kind registry.Kind, id string) bool {
			return announced && kind == registry.KindToken && id == registry.TokenID(sum)
		}
	})
	c.Regions[0].Raise()
	asSecond, asThird := "Authorization: Bearer "+second, "Authorization: Bearer third"
	call.want(200, "GET", base+"/orgs", "", asSecond)
	call.want(200, "POST", base+"/tokens/second/revoke", "")
	call.want(401, "GET", base+"/orgs", "", asSecond)
	if !strings.Contains(logs.String(), "token is revoked") {
		t.Error("the audit log does not say why it was refused")
	}
	call.want(200, "GET", base+"/orgs", "", asThird)
	announced = true
	call.want(401, "GET", base+"/orgs", "", asThird)
	call.want(200, "POST", base+"/tokens/"+hex.EncodeToString(sum[:])+"/revoke", "")
	for _, tok := range call.want(200, "GET", base+"/tokens", "").items() {
		if gone := tok["name"] != "tester"; gone != (tok["revoked"] != nil) || len(tok["sha256"].(string)) != 64 {
			t.Errorf("%v", tok)
		}
	}
}

// silent is a store that hears no leader.
type silent struct {
	admin.Store
	since time.Time
}

func (s *silent) Contact() time.Time { return s.since }

// A node that does not know for too long whether a token was revoked refuses
// all of them, and says whom to ask; it is no 401.
func TestTokensOfASilentNode(t *testing.T) {
	now := time.Now()
	var store *silent
	call, base, _, _ := one(t, func(cfg *admin.Config) {
		store = &silent{cfg.Store, now}
		cfg.Store, cfg.TokenAge = store, 2*time.Minute
		cfg.Now = func() time.Time { return now }
	})
	call.want(200, "GET", base+"/orgs", "")
	store.since = time.Time{} // never heard of one: the time before it began does not count
	call.want(200, "GET", base+"/orgs", "")
	store.since = now
	now = now.Add(2*time.Minute + time.Second)
	r := call.want(503, "GET", base+"/orgs", "")
	if r.str("code") != "not_ready" || !strings.Contains(r.str("detail"), "another control node") || r.header.Get("Retry-After") == "" {
		t.Errorf("%s", r.text)
	}
	if r := call.want(401, "GET", base+"/orgs", "", "Authorization: Bearer nobody"); r.str("code") != "unauthorized" {
		t.Errorf("%s", r.text)
	}
	store.since = now
	call.want(200, "GET", base+"/orgs", "")
}

// gossiping has each node see what its region sees, but for what was announced:
// gossip hears nothing of that any more.
func gossiping(seen map[string][]api.Node) controlkit.Option {
	var mu sync.Mutex
	told := map[string]bool{}
	return func(cfg *admin.Config) {
		inner := cfg.Revocations
		cfg.HeldIn = time.Millisecond
		cfg.Revocations = pushing(func(all []registry.Revocation) {
			mu.Lock()
			for _, r := range all {
				told[r.ID] = true
			}
			mu.Unlock()
			inner.PushRevocations(all)
		})
		cfg.Announced = func(_ registry.Kind, id string) bool {
			mu.Lock()
			defer mu.Unlock()
			return told[id]
		}
		cfg.Nodes = func() (all []api.Node) {
			for _, n := range seen[cfg.Region] {
				if !cfg.Announced(registry.KindNode, registry.NodeID(n.Region, n.Role, n.Name)) {
					all = append(all, n)
				}
			}
			return all
		}
	}
}

type pushing func([]registry.Revocation)

func (p pushing) PushRevocations(all []registry.Revocation) { p(all) }

// Nobody hears of a node in gossip once its revocation is announced: a request
// that failed after that can be repeated all the same.
func TestANodeThatIsAnnouncedIsRevokedByRepeating(t *testing.T) {
	d1 := api.Node{Region: "us-east", Role: "data", Name: "us-east-d1", Alive: true}
	for _, asked := range []int{0, 1} {
		c := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us", "eu-fra:eu"}, gossiping(map[string][]api.Node{"us-east": {d1}, "eu-fra": {d1}}))
		for _, r := range c.Regions {
			r.Raise()
		}
		call, url := caller{t, c.Client()}, c.Regions[asked].Nodes[0].URL+"/admin/v1/nodes/us-east/data/us-east-d1/revoke"
		c.Broken = func(string, bool) error { return controlplane.ErrNoLeader }
		call.want(503, "POST", url, "")
		c.Broken = nil
		if r := call.want(200, "POST", url, ""); r.json["unseen"] != nil {
			t.Errorf("asked in %s: %s", c.Regions[asked].Name, r.text)
		}
	}
}

// The operator sees what the node shows that is asked: what that has announced
// is revoked, though the home never heard of the node.
func TestANodeThatTheHomeNeverSawIsRevoked(t *testing.T) {
	d1 := api.Node{Region: "eu-fra", Role: "data", Name: "eu-fra-d1", Alive: true}
	c := controlkit.Start(t, &logkit.Buffer{}, []string{"us-east:us", "eu-fra:eu"}, gossiping(map[string][]api.Node{"eu-fra": {d1}}))
	for _, r := range c.Regions {
		r.Raise()
	}
	call, home, far := caller{t, c.Client()}, c.Regions[0].Nodes[0], c.Regions[1].Nodes[0]
	const path = "/admin/v1/nodes/eu-fra/data/eu-fra-d1/revoke"
	call.want(404, "POST", home.URL+path, "")
	if len(home.Revocations)+len(far.Revocations) != 0 {
		t.Error("announced, and refused")
	}
	call.want(200, "POST", far.URL+path, "")
	if _, ok := held(home, registry.KindNode, "nod_eu-fra/data/eu-fra-d1"); !ok {
		t.Error("not committed")
	}
	call.want(200, "POST", home.URL+path, "")
}
