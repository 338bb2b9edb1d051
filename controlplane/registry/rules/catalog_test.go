package rules_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	kit "ringmain/internal/testkit/recordkit"
)

// TestCatalogRules: what upstreams, routes, projects and regions may say beside
// what they always had to.
func TestCatalogRules(t *testing.T) {
	ups := func(change func(*registry.Upstream)) []registry.Change {
		return []registry.Change{kit.Put(with(kit.Upstream("ups_0000000009", "new", "us-east"), func(r *registry.Record) { change(r.Upstream) }))}
	}
	rte := func(id, model string, change func(*registry.Route)) registry.Change {
		return kit.Put(with(kit.Route(id, model, "openai-us"), func(r *registry.Record) { change(r.Route) }))
	}
	header := func(name, value string) []registry.Change {
		return ups(func(u *registry.Upstream) { u.Headers = []registry.Header{{Name: name, Value: value}} })
	}
	query := func(q string) []registry.Change { return ups(func(u *registry.Upstream) { u.Query = q }) }
	falls := func(models ...string) func(*registry.Route) { return func(r *registry.Route) { r.Fallbacks = models } }
	longer := func(model string) func(*registry.Route) { return func(r *registry.Route) { r.ContextFallback = model } }
	plain := func(*registry.Route) {}
	two := rte("rte_0000000002", "two", plain)
	three := rte("rte_0000000003", "three", falls("two"))
	for name, c := range map[string]struct {
		changes []registry.Change
		code    controlplane.RuleCode
		field   string
		says    string // part of the message: the caller's next move
	}{
		"everything at once": {ups(func(u *registry.Upstream) {
			u.Endpoints, u.Headers = []string{"/v1/embeddings", "/v1/responses"}, []registry.Header{{Name: "OpenAI-Organization", Value: "org-1"}, {Name: "x-team", Value: "a b"}}
			u.Query, u.Concurrency, u.Dedicated = "api-version=2024-10-21&x", 7, kit.OrgAny
		}), ok, "", ""},
		"endpoint unknown":      {ups(func(u *registry.Upstream) { u.Endpoints = []string{"/v1/files"} }), bad, "endpoints[0]", "/v1/chat/completions"},
		"endpoint of the other": {ups(func(u *registry.Upstream) { u.Endpoints = []string{"/v1/embeddings", "/v1/messages"} }), bad, "endpoints[1]", "leave the list empty"},
		"endpoint twice":        {ups(func(u *registry.Upstream) { u.Endpoints = []string{"/v1/embeddings", "/v1/embeddings"} }), bad, "endpoints[1]", "already"},
		"endpoint of anthropic": {ups(func(u *registry.Upstream) { u.Dialect, u.Endpoints = "anthropic", []string{"/v1/messages"} }), ok, "", ""},
		"header credential":     {header("Authorization", "x"), bad, "headers[0].name", "field credential"},
		"header key":            {header("x-API-key", "x"), bad, "headers[0].name", "field credential"},
		"header hop by hop":     {header("Transfer-Encoding", "chunked"), bad, "headers[0].name", ""},
		"header host":           {header("Host", "x"), bad, "headers[0].name", ""},
		"header content":        {header("Content-Type", "x"), bad, "headers[0].name", ""},
		"header of ours":        {header("idc-residency", "eu"), bad, "headers[0].name", ""},
		"header name":           {header("a b", "x"), bad, "headers[0].name", ""},
		"header without name":   {header("", "x"), bad, "headers[0].name", ""},
		"header smuggled":       {header("x-a", "x\r\nx-b: y"), bad, "headers[0].value", ""},
		"header padded":         {header("x-a", " x"), bad, "headers[0].value", ""},
		"header empty":          {header("x-a", ""), bad, "headers[0].value", "leave the header out"},
		"header long":           {header("x-a", strings.Repeat("x", 1024+1)), bad, "headers[0].value", ""},
		"header twice": {ups(func(u *registry.Upstream) {
			u.Headers = []registry.Header{{Name: "x-a", Value: "1"}, {Name: "X-A", Value: "2"}}
		}), bad, "headers[1].name", "twice"},
		"headers too many":          {ups(func(u *registry.Upstream) { u.Headers = make([]registry.Header, 16+1) }), bad, "headers", "at most 16"},
		"query with a mark":         {query("?a=b"), bad, "query", "without a question mark"},
		"query with a fragment":     {query("a=b#c"), bad, "query", ""},
		"query with a space":        {query("a=b c"), bad, "query", ""},
		"query with bad escapes":    {query("a=%zz"), bad, "query", "percent-encoded"},
		"query with a credential":   {query("api-version=1&Api-Key=x"), bad, "query", "field credential"},
		"query without a name":      {query("=x"), bad, "query", ""},
		"query with a line break":   {query("a=b\n"), bad, "query", ""},
		"dedicated, pinned org":     {ups(func(u *registry.Upstream) { u.Dedicated = kit.OrgEU }), ok, "", ""},
		"dedicated to a name":       {ups(func(u *registry.Upstream) { u.Dedicated = "Acme" }), bad, "dedicated", "ringmain org get"},
		"dedicated to a project":    {ups(func(u *registry.Upstream) { u.Dedicated = kit.PrjAny }), bad, "dedicated", ""},
		"dedicated to nobody":       {ups(func(u *registry.Upstream) { u.Dedicated = "org_any_0000000009" }), absent, "dedicated", "create it first"},
		"dedicated to nobody there": {ups(func(u *registry.Upstream) { u.Dedicated = "org_eu_0000000009" }), absent, "dedicated", ""},
		"dedicated nowhere":         {ups(func(u *registry.Upstream) { u.Dedicated = "org_apac_0000000009" }), absent, "dedicated", ""},

		"falls back":               {[]registry.Change{two, three}, ok, "", ""},
		"falls back for length":    {[]registry.Change{two, rte("rte_0000000003", "three", longer("two"))}, ok, "", ""},
		"falls back on itself":     {[]registry.Change{rte("rte_0000000009", "new", falls("gpt-x", "new"))}, bad, "fallbacks[1]", "name another"},
		"is longer than itself":    {[]registry.Change{rte("rte_0000000009", "new", longer("new"))}, bad, "context_fallback", "name another"},
		"falls back on nothing":    {[]registry.Change{rte("rte_0000000009", "new", falls("nothing"))}, absent, "fallbacks[0]", "create that route first"},
		"longer by nothing":        {[]registry.Change{rte("rte_0000000009", "new", longer("nothing"))}, absent, "context_fallback", "create that route first"},
		"falls back twice":         {[]registry.Change{rte("rte_0000000009", "new", falls("gpt-x", "gpt-x"))}, bad, "fallbacks[1]", "already"},
		"falls back too often":     {[]registry.Change{rte("rte_0000000009", "new", falls("a", "b", "c", "d", "e"))}, bad, "fallbacks", "at most 4"},
		"circle of two":            {[]registry.Change{two, three, rte("rte_0000000002", "two", falls("three"))}, bad, "changes[2].fallbacks[0]", "circle"},
		"circle through length":    {[]registry.Change{two, three, rte("rte_0000000002", "two", longer("three"))}, bad, "changes[2].context_fallback", "circle"},
		"circle of three":          {[]registry.Change{two, three, rte("rte_0000000004", "four", longer("three")), rte("rte_0000000002", "two", falls("four"))}, bad, "changes[3].fallbacks[0]", "circle"},
		"circle undone":            {[]registry.Change{two, three, rte("rte_0000000003", "three", plain), rte("rte_0000000002", "two", falls("three"))}, ok, "", ""},
		"fallback deleted":         {[]registry.Change{two, three, kit.Delete(registry.KindRoute, "rte_0000000002")}, conflict, "changes[2].id", "delete that first"},
		"fallback renamed":         {[]registry.Change{two, three, rte("rte_0000000002", "second", plain)}, conflict, "changes[2].model", "change that route first"},
		"all of a chain deleted":   {[]registry.Change{two, three, kit.Delete(registry.KindRoute, "rte_0000000003"), kit.Delete(registry.KindRoute, "rte_0000000002")}, ok, "", ""},
		"brownout":                 {[]registry.Change{kit.Put(with(kit.Region("eu-fra", "eu"), func(r *registry.Record) { r.Region.Brownout = 4 }))}, ok, "", ""},
		"brownout beyond the last": {[]registry.Change{kit.Put(with(kit.Region("eu-fra", "eu"), func(r *registry.Record) { r.Region.Brownout = 5 }))}, bad, "brownout", "to 4"},
	} {
		t.Run(name, func(t *testing.T) {
			rule := kit.RuleError(t, world(t).Check(controlplane.ShardGlobal, c.changes))
			switch {
			case rule == nil && c.code == ok:
			case rule == nil || rule.Code != c.code || rule.Field != c.field || !strings.Contains(rule.Message, c.says):
				t.Errorf("%v, but %q for %q expected, saying %q", describe(rule), c.code, c.field, c.says)
			}
		})
	}
}

func TestProjectClass(t *testing.T) {
	for class, code := range map[string]controlplane.RuleCode{"": ok, "interactive": ok, "batch": ok, "urgent": bad} {
		err := world(t).Check(kit.AnyEast, []registry.Change{kit.Put(with(kit.Project(kit.PrjAny, kit.AnyEast, kit.OrgAny, "web"), func(r *registry.Record) { r.Project.Class = class }))})
		if rule := kit.RuleError(t, err); rule == nil && code != ok || rule != nil && (rule.Code != code || rule.Field != "class") {
			t.Errorf("%q: %v", class, describe(rule))
		}
	}
}

// TestOrgWithUpstreams: an org stays as long as an upstream belongs to it.
func TestOrgWithUpstreams(t *testing.T) {
	s := world(t)
	own := with(kit.Upstream("ups_0000000009", "own", "us-east"), func(r *registry.Record) { r.Upstream.Dedicated = kit.OrgNew })
	mustPropose(t, s, controlplane.ShardGlobal, kit.Put(own))
	gone := []registry.Change{kit.Delete(registry.KindProject, kit.PrjNew), kit.Delete(registry.KindOrg, kit.OrgNew)}
	if rule := kit.RuleError(t, s.Check(kit.AnyEast, gone)); rule == nil || rule.Code != conflict || !strings.Contains(rule.Message, "upstream own") {
		t.Errorf("%v", describe(rule))
	}
	mustPropose(t, s, controlplane.ShardGlobal, kit.Delete(registry.KindUpstream, "ups_0000000009"))
	mustPropose(t, s, kit.AnyEast, gone...)
}

// TestFallbacksNeverFormACircle: whatever is written in whatever order, no
// route that was accepted leads back to itself; what would is refused.
func TestFallbacksNeverFormACircle(t *testing.T) {
	models := []string{"a", "b", "c", "d", "e"}
	id := func(i int) string { return "rte_000000001" + string(rune('0'+i)) }
	rapid.Check(t, func(rt *rapid.T) {
		s := world(t)
		for i, m := range models {
			mustPropose(t, s, controlplane.ShardGlobal, kit.Put(kit.Route(id(i), m, "openai-us")))
		}
		edges := map[string][]string{}
		reaches := func(from, to string) bool { // by brute force
			paths := []string{from}
			for range models {
				var next []string
				for _, p := range paths {
					next = append(next, edges[p]...)
				}
				for _, p := range next {
					if p == to {
						return true
					}
				}
				paths = next
			}
			return false
		}
		for range rapid.IntRange(1, 12).Draw(rt, "writes") {
			i := rapid.IntRange(0, len(models)-1).Draw(rt, "route")
			r := kit.Route(id(i), models[i], "openai-us")
			r.Route.Fallbacks = rapid.SliceOfNDistinct(rapid.SampledFrom(models), 0, 3, func(m string) string { return m }).Draw(rt, "fallbacks")
			if rapid.Bool().Draw(rt, "with longer") {
				r.Route.ContextFallback = rapid.SampledFrom(models).Draw(rt, "longer")
			}
			wanted := slices.Clone(r.Route.Fallbacks)
			if r.Route.ContextFallback != "" {
				wanted = append(wanted, r.Route.ContextFallback)
			}
			before := edges[models[i]]
			edges[models[i]] = wanted
			circle := reaches(models[i], models[i])
			rule := kit.RuleError(t, s.Check(controlplane.ShardGlobal, []registry.Change{kit.Put(r)}))
			if (rule != nil) != circle {
				rt.Fatalf("%s falls back on %v: %v, circle %t", models[i], wanted, describe(rule), circle)
			}
			if circle {
				edges[models[i]] = before
				continue
			}
			mustPropose(t, s, controlplane.ShardGlobal, kit.Put(r))
		}
	})
}
