package dev

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

const (
	socketName    = "supervisor.sock"
	maxSocketPath = 107 // bytes; the kernel takes no longer one
)

// The supervisor's socket speaks one JSON object a line. A hold lasts as long
// as the connection that asked for it: a drill tool that dies releases it.
type supervisorRequest struct {
	Op     string `json:"op"` // hold, release, status
	Region string `json:"region"`
}

type supervisorAnswer struct {
	OK        bool            `json:"ok"`
	Error     string          `json:"error,omitempty"`
	Processes []processStatus `json:"processes,omitempty"`
}

type processStatus struct {
	Name      string `json:"name"`
	Region    string `json:"region"`
	Role      string `json:"role"`
	PID       int    `json:"pid"`
	WorkerPID int    `json:"worker_pid,omitempty"`
	State     string `json:"state"` // running, held, exited
}

func (s *supervisor) serve(ctx context.Context, l net.Listener, regions []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		return l.Close()
	})
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				err = nil
			}
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // unblocks the read below
			defer stop()
			s.attend(ctx, conn, regions)
			return nil
		})
	}
}

func (s *supervisor) attend(ctx context.Context, conn net.Conn, regions []string) {
	defer conn.Close()
	held := map[string]bool{}
	defer func() {
		for region := range held {
			s.log("the connection that held %s is gone: released", region)
			s.release(region)
		}
	}()
	enc := json.NewEncoder(conn)
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var req supervisorRequest
		ans := supervisorAnswer{OK: true}
		err := json.Unmarshal(lines.Bytes(), &req)
		switch {
		case err != nil:
		case req.Op == "status":
			ans.Processes = s.status(ctx)
		case !slices.Contains(regions, req.Region):
			err = errUnknownRegion
		case req.Op == "hold" && !held[req.Region]:
			held[req.Region] = true
			s.hold(req.Region)
			s.log("restarts of %s are withheld", req.Region)
		case req.Op == "release" && held[req.Region]:
			delete(held, req.Region)
			s.release(req.Region)
			s.log("restarts of %s are released", req.Region)
		default:
			err = errors.New("want op hold, release (of what this connection holds) or status")
		}
		if err != nil {
			ans = supervisorAnswer{Error: err.Error()}
		}
		if enc.Encode(ans) != nil {
			return
		}
	}
}

func (s *supervisor) status(ctx context.Context) []processStatus {
	s.learnWorkers(ctx)
	var out []processStatus
	for _, p := range s.list() {
		st := processStatus{Name: p.node.name, Region: s.region(p.node), Role: string(p.node.role), PID: p.pid, State: "running"}
		st.WorkerPID = p.worker.alive()
		if p.pid == 0 {
			st.State = "exited"
			s.mu.Lock()
			if s.holds[st.Region] > 0 {
				st.State = "held"
			}
			s.mu.Unlock()
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b processStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}
