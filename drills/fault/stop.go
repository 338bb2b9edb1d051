package fault

import (
	"fmt"
	"strings"
	"syscall"
	"time"
)

// Stop freezes processes, and proves it. Continue must follow.
func Stop(ps []Process) (proof string, err error) { return signalEach(ps, syscall.SIGSTOP, true) }

// Continue lets processes go on that Stop froze, and proves it.
func Continue(ps []Process) (proof string, err error) { return signalEach(ps, syscall.SIGCONT, false) }

// obeyWithin is how long a process may take to stop, to go on or to die.
const obeyWithin = 5 * time.Second

func signalEach(ps []Process, signal syscall.Signal, stops bool) (string, error) {
	var proof []string
	for _, p := range ps {
		if err := syscall.Kill(p.PID, signal); err != nil {
			return "", fmt.Errorf("%v to %s (%d): %w", signal, p.Name, p.PID, err)
		}
		for deadline := time.Now().Add(obeyWithin); ; time.Sleep(2 * time.Millisecond) {
			if f := statFields(p.PID); f != nil && startTime(p.PID) != "" && (f[0] == "T") == stops {
				proof = append(proof, fmt.Sprintf("%s: pid %d is in state %s", p.Name, p.PID, f[0]))
				break
			}
			if time.Now().After(deadline) {
				return "", fmt.Errorf("%s (%d) does not take %v", p.Name, p.PID, signal)
			}
		}
	}
	return strings.Join(proof, "; "), nil
}
