package manage

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/controlplane/admin/api"
)

// orgRef finds an org by id or name.
func orgRef(ctx context.Context, c *adminclient.Client, ref string) (*api.Org, error) {
	if strings.HasPrefix(ref, "org_") {
		return c.GetOrg(ctx, ref)
	}
	return c.OrgByName(ctx, ref)
}

// projectRef finds a project by id or as ORG/NAME.
func projectRef(ctx context.Context, c *adminclient.Client, ref string) (*api.Project, error) {
	if strings.HasPrefix(ref, "prj_") {
		return c.GetProject(ctx, ref)
	}
	org, name, ok := strings.Cut(ref, "/")
	if !ok {
		return nil, cli.Usagef("project %q: give its id, or ORG/NAME", ref)
	}
	o, err := orgRef(ctx, c, org)
	if err != nil {
		return nil, err
	}
	return c.ProjectByName(ctx, o.ID, name)
}

var orgColumns = []cli.Column[api.Org]{
	cli.Col("ID", func(o api.Org) string { return o.ID }),
	cli.Col("NAME", func(o api.Org) string { return o.Name }),
	cli.Col("PLAN", func(o api.Org) string { return o.Plan }),
	cli.Col("STATE", func(o api.Org) string { return o.State }),
	cli.Col("JURISDICTION", func(o api.Org) string { return o.Jurisdiction }),
	cli.Col("ROAMING", func(o api.Org) string { return cli.YesNo(o.Roaming) }),
	cli.Col("SHARD", func(o api.Org) string { return o.Shard }),
}

func (t *tool) showOrg(o *api.Org, err error) error { return show(t, o, err, orgColumns) }

func (t *tool) orgCommand() *cobra.Command {
	var in api.OrgInput
	var jurisdiction, name string
	fields := func(f *pflag.FlagSet) {
		f.StringVar(&in.Plan, "plan", "", "trial, build, scale or enterprise")
		f.StringVar(&in.State, "state", "", "unverified, verified or suspended; live keys need verified")
		f.BoolVar(&in.Roaming, "roaming", false, "a request that entered in the EU may leave it")
	}
	list := t.Command("list", "list orgs", "  ringmain org list\n  ringmain org list --jurisdiction eu -o json", func(ctx context.Context, c *adminclient.Client, _ []string) error {
		orgs, elsewhere, err := c.Orgs(ctx, jurisdiction, name)
		if err != nil {
			return err
		}
		if len(elsewhere) > 0 {
			t.Say("not listed: orgs pinned to %s; list those with --jurisdiction", strings.Join(elsewhere, ", "))
		}
		return cli.Show(t.Tool, orgs, false, orgColumns)
	})
	list.Flags().StringVar(&jurisdiction, "jurisdiction", "", "only orgs of this jurisdiction; any = unpinned")
	list.Flags().StringVar(&name, "name", "", "only orgs of exactly this name")
	create := t.Command("create NAME", "create an org", "  ringmain org create Acme --state verified\n  ringmain org create 'Acme GmbH' --jurisdiction eu", func(ctx context.Context, c *adminclient.Client, args []string) error {
		in.Name = args[0]
		return t.showOrg(c.CreateOrg(ctx, in))
	})
	fields(create.Flags())
	create.Flags().StringVar(&in.Jurisdiction, "jurisdiction", "", "pin the org's records and traffic to this jurisdiction; changed by ringmain org pin")
	var update *cobra.Command
	update = t.Command("update ORG", "change an org", "  ringmain org update Acme --state suspended", func(ctx context.Context, c *adminclient.Client, args []string) error {
		old, err := orgRef(ctx, c, args[0])
		if err != nil {
			return err
		}
		next, f := old.OrgInput, update.Flags()
		set(f, "plan", &next.Plan, in.Plan)
		set(f, "state", &next.State, in.State)
		set(f, "roaming", &next.Roaming, in.Roaming)
		set(f, "name", &next.Name, name)
		return t.showOrg(c.UpdateOrg(ctx, old.Meta, next))
	})
	fields(update.Flags())
	update.Flags().StringVar(&name, "name", "", "new name")
	return cli.Group("org", "manage customer accounts", "  ringmain org create Acme --state verified\n  ringmain org list", list, create, update, t.pinCommand(),
		t.Command("get ORG", "show an org, by id or name", "  ringmain org get Acme", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.showOrg(orgRef(ctx, c, args[0]))
		}),
		t.Command("delete ORG", "delete an org without projects and policies", "  ringmain org delete Acme", func(ctx context.Context, c *adminclient.Client, args []string) error {
			o, err := orgRef(ctx, c, args[0])
			if err != nil {
				return err
			}
			return t.Deleted(c.Delete(ctx, "orgs", o.ID), o.ID)
		}))
}

var projectColumns = []cli.Column[api.Project]{
	cli.Col("ID", func(p api.Project) string { return p.ID }),
	cli.Col("NAME", func(p api.Project) string { return p.Name }),
	cli.Col("ORG", func(p api.Project) string { return p.Org }),
	cli.Col("CROSS-PROVIDER", func(p api.Project) string { return cli.YesNo(p.CrossProvider) }),
	cli.Col("CLASS", func(p api.Project) string { return cmp.Or(p.Class, "interactive") }),
}

func (t *tool) showProject(p *api.Project, err error) error { return show(t, p, err, projectColumns) }

func (t *tool) projectCommand() *cobra.Command {
	var in api.ProjectInput
	var org, name string
	inOrg := func(ctx context.Context, c *adminclient.Client) (*api.Org, error) {
		if org == "" {
			return nil, cli.Usagef("--org is needed: an org's id or name")
		}
		return orgRef(ctx, c, org)
	}
	list := t.Command("list", "list the projects of an org", "  ringmain project list --org Acme", func(ctx context.Context, c *adminclient.Client, _ []string) error {
		o, err := inOrg(ctx, c)
		if err != nil {
			return err
		}
		projects, err := c.Projects(ctx, o.ID)
		if err != nil {
			return err
		}
		return cli.Show(t.Tool, projects, false, projectColumns)
	})
	create := t.Command("create NAME", "create a project", "  ringmain project create web --org Acme", func(ctx context.Context, c *adminclient.Client, args []string) error {
		o, err := inOrg(ctx, c)
		if err != nil {
			return err
		}
		in.Name = args[0]
		return t.showProject(c.CreateProject(ctx, o.ID, in))
	})
	for _, c := range []*cobra.Command{list, create} {
		c.Flags().StringVar(&org, "org", "", "id or name of the org (needed)")
	}
	var update *cobra.Command
	update = t.Command("update PROJECT", "change a project", "  ringmain project update Acme/web --cross-provider", func(ctx context.Context, c *adminclient.Client, args []string) error {
		old, err := projectRef(ctx, c, args[0])
		if err != nil {
			return err
		}
		next := old.ProjectInput
		set(update.Flags(), "cross-provider", &next.CrossProvider, in.CrossProvider)
		set(update.Flags(), "class", &next.Class, in.Class)
		set(update.Flags(), "name", &next.Name, name)
		return t.showProject(c.UpdateProject(ctx, old.Meta, next))
	})
	update.Flags().StringVar(&name, "name", "", "new name")
	for _, c := range []*cobra.Command{create, update} {
		c.Flags().BoolVar(&in.CrossProvider, "cross-provider", false, "another provider than the first upstream's may be asked")
		c.Flags().StringVar(&in.Class, "class", "", "interactive, or batch: shed first where capacity is short")
	}
	return cli.Group("project", "manage projects", "  ringmain project create web --org Acme\n  ringmain project get Acme/web", list, create, update,
		t.Command("get PROJECT", "show a project, by id or ORG/NAME", "  ringmain project get Acme/web", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.showProject(projectRef(ctx, c, args[0]))
		}),
		t.Command("delete PROJECT", "delete a project without keys and policy", "  ringmain project delete Acme/web", func(ctx context.Context, c *adminclient.Client, args []string) error {
			p, err := projectRef(ctx, c, args[0])
			if err != nil {
				return err
			}
			return t.Deleted(c.Delete(ctx, "projects", p.ID), p.ID)
		}))
}

var policyColumns = []cli.Column[api.Policy]{
	cli.Col("ID", func(p api.Policy) string { return p.ID }),
	cli.Col("ORG", func(p api.Policy) string { return p.Org }),
	cli.Col("PROJECT", func(p api.Policy) string { return p.Project }),
	cli.Col("RESIDENCY", func(p api.Policy) string { return p.Residency }),
	cli.Col("NO-RETENTION", func(p api.Policy) string { return cli.YesNo(p.NoRetention) }),
	cli.Col("DEDICATED", func(p api.Policy) string { return cli.YesNo(p.Dedicated) }),
	cli.Col("MODELS", func(p api.Policy) string {
		if len(p.Models) == 0 {
			return "all"
		}
		return strings.Join(p.Models, ",")
	}),
}

func (t *tool) showPolicy(p *api.Policy, err error) error { return show(t, p, err, policyColumns) }

func (t *tool) policyCommand() *cobra.Command {
	var in api.PolicyInput
	var org, project string
	list := t.Command("list", "list the policies of an org and its projects", "  ringmain policy list --org Acme", func(ctx context.Context, c *adminclient.Client, _ []string) error {
		if org == "" {
			return cli.Usagef("--org is needed: an org's id or name")
		}
		o, err := orgRef(ctx, c, org)
		if err != nil {
			return err
		}
		policies, err := c.Policies(ctx, o.ID)
		if err != nil {
			return err
		}
		return cli.Show(t.Tool, policies, false, policyColumns)
	})
	list.Flags().StringVar(&org, "org", "", "id or name of the org (needed)")
	create := t.Command("create", "narrow what an org or a project may do", "  ringmain policy create --org Acme --residency eu\n  ringmain policy create --project Acme/web --models gpt-5,claude-opus", func(ctx context.Context, c *adminclient.Client, _ []string) error {
		switch {
		case (org == "") == (project == ""):
			return cli.Usagef("give --org, or --project (its id or ORG/NAME)")
		case org != "":
			o, err := orgRef(ctx, c, org)
			if err != nil {
				return err
			}
			return t.showPolicy(c.CreatePolicy(ctx, o.ID, in))
		}
		p, err := projectRef(ctx, c, project)
		if err != nil {
			return err
		}
		in.Project = p.ID
		return t.showPolicy(c.CreatePolicy(ctx, p.Org, in))
	})
	create.Flags().StringVar(&org, "org", "", "id or name of the org, for all of it")
	create.Flags().StringVar(&project, "project", "", "id or ORG/NAME of one project")
	var update *cobra.Command
	update = t.Command("update POLICY", "change a policy", "  ringmain policy update pol_any_… --no-retention", func(ctx context.Context, c *adminclient.Client, args []string) error {
		old, err := c.GetPolicy(ctx, args[0])
		if err != nil {
			return err
		}
		next, f := old.PolicyInput, update.Flags()
		set(f, "residency", &next.Residency, in.Residency)
		set(f, "no-retention", &next.NoRetention, in.NoRetention)
		set(f, "models", &next.Models, in.Models)
		set(f, "dedicated", &next.Dedicated, in.Dedicated)
		return t.showPolicy(c.UpdatePolicy(ctx, old.Meta, next))
	})
	for _, c := range []*cobra.Command{create, update} {
		c.Flags().StringVar(&in.Residency, "residency", "", "jurisdiction that requests must stay in")
		c.Flags().BoolVar(&in.NoRetention, "no-retention", false, "zero-retention upstreams only")
		c.Flags().BoolVar(&in.Dedicated, "dedicated", false, "only upstreams and nodes that are dedicated to the org")
		c.Flags().StringSliceVar(&in.Models, "models", nil, "models that may be used, by public name; empty = all")
	}
	return cli.Group("policy", "narrow what orgs and projects may do", "  ringmain policy create --org Acme --residency eu", list, create, update,
		t.Command("get POLICY", "show a policy, by id", "  ringmain policy get pol_any_…", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.showPolicy(c.GetPolicy(ctx, args[0]))
		}),
		t.Command("delete POLICY", "delete a policy: what it narrowed is wide again", "  ringmain policy delete pol_any_…", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.Deleted(c.Delete(ctx, "policies", args[0]), args[0])
		}))
}

// parsePairs reads "k=v,k=v".
func parsePairs(text string) (map[string]string, error) {
	out := map[string]string{}
	for part := range strings.SplitSeq(text, ",") {
		k, v, ok := strings.Cut(part, "=")
		if _, twice := out[k]; !ok || k == "" || v == "" || twice {
			return nil, fmt.Errorf("%q is not key=value, each key once", part)
		}
		out[k] = v
	}
	return out, nil
}

// set overlays the flags that were given.
func set[T any](flags *pflag.FlagSet, name string, field *T, value T) {
	if flags.Changed(name) {
		*field = value
	}
}
