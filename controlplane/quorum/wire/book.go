package quorum

import (
	"errors"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
)

// addressBook says where a node is. The replicated membership decides; what is
// configured is the first contact, and tried in turn with it for a node that
// does not answer at its replicated address.
//
// Raft is given names instead of addresses, and streams are opened to a node by
// its name: whoever took over an address must not be taken for the node that
// had it, since its vote would count twice.
type addressBook struct {
	self       Peer
	configured map[raft.ServerID]string

	mu      sync.Mutex
	members func() []raft.Server // the latest membership; nil before raft runs
	missed  map[raft.ServerID]string
	met     map[raft.ServerID]place
}

// place is where a node answered although the membership had it elsewhere.
type place struct{ addr, replicated string }

const nodeMark = "node@" // begins a name that raft takes for an address

var errUnknownNode = errors.New("neither the membership nor the configuration says where the node is")

func newAddressBook(cfg *Config) *addressBook {
	b := &addressBook{self: cfg.self(), configured: make(map[raft.ServerID]string),
		missed: make(map[raft.ServerID]string), met: make(map[raft.ServerID]place)}
	for _, p := range cfg.Peers {
		b.configured[raft.ServerID(p.Node)] = p.Addr
	}
	return b
}

// follow has the book know the membership from now on.
func (b *addressBook) follow(members func() []raft.Server) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members = members
}

// ServerAddr implements raft.ServerAddressProvider. Of this node itself raft
// wants the address, to tell others.
func (b *addressBook) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if id == raft.ServerID(b.self.Node) {
		return raft.ServerAddress(b.self.Addr), nil
	}
	return raft.ServerAddress(nodeMark + string(id)), nil
}

// replicated is the node's address in the membership; "" if it is no member.
func (b *addressBook) replicated(id raft.ServerID) string {
	b.mu.Lock()
	members := b.members
	b.mu.Unlock()
	if members == nil {
		return ""
	}
	for _, s := range members() {
		if s.ID == id {
			return plainAddr(s)
		}
	}
	return ""
}

// find is where to dial the node next; "" if nothing is known of it.
func (b *addressBook) find(id raft.ServerID) string {
	first, second := b.replicated(id), b.configured[id]
	if first == "" {
		return second
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if second != "" && b.missed[id] == first {
		return second
	}
	return first
}

// dialled notes whether the node was at addr.
func (b *addressBook) dialled(id raft.ServerID, addr string, there bool) {
	replicated := b.replicated(id)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !there:
		b.missed[id] = addr
	case replicated != "" && addr != replicated:
		b.met[id] = place{addr, replicated}
	default:
		delete(b.met, id)
	}
}

// moved is where s answers, if the membership has it elsewhere; "" if not.
func (b *addressBook) moved(s raft.Server) string {
	if s.ID == raft.ServerID(b.self.Node) {
		if b.self.Addr != plainAddr(s) {
			return b.self.Addr
		}
		return ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if at := b.met[s.ID]; at.replicated == plainAddr(s) {
		return at.addr
	}
	return ""
}

// plainAddr is a member's address without the mark of its role.
func plainAddr(s raft.Server) string { return strings.TrimPrefix(string(s.Address), readerMark) }
