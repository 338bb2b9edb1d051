package link

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
)

func encode(t testing.TB, m *Message) []byte {
	t.Helper()
	b, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newDecoder(b []byte) *decoder { return &decoder{r: bufio.NewReader(bytes.NewReader(b))} }

func TestCodec(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 3<<20)
	in := []*Message{
		{Type: TypeHello, Hello: &Hello{PID: 7, Node: "n", Run: 9, Position: controlplane.Position{"eu": {Seq: 3}}}},
		{Type: TypeState, Frames: [][]byte{{1}, {2, 3}}},
		{Type: TypeMetrics, Seq: 5, Bytes: big},
		{Type: TypeLoaded, Unknown: true},
		{Type: TypeVerdicts, Verdicts: []feed.Verdict{{Key: "k", Revision: 2}}},
	}
	var stream []byte
	for _, m := range in {
		stream = append(stream, encode(t, m)...)
	}
	d := newDecoder(stream)
	for i, want := range in {
		got, err := d.next()
		if err != nil {
			t.Fatal(i, err)
		}
		if !bytes.Equal(encode(t, got), encode(t, want)) {
			t.Errorf("message %d came out as %+v", i, got)
		}
	}
	if _, err := d.next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last message: %v", err)
	}
	if _, err := Encode(&Message{Type: TypeMetrics, Bytes: make([]byte, maxMessage)}); err == nil {
		t.Error("a message beyond the bound was encoded")
	}
}

func TestMalformed(t *testing.T) {
	good := encode(t, &Message{Type: TypeDrain})
	length := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for name, b := range map[string][]byte{
		"length cut":     good[:2],
		"body cut":       good[:len(good)-1],
		"length zero":    length(0),
		"length too big": append(length(maxMessage+1), make([]byte, 10)...),
		"promises much":  append(length(maxMessage), 1, 2, 3),
		"no cbor":        append(length(2), 0xff, 0xff),
		"unknown type":   encode(t, &Message{Type: 99}),
		"no body":        encode(t, &Message{Type: TypeHello}),
		"process group":  encode(t, &Message{Type: TypeHello, Hello: &Hello{PID: 0}}),
		"all processes":  encode(t, &Message{Type: TypeHello, Hello: &Hello{PID: -1}}),
		"init":           encode(t, &Message{Type: TypeHello, Hello: &Hello{PID: 1}}),
		"wraps to all":   encode(t, &Message{Type: TypeHello, Hello: &Hello{PID: 1<<32 - 1}}),
		"trailing":       append(length(uint32(len(good)-4+1)), append(bytes.Clone(good[4:]), 0)...),
	} {
		if _, err := newDecoder(b).next(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []*Message{
		{Type: TypeHello, Hello: &Hello{PID: 1}}, {Type: TypeState, Frames: [][]byte{{1, 2}}},
		{Type: TypePeers, Peers: &Peers{Nodes: []Peer{{Node: "n", Pools: []string{"p"}}}}},
		{Type: TypeHealth, Health: &Health{Breakers: map[string]string{"a": "open"}}},
	} {
		b, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDecoder(b)
		for {
			m, err := d.next()
			if err != nil {
				if !errors.Is(err, ErrMalformed) && !errors.Is(err, io.EOF) {
					t.Fatalf("an error of no kind: %v", err)
				}
				return
			}
			again, err := newDecoder(encode(t, m)).next()
			if err != nil || !bytes.Equal(encode(t, again), encode(t, m)) {
				t.Fatalf("%+v does not survive a round: %v", m, err)
			}
		}
	})
}
