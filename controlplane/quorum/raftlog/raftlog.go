// Package raftlog lets raft and its log speak through slog. What they say may
// not enter, but for how often it is worth saying.
package raftlog

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

type logger struct {
	to   *slog.Logger
	name string
	args []any
	said *sync.Map // message -> time.Time of its last appearance
}

const repeatAfter = 5 * time.Second

// New returns a logger that speaks to to. What raft calls info is of interest
// only to whoever debugs an election, so it becomes debug. A peer that is down
// makes raft complain several times a second: above debug, each kind of message
// appears once per 5 s.
func New(to *slog.Logger) hclog.Logger { return &logger{to: to, said: new(sync.Map)} }

var _ hclog.Logger = (*logger)(nil)

func (l *logger) Log(level hclog.Level, msg string, args ...any) {
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

func (l *logger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *logger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *logger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *logger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *logger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *logger) enabled(at slog.Level) bool { return l.to.Enabled(context.Background(), at) }

func (l *logger) IsTrace() bool { return false }
func (l *logger) IsDebug() bool { return l.enabled(slog.LevelDebug) }
func (l *logger) IsInfo() bool  { return l.enabled(slog.LevelDebug) }
func (l *logger) IsWarn() bool  { return l.enabled(slog.LevelInfo) }
func (l *logger) IsError() bool { return l.enabled(slog.LevelWarn) }

func (l *logger) ImpliedArgs() []any { return l.args }
func (l *logger) Name() string       { return l.name }

func (l *logger) With(args ...any) hclog.Logger {
	return &logger{to: l.to.With(args...), name: l.name, said: l.said, args: append(l.args[:len(l.args):len(l.args)], args...)}
}

func (l *logger) Named(name string) hclog.Logger {
	return &logger{to: l.to, name: name, args: l.args, said: l.said}
}
func (l *logger) ResetNamed(name string) hclog.Logger { return l.Named(name) }

func (l *logger) SetLevel(hclog.Level)  {}
func (l *logger) GetLevel() hclog.Level { return hclog.Debug }

func (l *logger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(nil), "", 0)
}

func (l *logger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return lineWriter{l} }

type lineWriter struct{ to *logger }

func (w lineWriter) Write(p []byte) (int, error) {
	w.to.Debug(string(p))
	return len(p), nil
}
