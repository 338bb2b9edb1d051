package proof

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lukechampine.com/blake3"

	"ringmain/controlplane/identity"
)

// fixture is one receipt of a batch of seven, and what verifies it.
type fixture struct {
	signer        *Signer
	issued        *identity.Issued
	batch         *Batch
	doc           []byte
	inline        []byte
	roots, keySet *Anchors
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	return fixtureHashed(t, SHA256)
}

func fixtureHashed(t testing.TB, by Algorithm) *fixture {
	t.Helper()
	ca, at := newAuthority(t)
	f := &fixture{issued: ca.node(t, "eu-fra", "eu-fra-d1")}
	f.signer = newTestSigner(t, f.issued)
	f.batch = sealHashed(t, f.signer, at, 7, by)
	f.doc = document(t, f.batch.Find(requestID(at, 4)))
	jws, err := f.signer.Sign(hashed(someFacts(f.signer, at, 4), by))
	if err != nil {
		t.Fatal(err)
	}
	f.inline = []byte(jws)
	f.roots, f.keySet = anchorsPEM(t, f.issued.Roots), anchorsKeySet(t, f.signer.KeySet())
	return f
}

func TestVerify(t *testing.T) {
	f := newFixture(t)
	for name, a := range map[string]*Anchors{"roots": f.roots, "key set": f.keySet} {
		v := mustVerify(t, f.doc, a, Bodies{Request: []byte(askedBody), Response: []byte(answeredBody)})
		if v.Kind != "receipt" || v.Signer != "spiffe://test/region/eu-fra/data/eu-fra-d1" || v.Key != f.signer.Key() || len(v.Checked) != 6 {
			t.Errorf("%s: %+v", name, v)
		}
		if v := mustVerify(t, bytes.TrimSpace(f.doc), a, Bodies{}); len(v.NotChecked) != 6 {
			t.Errorf("%s: without bodies, not checked: %q", name, v.NotChecked)
		}
	}
	if v := mustVerify(t, f.inline, f.keySet, Bodies{Response: []byte(answeredBody)}); v.Kind != "inline" || v.Facts.RequestID == "" {
		t.Errorf("inline: %+v", v)
	}
	mustVerify(t, append(bytes.Clone(f.inline), "\r\n"...), f.keySet, Bodies{})
	if why := mustRefuse(t, f.inline, f.roots, Bodies{}); !strings.Contains(why, "GET /v1/receipts/req_") {
		t.Errorf("an inline receipt whose key is not at hand: %s", why)
	}
	both := anchorsPEM(t, f.issued.Roots)
	if err := both.Learn(f.signer.KeySet()); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, f.inline, both, Bodies{})
}

func TestBodiesMustMatch(t *testing.T) {
	for _, by := range []Algorithm{SHA256, BLAKE3} {
		f := fixtureHashed(t, by)
		for _, doc := range [][]byte{f.doc, f.inline} {
			mustVerify(t, doc, f.keySet, Bodies{Request: []byte(askedBody), Response: []byte(answeredBody)})
			for i := range askedBody {
				if why := mustRefuse(t, doc, f.keySet, Bodies{Request: flipped([]byte(askedBody), i, 1)}); !strings.Contains(why, "request body") {
					t.Fatal(why)
				}
			}
			if why := mustRefuse(t, doc, f.keySet, Bodies{Response: []byte{}}); !strings.Contains(why, "response body") || !strings.Contains(why, string(by)) {
				t.Error(why)
			}
		}
	}
}

// cutOff is a receipt, whole and inline, of an answer of which the node had
// written n bytes when its client was gone.
func cutOff(t testing.TB, by Algorithm, n int) (f *fixture, docs [][]byte) {
	t.Helper()
	f = fixtureHashed(t, by)
	at := time.Now()
	facts := hashed(someFacts(f.signer, at, 4), by)
	sum := sha256.Sum256
	if by == BLAKE3 {
		sum = blake3.Sum256
	}
	facts.Ended, facts.Written = "client_gone", int64(n)
	facts.StateResponse(Digest{by, facts.ResponseSalt, sum(append(facts.ResponseSalt[:], answeredBody[:n]...))})
	return f, f.sign(t, facts, at)
}

// sign makes a receipt of facts, whole and inline.
func (f *fixture) sign(t testing.TB, facts *Facts, at time.Time) (docs [][]byte) {
	t.Helper()
	jws, err := f.signer.Sign(facts)
	if err != nil {
		t.Fatal(err)
	}
	leaf := AppendLeaf(nil, facts)
	b, err := Seal(f.signer, 1, Hash{}, at, leaf, []uint32{uint32(len(leaf))}, []uint64{RequestKey(facts.RequestID)})
	if err != nil {
		t.Fatal(err)
	}
	return [][]byte{document(t, b.Find(facts.RequestID)), []byte(jws)}
}

// Of an answer that was broken off, what had been written is checked; what came
// beyond is not stated, and what is missing is not guessed.
func TestBodiesThatWereCutOff(t *testing.T) {
	for _, by := range []Algorithm{SHA256, BLAKE3} {
		const n = 17
		f, docs := cutOff(t, by, n)
		for _, doc := range docs {
			for size := n; size <= len(answeredBody); size++ {
				v := mustVerify(t, doc, f.keySet, Bodies{Response: []byte(answeredBody[:size])})
				if size > n && !strings.Contains(strings.Join(v.Checked, "\n"), fmt.Sprintf("the first %d bytes of %d", n, size)) {
					t.Errorf("%q", v.Checked)
				}
				rest := fmt.Sprintf("the last %d bytes of the response body given", size-n)
				if told := strings.Contains(strings.Join(v.NotChecked, "\n"), rest); told != (size > n) {
					t.Errorf("of %d bytes: %q", size, v.NotChecked)
				}
			}
			for size := range n {
				if why := mustRefuse(t, doc, f.keySet, Bodies{Response: []byte(answeredBody[:size])}); !strings.Contains(why, "what did not arrive") {
					t.Error(why)
				}
			}
			for i := range n {
				mustRefuse(t, doc, f.keySet, Bodies{Response: flipped([]byte(answeredBody), i, 1)})
			}
		}
		for i := range docs[0] {
			mustRefuse(t, flipped(docs[0], i, 1<<(i%8)), f.keySet, Bodies{})
		}
	}
	f, docs := cutOff(t, SHA256, 0)
	mustVerify(t, docs[0], f.keySet, Bodies{Response: []byte{}})
	mustRefuse(t, docs[0], f.keySet, Bodies{Response: []byte("{")})
}

// A body that a receipt states nothing of proves nothing.
func TestBodiesThatWereNot(t *testing.T) {
	f := newFixture(t)
	facts := someFacts(f.signer, time.Now(), 4)
	facts.Status, facts.Ended, facts.Request, facts.Response = 499, "client_gone", Hash{}, Hash{}
	jws, err := f.signer.Sign(facts)
	if err != nil {
		t.Fatal(err)
	}
	v := mustVerify(t, []byte(jws), f.keySet, Bodies{})
	if all := strings.Join(v.NotChecked, "\n"); len(v.ByHand) > 0 || !strings.Contains(all, "request body: the node read none") || !strings.Contains(all, "response body: no answer had begun") {
		t.Errorf("%+v", v)
	}
	mustRefuse(t, []byte(jws), f.keySet, Bodies{Response: []byte{}})
	mustRefuse(t, []byte(jws), f.keySet, Bodies{Request: []byte{}})
}

// Where a node stated a body by both algorithms, it must be the one under both:
// else the weaker would decide.
func TestEachDigestCounts(t *testing.T) {
	ca, now := newAuthority(t)
	s := newTestSigner(t, ca.node(t, "eu-fra", "eu-fra-d1"))
	a := anchorsKeySet(t, s.KeySet())
	for _, c := range []struct {
		sha, blake string
		good       bool
	}{{askedBody, askedBody, true}, {askedBody, "another", false}, {"another", askedBody, false}} {
		f := someFacts(s, now, 1)
		f.Request = sha256.Sum256(append(f.RequestSalt[:], c.sha...))
		f.RequestBLAKE3 = blake3.Sum256(append(f.RequestSalt[:], c.blake...))
		jws, err := s.Sign(f)
		if err != nil {
			t.Fatal(err)
		}
		if v := Verify([]byte(jws), a, Bodies{Request: []byte(askedBody)}); v.Verified != c.good {
			t.Errorf("%+v: %s", c, v.Reason)
		}
	}
}

// The commands that the verdict names find what the node stated, without us.
func TestByHand(t *testing.T) {
	dir := t.TempDir()
	for name, body := range map[string]string{"REQUEST": askedBody, "RESPONSE": answeredBody} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for by, tool := range map[Algorithm]string{SHA256: "sha256sum", BLAKE3: "b3sum"} {
		f := fixtureHashed(t, by)
		broken, docs := cutOff(t, by, 17)
		all := mustVerify(t, f.doc, f.keySet, Bodies{}).ByHand
		all = append(all, mustVerify(t, docs[0], broken.keySet, Bodies{}).ByHand...)
		if len(all) != 4 || !strings.Contains(all[3].Command, "head -c 17 RESPONSE") {
			t.Fatalf("%+v", all)
		}
		for _, h := range all {
			if h.Algorithm != by || !strings.HasSuffix(h.Command, "| "+tool) || len(h.Prints) != 64 {
				t.Errorf("%+v", h)
			}
			if _, err := exec.LookPath(tool); err != nil {
				t.Logf("%s is not installed: its command was not run", tool)
				continue
			}
			for _, shell := range []string{"sh", "bash", "dash"} {
				path, err := exec.LookPath(shell)
				if err != nil {
					continue
				}
				cmd := exec.CommandContext(t.Context(), path, "-c", h.Command)
				cmd.Dir = dir
				if out, err := cmd.Output(); err != nil || !strings.HasPrefix(string(out), h.Prints) {
					t.Errorf("%s: %s: %v\n%s\nwant %s", shell, h.Command, err, out, h.Prints)
				}
			}
		}
	}
}

// Every bit of every byte, and every byte left out or doubled. Against the key
// set, which differs from the roots in the end of the chain only, one bit of each.
func TestAnyChangedByteIsRefused(t *testing.T) {
	f, large := newFixture(t), fixtureHashed(t, BLAKE3)
	for name, c := range map[string]struct {
		doc  []byte
		a    *Anchors
		step int
	}{
		"receipt, roots":    {f.doc, f.roots, 1},
		"receipt, key set":  {f.doc, f.keySet, 8},
		"inline":            {f.inline, f.keySet, 1},
		"receipt by BLAKE3": {large.doc, large.roots, 4},
		"inline by BLAKE3":  {large.inline, large.keySet, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i := range c.doc {
				for bit := i % c.step; bit < 8; bit += c.step {
					mustRefuse(t, flipped(c.doc, i, 1<<bit), c.a, Bodies{})
				}
				if c.step > 1 {
					continue
				}
				mustRefuse(t, append(bytes.Clone(c.doc[:i+1]), c.doc[i:]...), c.a, Bodies{})
				if i < len(c.doc)-1 { // without the line break at the end it is as good
					mustRefuse(t, append(bytes.Clone(c.doc[:i]), c.doc[i+1:]...), c.a, Bodies{})
					mustRefuse(t, c.doc[:i], c.a, Bodies{})
				}
			}
		})
	}
}

// rewritten is a document as a node would write it, of a changed entry.
func rewritten(t *testing.T, e *Entry, change func(e *Entry)) []byte {
	t.Helper()
	c := *e
	c.Leaf, c.Path = bytes.Clone(e.Leaf), append([]Hash(nil), e.Path...)
	change(&c)
	f, err := decodeLeaf(c.Leaf)
	if err != nil {
		return nil // no document could carry it
	}
	c.facts = f
	return document(t, &c)
}

// Somebody who writes the file anew around other facts, another place or
// another path gets no further than somebody who flips bits in it.
func TestConsistentChangesAreRefused(t *testing.T) {
	for _, by := range []Algorithm{SHA256, BLAKE3} {
		t.Run(string(by), func(t *testing.T) {
			t.Parallel()
			consistentChanges(t, fixtureHashed(t, by))
		})
	}
}

func consistentChanges(t *testing.T, f *fixture) {
	t.Helper()
	e := f.batch.Find(requestIDOf(t, f.doc))
	if doc := rewritten(t, e, func(*Entry) {}); !bytes.Equal(doc, f.doc) {
		t.Fatal("rewriting changes the document")
	}
	tried := 0
	for i := range e.Leaf {
		for bit := range 8 {
			doc := rewritten(t, e, func(c *Entry) { c.Leaf[i] ^= 1 << bit })
			if doc == nil {
				continue
			}
			tried++
			if why := mustRefuse(t, doc, f.roots, Bodies{}); !strings.Contains(why, "not in the batch") {
				t.Fatalf("bit %d of leaf byte %d: %s", bit, i, why)
			}
		}
	}
	if tried < 1000 {
		t.Errorf("only %d changed leaves were well formed", tried)
	}
	for name, change := range map[string]func(e *Entry){
		"index":                    func(e *Entry) { e.Index++ },
		"index below":              func(e *Entry) { e.Index = -1 },
		"index far":                func(e *Entry) { e.Index = 1 << 40 },
		"path short":               func(e *Entry) { e.Path = e.Path[1:] },
		"path long":                func(e *Entry) { e.Path = append(e.Path, Hash{}) },
		"path none":                func(e *Entry) { e.Path = nil },
		"path turned":              func(e *Entry) { e.Path[0], e.Path[1] = e.Path[1], e.Path[0] },
		"leaf of another answer":   func(e *Entry) { e.Leaf = f.batch.leaf(1) },
		"no delegation":            func(e *Entry) { e.Delegation = "" },
		"no checkpoint":            func(e *Entry) { e.Checkpoint = "" },
		"inline as checkpoint":     func(e *Entry) { e.Checkpoint = string(f.inline) },
		"delegation as checkpoint": func(e *Entry) { e.Checkpoint = e.Delegation },
	} {
		t.Log(name, "-", mustRefuse(t, rewritten(t, e, change), f.roots, Bodies{}))
	}
	mustRefuse(t, []byte(e.Checkpoint), f.keySet, Bodies{}) // a checkpoint is no inline receipt
	mustRefuse(t, []byte(e.Delegation), f.keySet, Bodies{})
}

func requestIDOf(t *testing.T, doc []byte) string {
	t.Helper()
	var v struct {
		Facts struct {
			RequestID string `json:"request_id"`
		} `json:"facts"`
	}
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	return v.Facts.RequestID
}

// What a peer says ends up in the facts. Whatever it is, they can be verified,
// and both kinds of receipt state the same.
func TestTextThatIsNone(t *testing.T) {
	ca, now := newAuthority(t)
	issued := ca.node(t, "eu-fra", "eu-fra-d1")
	s := newTestSigner(t, issued)
	f := someFacts(s, now, 1)
	f.Served = "a\xff\xfeb\u2028<\\ufffd"
	jws, err := s.Sign(f)
	if err != nil {
		t.Fatal(err)
	}
	v := mustVerify(t, []byte(jws), anchorsKeySet(t, s.KeySet()), Bodies{})
	leaf, err := decodeLeaf(AppendLeaf(nil, f))
	if err != nil || leaf.Served != v.Facts.Served || !strings.Contains(leaf.Served, "a\uFFFDb") {
		t.Errorf("%+q in the leaf, %+q inline, %v", leaf.Served, v.Facts.Served, err)
	}
}

// A tool that prints JSON in another layout leaves every value as it was, and
// the verifier says what to do about it.
func TestPrettyPrintedIsRefusedWithAdvice(t *testing.T) {
	f := newFixture(t)
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, f.doc, "", "  "); err != nil {
		t.Fatal(err)
	}
	if why := mustRefuse(t, pretty.Bytes(), f.roots, Bodies{}); !strings.Contains(why, "keep the file as it was fetched") {
		t.Error(why)
	}
}

func TestWhoMaySign(t *testing.T) {
	other, _ := newAuthority(t) // same cluster name, another root
	ca, now := newAuthority(t)
	good := newTestSigner(t, ca.node(t, "eu-fra", "eu-fra-d1"))
	roots := anchorsPEM(t, ca.Roots())
	receiptOf := func(s *Signer) []byte { return document(t, sealSome(t, s, now, 3).Find(requestID(now, 1))) }
	mustVerify(t, receiptOf(good), roots, Bodies{})

	if why := mustRefuse(t, receiptOf(newTestSigner(t, other.node(t, "eu-fra", "eu-fra-d1"))), roots, Bodies{}); !strings.Contains(why, "certificate") {
		t.Error("another cluster's root:", why)
	}
	if why := mustRefuse(t, receiptOf(newTestSigner(t, ca.node(t, "eu-fra", "eu-fra-d2"))), roots, Bodies{}); !strings.Contains(why, "the facts are of node") {
		t.Error("another node for this one:", why)
	}
	control, err := ca.IssueNode(identity.ID{Region: "eu-fra", Role: identity.RoleControl, Node: "eu-fra-d1"}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, receiptOf(newTestSigner(t, control)), roots, Bodies{})

	// A key that no certificate vouched for, with the delegation of one that was.
	rogue := newTestSigner(t, other.node(t, "eu-fra", "eu-fra-d1"))
	rogue.state.Store(good.state.Load())
	if why := mustRefuse(t, receiptOf(rogue), roots, Bodies{}); !strings.Contains(why, "another key") {
		t.Error("a key of its own making:", why)
	}
	rogue.public = good.public // and under the good one's name
	if why := mustRefuse(t, receiptOf(rogue), roots, Bodies{}); !strings.Contains(why, "signature") {
		t.Error("under another's name:", why)
	}
}

// A delegation under a chain with a certificate that verifies nothing.
func TestEveryCertificateCounts(t *testing.T) {
	ca, now := newAuthority(t)
	a, b := ca.node(t, "eu-fra", "eu-fra-d1"), ca.node(t, "us-east", "us-east-d1")
	issuers := anchorsOfIssuers(t, newTestSigner(t, a), newTestSigner(t, b))
	chainA, err := identity.ParseCerts(a.Chain)
	if err != nil {
		t.Fatal(err)
	}
	chainB, err := identity.ParseCerts(b.Chain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.VerifyStatement(chainA, issuers, now); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.VerifyStatement([]*x509.Certificate{chainA[0], chainB[1]}, issuers, now); err == nil {
		t.Error("another region's issuer rode along")
	}
	if _, err := identity.VerifyStatement(chainA[:1], issuers, now); err == nil {
		t.Error("a chain without its issuer")
	}
	if _, err := identity.VerifyStatement(append(chainA, chainB[1]), issuers, now); err == nil {
		t.Error("a chain with a third certificate")
	}
}

func anchorsOfIssuers(t *testing.T, signers ...*Signer) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for _, s := range signers {
		out = append(out, s.state.Load().issuer)
	}
	return out
}

// Certificates count as of when the receipt was signed.
func TestTime(t *testing.T) {
	ca, now := newAuthority(t)
	issued := ca.node(t, "eu-fra", "eu-fra-d1") // for 24 h
	s := newTestSigner(t, issued)
	roots := anchorsPEM(t, ca.Roots())
	receiptAt := func(at time.Time) []byte { return document(t, sealSome(t, s, at, 2).Find(requestID(at, 0))) }
	mustVerify(t, receiptAt(now.Add(23*time.Hour)), roots, Bodies{})
	if why := mustRefuse(t, receiptAt(now.Add(25*time.Hour)), roots, Bodies{}); !strings.Contains(why, "as of") {
		t.Error(why)
	}
	mustRefuse(t, receiptAt(now.Add(-time.Hour)), roots, Bodies{})

	// After a renewal the key signs on, and both delegations are shown.
	ca.Now = func() time.Time { return now.Add(20 * time.Hour) }
	next := ca.node(t, "eu-fra", "eu-fra-d1")
	if err := s.Renew(next.Chain, next.Key, next.Roots); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, receiptAt(now.Add(30*time.Hour)), roots, Bodies{})
	keySet := anchorsKeySet(t, s.KeySet())
	for _, at := range []time.Duration{time.Hour, 23 * time.Hour, 30 * time.Hour} {
		jws, err := s.Sign(someFacts(s, now.Add(at), 0))
		if err != nil {
			t.Fatal(err)
		}
		mustVerify(t, []byte(jws), keySet, Bodies{})
	}
	jws, err := s.Sign(someFacts(s, now.Add(50*time.Hour), 0))
	if err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, []byte(jws), keySet, Bodies{})
	if err := s.Renew(ca.node(t, "eu-fra", "eu-fra-d2").Chain, next.Key, next.Roots); err == nil {
		t.Error("a certificate over another key was taken")
	}
	stranger := ca.node(t, "eu-fra", "eu-fra-d2")
	if err := s.Renew(stranger.Chain, stranger.Key, stranger.Roots); err == nil {
		t.Error("another node's certificate was taken")
	}
}

// A worker's key set goes on to name the keys of the workers before it.
func TestFormerKeys(t *testing.T) {
	ca, now := newAuthority(t)
	issued := ca.node(t, "eu-fra", "eu-fra-d1")
	first, second := newTestSigner(t, issued), newTestSigner(t, issued)
	jws, err := first.Sign(someFacts(first, now, 1))
	if err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, []byte(jws), anchorsKeySet(t, second.KeySet()), Bodies{})

	other := newTestSigner(t, ca.node(t, "eu-fra", "eu-fra-d2")) // its keys are in its own set
	list, err := EncodeDelegations([]string{first.delegation(), "garbage", other.delegation(), second.delegation(), first.delegation(), ""})
	if err != nil {
		t.Fatal(err)
	}
	delegations, err := DecodeDelegations(list)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Former(delegations); err != nil {
		t.Fatal(err)
	}
	set := second.KeySet()
	mustVerify(t, []byte(jws), anchorsKeySet(t, set), Bodies{})
	if bytes.Contains(set, []byte(other.Key())) || bytes.Count(set, []byte(first.delegation())) != 1 || bytes.Count(set, []byte(second.delegation())) != 1 {
		t.Errorf("%s", set)
	}
	if err := second.Renew(issued.Chain, issued.Key, issued.Roots); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, []byte(jws), anchorsKeySet(t, second.KeySet()), Bodies{})

	// Bounded, the newest certificates' keys first, whatever the order given.
	var many []string
	for i := range maxFormer + 5 {
		ca.Now = func() time.Time { return now.Add(time.Duration(i) * time.Minute) }
		many = append(many, newTestSigner(t, ca.node(t, "eu-fra", "eu-fra-d1")).delegation())
	}
	if err := second.Former(many); err != nil {
		t.Fatal(err)
	}
	sorted := second.KeySet()
	slices.Reverse(many)
	if err := second.Former(many); err != nil || !bytes.Equal(second.KeySet(), sorted) {
		t.Errorf("the order given shows: %v", err)
	}
	if n := bytes.Count(sorted, []byte(`"idc_role":"node"`)); n != 1+maxFormer {
		t.Errorf("%d keys", n)
	}
	if bytes.Contains(sorted, []byte(many[len(many)-1])) || !bytes.Contains(sorted, []byte(many[0])) {
		t.Error("the oldest stayed, or the newest went")
	}
	if _, err := DecodeDelegations([]byte("x")); err == nil {
		t.Error("no list was taken for one")
	}
}

func TestKeySet(t *testing.T) {
	f := newFixture(t)
	set := f.signer.KeySet()
	if !bytes.Equal(set, f.signer.KeySet()) {
		t.Error("the key set changes by itself")
	}
	var doc struct{ Keys []map[string]any }
	if err := json.Unmarshal(set, &doc); err != nil || len(doc.Keys) != 3 {
		t.Fatalf("%v: %s", err, set)
	}
	for i, role := range []string{"root", "issuer", "node"} {
		if doc.Keys[i]["idc_role"] != role || doc.Keys[i]["kid"] == "" || doc.Keys[i]["d"] != nil {
			t.Errorf("key %d: %v", i, doc.Keys[i])
		}
	}
	for name, bad := range map[string]string{
		"no JSON":           "{",
		"nobody to trust":   `{"keys":[]}`,
		"only a node":       `{"keys":[` + string(must(json.Marshal(doc.Keys[2]))) + `]}`,
		"another point":     strings.Replace(string(set), `"x":"`+doc.Keys[0]["x"].(string), `"x":"`+doc.Keys[1]["x"].(string), 1),
		"no certificate":    strings.Replace(string(set), "x5c", "x5x", 1),
		"not a certificate": strings.Replace(string(set), `"x5c":["MII`, `"x5c":["NII`, 1),
	} {
		if bad == string(set) {
			t.Fatalf("%s: the text was not changed", name)
		}
		if _, err := AnchorsOfKeySet([]byte(bad)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	// A node's certificate posing as an issuer in a key set.
	leaf := f.issued.Chain
	certs, err := identity.ParseCerts(leaf)
	if err != nil {
		t.Fatal(err)
	}
	k, err := certKey(certs[0], "issuer")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AnchorsOfKeySet(must(json.Marshal(jwks{Keys: []jwk{k}}))); err == nil {
		t.Error("a leaf was taken for an authority")
	}
	if _, err := AnchorsOfPEM([]byte("no PEM")); err == nil {
		t.Error("no PEM was taken for anchors")
	}
}

var update = flag.Bool("update", false, "write what testdata does not have; what it has is what customers keep")

func testdata(name string) string { return filepath.Join("testdata", name) }

// Receipts that somebody keeps must verify with every later version: those of
// before there was BLAKE3, and those with it.
func TestKeptReceiptsVerify(t *testing.T) {
	for dir, by := range keptSets {
		if _, err := os.Stat(testdata(dir)); *update && errors.Is(err, fs.ErrNotExist) {
			writeKept(t, dir, fixtureHashed(t, by))
		}
		k := kept(t, dir)
		bodies := Bodies{Request: []byte(askedBody), Response: []byte(answeredBody)}
		mustVerify(t, k.doc, k.roots, bodies)
		mustVerify(t, k.inline, k.keySet, bodies)
		v := mustVerify(t, k.doc, k.keySet, bodies)
		if (v.Facts.Request == Hash{}) != (by == BLAKE3) || (v.Facts.RequestBLAKE3 == Hash{}) != (by == SHA256) {
			t.Errorf("%s is not by %s", dir, by)
		}
	}
}

// So must one of an answer that was broken off.
func TestKeptReceiptOfAPartVerifies(t *testing.T) {
	if _, err := os.Stat(testdata("part")); *update && errors.Is(err, fs.ErrNotExist) {
		f, docs := cutOff(t, SHA256, 17)
		f.doc, f.inline = docs[0], docs[1]
		writeKept(t, "part", f)
	}
	k := kept(t, "part")
	v := mustVerify(t, k.doc, k.roots, Bodies{Request: []byte(askedBody), Response: []byte(answeredBody)})
	if v.Facts.Written != 17 {
		t.Errorf("%+v", v.Facts)
	}
	mustRefuse(t, k.doc, k.roots, Bodies{Response: []byte(answeredBody[:16])})
}

// And one of a request that another node executed, which said what confined it.
func TestKeptReceiptOfAForwardVerifies(t *testing.T) {
	if _, err := os.Stat(testdata("forwarded")); *update && errors.Is(err, fs.ErrNotExist) {
		f := newFixture(t)
		docs := f.sign(t, forwardedFacts(f.signer, time.Now()), time.Now())
		f.doc, f.inline = docs[0], docs[1]
		writeKept(t, "forwarded", f)
	}
	k := kept(t, "forwarded")
	v := mustVerify(t, k.doc, k.roots, Bodies{Request: []byte(askedBody), Response: []byte(answeredBody)})
	if c := v.Facts.Attempts[1].Confinement; c == nil || *c != (Confinement{Landlock: 7, NoFileWrite: true, NoDump: true}) || len(v.Warnings) != 1 {
		t.Errorf("%+v", v)
	}
	mustVerify(t, k.inline, k.keySet, Bodies{})
}

// keptSets are the directories of testdata with receipts, and what hashed their bodies.
var keptSets = map[string]Algorithm{".": SHA256, "blake3": BLAKE3}

func writeKept(t *testing.T, dir string, f *fixture) {
	t.Helper()
	if err := os.Mkdir(testdata(dir), 0o750); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"receipt.json": f.doc, "inline.jws": f.inline, "roots.pem": f.issued.Roots, "jwks.json": f.signer.KeySet(),
	} {
		if err := os.WriteFile(filepath.Join(testdata(dir), name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// kept reads one set; of its fixture, what signs is not there any more.
func kept(t testing.TB, dir string) *fixture {
	t.Helper()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(testdata(dir), name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	return &fixture{
		doc: read("receipt.json"), inline: read("inline.jws"),
		roots: anchorsPEM(t, read("roots.pem")), keySet: anchorsKeySet(t, read("jwks.json")),
	}
}

func FuzzVerify(f *testing.F) {
	var sets []*fixture
	for dir := range keptSets {
		k := kept(f, dir)
		sets = append(sets, k)
		f.Add(k.doc)
		f.Add(k.inline)
		var parts file
		if err := json.Unmarshal(k.doc, &parts); err != nil {
			f.Fatal(err)
		}
		for _, s := range []string{parts.Checkpoint, parts.Key, "{}", "..", `{"format":"ringmain-receipt/1"}`} {
			f.Add([]byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		trimmed := bytes.TrimRight(b, "\r\n")
		for _, k := range sets {
			for _, a := range []*Anchors{k.roots, k.keySet} {
				if !Verify(b, a, Bodies{}).Verified {
					continue
				}
				if !bytes.Equal(trimmed, bytes.TrimRight(k.doc, "\n")) && !bytes.Equal(trimmed, k.inline) {
					t.Fatalf("verified, and nobody signed it: %q", b)
				}
			}
		}
	})
}

// FuzzBodies: no bodies fit a receipt but those that were hashed.
func FuzzBodies(f *testing.F) {
	var sets []*fixture
	for dir := range keptSets {
		sets = append(sets, kept(f, dir))
	}
	f.Add([]byte(askedBody), []byte(answeredBody))
	f.Add([]byte(answeredBody), []byte(askedBody))
	f.Add(append([]byte(askedBody), 0), []byte{})
	f.Fuzz(func(t *testing.T, request, response []byte) {
		right := string(request) == askedBody && string(response) == answeredBody
		bodies := Bodies{append([]byte{}, request...), append([]byte{}, response...)} // given, if empty
		for _, k := range sets {
			for _, doc := range [][]byte{k.doc, k.inline} {
				if v := Verify(doc, k.keySet, bodies); v.Verified != right {
					t.Fatalf("%q and %q: verified %t", request, response, v.Verified)
				}
			}
		}
	})
}

func FuzzKeySet(f *testing.F) {
	b, err := os.ReadFile(testdata("jwks.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := AnchorsOfKeySet(b); err == nil && len(a.trusted) == 0 {
			t.Fatal("anchors without anybody to trust")
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	f := newFixture(b)
	for b.Loop() {
		if v := Verify(f.doc, f.roots, Bodies{}); !v.Verified {
			b.Fatal(v.Reason)
		}
	}
	b.ReportMetric(float64(len(f.doc)), "B")
}
