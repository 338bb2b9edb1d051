package proof

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// forwardedFacts are of a request that another node executed, whose worker
// could be swapped.
func forwardedFacts(s *Signer, at time.Time) *Facts {
	f := someFacts(s, at, 4)
	f.Attempts[1].Confinement = &Confinement{Landlock: 7, NoFileWrite: true, NoDump: true}
	return f
}

func TestConfinementHasOneForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawConfinement(t)
		if back, ok := ParseConfinement(c.String()); ok != (c.Landlock >= 0) || ok && back != c {
			t.Fatalf("%q: %+v, %t", c, back, ok)
		}
	})
	for _, s := range []string{
		"", "landlock", "landlock=", "landlock=+7", "landlock=07", "landlock=-1", "landlock=7,no_dump", "landlock=7, ", " landlock=7", "landlock=7 ",
		"landlock=7, no_dump, no_file_write", "landlock=7, no_dump, no_dump", "landlock=7, no_dump=?0", "landlock=7, No_dump", "landlock=7, no_dump, tee",
		"no_dump, landlock=7", "landlock=99999999999999999999", "landlock=7\x00", "landlock=7, no_file_write, no_dump, no_swap, " + strings.Repeat("x", 1<<10),
	} {
		if c, ok := ParseConfinement(s); ok {
			t.Errorf("%q was taken for %+v", s, c)
		}
	}
}

// Under zero retention each worker that was sent the request had to be confined.
// One that says it was not is named; one that did not say is not vouched for.
func TestConfinementAgainstRetention(t *testing.T) {
	f := newFixture(t)
	holds, not := Confinement{7, true, true, true}, Confinement{7, true, true, false}
	const entry, peer, silent = "worker of eu-fra/eu-fra-d1, which signed", "worker of eu-ams/eu-ams-d2, which was sent", "worker of eu-ams/eu-ams-d2 in attempt 2"
	for name, c := range map[string]struct {
		retention string
		entry     Confinement
		peer      *Confinement
		warns     []string
		unsaid    bool
	}{
		"all held":                  {"zero", holds, &holds, nil, false},
		"the peer did not":          {"zero", holds, &not, []string{peer}, false},
		"nothing held at the peer":  {"zero", holds, &Confinement{}, []string{peer}, false},
		"the entry did not":         {"zero", not, &holds, []string{entry}, false},
		"neither did":               {"zero", not, &not, []string{entry, peer}, false},
		"the peer did not say":      {"zero", holds, nil, nil, true},
		"nothing was to be held to": {"metadata", not, &not, nil, false},
		"nothing, and did not say":  {"metadata", not, nil, nil, false},
	} {
		facts := someFacts(f.signer, time.Now(), 4)
		facts.Retention, facts.Confinement, facts.Attempts[1].Confinement = c.retention, c.entry, c.peer
		facts.Attempts = append(facts.Attempts, facts.Attempts[1]) // it is said once
		for _, doc := range f.sign(t, facts, time.Now()) {
			v := mustVerify(t, doc, f.keySet, Bodies{})
			if got := v.Facts.Attempts[1].Confinement; (got == nil) != (c.peer == nil) || got != nil && *got != *c.peer {
				t.Errorf("%s: %+v", name, got)
			}
			if len(v.Warnings) != len(c.warns) {
				t.Fatalf("%s: %q", name, v.Warnings)
			}
			for i, want := range c.warns {
				if !strings.Contains(v.Warnings[i], want) {
					t.Errorf("%s: %q", name, v.Warnings[i])
				}
			}
			if strings.Contains(strings.Join(v.NotChecked, "\n"), silent) != c.unsaid {
				t.Errorf("%s: not checked: %q", name, v.NotChecked)
			}
		}
	}
}

// What a peer said is signed as all else is.
func TestStatedConfinementCannotBeChanged(t *testing.T) {
	f := newFixture(t)
	for _, doc := range f.sign(t, forwardedFacts(f.signer, time.Now()), time.Now()) {
		mustVerify(t, doc, f.keySet, Bodies{})
		for i := range doc {
			mustRefuse(t, flipped(doc, i, 1<<(i%8)), f.keySet, Bodies{})
		}
		const said = `,"confinement":{"landlock":7,"no_file_write":true,"no_dump":true,"no_swap":false}`
		for _, other := range []string{"", strings.Replace(said, "false", "true", 1), strings.Replace(said, "7", "8", 1)} {
			if changed := strings.Replace(string(doc), said, other, 1); doc[0] == '{' && changed != string(doc) {
				mustRefuse(t, []byte(changed), f.keySet, Bodies{})
			} else if doc[0] == '{' {
				t.Error("the statement was not found")
			}
		}
	}
}
