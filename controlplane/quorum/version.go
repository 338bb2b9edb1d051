package quorum

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane/registry"
)

// askVersion is a stream's only byte, in the place of the kind of a raft
// message, and no such kind. A node answers it with askVersion and the newest
// cluster version that it reads; one of the first release hangs up.
const askVersion = 'v'

// Raise has the region go over to the newest cluster version that this code
// knows, if it has not. All nodes of the region must run, and read that
// version: whoever does not halts at the first command of it. Errors are as of
// Propose, or name the node to be upgraded or started first.
func (q *Quorum) Raise(ctx context.Context) error {
	if err := q.notLeading(); err != nil {
		return err
	}
	var at uint64
	q.machine.view(func(s *registry.State) { at = s.Version() })
	if at >= registry.Version {
		return nil
	}
	for _, server := range q.raft.GetConfiguration().Configuration().Servers {
		if string(server.ID) == q.cfg.Node {
			continue
		}
		v, err := q.peerVersion(ctx, server)
		if err != nil {
			return fmt.Errorf("quorum: node %s does not say which cluster version it reads: start it, with this release: %w", server.ID, err)
		}
		if v < registry.Version {
			return fmt.Errorf("quorum: node %s reads cluster version %d, not %d: upgrade it first", server.ID, v, registry.Version)
		}
	}
	out, err := q.submit(&proposal{ctx: ctx, command: &registry.Command{Type: registry.CmdVersion, Version: registry.Version}, done: make(chan answer, 1)})
	if err == nil {
		err = out.Err
	}
	if err == nil {
		q.log.Info("the region went over to a newer cluster version", "from", at, "to", registry.Version)
	}
	return err
}

// peerVersion asks a node which cluster version it reads.
func (q *Quorum) peerVersion(ctx context.Context, server raft.Server) (v uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	c, err := q.streams.open(ctx, string(server.ID))
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }() // everything was said
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return 0, err
	}
	if _, err := c.Write([]byte{askVersion}); err != nil {
		return 0, err
	}
	var answer [2]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return 0, err
	}
	if answer[0] != askVersion {
		return 0, fmt.Errorf("it answered %x", answer)
	}
	return uint64(answer[1]), nil
}

// asked is an accepted stream, which may ask for the version instead of
// carrying raft's messages. Only raft's reader of the stream calls Read.
type asked struct {
	net.Conn
	first sync.Once
}

// Read ends the stream for raft if it asks for the version.
func (a *asked) Read(b []byte) (int, error) {
	n, err := a.Conn.Read(b)
	if n > 0 {
		a.first.Do(func() {
			if b[0] != askVersion {
				return
			}
			n, err = 0, io.EOF
			_ = a.Conn.SetWriteDeadline(time.Now().Add(streamTimeout)) // if it fails, so does the write
			_, _ = a.Conn.Write([]byte{askVersion, registry.Version})  // the asker asks again
		})
	}
	return n, err
}
