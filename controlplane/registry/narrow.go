package registry

import (
	"strconv"
	"strings"
)

// Narrowed is u with what a later version forbids in force already, and nothing
// of what that allows: for who has to go on with u. Promises that later does not
// make are not made; where it may not be called as u was (in its region, for its
// orgs, for its kind of keys, with a credential, or at all) it is disabled.
// Later is nil if the upstream was deleted.
func (u *Upstream) Narrowed(later *Upstream) *Upstream {
	n := *u
	if later == nil {
		n.Disabled = true
		return &n
	}
	n.Disabled = u.Disabled || later.Disabled || later.Region != u.Region || later.Simulated != u.Simulated ||
		later.Dedicated != "" && later.Dedicated != u.Dedicated || later.Auth == "none" && u.Auth != "none"
	if retained(later.Terms.Retention) > retained(u.Terms.Retention) {
		n.Terms.Retention = later.Terms.Retention
	}
	if cached[later.Terms.PromptCache] > cached[u.Terms.PromptCache] {
		n.Terms.PromptCache = later.Terms.PromptCache
	}
	return &n
}

var cached = map[string]int{"none": 1, "memory": 2, "disk": 3}

// retained is for how many days an upstream may keep what it sees.
func retained(terms string) int {
	if terms == "zero" {
		return 0
	}
	days, err := strconv.Atoi(strings.TrimSuffix(terms, "d"))
	if err != nil {
		return 1 << 30
	}
	return days
}
