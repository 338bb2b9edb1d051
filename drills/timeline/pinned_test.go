package timeline

import (
	"testing"

	"ringmain/drills/load"
)

func TestOutside(t *testing.T) {
	o := Observations{Lost: Place{"eu-fra", "eu"}, Survivors: []Place{{"us-east", "us"}, {"eu-ams", "eu"}}}
	for _, c := range []struct {
		name, pin, route, ran string
		status                int
		want                  int
	}{
		{"in its jurisdiction", "eu", "eu-ams/eu-ams-d1 > eu-fra/eu-fra-d1 > sim", "eu-fra", 200, 0},
		{"turned away at the wrong entry", "eu", "us-east/us-east-d1", "us-east", 403, 0},
		{"nobody there", "eu", "", "", 0, 0},
		{"an error within", "eu", "eu-ams/eu-ams-d1", "eu-ams", 503, 0},
		{"served at the wrong entry", "eu", "us-east/us-east-d1 > sim", "us-east", 200, 1},
		{"asked there, in vain", "eu", "us-east/us-east-d1 > sim", "us-east", 502, 1},
		{"sent on", "eu", "us-east/us-east-d1 > eu-fra/eu-fra-d1 > sim", "eu-fra", 200, 1},
		{"left on the way", "eu", "eu-ams/eu-ams-d1 > us-east/us-east-d1 > sim", "us-east", 200, 1},
		{"a region that nobody knows", "eu", "eu-ams/eu-ams-d1 > mars/mars-d1 > sim", "mars", 200, 1},
		{"served, and nobody says where", "eu", "", "", 200, 1},
		{"not pinned", "", "us-east/us-east-d1 > eu-fra/eu-fra-d1 > sim", "eu-fra", 200, 0},
	} {
		o.Results = []load.Result{{
			Request:  load.Request{Residency: c.pin},
			Attempts: []load.Attempt{{Status: c.status, Route: c.route, Ran: c.ran}},
		}}
		asked := min(1, len(c.pin)*c.status)
		if got, answered := o.Outside(); got != c.want || answered != asked {
			t.Errorf("%s: %d outside of %d, want %d of %d", c.name, got, answered, c.want, asked)
		}
	}
}
