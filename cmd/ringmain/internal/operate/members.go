package operate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/backup"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/seal"
)

var memberColumns = []cli.Column[api.Member]{
	cli.Col("NODE", func(m api.Member) string { return m.Node }),
	cli.Col("ADDRESS", func(m api.Member) string { return m.Address }),
	cli.Col("ROLE", func(m api.Member) string { return m.Role }),
	cli.Col("LEADS", func(m api.Member) string { return cli.YesNo(m.Leader) }),
	cli.Col("HEARD", func(m api.Member) string { return ago(m.Heard) }),
	cli.Col("BEHIND", func(m api.Member) string { return strconv.FormatUint(m.Behind, 10) }),
	cli.Col("STEADY", func(m api.Member) string { return ago(m.Steady) }),
}

func ago(at *time.Time) string {
	if at == nil {
		return "-"
	}
	return max(0, time.Since(*at)).Round(time.Second).String()
}

func (t *tool) showMembers(l *api.MemberList, err error) error {
	if err != nil {
		return err
	}
	if !t.Table() {
		return t.Encode(l)
	}
	if l.Problem != "" {
		t.Say("%s: %s", l.Answered, l.Problem)
	}
	if l.MayHaveLost != nil {
		t.Say("region %s began anew %s: what it had acknowledged before may be missing", l.Region, cli.When(l.MayHaveLost))
	}
	return cli.Show(t.Tool, l.Items, false, memberColumns)
}

// raftCommands are those of `ringmain node` that change who is in a region.
func (t *tool) raftCommands() []*cobra.Command {
	var region, to string
	var reader, force bool
	members := t.Command("members", "list the nodes of a region's Raft: who votes, leads, answers", "  ringmain node members --region eu-fra", func(ctx context.Context, c *adminclient.Client, _ []string) error {
		return t.showMembers(c.Members(ctx, region))
	})
	addNode := t.Command("add NODE ADDRESS", "add a control node to its region; it votes once it has kept up for 10 s",
		"  ringmain node add eu-fra-c4 10.2.0.4:7443 --region eu-fra", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.showMembers(c.AddMember(ctx, region, api.MemberInput{Node: args[0], Address: args[1], Reader: reader}))
		})
	addNode.Flags().BoolVar(&reader, "reader", false, "it holds the state and serves feeds, and never votes")
	removeNode := t.Command("remove NODE", "remove a control node from its region", "  ringmain node remove eu-fra-c2 --region eu-fra", func(ctx context.Context, c *adminclient.Client, args []string) error {
		before, err := c.Members(ctx, region)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(before.Items, func(m api.Member) bool { return m.Node == args[0] }) {
			t.Say("%s is no member of region %s: nothing was removed", args[0], before.Region)
			return t.showMembers(before, nil)
		}
		return t.showMembers(c.RemoveMember(ctx, region, args[0], force))
	})
	removeNode.Flags().BoolVar(&force, "force", false, "even if the region can commit nothing afterwards")
	replace := t.Command("replace OLD NEW ADDRESS", "add a control node, wait until it votes, and remove another; may be repeated",
		"  ringmain node replace eu-fra-c2 eu-fra-c4 10.2.0.4:7443 --region eu-fra", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.replace(ctx, c, region, args[0], api.MemberInput{Node: args[1], Address: args[2]})
		})
	move := t.Command("move NODE ADDRESS", "note that a control node is at another address, once it runs there",
		"  ringmain node move eu-fra-c2 10.2.0.9:7443 --region eu-fra", func(ctx context.Context, c *adminclient.Client, args []string) error {
			return t.showMembers(c.MoveMember(ctx, region, args[0], args[1]))
		})
	transfer := t.Command("transfer", "have another control node lead its region", "  ringmain node transfer --to eu-fra-c2 --region eu-fra", func(ctx context.Context, c *adminclient.Client, _ []string) error {
		return t.showMembers(c.TransferLeadership(ctx, region, to))
	})
	transfer.Flags().StringVar(&to, "to", "", "node that is to lead (default: whichever is furthest)")
	all := []*cobra.Command{members, addNode, removeNode, replace, move, transfer}
	for _, c := range all {
		c.Flags().StringVar(&region, "region", "", "region that is meant (default: that of the server)")
	}
	return append(all, t.recoverCommand())
}

// replace goes on where an earlier attempt stopped.
func (t *tool) replace(ctx context.Context, c *adminclient.Client, region, old string, in api.MemberInput) error {
	l, err := c.AddMember(ctx, region, in)
	for said := false; err == nil; l, err = c.Members(ctx, region) {
		if slices.ContainsFunc(l.Items, func(m api.Member) bool { return m.Node == in.Node && m.Role == "voter" }) {
			break
		}
		if !said {
			t.Say("%s is a member and copies the state; waiting until it votes", in.Node)
			said = true
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("%s does not vote yet, and %s was left in: repeat the command to go on: %w", in.Node, old, ctx.Err())
		}
	}
	if err != nil {
		return err
	}
	for _, m := range l.Items {
		if m.Node == old && m.Leader {
			if _, err := c.TransferLeadership(ctx, region, in.Node); err != nil {
				return err
			}
		}
	}
	return t.showMembers(c.RemoveMember(ctx, region, old, false))
}

func (t *tool) recoverCommand() *cobra.Command {
	var file, peers string
	c := t.Local("recover", "have a stopped node begin its region anew, after a majority was lost for good",
		"  ringmain node recover --config /etc/ringmain/control.yaml --peers eu-fra-c1=10.2.0.1:7443", func(context.Context, []string) error {
			cfg, err := controlConfig(file)
			if err != nil {
				return err
			}
			list, err := parsePeers(peers)
			if err != nil {
				return err
			}
			dir := quorumDir(cfg)
			if err := quorum.RecoverWith(dir, cfg.Cluster, cfg.Region, list); err != nil {
				return err
			}
			t.Say("%s will begin region %s anew at its next start. Give every node that is left the same list, then start them.", cfg.Node, cfg.Region)
			return nil
		})
	c.Long = `Have a stopped node begin its region anew, after a majority of its nodes was
lost for good. What only the lost nodes held is lost; the region comes back to
the other regions as a new member. Run it on every node that is left, with the
same --peers, which names exactly those nodes. It changes nothing until the start.`
	c.Flags().StringVar(&file, "config", "", "the node's configuration file (needed)")
	c.Flags().StringVar(&peers, "peers", "", "all nodes that are left: name=host:port of the internal listener, separated by commas (needed)")
	return c
}

func controlConfig(file string) (*config.Config, error) {
	if file == "" {
		return nil, cli.Usagef("--config is needed: the node's configuration file")
	}
	cfg, err := config.Load(file, os.Environ())
	if err != nil {
		return nil, err
	}
	if cfg.Role != config.Control {
		return nil, cli.Usagef("%s configures a %s node: only control nodes hold a region's state", file, cfg.Role)
	}
	return cfg, nil
}

func quorumDir(cfg *config.Config) string { return filepath.Join(cfg.DataDir, "quorum") }

// parsePeers reads name=host:port, separated by commas.
func parsePeers(text string) ([]quorum.Peer, error) {
	var out []quorum.Peer
	for _, one := range strings.Split(text, ",") {
		node, addr, ok := strings.Cut(strings.TrimSpace(one), "=")
		if !ok || node == "" || addr == "" {
			return nil, cli.Usagef("--peers: %q is not name=host:port", one)
		}
		out = append(out, quorum.Peer{Node: node, Addr: addr})
	}
	return out, nil
}

func (t *tool) backupCommand() *cobra.Command {
	var key, file, peers string
	create := t.Command("create FILE", "write a sealed backup of the whole state of the region that answers", "  ringmain backup create eu-fra.backup --server https://control.eu-fra.example:8443", func(ctx context.Context, c *adminclient.Client, args []string) error {
		return t.createBackup(ctx, c, args[0])
	})
	inspect := t.Local("inspect FILE", "check every byte of a backup, and say what it holds", "  ringmain backup inspect eu-fra.backup --key backup.key", func(_ context.Context, args []string) (err error) {
		f, sealer, err := openBackup(args[0], key)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		info, err := backup.Inspect(f, sealer)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		return t.showBackup(info)
	})
	restore := t.Local("restore FILE", "make the state of a new region from a backup, in an empty directory",
		"  ringmain backup restore eu-fra.backup --key backup.key --config /etc/ringmain/control.yaml", func(_ context.Context, args []string) (err error) {
			cfg, err := controlConfig(file)
			if err != nil {
				return err
			}
			list := configured(cfg)
			if peers != "" {
				if list, err = parsePeers(peers); err != nil {
					return err
				}
			}
			holder, err := seal.OpenFileHolder(cfg.SealKeyFile)
			if err != nil {
				return fmt.Errorf("seal_key_file: %w", err)
			}
			f, sealer, err := openBackup(args[0], key)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
				return fmt.Errorf("data_dir: %w", err)
			}
			info, err := backup.Restore(f, sealer, backup.Target{
				Dir: quorumDir(cfg), Cluster: cfg.Cluster, Region: cfg.Region, Node: cfg.Node, Peers: list,
				Sealer: seal.New(holder), Since: uint64(time.Now().UnixMilli()),
			})
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			t.Say("%s holds the state of %s. Start it, and the region's other nodes with empty directories.", cfg.Node, info.Taken.Format(time.RFC3339))
			return t.showBackup(info)
		})
	restore.Long = `Make the state of a new region from a backup, in one node's empty directory.
Over data that is there it does nothing. What was written after the backup is
missing: to other regions the restored one is a new member.`
	restore.Flags().StringVar(&file, "config", "", "the configuration file of the node that begins the region (needed)")
	restore.Flags().StringVar(&peers, "peers", "", "all nodes of the new region, name=host:port (default: as configured)")
	for _, c := range []*cobra.Command{inspect, restore} {
		c.Flags().StringVar(&key, "key", "", "key that the backup is sealed under: the region's, or its backup_key_file (needed)")
	}
	return cli.Group("backup", "back up a region's state, look into backups, restore them", "  ringmain backup create eu-fra.backup --server https://control.eu-fra.example:8443\n  ringmain backup inspect eu-fra.backup --key seal.key", create, inspect, restore)
}

// createBackup writes the file whole or not at all, and never over another.
func (t *tool) createBackup(ctx context.Context, c *adminclient.Client, path string) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return cli.Usagef("%s exists: choose another name", path)
	}
	f, err := os.OpenFile(path+".part", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s.part exists: another backup is being written there, or was cut: choose another name, or remove it", path)
	}
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	out := &counted{Writer: f, tell: t.Progress("bytes written", 0)}
	err = c.Backup(ctx, out)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(path+".part", path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path+".part"))
	}
	t.Say("%s is whole; `ringmain backup inspect` says what it holds", path)
	return cli.Show(t.Tool, []backupFile{{path, out.n}}, true, backupFileColumns)
}

type backupFile struct {
	File  string `json:"file"`
	Bytes int    `json:"bytes"`
}

var backupFileColumns = []cli.Column[backupFile]{
	cli.Col("FILE", func(f backupFile) string { return f.File }),
	cli.Col("BYTES", func(f backupFile) string { return strconv.Itoa(f.Bytes) }),
}

// counted tells how much was written.
type counted struct {
	io.Writer
	n    int
	tell func(int)
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n += n
	c.tell(c.n)
	return n, err
}

func configured(cfg *config.Config) []quorum.Peer {
	var out []quorum.Peer
	for _, n := range cfg.Own().Control {
		if !n.Reader {
			out = append(out, quorum.Peer{Node: n.Node, Addr: n.Internal})
		}
	}
	return out
}

func openBackup(path, key string) (*os.File, *seal.Sealer, error) {
	if key == "" {
		return nil, nil, cli.Usagef("--key is needed: the file of the key that the backup is sealed under")
	}
	holder, err := seal.OpenFileHolder(key)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("backup: %w", err)
	}
	return f, seal.New(holder), nil
}

var backupColumns = []cli.Column[backup.Shard]{
	cli.Col("SHARD", func(s backup.Shard) string { return string(s.Shard) }),
	cli.Col("HOME", func(s backup.Shard) string { return s.Home }),
	cli.Col("POSITION", func(s backup.Shard) string { return api.FormatPoint(s.Last) }),
	cli.Col("RECORDS", func(s backup.Shard) string {
		var all []string
		for _, kind := range []string{"org", "project", "key", "policy", "upstream", "route", "region"} {
			if n := s.Records[kind]; n > 0 {
				all = append(all, fmt.Sprintf("%d %s", n, kind))
			}
		}
		return strings.Join(all, ", ")
	}),
	cli.Col("REVOKED", func(s backup.Shard) string { return strconv.Itoa(s.Revocations) }),
}

func (t *tool) showBackup(info backup.Info) error {
	if !t.Table() {
		return t.Encode(info)
	}
	t.Say("cluster %s, region %s, taken %s by %s, log entry %d", info.Cluster, info.Region, info.Taken.Format(time.RFC3339), info.Node, info.Applied)
	return cli.Show(t.Tool, info.Shards, false, backupColumns)
}
