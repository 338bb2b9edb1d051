package timeline

import (
	"net/http"
	"slices"
	"strings"

	"ringmain/drills/load"
)

// Outside counts the attempts of pinned requests that somebody answered, and
// those of which a node outside the jurisdiction did more than turn them away, as
// idc-route and idc-region tell, or was not told to be inside.
func (o *Observations) Outside() (outside, answered int) {
	places := append(slices.Clone(o.Survivors), o.Lost)
	within := func(region, jurisdiction string) bool {
		return slices.Contains(places, Place{region, jurisdiction})
	}
	for i := range o.Results {
		r := &o.Results[i]
		if r.Residency == "" {
			continue
		}
		for j := range r.Attempts {
			a := &r.Attempts[j]
			if a.Status == 0 { // nobody answered: nobody told
				continue
			}
			answered++
			if left(a, func(region string) bool { return within(region, r.Residency) }) {
				outside++
			}
		}
	}
	return outside, answered
}

// left reports whether an attempt was served, or sent on, by a region of which
// within does not hold.
func left(a *load.Attempt, within func(region string) bool) bool {
	nodes, outside := 0, false
	for hop := range strings.SplitSeq(a.Route, ">") {
		if region, _, isNode := strings.Cut(strings.TrimSpace(hop), "/"); isNode {
			nodes++
			outside = outside || !within(region)
		}
	}
	outside = outside || a.Ran != "" && !within(a.Ran) || a.Status == http.StatusOK && nodes == 0
	turnedAway := a.Status != http.StatusOK && nodes == 1 && !strings.Contains(a.Route, ">")
	return outside && !turnedAway
}
