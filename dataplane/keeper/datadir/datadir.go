// Package datadir says whose a data directory is: one node's, for good, and one
// process's at a time. What lies in it is the business of other rooms.
package datadir

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ringmain/controlplane"
)

// owner is the plain file that says whose data directory this is.
type owner struct {
	Format  int    `json:"format"` // 1
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
}

// Take makes dir this node's, and this process's while the file returned is open.
func Take(dir, cluster, node string) (lock *os.File, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := closeToWorld(dir); err != nil {
		return nil, err
	}
	lock, err = os.OpenFile(filepath.Join(dir, "keeper.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
			lock = nil
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return lock, fmt.Errorf("data directory %s is used by another keeper: stop it first: %w", dir, err)
	}
	path := filepath.Join(dir, "owner.json")
	want := owner{1, cluster, node}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return lock, writeOwner(path, want)
	}
	if err != nil {
		return lock, fmt.Errorf("data directory: %w", err)
	}
	var have owner
	if err := json.Unmarshal(b, &have); err != nil {
		return lock, fmt.Errorf("data directory: %s says whose it is, and cannot be read: restore it, or remove it if all of %s is this node's: %w", path, dir, err)
	}
	if have != want {
		return lock, fmt.Errorf("data directory %s is of node %q of cluster %q (format %d), this is %q of %q: %w",
			dir, have.Node, have.Cluster, have.Format, node, cluster, controlplane.ErrWrongCluster)
	}
	return lock, nil
}

// closeToWorld keeps strangers from planting files or a worker's socket in dir.
func closeToWorld(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && info.Mode().Perm()&0o002 != 0 {
		err = os.Chmod(dir, info.Mode().Perm()&^0o002)
	}
	if err != nil {
		return fmt.Errorf("data directory: it must not be open to everybody: chmod 700 it: %w", err)
	}
	return nil
}

func writeOwner(path string, o owner) error {
	b, err := json.Marshal(o)
	if err == nil {
		err = write(path+".new", append(b, '\n'))
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// write writes a file that is whole after a crash of the host: an empty one
// would keep the node from starting.
func write(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
