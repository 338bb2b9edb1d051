package meter

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// TestFieldList is the declared list of what is kept about a request. A new
// field must be added here, and to what customers are told, on purpose.
func TestFieldList(t *testing.T) {
	const declared = "role request_id at endpoint key org project model served upstream entry_region entry_node region node residency " +
		"status code streamed tokens_in tokens_out cache_read cache_write source latency_ms first_token_ms attempts refused ended"
	var got []string
	for f := range reflect.TypeFor[Record]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		got = append(got, name)
	}
	if strings.Join(got, " ") != declared {
		t.Errorf("fields are\n%s\nwant\n%s", strings.Join(got, " "), declared)
	}
}

func TestRoundTrip(t *testing.T) {
	r := &Record{Role: RoleFront, RequestID: "req_1", At: 7, Key: "key_any_1", TokensIn: 3, Source: SourceEstimated, Ended: EndTruncated, Attempts: 2, Status: 200}
	b, err := Encode(r)
	if err != nil {
		t.Fatal(err)
	}
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

func FuzzDecode(f *testing.F) {
	b, _ := Encode(&Record{RequestID: "req"})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err != nil {
			return
		}
		if _, err := Encode(r); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	r := &Record{Role: RoleFront, RequestID: "req_01JABCDEFGHIJKLMNOPQRSTUVW", Key: "key_any_0123456789abcdef", Project: "prj_any_0123456789", TokensIn: 3000, Source: SourceProvider, Ended: EndComplete}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Encode(r); err != nil {
			b.Fatal(err)
		}
	}
}
