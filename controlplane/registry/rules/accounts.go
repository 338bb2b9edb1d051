package rules

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// put checks a record by the rules of its kind; old is what it replaces, or nil.
func (k *Checker) put(r, old *registry.Record) *controlplane.RuleError {
	if r.Meta.Created < 0 || r.Meta.Updated < 0 {
		return invalid("meta.created", "times are Unix milliseconds, not negative")
	}
	switch r.Kind {
	case registry.KindOrg:
		return k.org(r.Org)
	case registry.KindProject:
		return k.project(r, old)
	case registry.KindKey:
		return k.key(r, old)
	case registry.KindUpstream:
		return k.upstream(r, old)
	case registry.KindRoute:
		return k.route(r, old)
	case registry.KindPolicy:
		return k.policy(r, old)
	case registry.KindRelocation:
		return k.relocation(r, old)
	default:
		return k.regionRecord(r, old)
	}
}

func (k *Checker) org(o *registry.Org) *controlplane.RuleError {
	pinned := o.Jurisdiction != controlplane.JurisdictionAny
	if err := firstOf(
		checkName("name", o.Name),
		oneOf("plan", o.Plan, "trial", "build", "scale", "enterprise"),
		oneOf("state", o.State, "unverified", "verified", "suspended"),
	); err != nil {
		return err
	}
	switch {
	case pinned && !k.jurisdictionKnown(o.Jurisdiction):
		return invalid("jurisdiction", "no region is in %q: choose one that has a region, or any", o.Jurisdiction)
	case pinned && o.Jurisdiction != "eu" && o.Plan != "enterprise":
		return controlplane.Refuse(controlplane.RuleForbidden, "jurisdiction",
			"plan_required: pinning to %q needs the enterprise plan (eu is pinned on every plan)", o.Jurisdiction)
	case pinned && o.Roaming:
		return invalid("roaming", "an org pinned to %q cannot roam", o.Jurisdiction)
	}
	return nil
}

func (k *Checker) project(r, old *registry.Record) *controlplane.RuleError {
	p := r.Project
	if err := firstOf(
		checkName("name", p.Name),
		oneOf("class", p.Class, "", "interactive", "batch"),
	); err != nil {
		return err
	}
	if _, ok := k.find(registry.KindOrg, p.Org); !ok {
		return missing("org", p.Org)
	}
	if old != nil && old.Project.Org != p.Org {
		return invalid("org", "a project cannot move from %s to another org", old.Project.Org)
	}
	return k.unique(r, "name")
}

// find returns a record of the shard; references never leave it.
func (k *Checker) find(kind registry.Kind, id string) (*registry.Record, bool) {
	r, ok := k.Shard.Get(id)
	if !ok || r.Kind != kind {
		return nil, false
	}
	return r, true
}

func missing(field, value string) *controlplane.RuleError {
	return controlplane.Refuse(controlplane.RuleNotFound, field, "%q does not exist", value)
}

func (k *Checker) key(r, old *registry.Record) *controlplane.RuleError {
	key := r.Key
	if err := firstOf(
		checkName("name", key.Name),
		oneOf("class", key.Class, "live", "test"),
		checkText("hint", key.Hint, 16),
	); err != nil {
		return err
	}
	p, ok := k.find(registry.KindProject, key.Project)
	if !ok {
		return missing("project", key.Project)
	}
	if old != nil && old.Key.Project != key.Project {
		return invalid("project", "a key cannot move from %s to another project", old.Key.Project)
	}
	if old != nil && old.Key.Class != key.Class {
		return invalid("class", "a %s key cannot become a %s key: create another", old.Key.Class, key.Class)
	}
	var revoked int64
	if v, ok := k.Shard.Revocation(registry.KindKey, r.Meta.ID); ok {
		revoked = v.At
	}
	o, ok := k.find(registry.KindOrg, p.Project.Org)
	switch {
	case !ok:
		return missing("org", p.Project.Org)
	case key.Class == "live" && o.Org.State != "verified":
		return controlplane.Refuse(controlplane.RuleForbidden, "class",
			"the org is %s, and live keys need a verified one: create a test key, or have the org verified", o.Org.State)
	case len(key.Hash) == 0 || len(key.Hash) > 128 || len(key.PrevHash) > 128:
		return invalid("hash", "must be present, and at most 128 bytes long")
	case key.Expires < 0 || key.PrevUntil < 0:
		return invalid("expires", "times are Unix milliseconds, not negative")
	case key.Revoked != 0 && key.Revoked != revoked:
		return invalid("revoked", "is set by revoking the key, never by writing it")
	case old == nil:
		return k.reissued(r)
	}
	return nil
}

func (k *Checker) policy(r, old *registry.Record) *controlplane.RuleError {
	p := r.Policy
	o, ok := k.find(registry.KindOrg, p.Org)
	if !ok {
		return missing("org", p.Org)
	}
	if p.Project != "" {
		project, ok := k.find(registry.KindProject, p.Project)
		switch {
		case !ok:
			return missing("project", p.Project)
		case project.Project.Org != p.Org:
			return invalid("project", "%q belongs to org %s", p.Project, project.Project.Org)
		}
	}
	if old != nil && (old.Policy.Org != p.Org || old.Policy.Project != p.Project) {
		return invalid("project", "a policy cannot move to another org or project")
	}
	pinned := o.Org.Jurisdiction
	switch {
	case p.Residency == "":
	case !registry.IsJurisdiction(p.Residency) || p.Residency == controlplane.JurisdictionAny || !k.jurisdictionKnown(p.Residency):
		return invalid("residency", "no region is in %q: choose a jurisdiction that has one, or leave it empty", p.Residency)
	case pinned != controlplane.JurisdictionAny && pinned != p.Residency:
		return invalid("residency", "%q contradicts the org, which is pinned to %q", p.Residency, pinned)
	}
	if len(p.Models) > maxModels {
		return invalid("models", "holds more than %d models", maxModels)
	}
	seen := make(map[string]bool, len(p.Models))
	for i, m := range p.Models {
		field := fmt.Sprintf("models[%d]", i)
		if err := checkModel(field, m); err != nil {
			return err
		}
		if seen[m] {
			return invalid(field, "%q is listed already", m)
		}
		seen[m] = true
	}
	if other := k.policyOf(p.Org, p.Project); other != nil && other.Meta.ID != r.Meta.ID {
		return controlplane.Refuse(controlplane.RuleConflict, "project", "%s is its policy already: change that one", other.Meta.ID)
	}
	return nil
}

func (k *Checker) regionRecord(r, old *registry.Record) *controlplane.RuleError {
	g := r.Region
	if !registry.IsJurisdiction(g.Jurisdiction) || g.Jurisdiction == controlplane.JurisdictionAny {
		return invalid("jurisdiction", "%q must be two to four lowercase letters, and not any", g.Jurisdiction)
	}
	if old != nil && old.Region.Jurisdiction != g.Jurisdiction {
		return invalid("jurisdiction", "a region cannot move out of %q: it may hold data pinned there", old.Region.Jurisdiction)
	}
	for sh, members := range k.Held {
		pin, pinned := registry.PinnedTo(sh.Name())
		if pinned && pin != g.Jurisdiction && slices.Contains(members, g.Name) {
			return invalid("jurisdiction", "%q contradicts shard %s, which %s holds", g.Jurisdiction, pin, g.Name)
		}
	}
	if g.Brownout > maxBrownout {
		return invalid("brownout", "must be 0 (as the nodes measure) to %d, not %d", maxBrownout, g.Brownout)
	}
	return firstOf(
		checkOptionalURL("endpoint", g.Endpoint),
		oneOf("state", g.State, "active", "drained"),
		k.unique(r, "name"),
	)
}

func firstOf(errs ...*controlplane.RuleError) *controlplane.RuleError {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkName accepts what people call their things: 1 to 100 runes, no control
// characters, no space at either end.
func checkName(field, name string) *controlplane.RuleError {
	if name == "" || strings.TrimSpace(name) != name {
		return invalid(field, "must not be empty, or begin or end with a space")
	}
	return checkText(field, name, 100)
}

// bidi are the characters that reorder the text around them, so that a name
// reads as another.
var bidi = &unicode.RangeTable{R16: []unicode.Range16{{Lo: 0x202a, Hi: 0x202e, Stride: 1}, {Lo: 0x2066, Hi: 0x2069, Stride: 1}}}

// checkText refuses control characters, also line breaks and reordering.
func checkText(field, text string, limit int) *controlplane.RuleError {
	if !utf8.ValidString(text) || utf8.RuneCountInString(text) > limit {
		return invalid(field, "must be valid UTF-8 of at most %d characters", limit)
	}
	for _, c := range text {
		if unicode.In(c, unicode.Cc, unicode.Zl, unicode.Zp, bidi) {
			return invalid(field, "must not hold control characters")
		}
	}
	return nil
}

// checkLabel accepts names that travel in headers: letters, digits, . _ -
func checkLabel(field, label string) *controlplane.RuleError {
	if label == "" || len(label) > 64 || !isAlphanumeric(label[0]) {
		return invalid(field, "%q must begin with a letter or digit, and be at most 64 characters long", label)
	}
	for _, c := range []byte(label) {
		if !isAlphanumeric(c) && !strings.ContainsRune("._-", rune(c)) {
			return invalid(field, "%q may hold only letters, digits, and . _ -", label)
		}
	}
	return nil
}

// checkModel accepts the names of models: visible ASCII, 1 to 100 characters.
func checkModel(field, model string) *controlplane.RuleError {
	if model == "" || len(model) > 100 {
		return invalid(field, "must be 1 to 100 characters long")
	}
	for _, c := range []byte(model) {
		if c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return invalid(field, "%q may hold only visible ASCII characters, without quotes and backslashes", model)
		}
	}
	return nil
}

func checkOptionalURL(field, value string) *controlplane.RuleError {
	if value == "" {
		return nil
	}
	return checkURL(field, value, false)
}

// checkURL accepts an https URL of a host, with a path if path is set, and nothing more.
func checkURL(field, value string, path bool) *controlplane.RuleError {
	u, err := url.Parse(value)
	switch {
	case err != nil || len(value) > 2048:
		return invalid(field, "is not a URL")
	case u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "":
		return invalid(field, "must begin with https:// and name a host")
	case u.User != nil:
		return invalid(field, "must not hold a user name or password")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(value, "#"):
		return invalid(field, "must not have a query or fragment")
	case !path && u.Path != "" && u.Path != "/":
		return invalid(field, "must not have a path")
	}
	return nil
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}
