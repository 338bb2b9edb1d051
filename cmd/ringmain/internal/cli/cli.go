// Package manage holds the management commands of the ringmain program and
// what they are made of: a client of /admin/v1 and the engine behind
// `ringmain apply`. Data goes to stdout, talk to stderr, never a colour code.
// It knows the cluster by its API only, and the files of stopped nodes and
// backups by the rooms that they belong to.
package manage

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"ringmain/controlplane/admin/api"
	"ringmain/internal/clusterfile"
)

// Env is what the commands get from their process.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
}

// usageError is a mistake in how a command was called.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// IsUsage reports an error that should end the program with status 2.
func IsUsage(err error) bool {
	var u *usageError
	return errors.As(err, &u)
}

// defaultCluster is the file that is used if nothing says where the cluster is.
var defaultCluster = filepath.Join(".ringmain", "dev", "cluster.json")

const connectionHelp = `The cluster is found by --server, --token-file and --ca-file (or RINGMAIN_SERVER,
RINGMAIN_TOKEN_FILE and RINGMAIN_CA_FILE), or by --cluster, a cluster.json; without
any, by .ringmain/dev/cluster.json, which ` + "`make run`" + ` writes.`

// tool is what one command run shares.
type tool struct {
	env     Env
	servers []string
	token   string // file
	ca      string // file
	cluster string // file
	output  string
	ack     string // acknowledgement that writes wait for; "" = the operation's own
}

// Commands gives the management commands.
func Commands(env Env) []*cobra.Command {
	t := &tool{env: env}
	list := []*cobra.Command{
		t.orgCommand(), t.projectCommand(), t.keyCommand(), t.upstreamCommand(), t.routeCommand(),
		t.policyCommand(), t.regionCommand(), t.shardCommand(), t.quarantineCommand(), t.residencyCommand(), t.nodeCommand(), t.rolloutCommand(), t.tokenCommand(), t.backupCommand(), t.statusCommand(), t.applyCommand(),
	}
	for _, c := range list {
		f := c.PersistentFlags()
		f.StringSliceVar(&t.servers, "server", nil, "admin address of a control node or region, https://host:port; may be repeated")
		f.StringVar(&t.token, "token-file", "", "file that holds the admin token")
		f.StringVar(&t.ca, "ca-file", "", "PEM file of the authority that vouches for the servers")
		f.StringVar(&t.cluster, "cluster", "", "cluster.json of a development cluster")
		f.StringVar(&t.ack, "acknowledge", "", "what a change waits for: region, or multi-region (default for keys and policies)")
		f.StringVarP(&t.output, "output", "o", "table", "table, json or yaml")
		c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err.Error()} })
		if c.Long == "" {
			c.Long = strings.ToUpper(c.Short[:1]) + c.Short[1:] + "."
		}
		c.Long += "\n\n" + connectionHelp
	}
	return list
}

// group makes a command that only has subcommands.
func group(use, short, example string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Example: example,
		Args: cobra.ArbitraryArgs, // so that RunE can word the error
		RunE: func(c *cobra.Command, args []string) error {
			var names []string
			for _, s := range c.Commands() {
				if s.IsAvailableCommand() {
					names = append(names, s.Name())
				}
			}
			if len(args) > 0 {
				return usagef("unknown command %q for %q; there are: %s", args[0], c.CommandPath(), strings.Join(names, ", "))
			}
			return usagef("%q needs one of: %s", c.CommandPath(), strings.Join(names, ", "))
		},
	}
	c.AddCommand(subs...)
	return c
}

// command makes a subcommand that takes exactly the arguments its use names
// after the first word, and checks --output before it does anything.
func (t *tool) command(use, short, example string, run func(context.Context, *Client, []string) error) *cobra.Command {
	want := strings.Fields(use)[1:]
	return &cobra.Command{
		Use: use, Short: short, Example: example,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != len(want) {
				return usagef("%q takes %d arguments (%s), not %d", c.CommandPath(), len(want), use, len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if err := t.checkOutput(); err != nil {
				return err
			}
			client, err := t.connect()
			if err != nil {
				return err
			}
			defer client.Close()
			return run(c.Context(), client, args)
		},
	}
}

// connect makes a client of what flags, environment and files say.
func (t *tool) connect() (*Client, error) {
	cfg, err := t.clientConfig()
	if err != nil {
		return nil, err
	}
	return NewClient(cfg)
}

func (t *tool) clientConfig() (ClientConfig, error) {
	servers := t.servers
	if len(servers) == 0 && t.env.Getenv("RINGMAIN_SERVER") != "" {
		servers = strings.Split(t.env.Getenv("RINGMAIN_SERVER"), ",")
	}
	token := cmp.Or(t.token, t.env.Getenv("RINGMAIN_TOKEN_FILE"))
	ca := cmp.Or(t.ca, t.env.Getenv("RINGMAIN_CA_FILE"))
	if len(servers) == 0 || t.cluster != "" {
		file := cmp.Or(t.cluster, defaultCluster)
		c, err := clusterfile.Read(file)
		if errors.Is(err, os.ErrNotExist) && t.cluster == "" {
			return ClientConfig{}, usagef("which cluster? Give --server, or --cluster, or start one here with `make run`")
		}
		if err != nil {
			return ClientConfig{}, err
		}
		token, ca = cmp.Or(token, c.AdminTokenFile), cmp.Or(ca, c.CAFile)
		if len(servers) == 0 {
			for _, r := range c.Regions {
				servers = append(servers, r.Admin)
			}
		}
	}
	if token == "" {
		return ClientConfig{}, usagef("no admin token: give --token-file or RINGMAIN_TOKEN_FILE")
	}
	if t.ack != "" && t.ack != api.AcknowledgedRegion && t.ack != api.AcknowledgedMultiRegion {
		return ClientConfig{}, usagef("--acknowledge %q: use region or multi-region", t.ack)
	}
	cfg := ClientConfig{Servers: servers, Acknowledge: t.ack, Notice: func(text string) { t.say("%s", text) }}
	b, err := os.ReadFile(filepath.Clean(token))
	if err != nil {
		return ClientConfig{}, fmt.Errorf("admin token: %w", err)
	}
	if cfg.Token = string(bytes.TrimSpace(b)); cfg.Token == "" {
		return ClientConfig{}, fmt.Errorf("admin token: %s is empty", token)
	}
	if ca != "" {
		b, err := os.ReadFile(filepath.Clean(ca))
		if err != nil {
			return ClientConfig{}, fmt.Errorf("authority: %w", err)
		}
		cfg.Roots = x509.NewCertPool()
		if !cfg.Roots.AppendCertsFromPEM(b) {
			return ClientConfig{}, fmt.Errorf("authority: %s holds no PEM certificate", ca)
		}
	}
	return cfg, nil
}

// say writes talk to stderr.
func (t *tool) say(format string, args ...any) {
	_, _ = fmt.Fprintf(t.env.Stderr, format+"\n", args...) // nowhere else to say it
}
