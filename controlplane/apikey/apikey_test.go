package apikey_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"pgregory.net/rapid"

	"ringmain/controlplane"
	"ringmain/controlplane/apikey"
)

// seeded is a reproducible source of randomness.
func seeded(seed byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{seed}) }

// counting yields next, next+1, … so that golden vectors can be worked out by
// hand; the bytes 248 to 255 must be skipped.
type counting struct{ next byte }

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.next
		c.next++
	}
	return len(p), nil
}

var second = time.Unix(1_790_000_000, 123_456_789)

// golden keys were worked out by a separate program. The format is frozen:
// customers hold keys and scanners hold patterns.
var golden = []struct {
	class, jurisdiction string
	at                  time.Time
	first               byte
	whole, id           string
}{
	{"live", "any", second, 0, "idc_live_any_1x8elk0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef20KH8V", "any_1x8elk0123456789"},
	{"test", "eu", second, 0, "idc_test_eu_1x8elk0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef3UhKlM", "eu_1x8elk0123456789"},
	{"live", "apac", time.Unix(0, 0), 250, "idc_live_apac_0000000123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef2kbfks", "apac_0000000123456789"},
}

func TestGoldenKeys(t *testing.T) {
	for _, tc := range golden {
		whole, p, err := apikey.New(tc.class, tc.jurisdiction, tc.at, &counting{tc.first})
		if err != nil {
			t.Fatal(err)
		}
		if whole.Reveal() != tc.whole {
			t.Errorf("New: got %s, want %s", whole.Reveal(), tc.whole)
		}
		got, err := apikey.Parse(tc.whole)
		want := apikey.Parsed{Class: tc.class, Jurisdiction: tc.jurisdiction, ID: tc.id}
		if err != nil || got != want || p != want {
			t.Errorf("Parse(%s) = %+v, %v; New said %+v; want %+v", tc.whole, got, err, p, want)
		}
		if got.RecordID() != "key_"+tc.id || !got.Created().Equal(tc.at.Truncate(time.Second)) {
			t.Errorf("record id %s, created %v", got.RecordID(), got.Created())
		}
		if back, err := apikey.FromRecord(tc.class, got.RecordID()); err != nil || back != got {
			t.Errorf("FromRecord = %+v, %v", back, err)
		}
	}
	if n := len(golden[2].whole); n != 69 || apikey.MaxLen != 69 {
		t.Errorf("a key of a four-letter jurisdiction has %d bytes, want 69", n)
	}
}

func TestParseRefuses(t *testing.T) {
	good := golden[0].whole
	resum := func(body string) string { return body + sum62(body) }
	body := good[:len(good)-6]
	for name, bad := range map[string]string{
		"empty":                   "",
		"cut":                     good[:len(good)-1],
		"longer":                  good + "0",
		"space in front":          " " + good,
		"newline behind":          good + "\n",
		"checksum":                good[:len(good)-1] + "W",
		"checksum beyond 32 bits": body + "zzzzzz",
		"one digit of the secret": strings.Replace(good, "ABCD", "ABCE", 1),
		"class":                   resum(strings.Replace(body, "live", "love", 1)),
		"upper-case class":        resum(strings.Replace(body, "live", "LIVE", 1)),
		"prefix":                  resum(strings.Replace(body, "idc_", "sk__", 1)),
		"upper-case jurisdiction": resum(strings.Replace(body, "any", "Any", 1)),
		"digit in jurisdiction":   resum(strings.Replace(body, "any", "an1", 1)),
		"one-letter jurisdiction": resum(strings.Replace(body, "any", "a", 1)),
		"five letters":            resum(strings.Replace(body, "any", "anyan", 1)),
		"dash in secret":          resum(strings.Replace(body, "ABCD", "AB-D", 1)),
		"underscore in id":        resum(strings.Replace(body, "0123", "0_23", 1)),
		"not ASCII":               resum(strings.Replace(body, "ABCD", "ABé", 1)),
		"NUL":                     resum(strings.Replace(body, "ABCD", "AB\x00D", 1)),
	} {
		if p, err := apikey.Parse(bad); !errors.Is(err, apikey.ErrMalformed) || p != (apikey.Parsed{}) {
			t.Errorf("%s: Parse(%q) = %+v, %v; want ErrMalformed", name, bad, p, err)
		}
	}
}

// sum62 is the checksum written a second time, naively.
func sum62(body string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	s := ""
	for v := crc32.ChecksumIEEE([]byte(body)); v > 0; v /= 62 {
		s = string(digits[v%62]) + s
	}
	return strings.Repeat("0", 6-len(s)) + s
}

var shape = regexp.MustCompile(`^idc_(live|test)_([a-z]{2,4})_([0-9A-Za-z]{16})_([0-9A-Za-z]{38})$`)

// naiveParse is Parse written with a regular expression.
func naiveParse(whole string) (apikey.Parsed, bool) {
	m := shape.FindStringSubmatch(whole)
	if m == nil || strings.HasSuffix(whole, "\n") {
		return apikey.Parsed{}, false
	}
	body := whole[:len(whole)-6]
	return apikey.Parsed{Class: m[1], Jurisdiction: m[2], ID: m[2] + "_" + m[3]}, body+sum62(body) == whole
}

func FuzzParse(f *testing.F) {
	for _, g := range golden {
		f.Add(g.whole)
	}
	f.Add("idc_live_any_")
	f.Fuzz(func(t *testing.T, whole string) {
		for _, s := range []string{whole, whole + sum62(whole)} {
			got, err := apikey.Parse(s)
			want, ok := naiveParse(s)
			if (err == nil) != ok || (ok && got != want) {
				t.Fatalf("Parse(%q) = %+v, %v; the naive twin says %+v, %v", s, got, err, want, ok)
			}
		}
	})
}

// Any one changed byte is caught: a CRC-32 catches every burst up to 32 bits.
func TestOneChangedByteIsRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		class := rapid.SampledFrom([]string{"live", "test"}).Draw(t, "class")
		jur := rapid.StringMatching(`[a-z]{2,4}`).Draw(t, "jurisdiction")
		at := time.Unix(rapid.Int64Range(0, 56_800_235_583).Draw(t, "second"), 0)
		whole, p, err := apikey.New(class, jur, at, seeded(rapid.Byte().Draw(t, "seed")))
		if err != nil {
			t.Fatal(err)
		}
		key := whole.Reveal()
		if got, err := apikey.Parse(key); err != nil || got != p || !got.Created().Equal(at) {
			t.Fatalf("Parse(%s) = %+v, %v; want %+v", key, got, err, p)
		}
		i := rapid.IntRange(0, len(key)-1).Draw(t, "place")
		b := rapid.Byte().Filter(func(b byte) bool { return b != key[i] }).Draw(t, "byte")
		if _, err := apikey.Parse(key[:i] + string([]byte{b}) + key[i+1:]); err == nil {
			t.Fatalf("byte %d of %s changed to %q, and still it parses", i, key, b)
		}
		if _, err := apikey.Parse(key[:i]); err == nil {
			t.Fatalf("%s cut to %d bytes parses", key, i)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for _, tc := range []struct {
		class, jurisdiction string
		at                  time.Time
	}{
		{"prod", "any", second}, {"live", "", second}, {"live", "e", second}, {"live", "europe", second},
		{"live", "EU", second}, {"live", "any", time.Unix(-1, 0)}, {"live", "any", time.Unix(56_800_235_584, 0)},
	} {
		if _, _, err := apikey.New(tc.class, tc.jurisdiction, tc.at, seeded(1)); err == nil {
			t.Errorf("New(%q, %q, %v) made a key", tc.class, tc.jurisdiction, tc.at)
		}
	}
	if _, _, err := apikey.New("live", "any", second, strings.NewReader("too short")); err == nil {
		t.Error("a key was made although randomness ran out")
	}
	if _, err := apikey.NewSecretFor(apikey.Parsed{Class: "live", Jurisdiction: "any", ID: "any_short"}, seeded(1)); err == nil {
		t.Error("a secret was made for a broken id")
	}
	for _, id := range []string{"", "any_1x8elk0123456789", "key_1x8elk0123456789", "key_any_1x8elk012345678", "key_any_1x8elk01234567_9"} {
		if _, err := apikey.FromRecord("live", id); err == nil {
			t.Errorf("FromRecord took %q", id)
		}
	}
}

func TestDigitsAreEquallyLikely(t *testing.T) {
	counts := map[rune]int{}
	random := seeded(7)
	p := apikey.Parsed{Class: "live", Jurisdiction: "any", ID: golden[0].id}
	const keys = 4000
	for range keys {
		whole, err := apikey.NewSecretFor(p, random)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range whole.Reveal()[30:62] {
			counts[c]++
		}
	}
	// Chi-squared with 61 degrees of freedom: over 120 once in 100,000 runs, and
	// the seed is fixed. Taking bytes modulo 62 without rejection gives over 900.
	want, chi := float64(keys*32)/62, 0.0
	for _, n := range counts {
		chi += (float64(n) - want) * (float64(n) - want) / want
	}
	if len(counts) != 62 || chi > 120 {
		t.Errorf("%d digits seen, chi-squared %.0f", len(counts), chi)
	}
}

func TestHashAndMatch(t *testing.T) {
	// Keys of a four-letter jurisdiction are the longest.
	whole, p, err := apikey.New("live", "apac", second, seeded(1))
	if err != nil {
		t.Fatal(err)
	}
	hash, err := apikey.Hash(whole)
	if err != nil {
		t.Fatal(err)
	}
	if cost, err := bcrypt.Cost(hash); err != nil || cost != 10 {
		t.Errorf("cost %d, %v", cost, err)
	}
	if err := apikey.Match(hash, whole.Reveal()); err != nil {
		t.Errorf("the right key: %v", err)
	}
	rotated, err := apikey.NewSecretFor(p, seeded(2))
	if err != nil {
		t.Fatal(err)
	}
	if err := apikey.Match(hash, rotated.Reveal()); !errors.Is(err, apikey.ErrMismatch) {
		t.Errorf("another secret of the same id: %v", err)
	}
	// bcrypt compares no byte past the 72nd; Match must not inherit that.
	for _, junk := range []string{"x", strings.Repeat("x", 100), "\x00"} {
		if err := apikey.Match(hash, whole.Reveal()+junk); !errors.Is(err, apikey.ErrMalformed) {
			t.Errorf("the key with %q behind it: %v", junk, err)
		}
	}
	if err := apikey.Match([]byte("no hash"), whole.Reveal()); err == nil || errors.Is(err, apikey.ErrMismatch) {
		t.Errorf("a damaged hash must not read as a wrong key: %v", err)
	}
	if _, err := apikey.Hash(controlplane.NewSecret("not a key")); !errors.Is(err, apikey.ErrMalformed) {
		t.Errorf("Hash of something else: %v", err)
	}
}

func TestWholeKeyIsNeverPrinted(t *testing.T) {
	whole, _, err := apikey.New("live", "any", second, seeded(1))
	if err != nil {
		t.Fatal(err)
	}
	type holder struct{ k controlplane.Secret }
	if s := fmt.Sprintf("%v %+v %#v %+v", whole, whole, whole, holder{whole}); strings.Contains(s, "idc_") {
		t.Errorf("printed: %s", s)
	}
}

// Verdict keys are shared between nodes of different versions: pinned by a
// second HKDF, written elsewhere.
func TestGoldenVerdictKeys(t *testing.T) {
	current, previous := apikey.VerdictKeys([]byte("0123456789abcdef0123456789abcdef"), second)
	if got := hex.EncodeToString(current[:]); got != "00bcbb3a9c8990ea7a5eb583f3524a1471bd7fd8f935775a0c97be3306670159" {
		t.Errorf("current %s", got)
	}
	if got := hex.EncodeToString(previous[:]); got != "28f26fbfe223bf28f1ab10278a119d0fcb2fbe9de6e5963d3dbd635109adf0a7" {
		t.Errorf("previous %s", got)
	}
	midnight := second.Truncate(24 * time.Hour).Add(24 * time.Hour)
	lastC, _ := apikey.VerdictKeys([]byte("0123456789abcdef0123456789abcdef"), midnight.Add(-time.Nanosecond))
	nextC, nextP := apikey.VerdictKeys([]byte("0123456789abcdef0123456789abcdef"), midnight)
	if lastC != current || nextP != current || nextC == current {
		t.Error("the key must change at midnight UTC, and the old one stay as previous")
	}
	other, _ := apikey.VerdictKeys([]byte("fedcba9876543210fedcba9876543210"), second)
	if other == current || apikey.Verdict(current, golden[0].whole) == apikey.Verdict(other, golden[0].whole) {
		t.Error("verdicts of two clusters must differ")
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { _, _ = apikey.Parse(golden[0].whole) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := apikey.Parse(golden[0].whole); err != nil {
			b.Fatal(err)
		}
	}
}
