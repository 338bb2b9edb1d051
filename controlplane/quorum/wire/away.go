package wire

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// away knows the nodes that did not take the last message, for those that wait
// until they do. Raft's heartbeats, which go on all the while, find out.
type away struct {
	stop <-chan struct{} // closed when nobody is to wait any more

	mu     sync.Mutex
	back   map[raft.ServerID]chan struct{}          // closed when the node is back
	wanted func(id raft.ServerID, term uint64) bool // nil before raft runs
}

// lookAgain is how often one who waits asks whether its message is still wanted.
const lookAgain = 100 * time.Millisecond

func newAway(stop <-chan struct{}) *away {
	return &away{stop: stop, back: make(map[raft.ServerID]chan struct{})}
}

// follow has waiting end when wanted says so of the message's term.
func (a *away) follow(wanted func(id raft.ServerID, term uint64) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wanted = wanted
}

// note takes down whether the node took a message.
func (a *away) note(id raft.ServerID, took bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch back, is := a.back[id]; {
	case took && is:
		close(back)
		delete(a.back, id)
	case !took && !is:
		a.back[id] = make(chan struct{})
	}
}

// wait returns once the node is not away, or the leader of term wants nothing
// from it any more: it leads no longer, or the node is no member. It says
// whether that took any time.
func (a *away) wait(id raft.ServerID, term uint64) (waited bool) {
	for {
		a.mu.Lock()
		back, wanted := a.back[id], a.wanted
		a.mu.Unlock()
		if back == nil || wanted == nil || !wanted(id, term) {
			return waited
		}
		waited = true
		select {
		case <-back:
			return waited
		case <-time.After(lookAgain):
		case <-a.stop:
			return waited
		}
	}
}
