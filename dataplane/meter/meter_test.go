package meter

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

// TestFieldList is the declared list of what is kept about a request. A new
// field must be added here, and to what customers are told, on purpose.
func TestFieldList(t *testing.T) {
	const declared = "role request_id at endpoint key org project model served upstream entry_region entry_node region node residency " +
		"status code streamed tokens_in tokens_out cache_read cache_write source latency_ms first_token_ms attempts refused ended " +
		"pool retention plan fallback splices replay_in replay_out receipt"
	kinds := map[reflect.Kind]string{reflect.String: "text", reflect.Int: "number", reflect.Int64: "number", reflect.Bool: "truth"}
	var got []string
	told := Fields()
	for f := range reflect.TypeFor[Record]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		got = append(got, name)
		if len(told) == 0 || told[0].Name != name || told[0].Type != kinds[f.Type.Kind()] || len(told[0].Description) < 10 {
			t.Fatalf("%s (%v) is not what Fields tells in its place: %+v", name, f.Type, told[:min(1, len(told))])
		}
		told = told[1:]
	}
	if strings.Join(got, " ") != declared || len(told) != 0 {
		t.Errorf("fields are\n%s\nwant\n%s\nand Fields tells also %v", strings.Join(got, " "), declared, told)
	}
}

// TestAppend compares with the library's deterministic encoding.
func TestAppend(t *testing.T) {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		var r Record
		v := reflect.ValueOf(&r).Elem()
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			if !rapid.Bool().Draw(t, name+" is set") {
				continue
			}
			switch f := v.Field(i); f.Kind() {
			case reflect.String:
				s := rapid.String().Draw(t, name)
				f.SetString(strings.Repeat(s, rapid.SampledFrom([]int{1, 1, 30, 1000}).Draw(t, "times")))
			case reflect.Bool:
				f.SetBool(true)
			default:
				f.SetInt(rapid.Int64().Draw(t, name) >> rapid.IntRange(0, 63).Draw(t, "shift"))
			}
		}
		library, err := mode.Marshal(&r)
		if err != nil {
			t.Fatal(err)
		}
		got := Append([]byte("before"), &r)
		if want := append([]byte("before\x01"), library...); !bytes.Equal(got, want) {
			t.Fatalf("%+v\nis %x\nwant %x", r, got, want)
		}
		back, err := Decode(got[len("before"):])
		if err != nil || *back != r {
			t.Fatalf("%+v came back as %+v, %v", r, back, err)
		}
	})
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoundTrip(t *testing.T) {
	r := &Record{Role: RoleFront, RequestID: "req_1", At: 7, Key: "key_any_1", TokensIn: 3, Source: SourceEstimated, Ended: EndTruncated, Attempts: 2, Status: 200}
	b := Append(nil, r)
	got, err := Decode(b)
	if err != nil || *got != *r {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, bad := range [][]byte{nil, {Version}, {Version + 1, 0xa0}, append(b, 0), b[:len(b)-1], {Version, 0xa1, 0x18, 99, 1}} {
		if _, err := Decode(bad); !errors.Is(err, ErrFormat) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

// TestTextThatIsNone: what a peer says ends up in records. Whatever it is, they
// can be read again.
func TestTextThatIsNone(t *testing.T) {
	r := &Record{Role: RoleFront, RequestID: "req_1", Model: "a\xff\xfeb", Served: "gl\xc3", Upstream: "größe"}
	got, err := Decode(Append(nil, r))
	if err != nil {
		t.Fatal(err)
	}
	if got.Model != "a\uFFFDb" || got.Served != "gl\uFFFD" || got.Upstream != "größe" {
		t.Errorf("%+v", got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Append(nil, &Record{RequestID: "req"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err != nil {
			return
		}
		if again, err := Decode(Append(nil, r)); err != nil || *again != *r {
			t.Fatalf("%+v came back as %+v, %v", r, again, err)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	r := &Record{Role: RoleFront, RequestID: "req_01JABCDEFGHIJKLMNOPQRSTUVW", At: 1_795_300_000_000, Endpoint: "/v1/chat/completions",
		Key: "key_any_0123456789abcdef", Org: "org_any_0123456789", Project: "prj_any_0123456789", Model: "model", Served: "model-2026", Upstream: "provider-eu",
		EntryRegion: "eu-fra", EntryNode: "d1", Region: "eu-fra", Node: "d1", Residency: "eu", Status: 200, TokensIn: 3000, TokensOut: 500,
		Source: SourceProvider, LatencyMS: 812, FirstTokenMS: 200, Attempts: 1, Ended: EndComplete, Pool: "standard", Retention: "metadata", Receipt: "12.1234"}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = Append(buf[:0], r)
	}
	b.SetBytes(int64(len(buf)))
}
