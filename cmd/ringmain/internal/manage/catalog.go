package manage

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/controlplane/admin/api"
)

var upstreamColumns = []cli.Column[api.Upstream]{
	cli.Col("NAME", func(u api.Upstream) string { return u.Name }),
	cli.Col("PROVIDER", func(u api.Upstream) string { return u.Provider }),
	cli.Col("REGION", func(u api.Upstream) string { return u.Region }),
	cli.Col("DIALECT", func(u api.Upstream) string { return u.Dialect }),
	cli.Col("URL", func(u api.Upstream) string { return u.BaseURL }),
	cli.Col("AUTH", func(u api.Upstream) string { return u.Auth }),
	cli.Col("RETENTION", func(u api.Upstream) string { return u.Terms.Retention }),
	cli.Col("DEDICATED", func(u api.Upstream) string { return u.Dedicated }),
	cli.Col("STATE", func(u api.Upstream) string {
		switch {
		case u.CredentialEnded != nil:
			return "credential revoked"
		case u.Disabled:
			return "disabled"
		case u.Simulated:
			return "simulated"
		}
		return "enabled"
	}),
}

func (t *tool) showUpstream(u *api.Upstream, err error) error {
	return show(t, u, err, upstreamColumns)
}

// upstreamFlags registers the fields of in, which applied copies to another
// where they were given.
func upstreamFlags(f *pflag.FlagSet, in *api.UpstreamInput, credentialFile *string) {
	f.StringVar(&in.Provider, "provider", "", "openai, anthropic, …")
	f.StringVar(&in.Region, "region", "", "region whose data nodes call it")
	f.StringVar(&in.Dialect, "dialect", "openai", "openai or anthropic")
	f.StringVar(&in.BaseURL, "base-url", "", "https address; /v1/… is appended")
	f.StringVar(&in.Auth, "auth", "bearer", "bearer, x-api-key, api-key or none")
	f.StringVar(credentialFile, "credential-file", "", "file that holds the credential; - = stdin")
	f.StringVar(&in.Terms.Retention, "retention", "", "contract: zero, or days such as 30d")
	f.StringVar(&in.Terms.PromptCache, "prompt-cache", "", "contract: none, memory or disk")
	f.StringVar(&in.Terms.Training, "training", "never", "contract: only never is accepted")
	f.BoolVar(&in.Terms.BAA, "baa", false, "contract: there is a BAA")
	f.StringVar(&in.Terms.Contract, "contract", "", "SHA-256 of the contract, hex")
	f.StringVar(&in.Terms.Dated, "dated", "", "date of the contract, YYYY-MM-DD")
	f.BoolVar(&in.Simulated, "simulated", false, "the only kind that test keys reach")
	f.BoolVar(&in.Disabled, "disabled", false, "not to be used for now")
	f.StringSliceVar(&in.Endpoints, "endpoint", nil, "path that it serves, such as /v1/embeddings; may be repeated; none = all of its dialect")
	f.StringVar(&in.Query, "query", "", "added to every request's query, such as api-version=2024-10-21")
	f.Uint32Var(&in.Concurrency, "concurrency", 0, "most requests at once from one data node; 0 = as the node measures")
	f.StringVar(&in.Dedicated, "dedicated", "", "org, by id or name, that alone may use it")
	f.Var(&headerFlag{list: &in.Headers}, "header", "NAME=VALUE sent with every request; may be repeated; never a credential")
}

// headerFlag reads NAME=VALUE, again and again.
type headerFlag struct{ list *[]api.Header }

func (h *headerFlag) String() string { return "" }
func (h *headerFlag) Type() string   { return "NAME=VALUE" }

func (h *headerFlag) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return fmt.Errorf("%q is not NAME=VALUE", text)
	}
	*h.list = append(*h.list, api.Header{Name: name, Value: value})
	return nil
}

// dedicatedTo replaces an org's name by its id.
func dedicatedTo(ctx context.Context, c *adminclient.Client, org *string) error {
	if *org == "" {
		return nil
	}
	o, err := orgRef(ctx, c, *org)
	if err != nil {
		return err
	}
	*org = o.ID
	return nil
}

// readCredential reads the file, or stdin for "-"; nil for "".
func (t *tool) readCredential(file string) (*string, error) {
	var b []byte
	var err error
	switch file {
	case "":
		return nil, nil
	case "-":
		b, err = io.ReadAll(io.LimitReader(t.Env.Stdin, 64<<10))
	default:
		b, err = os.ReadFile(filepath.Clean(file))
	}
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	text := strings.TrimSpace(string(b))
	return &text, nil
}

func (t *tool) upstreamCommand() *cobra.Command {
	var in api.UpstreamInput
	var file string
	create := t.Command("create NAME", "create an upstream", "  ringmain upstream create openai-eu --provider openai --region eu-fra \\\n    --base-url https://api.openai.com --credential-file openai.key \\\n    --retention 30d --prompt-cache memory --contract $(sha256sum <dpa.pdf | cut -c-64) --dated 2026-05-01", func(ctx context.Context, c *adminclient.Client, args []string) error {
		var err error
		if in.Credential, err = t.readCredential(file); err != nil {
			return err
		}
		if err := dedicatedTo(ctx, c, &in.Dedicated); err != nil {
			return err
		}
		in.Name = args[0]
		return t.showUpstream(c.CreateUpstream(ctx, in))
	})
	upstreamFlags(create.Flags(), &in, &file)
	var update *cobra.Command
	var given api.UpstreamInput
	update = t.Command("update UPSTREAM", "change an upstream", "  ringmain upstream update openai-eu --disabled\n  ringmain upstream update openai-eu --credential-file new.key", func(ctx context.Context, c *adminclient.Client, args []string) error {
		old, err := c.GetUpstream(ctx, args[0])
		if err != nil {
			return err
		}
		next, f := old.UpstreamInput, update.Flags()
		if next.Credential, err = t.readCredential(file); err != nil {
			return err
		}
		for name, field := range map[string]struct{ to, from *string }{
			"provider": {&next.Provider, &given.Provider}, "region": {&next.Region, &given.Region}, "dialect": {&next.Dialect, &given.Dialect},
			"base-url": {&next.BaseURL, &given.BaseURL}, "auth": {&next.Auth, &given.Auth}, "retention": {&next.Terms.Retention, &given.Terms.Retention},
			"prompt-cache": {&next.Terms.PromptCache, &given.Terms.PromptCache}, "training": {&next.Terms.Training, &given.Terms.Training},
			"contract": {&next.Terms.Contract, &given.Terms.Contract}, "dated": {&next.Terms.Dated, &given.Terms.Dated},
		} {
			set(f, name, field.to, *field.from)
		}
		set(f, "baa", &next.Terms.BAA, given.Terms.BAA)
		set(f, "simulated", &next.Simulated, given.Simulated)
		set(f, "disabled", &next.Disabled, given.Disabled)
		if err := dedicatedTo(ctx, c, &given.Dedicated); err != nil {
			return err
		}
		set(f, "endpoint", &next.Endpoints, given.Endpoints)
		set(f, "header", &next.Headers, given.Headers)
		set(f, "query", &next.Query, given.Query)
		set(f, "concurrency", &next.Concurrency, given.Concurrency)
		set(f, "dedicated", &next.Dedicated, given.Dedicated)
		return t.showUpstream(c.UpdateUpstream(ctx, old.Meta, next))
	})
	upstreamFlags(update.Flags(), &given, &file)
	return cli.Group("upstream", "manage providers' endpoints", "  ringmain upstream list\n  ringmain upstream update openai-eu --disabled", create, update, t.revokeCredentialCommand(),
		t.Command("list", "list upstreams", "  ringmain upstream list", func(ctx context.Context, c *adminclient.Client, _ []string) error {
			list, err := c.Upstreams(ctx)
			if err != nil {
				return err
			}
			return cli.Show(t.Tool, list, false, upstreamColumns)
		}),
		t.Command("get UPSTREAM", "show an upstream, by name or id, without its credential", "  ringmain upstream get openai-eu", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.showUpstream(c.GetUpstream(ctx, args[0]))
		}),
		t.Command("delete UPSTREAM", "delete an upstream that no route uses", "  ringmain upstream delete openai-eu", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.Deleted(c.Delete(ctx, "upstreams", args[0]), args[0])
		}))
}

var routeColumns = []cli.Column[api.Route]{
	cli.Col("MODEL", func(r api.Route) string { return r.Model }),
	cli.Col("TARGETS", func(r api.Route) string {
		var all []string
		for _, t := range r.Targets {
			all = append(all, t.Upstream+"="+t.Model)
		}
		return strings.Join(all, " ")
	}),
	cli.Col("FALLBACKS", func(r api.Route) string {
		all := slices.Clone(r.Fallbacks)
		if r.ContextFallback != "" {
			all = append(all, r.ContextFallback+" (long prompts)")
		}
		return strings.Join(all, " ")
	}),
	cli.Col("DETERMINISTIC", func(r api.Route) string { return cli.YesNo(r.Deterministic) }),
	cli.Col("ID", func(r api.Route) string { return r.ID }),
}

func (t *tool) showRoute(r *api.Route, err error) error { return show(t, r, err, routeColumns) }

// parseTarget reads UPSTREAM=MODEL[,order=N][,weight=N].
func parseTarget(text string) (api.Target, error) {
	wrong := func(err error) error {
		return cli.Usagef("--target %q: want UPSTREAM=MODEL[,order=N][,weight=N] (%v)", text, err)
	}
	first, rest, more := strings.Cut(text, ",")
	upstream, model, ok := strings.Cut(first, "=")
	if !ok || upstream == "" || model == "" {
		return api.Target{}, wrong(fmt.Errorf("%q is not UPSTREAM=MODEL", first))
	}
	target := api.Target{Upstream: upstream, Model: model}
	if !more {
		return target, nil
	}
	pairs, err := parsePairs(rest)
	if err != nil {
		return api.Target{}, wrong(err)
	}
	for k, v := range pairs {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			return api.Target{}, wrong(err)
		}
		switch k {
		case "order":
			target.Order = uint32(n)
		case "weight":
			target.Weight = uint32(n)
		default:
			return api.Target{}, wrong(fmt.Errorf("%q is unknown", k))
		}
	}
	return target, nil
}

func parseTargets(texts []string) ([]api.Target, error) {
	var all []api.Target
	for _, text := range texts {
		target, err := parseTarget(text)
		if err != nil {
			return nil, err
		}
		all = append(all, target)
	}
	return all, nil
}

func (t *tool) routeCommand() *cobra.Command {
	var targets []string
	var in api.RouteInput
	const flag = "one upstream and the model's name there, UPSTREAM=MODEL[,order=N][,weight=N]; lower orders first; may be repeated"
	create := t.Command("create MODEL", "create the route of a model", "  ringmain route create gpt-5 --target openai-us=gpt-5 --target openai-eu=gpt-5,order=1\n  ringmain route create gpt-5 --target openai-us=gpt-5 --fallback gpt-5-mini", func(ctx context.Context, c *adminclient.Client, args []string) error {
		list, err := parseTargets(targets)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return cli.Usagef("at least one --target is needed")
		}
		in.Model, in.Targets = args[0], list
		return t.showRoute(c.CreateRoute(ctx, in))
	})
	var update *cobra.Command
	update = t.Command("update ROUTE", "change the targets or fallbacks of a route", "  ringmain route update gpt-5 --target openai-eu=gpt-5\n  ringmain route update gpt-5 --context-fallback gpt-5-long", func(ctx context.Context, c *adminclient.Client, args []string) error {
		f := update.Flags()
		list, err := parseTargets(targets)
		if err != nil {
			return err
		}
		if len(list) == 0 && !f.Changed("fallback") && !f.Changed("context-fallback") && !f.Changed("deterministic") {
			return cli.Usagef("nothing to change: at least one --target is needed, or --fallback, --context-fallback or --deterministic")
		}
		old, err := c.GetRoute(ctx, args[0])
		if err != nil {
			return err
		}
		next := old.RouteInput
		if len(list) > 0 {
			next.Targets = list
		}
		set(f, "fallback", &next.Fallbacks, in.Fallbacks)
		set(f, "context-fallback", &next.ContextFallback, in.ContextFallback)
		set(f, "deterministic", &next.Deterministic, in.Deterministic)
		return t.showRoute(c.UpdateRoute(ctx, old.Meta, next))
	})
	for _, c := range []*cobra.Command{create, update} {
		c.Flags().StringArrayVar(&targets, "target", nil, flag)
		c.Flags().StringSliceVar(&in.Fallbacks, "fallback", nil, "model of another route, asked when every upstream of this one failed; may be repeated")
		c.Flags().StringVar(&in.ContextFallback, "context-fallback", "", "model of another route, for prompts that are too long for this one")
		c.Flags().BoolVar(&in.Deterministic, "deterministic", false, "equal requests get equal answers, byte for byte: broken streams may be continued elsewhere")
	}
	return cli.Group("route", "manage which upstreams serve a model", "  ringmain route list", create, update,
		t.Command("list", "list routes", "  ringmain route list", func(ctx context.Context, c *adminclient.Client, _ []string) error {
			list, err := c.Routes(ctx)
			if err != nil {
				return err
			}
			return cli.Show(t.Tool, list, false, routeColumns)
		}),
		t.Command("get ROUTE", "show a route, by model or id", "  ringmain route get gpt-5", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.showRoute(c.GetRoute(ctx, args[0]))
		}),
		t.Command("delete ROUTE", "delete a route: its model is unknown then", "  ringmain route delete gpt-5", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.Deleted(c.Delete(ctx, "routes", args[0]), args[0])
		}))
}

func (t *tool) revokeCredentialCommand() *cobra.Command {
	return t.Command("revoke-credential UPSTREAM", "call no upstream with this one's credential any more, for good", "  ringmain upstream revoke-credential openai-eu\n  ringmain upstream update openai-eu --credential-file new.key", func(ctx context.Context, c *adminclient.Client, args []string) error {
		return t.ShowRevoked(c.RevokeCredential(ctx, args[0]))
	})
}
