package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/openai/openai-go/v3"

	"ringmain/drills/fault"
	"ringmain/drills/simmodel"
)

// Both clients go on asking while a region dies and comes back: each call ends
// in the whole answer or in an error of the client's, never in part of an answer.
func TestClientsWhileARegionDies(t *testing.T) {
	d := small(t, 24440, "us-east:us,eu-fra:eu,ap-sg:apac")
	lost := d.Regions[len(d.Regions)-1].Name
	user := []simmodel.Message{{Role: "user", Text: question}}
	chat, far, message := simmodel.Answer(d.Model, user), simmodel.Answer(d.RemoteModel, user), simmodel.Answer(d.MessagesModel, user)

	type caller struct {
		name       string
		want       string
		far        bool // executed in the region that dies
		call       func(context.Context) (string, error)
		good, gone atomic.Int64 // whole answers in all, and while the region was gone
		failed     atomic.Int64
	}
	var callers []*caller
	for entry, base := range map[string]string{"front door": d.FrontDoor, d.Regions[0].Name: d.Regions[0].API} {
		oc, ac := openaiClient(d, base, d.APIKey), anthropicClient(d, base, d.APIKey)
		text := func(whole openai.ChatCompletionAccumulator, err error) (string, error) {
			if err != nil || len(whole.Choices) == 0 {
				return "", err
			}
			return whole.Choices[0].Message.Content, nil
		}
		callers = append(callers,
			&caller{name: "chat at " + entry, want: chat, call: func(ctx context.Context) (string, error) { return text(streamChat(ctx, &oc, chatAsk(d.Model))) }},
			&caller{name: "far chat at " + entry, want: far, far: true, call: func(ctx context.Context) (string, error) {
				return text(streamChat(ctx, &oc, chatAsk(d.RemoteModel)))
			}},
			&caller{name: "plain chat at " + entry, want: chat, call: func(ctx context.Context) (string, error) {
				whole, err := oc.Chat.Completions.New(ctx, chatAsk(d.Model))
				if err != nil {
					return "", err
				}
				return whole.Choices[0].Message.Content, nil
			}},
			&caller{name: "responses at " + entry, want: chat, call: func(ctx context.Context) (string, error) {
				deltas, last, err := streamResponse(ctx, &oc, responseAsk(d.Model))
				if err == nil && last.OutputText() != deltas {
					err = fmt.Errorf("the response says %q after %q", last.OutputText(), deltas)
				}
				return deltas, err
			}},
			&caller{name: "messages at " + entry, want: message, call: func(ctx context.Context) (string, error) {
				m, err := streamMessage(ctx, &ac, messageAsk(d.MessagesModel))
				if err != nil || len(m.Content) == 0 {
					return "", err
				}
				return m.Content[0].Text, nil
			}})
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var gone atomic.Bool
	var all sync.WaitGroup
	for _, c := range callers {
		all.Go(func() {
			for ctx.Err() == nil {
				was := gone.Load()
				one, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
				got, err := c.call(one)
				cancel()
				var oe *openai.Error
				var ae *anthropic.Error
				var netErr *net.OpError
				var urlErr *url.Error
				switch {
				case err == nil && got == c.want:
					c.good.Add(1)
					if was && gone.Load() {
						c.gone.Add(1)
					}
				case err == nil:
					t.Errorf("%s: %q passed for the answer", c.name, got)
				case errors.Is(err, context.DeadlineExceeded):
					t.Errorf("%s: no end in 20 s", c.name)
				default:
					c.failed.Add(1)
					if !errors.As(err, &oe) && !errors.As(err, &ae) && !errors.As(err, &netErr) && !errors.As(err, &urlErr) {
						t.Logf("%s: %T %v", c.name, err, err) // an error event or a broken stream, in the client's words
					}
				}
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	answeredSince := func(before map[*caller]int64) error {
		for _, c := range callers {
			if c.good.Load() <= before[c] {
				return fmt.Errorf("%s: no answer", c.name)
			}
		}
		return nil
	}
	eventually(t, 20*time.Second, func() error { return answeredSince(nil) })
	control, err := fault.Dial(ctx, d.Supervisor)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if err := control.Hold(ctx, lost); err != nil {
		t.Fatal(err)
	}
	killed, err := fault.Kill(ctx, control, lost)
	if err != nil || len(killed.Alive) > 0 {
		t.Fatalf("%v, still there: %v", err, killed.Alive)
	}
	gone.Store(true)
	time.Sleep(5 * time.Second)
	gone.Store(false)
	for _, c := range callers {
		if n := c.gone.Load(); n == 0 && !c.far || n > 0 && c.far {
			t.Errorf("%s: %d whole answers while %s was gone", c.name, n, lost)
		}
		if c.far && c.failed.Load() == 0 {
			t.Errorf("%s: no error, although the only region with its model was gone", c.name)
		}
	}
	if err := control.Release(ctx, lost); err != nil {
		t.Fatal(err)
	}
	before := map[*caller]int64{}
	for _, c := range callers {
		before[c] = c.good.Load()
	}
	eventually(t, 60*time.Second, func() error { return answeredSince(before) })
	stop()
	all.Wait()
	for _, c := range callers {
		t.Logf("%s: %d whole answers, %d of them meanwhile, %d errors", c.name, c.good.Load(), c.gone.Load(), c.failed.Load())
	}
}
