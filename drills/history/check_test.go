package history_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"ringmain/drills/history"
)

const (
	multi  = "multi-region"
	home   = "region"
	second = time.Second
)

// at builds operations one second long, or as long as they say, one after the
// other.
func write(from, to int, value, reached string, out history.Outcome) history.Op {
	return history.Op{Kind: history.Write, Object: "org", Entry: "us-east/c1", Begin: time.Duration(from) * second, End: time.Duration(to) * second,
		Value: value, Reached: reached, Outcome: out, Position: "any=1/us-east." + value}
}

func read(from, to int, value string) history.Op {
	return history.Op{Kind: history.Read, Object: "org", Entry: "us-east/c1", Begin: time.Duration(from) * second, End: time.Duration(to) * second,
		Value: value, Outcome: history.Done}
}

func cut(value string) history.Cut {
	return history.Cut{Region: "eu-fra", Position: "any=1/us-east." + value, Op: "put", Record: "org", Name: value}
}

func look(from, to int, value string) history.Op {
	return history.Op{Kind: history.Look, Object: "key", Entry: "us-east/c1", Begin: time.Duration(from) * second, End: time.Duration(to) * second,
		Value: value, Outcome: history.Done}
}

func revoke(from, to int, reached string) history.Op {
	return history.Op{Kind: history.Revoke, Object: "key", Entry: "us-east/c1", Begin: time.Duration(from) * second, End: time.Duration(to) * second,
		Outcome: history.Done, Reached: reached, Position: "any=1/us-east.77"}
}

func glance(from, to int, value string) history.Op {
	op := look(from, to, value)
	op.Kind = history.Glance
	return op
}

func create(from, to int, record, secret, reached string) history.Op {
	return history.Op{Kind: history.Create, Object: "idempotency", Entry: "us-east/c1", Begin: time.Duration(from) * second, End: time.Duration(to) * second,
		Value: "made", Record: record, Secret: secret, Outcome: history.Done, Reached: reached, Position: "any=1/us-east." + record}
}

// The checker lets through what the package comment allows, and finds what it
// forbids: each lie below was planted.
func TestCheck(t *testing.T) {
	first := write(0, 1, "a", multi, history.Done)
	for _, c := range []struct {
		name string
		h    history.History
		want []string // parts of the violations, in their order
	}{
		{name: "quiet", h: history.History{Ops: []history.Op{first, read(2, 3, "a"), write(4, 5, "b", home, history.Done), read(6, 7, "b")}}},
		{name: "an unknown write is seen later, and much later",
			h: history.History{Ops: []history.Op{first, write(2, 3, "b", "", history.Unknown), read(4, 5, "a"), read(6, 7, "b"), read(8, 9, "b")}}},
		{name: "an unknown write is never seen",
			h: history.History{Ops: []history.Op{first, write(2, 3, "b", "", history.Unknown), read(4, 5, "a")}}},
		{name: "acknowledged region, read, lost by a takeover, and in quarantine",
			h: history.History{Ops: []history.Op{first, write(2, 3, "b", home, history.Done), read(4, 5, "b"), read(6, 7, "a")}, Cuts: []history.Cut{cut("b")}}},
		{name: "a zombie's writes, in quarantine",
			h: history.History{Ops: []history.Op{first, write(2, 3, "b", multi, history.Done), write(4, 5, "c", home, history.Done), read(6, 7, "b")}, Cuts: []history.Cut{cut("c")}}},
		{name: "stale read", want: []string{"register org: no order"},
			h: history.History{Ops: []history.Op{first, write(2, 3, "b", multi, history.Done), read(4, 5, "a")}}},
		{name: "reads that go back", want: []string{"register org: no order"},
			h: history.History{Ops: []history.Op{first, write(2, 9, "b", multi, history.Done), read(3, 4, "b"), read(5, 6, "a")}}},
		{name: "lost write, acknowledged region, in no quarantine", want: []string{"register org: no order"},
			h: history.History{Ops: []history.Op{first, write(2, 3, "b", home, history.Done), read(4, 5, "b"), read(6, 7, "a")}}},
		{name: "lost write, acknowledged multi-region, though in quarantine", want: []string{"acknowledged multi-region at any=1/us-east.b, and in quarantine"},
			h: history.History{Ops: []history.Op{first, write(2, 3, "b", multi, history.Done), read(6, 7, "a")}, Cuts: []history.Cut{cut("b")}}},
		{name: "a zombie's own writes read as the truth", want: []string{"register org: no order"},
			h: history.History{Ops: []history.Op{first, write(2, 3, "z", home, history.Done), write(4, 5, "b", multi, history.Done), read(6, 7, "z")}, Cuts: []history.Cut{cut("z")}}},
		{name: "an unknown write takes effect twice", want: []string{"register org: no order"},
			h: history.History{Ops: []history.Op{first, write(2, 3, "b", "", history.Unknown), read(4, 5, "b"), write(6, 7, "c", multi, history.Done), read(8, 9, "c"), read(10, 11, "b")}}},
		{name: "refused, yet read", want: []string{"refused, yet read", "register org: no order"},
			h: history.History{Ops: []history.Op{first, write(2, 3, "b", "", history.Nothing), read(4, 5, "b")}}},
		{name: "refused, yet in quarantine", want: []string{"refused, yet in the quarantine of eu-fra"},
			h: history.History{Ops: []history.Op{first, write(2, 3, "b", "", history.Nothing)}, Cuts: []history.Cut{cut("b")}}},
		{name: "a register that is gone", want: []string{"register org: no order"},
			h: history.History{Ops: []history.Op{first, read(2, 3, "(absent)")}}},

		{name: "created once, told twice",
			h: history.History{Ops: []history.Op{create(0, 1, "k1", "s", multi), create(2, 3, "k1", "s", multi)}, Found: []history.Found{{Record: "k1", Name: "made"}}}},
		{name: "created, lost into quarantine, created again",
			h: history.History{Ops: []history.Op{create(0, 1, "k1", "s", home), create(2, 3, "k2", "t", multi)}, Found: []history.Found{{Record: "k2", Name: "made"}},
				Cuts: []history.Cut{{Position: "any=1/us-east.k1", Op: "put", Record: "k1", Name: "made"}}}},
		{name: "created twice", want: []string{"made 2 records"},
			h: history.History{Ops: []history.Op{create(0, 1, "k1", "s", multi)}, Found: []history.Found{{Record: "k1", Name: "made"}, {Record: "k2", Name: "made"}}}},
		{name: "two secrets", want: []string{"shows two secrets"},
			h: history.History{Ops: []history.Op{create(0, 1, "k1", "s", multi), create(2, 3, "k1", "t", multi)}, Found: []history.Found{{Record: "k1", Name: "made"}}}},
		{name: "created and lost", want: []string{"created and lost"},
			h: history.History{Ops: []history.Op{create(0, 1, "k1", "s", home)}}},

		{name: "revoked", h: history.History{Ops: []history.Op{look(0, 1, "valid"), revoke(2, 3, multi), look(2, 4, "valid"), look(5, 6, "revoked"), glance(5, 6, "valid"), glance(7, 8, "revoked")}}},
		{name: "revoked, and later not", want: []string{"revoked, and later not"},
			h: history.History{Ops: []history.Op{revoke(2, 3, multi), look(4, 5, "valid")}}},
		{name: "seen revoked, and later not", want: []string{"revoked, and later not"},
			h: history.History{Ops: []history.Op{look(2, 3, "revoked"), look(4, 5, "valid")}}},
		{name: "never revoked in some region", want: []string{"at the end not in us-east"},
			h: history.History{Ops: []history.Op{revoke(2, 3, multi), glance(4, 5, "valid")}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.h.Ended = 12 * second
			dir := t.TempDir()
			got := history.Check(&c.h, dir).Violations
			if len(got) != len(c.want) {
				t.Fatalf("violations: %q, want %q", got, c.want)
			}
			for i := range got {
				if !strings.Contains(got[i], c.want[i]) {
					t.Errorf("violation %q, want %q", got[i], c.want[i])
				}
			}
			picture, err := os.ReadFile(filepath.Join(dir, "org.html"))
			if drawn := err == nil && bytes.Contains(picture, []byte("<html")); drawn != strings.Contains(strings.Join(got, ""), "no order") {
				t.Errorf("picture: %t, %v", drawn, err)
			}
		})
	}
}

func TestFile(t *testing.T) {
	h := history.History{
		Ops:    []history.Op{write(0, 1, "a", multi, history.Done), revoke(2, 3, home)},
		Faults: []history.Fault{{Fault: "kill", At: 1, Took: 2, Proof: "gone"}},
		Cuts:   []history.Cut{cut("a")},
		Found:  []history.Found{{Record: "r", Name: "n"}},
		Ended:  9 * second,
	}
	path := filepath.Join(t.TempDir(), "history.jsonl")
	if err := h.Save(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := history.Open(bytes.NewReader(b))
	if err != nil || !reflect.DeepEqual(again, &h) {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := history.Open(strings.NewReader(`{"op":`)); err == nil {
		t.Error("half a line was read")
	}
}
