// Package roster knows who runs each region's control plane, and where: for
// everybody who has to find a control node. A region's members are the record,
// as its Raft has them; what is configured is the first contact.
//
// Control nodes of different regions exchange their lists, so that it is
// enough if one side still finds the other. Data nodes are told by the feed.
// Lists are addresses only: who answers at one is decided by its certificate.
package roster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Node is one control node.
type Node struct {
	Node   string `json:"node"`
	Addr   string `json:"addr"` // host:port of its internal listener
	Reader bool   `json:"reader,omitempty"`
}

// List is a region's control nodes, as of some entry of its log.
type List struct {
	Region  string `json:"region"`
	Life    uint64 `json:"life,omitempty"`    // of the region: a restored one begins another
	Applied uint64 `json:"applied,omitempty"` // index of the log's last entry known to who says so
	Nodes   []Node `json:"nodes"`
}

// older reports whether l is known to be older than other.
func (l *List) older(other *List) bool {
	if l.Life != other.Life {
		return l.Life < other.Life
	}
	return l.Applied < other.Applied
}

// maxList bounds an encoded list, in bytes; maxNodes what it may hold.
const (
	maxList  = 64 << 10
	maxNodes = 64
)

// ParseList reads a list strictly: what a peer says goes into dialling.
func ParseList(b []byte) (*List, error) {
	l := new(List)
	if len(b) > maxList {
		return nil, fmt.Errorf("roster: %d bytes are no list", len(b))
	}
	if err := strict(b, l); err != nil {
		return nil, fmt.Errorf("roster: %w", err)
	}
	if err := l.check(); err != nil {
		return nil, err
	}
	return l, nil
}

func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more follows its end")
	}
	return nil
}

func (l *List) check() error {
	if l.Region == "" || len(l.Nodes) == 0 || len(l.Nodes) > maxNodes {
		return fmt.Errorf("roster: a list of %d nodes of region %q", len(l.Nodes), l.Region)
	}
	names := make(map[string]bool, len(l.Nodes))
	for _, n := range l.Nodes {
		if _, _, err := net.SplitHostPort(n.Addr); err != nil || n.Node == "" || names[n.Node] {
			return fmt.Errorf("roster: region %s lists %q at %q", l.Region, n.Node, n.Addr)
		}
		names[n.Node] = true
	}
	return nil
}

// Config configures a Book. Zero values take the defaults in brackets.
type Config struct {
	Cluster string
	Region  string // of this node

	// First are the control nodes as configured, by region: whom to ask as
	// long as nothing else is known, or nobody known answers.
	First map[string][]Node
	// Own is this region's list, as its log has it; without nodes as long as
	// this node is no member. It must not block. [nil: it is learned, as other
	// regions' are]
	Own func() List

	// File remembers what was learned. It holds addresses, so it is not sealed;
	// without it, or with a damaged one, a node begins with First. [nothing is
	// remembered]
	File string

	HTTP  *http.Client  // asks control nodes of any region, by mutual TLS. Needed by Follow
	Every time.Duration // how often other regions are asked, half to one and a half times [10 s]

	Logger *slog.Logger // [discards]
}

// Book holds what is known. It is safe for concurrent use.
type Book struct {
	cfg Config

	mu      sync.Mutex
	learned map[string]*entry // by region
}

type entry struct {
	list  List
	heard time.Time // zero = not since this process started
}

// fresh is how long a list that was heard stands for itself. After that, whom
// the configuration names is asked as well.
const fresh = time.Minute

// Open reads what was remembered.
func Open(cfg Config) *Book {
	if cfg.Every == 0 {
		cfg.Every = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Book{cfg: cfg, learned: make(map[string]*entry)}
	if cfg.File == "" {
		return b
	}
	text, err := os.ReadFile(cfg.File)
	var lists []List
	if err == nil {
		err = strict(text, &lists)
	}
	for i := range lists {
		if err == nil {
			err = lists[i].check()
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return b
	case err != nil:
		cfg.Logger.Warn("the file of control nodes cannot be read: those configured are asked", "file", cfg.File, "err", err)
		return b
	}
	for _, l := range lists {
		// Whatever is heard is newer: a damaged number must not outlast it.
		l.Life, l.Applied = 0, 0
		b.learned[l.Region] = &entry{list: l}
	}
	return b
}

// Nodes are the region's control nodes, those to be asked first in front.
func (b *Book) Nodes(region string) []Node {
	first := b.cfg.First[region]
	if b.cfg.Own != nil && region == b.cfg.Region {
		if l := b.cfg.Own(); len(l.Nodes) > 0 {
			return l.Nodes
		}
		return first
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.learned[region]
	if e == nil {
		return first
	}
	nodes := slices.Clone(e.list.Nodes)
	if time.Since(e.heard) < fresh {
		return nodes
	}
	for _, n := range first {
		if !slices.ContainsFunc(nodes, func(k Node) bool { return k.Addr == n.Addr }) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Addresses are the internal addresses of Nodes.
func (b *Book) Addresses(region string) []string {
	var all []string
	for _, n := range b.Nodes(region) {
		all = append(all, n.Addr)
	}
	return all
}

// Learn takes a region's list from a control node of that region, unless a
// newer one is known.
func (b *Book) Learn(l *List) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cfg.Own != nil && l.Region == b.cfg.Region {
		return
	}
	if _, known := b.cfg.First[l.Region]; !known {
		return
	}
	e := b.learned[l.Region]
	if e == nil {
		e = new(entry)
		b.learned[l.Region] = e
	}
	if l.older(&e.list) {
		return
	}
	changed := !slices.Equal(e.list.Nodes, l.Nodes)
	e.list, e.heard = *l, time.Now()
	if !changed {
		return
	}
	b.cfg.Logger.Info("a region's control nodes are others than before", "of", l.Region, "nodes", l.Nodes)
	if err := b.save(); err != nil {
		b.cfg.Logger.Warn("the control nodes are not remembered: after a restart those configured are asked", "file", b.cfg.File, "err", err)
	}
}

// save writes the file whole or not at all. mu is held.
func (b *Book) save() error {
	if b.cfg.File == "" {
		return nil
	}
	var lists []List
	for _, e := range b.learned {
		lists = append(lists, e.list)
	}
	slices.SortFunc(lists, func(x, y List) int { return bytes.Compare([]byte(x.Region), []byte(y.Region)) })
	text, err := json.MarshalIndent(lists, "", "  ")
	if err != nil {
		return err
	}
	part := b.cfg.File + ".part"
	f, err := os.OpenFile(filepath.Clean(part), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(part, b.cfg.File)
}
