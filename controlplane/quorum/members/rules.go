package members

import (
	"time"

	"ringmain/controlplane"
)

const (
	silentFor = 3 * time.Second // after which a member counts as gone
	minVoters = 3               // that removing the dead leaves
)

// answers reports whether the leader, self, has heard of the member lately.
func (m Member) answers(self string, now time.Time) bool {
	return m.Node == self || now.Sub(m.Heard) < silentFor
}

// removable reports whether the node is a member, and refuses if it has to stay one.
func removable(all []Member, self, node string, force bool, now time.Time) (is bool, err error) {
	var gone *Member
	var voters, answer int // that are left
	for _, m := range all {
		switch {
		case m.Node == node:
			gone = &m
		case m.Role == RoleVoter:
			voters++
			if m.answers(self, now) {
				answer++
			}
		}
	}
	switch {
	case gone == nil:
		return false, nil
	case gone.Role != RoleVoter:
	case voters == 0:
		err = controlplane.Refuse(controlplane.RuleConflict, "node", "%s is the last voter: add another first", node)
	case node == self:
		err = controlplane.Refuse(controlplane.RuleConflict, "node", "%s leads the region: transfer leadership first, then remove it", node)
	case answer <= voters/2 && !force:
		err = controlplane.Refuse(controlplane.RuleConflict, "node",
			"without %s the region would have %d voters, of which %d answer: it could commit nothing. Bring one back first, or force it", node, voters, answer)
	}
	return true, err
}

// deadVoter is a voter that was silent for limit, if enough others are left and
// a majority of them answers; "" if there is none.
func deadVoter(all []Member, self string, limit time.Duration, now time.Time) (dead string) {
	var voters, answer int
	for _, m := range all {
		if m.Role != RoleVoter {
			continue
		}
		voters++
		if m.answers(self, now) {
			answer++
		} else if now.Sub(m.Heard) >= limit {
			dead = m.Node
		}
	}
	if voters-1 < minVoters || answer <= (voters-1)/2 {
		return ""
	}
	return dead
}
