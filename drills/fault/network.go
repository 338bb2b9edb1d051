package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// Network cuts regions off from each other, in a network namespace that this
// process must have to itself. All nodes listen on one address, so a packet's
// regions are told by the sender's control group (net_cls) and the receiver's
// block of ports; the replies of a connection by the mark of what opened it.
// Packets are dropped where they arrive: the sender sees a loss, not an error.
type Network struct {
	dir     string // net_cls is mounted here
	port    int
	regions []string
}

// OpenNetwork prepares the namespaces: the process was started in a network and
// a mount namespace of its own. dir is empty; port is the cluster's first.
func OpenNetwork(ctx context.Context, dir string, port int) (*Network, error) {
	if out, err := exec.CommandContext(ctx, "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ip: %w: %s", err, out)
	}
	if err := mountClasses(dir); err != nil {
		return nil, err
	}
	return &Network{dir: dir, port: port}, nil
}

// mark of packets from one region to another, by their places in the list.
func mark(from, to int) int { return 0x100 + from*16 + to }

func (w *Network) class(region string) string { return filepath.Join(w.dir, "drill-"+region) }

// Name tells it the regions, in the order of their ports.
func (w *Network) Name(ctx context.Context, regions []string) error {
	w.regions = regions
	rules := []string{
		"add table inet drill",
		"add chain inet drill tell { type filter hook output priority -150; policy accept; }",
		"add chain inet drill cut { type filter hook input priority -10; policy accept; }",
	}
	for from, region := range regions {
		if err := os.Mkdir(w.class(region), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		class := 0x10000 + from + 1
		if err := os.WriteFile(filepath.Join(w.class(region), "net_cls.classid"), []byte(strconv.Itoa(class)), 0o600); err != nil {
			return err
		}
		for to := range regions {
			if from == to {
				continue
			}
			ports := fmt.Sprintf("%d-%d", w.port+100*(to+1), w.port+100*(to+1)+99)
			rules = append(rules,
				fmt.Sprintf("add rule inet drill tell meta cgroup %d tcp dport %s ct mark set %d meta mark set %d", class, ports, mark(from, to), mark(from, to)),
				fmt.Sprintf("add rule inet drill tell meta cgroup %d udp dport %s meta mark set %d", class, ports, mark(from, to)),
				fmt.Sprintf("add rule inet drill tell ct mark %d ct direction reply meta mark set %d", mark(from, to), mark(to, from)))
		}
	}
	return w.nft(ctx, rules...)
}

// Place tells that a process, with all its sockets, is of region.
func (w *Network) Place(region string, pid int) error {
	if err := os.WriteFile(filepath.Join(w.class(region), "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
		return err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil && !strings.Contains(string(b), "net_cls:/drill-"+region+"\n") {
		err = fmt.Errorf("process %d is not in the control group of %s: %s", pid, region, b)
	}
	return err
}

// Cut drops what goes from one region to another until Heal.
func (w *Network) Cut(ctx context.Context, pairs ...[2]string) error {
	var rules []string
	for _, p := range pairs {
		rules = append(rules, fmt.Sprintf("add rule inet drill cut meta mark %d counter drop comment \"%s to %s\"", mark(w.index(p[0]), w.index(p[1])), p[0], p[1]))
	}
	return w.nft(ctx, rules...)
}

var dropped = regexp.MustCompile(`counter packets (\d+) bytes \d+ drop comment "([^"]+)"`)

// Heal ends all cuts, and says how many packets each has dropped.
func (w *Network) Heal(ctx context.Context) (proof string, dead int, err error) {
	out, err := exec.CommandContext(ctx, "nft", "list", "chain", "inet", "drill", "cut").CombinedOutput()
	if err != nil {
		return "", 0, fmt.Errorf("nft: %w: %s", err, out)
	}
	var parts []string
	for _, m := range dropped.FindAllStringSubmatch(string(out), -1) {
		if m[1] == "0" {
			dead++
		}
		parts = append(parts, m[1]+" packets from "+m[2]+" dropped")
	}
	return strings.Join(parts, ", "), dead, w.nft(ctx, "flush chain inet drill cut")
}

func (w *Network) index(region string) int {
	for i, r := range w.regions {
		if r == region {
			return i
		}
	}
	return -1
}

func (w *Network) nft(ctx context.Context, rules ...string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(strings.Join(rules, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// Close takes the control groups away; the namespaces end with the process.
func (w *Network) Close() error {
	var err error
	for _, r := range w.regions {
		err = errors.Join(err, os.Remove(w.class(r)))
	}
	return errors.Join(err, syscall.Unmount(w.dir, 0))
}
