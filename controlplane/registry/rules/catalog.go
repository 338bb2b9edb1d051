package rules

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// Limits of what an upstream or route may say.
const (
	maxHeaders   = 16 // extra headers of an upstream
	maxFallbacks = 4  // fallback models of a route
	maxBrownout  = 4  // degrees of load shedding that can be forced
)

// maxExtra bounds an extra header's value, and an extra query, in bytes.
const maxExtra = 1024

func (k *Checker) upstream(r, old *registry.Record) *controlplane.RuleError {
	u := r.Upstream
	if err := firstOf(
		checkLabel("name", u.Name),
		checkLabel("provider", u.Provider),
		oneOf("dialect", u.Dialect, "openai", "anthropic"),
		checkURL("base_url", u.BaseURL, true),
		oneOf("auth", u.Auth, "bearer", "x-api-key", "api-key", "none"),
		checkCredential(u),
		k.credential(u, old),
		checkTerms(&u.Terms),
		checkEndpoints(u),
		checkHeaders(u.Headers),
		checkQuery(u.Query),
		k.dedicated(u.Dedicated),
	); err != nil {
		return err
	}
	if _, ok := k.region(u.Region); !ok {
		return missing("region", u.Region)
	}
	if old != nil && old.Upstream.Name != u.Name {
		if model := k.routeTo(old.Upstream.Name); model != "" {
			return controlplane.Refuse(controlplane.RuleConflict, "name",
				"route %s refers to %q: change the route first", model, old.Upstream.Name)
		}
	}
	return k.unique(r, "name")
}

// credential refuses to bring in a credential that is revoked. A record that
// has it may keep it: it can be renamed, disabled or given another.
func (k *Checker) credential(u *registry.Upstream, old *registry.Record) *controlplane.RuleError {
	if len(u.Credential) == 0 || old != nil && bytes.Equal(old.Upstream.Credential, u.Credential) {
		return nil
	}
	if _, revoked := k.Shard.Revocation(registry.KindCredential, registry.CredentialID(u.Credential)); revoked {
		return controlplane.Refuse(controlplane.RuleConflict, "credential", "is revoked, for good: have the provider issue another")
	}
	return nil
}

func checkCredential(u *registry.Upstream) *controlplane.RuleError {
	if (u.Auth == "none") != (len(u.Credential) == 0) {
		return invalid("credential", "must be given for every auth but none")
	}
	if len(u.Credential) > 8192 {
		return invalid("credential", "is longer than 8 KiB")
	}
	for _, c := range u.Credential {
		if c <= ' ' || c > '~' {
			return invalid("credential", "must be visible ASCII: it travels in a header")
		}
	}
	return nil
}

func checkTerms(t *registry.Terms) *controlplane.RuleError {
	if t.Retention != "zero" {
		days, ok := strings.CutSuffix(t.Retention, "d")
		n, err := strconv.Atoi(days)
		if !ok || err != nil || n < 1 || n > 36500 || strconv.Itoa(n) != days {
			return invalid("terms.retention", "%q must be zero, or a number of days such as 30d", t.Retention)
		}
	}
	if err := oneOf("terms.prompt_cache", t.PromptCache, "none", "memory", "disk"); err != nil {
		return err
	}
	if t.Training != "never" {
		return invalid("terms.training", "%q is refused: only upstreams that never train on what they see may be used", t.Training)
	}
	if _, err := hex.DecodeString(t.Contract); err != nil || len(t.Contract) != 64 {
		return invalid("terms.contract", "must be the SHA-256 of the contract, 64 hexadecimal digits")
	}
	if _, err := time.Parse(time.DateOnly, t.Dated); err != nil {
		return invalid("terms.dated", "%q must be a date, YYYY-MM-DD", t.Dated)
	}
	return nil
}

func (k *Checker) route(r, old *registry.Record) *controlplane.RuleError {
	if err := checkModel("model", r.Route.Model); err != nil {
		return err
	}
	if n := len(r.Route.Targets); n == 0 || n > maxTargets {
		return invalid("targets", "must be 1 to %d upstreams, not %d", maxTargets, n)
	}
	type target struct{ upstream, model string }
	seen := make(map[target]bool, len(r.Route.Targets))
	for i, t := range r.Route.Targets {
		at := fmt.Sprintf("targets[%d].", i)
		if err := checkModel(at+"model", t.Model); err != nil {
			return err
		}
		if _, ok := k.Shard.ByName(registry.KindUpstream, "", t.Upstream); !ok {
			return missing(at+"upstream", t.Upstream)
		}
		if seen[target{t.Upstream, t.Model}] {
			return invalid(at+"upstream", "%q serves %q in an earlier target already", t.Upstream, t.Model)
		}
		seen[target{t.Upstream, t.Model}] = true
	}
	if old != nil && old.Route.Model != r.Route.Model {
		if by := k.fallingBackOn(old.Route.Model); by != "" {
			return controlplane.Refuse(controlplane.RuleConflict, "model",
				"route %s falls back on %q: change that route first", by, old.Route.Model)
		}
	}
	if err := k.unique(r, "model"); err != nil {
		return err
	}
	return k.fallbacks(r.Route)
}

func checkEndpoints(u *registry.Upstream) *controlplane.RuleError {
	known := registry.EndpointsOf(u.Dialect)
	for i, path := range u.Endpoints {
		field := fmt.Sprintf("endpoints[%d]", i)
		switch {
		case !slices.Contains(known, path):
			return invalid(field, "%q is no endpoint of the %s dialect: use some of %s, or leave the list empty for all",
				path, u.Dialect, strings.Join(known, ", "))
		case slices.Contains(u.Endpoints[:i], path):
			return invalid(field, "%q is listed already", path)
		}
	}
	return nil
}

// own are header names that the gateway sets or keeps from upstreams itself.
var own = []string{
	"authorization", "proxy-authorization", "proxy-authenticate", "x-api-key", "api-key", "x-goog-api-key", "cookie", "set-cookie",
	"host", "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect",
	"accept-encoding", "http2-settings",
}

func checkHeaders(headers []registry.Header) *controlplane.RuleError {
	if len(headers) > maxHeaders {
		return invalid("headers", "are %d: give at most %d", len(headers), maxHeaders)
	}
	seen := make(map[string]bool, len(headers))
	for i, h := range headers {
		field := fmt.Sprintf("headers[%d].", i)
		name := strings.ToLower(h.Name)
		if err := firstOf(checkToken(field+"name", name), checkVisible(field+"value", h.Value)); err != nil {
			return err
		}
		switch {
		case slices.Contains(own, name) || strings.HasPrefix(name, "content-") || strings.HasPrefix(name, "idc-") || strings.HasPrefix(name, "ringmain-"):
			return invalid(field+"name", "%q is set by the gateway itself; a credential belongs in the field credential", h.Name)
		case seen[name]:
			return invalid(field+"name", "%q is given twice", h.Name)
		case h.Value == "":
			return invalid(field+"value", "must not be empty: leave the header out")
		}
		seen[name] = true
	}
	return nil
}

// checkToken accepts what may name a header (RFC 9110, section 5.6.2).
func checkToken(field, name string) *controlplane.RuleError {
	if name == "" || len(name) > 64 {
		return invalid(field, "must be 1 to 64 characters long")
	}
	for _, c := range []byte(name) {
		if !isAlphanumeric(c) && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return invalid(field, "%q may hold only letters, digits and !#$%%&'*+-.^_`|~", name)
		}
	}
	return nil
}

// checkVisible accepts visible ASCII, with single spaces inside.
func checkVisible(field, value string) *controlplane.RuleError {
	if len(value) > maxExtra || strings.TrimSpace(value) != value {
		return invalid(field, "must be at most %d characters long, without a space at either end", maxExtra)
	}
	for _, c := range []byte(value) {
		if c < ' ' || c > '~' {
			return invalid(field, "must be visible ASCII")
		}
	}
	return nil
}

// secretly are query parameters that hold credentials, which would be shown
// to whoever may read the upstream.
var secretly = []string{"key", "api-key", "api_key", "apikey", "access_token", "token", "sig", "signature", "code"}

func checkQuery(query string) *controlplane.RuleError {
	if err := checkVisible("query", query); err != nil || query == "" {
		return err
	}
	values, err := url.ParseQuery(query)
	if err != nil || strings.ContainsAny(query, "? #") {
		return invalid("query", "%q must be name=value pairs joined by &, percent-encoded, without a question mark", query)
	}
	for name := range values {
		if name == "" || slices.Contains(secretly, strings.ToLower(name)) {
			return invalid("query", "parameter %q may not be given here: a credential belongs in the field credential", name)
		}
	}
	return nil
}

// dedicated checks the org that an upstream belongs to. An org of a shard that
// this region does not hold cannot be looked up here: its id has to do.
func (k *Checker) dedicated(org string) *controlplane.RuleError {
	if org == "" {
		return nil
	}
	jurisdiction, ok := registry.ParseID(registry.KindOrg, org)
	if !ok {
		return invalid("dedicated", "%q is not the id of an org: give the id that `ringmain org get` shows, or leave it empty", org)
	}
	held := false
	for sh := range k.Held {
		if !registry.Holds(sh.Name(), registry.KindOrg, jurisdiction) {
			continue
		}
		if r, ok := sh.Get(org); ok && r.Kind == registry.KindOrg {
			return nil
		}
		held = true
	}
	if !held && (jurisdiction == controlplane.JurisdictionAny || k.jurisdictionKnown(jurisdiction)) {
		return nil
	}
	return controlplane.Refuse(controlplane.RuleNotFound, "dedicated", "org %q does not exist: create it first, or leave this empty", org)
}

// fallbacks checks what a route falls back on: routes that exist and do not
// lead back to it.
func (k *Checker) fallbacks(r *registry.Route) *controlplane.RuleError {
	if n := len(r.Fallbacks); n > maxFallbacks {
		return invalid("fallbacks", "are %d: give at most %d", n, maxFallbacks)
	}
	check := func(field, model string) *controlplane.RuleError {
		if model == r.Model {
			return invalid(field, "%q is the route's own model: name another", model)
		}
		if _, ok := k.Shard.ByName(registry.KindRoute, "", model); !ok {
			return controlplane.Refuse(controlplane.RuleNotFound, field, "no route has the model %q: create that route first", model)
		}
		if k.leadsTo(model, r.Model) {
			return invalid(field, "%q falls back on %q in turn: take one of the two away, since fallbacks must not form a circle", model, r.Model)
		}
		return nil
	}
	for i, model := range r.Fallbacks {
		field := fmt.Sprintf("fallbacks[%d]", i)
		if slices.Contains(r.Fallbacks[:i], model) {
			return invalid(field, "%q is listed already", model)
		}
		if err := check(field, model); err != nil {
			return err
		}
	}
	if r.ContextFallback == "" {
		return nil
	}
	return check("context_fallback", r.ContextFallback)
}

// leadsTo reports whether the fallbacks of from reach to, over any number of
// routes.
func (k *Checker) leadsTo(from, to string) bool {
	seen, open := map[string]bool{from: true}, []string{from}
	for len(open) > 0 {
		rec, ok := k.Shard.ByName(registry.KindRoute, "", open[0])
		open = open[1:]
		if !ok {
			continue
		}
		for _, model := range fallsBackOn(rec.Route) {
			if model == to {
				return true
			}
			if !seen[model] {
				seen[model] = true
				open = append(open, model)
			}
		}
	}
	return false
}

// fallsBackOn gives the models that the route falls back on, for any reason.
func fallsBackOn(r *registry.Route) []string {
	if r.ContextFallback == "" {
		return r.Fallbacks
	}
	return append(slices.Clip(r.Fallbacks), r.ContextFallback)
}

// fallingBackOn returns the model of a route that falls back on model, or "".
func (k *Checker) fallingBackOn(model string) string {
	for r := range k.Shard.Named(registry.KindRoute) {
		if slices.Contains(fallsBackOn(r.Route), model) {
			return r.Route.Model
		}
	}
	return ""
}

// dedicatedTo returns the name of an upstream that belongs to org, or "".
func (k *Checker) dedicatedTo(org string) string {
	for r := range k.Global.Named(registry.KindUpstream) {
		if r.Upstream.Dedicated == org {
			return r.Upstream.Name
		}
	}
	return ""
}
