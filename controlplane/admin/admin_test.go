package admin_test

import (
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/controlkit"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

func TestResourcesFromCreationToDeletion(t *testing.T) {
	c, base, _, _ := one(t)
	org := c.want(201, "POST", base+"/orgs", `{"name":"Acme"}`)
	for field, want := range map[string]any{
		"plan": "trial", "state": "unverified", "jurisdiction": "any", "shard": "any-us-east", "acknowledged": "region",
	} {
		if org.json[field] != want {
			t.Errorf("new org: %s is %v, want %v", field, org.json[field], want)
		}
	}
	if loc := org.header.Get("Location"); loc != "/admin/v1/orgs/"+org.str("id") {
		t.Errorf("location %q", loc)
	}
	if pos, vis := org.header.Get(api.HeaderPosition), org.header.Get(api.HeaderVisible); !strings.HasPrefix(pos, "any-us-east=1/us-east.") || vis != "here" {
		t.Errorf("position %q, visible %q", pos, vis)
	}
	orgURL := base + "/orgs/" + org.str("id")
	if r := c.want(200, "GET", orgURL, ""); r.json["acknowledged"] != nil || r.header.Get("Etag") != org.header.Get("Etag") {
		t.Errorf("read: %s %v", r.text, r.header)
	}
	c.want(200, "PUT", orgURL, `{"name":"Acme","plan":"build","state":"verified"}`)
	project := c.want(201, "POST", orgURL+"/projects", `{"name":"web"}`)
	projectURL := base + "/projects/" + project.str("id")
	c.want(409, "POST", orgURL+"/projects", `{"name":"web"}`)
	c.want(200, "PUT", projectURL, `{"name":"site","cross_provider":true}`)
	key := c.want(201, "POST", projectURL+"/keys", `{"name":"ci"}`)
	c.want(200, "PUT", base+"/keys/"+key.str("id"), `{"name":"laptop"}`)

	ups := c.want(201, "POST", base+"/upstreams", upstream("openai-us", "us-east", `"auth":"bearer","credential":"sk-secret-1",`))
	c.want(200, "PUT", base+"/upstreams/openai-us", upstream("openai-us", "us-east", `"auth":"bearer","disabled":true,`))
	if r := c.want(200, "GET", base+"/upstreams/openai-us", ""); r.json["disabled"] != true || r.json["credential_set"] != true ||
		r.str("credential_fingerprint") != api.CredentialPrint(ups.str("id"), "sk-secret-1") || strings.Contains(r.text, "sk-secret") {
		t.Errorf("upstream: %s", r.text)
	}
	route := c.want(201, "POST", base+"/routes", `{"model":"meta/llama","targets":[{"upstream":"openai-us","model":"llama"}]}`)
	c.want(200, "PUT", base+"/routes/meta%2Fllama", `{"model":"meta/llama","targets":[{"upstream":"openai-us","model":"llama-2","weight":3}],"timeouts":{"connect_ms":500}}`)
	policy := c.want(201, "POST", orgURL+"/policies", `{"project":"`+project.str("id")+`","models":["meta/llama"]}`)
	c.want(200, "PUT", base+"/policies/"+policy.str("id"), `{"no_retention":true}`)
	if r := c.want(200, "GET", base+"/policies/"+policy.str("id"), ""); r.str("project") != project.str("id") || r.json["no_retention"] != true || r.json["models"] != nil {
		t.Errorf("policy: %s", r.text)
	}
	c.want(200, "PUT", base+"/regions/ap-sg", `{"jurisdiction":"apac","endpoint":"https://ap.example.com"}`)
	c.want(200, "PUT", base+"/regions/ap-sg", `{"jurisdiction":"apac","endpoint":"https://ap.example.com","state":"drained"}`)
	c.want(422, "PUT", base+"/regions/ap-sg", `{"jurisdiction":"us","endpoint":"https://ap.example.com"}`)

	for _, path := range []string{"/orgs", "/orgs/" + org.str("id") + "/projects", "/projects/" + project.str("id") + "/keys",
		"/upstreams", "/routes", "/orgs/" + org.str("id") + "/policies"} {
		if n := len(c.want(200, "GET", base+path, "").items()); n != 1 {
			t.Errorf("%s lists %d", path, n)
		}
	}
	if n := len(c.want(200, "GET", base+"/regions", "").items()); n != 2 {
		t.Errorf("%d regions", n)
	}
	c.want(409, "DELETE", orgURL, "")
	c.want(409, "DELETE", base+"/keys/"+key.str("id"), "")
	c.want(409, "DELETE", base+"/upstreams/openai-us", "")
	c.want(200, "POST", base+"/keys/"+key.str("id")+"/revoke", "")
	for _, path := range []string{"/keys/" + key.str("id"), "/policies/" + policy.str("id"), "/projects/" + project.str("id"), "/orgs/" + org.str("id"),
		"/routes/" + route.str("id"), "/upstreams/" + ups.str("id")} {
		if r := c.want(200, "DELETE", base+path, ""); r.str("acknowledged") != "region" || r.header.Get(api.HeaderPosition) == "" {
			t.Errorf("delete %s: %s", path, r.text)
		}
		c.want(404, "GET", base+path, "")
		c.want(404, "DELETE", base+path, "")
	}
}

func TestKeyIsHashedAtFullCost(t *testing.T) {
	c, base, cluster, _ := one(t, func(cfg *admin.Config) { cfg.Hash = nil })
	_, project := c.account(base, "any")
	made := c.want(201, "POST", base+"/projects/"+project+"/keys", `{"name":"ci"}`)
	hash := record(cluster.Regions[0].Nodes[0], registry.KindKey, made.str("id")).Key.Hash
	if cost, err := bcrypt.Cost(hash); err != nil || cost != apikey.Cost {
		t.Errorf("cost %d, %v; want %d", cost, err, apikey.Cost)
	}
}

func TestKeyIsShownOnceAndNeverLogged(t *testing.T) {
	c, base, cluster, logs := one(t)
	node := cluster.Regions[0].Nodes[0]
	_, project := c.account(base, "any")
	made := c.want(201, "POST", base+"/projects/"+project+"/keys", `{"name":"ci"}`)
	whole := made.str("key")
	parsed, err := apikey.Parse(whole)
	if err != nil || parsed.RecordID() != made.str("id") || parsed.Class != "live" || made.str("hint") != parsed.Hint() {
		t.Fatalf("key %s: %+v, %v", made.text, parsed, err)
	}
	checkVerdict := func(whole string) {
		t.Helper()
		rec := record(node, registry.KindKey, made.str("id"))
		if err := apikey.Match(rec.Key.Hash, whole); err != nil {
			t.Errorf("stored hash: %v", err)
		}
		v := node.Verdicts[len(node.Verdicts)-1]
		current, _ := apikey.VerdictKeys([]byte("0123456789abcdef0123456789abcdef"), time.Now())
		if v.Key != rec.Meta.ID || v.Revision != rec.Meta.Revision || v.MAC != apikey.Verdict(current, whole) {
			t.Errorf("verdict %+v for revision %d", v, rec.Meta.Revision)
		}
	}
	checkVerdict(whole)

	keyURL := base + "/keys/" + made.str("id")
	rotated := c.want(200, "POST", keyURL+"/rotate", `{"grace_seconds":60}`)
	next := rotated.str("key")
	if next == whole || rotated.str("id") != made.str("id") || rotated.str("previous_secret_until") == "" {
		t.Errorf("rotated: %s", rotated.text)
	}
	checkVerdict(next)
	if err := apikey.Match(record(node, registry.KindKey, made.str("id")).Key.PrevHash, whole); err != nil {
		t.Errorf("the secret before must go on working: %v", err)
	}
	third := c.want(200, "POST", keyURL+"/rotate", `{"grace_seconds":0}`)
	if rec := record(node, registry.KindKey, made.str("id")); rec.Key.PrevHash != nil || third.str("previous_secret_until") != "" {
		t.Error("without grace the old secret must end at once")
	}
	if r := c.want(200, "POST", keyURL+"/rotate", ""); r.str("key") == "" || r.str("previous_secret_until") == "" {
		t.Errorf("rotate without a body: %s", r.text)
	}

	// Told to data nodes before the commit, which never happens here.
	cluster.Broken = func(string, bool) error { return fmt.Errorf("cut off: %w", os.ErrClosed) }
	c.want(500, "POST", keyURL+"/revoke", "")
	if len(node.Revocations) != 1 || node.Revocations[0].ID != made.str("id") || node.Revocations[0].Shard != "any-us-east" {
		t.Errorf("pushed %+v", node.Revocations)
	}
	cluster.Broken = nil
	revoked := c.want(200, "POST", keyURL+"/revoke", "")
	if again := c.want(200, "POST", keyURL+"/revoke", ""); again.str("revoked") == "" || again.str("revoked") != revoked.str("revoked") {
		t.Errorf("revoke again: %s", again.text)
	}
	c.want(409, "POST", keyURL+"/rotate", "")

	text := logs.String()
	for _, r := range []reply{c.want(200, "GET", keyURL, ""), c.want(200, "GET", base+"/projects/"+project+"/keys", "")} {
		text += r.text
	}
	for _, secret := range []string{whole, next, third.str("key"), whole[len(whole)-38:], next[len(next)-38:], controlkit.Token, "$2a$"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is in a later answer or in the log", secret)
		}
	}
	for _, fact := range []string{"org_created", "project_created", "key_created", "key_rotated", "key_revocation_pushed", "key_revoked"} {
		if !strings.Contains(logs.String(), `"fact":"`+fact+`","actor":"tester"`) {
			t.Errorf("no audit fact %s", fact)
		}
	}
}

func record(n *controlkit.Node, kind registry.Kind, id string) *registry.Record {
	var rec *registry.Record
	n.View(func(s *ledger.State) { rec, _ = s.Get(kind, id) })
	return rec
}

// The table of bad input: what is sent, and status, code, field and a part of
// the text that come back.
func TestBadInput(t *testing.T) {
	c, base, _, logs := one(t)
	org, project := c.account(base, "any")
	unverified := c.want(201, "POST", base+"/orgs", `{"name":"New"}`).str("id")
	newProject := c.want(201, "POST", base+"/orgs/"+unverified+"/projects", `{"name":"web"}`).str("id")
	c.want(201, "POST", base+"/upstreams", upstream("one", "us-east", `"auth":"none",`))
	for _, tc := range []struct {
		method, path, body string
		header             string
		status             int
		code, field, says  string
	}{
		{"POST", "/orgs", ``, "", 400, "invalid_json", "", "body is required"},
		{"POST", "/orgs", `{"name":`, "", 400, "invalid_json", "", "unexpected end"},
		{"POST", "/orgs", `{"name":"a"} x`, "", 400, "invalid_json", "", "invalid character"},
		{"POST", "/orgs", `{"name":"a","name":"b"}`, "", 400, "invalid_json", "", `comes twice`},
		{"POST", "/orgs", `{"Name":"a"}`, "", 400, "invalid_json", "", "lower case"},
		{"POST", "/orgs", `{"name":"a","plam":"build"}`, "", 422, "invalid", "plam", "unexpected property"},
		{"POST", "/orgs", `{"plan":"build"}`, "", 422, "invalid", "", "name"},
		{"POST", "/orgs", `{"name":7}`, "", 422, "invalid", "name", "expected string"},
		{"POST", "/orgs", `[]`, "", 422, "invalid", "", "expected object"},
		{"POST", "/orgs", `{"name":"a","plan":"gold"}`, "", 422, "invalid", "plan", "enterprise"},
		{"POST", "/orgs", `{"name":"a","jurisdiction":"EU"}`, "", 422, "invalid", "jurisdiction", "lowercase"},
		{"POST", "/orgs", `{"name":"a","jurisdiction":"eu"}`, "", 422, "invalid", "jurisdiction", "No region"},
		{"POST", "/orgs", `{"name":"a","plan":"trial","jurisdiction":"us"}`, "", 403, "forbidden", "jurisdiction", "enterprise plan"},
		{"POST", "/orgs", `{"name":"a"}`, "Content-Type: text/plain", 415, "unsupported_media", "", "application/json"},
		{"POST", "/orgs", `{"name":"` + strings.Repeat("a", 1<<20) + `"}`, "", 413, "request_too_large", "", "1048576"},
		{"GET", "/orgs?limt=3", ``, "", 422, "invalid", "query.limt", "unknown"},
		{"GET", "/orgs?limit=0", ``, "", 422, "invalid", "query.limit", ">= 1"},
		{"GET", "/orgs?limit=501", ``, "", 422, "invalid", "query.limit", "<= 500"},
		{"GET", "/orgs?cursor=x", ``, "", 422, "invalid", "query.cursor", "next_cursor"},
		{"GET", "/orgs/org_any_0000000000", ``, "", 404, "not_found", "", "does not exist"},
		{"GET", "/orgs/nonsense", ``, "", 404, "not_found", "", "does not exist"},
		{"GET", "/nothing", ``, "", 404, "not_found", "", "/openapi.json"},
		{"PATCH", "/orgs", ``, "", 405, "method_not_allowed", "", "GET, HEAD, POST"},
		{"PUT", "/orgs/" + org, `{"name":"a"}`, "If-Match: 7", 400, "invalid_header", "If-Match", "ETag"},
		{"PUT", "/orgs/" + org, `{"name":"a","jurisdiction":"us"}`, "", 422, "invalid", "jurisdiction", "never changes"},
		{"POST", "/orgs/" + org + "/policies", `{"residency":"eu"}`, "", 422, "invalid", "residency", "no region"},
		{"POST", "/projects/" + newProject + "/keys", `{"name":"k"}`, "", 403, "forbidden", "class", "test key"},
		{"POST", "/projects/" + project + "/keys", `{"name":"k","class":"prod"}`, "", 422, "invalid", "class", "live or test"},
		{"POST", "/projects/" + project + "/keys", `{"name":"k","expires":"2001-01-01T00:00:00Z"}`, "", 422, "invalid", "expires", "past"},
		{"POST", "/projects/" + project + "/keys", `{"name":"k","expires":"tomorrow"}`, "", 422, "invalid", "expires", "date-time"},
		{"POST", "/keys/key_any_0000000000000000/rotate", `{"grace_seconds":-1}`, "", 422, "invalid", "grace_seconds", ">= 0"},
		{"POST", "/upstreams", upstream("two", "mars", `"auth":"none",`), "", 404, "not_found", "region", "mars"},
		{"POST", "/upstreams", upstream("two", "us-east", `"auth":"none","credential":{"sk-leak":1},`), "", 422, "invalid", "credential", "expected string"},
		{"POST", "/upstreams", strings.Replace(upstream("two", "us-east", `"auth":"none",`), `"never"`, `"weekly"`, 1), "", 422, "invalid", "terms.training", "never train"},
		{"POST", "/upstreams", strings.Replace(upstream("two", "us-east", `"auth":"none",`), `"zero"`, `"zero","zz":1`, 1), "", 422, "invalid", "terms.zz", "unexpected"},
		{"POST", "/routes", `{"model":"m","targets":[{"upstream":"one","model":"m"},{"upstream":"gone","model":"m"}]}`, "", 404, "not_found", "targets[1].upstream", "gone"},
		{"POST", "/routes", `{"model":"m","targets":null}`, "", 422, "invalid", "targets", "expected array"},
	} {
		var headers []string
		if tc.header != "" {
			headers = append(headers, tc.header)
		}
		r := c.do(tc.method, base+tc.path, tc.body, headers...)
		if r.status != tc.status || r.str("code") != tc.code || r.str("field") != tc.field || !strings.Contains(r.text, tc.says) {
			t.Errorf("%s %s %.80s\n got %d %s\nwant %d %s, field %q, saying %q", tc.method, tc.path, tc.body, r.status, r.text, tc.status, tc.code, tc.field, tc.says)
		}
		if strings.Contains(r.text, "sk-leak") {
			t.Errorf("a rejected value came back: %s", r.text)
		}
	}
	if strings.Contains(logs.String(), "sk-leak") {
		t.Error("a rejected value was logged")
	}
}

func TestIfMatch(t *testing.T) {
	c, base, _, _ := one(t)
	org := c.want(201, "POST", base+"/orgs", `{"name":"Acme"}`)
	url := base + "/orgs/" + org.str("id")
	old := "If-Match: " + org.header.Get("Etag")
	next := c.want(200, "PUT", url, `{"name":"Acme Ltd"}`, old)
	r := c.want(412, "PUT", url, `{"name":"Late"}`, old)
	if r.str("code") != "revision" || !strings.Contains(r.str("detail"), next.header.Get("Etag")) {
		t.Errorf("stale: %s", r.text)
	}
	c.want(412, "DELETE", url, "", old)
	c.want(200, "PUT", url, `{"name":"Anyone"}`)
	last := c.want(200, "PUT", url, `{"name":"Anyone again"}`, "If-Match: *")
	if same := c.want(200, "PUT", url, `{"name":"Anyone again"}`); same.header.Get("Etag") != last.header.Get("Etag") {
		t.Errorf("a change of nothing made revision %s of %s", same.header.Get("Etag"), last.header.Get("Etag"))
	}
	c.want(404, "PUT", base+"/regions/new", `{"jurisdiction":"us","endpoint":"https://x.example.com"}`, `If-Match: "3"`)
	c.want(200, "DELETE", url, "", "If-Match: "+last.header.Get("Etag"))
}

func TestUnconditionalUpdatesAllGetThrough(t *testing.T) {
	c, base, cluster, _ := one(t)
	org := c.want(201, "POST", base+"/orgs", `{"name":"Acme"}`)
	url := base + "/orgs/" + org.str("id")
	raced := false
	cluster.Broken = func(_ string, after bool) error {
		if !raced && !after { // another update slips in between read and write
			raced = true
			c.want(200, "PUT", url, `{"name":"Faster"}`)
		}
		return nil
	}
	if r := c.want(200, "PUT", url, `{"name":"Slower"}`); r.str("name") != "Slower" || !raced {
		t.Errorf("%s, raced %v", r.text, raced)
	}
	raced = false
	etag := c.want(200, "GET", url, "").header.Get("Etag")
	c.want(412, "PUT", url, `{"name":"Conditional"}`, "If-Match: "+etag)
}

func TestPagination(t *testing.T) {
	c, base, _, _ := one(t)
	org, _ := c.account(base, "any")
	var want []string
	for i := range 7 {
		want = append(want, c.want(201, "POST", base+"/orgs/"+org+"/projects", fmt.Sprintf(`{"name":"p%d"}`, i)).str("id"))
	}
	var got []string
	pages := 0
	for cursor := ""; pages == 0 || cursor != ""; pages++ {
		r := c.want(200, "GET", base+"/orgs/"+org+"/projects?limit=3&cursor="+cursor, "")
		for _, i := range r.items() {
			if i["name"] != "web" {
				got = append(got, i["id"].(string))
			}
		}
		cursor = r.str("next_cursor")
	}
	slices.Sort(want)
	if !slices.Equal(got, want) || pages != 3 {
		t.Errorf("%d pages: %v, want %v", pages, got, want)
	}
}

func TestTokens(t *testing.T) {
	now := time.Now()
	c, base, _, logs := one(t, func(cfg *admin.Config) {
		cfg.Now = func() time.Time { return now }
		cfg.Tokens = append(cfg.Tokens,
			admin.Token{Name: "ended", SHA256: sha256.Sum256([]byte("ended-token")), Expires: now},
			admin.Token{Name: "endless", SHA256: sha256.Sum256([]byte("endless-token"))})
	})
	for name, header := range map[string]string{
		"none": "Authorization: ", "wrong": "Authorization: Bearer nope", "basic": "Authorization: Basic " + controlkit.Token,
		"empty": "Authorization: Bearer ", "ended": "Authorization: Bearer ended-token", "no end date": "Authorization: Bearer endless-token",
	} {
		r := c.want(401, "GET", base+"/orgs", "", header)
		if r.header.Get("WWW-Authenticate") != `Bearer realm="ringmain-admin"` || r.str("code") != "unauthorized" {
			t.Errorf("%s: %s %v", name, r.text, r.header)
		}
	}
	c.want(200, "GET", base+"/orgs", "", "Authorization: bearer "+controlkit.Token)
	c.want(401, "GET", base+"/nothing", "", "Authorization: ")
	if s := logs.String(); strings.Count(s, "access_refused") != 7 || !strings.Contains(s, `"actor":"ended"`) || strings.Contains(s, "ended-token") {
		t.Errorf("audit: %s", s)
	}
}

func TestNoPathLeadsAroundAuthentication(t *testing.T) {
	c, base, _, _ := one(t)
	c.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	root := strings.TrimSuffix(base, "/admin/v1")
	for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS"} {
		for _, path := range []string{"//admin/v1/orgs", "/%61dmin/v1/orgs", "/x/../admin/v1/orgs", "/admin/v1/../v1/orgs", "/admin%2Fv1/orgs", "/admin/v1//orgs", "/livez/../admin/v1/orgs"} {
			if r := c.do(method, root+path, "", "Authorization: "); r.status < 300 {
				t.Errorf("%s %s without a token: %d %s", method, path, r.status, r.text)
			}
		}
	}
}

func TestRequestIDs(t *testing.T) {
	c, base, _, _ := one(t)
	if r := c.want(200, "GET", base+"/orgs", "", "Ringmain-Request-Id: mine-12345"); r.header.Get(api.HeaderRequestID) != "mine-12345" {
		t.Errorf("own id: %v", r.header)
	}
	if r := c.want(200, "GET", base+"/orgs", "", "Ringmain-Request-Id: {bad}"); !strings.HasPrefix(r.header.Get(api.HeaderRequestID), "req_") {
		t.Errorf("bad id: %v", r.header)
	}
	if r := c.want(200, "GET", base+"/status", ""); r.header.Get(api.HeaderAnswered) != "us-east/us-east-c1" || r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers: %v", r.header)
	}
}

func TestStatusAndNodes(t *testing.T) {
	heard := time.Unix(1_790_000_000, 0)
	c, base, cluster, _ := one(t, func(cfg *admin.Config) {
		cfg.Version = "v9"
		cfg.Nodes = func() []api.Node {
			return []api.Node{{Region: "us-east", Name: "b", Role: "data", Alive: true}, {Region: "us-east", Name: "a", Role: "data"}}
		}
		cfg.Published = func() map[string]bool { return map[string]bool{"us-east": false} }
		cfg.Lags = func() map[controlplane.Shard]admin.Lag {
			return map[controlplane.Shard]admin.Lag{"global": {Behind: 3, Heard: heard}}
		}
	})
	r := c.want(200, "GET", base+"/status", "")
	if r.str("leader") != "us-east-c1" || r.json["leads"] != true || r.str("version") != "v9" || strings.Contains(r.text, "behind") || !strings.Contains(r.text, `"shard":"us"`) {
		t.Errorf("status: %s", r.text)
	}
	if items := c.want(200, "GET", base+"/nodes", "").items(); len(items) != 2 || items[0]["name"] != "a" {
		t.Errorf("nodes: %v", items)
	}
	if r := c.want(200, "GET", base+"/regions/us-east", ""); r.str("published") != "down" {
		t.Errorf("region: %s", r.text)
	}
	root := strings.TrimSuffix(base, "/admin/v1")
	c.want(200, "GET", root+"/readyz", "", "Authorization: ")
	cluster.Regions[0].Lead(nil)
	c.want(503, "GET", root+"/readyz", "", "Authorization: ")
	c.want(200, "GET", root+"/livez", "", "Authorization: ")
	c.want(200, "GET", base+"/orgs", "") // reads need no leader
}

// The list of operations is a promise to those who generate clients.
func TestOpenAPI(t *testing.T) {
	c, base, _, _ := one(t)
	r := c.want(200, "GET", strings.TrimSuffix(base, "/admin/v1")+"/openapi.json", "", "Authorization: ")
	var spec struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			OperationID string
			Responses   map[string]struct {
				Content map[string]struct {
					Schema struct {
						Ref string `json:"$ref"`
					}
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(r.text), &spec); err != nil || !strings.HasPrefix(spec.OpenAPI, "3.1") {
		t.Fatalf("openapi %q, %v", spec.OpenAPI, err)
	}
	var lines []string
	for path, methods := range spec.Paths {
		for method, op := range methods {
			lines = append(lines, fmt.Sprintf("%-16s %-6s %s", op.OperationID, strings.ToUpper(method), path))
			if ref := op.Responses["default"].Content["application/problem+json"].Schema.Ref; ref != "#/components/schemas/Problem" {
				t.Errorf("%s: problems are described as %q", op.OperationID, ref)
			}
		}
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	golden := filepath.Join("testdata", "operations.txt")
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || got != string(want) {
		t.Errorf("operations changed (go test -rewrite if that is meant): %v\n%s", err, got)
	}
	if strings.Contains(r.text, "ErrorModel") {
		t.Error("huma's own error type is described, and never sent")
	}
}
