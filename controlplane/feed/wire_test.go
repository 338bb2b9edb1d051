package feed

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
)

// samples has every type of frame.
func samples() []*Frame {
	e := controlplane.Epoch{Counter: 3, Region: "eu-fra"}
	return []*Frame{
		{Type: FrameReset, Shard: "eu", Sender: e, Members: []string{"eu-fra", "eu-ber"}, Home: "eu-fra"},
		{Type: FrameRecord, Shard: "eu", Sender: e, Record: []byte{0xa1, 1, 2}},
		{Type: FrameRevocation, Shard: "eu", Revocation: &registry.Revocation{Kind: registry.KindKey, ID: "key_eu_1", Shard: "eu", At: 5}},
		{Type: FrameEnd, Shard: "eu", Point: controlplane.Point{Epoch: e, Seq: 9}, Digest: bytes.Repeat([]byte{7}, 32)},
		{Type: FrameEntry, Shard: "eu", Sender: e, Entry: []byte{1, 0x80}},
		{Type: FrameVerdicts, Verdicts: []Verdict{{Key: "key_any_1", Revision: 4, MAC: [32]byte{1, 2}}}},
		{Type: FrameHeartbeat, Position: controlplane.Position{"eu": {Epoch: e, Seq: 9}}, At: 12345},
		{Type: FrameStanding, Shard: "eu", Sender: e, Point: controlplane.Point{Epoch: e, Seq: 9}},
		{Type: FrameStanding, Shard: "eu", Sender: e, Spans: []registry.Span{{Epoch: e, Start: 4, Members: []ownership.Member{{Region: "eu-fra", Since: 1}}}}},
	}
}

func TestReader(t *testing.T) {
	var stream []byte
	for _, f := range samples() {
		var err error
		if stream, err = AppendFrame(stream, f); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(bytes.NewReader(stream))
	for _, want := range samples() {
		got, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("read %+v, want %+v", got, want)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	for cut := range len(stream) {
		r := NewReader(bytes.NewReader(stream[:cut]))
		var err error
		n := 0
		for ; err == nil; n++ {
			_, err = r.Next()
		}
		var whole int
		for at := 0; at < cut; whole++ {
			at += 4 + int(binary.BigEndian.Uint32(stream[at:]))
			if at > cut && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			if at == cut && (!errors.Is(err, io.EOF) || n != whole+2) {
				t.Fatalf("cut at %d: %v after %d frames", cut, err, n)
			}
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	unknown, _ := Marshal(map[int]any{1: 99})
	field, _ := Marshal(map[int]any{1: 7, 77: 1})
	for name, c := range map[string]struct {
		body []byte
		size uint32
		want error
	}{
		"no length":      {nil, 0, nil},
		"huge":           {nil, MaxFrame + 1, nil},
		"unknown type":   {unknown, uint32(len(unknown)), controlplane.ErrUnknownEntry},
		"unknown field":  {field, uint32(len(field)), nil},
		"trailing byte":  {[]byte{0xa1, 1, 7, 0}, 4, nil},
		"reset of \"\"":  {[]byte{0xa1, 1, byte(FrameReset)}, 3, nil},
		"no revocation":  {[]byte{0xa1, 1, byte(FrameRevocation)}, 3, nil},
		"empty entry":    {[]byte{0xa2, 1, byte(FrameEntry), 2, 0x61, 'x'}, 6, nil},
		"duplicate keys": {[]byte{0xa2, 1, 7, 1, 7}, 5, nil},
	} {
		_, err := NewReader(bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, c.size), c.body...))).Next()
		if err == nil || errors.Is(err, io.EOF) || (c.want != nil && !errors.Is(err, c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecodeFrame: whatever is accepted survives a round trip unchanged.
func FuzzDecodeFrame(f *testing.F) {
	for _, s := range samples() {
		b, err := EncodeFrame(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		first, err := DecodeFrame(b)
		if err != nil {
			return
		}
		again, err := EncodeFrame(first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := DecodeFrame(again)
		if err != nil {
			t.Fatalf("%x was accepted, its re-encoding %x is not: %v", b, again, err)
		}
		if third, _ := EncodeFrame(second); !bytes.Equal(again, third) {
			t.Fatalf("%x and %x", again, third)
		}
	})
}

// FuzzReader: any stream ends with an error, and what came before it is frames.
func FuzzReader(f *testing.F) {
	var stream []byte
	for _, s := range samples() {
		stream, _ = AppendFrame(stream, s)
		f.Add(stream)
	}
	f.Add([]byte{0, 0x40, 0, 1, 0})
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		for n := 0; ; n++ {
			frame, err := r.Next()
			if err != nil {
				return
			}
			if frame == nil || n > len(b)/5 {
				t.Fatal("more frames than bytes allow")
			}
		}
	})
}
