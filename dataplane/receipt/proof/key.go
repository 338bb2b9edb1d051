package proof

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/controlplane/strict"
)

// skew is how far a node's clock may step back.
const skew = 5 * time.Minute

// jwk is a public key (RFC 7517, 8037). Members that begin with idc_ are ours.
type jwk struct {
	Kty  string   `json:"kty"`
	Crv  string   `json:"crv"`
	X    string   `json:"x"`
	Y    string   `json:"y,omitempty"`
	Kid  string   `json:"kid"` // RFC 7638 thumbprint
	Use  string   `json:"use,omitempty"`
	Alg  string   `json:"alg,omitempty"`
	X5c  []string `json:"x5c,omitempty"`
	Role string   `json:"idc_role,omitempty"` // root, issuer or node
	Name string   `json:"idc_name,omitempty"` // SPIFFE name of whose key it is
	// Delegations are by whose certificate a node's key signs, newest last.
	Delegations []string `json:"idc_delegations,omitempty"`
}

func edKey(key ed25519.PublicKey) jwk {
	k := jwk{Kty: "OKP", Crv: "Ed25519", X: encode64(key)}
	// RFC 7638: the required members in the order of their names.
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + k.X + `"}`))
	k.Kid = encode64(sum[:])
	return k
}

func certKey(c *x509.Certificate, role string) (jwk, error) {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return jwk{}, fmt.Errorf("receipt: the key of %s is a %T, want ECDSA", c.Subject, c.PublicKey)
	}
	point, err := key.Bytes() // 4 | x | y
	if err != nil {
		return jwk{}, fmt.Errorf("receipt: the key of %s: %w", c.Subject, err)
	}
	half := len(point) / 2
	k := jwk{Kty: "EC", Crv: key.Curve.Params().Name, X: encode64(point[1 : 1+half]), Y: encode64(point[1+half:]), Role: role}
	k.X5c = []string{base64.StdEncoding.EncodeToString(c.Raw)}
	sum := sha256.Sum256([]byte(`{"crv":"` + k.Crv + `","kty":"EC","x":"` + k.X + `","y":"` + k.Y + `"}`))
	k.Kid = encode64(sum[:])
	if len(c.URIs) == 1 {
		k.Name = c.URIs[0].String()
	}
	return k, nil
}

// delegation is the payload by which a node's certificate lets a key sign
// receipts: the node, the key, and between which Unix seconds.
type delegation struct {
	Subject   string `json:"sub"` // spiffe://<cluster>/region/<region>/data/<node>
	Key       jwk    `json:"jwk"`
	NotBefore int64  `json:"nbf"`
	NotAfter  int64  `json:"exp"`
}

// What the key set shows at most: of this key, with certificates of a day that
// are renewed at half of it, the delegations of the last four days; and keys of
// this node's former processes.
const (
	maxDelegations = 8
	maxFormer      = 32
)

// Signer holds the key that signs receipts. The key is made here, lives in
// this process only, and is the same for the process's life; each certificate
// the node has meanwhile delegates to it. It is safe for concurrent use.
type Signer struct {
	private ed25519.PrivateKey
	public  jwk
	mu      sync.Mutex                  // one change of the state at a time
	state   atomic.Pointer[signerState] // replaced whole
}

type signerState struct {
	id          identity.ID
	delegations []string // newest last
	former      []jwk    // of this node's processes before, newest first
	roots       []*x509.Certificate
	issuer      *x509.Certificate
	keySet      []byte
}

// NewSigner makes a key and lets the node's certificate, in PEM, delegate to
// it. A certificate that is out of date will do; one that cannot sign will not.
func NewSigner(cert, key, roots []byte) (*Signer, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("receipt: make the signing key: %w", err)
	}
	s := &Signer{private: private, public: edKey(public)}
	return s, s.Renew(cert, key, roots)
}

// Renew lets another certificate of the node delegate to the key as well. On
// any error what was there stays.
func (s *Signer) Renew(cert, key, roots []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	by, err := identity.NewSigner(cert, key, roots)
	if err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	next := &signerState{id: by.ID, roots: by.Roots, issuer: by.Chain[1]}
	if old := s.state.Load(); old != nil {
		if old.id != by.ID {
			return fmt.Errorf("receipt: the new certificate is for %s, this node is %s: issue one for it", by.ID, old.id)
		}
		next.delegations = append(next.delegations, old.delegations...)
		next.former = old.former
	}
	payload, err := marshal(delegation{
		Subject: by.ID.String(), Key: s.public,
		NotBefore: by.Chain[0].NotBefore.Unix(), NotAfter: by.Chain[0].NotAfter.Unix(),
	})
	if err != nil {
		return err
	}
	h := header{Typ: typKey}
	for _, c := range by.Chain {
		h.X5c = append(h.X5c, base64.StdEncoding.EncodeToString(c.Raw))
	}
	text, err := sign(by.Key, h, payload)
	if err != nil {
		return err
	}
	next.delegations = append(next.delegations, text)
	next.delegations = next.delegations[max(0, len(next.delegations)-maxDelegations):]
	if next.keySet, err = keySet(s.public, next); err != nil {
		return err
	}
	s.state.Store(next)
	return nil
}

// Former adds to the key set what this node's processes before signed with, so
// that their inline receipts can be verified: delegations in any order, as
// batches carry them. What is not this node's, or no delegation, is left out.
func (s *Signer) Former(delegations []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.state.Load()
	next.former = nil
	since := make(map[string]int64)
	for _, text := range delegations {
		d, _, err := parseDelegation(text)
		if err != nil || d.Subject != next.id.String() || d.Key.Kid == s.public.Kid {
			continue
		}
		key, err := d.key()
		if err != nil {
			continue
		}
		i := slices.IndexFunc(next.former, func(k jwk) bool { return k.Kid == d.Key.Kid })
		if i < 0 {
			i, next.former = len(next.former), append(next.former, edKey(key))
		}
		k := &next.former[i]
		if !slices.Contains(k.Delegations, text) && len(k.Delegations) < maxDelegations {
			k.Delegations = append(k.Delegations, text)
			since[k.Kid] = max(since[k.Kid], d.NotAfter)
		}
	}
	slices.SortFunc(next.former, func(a, b jwk) int {
		return cmp.Or(cmp.Compare(since[b.Kid], since[a.Kid]), cmp.Compare(a.Kid, b.Kid))
	})
	next.former = next.former[:min(len(next.former), maxFormer)]
	var err error
	if next.keySet, err = keySet(s.public, &next); err != nil {
		return err
	}
	s.state.Store(&next)
	return nil
}

// AskFormer is what a worker asks its keeper for, in place of a request id, to
// be answered with EncodeDelegations.
const AskFormer = "keys"

// EncodeDelegations lists delegations for DecodeDelegations.
func EncodeDelegations(delegations []string) ([]byte, error) {
	b, err := strict.Marshal(delegations)
	if err != nil {
		return nil, fmt.Errorf("receipt: encode delegations: %w", err)
	}
	return b, nil
}

// DecodeDelegations reads what EncodeDelegations wrote.
func DecodeDelegations(b []byte) ([]string, error) {
	var delegations []string
	if err := strict.Unmarshal(b, &delegations); err != nil {
		return nil, fmt.Errorf("receipt: decode delegations: %w", err)
	}
	return delegations, nil
}

// Key is the thumbprint of the signing key.
func (s *Signer) Key() string { return s.public.Kid }

// ID is the node that the key signs for.
func (s *Signer) ID() identity.ID { return s.state.Load().id }

// KeySet is the document of /.well-known/jwks.json: the cluster's roots, this
// region's issuer, the signing key with its delegations, the keys of former
// processes, in this order.
func (s *Signer) KeySet() []byte { return s.state.Load().keySet }

// Sign makes a compact JWS of the facts alone, as their leaf states them.
func (s *Signer) Sign(f *Facts) (string, error) {
	stated, err := decodeLeaf(AppendLeaf(nil, f))
	if err != nil {
		return "", err
	}
	payload, err := marshal(stated)
	if err != nil {
		return "", err
	}
	return sign(s.private, header{Typ: typReceipt, Kid: s.public.Kid}, payload)
}

// LeafPrefix begins the ids of the leaves that a key signs.
func LeafPrefix(key string) string { return "leaf_" + key[:min(8, len(key))] + "." }

// delegation is the newest.
func (s *Signer) delegation() string {
	d := s.state.Load().delegations
	return d[len(d)-1]
}

type jwks struct {
	Keys []jwk `json:"keys"`
}

// keySet is the document of /.well-known/jwks.json: roots in the order of
// their file, this region's issuer, this node's key, its former keys.
func keySet(node jwk, st *signerState) ([]byte, error) {
	var set jwks
	for _, c := range st.roots {
		k, err := certKey(c, "root")
		if err != nil {
			return nil, err
		}
		set.Keys = append(set.Keys, k)
	}
	issuer, err := certKey(st.issuer, "issuer")
	if err != nil {
		return nil, err
	}
	node.Delegations = st.delegations
	set.Keys = append(set.Keys, issuer)
	for _, k := range append([]jwk{node}, st.former...) {
		k.Use, k.Alg, k.Role, k.Name = "sig", "EdDSA", "node", st.id.String()
		set.Keys = append(set.Keys, k)
	}
	b, err := marshal(set)
	return append(b, '\n'), err
}

// parseDelegation reads a delegation, and verifies that the certificate it
// carries signed it. Whether that certificate is to be trusted is for
// identity.VerifyStatement to say.
func parseDelegation(text string) (*delegation, []*x509.Certificate, error) {
	s, err := parseJWS(text, typKey)
	if err != nil {
		return nil, nil, err
	}
	var chain []*x509.Certificate
	for _, c := range s.header.X5c {
		der, err := base64.StdEncoding.Strict().DecodeString(c)
		if err != nil {
			return nil, nil, fmt.Errorf("x5c: %w", err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("x5c: %w", err)
		}
		chain = append(chain, cert)
	}
	if len(chain) != 2 || s.header.Kid != "" {
		return nil, nil, errors.New("x5c: want the node's certificate and its issuer's")
	}
	if err := s.verify(chain[0].PublicKey); err != nil {
		return nil, nil, err
	}
	d := new(delegation)
	if err := unmarshal(s.payload, d); err != nil {
		return nil, nil, fmt.Errorf("payload: %w", err)
	}
	return d, chain, nil
}

// key is the Ed25519 key that d lets sign.
func (d *delegation) key() (ed25519.PublicKey, error) {
	b, err := decode64(d.Key.X)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, errors.New("the key is not an Ed25519 key")
	}
	if want := edKey(b); d.Key.Kid != want.Kid || d.Key.Kty != want.Kty || d.Key.Crv != want.Crv {
		return nil, errors.New("the key is not an Ed25519 key under its thumbprint")
	}
	return b, nil
}
