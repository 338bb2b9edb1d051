package raftlog

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"ringmain/internal/testkit/synckit"
)

// TestRepeatsSeldom: what raft says over and over is said once in a while.
func TestRepeatsSeldom(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := New(slog.New(slog.NewTextHandler(&out, nil)))
		for range 40 {
			l.With("a", 1).Error("failed to heartbeat to", "peer", hclog.Fmt("%s", "c2"), "error", errors.New("refused"))
			l.Info("of no interest")
			time.Sleep(250 * time.Millisecond)
		}
		if n := strings.Count(out.String(), "failed to heartbeat to"); n != 2 {
			t.Errorf("in 10 s it was said %d times:\n%s", n, out.String())
		}
		if !strings.Contains(out.String(), "peer=c2") || strings.Contains(out.String(), "interest") {
			t.Errorf("it said:\n%s", out.String())
		}
	})
}
