package manage

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/cmd/ringmain/internal/declare"
)

const applyHelp = `Make the cluster hold what a manifest declares. The manifest is YAML, in one or several
documents, with lists of regions, upstreams, routes, orgs (which may contain projects),
projects and policies; they refer to each other by name:

  upstreams:
    - name: openai-eu
      provider: openai
      region: eu-fra
      dialect: openai
      base_url: https://api.openai.com
      auth: bearer
      credential_env: OPENAI_KEY        # or credential_file, relative to the manifest
      terms: {retention: 30d, prompt_cache: memory, training: never, contract: <sha256>, dated: "2026-05-01"}
  routes:
    - model: gpt-5
      targets:
        - {upstream: openai-eu, model: gpt-5}
  orgs:
    - name: Acme
      state: verified
      jurisdiction: eu
      projects:
        - name: web
  policies:
    - org: Acme
      project: web
      models: [gpt-5]

Spelling, types and the names that records refer to are checked before anything is written;
the servers check the rest, record by record, and the first that they refuse ends it: mend it
and apply again. The plan marks what is to be created (+),
updated (~) and left alone (=). Records that the manifest does not name stay as they are; so
do an org's plan and state, a region's state and a credential where the manifest leaves them
out. Every other field that is left out takes its default. Applying again changes nothing.`

func (t *tool) applyCommand() *cobra.Command {
	var file string
	var dryRun, yes bool
	c := t.Command("apply", "make the cluster hold what a manifest declares",
		"  ringmain apply -f manifest.yaml --dry-run\n  ringmain apply -f manifest.yaml --yes\n  generate | ringmain apply -f - --yes",
		func(ctx context.Context, c *adminclient.Client, _ []string) error {
			if file == "" {
				return cli.Usagef("-f is needed: a manifest, or - for stdin")
			}
			opts := declare.Options{File: file, Dir: filepath.Dir(file), Getenv: t.Env.Getenv, DryRun: dryRun, Progress: t.Env.Stderr}
			text, err := t.readManifest(file)
			if err != nil {
				return err
			}
			shown := false
			if !dryRun && !yes {
				if !t.terminal() || file == "-" {
					return cli.Usagef("nobody can be asked here: give --yes to apply, or --dry-run to see the plan")
				}
				opts.Confirm = func(p declare.Plan) (bool, error) {
					shown = true
					if err := t.showPlan(p); err != nil {
						return false, err
					}
					return t.confirm()
				}
			}
			plan, err := declare.Apply(ctx, c, text, opts)
			for _, w := range plan.Warnings {
				t.Say("warning: %s", w)
			}
			if plan.Steps != nil && !shown {
				if err := t.showPlan(plan); err != nil {
					return err
				}
			}
			if err != nil {
				return err
			}
			switch {
			case dryRun:
				t.Say("dry run: %s", plan.Summary())
			case !plan.Applied:
				t.Say("nothing was changed")
			default:
				t.Say("%s", plan.Summary())
			}
			return nil
		})
	c.Long = applyHelp
	c.Flags().StringVarP(&file, "file", "f", "", "the manifest; - = stdin")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show the plan and change nothing")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask before changing anything")
	return c
}

func (t *tool) readManifest(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(t.Env.Stdin)
	}
	return os.ReadFile(filepath.Clean(file))
}

// terminal reports whether somebody can be asked.
func (t *tool) terminal() bool {
	f, ok := t.Env.Stdin.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (t *tool) confirm() (bool, error) {
	_, _ = fmt.Fprint(t.Env.Stderr, "apply this? [y/N] ") // the answer counts, not the question
	answer, err := bufio.NewReader(t.Env.Stdin).ReadString('\n')
	if err != nil && answer == "" {
		return false, nil //nolint:nilerr // an end of input is a no
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true, nil
	}
	return false, nil
}

// showPlan prints the plan to stdout.
func (t *tool) showPlan(p declare.Plan) error {
	if !t.Table() {
		return t.Encode(p)
	}
	var b strings.Builder
	for _, s := range p.Steps {
		mark := map[declare.Action]string{declare.ActionCreate: "+", declare.ActionUpdate: "~", declare.ActionNone: "="}[s.Action]
		fmt.Fprintf(&b, "%s %s %s\n", mark, s.Kind, cli.Clean(s.Name))
		for _, d := range s.Diff {
			fmt.Fprintf(&b, "    %s\n", cli.Clean(d))
		}
	}
	_, err := io.WriteString(t.Env.Stdout, b.String())
	return err
}
