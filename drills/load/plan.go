package load

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Request is one planned request.
type Request struct {
	N         int
	At        time.Duration // when a client wants it; latency counts from here
	Entry     string        // a region, or FrontDoor
	Messages  bool
	Stream    bool
	Model     string
	Residency string // jurisdiction it is pinned to
	HTTP2     bool
}

// Plan is the whole load, a pure function of cfg: the moments are evenly
// spaced, everything else is drawn from the seed.
func Plan(cfg Config) []Request {
	rng := rand.New(rand.NewPCG(cfg.Seed, 0x72696e676d61696e)) //nolint:gosec // G404: a repeatable plan is the point
	gap := time.Duration(float64(time.Second) / cfg.Rate)
	plan := make([]Request, 0, int(cfg.Duration/gap)+1)
	weights := []int{cfg.Mix.Chat, cfg.Mix.ChatStream, cfg.Mix.Messages, cfg.Mix.MessagesStream}
	for at := time.Duration(0); at < cfg.Duration; at += gap {
		r := Request{N: len(plan), At: at, HTTP2: rng.IntN(2) == 0}
		shape := pick(rng, weights)
		r.Messages, r.Stream = shape >= 2, shape%2 == 1
		r.Model = cfg.ChatModel
		remote := rng.Float64() < cfg.RemoteShare
		switch {
		case r.Messages:
			r.Model = cfg.MessagesModel
		case remote && cfg.RemoteModel != "":
			r.Model = cfg.RemoteModel
		}
		front, pinned := rng.Float64() < cfg.FrontDoorShare, rng.Float64() < cfg.PinnedShare
		region := cfg.Regions[rng.IntN(len(cfg.Regions))]
		switch {
		case front && cfg.FrontDoor != "":
			r.Entry = FrontDoor
		default:
			r.Entry = region.Name
			// A pin would also bind the region that runs it, and the remote model has but one.
			if pinned && r.Model != cfg.RemoteModel {
				r.Residency = region.Jurisdiction
			}
		}
		plan = append(plan, r)
	}
	return plan
}

// prompt is unique within a run, so that an answer to another request shows.
func (r Request) prompt(seed uint64) string {
	return fmt.Sprintf("Drill request %d of seed %d: what does a ring main do?", r.N, seed)
}

func pick(rng *rand.Rand, weights []int) int {
	total := 0
	for _, w := range weights {
		total += w
	}
	n := rng.IntN(total)
	for i, w := range weights {
		if n -= w; n < 0 {
			return i
		}
	}
	return 0
}
