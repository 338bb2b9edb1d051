package members

import (
	"strings"
	"testing"
	"time"
)

// TestWhoMayGo: only a removal that leaves a majority that answers is done
// without force, and never that of the last voter or the leader.
func TestWhoMayGo(t *testing.T) {
	now := time.Now()
	member := func(node string, role Role, ago time.Duration) Member {
		return Member{Node: node, Role: role, Heard: now.Add(-ago)}
	}
	three := []Member{member("a", RoleVoter, time.Hour), member("b", RoleVoter, time.Second), member("c", RoleVoter, time.Minute), member("r", RoleReader, 0)}
	for _, c := range []struct {
		all   []Member
		node  string
		force bool
		is    bool
		word  string
	}{
		{three, "x", false, false, ""},
		{three, "r", false, true, ""},
		{three, "c", false, true, ""},
		{three, "b", false, true, "1 answer"},
		{three, "b", true, true, ""},
		{three, "a", true, true, "leads the region"},
		{three[:1], "a", true, true, "last voter"},
	} {
		is, err := removable(c.all, "a", c.node, c.force, now)
		if is != c.is || (err == nil) != (c.word == "") || err != nil && !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s, forced %v: %v, %v; want %v, %q", c.node, c.force, is, err, c.is, c.word)
		}
	}
}

// TestTheDeadGoWhileEnoughAreLeft: a silent voter is removed only if three others
// stay, and a majority of them answers.
func TestTheDeadGoWhileEnoughAreLeft(t *testing.T) {
	now := time.Now()
	voters := func(ago ...time.Duration) (all []Member) {
		for i, d := range ago {
			all = append(all, Member{Node: string(rune('a' + i)), Role: RoleVoter, Heard: now.Add(-d)})
		}
		return append(all, Member{Node: "r", Role: RoleReader})
	}
	for _, c := range []struct {
		all  []Member
		want string
	}{
		{voters(0, 0, 2*time.Hour), ""},
		{voters(0, 0, 0, 2*time.Hour), "d"},
		{voters(0, 0, 0, 30*time.Minute), ""},
		{voters(0, 0, time.Minute, 2*time.Hour), "d"},
		{voters(0, time.Minute, time.Minute, 2*time.Hour), ""},
	} {
		if got := deadVoter(c.all, "a", time.Hour, now); got != c.want {
			t.Errorf("%q goes, want %q", got, c.want)
		}
	}
}
