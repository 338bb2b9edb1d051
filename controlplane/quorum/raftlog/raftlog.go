package quorum

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLogger lets raft and its log speak through slog. What raft calls info is
// of interest only to whoever debugs an election, so it becomes debug. A peer
// that is down makes raft complain several times a second: above debug, each
// kind of message appears once per repeatAfter.
type raftLogger struct {
	to   *slog.Logger
	name string
	args []any
	said *sync.Map // message -> time.Time of its last appearance
}

const repeatAfter = 5 * time.Second

func newRaftLogger(to *slog.Logger) *raftLogger { return &raftLogger{to: to, said: new(sync.Map)} }

var _ hclog.Logger = (*raftLogger)(nil)

func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	at := slog.LevelDebug
	switch level {
	case hclog.Warn:
		at = slog.LevelInfo
	case hclog.Error:
		at = slog.LevelWarn
	default:
	}
	if strings.HasPrefix(msg, "unable to get address for server") {
		at = slog.LevelDebug // a node that was added later: the fallback is right
	}
	if !l.to.Enabled(context.Background(), at) {
		return
	}
	if at > slog.LevelDebug {
		now := time.Now()
		if last, ok := l.said.Swap(msg, now); ok && now.Sub(last.(time.Time)) < repeatAfter { //nolint:forcetypeassert // only times are stored
			l.said.Store(msg, last)
			return
		}
	}
	shown := make([]any, 0, len(args))
	for _, a := range args {
		switch v := a.(type) {
		case hclog.Format:
			if len(v) > 0 {
				a = fmt.Sprintf(fmt.Sprint(v[0]), v[1:]...)
			}
		case fmt.Stringer:
			a = v.String()
		}
		shown = append(shown, a)
	}
	l.to.Log(context.Background(), at, "raft: "+msg, shown...)
}

func (l *raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLogger) enabled(at slog.Level) bool { return l.to.Enabled(context.Background(), at) }

func (l *raftLogger) IsTrace() bool { return false }
func (l *raftLogger) IsDebug() bool { return l.enabled(slog.LevelDebug) }
func (l *raftLogger) IsInfo() bool  { return l.enabled(slog.LevelDebug) }
func (l *raftLogger) IsWarn() bool  { return l.enabled(slog.LevelInfo) }
func (l *raftLogger) IsError() bool { return l.enabled(slog.LevelWarn) }

func (l *raftLogger) ImpliedArgs() []any { return l.args }
func (l *raftLogger) Name() string       { return l.name }

func (l *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{to: l.to.With(args...), name: l.name, said: l.said, args: append(l.args[:len(l.args):len(l.args)], args...)}
}

func (l *raftLogger) Named(name string) hclog.Logger {
	return &raftLogger{to: l.to, name: name, args: l.args, said: l.said}
}
func (l *raftLogger) ResetNamed(name string) hclog.Logger { return l.Named(name) }

func (l *raftLogger) SetLevel(hclog.Level)  {}
func (l *raftLogger) GetLevel() hclog.Level { return hclog.Debug }

func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(nil), "", 0)
}

func (l *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return lineWriter{l} }

type lineWriter struct{ to *raftLogger }

func (w lineWriter) Write(p []byte) (int, error) {
	w.to.Debug(string(p))
	return len(p), nil
}
