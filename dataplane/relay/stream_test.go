package relay

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect/stream"
	"ringmain/internal/testkit/synckit"
)

// played is what an upstream sends, in turn: bytes, or a pause. It ends with
// "eof", or stays silent.
type played struct {
	ctx  context.Context
	left []any
}

func (p *played) Read(b []byte) (int, error) {
	for len(p.left) > 0 {
		next := p.left[0]
		p.left = p.left[1:]
		switch v := next.(type) {
		case time.Duration:
			select {
			case <-time.After(v):
			case <-p.ctx.Done():
				return 0, p.ctx.Err()
			}
		case string:
			if v == "eof" {
				return 0, io.EOF
			}
			return copy(b, v), nil
		}
	}
	<-p.ctx.Done()
	return 0, p.ctx.Err()
}

func (p *played) Close() error { return nil }

// TestStreamClock plays upstreams in virtual time: when a stream ends, and how.
func TestStreamClock(t *testing.T) {
	text := func(s string) string {
		return "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" + s + "\"},\"finish_reason\":null}]}\n\n"
	}
	finish := "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
	figures := "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n"
	done := "data: [DONE]\n\n"
	message := "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{}}\n\n"
	stop := "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":3}}\n\n"
	second := time.Second
	const picture, heard = "/v1/images/generations", "/v1/audio/transcriptions"
	partial := "event: image_generation.partial_image\ndata: {\"type\":\"image_generation.partial_image\"}\n\n"
	completed := "event: image_generation.completed\ndata: {\"type\":\"image_generation.completed\"}\n\n"
	delta := "data: {\"type\":\"transcript.text.delta\"}\n\n"
	transcript := "data: {\"type\":\"transcript.text.done\"}\n\n"
	for _, c := range []struct {
		name     string
		path     string
		sent     []any
		got      string // all that is passed on
		last     string // the closing event; empty = it breaks
		outcome  breaker.Outcome
		after    time.Duration
		finished bool
		skipped  int
	}{
		{"whole", "/v1/chat/completions", []any{text("a"), second, finish + figures + done}, text("a") + finish, done, 0, second, false, 0},
		{"the closing event is late", "/v1/chat/completions", []any{text("a"), finish + figures, second, done}, text("a") + finish, done, 0, closingTime, true, 0},
		{"the closing event never comes", "/v1/chat/completions", []any{text("a"), finish + figures, "eof"}, text("a") + finish, done, 0, 0, true, 0},
		{"the figures are late", "/v1/chat/completions", []any{text("a"), finish, second / 2, figures, second}, text("a") + finish, done, 0, second/2 + closingTime, true, 0},
		{"the figures never come", "/v1/chat/completions", []any{text("a"), finish}, text("a") + finish, done, 0, figuresTime, true, 0},
		{"comments keep nothing open", "/v1/chat/completions", []any{text("a"), finish + figures, second / 5, ": x\n\n", second / 5, ": x\n\n", second / 5, ": x\n\n"},
			text("a") + finish + ": x\n\n", done, 0, closingTime, true, 0},
		{"garbage instead of the closing event", "/v1/chat/completions", []any{text("a"), finish + figures, "data: [DO\n\n"}, text("a") + finish, done, 0, closingTime, true, 1},
		{"what says nothing is left out", "/v1/chat/completions", []any{text("a") + "data:\n\n" + text("b"), "event: x\n\n", finish + done}, text("a") + text("b") + finish, done, 0, 0, false, 2},
		{"an empty event at the start holds nothing back", "/v1/chat/completions", []any{": x\n\ndata:\n\n" + text("a"), second, finish + done}, text("a") + finish, done, 0, second, false, 1},
		{"a stall", "/v1/chat/completions", []any{text("a"), second, text("b")}, text("a") + text("b"), "", breaker.Timeout, 21 * second, false, 0},
		{"an end too early", "/v1/chat/completions", []any{text("a"), "eof"}, text("a"), "", breaker.Transport, 0, false, 0},
		{"garbage", "/v1/chat/completions", []any{text("a"), text("b") + text("\xff") + text("c"), finish + done}, text("a") + text("b"), "", breaker.ServerError, 0, false, 0},
		{"an error event", "/v1/chat/completions", []any{text("a"), "data: {\"error\":{\"code\":\"x\"}}\n\n"}, text("a"), "", breaker.ServerError, 0, false, 0},
		{"a filter's error event", "/v1/chat/completions", []any{text("a"), "data: {\"error\":{\"code\":\"content_filter\"}}\n\n"}, text("a"), "", breaker.Refused, 0, false, 0},
		{"an early filter's error event", "/v1/chat/completions", []any{"data: {\"error\":{\"code\":\"content_filter\"}}\n\n"}, "", "", breaker.Refused, 0, false, 0},
		{"a message that is not stopped", "/v1/messages", []any{message, stop}, message + stop, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", 0, closingTime, true, 0},
		{"a response whose end is missing", "/v1/responses", []any{"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n", "eof"},
			"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n", "", breaker.Transport, 0, false, 0},
		{"a picture", picture, []any{partial, second, completed, "eof"}, partial, completed, 0, second, false, 0},
		{"nothing but the picture", picture, []any{completed, "eof"}, "", completed, 0, 0, false, 0},
		{"a picture whose connection stays open", picture, []any{partial, second, completed}, partial, completed, 0, second + closingTime, false, 0},
		{"a mark after the picture", picture, []any{completed, second / 10, done}, "", completed + done, 0, second / 10, false, 0},
		{"a mark at once", heard, []any{delta + transcript + done, "eof"}, delta, transcript + done, 0, 0, false, 0},
		{"no mark", heard, []any{delta, transcript + ": x\n\n", "eof"}, delta, transcript + ": x\n\n", 0, 0, false, 0},
		{"a mark alone", heard, []any{delta, done}, delta, done, 0, 0, false, 0},
		{"garbage after the picture", picture, []any{partial, completed + "data: {\n\n", second}, partial, completed, 0, 0, false, 1},
		{"a picture that is not finished", picture, []any{partial, "eof"}, partial, "", breaker.Transport, 0, false, 0},
		{"a picture that stalls", picture, []any{partial, second, partial}, partial + partial, "", breaker.Timeout, 21 * second, false, 0},
		{"a moderator", picture, []any{partial, "event: error\ndata: {\"type\":\"error\",\"error\":{\"code\":\"moderation_blocked\"}}\n\n"}, partial, "", breaker.Refused, 0, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synckit.Test(t, func(t *testing.T) {
				client := New(Config{})
				defer client.Close()
				a := newAttempt(t.Context(), Timeouts{Connect: second, FirstByte: 20 * second, Idle: 20 * second, Total: time.Minute})
				a.watch()
				r := &Result{client: client, attempt: a, ContentType: "text/event-stream"}
				defer r.Release()
				ep := endpointOf(c.path)
				began := time.Now()
				r = client.stream(r, &played{a, c.sent}, stream.Stream{Dialect: ep.Dialect, Endpoint: ep, Choices: 1}, 20*second)
				if r.Cause != nil {
					t.Fatal(r.Cause)
				}
				var got strings.Builder
				for {
					b := r.Stream.Next()
					got.Write(b.Forward)
					if b.Last == nil && b.Broken == nil {
						continue
					}
					if string(b.Last) != c.last || b.Broken != nil && b.Broken.Outcome != c.outcome || (b.Broken == nil) != (c.last != "") {
						t.Errorf("closed with %q, broken %+v", b.Last, b.Broken)
					}
					break
				}
				if took := time.Since(began); got.String() != c.got || took != c.after {
					t.Errorf("after %s, want %s: %q, want %q", took, c.after, got.String(), c.got)
				}
				if r.Stream.Finished() != c.finished || r.Stream.Skipped() != c.skipped {
					t.Errorf("finished %t, skipped %d", r.Stream.Finished(), r.Stream.Skipped())
				}
			})
		})
	}
}
