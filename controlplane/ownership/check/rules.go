package check

import (
	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
)

// Rules are the functions of ownership that the model drives, and the three
// things that a region does beside them. A test plants a bug by replacing one.
type Rules struct {
	Role      func(ownership.Copy, ownership.Member) ownership.Role
	Seal      func(ownership.Copy, controlplane.Epoch) (ownership.Copy, error)
	Accept    func(ownership.Copy, controlplane.Epoch, ownership.Header) (ownership.Step, error)
	Adopt     func(ownership.Copy, controlplane.Epoch, ownership.Snapshot) (ownership.Step, error)
	Inherit   func(ownership.Copy, controlplane.Epoch, ownership.Snapshot) (ownership.Step, error)
	Open      func(c ownership.Copy, e controlplane.Epoch, base controlplane.Point, members []ownership.Member, forced bool) (ownership.Copy, error)
	Confirm   func(ownership.Copy, controlplane.Point) (ownership.Copy, bool)
	Next      func(ownership.Campaign) ownership.Plan
	Confirmed func(heard []Heard, self ownership.Member, c ownership.Copy) uint64
	Above     func(self ownership.Member, counter uint64) controlplane.Epoch

	Forgets      bool // a crash loses what was promised since the last entry
	Loses        bool // a crash loses the last entry
	Unquarantine bool // what is cut is dropped
	Overwrites   bool // a snapshot replaces the safety set
	Early        bool // an opening is answered for before the entries under it are held
	Prefix       bool // the home hears of entries below its opening, too
	Nameless     bool // the lives of a region are not told apart
}

// Heard is what a home was told by one member.
type Heard struct {
	From ownership.Member
	Last controlplane.Point
}

func confirmed(heard []Heard, self ownership.Member, c ownership.Copy) uint64 {
	var t ownership.Tally
	for _, h := range heard {
		t = t.Hear(h.From, h.Last)
	}
	return t.Confirmed(self, c)
}

// Correct are the rules as they are.
func Correct() Rules {
	return Rules{
		Role:    ownership.Copy.Role,
		Seal:    ownership.Copy.Seal,
		Accept:  ownership.Copy.Accept,
		Adopt:   ownership.Copy.Adopt,
		Inherit: ownership.Copy.Inherit,
		Open:    ownership.Copy.Open,
		Confirm: ownership.Copy.Confirm,
		Next:    ownership.Campaign.Next,

		Confirmed: confirmed,
		Above:     ownership.Member.Above,
	}
}
