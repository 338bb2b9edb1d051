// Package load is an open-loop load generator for the two inference dialects:
// it sends each request at the moment planned for it, however slow the answers
// are, measures from that moment, and checks every answer word for word.
//
// It knows entries, models and answers. It knows no faults, phases or verdicts:
// those belong to drills.
package load

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"ringmain/controlplane"
)

// FrontDoor is the entry name of requests that a balancer gives to a region.
const FrontDoor = "front_door"

// Config says what to send, where, and how fast.
type Config struct {
	Start     time.Time     // every time in a Result counts from here; zero = now
	Duration  time.Duration // of sending; answers may arrive up to Timeout later
	Rate      float64       // requests per second, all entries together
	Seed      uint64        // same seed and Config, same requests at the same moments
	Timeout   time.Duration // of one attempt
	Regions   []Entry       // a client whose region does not answer tries the others in this order
	FrontDoor string        // https URL; "" = none
	Roots     *x509.CertPool
	Key       controlplane.Secret

	Mix            Mix
	FrontDoorShare float64 // share of requests that enter by the front door, 0..1
	RemoteShare    float64 // share of chat requests that ask for RemoteModel
	PinnedShare    float64 // share of region requests pinned to their entry's jurisdiction by idc-residency
	ChatModel      string
	MessagesModel  string
	RemoteModel    string // its only upstream is in one region; "" = none
	PlainTokens    int    // length of plain answers
	StreamTokens   int    // length of streamed answers
	MaxInFlight    int    // requests beyond it are not sent and say so; 0 = 2048
}

// Entry is a region as a client sees it.
type Entry struct {
	Name         string
	URL          string // https
	Jurisdiction string
}

// Mix weighs the four shapes of a request.
type Mix struct {
	Chat           int `yaml:"chat"`
	ChatStream     int `yaml:"chat_stream"`
	Messages       int `yaml:"messages"`
	MessagesStream int `yaml:"messages_stream"`
}

// Class is what became of an attempt, as an official SDK would tell its caller.
type Class string

// Classes. Of all of them only WronglyComplete deceives the client.
const (
	OK              Class = "ok"               // whole, and exactly the answer expected
	Shed            Class = "shed"             // 503 with retry-after
	Failed          Class = "failed"           // no answer: connection refused or broken, or another status
	InBandError     Class = "in_band_error"    // a stream that ended with an error event
	Truncated       Class = "truncated"        // an answer that broke off, or turned to noise, with an error the client sees
	WronglyComplete Class = "wrongly_complete" // ended as if complete, but is not the answer expected
	NotSent         Class = "not_sent"         // the generator had too many in flight; the run proves nothing
)

// Classes in the order in which reports show them.
func Classes() []Class {
	return []Class{OK, Shed, Failed, InBandError, Truncated, WronglyComplete, NotSent}
}

// Attempt is one request as it went over the wire. Times count from
// Config.Start; FirstToken is zero where no content arrived.
type Attempt struct {
	Entry      string
	Sent       time.Duration
	FirstToken time.Duration
	End        time.Duration
	Class      Class
	Status     int    // 0 = no answer began
	Code       string // idc-error-code
	Detail     string // of whatever is not OK
	RequestID  string
	EntryWas   string // idc-entry-region
	Ran        string // idc-region
	Route      string // idc-route
}

// Result is one planned request and the attempts made for it: one at its
// entry, then, while no answer had begun, one at each other region in order.
// Requests by the front door are not repeated: the door is to find a region.
type Result struct {
	Request
	Attempts []Attempt
}

// First is the attempt at the entry itself.
func (r *Result) First() *Attempt { return &r.Attempts[0] }

// Final is what the client was left with.
func (r *Result) Final() *Attempt { return &r.Attempts[len(r.Attempts)-1] }

// Stats says whether the generator kept up with its own plan.
type Stats struct {
	Planned     int
	NotSent     int
	LagP99      time.Duration // sent minus planned
	LagMax      time.Duration
	InFlightMax int
}

func (c *Config) check() error {
	switch {
	case c.Rate <= 0 || c.Duration <= 0 || c.Timeout <= 0:
		return errors.New("load: rate, duration and timeout must be above 0")
	case len(c.Regions) == 0:
		return errors.New("load: no region to enter by")
	case c.Mix.Chat+c.Mix.ChatStream+c.Mix.Messages+c.Mix.MessagesStream == 0:
		return errors.New("load: the mix is empty")
	}
	return nil
}

// Run sends the whole plan and returns when the last answer is in, or soon
// after ctx ended. emit gets each Result as it is complete, from many
// goroutines, and must not block.
func Run(ctx context.Context, cfg Config, emit func(Result)) (Stats, error) {
	if err := cfg.check(); err != nil {
		return Stats{}, err
	}
	if cfg.Start.IsZero() {
		cfg.Start = time.Now()
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = 2048
	}
	plan := Plan(cfg)
	c := newClient(cfg)
	defer c.close()

	var (
		wg       sync.WaitGroup
		inFlight = make(chan struct{}, cfg.MaxInFlight)
		stats    = Stats{Planned: len(plan)}
		lags     = make([]time.Duration, 0, len(plan))
	)
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for _, r := range plan {
		timer.Reset(time.Until(cfg.Start.Add(r.At)))
		select {
		case <-ctx.Done():
			return stats, fmt.Errorf("load: stopped after %d of %d requests: %w", len(lags), len(plan), context.Cause(ctx))
		case <-timer.C:
		}
		lags = append(lags, time.Since(cfg.Start)-r.At)
		select {
		case inFlight <- struct{}{}:
		default:
			stats.NotSent++
			now := time.Since(cfg.Start)
			emit(Result{Request: r, Attempts: []Attempt{{Entry: r.Entry, Sent: now, End: now, Class: NotSent, Detail: "too many requests in flight"}}})
			continue
		}
		stats.InFlightMax = max(stats.InFlightMax, len(inFlight))
		wg.Go(func() {
			emit(c.do(ctx, r))
			<-inFlight
		})
	}
	wg.Wait()
	slices.Sort(lags)
	if n := len(lags); n > 0 {
		stats.LagP99, stats.LagMax = lags[(n*99+99)/100-1], lags[n-1]
	}
	return stats, nil
}
