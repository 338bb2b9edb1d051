package receipt

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"lukechampine.com/blake3"

	"ringmain/dataplane/receipt/proof"
)

// The first 32 bytes of the hashes that the BLAKE3 team publishes
// (test_vectors.json): of 0, 1, 2, ... 250, 0, 1, ...
func TestBLAKE3Vectors(t *testing.T) {
	input := make([]byte, 102400)
	for i := range input {
		input[i] = byte(i % 251)
	}
	for size, want := range map[int]string{
		0:      "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
		1:      "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
		1023:   "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
		1024:   "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
		1025:   "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
		16384:  "f875d6646de28985646f34ee13be9a576fd515f76b5b0a26bb324735041ddde4",
		31744:  "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47",
		102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
	} {
		b := new(blake)
		_, _ = b.Write(input[:size])
		if got := hex.EncodeToString(b.Sum(nil)); got != want {
			t.Errorf("%d bytes: %s", size, got)
		}
	}
}

// Whatever the pieces in which a body comes, the hash is the library's own.
func TestBLAKE3InPieces(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	body := make([]byte, 1<<20)
	for i := range body {
		body[i] = byte(random.Uint32())
	}
	b := new(blake)
	for range 300 {
		left := body[:random.IntN(len(body))>>random.IntN(12)]
		want := blake3.Sum256(left)
		b.Reset()
		for len(left) > 0 {
			n := 1 + random.IntN(min(len(left), 1<<random.IntN(18)))
			_, _ = b.Write(left[:n])
			left = left[n:]
		}
		if !bytes.Equal(b.Sum(nil), want[:]) {
			t.Fatal("another hash")
		}
	}
	for _, size := range []int{piece - 1, piece, piece + 1, 2*piece - 1, 2 * piece, 2*piece + 1, 64 * piece} {
		want := blake3.Sum256(body[:size])
		b.Reset()
		_, _ = b.Write(body[:size])
		if !bytes.Equal(b.Sum(nil), want[:]) {
			t.Errorf("%d bytes: another hash", size)
		}
	}
}

// A hasher leaves nothing of one body in the next, and takes it in any pieces.
func TestHasher(t *testing.T) {
	body := bytes.Repeat([]byte("event\n\n"), 100)
	for a, sum := range map[Algorithm]func([]byte) [32]byte{SHA256: sha256.Sum256, BLAKE3: blake3.Sum256} {
		var h Hasher
		h.Begin(a)
		_, _ = h.Write([]byte("left over"))
		h.Begin(a)
		for _, b := range body {
			_, _ = h.Write([]byte{b})
		}
		d := h.Sum()
		if d.Algorithm != a || d.Hash != sum(append(d.Salt[:], body...)) {
			t.Errorf("%s: not that of salt || body", a)
		}
		h.Begin(a)
		if next := h.Sum(); next.Salt == d.Salt {
			t.Errorf("%s: a salt was used twice", a)
		}
		n := testing.AllocsPerRun(100, func() {
			h.Begin(a)
			_, _ = h.Write(body)
			_ = h.Sum()
		})
		if n != 0 {
			t.Errorf("%s: %v allocations for a body", a, n)
		}
	}
}

// What a Hasher states, the verifier finds in the facts, under either
// algorithm, one body after another.
func TestStatedIsVerified(t *testing.T) {
	l := openLog(t, Config{})
	h, body := new(Hasher), []byte(strings.Repeat("ring main ", 20_000))
	for i, a := range []Algorithm{SHA256, BLAKE3, BLAKE3, SHA256} {
		f := facts(id(i))
		h.Begin(a)
		_, _ = h.Write(body)
		f.StateRequest(h.Sum())
		h.Begin(SHA256)
		_, _ = h.Write(body[:100])
		f.StateResponse(h.Sum())
		jws, err := l.Inline(l.Reserve(), f)
		if err != nil {
			t.Fatal(err)
		}
		v := verify(t, l, []byte(jws), proof.Bodies{Request: body, Response: body[:100]})
		if (v.Facts.Request == proof.Hash{}) != (a == BLAKE3) || (v.Facts.RequestBLAKE3 == proof.Hash{}) != (a == SHA256) || v.Facts.ResponseBLAKE3 != (proof.Hash{}) {
			t.Errorf("%s: %+v", a, v.Facts)
		}
	}
}

func TestFastest(t *testing.T) {
	if Fastest(0) != SHA256 || Fastest(large-1) != SHA256 {
		t.Error("a small body, or one of unknown size")
	}
	if got := Fastest(large); (got == BLAKE3) != vectors {
		t.Errorf("a large body: %s", got)
	}
}

func BenchmarkHasher(b *testing.B) {
	body := make([]byte, 5<<20)
	for _, size := range []int{1 << 10, 16 << 10, large, 5 << 20} {
		for _, a := range []Algorithm{SHA256, BLAKE3} {
			b.Run(strconv.Itoa(size>>10)+"KiB/"+string(a), func(b *testing.B) {
				var h Hasher
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					h.Begin(a)
					_, _ = h.Write(body[:size])
					_ = h.Sum()
				}
			})
		}
	}
}
