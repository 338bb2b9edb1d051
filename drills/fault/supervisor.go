// Package fault injects what drills rehearse, and makes sure that it ends: a
// hold on restarts lasts as long as the connection that asked for it, so that
// it is gone even when the tool is killed.
//
// It acts on processes it was told of by the supervisor, never by name, and
// decides nothing: when and how long belong to drills.
package fault

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Process is one node as its supervisor knows it.
type Process struct {
	Name      string `json:"name"`
	Region    string `json:"region"`
	Role      string `json:"role"`                 // control or data
	PID       int    `json:"pid"`                  // data: the keeper's; 0 = not running
	WorkerPID int    `json:"worker_pid,omitempty"` // data: 0 = unknown
	State     string `json:"state"`                // running, held or exited
}

// States of a Process.
const (
	StateRunning = "running"
	StateHeld    = "held"
	StateExited  = "exited"
)

// answerTimeout bounds one question. The supervisor asks each keeper for its
// worker before it answers a status, one second at most.
const answerTimeout = 5 * time.Second

// Supervisor is a connection to the process that restarts the nodes: one JSON
// object a line, one answer a request. Safe for concurrent use.
type Supervisor struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
}

// Dial connects to the supervisor's unix socket.
func Dial(ctx context.Context, socket string) (*Supervisor, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("the supervisor does not answer: is the cluster running? %w", err)
	}
	return &Supervisor{conn: conn, in: bufio.NewReader(conn)}, nil
}

// Close ends the connection and with it every hold asked for on it.
func (s *Supervisor) Close() error { return s.conn.Close() }

// Hold withholds restarts of region until Release, Close, or the end of this process.
func (s *Supervisor) Hold(ctx context.Context, region string) error {
	_, err := s.ask(ctx, "hold", region)
	return err
}

// Release lets restarts of region go on.
func (s *Supervisor) Release(ctx context.Context, region string) error {
	_, err := s.ask(ctx, "release", region)
	return err
}

// Status lists every process.
func (s *Supervisor) Status(ctx context.Context) ([]Process, error) { return s.ask(ctx, "status", "") }

func (s *Supervisor) ask(ctx context.Context, op, region string) (processes []Process, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("supervisor: %s %s: %w", op, region, err)
		}
	}()
	deadline := time.Now().Add(answerTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := s.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(s.conn).Encode(map[string]string{"op": op, "region": region}); err != nil {
		return nil, err
	}
	line, err := s.in.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	var answer struct {
		OK        bool      `json:"ok"`
		Error     string    `json:"error"`
		Processes []Process `json:"processes"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return nil, err
	}
	if !answer.OK {
		return nil, errors.New("refused: " + answer.Error)
	}
	return answer.Processes, nil
}
