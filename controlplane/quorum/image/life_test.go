package image

import (
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"ringmain/internal/testkit/diskkit"
)

// TestBuildIsDense: an image that is built as a whole is not half empty.
func TestBuildIsDense(t *testing.T) {
	sealer := diskkit.Sealer(t)
	from := newWorld(t, sealer)
	from.propose(shard, org(1, "o"), project(1))
	for n := 0; n < 3000; n++ {
		c := key(n)
		c.Record.Key.Project = project(1).Record.Meta.ID
		from.propose(shard, c)
	}
	cfg := from.cfg
	cfg.Path = filepath.Join(diskkit.Fast(t), "built.db")
	if err := Build(cfg, from.state, Mark{Applied: 2, Term: 1}, 1); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(cfg.Path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	err = db.View(func(tx *bbolt.Tx) error {
		s := tx.Bucket([]byte(bucketRecords)).Stats()
		if used := float64(s.LeafInuse) / float64(s.LeafAlloc); s.KeyN != 3002 || used < 0.8 {
			t.Errorf("pages of %d records are %.2f full", s.KeyN, used)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
