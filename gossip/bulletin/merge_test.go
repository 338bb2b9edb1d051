package bulletin

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

// twin remembers everything it was told and searches it on every question.
type twin struct {
	digests []Digest
	obits   []Obituary
	members map[Key]bool
}

func (w *twin) node(k Key) (NodeView, bool) {
	var v NodeView
	for _, d := range w.digests {
		if d.Key() == k && d.Version().Compare(v.Version()) > 0 {
			v.Digest = d
		}
	}
	dead := false
	for _, o := range w.obits {
		if o.Key() == k && o.Version().Compare(v.Version()) >= 0 {
			dead = true
		}
	}
	// Only the newest obituary decides whether the node left.
	var newest Version
	for _, o := range w.obits {
		if o.Key() == k && o.Version().Compare(newest) > 0 {
			newest = o.Version()
		}
	}
	for _, o := range w.obits {
		v.Left = v.Left || dead && o.Key() == k && o.Version() == newest && o.By == o.Node
	}
	v.Alive = !dead && w.members[k]
	return v, v.Version() != Version{}
}

func randomKey(r *rand.Rand) Key {
	return Key{Region: []string{"us", "eu"}[r.IntN(2)], Node: []string{"n1", "n2"}[r.IntN(2)]}
}

func digestOf(k Key, v Version) Digest {
	return Digest{Region: k.Region, Node: k.Node, Incarnation: v.Incarnation, Seq: v.Seq,
		Ready: v.Seq%2 == 0, InFlight: uint32(v.Seq), Breakers: map[string]string{"up": fmt.Sprint(v)}}
}

// Tables given the same messages in any order, any number of times, agree with
// each other and with the twin.
func TestMergeAgreesWithTwin(t *testing.T) {
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := &twin{members: map[Key]bool{}}
		now := time.Unix(0, 0)
		var steps []func(*Table)
		for range 1 + r.IntN(25) {
			k, v := randomKey(r), Version{uint64(1 + r.IntN(3)), uint64(r.IntN(4))}
			if r.IntN(2) == 0 {
				d := digestOf(k, v)
				w.digests = append(w.digests, d)
				steps = append(steps, func(t *Table) { t.Merge(d, now) })
				continue
			}
			o := Obituary{Region: k.Region, Node: k.Node, Incarnation: v.Incarnation, Seq: v.Seq, By: []string{"n1", "n2", "n3"}[r.IntN(3)]}
			w.obits = append(w.obits, o)
			steps = append(steps, func(t *Table) { t.MergeObituary(o, now) })
		}
		for _, k := range []Key{{"us", "n1"}, {"us", "n2"}, {"eu", "n1"}} {
			w.members[k] = true
			steps = append(steps, func(t *Table) { t.SetMember(k, true, now) })
		}
		one, two := New(), New()
		for _, s := range steps {
			one.apply(s)
		}
		steps = append(steps, steps[:r.IntN(len(steps))]...)
		for _, i := range r.Perm(len(steps)) {
			two.apply(steps[i])
		}
		for _, table := range []*Table{one, two} {
			n := 0
			for _, got := range table.Nodes() {
				n++
				want, ok := w.node(got.Key())
				got.Since = time.Time{}
				if !ok || !reflect.DeepEqual(got, want) {
					t.Fatalf("seed %d: %s is %+v, want %+v", seed, got.Key(), got, want)
				}
			}
			for _, k := range []Key{{"us", "n1"}, {"us", "n2"}, {"eu", "n1"}, {"eu", "n2"}} {
				if _, ok := w.node(k); ok {
					n--
				}
			}
			if n != 0 {
				t.Fatalf("seed %d: the table misses %d nodes", seed, -n)
			}
		}
		// A dump taught to an empty table says the same again.
		three := New()
		digests, obits, _ := one.Dump(now, time.Hour)
		for _, o := range obits {
			three.MergeObituary(o, now)
		}
		for _, d := range digests {
			three.Merge(d, now)
		}
		for k := range w.members {
			three.SetMember(k, true, now)
		}
		if !reflect.DeepEqual(three.Nodes(), one.Nodes()) {
			t.Fatalf("seed %d: dump and merge lost something", seed)
		}
	}
}

func (t *Table) apply(step func(*Table)) { step(t) }

func TestRefutation(t *testing.T) {
	now := time.Unix(100, 0)
	k := Key{"eu", "d1"}
	table := New()
	table.Merge(digestOf(k, Version{7, 3}), now)
	alive := func() bool { return table.Nodes()[0].Alive }
	if alive() {
		t.Error("alive before membership says so")
	}
	table.SetMember(k, true, now)
	if !alive() {
		t.Error("a member with a digest is not alive")
	}
	obit := Obituary{Region: "eu", Node: "d1", Incarnation: 7, Seq: 3, By: "c1"}
	if !table.MergeObituary(obit, now) || alive() {
		t.Error("an obituary of the newest version changes nothing")
	}
	if table.MergeObituary(obit, now) {
		t.Error("the same obituary is news twice")
	}
	table.Merge(digestOf(k, Version{7, 4}), now)
	if !alive() {
		t.Error("a higher sequence does not refute")
	}
	if table.MergeObituary(Obituary{Region: "eu", Node: "d1", Incarnation: 6, Seq: 99, By: "c1"}, now) || !alive() {
		t.Error("an obituary of a former incarnation counts")
	}
	table.MergeObituary(Obituary{Region: "eu", Node: "d1", Incarnation: 7, Seq: 4, By: "d1"}, now)
	if v := table.Nodes()[0]; v.Alive || !v.Left {
		t.Errorf("after goodbye: %+v", v)
	}
	table.Merge(digestOf(k, Version{8, 0}), now)
	if v := table.Nodes()[0]; !v.Alive || v.Left {
		t.Errorf("after a restart: %+v", v)
	}
}

func TestForget(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	table := New()
	gone, here := Key{"eu", "d1"}, Key{"us", "d1"}
	for _, k := range []Key{gone, here} {
		table.Merge(digestOf(k, Version{1, 1}), at(0))
		table.SetMember(k, true, at(0))
	}
	table.SetMember(gone, false, at(10))
	if d, _, _ := table.Dump(at(15), 10*time.Second); len(d) != 2 {
		t.Errorf("a node gone for 5 s is missing from the dump: %v", d)
	}
	if d, _, _ := table.Dump(at(25), 10*time.Second); len(d) != 1 {
		t.Errorf("a node gone for 15 s is in the dump: %v", d)
	}
	table.Forget(at(25), 20*time.Second)
	if len(table.Nodes()) != 2 {
		t.Error("forgotten too early")
	}
	table.Forget(at(40), 20*time.Second)
	if n := table.Nodes(); len(n) != 1 || n[0].Key() != here {
		t.Errorf("after Forget: %v", n)
	}
	if p := table.Published(at(40)); len(p) != 1 {
		t.Errorf("regions after Forget: %v", p)
	}
}

func TestRefusesNonsense(t *testing.T) {
	now := time.Unix(0, 0)
	table := New()
	long := strings.Repeat("x", 300)
	for name, d := range map[string]Digest{
		"no region":    {Node: "n", Incarnation: 1},
		"no node":      {Region: "eu", Incarnation: 1},
		"no version":   {Region: "eu", Node: "n"},
		"long name":    {Region: long, Node: "n", Incarnation: 1},
		"long address": {Region: "eu", Node: "n", Incarnation: 1, API: long},
		"long breaker": {Region: "eu", Node: "n", Incarnation: 1, Breakers: map[string]string{long: "open"}},
		"many pools":   {Region: "eu", Node: "n", Incarnation: 1, Pools: make([]string, 65)},
	} {
		if table.Merge(d, now) {
			t.Errorf("%s: merged", name)
		}
	}
	if table.MergeClaim(Claim{Region: "eu", Node: "n"}, now) || table.MergeObituary(Obituary{Region: "eu", Node: "n", Incarnation: 1}, now) {
		t.Error("a claim or obituary without its names was merged")
	}
	if len(table.Nodes())+len(table.Published(now)) != 0 {
		t.Error("refused messages left something behind")
	}
}
