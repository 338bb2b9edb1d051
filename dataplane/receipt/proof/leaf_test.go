package proof

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ringmain/controlplane/strict"
)

func drawFacts(t *rapid.T) *Facts {
	text := rapid.StringN(0, 40, 300)
	f := new(Facts)
	v := reflect.ValueOf(f).Elem()
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.String && rapid.Bool().Draw(t, "present") {
			v.Field(i).SetString(text.Draw(t, v.Type().Field(i).Name))
		}
	}
	f.At, f.Status = rapid.Int64().Draw(t, "at"), rapid.Int().Draw(t, "status")
	f.Written = rapid.Int64().Draw(t, "written")
	f.Streamed, f.Refused = rapid.Bool().Draw(t, "streamed"), rapid.Bool().Draw(t, "refused")
	for range rapid.IntRange(0, 4).Draw(t, "attempts") {
		f.Attempts = append(f.Attempts, Attempt{
			Region: text.Draw(t, "region"), Node: text.Draw(t, "node"), Upstream: text.Draw(t, "upstream"), Outcome: text.Draw(t, "outcome"),
		})
		if rapid.Bool().Draw(t, "said") {
			c := drawConfinement(t)
			f.Attempts[len(f.Attempts)-1].Confinement = &c
		}
	}
	f.Confinement = drawConfinement(t)
	for _, h := range []*Hash{&f.Response, &f.RequestBLAKE3, &f.ResponseBLAKE3} {
		if rapid.Bool().Draw(t, "stated") {
			copy(h[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hash"))
		}
	}
	copy(f.Request[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hash"))
	f.Attestation = rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "attestation")
	if len(f.Attestation) == 0 {
		f.Attestation = nil
	}
	return f
}

func drawConfinement(t *rapid.T) Confinement {
	return Confinement{rapid.Int().Draw(t, "landlock"), rapid.Bool().Draw(t, "w"), rapid.Bool().Draw(t, "d"), rapid.Bool().Draw(t, "s")}
}

// The encoding by hand is the deterministic one of the library.
func TestLeafIsDeterministicCBOR(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFacts(t)
		leaf := AppendLeaf(nil, f)
		want := append([]byte{leafVersion}, must(strict.Marshal(f))...)
		if !bytes.Equal(leaf, want) {
			t.Fatalf("by hand %x\nlibrary %x", leaf, want)
		}
		if len(leaf) > MaxLeaf {
			return
		}
		back, err := decodeLeaf(leaf)
		if err != nil || !reflect.DeepEqual(back, f) {
			t.Fatalf("%v\n%+v\n%+v", err, back, f)
		}
	})
}

func TestLeafIsStrict(t *testing.T) {
	s := &Signer{public: edKey(make(ed25519.PublicKey, 32))}
	leaf := AppendLeaf(nil, someFacts(s, time.UnixMilli(1), 1))
	if _, err := decodeLeaf(leaf); err != nil {
		t.Fatal(err)
	}
	long := bytes.Replace(leaf, []byte{18, 0x18, 200}, []byte{18, 0x19, 0, 200}, 1) // 200 in three bytes
	if bytes.Equal(long, leaf) {
		t.Fatal("the status was not found")
	}
	for name, b := range map[string][]byte{
		"empty": {}, "another version": append([]byte{2}, leaf[1:]...), "cut": leaf[:len(leaf)-1], "more": append(bytes.Clone(leaf), 0),
		"a number in a longer form": long, "too long": append(bytes.Clone(leaf), make([]byte, MaxLeaf)...),
	} {
		if _, err := decodeLeaf(b); !errors.Is(err, ErrLeaf) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Text that is no UTF-8 can be carried by neither CBOR nor JSON.
func TestLeafMendsText(t *testing.T) {
	leaf := AppendLeaf(nil, &Facts{Model: "a\xffb"})
	f, err := decodeLeaf(leaf)
	if err != nil || f.Model != "a\uFFFDb" {
		t.Errorf("%v: %+v", err, f)
	}
}

// A leaf that somebody keeps must stay what it is, to the byte: its place in a
// signed tree depends on it.
func TestLeafIsFrozen(t *testing.T) {
	s := &Signer{public: edKey(make(ed25519.PublicKey, 32))}
	unread := someFacts(s, time.UnixMilli(1_795_000_000_000), 7)
	unread.Request, unread.Attempts = Hash{}, nil
	cut := someFacts(s, time.UnixMilli(1_795_000_000_000), 9)
	cut.Ended, cut.Written = "client_gone", 65536
	for name, c := range map[string]struct {
		facts *Facts
		want  string // SHA-256
	}{
		"nothing":       {&Facts{}, "3c0004c0f068423af68440876e26a32b18f2aca0bd64c18eb2e7980a9af2324b"},
		"plain":         {someFacts(s, time.UnixMilli(1_795_000_000_000), 7), "d203f151740d4605bfbd72d3706f65c941d015f4ed254f9e260112b99642b609"},
		"streamed":      {someFacts(s, time.UnixMilli(1_795_000_000_000), 8), "84ef1fa088aad1dcb9bcdec470fdae86d3a86a03223cfed507e7c95204ecc188"},
		"no body, none": {unread, "6de32a39c3b3f88fe4d2fa8df7d313f29ff91968194f31c0a4981c8dcf846982"},
		"forwarded":     {forwardedFacts(s, time.UnixMilli(1_795_000_000_000)), "a3f60d13c2c11ac2c080e7c55cdd20326322354f35b094bc06d2fa88e0ecf2a9"},
		"broken off":    {cut, "a482d3e64ff16762cd7d8ce2f32f293e72900f114a732e5436c85b41d8f8b2b6"},
	} {
		if got := sha256.Sum256(AppendLeaf(nil, c.facts)); hex.EncodeToString(got[:]) != c.want {
			t.Errorf("%s: %x", name, got)
		}
	}
}

func TestLeafAllocatesNothing(t *testing.T) {
	s := &Signer{public: edKey(make(ed25519.PublicKey, 32))}
	f, b := someFacts(s, time.UnixMilli(1), 1), make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { b = AppendLeaf(b[:0], f) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	t.Logf("a leaf of %d bytes", len(b))
}

// The tree of RFC 6962's reference implementation (certificate-transparency,
// merkletree tests).
func TestTreeVectors(t *testing.T) {
	leaves := []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}
	roots := []string{
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	var hashes []node
	for i, l := range leaves {
		b, err := hex.DecodeString(l)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, leafHash(b))
		if root := rootOf(hashes); hex.EncodeToString(root[:]) != roots[i] {
			t.Errorf("root of %d leaves: %x", i+1, root)
		}
	}
}

func TestPaths(t *testing.T) {
	var hashes []node
	for n := 1; n <= 40; n++ {
		hashes = append(hashes, sha256.Sum256([]byte{byte(n)}))
		root := rootOf(hashes)
		for i := range n {
			path := pathOf(hashes, i)
			for j := -1; j <= n; j++ {
				got, ok := rootFrom(hashes[i], j, n, path)
				if ok && got == root && j != i || j == i && (!ok || got != root) {
					t.Fatalf("leaf %d as %d of %d: %v", i, j, n, ok)
				}
			}
			for size := range 2 * n {
				if got, ok := rootFrom(hashes[i], i, size, path); ok && got == root && size != n && len(pathOf(hashes, i)) > 0 && sameShape(i, n, size) == false {
					t.Fatalf("leaf %d of %d in a tree of %d", i, n, size)
				}
			}
		}
	}
}

// sameShape reports whether leaf i's way to the root is the same in both
// sizes: then the size is bound by the signature over it, not by the path.
func sameShape(i, n, m int) bool {
	if i >= m {
		return false
	}
	for n > 1 && m > 1 {
		k, l := split(n), split(m)
		if (i < k) != (i < l) {
			return false
		}
		if i < k {
			n, m = k, l
		} else if k != l {
			return false
		} else {
			i, n, m = i-k, n-k, m-l
		}
	}
	return n == m
}

// RFC 8037, appendix A.3.
func TestThumbprint(t *testing.T) {
	x, err := decode64("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	if err != nil {
		t.Fatal(err)
	}
	if k := edKey(x); k.Kid != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Error(k.Kid)
	}
}

// Of the two ECDSA signatures that say the same, one is taken.
func TestUpperHalfIsRefused(t *testing.T) {
	f := newFixture(t)
	parts := strings.Split(f.batch.Delegation, ".")
	jws, err := parseJWS(f.batch.Delegation, typKey)
	if err != nil {
		t.Fatal(err)
	}
	_, chain, err := parseDelegation(f.batch.Delegation)
	if err != nil {
		t.Fatal(err)
	}
	sig := bytes.Clone(jws.signature)
	twin(sig)
	parts[2] = encode64(sig)
	again, err := parseJWS(strings.Join(parts, "."), typKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.verify(chain[0].PublicKey); err == nil {
		t.Error("two signatures say the same")
	}
	twin(again.signature)
	if err := again.verify(chain[0].PublicKey); err != nil {
		t.Error(err)
	}
}

func TestBase64IsStrict(t *testing.T) {
	for _, s := range []string{"QQ==", "QR", "Q Q", "QQ\n", "Q\rQ", "+/+/"} {
		if b, err := decode64(s); err == nil {
			t.Errorf("%q: %x", s, b)
		}
	}
}

func TestBatchFormat(t *testing.T) {
	f := newFixture(t)
	raw, err := f.batch.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseBatch(raw)
	if err != nil || back.Len() != 7 || back.Number != 1 || back.Key != f.signer.Key() || back.Delegation != f.batch.Delegation || !back.At.Equal(f.batch.At.Truncate(time.Millisecond)) {
		t.Fatalf("%v: %+v", err, back)
	}
	bare, err := back.Bare()
	if err != nil {
		t.Fatal(err)
	}
	if back, err = ParseBatch(bare); err != nil || back.Delegation != "" {
		t.Fatalf("%v: %+v", err, back)
	}
	back.Delegation = f.batch.Delegation
	id := requestIDOf(t, f.doc)
	if doc := document(t, back.Find(id)); !bytes.Equal(doc, f.doc) {
		t.Error("a receipt changes on its way through the keeper")
	}
	b, err := back.Find(id).Encode()
	if err != nil {
		t.Fatal(err)
	}
	e, err := DecodeEntry(b)
	if err != nil {
		t.Fatal(err)
	}
	if doc := document(t, e); !bytes.Equal(doc, f.doc) {
		t.Error("a receipt changes on its way to the worker")
	}
	if back.Find("req_00000000000000000000000000") != nil {
		t.Error("found what is not there")
	}
	for i := range raw {
		if b, err := ParseBatch(flipped(raw, i, 1<<(i%8))); err == nil { // damage is the seal's to find; this must not panic
			b.Find(id)
		} else if !errors.Is(err, ErrBatch) {
			t.Fatal(err)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	now := time.UnixMilli(1_790_000_000_123)
	id := requestID(now, 5)
	at, ok := Arrived(id)
	if !ok || !at.Equal(now) || !ValidID(id) || !AnsweredBy(id, "eu-fra", "eu-fra-d1") || AnsweredBy(id, "eu-fra", "eu-fra-d2") {
		t.Errorf("%s: %v %v", id, at, ok)
	}
	if tag := NodeTag("eu-fra", "eu-fra-d1"); len(tag) != TagSize || tag == NodeTag("eu-fr", "a/eu-fra-d1") {
		t.Error(tag)
	}
	for _, bad := range []string{"", "req_", id[:29], id + "0", strings.ToLower(id), "rex_" + id[4:], id[:29] + "/", id[:29] + "U"} {
		if ValidID(bad) || AnsweredBy(bad[:min(len(bad), 17)], "eu-fra", "eu-fra-d1") {
			t.Errorf("%q was taken for a request id", bad)
		}
	}
}

func BenchmarkLeaf(b *testing.B) {
	s := &Signer{public: edKey(make(ed25519.PublicKey, 32))}
	f, buf := someFacts(s, time.UnixMilli(1), 1), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendLeaf(buf[:0], f)
	}
}

func BenchmarkSeal1000(b *testing.B) {
	ca, now := newAuthority(b)
	s := newTestSigner(b, ca.node(b, "eu-fra", "eu-fra-d1"))
	var leaves []byte
	var ends []uint32
	var keys []uint64
	for i := range 1000 {
		f := someFacts(s, now, i)
		leaves = AppendLeaf(leaves, f)
		ends = append(ends, uint32(len(leaves)))
		keys = append(keys, RequestKey(f.RequestID))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Seal(s, 1, Hash{}, now, leaves, ends, keys); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInline(b *testing.B) {
	ca, _ := newAuthority(b)
	s := newTestSigner(b, ca.node(b, "eu-fra", "eu-fra-d1"))
	f := someFacts(s, time.Now(), 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Sign(f); err != nil {
			b.Fatal(err)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
