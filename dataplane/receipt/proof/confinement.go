package proof

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Confinement is what a worker measured of itself; link.Confinement converts to it.
type Confinement struct {
	Landlock    int  `cbor:"1,keyasint" json:"landlock"`
	NoFileWrite bool `cbor:"2,keyasint" json:"no_file_write"`
	NoDump      bool `cbor:"3,keyasint" json:"no_dump"`
	NoSwap      bool `cbor:"4,keyasint" json:"no_swap"`
}

// Holds reports whether every control is in force.
func (c Confinement) Holds() bool {
	return c.Landlock > 0 && c.NoFileWrite && c.NoDump && c.NoSwap
}

// String is the form in which a node tells another: a dictionary of RFC 9651
// with Landlock's ABI and the names of the other controls that hold.
func (c Confinement) String() string {
	s := "landlock=" + strconv.Itoa(c.Landlock)
	for i, holds := range [...]bool{c.NoFileWrite, c.NoDump, c.NoSwap} {
		if holds {
			s += ", " + controls[i]
		}
	}
	return s
}

var controls = [...]string{"no_file_write", "no_dump", "no_swap"}

// ParseConfinement reads what String wrote, and nothing else.
func ParseConfinement(s string) (c Confinement, ok bool) {
	abi, rest, _ := strings.Cut(s, ", ")
	abi, ok = strings.CutPrefix(abi, "landlock=")
	n, err := strconv.Atoi(abi)
	if !ok || err != nil || n < 0 {
		return Confinement{}, false
	}
	c = Confinement{n, strings.Contains(rest, controls[0]), strings.Contains(rest, controls[1]), strings.Contains(rest, controls[2])}
	if c.String() != s {
		return Confinement{}, false
	}
	return c, true
}

// Words is the confinement as people read it.
func (c Confinement) Words() string {
	return fmt.Sprintf("landlock ABI %d, no file write: %t, no dump: %t, no swap: %t", c.Landlock, c.NoFileWrite, c.NoDump, c.NoSwap)
}

// zeroRetention is the retention under which every worker that was sent the
// request had to be confined.
const zeroRetention = "zero"

// confined holds what the workers said of themselves against the retention that
// the facts state.
func (v *Verdict) confined() {
	f := v.Facts
	if f.Retention != zeroRetention {
		return
	}
	entry := place(f.EntryRegion, f.EntryNode)
	if !f.Confinement.Holds() {
		v.warn("the worker of %s, which signed, was not confined: %s", entry, f.Confinement.Words())
	}
	for i := range f.Attempts {
		a := &f.Attempts[i]
		switch at := place(a.Region, a.Node); {
		case a.Confinement != nil && !a.Confinement.Holds():
			v.warn("the worker of %s, which was sent the request, was not confined: %s", at, a.Confinement.Words())
		case a.Confinement == nil && at != entry:
			v.NotChecked = append(v.NotChecked, fmt.Sprintf("what confined the worker of %s in attempt %d: it did not say, as it was not reached, broke off, or is of an earlier release", at, i+1))
		}
	}
}

// warn notes, once, what zero retention should have kept from happening.
func (v *Verdict) warn(format string, args ...any) {
	if w := "retention is stated as zero, but " + fmt.Sprintf(format, args...); !slices.Contains(v.Warnings, w) {
		v.Warnings = append(v.Warnings, w)
	}
}

func place(region, node string) string { return fmt.Sprintf("%.64s/%.64s", region, node) }
