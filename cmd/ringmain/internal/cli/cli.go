// Package cli is what every management command is made of: finding the cluster,
// checking arguments, printing what came of it. Data goes to stdout, talk to
// stderr, never a colour code. It knows no command.
package cli

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
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/adminclient"
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

// Usagef is a mistake in how a command was called.
func Usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

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

// Tool is what one command run shares.
type Tool struct {
	Env     Env
	servers []string
	token   string // file
	ca      string // file
	cluster string // file
	output  string
	ack     string // acknowledgement that writes wait for; "" = the operation's own
}

// Group makes a command that only has subcommands.
func Group(use, short, example string, subs ...*cobra.Command) *cobra.Command {
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
				return Usagef("unknown command %q for %q; there are: %s", args[0], c.CommandPath(), strings.Join(names, ", "))
			}
			return Usagef("%q needs one of: %s", c.CommandPath(), strings.Join(names, ", "))
		},
	}
	c.AddCommand(subs...)
	return c
}

// Command makes a subcommand that asks the cluster: see Local.
func (t *Tool) Command(use, short, example string, run func(context.Context, *adminclient.Client, []string) error) *cobra.Command {
	return t.Local(use, short, example, func(ctx context.Context, args []string) error {
		client, err := t.connect()
		if err != nil {
			return err
		}
		defer client.Close()
		return run(ctx, client, args)
	})
}

// connect makes a client of what flags, environment and files say.
func (t *Tool) connect() (*adminclient.Client, error) {
	cfg, err := t.ClientConfig()
	if err != nil {
		return nil, err
	}
	return adminclient.New(cfg)
}

// ClientConfig is what flags, environment and files say of the cluster.
func (t *Tool) ClientConfig() (adminclient.Config, error) {
	servers := t.servers
	if len(servers) == 0 && t.Env.Getenv("RINGMAIN_SERVER") != "" {
		servers = strings.Split(t.Env.Getenv("RINGMAIN_SERVER"), ",")
	}
	token := cmp.Or(t.token, t.Env.Getenv("RINGMAIN_TOKEN_FILE"))
	ca := cmp.Or(t.ca, t.Env.Getenv("RINGMAIN_CA_FILE"))
	if len(servers) == 0 || t.cluster != "" {
		file := cmp.Or(t.cluster, defaultCluster)
		c, err := clusterfile.Read(file)
		if errors.Is(err, os.ErrNotExist) && t.cluster == "" {
			return adminclient.Config{}, Usagef("which cluster? Give --server, or --cluster, or start one here with `make run`")
		}
		if err != nil {
			return adminclient.Config{}, err
		}
		token, ca = cmp.Or(token, c.AdminTokenFile), cmp.Or(ca, c.CAFile)
		if len(servers) == 0 {
			for _, r := range c.Regions {
				servers = append(servers, r.Admin)
			}
		}
	}
	if token == "" {
		return adminclient.Config{}, Usagef("no admin token: give --token-file or RINGMAIN_TOKEN_FILE")
	}
	if t.ack != "" && t.ack != api.AcknowledgedRegion && t.ack != api.AcknowledgedMultiRegion {
		return adminclient.Config{}, Usagef("--acknowledge %q: use region or multi-region", t.ack)
	}
	cfg := adminclient.Config{Servers: servers, Acknowledge: t.ack, Notice: func(text string) { t.Say("%s", text) }}
	b, err := os.ReadFile(filepath.Clean(token))
	if err != nil {
		return adminclient.Config{}, fmt.Errorf("admin token: %w", err)
	}
	if cfg.Token = string(bytes.TrimSpace(b)); cfg.Token == "" {
		return adminclient.Config{}, fmt.Errorf("admin token: %s is empty", token)
	}
	if ca != "" {
		b, err := os.ReadFile(filepath.Clean(ca))
		if err != nil {
			return adminclient.Config{}, fmt.Errorf("authority: %w", err)
		}
		cfg.Roots = x509.NewCertPool()
		if !cfg.Roots.AppendCertsFromPEM(b) {
			return adminclient.Config{}, fmt.Errorf("authority: %s holds no PEM certificate", ca)
		}
	}
	return cfg, nil
}

// Say writes talk to stderr.
func (t *Tool) Say(format string, args ...any) {
	_, _ = fmt.Fprintf(t.Env.Stderr, format+"\n", args...) // nowhere else to say it
}

// Progress gives a function that says how far something of many steps is, once a
// second at most; of is 0 if nobody knows how many there are.
func (t *Tool) Progress(what string, of int) func(done int) {
	last := time.Now()
	return func(done int) {
		if now := time.Now(); now.Sub(last) >= time.Second {
			far := strconv.Itoa(done)
			if of > 0 {
				far += " of " + strconv.Itoa(of)
			}
			t.Say("%s %s", far, what)
			last = now
		}
	}
}

// Local makes a subcommand that takes exactly the arguments its use names after
// the first word, and checks --output before it does anything.
func (t *Tool) Local(use, short, example string, run func(context.Context, []string) error) *cobra.Command {
	want := strings.Fields(use)[1:]
	return &cobra.Command{
		Use: use, Short: short, Example: example,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != len(want) {
				noun := "arguments"
				if len(want) == 1 {
					noun = "argument"
				}
				return Usagef("%q takes %d %s (%s), not %d", c.CommandPath(), len(want), noun, use, len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if err := t.checkOutput(); err != nil {
				return err
			}
			return run(c.Context(), args)
		},
	}
}

// Bind gives commands the flags that all of them have.
func (t *Tool) Bind(list []*cobra.Command) {
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
}
