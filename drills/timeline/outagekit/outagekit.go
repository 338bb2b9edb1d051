// Package outagekit makes up what a drill would have seen of one outage. Tests only.
package outagekit

import (
	"net/http"
	"time"

	"ringmain/drills/load"
	"ringmain/drills/timeline"
)

const second = time.Second

// Request is one planned at the given moment and answered 100 ms later.
func Request(n int, at time.Duration, entry string, classes ...load.Class) load.Result {
	r := load.Result{Request: load.Request{N: n, At: at, Entry: entry, Model: "chat"}}
	for i, c := range classes {
		a := load.Attempt{Entry: entry, Sent: at, End: at + 100*time.Millisecond, Class: c, EntryWas: entry, Ran: entry}
		if i > 0 {
			a.Entry = "us-east"
		}
		r.Attempts = append(r.Attempts, a)
	}
	return r
}

// Outage is a run of 50 s with the kill at 10 s and the release at 35 s: a
// request to the lost region, to a survivor (each tenth pinned to where it is) and
// to the front door every 100 ms.
func Outage() timeline.Observations {
	o := timeline.Observations{
		Lost: timeline.Place{Name: "eu-fra", Jurisdiction: "eu"}, Survivors: []timeline.Place{{Name: "us-east", Jurisdiction: "us"}, {Name: "ap-sg", Jurisdiction: "apac"}},
		RemoteModel: "far", RemoteRegion: "ap-sg", Measured: 2 * second, Killed: 10 * second, Released: 35 * second, End: 50 * second, Ready: 41 * second,
		Publications: []timeline.Publication{
			{At: 5 * second, Observer: "ap-sg", Down: true}, {At: 6 * second, Observer: "ap-sg"}, // before the kill
			{At: 13 * second, Observer: "ap-sg", Down: true}, {At: 12 * second, Observer: "us-east", Down: true},
			{At: 45 * second, Observer: "ap-sg"}, {At: 46 * second, Observer: "us-east"},
		},
	}
	n := 0
	add := func(r load.Result) { o.Results = append(o.Results, r); n++ }
	for at := time.Duration(0); at < o.End; at += 100 * time.Millisecond {
		gone := at >= o.Killed && at < o.Ready
		o.Probes = append(o.Probes, timeline.Probe{At: at, Node: "eu-fra-d1", OK: !gone})
		if gone {
			add(Request(n, at, "eu-fra", load.Failed, load.OK))
		} else {
			add(Request(n, at, "eu-fra", load.OK))
		}
		near := Request(n, at, "us-east", load.OK)
		if at%second == second/2 {
			near.Residency, near.Attempts[0].Status, near.Attempts[0].Route = "us", http.StatusOK, "us-east/us-east-d1 > sim"
		}
		add(near)
		door := Request(n, at, load.FrontDoor, load.OK)
		door.Attempts[0].EntryWas = "eu-fra"
		if gone {
			door.Attempts[0].EntryWas = "us-east"
		}
		if at >= o.Killed && at < o.Killed+700*time.Millisecond {
			door = Request(n, at, load.FrontDoor, load.Failed)
		}
		add(door)
	}
	return o
}
