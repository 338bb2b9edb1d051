package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/image"
)

// Names inside a node's directory.
const (
	nameOwner = "owner.json" // whose directory this is
	nameLock  = "lock"       // held while a process uses the directory
	nameLog   = "log"        // raft-wal segments, its votes and terms
	nameTail  = "log.tail"   // witness of the log's end
	nameProbe = "probe"      // written by the watchdog
)

// Owner says which node a directory belongs to. It is written once.
type Owner struct {
	Format  int    `json:"format"` // 1
	Cluster string `json:"cluster"`
	Region  string `json:"region"`
	Node    string `json:"node"`
}

// String names it.
func (o Owner) String() string {
	return fmt.Sprintf("cluster %q, region %q, node %q", o.Cluster, o.Region, o.Node)
}

// Claim makes dir if need be, locks it against other processes, and checks or
// records that it is want's. The returned file holds the lock until closed. A
// directory that has the log, or any of the named files, but no owner is refused.
func Claim(dir string, want Owner, named ...string) (*os.File, error) {
	want.Format = 1
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("quorum: data directory: %w", image.DiskError(err))
	}
	lock, err := Lock(dir)
	if err != nil {
		return nil, err
	}
	if err := checkOwner(dir, want, named); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// Lock locks a node's directory against other processes until the file is closed.
func Lock(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, nameLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("quorum: data directory: %w", image.DiskError(err))
	}
	// The lock ends with the process, however it ends.
	switch err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, errors.Join(fmt.Errorf("quorum: another process uses %s: stop it first, or give this node its own directory", dir), lock.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("quorum: lock %s: %w", dir, err), lock.Close())
	}
	return lock, nil
}

func checkOwner(dir string, want Owner, named []string) error {
	got, err := ReadOwner(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return createOwner(dir, want, named)
	case err != nil:
		return err
	case got != want:
		return fmt.Errorf("quorum: %s is the directory of %s, not of %s: %w", dir, got, want, controlplane.ErrWrongCluster)
	}
	return nil
}

// ReadOwner says whose directory it is.
func ReadOwner(dir string) (own Owner, err error) {
	path := filepath.Join(dir, nameOwner)
	text, err := os.ReadFile(path)
	if err != nil {
		return own, fmt.Errorf("quorum: %s is no node's directory: %w", dir, err)
	}
	if err := json.Unmarshal(text, &own); err != nil || own.Format != 1 {
		return own, fmt.Errorf("quorum: %s is damaged or of another version: restore it, it says whose directory this is", path)
	}
	return own, nil
}

// createOwner writes the file of a fresh directory. One that holds anything
// else of ours lost its owner, and is refused.
func createOwner(dir string, want Owner, named []string) error {
	for _, name := range append(named, nameLog) {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("quorum: %s holds data but no %s: restore that file, it says whose directory this is", dir, nameOwner)
		}
	}
	text, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("quorum: data directory: %w", err)
	}
	if err := WriteFile(filepath.Join(dir, nameOwner), append(text, '\n')); err != nil {
		return fmt.Errorf("quorum: data directory: %w", image.DiskError(err))
	}
	return nil
}

// WriteFile replaces path by data, whole or not at all, durably.
func WriteFile(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return image.SyncDir(filepath.Dir(path))
}
