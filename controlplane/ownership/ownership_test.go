package ownership

import (
	"errors"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"ringmain/controlplane"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func epoch(counter uint64, region string) controlplane.Epoch {
	return controlplane.Epoch{Counter: counter, Region: region}
}

func members(regions ...string) []Member {
	var out []Member
	for _, r := range regions {
		out = append(out, Member{Region: r})
	}
	return out
}

// abc is a copy of three regions at 1/a.3, confirmed through 2.
func abc() Copy {
	return Copy{
		Promised: epoch(1, "a"), Last: controlplane.Point{Epoch: epoch(1, "a"), Seq: 3},
		Spans: []Span{{Epoch: epoch(1, "a"), Start: 1, Members: members("a", "b", "c")}}, Confirmed: 2,
	}
}

func TestRoles(t *testing.T) {
	a, b := Member{Region: "a"}, Member{Region: "b"}
	opening := abc()
	opening.Confirmed = 0
	forced := opening
	forced.Spans = []Span{{Epoch: epoch(1, "a"), Start: 1, Members: members("a"), Forced: true}}
	sealed, err := abc().Seal(epoch(2, "b"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		copy Copy
		self Member
		want Role
	}{
		{Copy{}, a, Outside},
		{abc(), a, Home},
		{abc(), b, Follower},
		{abc(), Member{Region: "a", Since: 1}, Outside},
		{opening, a, Opening},
		{forced, a, Home},
		{sealed, a, Sealed},
		{sealed, b, Candidate},
	} {
		if got := c.copy.Role(c.self); got != c.want {
			t.Errorf("role of %v in %v is %s, want %s", c.self, c.copy, got, c.want)
		}
	}
}

func TestRefusalsNameTheNextMove(t *testing.T) {
	one, two := epoch(1, "a"), epoch(2, "b")
	open := Header{Epoch: two, Seq: 4, Prev: one, Members: members("a", "b", "c")}
	sealed, _ := abc().Seal(two)
	accept := func(c Copy, sender controlplane.Epoch, h Header) error { _, err := c.Accept(sender, h); return err }
	adopt := func(sender controlplane.Epoch, s Snapshot) error { _, err := abc().Adopt(sender, s); return err }
	seal := func(e controlplane.Epoch) error { _, err := sealed.Seal(e); return err }
	for _, c := range []struct {
		name string
		err  error
		want Reason
	}{
		{"a lower seal", seal(one), Deposed},
		{"the same seal again", seal(two), Deposed},
		{"no epoch", seal(controlplane.Epoch{}), Malformed},
		{"a deposed sender", accept(sealed, one, Header{Epoch: one, Seq: 4, Prev: one}), Deposed},
		{"an entry too far", accept(abc(), one, Header{Epoch: one, Seq: 5, Prev: one}), Gap},
		{"an entry on another's", accept(abc(), two, Header{Epoch: two, Seq: 4, Prev: epoch(1, "c"), Members: members("b")}), Gap},
		{"an entry newer than its sender", accept(abc(), one, open), Malformed},
		{"an opening without its home", accept(abc(), two, Header{Epoch: two, Seq: 4, Prev: one, Members: members("a")}), Malformed},
		{"a confirmed entry in the way", accept(abc(), two, Header{Epoch: two, Seq: 2, Prev: one, Members: members("b")}), Diverged},
		{"an older snapshot", adopt(one, Snapshot{Last: controlplane.Point{Epoch: one, Seq: 2}, Spans: abc().Spans}), Behind},
		{"a snapshot without the sender's opening", adopt(two, abc().Snapshot()), Malformed},
	} {
		var r *Refused
		if !errors.As(c.err, &r) || r.Reason != c.want {
			t.Errorf("%s: %v, want reason %d", c.name, c.err, c.want)
		} else if errors.Is(c.err, controlplane.ErrNotHome) != (c.want == Deposed) {
			t.Errorf("%s: only a deposed sender is told that another is home", c.name)
		}
	}
	if _, err := sealed.Open(two, controlplane.Point{Epoch: one, Seq: 2}, members("b"), false); err == nil {
		t.Error("opened beside its base")
	}
}

func TestAcceptCutsAndLeavesTheOriginalAlone(t *testing.T) {
	two := epoch(2, "b")
	before := abc()
	step, err := before.Accept(two, Header{Epoch: two, Seq: 3, Prev: epoch(1, "a"), Members: members("b", "c")})
	if err != nil || step.Cut != 3 || !step.Append {
		t.Fatalf("step %+v, %v", step, err)
	}
	if !slices.Equal(step.Copy.Members(), members("b", "c")) || len(before.Spans) != 1 {
		t.Errorf("members %v; before %v", step.Copy.Members(), before)
	}
	if got := before.Common(step.Copy.Last, step.Copy.Spans); got != 2 {
		t.Errorf("common through %d, want 2", got)
	}
	if got := len(step.Copy.Memberships()); got != 2 {
		t.Errorf("%d memberships count before the opening is confirmed, want 2", got)
	}
	if back, ok := step.Copy.Confirm(step.Copy.Last); !ok || len(back.Memberships()) != 1 {
		t.Errorf("confirmed: %v, memberships %v", ok, back.Memberships())
	}
}

// What was there before spans were kept, or was dropped from their beginning,
// is held if its epoch can have been there.
func TestHistoryOlderThanTheSpans(t *testing.T) {
	c := abc()
	c.Spans[0].Start = 3
	for p, want := range map[controlplane.Point]bool{
		{Epoch: epoch(1, "a"), Seq: 2}: true,
		{Epoch: epoch(2, "a"), Seq: 2}: false,
		{Epoch: epoch(1, "a"), Seq: 4}: false,
		{}:                             true,
	} {
		if c.Holds(p) != want {
			t.Errorf("holds %v: %v", p, !want)
		}
	}
	if got := c.Common(abc().Last, abc().Spans); got != 3 {
		t.Errorf("common through %d, want 3", got)
	}
}

func TestACampaignWithoutItsOldHomeWaits(t *testing.T) {
	self := Member{Region: "b"}
	sealed, _ := abc().Seal(epoch(2, "b"))
	c := Campaign{Self: self, Epoch: epoch(2, "b"), From: "x"}.Hear(Report{From: self, Copy: sealed}).Hear(Report{From: Member{Region: "c"}, Copy: sealed})
	if plan := c.Next(); plan.Move != GiveUp {
		t.Errorf("a home that is no member hands over: %v", plan)
	}
	c.From = "a"
	if plan := c.Next(); plan.Move != Wait || !slices.Equal(plan.Missing, members("a")) {
		t.Errorf("without the old home's report: %v", plan)
	}
	c = c.Hear(Report{From: Member{Region: "a"}, Copy: sealed})
	if plan := c.Next(); plan.Move != Take || plan.Base != sealed.Last || plan.Known.Seq != 2 || !plan.Lossless {
		t.Errorf("with it: %+v", plan)
	}
}
