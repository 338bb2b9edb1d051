package breaker

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"ringmain/internal/testkit/synckit"
)

func TestClassify(t *testing.T) {
	want := map[Outcome]Verdict{
		OK: Success, ClientError: Success,
		Refused: Ignored, ClientGone: Ignored, Behind: Ignored, Expired: Ignored,
		Throttled: Failure, ServerError: Failure, Unauthorized: Failure, Transport: Failure, Timeout: Failure,
	}
	names := map[string]bool{}
	for o := Outcome(0); int(o) < len(outcomeNames); o++ {
		v, ok := want[o]
		if !ok || Classify(o) != v {
			t.Errorf("%s: %d", o, Classify(o))
		}
		names[o.String()] = true
	}
	if len(names) != len(want) || Outcome(99).String() != "unknown" || Classify(99) != Ignored {
		t.Error("names")
	}
}

// naive is a circuit that keeps its whole history and reads it anew each time.
type naive struct {
	rules   Rules
	start   time.Time // of the present state
	open    bool
	trial   bool // half-open, one under way
	history []event
}

type event struct {
	at     time.Time
	failed bool
}

func (n *naive) state(now time.Time) string {
	switch {
	case !n.open:
		return "closed"
	case now.After(n.start.Add(n.rules.Rest)):
		return "half-open"
	}
	return "open"
}

func (n *naive) set(open bool, now time.Time) {
	n.open, n.start, n.trial, n.history = open, now, false, nil
}

func (n *naive) outcome(now time.Time, failed bool) {
	n.history = append(n.history, event{now, failed})
	bucket := func(t time.Time) int64 { return int64(t.Sub(n.start) / (n.rules.Window / buckets)) }
	run, known, failures := uint32(0), uint32(0), uint32(0)
	for _, e := range n.history {
		if run++; !e.failed {
			run = 0
		}
		if bucket(now)-bucket(e.at) < buckets {
			known++
			if e.failed {
				failures++
			}
		}
	}
	if failed && (run >= n.rules.Run || known >= n.rules.Least && float64(failures) >= n.rules.Share*float64(known)) {
		n.set(true, now)
	}
}

// TestNaiveTwin drives both through 50,000 random sequences on a fake clock.
func TestNaiveTwin(t *testing.T) {
	sequences := 50_000
	if testing.Short() {
		sequences = 5_000
	}
	synckit.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(7, 9))
		key := Key{Owner: "up", Part: "model"}
		opened := 0
		for seq := range sequences {
			rules := Rules{Run: uint32(2 + rng.IntN(4)), Share: 0.5, Least: uint32(4 + rng.IntN(6)), Window: 10 * time.Second, Rest: 5 * time.Second}
			s := New(rules, nil)
			n := &naive{rules: rules, start: time.Now()}
			s.circuit(key) // starts its clock
			health := rng.Float64()
			for step := range 30 {
				time.Sleep(time.Duration(1 + rng.IntN(1500*int(time.Millisecond))))
				now := time.Now()
				state := n.state(now)
				ticket, ok := s.Allow(key)
				if want := state != "open"; ok != want {
					t.Fatalf("sequence %d step %d: allowed %t in state %s", seq, step, ok, state)
				}
				if !ok {
					opened++
					continue
				}
				var o Outcome
				switch x := rng.Float64(); {
				case x < 0.1:
					o = Refused
				case x < 0.1+0.9*health:
					o = OK
				default:
					o = Timeout
				}
				if state == "half-open" {
					if _, second := s.Allow(key); second {
						t.Fatal("two trials at once")
					}
				}
				ticket.Done(o)
				switch v := Classify(o); {
				case v == Ignored:
				case state == "half-open":
					n.set(v == Failure, now)
				default:
					n.outcome(now, v == Failure)
				}
			}
		}
		if opened < sequences {
			t.Fatalf("only %d refusals: the sequences test little", opened)
		}
	})
}

func TestSlowFailuresCount(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		s := New(Rules{Run: 3}, nil)
		for range 3 {
			ticket, ok := s.Allow(Peer("n"))
			if !ok {
				t.Fatal("refused too soon")
			}
			time.Sleep(time.Minute) // longer than the window
			ticket.Done(Timeout)
		}
		if !s.Open(Peer("n")) {
			t.Fatal("three slow failures in a row must open the circuit")
		}
	})
}

func TestLateOutcomesOfAnEarlierStateDoNotCount(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var changes []string
		s := New(Rules{Run: 2, Rest: time.Second}, func(k Key, state string) {
			mu.Lock()
			defer mu.Unlock()
			changes = append(changes, k.String()+" "+state)
		})
		early, _ := s.Allow(Peer("n"))
		earlier, _ := s.Allow(Peer("n"))
		for range 2 {
			ticket, _ := s.Allow(Peer("n"))
			ticket.Done(Transport)
		}
		time.Sleep(time.Second + 1)
		early.Done(OK) // asked before the fault: no proof of recovery
		if s.Snapshot()["peer/n"] != "half-open" {
			t.Fatal(s.Snapshot())
		}
		trial, ok := s.Allow(Peer("n"))
		if !ok {
			t.Fatal("no trial")
		}
		trial.Done(ClientGone) // says nothing: the next one tries
		trial, ok = s.Allow(Peer("n"))
		if !ok {
			t.Fatal("no second trial")
		}
		trial.Done(OK)
		earlier.Done(Transport)
		if len(s.Snapshot()) != 0 {
			t.Fatal(s.Snapshot())
		}
		if got := fmt.Sprint(changes); got != "[peer/n open peer/n half-open peer/n closed]" {
			t.Fatal(got)
		}
		Ticket{}.Done(Timeout)
	})
}

func TestConcurrent(t *testing.T) {
	s := New(Rules{}, nil)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 500 {
				k := Key{Owner: "u", Part: fmt.Sprint(j % 3)}
				if ticket, ok := s.Allow(k); ok {
					ticket.Done(Outcome((i + j) % len(outcomeNames)))
				}
				s.Open(k)
				s.Snapshot()
			}
		})
	}
	wg.Wait()
}

func BenchmarkAllow(b *testing.B) {
	s := New(Rules{}, nil)
	k := Key{Owner: "u", Part: "m"}
	b.ReportAllocs()
	for b.Loop() {
		t, _ := s.Allow(k)
		t.Done(OK)
	}
}

// TestSlowStart: after a rest and a good trial, the share of the traffic grows
// from a tenth to all of it, evenly; another failure starts it anew.
func TestSlowStart(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		s := New(Rules{Run: 2, Rest: 5 * time.Second, Ramp: 10 * time.Second}, nil)
		key := Key{Owner: "up", Part: "m"}
		share := func(want float64) {
			t.Helper()
			if got := s.Share(key, time.Now()); got < want-1e-9 || got > want+1e-9 {
				t.Errorf("share %.3f, want %.3f", got, want)
			}
		}
		try := func(o Outcome) {
			t.Helper()
			ticket, ok := s.Allow(key)
			if !ok {
				t.Fatal("not let through")
			}
			ticket.Done(o)
		}
		share(1) // never seen
		for range 2 {
			for range 2 {
				try(ServerError)
			}
			if !s.Open(key) {
				t.Fatal("not open")
			}
			time.Sleep(5*time.Second + time.Millisecond)
			try(OK) // the trial
			share(0.1)
			time.Sleep(5 * time.Second)
			share(0.55)
			time.Sleep(4 * time.Second)
			share(0.91)
			time.Sleep(time.Second)
			share(1)
		}
		s.Pause(key, time.Now().Add(3*time.Second))
		share(0)
		time.Sleep(3 * time.Second)
		share(1)
	})
}

// TestSilentTrials: a trial that is silent, as a model that thinks is for
// minutes, keeps others away no longer than half a minute, and counts when it ends.
func TestSilentTrials(t *testing.T) {
	key := Key{Owner: "up", Part: "model"}
	for name, c := range map[string]struct {
		first, second Outcome // of the two, in the order in which they end
		then          string
	}{
		"the second answers":                {ClientGone, OK, "closed"},
		"the first answers":                 {OK, Timeout, "closed"},
		"the first fails":                   {Timeout, OK, "open"},
		"nobody knows, then the second one": {Refused, Timeout, "open"},
	} {
		synckit.Test(t, func(t *testing.T) {
			s := New(Rules{Run: 1}, nil)
			ticket, _ := s.Allow(key)
			ticket.Done(Timeout)
			time.Sleep(5*time.Second + time.Millisecond)
			first, ok := s.Allow(key)
			if !ok {
				t.Fatalf("%s: no trial", name)
			}
			time.Sleep(30 * time.Second)
			if _, ok := s.Allow(key); ok {
				t.Fatalf("%s: another trial at once", name)
			}
			time.Sleep(time.Millisecond)
			second, ok := s.Allow(key)
			if !ok {
				t.Fatalf("%s: the first one keeps the second away", name)
			}
			if _, ok := s.Allow(key); ok {
				t.Fatalf("%s: and a third", name)
			}
			first.Done(c.first)
			if _, ok := s.Allow(key); ok != (c.then == "closed" && c.first == OK) {
				t.Errorf("%s: after the first, allowed %t", name, ok)
			}
			second.Done(c.second)
			state, shut := s.Snapshot()[key.String()]
			if !shut {
				state = "closed"
			}
			if state != c.then {
				t.Errorf("%s: %s", name, state)
			}
		})
	}
}
