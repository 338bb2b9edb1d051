package proof

import (
	"bytes"
	"crypto/elliptic"
	"crypto/sha256"
	"fmt"
	"math/big"
	"testing"
	"time"

	"go.uber.org/goleak"
	"lukechampine.com/blake3"

	"ringmain/controlplane/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type authority struct{ *identity.CA }

// newAuthority makes roots, and issues certificates as of now, which it
// returns: after the roots were made, to the second.
func newAuthority(t testing.TB) (authority, time.Time) {
	t.Helper()
	ca, err := identity.CreateCA(t.TempDir()+"/ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ca.Now = func() time.Time { return now }
	return authority{ca}, now
}

func (a authority) node(t testing.TB, region, name string) *identity.Issued {
	t.Helper()
	issued, err := a.IssueNode(identity.ID{Region: region, Role: identity.RoleData, Node: name}, nil, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return issued
}

func newTestSigner(t testing.TB, issued *identity.Issued) *Signer {
	t.Helper()
	s, err := NewSigner(issued.Chain, issued.Key, issued.Roots)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const (
	askedBody    = `{"model":"sim-chat","messages":[{"role":"user","content":"hello"}]}`
	answeredBody = `{"choices":[{"message":{"content":"hi"}}]}`
)

// requestID is an id of ours, as of at.
func requestID(at time.Time, n int) string {
	var b [30]byte
	copy(b[:], "req_")
	ms := uint64(at.UnixMilli())
	for i := 13; i >= 4; i-- {
		b[i] = crockford[ms&31]
		ms >>= 5
	}
	copy(b[14:], fmt.Sprintf("%s%012d", NodeTag("eu-fra", "eu-fra-d1"), n))
	return string(b[:])
}

func someFacts(s *Signer, at time.Time, n int) *Facts {
	f := &Facts{
		Leaf: LeafPrefix(s.Key()) + fmt.Sprint(n), RequestID: requestID(at, n), At: at.UnixMilli(),
		Key: "key_01J8ZQ4W2N7V5T3R9K6M1B0C", Org: "org_01J8ZQ4W2N", Project: "prj_01J8ZQ4W2N", Endpoint: "/v1/chat/completions",
		Model: "sim-chat", Served: "sim-chat-large", EntryRegion: "eu-fra", EntryNode: "eu-fra-d1", Region: "eu-ams", Node: "eu-ams-d2",
		Pool: "zero-retention", Retention: "zero", Residency: "eu", Status: 200, Streamed: n%2 == 0, Ended: "complete",
		Attempts: []Attempt{
			{Region: "eu-fra", Node: "eu-fra-d1", Upstream: "openai-eu", Outcome: "timeout"},
			{Region: "eu-ams", Node: "eu-ams-d2", Upstream: "openai-eu", Outcome: "ok"},
		},
		Confinement: Confinement{Landlock: 7, NoFileWrite: true, NoDump: true, NoSwap: true},
		RequestSalt: Salt{1, byte(n)}, ResponseSalt: Salt{2, byte(n)},
	}
	f.Request = sha256.Sum256(append(f.RequestSalt[:], askedBody...))
	f.Response = sha256.Sum256(append(f.ResponseSalt[:], answeredBody...))
	return f
}

// hashed states the bodies of someFacts by another algorithm.
func hashed(f *Facts, by Algorithm) *Facts {
	sum := sha256.Sum256
	if by == BLAKE3 {
		sum = blake3.Sum256
	}
	f.StateRequest(Digest{by, f.RequestSalt, sum(append(f.RequestSalt[:], askedBody...))})
	f.StateResponse(Digest{by, f.ResponseSalt, sum(append(f.ResponseSalt[:], answeredBody...))})
	return f
}

// sealSome signs a batch of n receipts.
func sealSome(t testing.TB, s *Signer, at time.Time, n int) *Batch {
	t.Helper()
	return sealHashed(t, s, at, n, SHA256)
}

func sealHashed(t testing.TB, s *Signer, at time.Time, n int, by Algorithm) *Batch {
	t.Helper()
	var leaves []byte
	var ends []uint32
	var keys []uint64
	for i := range n {
		f := hashed(someFacts(s, at, i), by)
		leaves = AppendLeaf(leaves, f)
		ends = append(ends, uint32(len(leaves)))
		keys = append(keys, RequestKey(f.RequestID))
	}
	b, err := Seal(s, 1, Hash{}, at.Add(700*time.Millisecond), leaves, ends, keys)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func document(t testing.TB, e *Entry) []byte {
	t.Helper()
	if e == nil {
		t.Fatal("no entry")
	}
	b, err := e.Document()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func anchorsPEM(t testing.TB, text []byte) *Anchors {
	t.Helper()
	a, err := AnchorsOfPEM(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func anchorsKeySet(t testing.TB, text []byte) *Anchors {
	t.Helper()
	a, err := AnchorsOfKeySet(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustVerify(t testing.TB, doc []byte, a *Anchors, bodies Bodies) *Verdict {
	t.Helper()
	v := Verify(doc, a, bodies)
	if !v.Verified || v.Reason != "" || v.Facts == nil {
		t.Fatalf("refused: %s\n%s", v.Reason, doc)
	}
	return v
}

func mustRefuse(t testing.TB, doc []byte, a *Anchors, bodies Bodies) string {
	t.Helper()
	v := Verify(doc, a, bodies)
	if v.Verified || v.Reason == "" || v.Facts != nil || v.Checked != nil {
		t.Fatalf("verified, or refused without a reason, or with facts: %+v\n%s", v, doc)
	}
	return v.Reason
}

func flipped(b []byte, at int, mask byte) []byte {
	out := bytes.Clone(b)
	out[at] ^= mask
	return out
}

// twin turns the signature (r, s) into (r, -s), which verifies as well.
func twin(sig []byte) {
	s := new(big.Int).SetBytes(sig[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(sig[32:])
}
