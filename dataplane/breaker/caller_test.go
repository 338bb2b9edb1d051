package breaker

import (
	"testing"
	"time"

	"ringmain/internal/testkit/synckit"
)

// tries asks for who, and reports whether that was allowed.
func tries(s *Set, key Key, who string, o Outcome) bool {
	ticket, ok := s.AllowTo(key, who)
	ticket.Done(o)
	return ok
}

// TestOneCallerOpensForItself: a circuit that the requests of one caller alone
// opened is closed to everybody else until another one's fail, too.
func TestOneCallerOpensForItself(t *testing.T) {
	key := Key{Owner: "up", Part: "m"}
	synckit.Test(t, func(t *testing.T) {
		s := New(Rules{Run: 3}, nil)
		for range 3 {
			if !tries(s, key, "mallory", ServerError) {
				t.Fatal("refused too soon")
			}
		}
		if tries(s, key, "mallory", OK) || !s.OpenTo(key, "mallory") {
			t.Error("open to who broke it")
		}
		if s.Snapshot()[key.String()] != "open" { // nobody knows better yet
			t.Errorf("other nodes are told %v", s.Snapshot())
		}
		for range 20 {
			if s.OpenTo(key, "alice") || !tries(s, key, "alice", OK) || !tries(s, key, "bob", Refused) {
				t.Fatal("shut to others")
			}
		}
		if len(s.Snapshot()) != 0 {
			t.Errorf("other nodes are told %v", s.Snapshot())
		}
		// Now and then it is tried, and breaks it again: to the others that is nothing.
		for range 3 {
			time.Sleep(5*time.Second + time.Millisecond)
			if !tries(s, key, "mallory", ServerError) || tries(s, key, "mallory", ServerError) {
				t.Fatal("not one trial")
			}
			if !tries(s, key, "alice", OK) {
				t.Fatal("shut to others by a trial")
			}
		}
		if s.Share(key, time.Now()) != 1 {
			t.Error("others are on slow start")
		}
		// The upstream is down after all.
		if !tries(s, key, "alice", Transport) || tries(s, key, "alice", OK) || tries(s, key, "bob", OK) || !s.OpenTo(key, "bob") {
			t.Error("open to others that fail, too")
		}
		if s.Snapshot()[key.String()] != "open" {
			t.Errorf("other nodes are told %v", s.Snapshot())
		}
		time.Sleep(5*time.Second + time.Millisecond)
		trial, ok := s.AllowTo(key, "mallory")
		if !ok || tries(s, key, "alice", OK) {
			t.Error("not one trial, of anybody's")
		}
		trial.Done(ServerError)
		if tries(s, key, "alice", OK) {
			t.Error("a trial's failure makes it one caller's again")
		}
		time.Sleep(5*time.Second + time.Millisecond)
		if !tries(s, key, "alice", OK) || !tries(s, key, "mallory", OK) || len(s.Snapshot()) != 0 {
			t.Error("not closed by a good trial")
		}
	})
}

// TestTheOnlyCallerStartsSlowly: where nobody else asks, all is as it is for many.
func TestTheOnlyCallerStartsSlowly(t *testing.T) {
	key := Key{Owner: "up", Part: "m"}
	synckit.Test(t, func(t *testing.T) {
		s := New(Rules{Run: 2}, nil)
		for range 2 {
			tries(s, key, "alice", ServerError)
		}
		time.Sleep(5*time.Second + time.Millisecond)
		trial, ok := s.AllowTo(key, "alice")
		if !ok || tries(s, key, "alice", OK) {
			t.Error("not one trial")
		}
		if trial.Done(OK); s.Share(key, time.Now()) > 0.11 || !tries(s, key, "alice", OK) {
			t.Errorf("closed with a share of %v", s.Share(key, time.Now()))
		}
	})
}

// TestAnybodysTrialCloses: where one caller opened a circuit, another's request is
// the trial once it has rested.
func TestAnybodysTrialCloses(t *testing.T) {
	key := Key{Owner: "up", Part: "m"}
	synckit.Test(t, func(t *testing.T) {
		s := New(Rules{Run: 2}, nil)
		for range 2 {
			tries(s, key, "mallory", ServerError)
		}
		time.Sleep(5*time.Second + time.Millisecond)
		if !tries(s, key, "alice", OK) || !tries(s, key, "mallory", OK) || s.Open(key) {
			t.Error("not closed")
		}
	})
}

// TestSeveralCallersOpenForAll: and so do those who are nobody in particular.
func TestSeveralCallersOpenForAll(t *testing.T) {
	for _, callers := range [][]string{{"alice", "bob", "alice"}, {"alice", "alice", "bob"}, {"", "", ""}, {"alice", "", "alice"}} {
		key := Key{Owner: "up", Part: "m"}
		synckit.Test(t, func(t *testing.T) {
			s := New(Rules{Run: 3}, nil)
			for _, who := range callers {
				tries(s, key, who, Timeout)
			}
			if tries(s, key, "carol", OK) || len(s.Snapshot()) != 1 {
				t.Errorf("%q: not open to all", callers)
			}
		})
	}
}

// TestEndpointsHaveCircuits: their own, of the same model.
func TestEndpointsHaveCircuits(t *testing.T) {
	s := New(Rules{Run: 1}, nil)
	tries(s, Key{Owner: "up", Part: "m", Path: "/v1/completions"}, "", Unauthorized)
	if key := (Key{Owner: "up", Part: "m", Path: "/v1/chat/completions"}); !tries(s, key, "", OK) || key.String() != "up/m/v1/chat/completions" {
		t.Errorf("%s is shut", key)
	}
}

// TestLateWordsOfOthers: what others asked beside a circuit that one caller opened
// tells nothing any more once it is everybody's, or closed, or open anew.
func TestLateWordsOfOthers(t *testing.T) {
	key := Key{Owner: "up", Part: "m"}
	synckit.Test(t, func(t *testing.T) {
		s := New(Rules{Run: 2}, nil)
		open := func(callers ...string) {
			t.Helper()
			for _, who := range callers {
				if !tries(s, key, who, ServerError) {
					t.Fatalf("refused to %s too soon", who)
				}
			}
		}
		rest := func() { time.Sleep(5*time.Second + time.Millisecond) }
		told := func(when string) {
			t.Helper()
			if s.Snapshot()[key.String()] != "open" {
				t.Errorf("%s: other nodes are told %v", when, s.Snapshot())
			}
		}
		open("mallory", "mallory")
		early, _ := s.AllowTo(key, "alice")
		late, _ := s.AllowTo(key, "alice")
		later, _ := s.AllowTo(key, "alice")
		tries(s, key, "bob", Transport)
		early.Done(OK)
		told("others failed, too")

		rest()
		if !tries(s, key, "alice", OK) {
			t.Fatal("no trial")
		}
		late.Done(OK) // closed
		open("alice", "bob")
		told("down for all")

		rest()
		if !tries(s, key, "alice", OK) {
			t.Fatal("no trial")
		}
		time.Sleep(20 * time.Second)
		open("mallory", "mallory")
		later.Done(Transport) // of a time that is long past
		if s.OpenTo(key, "alice") {
			t.Error("open to others by what failed before")
		}
	})
}

// TestOthersThatHang: requests of others, asked before one caller's opened the
// circuit, fail after that: it is open to all, as no other hears for minutes that
// a request beside fails.
func TestOthersThatHang(t *testing.T) {
	key := Key{Owner: "up", Part: "m"}
	synckit.Test(t, func(t *testing.T) {
		s := New(Rules{Run: 2}, nil)
		hangs, _ := s.AllowTo(key, "alice")
		for range 2 {
			tries(s, key, "bob", Timeout)
		}
		hangs.Done(Timeout)
		if tries(s, key, "carol", OK) || !s.OpenTo(key, "alice") {
			t.Error("open to one caller alone, and others hang")
		}
	})
}
