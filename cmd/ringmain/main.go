// Command ringmain is the node daemon, the development cluster and the
// management commands in one binary.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/cmd/ringmain/internal/config"
	"ringmain/cmd/ringmain/internal/dev"
	"ringmain/cmd/ringmain/internal/manage"
	"ringmain/cmd/ringmain/internal/node"
	"ringmain/cmd/ringmain/internal/receipt"
	"ringmain/dataplane/keeper"
)

var version = "dev" // set by the linker

func main() {
	// A worker is executed by its keeper already confined: nothing but its own
	// code may run before it, so it does not go through the command line below.
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case node.ConfineCommand:
			fmt.Fprintln(os.Stderr, keeper.Confine(os.Args[2:])) // returns only when it failed
			os.Exit(1)
		case node.WorkerCommand:
			os.Exit(node.Worker(version))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// usageError is a mistake in how the command was called: exit 2.
type usageError struct{ error }

// run is main without the process around it: 0 done, 1 failed, 2 called wrongly.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "ringmain",
		Short: "the infrastructure under a multi-region AI inference gateway",
		Example: `  ringmain dev                     three regions on this machine
  ringmain status                  what every region says of itself
  ringmain key create --help       an API key for a project
  ringmain apply -f manifest.yaml  models, upstreams, orgs from a file`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(devCommand(stdout, stderr), controlCommand(stderr), dataCommand(stderr), configCommand(stdout), versionCommand(stdout),
		receipt.Command(receipt.Env{Stdin: os.Stdin, Stdout: stdout}))
	root.AddCommand(manage.Commands(cli.Env{Stdout: stdout, Stderr: stderr, Getenv: os.Getenv, Stdin: os.Stdin})...)
	arrange(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(stderr, "ringmain:", err) // nowhere else to say it
	var usage usageError
	if errors.As(err, &usage) || cli.IsUsage(err) || receipt.IsUsage(err) || strings.HasPrefix(err.Error(), "unknown command") {
		return 2
	}
	return 1
}

// groups are the commands as somebody looks for one.
var groups = []struct {
	title    string
	commands []string
}{
	{"Run it:", []string{"dev", "control", "data", "config", "version", "help"}},
	{"See how it is:", []string{"status", "residency", "rollout", "receipt"}},
	{"Customers:", []string{"org", "project", "key", "policy"}},
	{"Models and providers:", []string{"apply", "upstream", "route"}},
	{"Regions, nodes and operators:", []string{"region", "shard", "quarantine", "node", "backup", "token"}},
}

func arrange(root *cobra.Command) {
	of := map[string]string{}
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
		for _, name := range g.commands {
			of[name] = g.title
		}
	}
	root.SetHelpCommandGroupID(of["help"])
	for _, c := range root.Commands() {
		c.GroupID = of[c.Name()]
	}
}

func devCommand(stdout, stderr io.Writer) *cobra.Command {
	opts := dev.Options{Stdout: stdout, Stderr: stderr, Now: time.Now}
	var regions string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "run several regions on this machine, each node a process of its own",
		Example: `  ringmain dev
  ringmain dev --regions us-east:us,eu-fra:eu,eu-ams:eu,ap-sg:apac --data 3
  ringmain dev --fresh --dir /tmp/ring --port 9440`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if opts.Shape.Regions, err = dev.ParseRegions(regions); err != nil {
				return usageError{err}
			}
			if f, ok := stdout.(*os.File); ok {
				opts.Terminal = term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
			}
			// A terminal that goes takes the cluster with it. To a node SIGHUP means
			// to look at its certificates.
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
			defer stop()
			return dev.Run(ctx, opts)
		},
	}
	f := cmd.Flags()
	f.StringVar(&regions, "regions", "us-east:us,eu-fra:eu,ap-sg:apac", "name:jurisdiction of each region; the first is home of routes and upstreams")
	f.IntVar(&opts.Shape.Control, "control", 3, "control nodes per region")
	f.IntVar(&opts.Shape.Data, "data", 2, "data nodes per region")
	f.IntVar(&opts.Shape.Port, "port", 8440, "the front door's port; all other ports follow it")
	f.StringVar(&opts.Dir, "dir", filepath.Join(".ringmain", "dev"), "where certificates, state and logs are kept")
	f.StringVar(&opts.SeedFile, "seed", "", "manifest to apply after the built-in one")
	f.StringVar(&opts.UpstreamCA, "upstream-ca", "", "PEM file of roots for upstreams beside the simulated ones")
	f.BoolVar(&opts.Fresh, "fresh", false, "start anew: remove what --dir holds first")
	return cmd
}

func controlCommand(stderr io.Writer) *cobra.Command {
	return nodeCommand("control", "run a control node", stderr, config.Control, node.RunControl)
}

func dataCommand(stderr io.Writer) *cobra.Command {
	return nodeCommand("data", "run a data node: its keeper, which starts its worker", stderr, config.Data, node.RunData)
}

func nodeCommand(use, short string, stderr io.Writer, role config.Role, run func(context.Context, node.Env) error) *cobra.Command {
	var file, dataDir, logLevel string
	cmd := &cobra.Command{
		Use:   use + " --config FILE",
		Short: short,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file, os.Environ())
			if err != nil {
				return usageError{err}
			}
			if dataDir != "" {
				cfg.DataDir = dataDir
			}
			if logLevel != "" {
				cfg.LogLevel = logLevel
			}
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			if cfg.Role != role {
				return usageError{fmt.Errorf("%s configures a %s node: run `ringmain %s`", file, cfg.Role, cfg.Role)}
			}
			return node.Run(cmd.Context(), node.Env{Config: cfg, Version: version, Stderr: stderr, Lifeline: os.Getenv("RINGMAIN_LIFELINE")}, run)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the node's configuration file")
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "overrides data_dir")
	cmd.Flags().StringVar(&logLevel, "log-level", "", "overrides log_level")
	_ = cmd.MarkFlagRequired("config") // fails only for a flag that does not exist
	return cmd
}

func configCommand(stdout io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "work on configuration files",
		Args: cobra.ArbitraryArgs, // so that RunE can word the error
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q; there is: validate", args[0], "ringmain config")}
			}
			return usageError{fmt.Errorf("%q needs one of: validate", "ringmain config")}
		},
	}
	var output string
	validate := &cobra.Command{
		Use:   "validate FILE",
		Short: "check a node's configuration file, and the documents it names; mistakes are named with their line",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("config validate: want one file")}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			asJSON, err := isJSON(output)
			if err != nil {
				return err
			}
			cfg, err := config.Load(args[0], os.Environ())
			if err != nil {
				return err
			}
			if _, err := node.ReadDocuments(cfg, time.Now()); err != nil {
				return fmt.Errorf("configuration %s: %w", args[0], config.Locate(args[0], err))
			}
			if asJSON {
				return json.NewEncoder(stdout).Encode(map[string]any{
					"file": args[0], "valid": true, "role": cfg.Role, "node": cfg.Node, "region": cfg.Region, "cluster": cfg.Cluster,
				})
			}
			_, err = fmt.Fprintf(stdout, "%s: valid: %s node %s of region %s in cluster %s\n", args[0], cfg.Role, cfg.Node, cfg.Region, cfg.Cluster)
			return err
		},
	}
	outputFlag(validate, &output)
	cmd.AddCommand(validate)
	return cmd
}

func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "table or json")
}

func isJSON(output string) (bool, error) {
	if output != "json" && output != "table" {
		return false, usageError{fmt.Errorf("--output %q: use table or json", output)}
	}
	return output == "json", nil
}

func versionCommand(stdout io.Writer) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			asJSON, err := isJSON(output)
			if err != nil {
				return err
			}
			format := "ringmain %s (%s, %s/%s)\n"
			if asJSON {
				format = `{"version":%q,"go":%q,"os":%q,"arch":%q}` + "\n"
			}
			_, err = fmt.Fprintf(stdout, format, version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s: unexpected argument %q", cmd.CommandPath(), args[0])}
	}
	return nil
}
