package bulletin

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the transcripts from what happens now")

// Transcripts specify the published state. Lines are
//
//	<time> <observer>,<observer>... says <region> up|down    repeated until they say otherwise
//	<time> <observer>,... falls silent
//
// and every change of the published state is printed as it happens, to a
// quarter of a second.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, want)
			if *rewrite {
				if err := os.WriteFile(file, got, 0o600); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(got, want) {
				t.Errorf("now:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func replay(t *testing.T, script []byte) []byte {
	t.Helper()
	const step = 250 * time.Millisecond
	const repeat = 5 * time.Second
	var out bytes.Buffer
	table := New()
	start := time.Unix(1000, 0)
	now := start
	seq := uint64(0)
	says := map[claimKey]bool{}
	shown := map[string]string{}
	claim := func(k claimKey, up bool) {
		seq++
		table.MergeClaim(Claim{Region: k.observer.Region, Node: k.observer.Node, Subject: k.subject, Up: up, Incarnation: 1, Seq: seq}, now)
	}
	show := func() {
		views := table.Published(now)
		for _, name := range slices.Sorted(maps.Keys(views)) {
			v := views[name]
			text := map[bool]string{true: "UP", false: "DOWN"}[v.Up]
			if v.LastHealthy {
				text += " (last healthy)"
			}
			if shown[name] != text {
				shown[name] = text
				fmt.Fprintf(&out, "  > %6.2f %s %s: %d of %d observers cannot reach it\n", now.Sub(start).Seconds(), name, text, v.Down, v.Observers)
			}
		}
	}
	until := func(end time.Time) {
		for now.Before(end) {
			now = now.Add(step)
			if now.Sub(start)%repeat == 0 {
				for k, up := range says {
					claim(k, up)
				}
			}
			show()
		}
	}
	lines := bufio.NewScanner(bytes.NewReader(script))
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "  >") {
			continue
		}
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			fmt.Fprintln(&out, line)
			continue
		}
		at, err := time.ParseDuration(f[0])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		until(start.Add(at))
		fmt.Fprintln(&out, line)
		switch {
		case len(f) == 2 && f[1] == "end":
		case len(f) == 5 && f[2] == "says":
			for _, o := range observers(f[1]) {
				k := claimKey{o, f[3]}
				says[k] = f[4] == "up"
				claim(k, says[k])
			}
		case len(f) == 4 && f[2] == "falls":
			for _, o := range observers(f[1]) {
				maps.DeleteFunc(says, func(k claimKey, _ bool) bool { return k.observer == o })
			}
		default:
			t.Fatalf("cannot read %q", line)
		}
		show()
	}
	return out.Bytes()
}

// observers reads "us/1,us/2" and "us/1-3".
func observers(list string) []Key {
	var keys []Key
	for part := range strings.SplitSeq(list, ",") {
		region, nodes, _ := strings.Cut(part, "/")
		var from, to int
		if n, _ := fmt.Sscanf(nodes, "%d-%d", &from, &to); n < 2 {
			to = from
		}
		for i := from; i <= to; i++ {
			keys = append(keys, Key{region, fmt.Sprint(i)})
		}
	}
	return keys
}

// history is the naive twin of the published state: it keeps every claim and
// every instant at which the state was looked at, and finds each answer by
// going through all of it again.
type history struct {
	claims []heard
	looks  []time.Time
}

func (h *history) published(names []string) map[string]bool {
	up, everReached := map[string]bool{}, map[string]bool{}
	back := map[string]time.Time{} // when it came up after a hold-down; absent: never
	cleanFrom := map[string]time.Time{}
	holds := map[string]time.Duration{}
	for _, n := range names {
		up[n] = true
	}
	for _, now := range h.looks {
		down, seen := map[string]int{}, map[string]int{}
		for key, c := range h.newest(now) {
			if key.observer.Region != key.subject && now.Sub(c.at) <= 15*time.Second && up[key.observer.Region] {
				seen[key.subject]++
				if !c.claim.Up {
					down[key.subject]++
				}
			}
		}
		for _, n := range names {
			bad := down[n] > seen[n]-down[n]
			at, recovered := back[n]
			if bad {
				delete(cleanFrom, n)
			} else if _, ok := cleanFrom[n]; !ok {
				cleanFrom[n] = now
			}
			switch {
			case up[n] && bad:
				if recovered && now.Sub(at) < 10*time.Minute {
					holds[n] = min(holds[n]*2, 4*time.Minute)
				} else {
					holds[n] = 15 * time.Second
				}
				up[n] = false
			case !up[n] && !bad && (!everReached[n] || now.Sub(cleanFrom[n]) >= holds[n]):
				up[n] = true
				if everReached[n] {
					back[n] = now
				}
			}
			if up[n] && seen[n] > 0 {
				everReached[n] = true
			}
		}
	}
	return up
}

func (h *history) newest(now time.Time) map[claimKey]heard {
	newest := map[claimKey]heard{}
	for _, c := range h.claims {
		k := claimKey{c.claim.Observer(), c.claim.Subject}
		if old, ok := newest[k]; !c.at.After(now) && (!ok || c.claim.Version().Compare(old.claim.Version()) > 0) {
			newest[k] = c
		}
	}
	return newest
}

func TestPublishedAgreesWithTwin(t *testing.T) {
	names := []string{"ap", "eu", "us"}
	seen := map[string]int{} // that the random sequences reach what they should
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 2))
		table, h := New(), &history{}
		for _, n := range names {
			table.know(n)
		}
		now := time.Unix(0, 0)
		bias := 1 + r.IntN(9)
		for i := range 60 {
			now = now.Add(time.Duration(r.IntN(4000)) * time.Millisecond)
			c := Claim{Region: names[r.IntN(3)], Node: fmt.Sprint(r.IntN(3)), Subject: names[r.IntN(3)],
				Up: r.IntN(10) < bias, Incarnation: 1, Seq: uint64(max(0, i-r.IntN(3)))}
			if r.IntN(20) == 0 { // a long silence, or a long storm's end
				now = now.Add(time.Duration(r.IntN(700)) * time.Second)
				bias = 1 + r.IntN(9)
			}
			if table.MergeClaim(c, now) {
				h.claims = append(h.claims, heard{c, now})
				h.looks = append(h.looks, now)
			}
			got := table.Published(now)
			h.looks = append(h.looks, now)
			want := h.published(names)
			anyUp := want["ap"] || want["eu"] || want["us"]
			kept := 0
			for _, n := range names {
				switch v := got[n]; {
				case v.LastHealthy:
					kept++
					if anyUp || !v.Up {
						t.Fatalf("seed %d step %d: %s kept although one is up", seed, i, n)
					}
				case v.Up != want[n]:
					t.Fatalf("seed %d step %d: %s up is %v, want %v", seed, i, n, v.Up, want[n])
				case v.Up:
					seen["up"]++
				default:
					seen["down"]++
				}
			}
			if !anyUp {
				seen["all down"]++
				if kept != 1 {
					t.Fatalf("seed %d step %d: %d regions kept, want 1", seed, i, kept)
				}
			}
		}
	}
	if seen["up"] < 1000 || seen["down"] < 1000 || seen["all down"] < 2 {
		t.Errorf("the sequences reached too little: %v", seen)
	}
}
