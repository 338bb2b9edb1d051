package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/seal"
)

// Snapshots is raft's, with what it lacks: its readers know what they read,
// and a snapshot's description, which says where it ends and who the region's
// nodes are, is vouched for. Raft's own checksum covers the content alone.
type Snapshots struct {
	raft.SnapshotStore
	dir     string // of the snapshots
	context string
	sealer  *seal.Sealer
}

// Names inside a snapshot's directory.
const (
	nameMeta    = "meta.json" // raft's
	nameVoucher = "voucher"   // sealed SHA-256 of it; absent in those of the first release
)

// OpenSnapshots opens or creates the snapshots of the directory.
func OpenSnapshots(cfg Config) (Snapshots, error) {
	files, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, 2, cfg.Logger)
	if err != nil {
		return Snapshots{}, fmt.Errorf("quorum: snapshots: %w", image.DiskError(err))
	}
	return Snapshots{
		SnapshotStore: files,
		dir:           filepath.Join(cfg.Dir, "snapshots"),
		context:       fmt.Sprintf("quorum/snapshot/%s/%s", cfg.Cluster, cfg.Region),
		sealer:        cfg.Sealer,
	}, nil
}

// Create implements raft.SnapshotStore.
func (s Snapshots) Create(v raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(v, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, err
	}
	return &vouchedSink{SnapshotSink: sink, store: s}, nil
}

// vouchedSink vouches for its snapshot once that is whole.
type vouchedSink struct {
	raft.SnapshotSink
	store Snapshots
	done  bool
}

// Cancel implements raft.SnapshotSink.
func (v *vouchedSink) Cancel() error {
	v.done = true
	return v.SnapshotSink.Cancel()
}

// Close implements raft.SnapshotSink.
func (v *vouchedSink) Close() error {
	err := v.SnapshotSink.Close()
	if err != nil || v.done {
		return err
	}
	v.done = true
	return v.store.vouch(v.ID())
}

func (s Snapshots) vouch(id string) error {
	text, err := os.ReadFile(filepath.Join(s.dir, id, nameMeta))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // two newer ones have taken its place
	}
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	blob, err := s.sealer.SealBlob(s.context, sum[:], []byte(id))
	if err != nil {
		return err
	}
	return image.DiskError(WriteFile(filepath.Join(s.dir, id, nameVoucher), blob))
}

// List implements raft.SnapshotStore. Its error names a description that is not
// as it was written.
func (s Snapshots) List() ([]*raft.SnapshotMeta, error) {
	metas, err := s.SnapshotStore.List()
	if err != nil {
		return nil, err
	}
	for _, m := range metas {
		if err := s.check(m.ID); err != nil {
			return nil, fmt.Errorf("%s is damaged: %w: while the other nodes of the region have a leader, move this node's whole directory away and start it again",
				filepath.Join(s.dir, m.ID, nameMeta), err)
		}
	}
	return metas, nil
}

func (s Snapshots) check(id string) error {
	blob, err := os.ReadFile(filepath.Join(s.dir, id, nameVoucher))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	want, err := s.sealer.OpenBlob(s.context, blob, []byte(id))
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(s.dir, id, nameMeta))
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(text); string(sum[:]) != string(want) {
		return errors.New("it is not as it was written")
	}
	return nil
}

// Open implements raft.SnapshotStore.
func (s Snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.SnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	return meta, reader{r, meta}, nil
}

// reader knows what it reads, which raft does not tell Restore.
type reader struct {
	io.ReadCloser
	meta *raft.SnapshotMeta
}

// MetaOf describes the snapshot that raft has r restored from, if Open gave it.
func MetaOf(r io.Reader) (*raft.SnapshotMeta, bool) {
	w, ok := r.(raft.ReadCloserWrapper)
	if !ok {
		return nil, false
	}
	s, ok := w.WrappedReadCloser().(reader)
	return s.meta, ok
}
