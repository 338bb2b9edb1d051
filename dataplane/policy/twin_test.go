package policy

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ringmain/controlplane/registry"
)

// want is what the naive twin decides: refused, or exactly this.
type want struct {
	refused       string
	pin, pool     string
	zero          bool
	cross, batch  bool
	allowed       []string // of models
	billed        string
	wrongEndpoint string
}

var (
	allJurisdictions = []string{"us", "eu", "apac"}
	allModels        = []string{"a", "b", "c"}
	regionOf         = map[string]string{"us": "us-east", "eu": "eu-fra", "apac": "ap-sg"}
)

// scenario is all that has a say.
type scenario struct {
	org      registry.Org
	projects map[string]registry.Project
	policies []*registry.Policy
	asked    Asked
	entry    string
	carried  string
	zero     bool
	pool     string
	confined bool
	down     string // region
}

// decideNaively reads DESIGN.md line by line, with sets instead of fields.
func decideNaively(c *scenario) want {
	billed := "prj_1"
	if p := c.asked.Project; p != "" {
		if c.projects[p].Org != "org_1" {
			return want{refused: "project_forbidden"}
		}
		billed = p
	}
	if c.asked.Residency != "" && !slices.Contains(allJurisdictions, c.asked.Residency) {
		return want{refused: "invalid_header"}
	}
	var applies []*registry.Policy
	for _, p := range c.policies {
		if p.Project == "" || p.Project == "prj_1" || p.Project == billed {
			applies = append(applies, p)
		}
	}
	may := func(j string) bool {
		ok := c.org.Jurisdiction == "any" || c.org.Jurisdiction == j
		for _, p := range applies {
			ok = ok && (p.Residency == "" || p.Residency == j)
		}
		return ok && (c.asked.Residency == "" || c.asked.Residency == j) && (c.carried == "" || c.carried == j)
	}
	var left []string
	for _, j := range allJurisdictions {
		if may(j) {
			left = append(left, j)
		}
	}
	w := want{billed: billed}
	switch len(left) {
	case 0:
		return want{refused: "residency_unavailable"}
	case 1:
		w.pin = left[0]
	}
	if w.pin != "" && w.pin != c.entry {
		if regionOf[w.pin] == c.down {
			return want{refused: "residency_unavailable"}
		}
		return want{refused: "wrong_jurisdiction", wrongEndpoint: "https://" + regionOf[w.pin]}
	}
	if c.entry == "eu" && !(c.org.Jurisdiction == "any" && c.org.Roaming) {
		w.pin = "eu"
	}
	w.zero = c.asked.NoRetention || c.zero || c.pool == PoolZeroRetention
	dedicated := c.pool == "dedicated:org_1"
	for _, p := range applies {
		w.zero = w.zero || p.NoRetention
		dedicated = dedicated || p.Dedicated
	}
	if !slices.Contains([]string{"", PoolStandard, PoolZeroRetention, "dedicated:org_1"}, c.pool) {
		return want{refused: "no_healthy_route"}
	}
	if w.zero && !c.confined {
		return want{refused: "zero_retention_unavailable"}
	}
	switch {
	case dedicated:
		w.pool = "dedicated:org_1"
	case w.zero:
		w.pool = PoolZeroRetention
	default:
		w.pool = PoolStandard
	}
	w.cross = c.projects["prj_1"].CrossProvider && c.projects[billed].CrossProvider
	w.batch = c.projects["prj_1"].Class == "batch" || c.projects[billed].Class == "batch"
	for _, m := range allModels {
		ok := true
		for _, p := range applies {
			ok = ok && (len(p.Models) == 0 || slices.Contains(p.Models, m))
		}
		if ok {
			w.allowed = append(w.allowed, m)
		}
	}
	return w
}

func drawCase(t *rapid.T) *scenario {
	of := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	seldom := func(label string) bool { return rapid.IntRange(0, 2).Draw(t, label) == 0 }
	c := &scenario{
		org:   registry.Org{Jurisdiction: of("org", "any", "any", "us", "eu"), Roaming: rapid.Bool().Draw(t, "roaming"), Plan: "scale"},
		entry: of("entry", allJurisdictions...), confined: !seldom("not confined"), down: of("down", "", "", "eu-fra", "us-east"),
		asked: Asked{Project: of("asked project", "", "prj_1", "prj_2", "prj_2", "prj_2", "prj_x"), Residency: of("asked residency", "", "", "", "", "us", "eu", "mars"), NoRetention: seldom("asked zero")},
	}
	if c.org.Jurisdiction != "any" {
		c.org.Roaming = false // as the registry's rules have it
	}
	c.projects = map[string]registry.Project{
		"prj_1": {Org: "org_1", CrossProvider: rapid.Bool().Draw(t, "cross 1"), Class: of("class 1", "", "interactive", "batch")},
		"prj_2": {Org: "org_1", CrossProvider: rapid.Bool().Draw(t, "cross 2"), Class: of("class 2", "", "batch")},
		"prj_x": {Org: "org_x", CrossProvider: true},
	}
	for _, project := range []string{"", "prj_1", "prj_2"} {
		if rapid.Bool().Draw(t, "policy of "+project) {
			c.policies = append(c.policies, &registry.Policy{
				Org: "org_1", Project: project, Residency: of("residency", "", "", "", "", "", "us", "eu"), NoRetention: seldom("no retention"), Dedicated: seldom("dedicated"),
				Models: rapid.SliceOfNDistinct(rapid.SampledFrom(allModels), 0, 2, func(m string) string { return m }).Draw(t, "models"),
			})
		}
	}
	if rapid.Bool().Draw(t, "executes for another") {
		c.carried, c.zero = of("carried", "", "us", "eu"), seldom("carried zero")
		c.pool = of("carried pool", "", "", PoolStandard, PoolStandard, PoolZeroRetention, "dedicated:org_1", "dedicated:org_x", "of a later version")
	}
	return c
}

func (c *scenario) input(t interface{ Fatal(...any) }) Input {
	w := newWorldOf(t, c.org, c.projects, c.policies)
	return Input{
		View: w.view, Org: w.org, Project: w.key, Class: "live", Asked: c.asked, EntryJurisdiction: c.entry,
		Carried: c.carried, CarriedZero: c.zero, CarriedPool: c.pool, Confined: c.confined,
		Up: func(region string) bool { return region != c.down },
	}
}

func result(d Decision, refused *Refusal) want {
	if refused != nil {
		return want{refused: refused.Code, wrongEndpoint: refused.Endpoint}
	}
	w := want{pin: d.Pin, pool: d.Pool, zero: d.ZeroRetention, cross: d.CrossProvider, batch: d.Batch, billed: d.Billed.Meta.ID}
	for _, m := range allModels {
		if d.AllowsModel(m) {
			w.allowed = append(w.allowed, m)
		}
	}
	return w
}

func (w want) equal(o want) bool {
	return w.refused == o.refused && w.pin == o.pin && w.pool == o.pool && w.zero == o.zero && w.cross == o.cross &&
		w.batch == o.batch && w.billed == o.billed && w.wrongEndpoint == o.wrongEndpoint && slices.Equal(w.allowed, o.allowed)
}

// TestDecideAgainstNaive: the decision is what the twin, which reads the design
// line by line, decides.
func TestDecideAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawCase(t)
		if got, want := result(Decide(c.input(t))), decideNaively(c); !got.equal(want) {
			t.Fatalf("%+v\npolicies %v\n got %+v\nwant %+v", *c, c.policies, got, want)
		}
	})
}

// loosens says in what a allows more than b, or "".
func loosens(a, b want) string {
	if a.refused != "" {
		return ""
	}
	switch {
	case b.refused != "" && b.refused != "wrong_jurisdiction":
		return "it was refused"
	case b.refused != "":
		return "it entered at the wrong place"
	case b.pin != "" && a.pin != b.pin:
		return "pin"
	case b.zero && !a.zero:
		return "zero retention"
	case b.pool == "dedicated:org_1" && a.pool != b.pool:
		return "dedicated pool"
	case a.cross && !b.cross:
		return "cross provider"
	case b.batch && !a.batch:
		return "class"
	}
	for _, m := range a.allowed {
		if !slices.Contains(b.allowed, m) {
			return "model " + m
		}
	}
	return ""
}

// TestNothingLoosens: whatever a request says, and whatever an entry node
// decided, nothing is allowed that would not be without; and a node that
// executes is never looser than the entry.
func TestNothingLoosens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawCase(t)
		in := c.input(t)
		bare := in
		bare.Asked, bare.Carried, bare.CarriedZero, bare.CarriedPool = Asked{}, "", false, ""
		full := result(Decide(in))
		if what := loosens(full, result(Decide(bare))); what != "" {
			t.Fatalf("%+v: the request loosens: %s", *c, what)
		}
		// The entry decides; another node, with other (older, looser) policies,
		// executes what the entry carries to it.
		entry := in
		entry.Carried, entry.CarriedZero, entry.CarriedPool = "", false, ""
		d, refused := Decide(entry)
		if refused != nil {
			return
		}
		older := *c
		older.policies = nil
		executes := older.input(t)
		executes.Asked = Asked{Project: d.Billed.Meta.ID}
		executes.Carried, executes.CarriedZero, executes.CarriedPool = d.Pin, d.ZeroRetention, d.Pool
		got, at := result(Decide(executes)), result(d, nil)
		at.allowed, at.cross, at.batch = got.allowed, true, false // the entry asks for one model of one provider; class matters at the entry
		if what := loosens(got, at); what != "" {
			t.Fatalf("%+v: the executing node is looser: %s\nentry %+v\n here %+v", *c, what, at, got)
		}
	})
}

// TestPools: the strictest that anybody wants, billed project included.
func TestPools(t *testing.T) {
	w := newWorld(t, registry.Org{Jurisdiction: "any", Plan: "scale"},
		&registry.Policy{Org: "org_1", Project: "prj_2", Dedicated: true})
	in := Input{View: w.view, Org: w.org, Project: w.key, Class: "live", EntryJurisdiction: "us", Confined: true}
	for _, c := range []struct {
		name          string
		change        func(*Input)
		pool, refused string
		zero          bool
	}{
		{"nothing said", func(*Input) {}, PoolStandard, "", false},
		{"zero retention asked", func(in *Input) { in.Asked.NoRetention = true }, PoolZeroRetention, "", true},
		{"zero retention carried", func(in *Input) { in.CarriedZero = true }, PoolZeroRetention, "", true},
		{"pool carried", func(in *Input) { in.CarriedPool = PoolZeroRetention }, PoolZeroRetention, "", true},
		{"standard carried", func(in *Input) { in.CarriedPool = PoolStandard }, PoolStandard, "", false},
		{"dedicated by the billed project", func(in *Input) { in.Asked.Project = "prj_2" }, "dedicated:org_1", "", false},
		{"dedicated and zero", func(in *Input) { in.Asked.Project, in.Asked.NoRetention = "prj_2", true }, "dedicated:org_1", "", true},
		{"dedicated carried", func(in *Input) { in.CarriedPool = "dedicated:org_1" }, "dedicated:org_1", "", false},
		{"dedicated stays though standard is carried", func(in *Input) { in.Asked.Project, in.CarriedPool = "prj_2", PoolStandard }, "dedicated:org_1", "", false},
		{"another org's pool carried", func(in *Input) { in.CarriedPool = "dedicated:org_x" }, "", "no_healthy_route", false},
		{"not confined", func(in *Input) { in.Asked.NoRetention, in.Confined = true, false }, "", "zero_retention_unavailable", false},
		{"not confined, not asked", func(in *Input) { in.Confined = false }, PoolStandard, "", false},
	} {
		in := in
		c.change(&in)
		d, refused := Decide(in)
		if (refused != nil) != (c.refused != "") || refused != nil && refused.Code != c.refused || d.Pool != c.pool || d.ZeroRetention != c.zero {
			t.Errorf("%s: %+v %v", c.name, d, refused)
		}
		if d.Dedicated() != (d.Pool == "dedicated:org_1") || refused == nil && d.Plan != "scale" {
			t.Errorf("%s: %+v", c.name, d)
		}
	}
}
