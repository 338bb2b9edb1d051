package quorum

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/quorum/machine"
	"ringmain/controlplane/quorum/members"
	"ringmain/controlplane/quorum/store"
)

// nameRecover is the file that has a node begin its region anew with the peers
// it names, at its next start, once.
const nameRecover = "recover.json"

// recovery is the content of the file.
type recovery struct {
	Format  int    `json:"format"` // 1
	Cluster string `json:"cluster"`
	Region  string `json:"region"`
	Peers   []Peer `json:"peers"`
}

// maxRecovery bounds the file, in bytes.
const maxRecovery = 64 << 10

// RecoverWith prepares the directory of a stopped node for a region that lost
// its majority for good: at its next start the node takes what it holds for
// the region's state, and the peers for its only voters. Give all peers that
// are left the same list, and start them together. What only the lost nodes
// held is lost; what no majority had confirmed may come back.
//
// It changes nothing but that it writes the file, and refuses by name a
// directory of another cluster or region, one without a region's state, one in
// use, and a list that cannot be.
func RecoverWith(dir, cluster, region string, peers []Peer) (err error) {
	own, err := store.ReadOwner(dir)
	if err != nil {
		return err
	}
	lock, err := store.Lock(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	r := recovery{Format: 1, Cluster: cluster, Region: region, Peers: peers}
	if err := r.check(dir, own); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	if err := store.WriteFile(filepath.Join(dir, nameRecover), append(text, '\n')); err != nil {
		return fmt.Errorf("quorum: %w", image.DiskError(err))
	}
	return nil
}

// parseRecovery reads the file's content strictly.
func parseRecovery(text []byte) (r recovery, err error) {
	if len(text) > maxRecovery {
		return r, fmt.Errorf("it has %d bytes", len(text))
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return r, errors.New("more follows its end")
	}
	if r.Format != 1 {
		return r, fmt.Errorf("it has format %d, this release reads 1", r.Format)
	}
	return r, nil
}

// check says what keeps the node own, whose directory is dir, from obeying.
func (r *recovery) check(dir string, own store.Owner) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("quorum: recovery of %s: %s; nothing was changed", dir, fmt.Sprintf(format, args...))
	}
	if r.Cluster != own.Cluster || r.Region != own.Region {
		return fmt.Errorf("%w: %w", refuse("it is meant for cluster %q, region %q, and this is the directory of %s", r.Cluster, r.Region, own), controlplane.ErrWrongCluster)
	}
	nodes, addrs := make(map[string]bool), make(map[string]bool)
	for _, p := range r.Peers {
		if _, _, err := net.SplitHostPort(p.Addr); err != nil || p.Node == "" || strings.Contains(p.Addr, "@") {
			return refuse("%q at %q is no node: give its name and host:port of its internal listener", p.Node, p.Addr)
		}
		if nodes[p.Node] || addrs[p.Addr] {
			return refuse("%s at %s appears twice", p.Node, p.Addr)
		}
		nodes[p.Node], addrs[p.Addr] = true, true
	}
	switch {
	case len(r.Peers) > members.Max:
		return refuse("it names %d peers", len(r.Peers))
	case !nodes[own.Node]:
		return refuse("%s itself is not among the peers: list every node that is left, this one included", own.Node)
	}
	return nil
}

// recoverIfAsked obeys the file, if there is one, and puts it aside. Run it
// once image, snapshots and log fit each other; they do afterwards.
func (q *Quorum) recoverIfAsked(snaps raft.SnapshotStore) error {
	obeyed, err := q.obeyRecovery(snaps)
	if err != nil || !obeyed {
		return err
	}
	return q.reconcile(snaps)
}

func (q *Quorum) obeyRecovery(snaps raft.SnapshotStore) (obeyed bool, err error) {
	path := filepath.Join(q.cfg.Dir, nameRecover)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("quorum: %w", err)
	}
	r, err := parseRecovery(text)
	if err != nil {
		return false, fmt.Errorf("quorum: %s cannot be obeyed: %w: write it anew with `ringmain node recover`, or remove it; nothing was changed", path, err)
	}
	own := store.Owner{Format: 1, Cluster: q.cfg.Cluster, Region: q.cfg.Region, Node: q.cfg.Node}
	if err := r.check(q.cfg.Dir, own); err != nil {
		return false, err
	}
	has, err := raft.HasExistingState(q.store, q.store, snaps)
	if err != nil {
		return false, fmt.Errorf("quorum: %w", err)
	}
	if !has {
		return false, fmt.Errorf("quorum: %s: this node holds nothing to recover from: remove the file and let the others add the node; nothing was changed", path)
	}
	before, err := raft.GetConfiguration(q.cfg.raftConfig(nil), q.machine, q.store, q.store, snaps, q.trans)
	if err != nil {
		return false, fmt.Errorf("quorum: recovery: %w", err)
	}
	var conf raft.Configuration
	for _, p := range r.Peers {
		if !slices.ContainsFunc(before.Servers, func(s raft.Server) bool { return s.ID == raft.ServerID(p.Node) }) {
			return false, fmt.Errorf("quorum: %s: %s was no node of this region, whose nodes were %v: recover with those that are left, and add others afterwards; nothing was changed", path, p.Node, names(before))
		}
		conf.Servers = append(conf.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(p.Node), Address: raft.ServerAddress(p.Addr)})
	}
	life := uint64(time.Now().UnixMilli())
	if err := q.machine.Begin(life); err != nil {
		return false, err
	}
	if err := raft.RecoverCluster(q.cfg.raftConfig(nil), recovering{q.machine}, q.store, q.store, snaps, q.trans, conf); err != nil {
		return false, fmt.Errorf("quorum: recovery: %w", err)
	}
	aside := fmt.Sprintf("%s.%d.done", path, life)
	if err := errors.Join(os.Rename(path, aside), image.SyncDir(q.cfg.Dir)); err != nil {
		return false, fmt.Errorf("quorum: recovery: %w", image.DiskError(err))
	}
	q.log.Warn("the region begins anew from what this node holds: commits may be lost",
		"log", "audit", "event", "region.recovered", "cluster", q.cfg.Cluster, "region", q.cfg.Region, "node", q.cfg.Node,
		"peers", r.Peers, "were", names(before), "applied", q.machine.Saved().Applied, "life", life, "file", aside)
	return true, nil
}

func names(conf raft.Configuration) []string {
	var out []string
	for _, s := range conf.Servers {
		out = append(out, string(s.ID))
	}
	return out
}

// recovering is the machine as raft.RecoverCluster uses it: the image is as
// far as every snapshot already.
type recovering struct{ *machine.Machine }

// Restore implements raft.FSM.
func (recovering) Restore(io.ReadCloser) error { return nil }

// Snapshot implements raft.FSM. RecoverCluster releases no snapshot, so one
// releases itself.
func (r recovering) Snapshot() (raft.FSMSnapshot, error) {
	s, err := r.Machine.Snapshot()
	return fleeting{s}, err
}

type fleeting struct{ raft.FSMSnapshot }

// Persist implements raft.FSMSnapshot.
func (f fleeting) Persist(sink raft.SnapshotSink) error {
	defer f.Release()
	return f.FSMSnapshot.Persist(sink)
}

// Since is which life of the region this node's copy belongs to: 0 is the
// first. Whoever confirmed something to an earlier life cannot rely on this one
// to hold it: to the members of its shards it is a new member.
func (q *Quorum) Since() uint64 { return max(q.cfg.Since, q.machine.Life()) }

// MayHaveLost is when the region last began anew, from the copies of a minority
// or from a backup, so that commits may be lost; false if it never did.
func (q *Quorum) MayHaveLost() (time.Time, bool) {
	life := q.Since()
	return time.UnixMilli(int64(life)), life > 0
}
