package manage_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/cmd/ringmain/internal/manage"
	"ringmain/internal/clusterfile"
	"ringmain/internal/testkit/controlkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// program runs the commands as the program does.
type program struct {
	t       *testing.T
	dir     string // holds token, ca.pem, cluster.json
	cluster *controlkit.Cluster
	env     map[string]string
	stdin   string
}

// start runs us-east and eu-fra; the commands find them by cluster.json.
func start(t *testing.T, options ...controlkit.Option) *program {
	t.Helper()
	c := &program{t: t, dir: t.TempDir(), cluster: controlkit.Start(t, io.Discard, []string{"us-east:us:2", "eu-fra:eu"}, options...), env: map[string]string{}}
	c.write("token", controlkit.Token+"\n")
	c.write("ca.pem", string(c.cluster.RootPEM))
	file := clusterfile.Cluster{Ready: true, CAFile: c.path("ca.pem"), AdminTokenFile: c.path("token")}
	for _, r := range c.cluster.Regions {
		file.Regions = append(file.Regions, clusterfile.Region{Name: r.Name, Jurisdiction: r.Jurisdiction, Admin: r.Nodes[0].URL})
	}
	if err := file.Write(c.path("cluster.json")); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *program) path(name string) string { return filepath.Join(c.dir, name) }

func (c *program) write(name, text string) string {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return c.path(name)
}

// run gives stdout, stderr and the exit status of `ringmain args...`.
func (c *program) run(args ...string) (stdout, stderr string, status int) {
	c.t.Helper()
	var out, errs bytes.Buffer
	root := &cobra.Command{Use: "ringmain", SilenceErrors: true, SilenceUsage: true}
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(args)
	root.AddCommand(manage.Commands(cli.Env{
		Stdin: strings.NewReader(c.stdin), Stdout: &out, Stderr: &errs, Getenv: func(k string) string { return c.env[k] },
	})...)
	if err := root.ExecuteContext(c.t.Context()); err != nil {
		fmt.Fprintln(&errs, "ringmain:", err)
		status = 1
		if cli.IsUsage(err) {
			status = 2
		}
	}
	if s := out.String() + errs.String(); strings.ContainsRune(s, '\x1b') {
		c.t.Errorf("%v: escape sequences in %q", args, s)
	}
	return out.String(), errs.String(), status
}

// ok is run in the test cluster, which must succeed; it returns stdout.
func (c *program) ok(args ...string) string {
	c.t.Helper()
	stdout, stderr, status := c.run(append(args, "--cluster", c.path("cluster.json"))...)
	if status != 0 {
		c.t.Fatalf("%v: %d\n%s%s", args, status, stdout, stderr)
	}
	return stdout
}

func (c *program) client() *adminclient.Client {
	c.t.Helper()
	var servers []string
	for _, r := range c.cluster.Regions {
		servers = append(servers, r.Nodes[0].URL)
	}
	client, err := adminclient.New(adminclient.Config{Servers: servers, Token: controlkit.Token, Roots: c.cluster.Roots})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	return client
}
