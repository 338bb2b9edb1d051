package wire

import (
	"errors"
	"sync"

	"github.com/hashicorp/raft"
)

// book says where a node is. The replicated membership decides; what is
// configured is the first contact, and tried in turn with it for a node that
// does not answer at its replicated address.
//
// Raft is given names instead of addresses, and streams are opened to a node by
// its name: whoever took over an address must not be taken for the node that
// had it, since its vote would count twice.
type book struct {
	self       raft.ServerID
	configured map[raft.ServerID]string

	mu      sync.Mutex
	members func(raft.ServerID) string // where the membership has a node; nil before raft runs
	missed  map[raft.ServerID]string
	met     map[raft.ServerID]place
}

// place is where a node answered although the membership had it elsewhere.
type place struct{ addr, replicated string }

const nodeMark = "node@" // begins a name that raft takes for an address

var errUnknownNode = errors.New("neither the membership nor the configuration says where the node is")

func newBook(cfg *Config) *book {
	b := &book{self: raft.ServerID(cfg.Node), configured: make(map[raft.ServerID]string),
		missed: make(map[raft.ServerID]string), met: make(map[raft.ServerID]place)}
	for node, addr := range cfg.Addrs {
		b.configured[raft.ServerID(node)] = addr
	}
	return b
}

// follow has the book know the membership from now on.
func (b *book) follow(members func(raft.ServerID) string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members = members
}

// ServerAddr implements raft.ServerAddressProvider. Of this node itself raft
// wants the address, to tell others.
func (b *book) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if id == b.self {
		return raft.ServerAddress(b.configured[id]), nil
	}
	return raft.ServerAddress(nodeMark + string(id)), nil
}

// replicated is the node's address in the membership; "" if it is no member.
func (b *book) replicated(id raft.ServerID) string {
	b.mu.Lock()
	members := b.members
	b.mu.Unlock()
	if members == nil {
		return ""
	}
	return members(id)
}

// find is where to dial the node next; "" if nothing is known of it.
func (b *book) find(id raft.ServerID) string {
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
func (b *book) dialled(id raft.ServerID, addr string, there bool) {
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

// moved is where the node answers, if it is not at replicated; "" if it is.
func (b *book) moved(id raft.ServerID, replicated string) string {
	if id == b.self {
		if at := b.configured[id]; at != replicated {
			return at
		}
		return ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if at := b.met[id]; at.replicated == replicated {
		return at.addr
	}
	return ""
}
