// Command drills rehearses failures on a cluster and reports what clients got.
// It is wiring only: what a drill is and does lives in package drills.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ringmain/drills"
	"ringmain/drills/report"
	"ringmain/drills/scenarios"
)

// Exit codes: they tell a script what a run was worth.
const (
	exitMet          = 0
	exitBroken       = 1
	exitUsage        = 2
	exitMissed       = 3
	exitInconclusive = 4
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// usageError is a mistake in the command line or in a scenario file.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	code := exitMet
	root := &cobra.Command{
		Use: "drills", Short: "rehearse failures and measure what clients get",
		Long: "Rehearse failures and measure what clients get.\n\n" +
			"Exit: 0 objective met, 1 the run broke, 2 usage, 3 objective missed, 4 inconclusive (the fault or the load is not proven).",
		SilenceUsage: true, SilenceErrors: true, CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(runCommand(&code, stdout, stderr), listCommand(stdout), versionCommand(stdout))
	err := root.ExecuteContext(ctx)
	if err == nil {
		return code
	}
	fmt.Fprintf(stderr, "drills: %v\n", err)
	var usage usageError
	// cobra's own complaints about commands have no type.
	if errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command") {
		return exitUsage
	}
	return exitBroken
}

// arguments wraps cobra's argument checks, so that they count as usage.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w\nusage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

func format(output string) error {
	if output != "table" && output != "json" {
		return usageError{fmt.Errorf("-o %s: want table or json", output)}
	}
	return nil
}

func runCommand(code *int, stdout, stderr io.Writer) *cobra.Command {
	var clusterFile, region, output, out string
	cmd := &cobra.Command{
		Use:   "run SCENARIO --cluster FILE --region NAME",
		Short: "run one scenario; SCENARIO is a file or a name from `drills list`",
		Args:  arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := format(output); err != nil {
				return err
			}
			if region == "" {
				return usageError{errors.New("--region: name the region to lose")}
			}
			scenario, err := load(args[0])
			if err != nil {
				return usageError{err}
			}
			began := time.Now()
			result, err := drills.Run(cmd.Context(), drills.Options{
				Scenario: scenario, ClusterFile: clusterFile, Region: region,
				Progress: func(f string, a ...any) {
					fmt.Fprintf(stderr, "%5.1f s  "+f+"\n", append([]any{time.Since(began).Seconds()}, a...)...)
				},
			})
			if errors.Is(err, drills.ErrUnknownRegion) {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			if out == "" {
				out = filepath.Join(filepath.Dir(clusterFile), "drills", result.Started.Format("20060102T150405Z")+"-"+result.Drill+"-"+region)
			}
			if err := result.WriteFiles(out); err != nil {
				return err
			}
			switch result.Verdict {
			case report.Missed:
				*code = exitMissed
			case report.Inconclusive:
				*code = exitInconclusive
			}
			if output == "json" {
				err = writeJSON(stdout, result)
			} else {
				err = result.Summary(stdout)
			}
			fmt.Fprintf(stderr, "report: %s\n", filepath.Join(out, "report.md"))
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&clusterFile, "cluster", ".ringmain/dev/cluster.json", "cluster file that ringmain dev writes")
	flags.StringVar(&region, "region", "", "region to lose")
	flags.StringVarP(&output, "output", "o", "table", "table or json, on stdout")
	flags.StringVar(&out, "out", "", "directory for report.json, report.md and report.svg (default: drills/<time>-<drill>-<region> beside the cluster file)")
	return cmd
}

// load reads a scenario file, or one that ships with the tool.
func load(name string) (*drills.Scenario, error) {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(name, `/\`) {
		name = strings.TrimSuffix(name, ".yaml") + ".yaml"
		text, err = scenarios.Files.ReadFile(name)
	}
	if err != nil {
		return nil, fmt.Errorf("no scenario %s: give a file, or a name from `drills list`: %w", name, err)
	}
	return drills.ParseScenario(name, text)
}

func listCommand(stdout io.Writer) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "list", Short: "list the scenarios that ship with the tool", Args: arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if err := format(output); err != nil {
				return err
			}
			type row struct {
				Drill   string `json:"drill"`
				Version int    `json:"version"`
				Title   string `json:"title"`
				Runbook string `json:"runbook"`
			}
			files, err := scenarios.Files.ReadDir(".")
			if err != nil {
				return err
			}
			var rows []row
			for _, f := range files {
				s, err := load(f.Name())
				if err != nil {
					return err
				}
				rows = append(rows, row{s.Drill, s.Version, s.Title, s.Runbook})
			}
			if output == "json" {
				return writeJSON(stdout, rows)
			}
			tw := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(tw, "DRILL\tVERSION\tTITLE\tREHEARSES")
			for _, r := range rows {
				fmt.Fprintf(tw, "%s\t%d\t%s\t%s\n", r.Drill, r.Version, r.Title, r.Runbook)
			}
			return tw.Flush()
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func versionCommand(stdout io.Writer) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "version", Short: "print the version", Args: arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if err := format(output); err != nil {
				return err
			}
			v := map[string]string{"version": "(devel)", "revision": "unknown", "go": runtime.Version()}
			if info, ok := debug.ReadBuildInfo(); ok {
				if info.Main.Version != "" {
					v["version"] = info.Main.Version
				}
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v["revision"] = s.Value
					}
				}
			}
			if output == "json" {
				return writeJSON(stdout, v)
			}
			_, err := fmt.Fprintf(stdout, "drills %s (%s, %s)\n", v["version"], v["revision"], v["go"])
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
