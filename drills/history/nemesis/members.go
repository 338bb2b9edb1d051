package nemesis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/identity"
	"ringmain/drills/cluster"
	"ringmain/drills/history/client"
	"ringmain/internal/clusterfile"
)

// changeIn bounds one replacement: the node that is new copies the state and
// keeps up for ten seconds before it votes.
const changeIn = 90 * time.Second

// usually is how long a replacement there and back takes.
const usually = 25 * time.Second

// members replaces nodes, region after region, while run does what it does to
// the others: a node that no configuration of the cluster names comes in, votes
// and may lead; the one whose place it takes loses its disk; and back again.
func (n *nemesis) members(ctx context.Context, random *rand.Rand, until time.Time) error {
	// What would go on when the clients have stopped is not begun.
	for i := 0; ctx.Err() == nil && (i == 0 || time.Until(until) > usually); i++ {
		region := n.c.Regions[i%len(n.c.Regions)].Name
		if err := n.replaced(context.WithoutCancel(ctx), region, random.IntN(2) == 0); err != nil {
			return fmt.Errorf("replace a node of %s: %w", region, err)
		}
		pause(ctx, calm)
	}
	return nil
}

func (n *nemesis) replaced(ctx context.Context, region string, lead bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*changeIn)
	defer cancel()
	old := n.w.of(region)[2]
	fresh, address, err := newNode(n.c, old)
	if err != nil {
		return err
	}
	n.reserve(region, fresh.Node)
	defer n.reserve("", client.Node{})
	defer func() { err = errors.Join(err, fresh.end()) }()
	if err := fresh.start(n.c.Binary); err != nil {
		return err
	}
	if n.net != nil {
		if err := n.net.Place(region, fresh.cmd.Process.Pid); err != nil {
			return err
		}
	}
	if err := n.replace(ctx, old.Name, fresh.Name, fresh.internal, region); err != nil {
		return err
	}
	if lead {
		at := n.w.rec.Now()
		list, err := n.command(ctx, region, "transfer", "--to", fresh.Name)
		if err != nil {
			return err
		}
		if l := leaderOf(list); l == fresh.Name {
			n.proven("the newcomer leads", at, "%s leads %s", l, region)
		}
	}
	at := n.w.rec.Now()
	if err := n.without(ctx, old, func(dir string) error {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		n.proven("lost disk", at, "%s does not run, and %s is gone", old.Name, filepath.Base(filepath.Dir(dir))+"/"+filepath.Base(dir))
		return nil
	}); err != nil {
		return err
	}
	return n.replace(ctx, fresh.Name, old.Name, address, region)
}

// reserve tells run which region to leave alone, once it has done with it.
func (n *nemesis) reserve(region string, newcomer client.Node) {
	n.acting.Lock()
	defer n.acting.Unlock()
	n.changing, n.newcomer = region, newcomer
}

// replace puts one node in the place of another by the command for it, and
// proves by the members that are left that this happened.
func (n *nemesis) replace(ctx context.Context, old, fresh, address, region string) error {
	at := n.w.rec.Now()
	var list api.MemberList
	if err := insist(ctx, fresh+" takes the place of "+old, changeIn, func() (bool, string) {
		var err error
		list, err = n.command(ctx, region, "replace", old, fresh, address)
		return err == nil, fmt.Sprint(err)
	}); err != nil {
		return err
	}
	var names []string
	votes := false
	for _, m := range list.Items {
		names = append(names, m.Node+" ("+m.Role+")")
		votes = votes || m.Node == fresh && m.Role == "voter"
		if m.Node == old {
			return fmt.Errorf("%s was replaced, and is still there: %v", old, names)
		}
	}
	if !votes {
		return fmt.Errorf("%s took the place of %s, and does not vote: %v", fresh, old, names)
	}
	n.proven("replace node", at, "%s by %s: now %s", old, fresh, strings.Join(names, ", "))
	return nil
}

func leaderOf(l api.MemberList) string {
	for _, m := range l.Items {
		if m.Leader {
			return m.Node
		}
	}
	return ""
}

// command runs `ringmain node …` as an operator does.
func (n *nemesis) command(ctx context.Context, region string, args ...string) (list api.MemberList, err error) {
	ctx, cancel := context.WithTimeout(ctx, changeIn)
	defer cancel()
	args = append(append([]string{"node"}, args...), "--region", region, "--output", "json", "--token-file", n.c.AdminTokenFile, "--ca-file", n.c.CAFile)
	for _, node := range n.w.of(region)[:2] {
		args = append(args, "--server", node.Admin)
	}
	cmd := exec.CommandContext(ctx, n.c.Binary, args...)
	var says strings.Builder
	cmd.Stderr = &says
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &list)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args[:3], " "), err, says.String())
	}
	return list, err
}

// newcomer is a control node that neither the supervisor nor any other node's
// configuration knows. Its own lists it in the place of the one it comes for.
type newcomer struct {
	client.Node
	dir, internal string
	cmd           *exec.Cmd
	lifeline      *os.File // the node ends with it, so with this process too
}

// newNode prepares a node that is to take the place of old, whose internal
// listener is at the address returned.
func newNode(c *cluster.Cluster, old client.Node) (_ *newcomer, internal string, err error) {
	name, ok := strings.CutSuffix(old.Name, "-c3")
	if !ok {
		return nil, "", fmt.Errorf("%s is not the third node", old.Name)
	}
	name += "-c4"
	from := filepath.Dir(dataDir(c, old))
	to := filepath.Join(filepath.Dir(from), name)
	identityDir := filepath.Join(to, "identity")
	if err := errors.Join(os.RemoveAll(filepath.Join(to, "data")), os.MkdirAll(identityDir, 0o700)); err != nil {
		return nil, "", err
	}
	b, err := os.ReadFile(filepath.Join(from, "node.yaml"))
	if err != nil {
		return nil, "", err
	}
	// The ports of a region's nodes are blocks of ten: ours is the next.
	at := map[string]string{}
	config := strings.ReplaceAll(string(b), old.Name, name)
	first := c.Port + 100*(index(c, old.Region)+1) + 30
	for i := range 5 {
		now, next := fmt.Sprintf("127.0.0.1:%d", first+i), fmt.Sprintf("127.0.0.1:%d", first+i+10)
		if !strings.Contains(config, now) {
			return nil, "", fmt.Errorf("%s listens on no %s", old.Name, now)
		}
		config, at[now] = strings.ReplaceAll(config, now, next), next
	}
	ca, err := identity.OpenCA(filepath.Join(c.Dir, "ca"))
	if err != nil {
		return nil, "", err
	}
	own, err := identity.LoadBundle(filepath.Join(from, "identity"))
	if err != nil {
		return nil, "", err
	}
	id := own.ID()
	id.Node = name
	issued, err := ca.IssueNode(id, []net.IP{net.IPv4(127, 0, 0, 1)}, 24*time.Hour)
	if err != nil {
		return nil, "", err
	}
	err = errors.Join(issued.Write(identityDir), write(filepath.Join(to, "node.yaml"), []byte(config)))
	for _, file := range []string{"tls.pem", "tls.key"} {
		b, e := os.ReadFile(filepath.Join(from, "identity", file))
		err = errors.Join(err, e, write(filepath.Join(identityDir, file), b))
	}
	before := fmt.Sprintf("127.0.0.1:%d", first)
	return &newcomer{Node: client.Node{Region: old.Region, Name: name, Admin: "https://" + at[fmt.Sprintf("127.0.0.1:%d", first+1)]}, dir: to, internal: at[before]}, before, err
}

func write(path string, b []byte) error {
	return os.WriteFile(path, b, 0o600) //nolint:gosec // G703: paths are made of our own cluster's
}

func index(c *cluster.Cluster, region string) int {
	return slices.IndexFunc(c.Regions, func(r clusterfile.Region) bool { return r.Name == region })
}

func dataDir(c *cluster.Cluster, of client.Node) string {
	for _, n := range c.Regions[index(c, of.Region)].Nodes {
		if n.Name == of.Name {
			return n.DataDir
		}
	}
	return ""
}

func (f *newcomer) start(binary string) (err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(f.dir, "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return errors.Join(err, read.Close(), write.Close())
	}
	f.cmd = exec.Command(binary, "control", "--config", filepath.Join(f.dir, "node.yaml")) //nolint:noctx // end ends it
	f.cmd.Dir, f.cmd.Stdout, f.cmd.Stderr = f.dir, log, log
	f.cmd.ExtraFiles, f.cmd.Env = []*os.File{read}, append(os.Environ(), "RINGMAIN_LIFELINE=3")
	err = errors.Join(f.cmd.Start(), read.Close(), log.Close())
	if err != nil {
		return errors.Join(err, write.Close())
	}
	f.lifeline = write
	return nil
}

// end stops the node, which may have stopped before.
func (f *newcomer) end() error {
	if f.lifeline == nil {
		return nil
	}
	err := f.lifeline.Close()
	if e := f.cmd.Process.Kill(); !errors.Is(e, os.ErrProcessDone) {
		err = errors.Join(err, e)
	}
	_ = f.cmd.Wait() // killed
	return err
}
