package quorum

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/quorum/machine"
	"ringmain/controlplane/quorum/store"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
)

// SeedConfig says whose directory Seed makes. Nothing may be left out.
type SeedConfig struct {
	Dir     string // must not exist, or be empty
	Cluster string
	Region  string
	Node    string
	Peers   []Peer // all voters of the new region, this node included
	Sealer  *seal.Sealer
	Applied uint64 // raft index and term that the state is as of, in the region it comes from
	Term    uint64
	Life    uint64 // which life of the region begins: a time, Unix milliseconds
}

// Seed makes the directory of one node, from which a region begins with state.
// The other nodes start with empty directories and copy it. Until all of it is
// there, Dir is not.
func Seed(cfg SeedConfig, state *ledger.State) (err error) {
	if err := emptyDir(cfg.Dir); err != nil {
		return err
	}
	own := store.Owner{Format: 1, Cluster: cfg.Cluster, Region: cfg.Region, Node: cfg.Node}
	if err := (&recovery{Format: 1, Cluster: cfg.Cluster, Region: cfg.Region, Peers: cfg.Peers}).check(cfg.Dir, own); err != nil {
		return err
	}
	made := filepath.Clean(cfg.Dir) + ".new"
	if err := os.RemoveAll(made); err != nil { // of an attempt that was stopped
		return fmt.Errorf("quorum: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("quorum: make %s: %w", cfg.Dir, image.DiskError(err)), os.RemoveAll(made))
		}
	}()
	lock, err := store.Claim(made, own, nameImage)
	if err != nil {
		return err
	}
	if err := errors.Join(cfg.fill(made, state), lock.Close()); err != nil {
		return err
	}
	if err := os.Remove(cfg.Dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(made, cfg.Dir); err != nil {
		return err
	}
	return image.SyncDir(filepath.Dir(filepath.Clean(cfg.Dir)))
}

// emptyDir refuses a directory that holds anything.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("quorum: %w", err)
	case len(entries) > 0:
		return fmt.Errorf("quorum: %s holds %s and more: a region's state is only made in an empty directory; move this one away if it is not needed", dir, entries[0].Name())
	}
	return nil
}

// fill writes image, snapshot and votes of a region that begins at the mark.
func (cfg *SeedConfig) fill(dir string, state *ledger.State) (err error) {
	at := image.Mark{Applied: max(cfg.Applied, 2), Term: max(cfg.Term, 1)}
	ic := image.Config{Path: filepath.Join(dir, nameImage), Cluster: cfg.Cluster, Region: cfg.Region, Sealer: cfg.Sealer}
	if err := image.Build(ic, state, at, cfg.Life); err != nil {
		return err
	}
	img, _, err := image.Open(ic)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	view, err := img.View()
	if err != nil {
		return err
	}
	defer view.Release()
	qc := Config{Cluster: cfg.Cluster, Region: cfg.Region, Node: cfg.Node, Dir: dir, Peers: cfg.Peers, Sealer: cfg.Sealer}
	qc.Tunables.setDefaults()
	qc.Logger = slog.New(slog.DiscardHandler)
	snaps, err := store.OpenSnapshots(qc.store(func(error) {}))
	if err != nil {
		return err
	}
	_, trans := raft.NewInmemTransport(raft.ServerAddress(qc.self().Addr)) // only to write addresses down
	defer func() { err = errors.Join(err, trans.Close()) }()
	sink, err := snaps.Create(1, at.Applied, at.Term, qc.founders(), 1, trans)
	if err != nil {
		return err
	}
	if err := machine.Persist(view, sink); err != nil {
		return err
	}
	log, err := store.OpenLog(qc.store(func(error) {}))
	if err != nil {
		return err
	}
	return errors.Join(log.SetUint64([]byte("CurrentTerm"), at.Term), log.Close())
}
