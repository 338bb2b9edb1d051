// Package clusterfile is the file by which drills, tests and scripts find a
// development cluster: written by `ringmain dev`, read by everyone else. In
// dev, and nowhere else, it holds a whole API key.
package clusterfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Cluster is the content of cluster.json.
type Cluster struct {
	Ready          bool       `json:"ready"` // false while starting and after a stop; addresses are then not to be used
	CAFile         string     `json:"ca_file"`
	Model          string     `json:"model"`
	RemoteModel    string     `json:"remote_model"` // its only upstream is in the last region, so that asking it elsewhere forwards
	MessagesModel  string     `json:"messages_model"`
	APIKey         string     `json:"api_key"`
	Upstreams      []Upstream `json:"upstreams"`
	Supervisor     string     `json:"supervisor"` // unix socket that holds and releases restarts
	AdminTokenFile string     `json:"admin_token_file"`
	FrontDoor      string     `json:"front_door"`
	Regions        []Region   `json:"regions"`
}

// Upstream is one simulated provider.
type Upstream struct {
	Name   string `json:"name"`
	Region string `json:"region"`
	URL    string `json:"url"`
}

// Region is one region and its nodes.
type Region struct {
	Name         string `json:"name"`
	Jurisdiction string `json:"jurisdiction"`
	API          string `json:"api"`
	Admin        string `json:"admin"`
	Nodes        []Node `json:"nodes"`
}

// Node is one node. PID of a data node is its keeper's.
type Node struct {
	Name      string   `json:"name"`
	Role      string   `json:"role"` // control or data
	Pools     []string `json:"pools,omitempty"`
	PID       int      `json:"pid"`
	WorkerPID int      `json:"worker_pid,omitempty"`
	API       string   `json:"api,omitempty"`
	Admin     string   `json:"admin,omitempty"`
	Metrics   string   `json:"metrics"`
	DataDir   string   `json:"data_dir"`
}

// Read loads a cluster file.
func Read(path string) (*Cluster, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist: start a cluster with `make run`: %w", path, err)
	}
	if err != nil {
		return nil, err
	}
	c := new(Cluster)
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): restart `make run`", path, err)
	}
	return c, nil
}

// Write replaces the file atomically, mode 0600.
func (c *Cluster) Write(path string) error {
	b, err := json.MarshalIndent(c, "", "  ") //nolint:gosec // G117: the one place a whole key is kept, in dev only
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".cluster-*") // CreateTemp's mode is 0600
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
