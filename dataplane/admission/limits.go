package admission

import (
	"sync"
	"time"
)

// Sign is what an answer says about how loaded its upstream is.
type Sign uint8

// Signs.
const (
	Neutral    Sign = iota // says nothing: a client that left, a refusal, our own mistake
	Good                   // answered
	Overloaded             // 429, 503, 529, or nothing in time
)

// LimitsConfig of Limits. Zero values take the defaults in brackets.
type LimitsConfig struct {
	Floor int // the adaptive limit never goes below [16]
	Top   int // nor above, where it starts [16384]: streams that are merely open count against it, and say nothing until they end
	Start int // limit where nothing is known [Top]
}

// Limits bounds how many requests each model of each upstream has at once, since
// providers limit each model by itself, as TCP bounds what is in flight
// (Jacobson, "Congestion Avoidance and Control", 1988): it falls by a factor
// when the signs of overload are many, grows quickly up to where they came, and
// slowly beyond. A few signs among many answers are about those requests, such
// as one that is over its customer's tokens a minute whenever it is sent.
// Latency is no sign: answers of language models differ in length by orders of
// magnitude. It is safe for concurrent use.
type Limits struct {
	cfg  LimitsConfig
	mu   sync.Mutex
	all  map[place]*limit
	used map[string]int // by upstream
}

// place is what is limited.
type place struct{ upstream, model string }

type limit struct {
	most   float64
	knee   float64 // limit at the last sign of overload; below it the limit doubles per round of answers
	used   int
	eased  time.Time // last decrease: one per round of answers, not one per answer
	latest time.Time

	since     time.Time // start of the present window
	good, bad int       // answers in it
}

// NewLimits makes Limits.
func NewLimits(cfg LimitsConfig) *Limits {
	if cfg.Floor <= 0 {
		cfg.Floor = 16
	}
	if cfg.Top <= 0 {
		cfg.Top = 16384
	}
	if cfg.Start <= 0 {
		cfg.Start = cfg.Top
	}
	return &Limits{cfg: cfg, all: make(map[place]*limit), used: make(map[string]int)}
}

const (
	tested    = 0.8         // share of the limit that must be used for it to grow
	nearKnee  = 0.9         // of the knee, from which on growth is slow
	ease      = 0.7         // of the limit after a sign of overload
	easeEvery = time.Second // at most so often
	healed    = time.Minute // after which nothing is left of a sign of overload
	within    = 10 * time.Second
	fewest    = 3         // signs of overload within that time, without which it does not fall
	portion   = 0.05      // of the answers within that time that must be such signs
	forget    = time.Hour // an upstream that is not asked for so long
)

// Acquire takes a place for model at upstream, of which most (0 = no bound of
// its own) may be used at once for all its models. False: it is at its limit;
// ask another. Release gives the place back.
func (l *Limits) Acquire(upstream, model string, most uint32, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.all[place{upstream, model}]
	if x == nil {
		l.sweep(now)
		x = &limit{most: float64(l.cfg.Start)}
		l.all[place{upstream, model}] = x
	}
	x.latest = now
	if x.most < float64(l.cfg.Start) && now.Sub(x.eased) >= healed && float64(x.used) < x.most*tested {
		x.most = float64(l.cfg.Start) // nobody needed more since, or it would have grown
	}
	if x.used >= int(x.most) || most > 0 && l.used[upstream] >= int(most) {
		return false
	}
	x.used++
	l.used[upstream]++
	return true
}

// Release gives back what Acquire took at began, with what the answer said.
func (l *Limits) Release(upstream, model string, s Sign, began, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.all[place{upstream, model}]
	if x == nil || x.used == 0 {
		return
	}
	busy := float64(x.used)
	x.used--
	l.used[upstream]--
	if now.Sub(x.since) >= within {
		x.since, x.good, x.bad = now, 0, 0
	}
	switch s {
	case Good:
		x.good++
		// Only a limit that was nearly reached was tested.
		if busy < x.most*tested {
			break
		}
		step := 1.0
		if x.most >= x.knee*nearKnee && now.Sub(x.eased) < healed {
			step = float64(l.cfg.Floor) / x.most
		}
		x.most = min(x.most+step, float64(l.cfg.Top))
	case Overloaded:
		// Requests that began before the last decrease say nothing new.
		if !began.After(x.eased) {
			break
		}
		x.bad++
		if x.bad >= fewest && float64(x.bad) >= portion*float64(x.good+x.bad) && now.Sub(x.eased) >= easeEvery {
			// A limit far above what was used did not cause this.
			x.knee = min(x.most, 2*busy)
			x.most = max(x.knee*ease, min(float64(l.cfg.Floor), x.most))
			x.eased, x.since, x.good, x.bad = now, now, 0, 0
		}
	case Neutral:
	}
}

// Limit gives the present limit of model at upstream and how much of it is used.
func (l *Limits) Limit(upstream, model string) (most, used int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.all[place{upstream, model}]; x != nil {
		return int(x.most), x.used
	}
	return l.cfg.Start, 0
}

// Used is how many requests upstream has at the moment, for all its models.
func (l *Limits) Used(upstream string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used[upstream]
}

// Each calls f with every present limit, for metrics. f must not call Limits.
func (l *Limits) Each(f func(upstream, model string, most int)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, x := range l.all {
		f(p.upstream, p.model, int(x.most))
	}
}

// sweep forgets what is not asked for any more. The caller holds mu.
func (l *Limits) sweep(now time.Time) {
	for p, x := range l.all {
		if x.used == 0 && now.Sub(x.latest) > forget {
			delete(l.all, p)
		}
	}
	for upstream, n := range l.used {
		if n == 0 {
			delete(l.used, upstream)
		}
	}
}
