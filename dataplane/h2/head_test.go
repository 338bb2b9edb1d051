package h2

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"pgregory.net/rapid"
)

// Whatever a handler sets arrives, as it set it.
func TestHeadsArrive(t *testing.T) {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	rapid.Check(t, func(t *rapid.T) {
		var want []string
		status := rapid.IntRange(100, 999).Draw(t, "status")
		b := appendStatus(nil, status)
		want = append(want, fmt.Sprintf(":status: %d", status))
		for range rapid.IntRange(0, 20).Draw(t, "fields") {
			name := rapid.OneOf(rapid.SampledFrom(names), rapid.StringMatching(`[A-Z][a-z0-9-]{0,300}`)).Draw(t, "name")
			value := rapid.OneOf(rapid.StringMatching(`[ -~]{0,40}`), rapid.StringMatching(`[!-~]{100,600}`)).Draw(t, "value")
			b = appendField(b, name, []string{value})
			want = append(want, strings.ToLower(name)+": "+value)
		}
		var got []string
		d := hpack.NewDecoder(0, func(f hpack.HeaderField) { got = append(got, f.Name+": "+f.Value) })
		if _, err := d.Write(b); err != nil || d.Close() != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

// The names that are encoded beforehand are what the table says.
func TestFieldTable(t *testing.T) {
	for name := range fields {
		if name != http.CanonicalHeaderKey(name) {
			t.Errorf("%s is not as http.Header has it", name)
		}
		var got string
		d := hpack.NewDecoder(0, func(f hpack.HeaderField) { got = f.Name })
		if _, err := d.Write(appendField(nil, name, []string{"v"})); err != nil || got != strings.ToLower(name) {
			t.Errorf("%s arrives as %q, %v", name, got, err)
		}
	}
	for lower, name := range known {
		if name != http.CanonicalHeaderKey(lower) {
			t.Errorf("%s is not as http.Header has it", name)
		}
	}
}

// A head that does not fit into one frame goes on in others.
func TestLongHead(t *testing.T) {
	long := strings.Repeat("v", 20<<10)
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Long", long)
		w.Header().Set("X-Longer", long+long)
	}), nil)
	resp, err := ts.Client().Get(ts.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("X-Long") != long || resp.Header.Get("X-Longer") != long+long {
		t.Error("it did not arrive whole")
	}
}

func TestDate(t *testing.T) {
	for _, now := range []time.Time{time.Unix(1, 0), time.Unix(1, 999), time.Unix(2, 0)} {
		var got string
		d := hpack.NewDecoder(0, func(f hpack.HeaderField) { got = f.Value })
		if _, err := d.Write(appendDate(nil, now)); err != nil || got != now.UTC().Format(http.TimeFormat) {
			t.Errorf("%v became %q, %v", now, got, err)
		}
	}
}

// FuzzFrames: whatever comes, nothing panics or hangs, and what goes out is frames.
func FuzzFrames(f *testing.F) {
	for _, b := range behaviours {
		var p player
		rec := new(recorder)
		p.t, p.fr, p.open, p.seen = f, http2.NewFramer(rec, strings.NewReader("")), map[uint32]bool{}, map[uint32]*answered{}
		p.enc = hpack.NewEncoder(&p.buf)
		p.fr.AllowIllegalWrites = true
		func() {
			defer func() { _ = recover() }() // scripts that wait for answers
			rec.left = 200
			b.script(&p)
		}()
		f.Add(rec.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { feed(t, b) })
}

// recorder keeps what is written, up to a number of writes.
type recorder struct {
	b    []byte
	left int
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.left--; r.left < 0 {
		panic("enough")
	}
	r.b = append(r.b, p...)
	return len(p), nil
}
