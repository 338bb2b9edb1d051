package simmodel

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// suffix is what a model name may carry to set pace, shape and fault of one
// answer.
type suffix struct {
	first  *time.Duration // ft: wait before the first byte
	gap    time.Duration  // gap: wait between the head of a stream and its first event
	tps    *float64       // tps: tokens per second
	chunk  int            // chunk: characters in each event, as Config.Chunk
	write  int            // write: most bytes in each write, as Config.Write
	drift  int            // drift: the token from which each answer is another; -1 = none
	window int            // window: prompts over this many tokens are too long; 0 = none
	status int            // status: of QuirkStatus
	retry  time.Duration  // retry: what Fault429 asks for
	fault  string         // cut, end, stall, error, garbage, bad: see breaks
	at     int            // the content event before which fault acts
}

// splitModel takes ":key=value" parts off a model name. What they ask for
// changes no word of the answer (but drift), so that two names may stand for
// one model at two providers. Colons without "=" belong to the name.
func splitModel(model string) (base string, s suffix, err error) {
	s.drift = -1
	parts := strings.Split(model, ":")
	kept := []string{parts[0]}
	for _, part := range parts[1:] {
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			kept = append(kept, part)
			continue
		}
		var d time.Duration
		var n int
		var bad error
		want := "a count such as " + key + "=20"
		switch key {
		case "ft", "gap", "retry":
			want = "a duration such as " + key + "=250ms"
			if d, bad = time.ParseDuration(value); d < 0 {
				bad = strconv.ErrRange
			}
		case "tps":
			want = "a number such as tps=20"
			var f float64
			if f, bad = strconv.ParseFloat(value, 64); f < 0 {
				bad = strconv.ErrRange
			}
			s.tps = &f
		default:
			if n, bad = strconv.Atoi(value); n < 0 {
				bad = strconv.ErrRange
			}
		}
		switch key {
		case "ft":
			s.first = &d
		case "gap":
			s.gap = d
		case "retry":
			s.retry = d
		case "tps":
		case "chunk":
			s.chunk = n
		case "write":
			s.write = n
		case "drift":
			s.drift = n
		case "window":
			s.window = n
		case "status":
			if s.status = n; n < 200 || n > 599 {
				bad = strconv.ErrRange
			}
		default:
			if s.fault, s.at = breaks[key], n; s.fault == "" {
				return "", suffix{}, fmt.Errorf("model suffix %q is not known", part)
			}
		}
		if bad != nil {
			return "", suffix{}, fmt.Errorf("model suffix %q: want %s", part, want)
		}
	}
	return strings.Join(kept, ":"), s, nil
}
