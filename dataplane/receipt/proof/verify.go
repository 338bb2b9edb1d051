package proof

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"ringmain/controlplane/identity"
)

// Bodies are what the caller of Verify has of the exchange; nil = not at hand.
type Bodies struct {
	Request  []byte // as it was sent
	Response []byte // as it was received, event streams included
}

// Verdict is what a verifier found. Of a refused receipt it shows nothing but
// why: what it says may be made up.
type Verdict struct {
	Verified   bool     `json:"verified"`
	Reason     string   `json:"reason,omitempty"`   // why it is refused
	Kind       string   `json:"kind,omitempty"`     // receipt, or inline for a signed header value
	Signer     string   `json:"signer,omitempty"`   // SPIFFE name of the node
	Key        string   `json:"key,omitempty"`      // thumbprint
	At         string   `json:"at,omitempty"`       // when it was signed, by the node's clock; of an inline one, when the request arrived
	Warnings   []string `json:"warnings,omitempty"` // what the facts state, and should not be: it is genuine all the same
	Checked    []string `json:"checked,omitempty"`
	NotChecked []string `json:"not_checked,omitempty"`
	ByHand     []ByHand `json:"by_hand,omitempty"` // how the bodies are checked without this program
	Facts      *Facts   `json:"facts,omitempty"`
}

// ByHand is a command that prints a body's salted hash: the receipt is for that
// body if it prints what the node stated.
type ByHand struct {
	Body      string    `json:"body"` // request or response; in upper case, the name of its file in the command
	Algorithm Algorithm `json:"algorithm"`
	Command   string    `json:"command"`
	Prints    string    `json:"prints"`
}

// Verify checks a receipt file, or an inline receipt's JWS, against anchors,
// without any other source. It takes no text but the one that a node wrote:
// a receipt in which any byte was changed, spaces and field names included, is
// refused.
//
// Certificates are verified as of when the receipt was signed, by the node's
// own statement: they live for a day, receipts are kept for years.
func Verify(document []byte, anchors *Anchors, bodies Bodies) *Verdict {
	v := new(Verdict)
	var err error
	if bytes.HasPrefix(document, []byte{'{'}) {
		err = v.file(document, anchors)
	} else {
		err = v.inline(document, anchors)
	}
	if err == nil {
		err = v.bodies(bodies)
	}
	if err != nil {
		return &Verdict{Reason: err.Error()}
	}
	v.Verified = true
	v.confined()
	v.NotChecked = append(v.NotChecked,
		"what software ran: there is no attestation, so this proves who signed, not what ran",
		"the time: it is the signing node's own clock",
		"that every answer has a receipt, or that checkpoints are seen by anybody else: no region cosigns them yet",
	)
	return v
}

func (v *Verdict) checked(format string, args ...any) {
	v.Checked = append(v.Checked, fmt.Sprintf(format, args...))
}

// file verifies leaf -> tree -> checkpoint -> key -> certificates -> anchor.
func (v *Verdict) file(document []byte, anchors *Anchors) error {
	v.Kind = "receipt"
	doc, facts, err := parseFile(document)
	if err != nil {
		return fmt.Errorf("this is not a receipt as a node writes it; keep the file as it was fetched, and use a verifier as new as the node: %w", err)
	}
	jws, err := parseJWS(doc.Checkpoint, typCheckpoint)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	var point checkpoint
	if err := unmarshal(jws.payload, &point); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	leaf, err := decode64(doc.Leaf)
	if err != nil {
		return fmt.Errorf("leaf: %w", err)
	}
	path := make([]node, len(doc.Path))
	for i, h := range doc.Path {
		path[i] = node(h)
	}
	if root, ok := rootFrom(leafHash(leaf), doc.Index, point.Size, path); !ok || Hash(root) != point.Root {
		return errors.New("the leaf is not in the batch that the checkpoint signs: the receipt was changed")
	}
	if point.Number == 0 || (point.Number == 1) != (point.Previous == Hash{}) {
		return errors.New("checkpoint: it is chained to none, or to one too many")
	}
	at := time.UnixMilli(point.At)
	id, err := v.signer(jws, doc.Key, anchors, at)
	if err != nil {
		return err
	}
	if point.Node != id.String() {
		return fmt.Errorf("checkpoint: it is by %.200q, and signed by %s", point.Node, id)
	}
	if time.UnixMilli(facts.At).After(at.Add(skew)) {
		return errors.New("the checkpoint was signed before the request arrived")
	}
	if err := v.stated(facts, id); err != nil {
		return err
	}
	v.Checked = append([]string{
		"the text is the one a node writes, byte for byte",
		fmt.Sprintf("the facts are leaf %d of %d under checkpoint %d (RFC 6962 inclusion proof)", doc.Index+1, point.Size, point.Number),
	}, v.Checked...)
	return nil
}

// inline verifies facts -> key -> certificates -> anchor.
func (v *Verdict) inline(document []byte, anchors *Anchors) error {
	v.Kind = "inline"
	text := strings.TrimSuffix(strings.TrimSuffix(string(document), "\n"), "\r")
	jws, err := parseJWS(text, typReceipt)
	if err != nil {
		return fmt.Errorf("this is neither a receipt file nor the JWS of an idc-receipt header: %w", err)
	}
	facts := new(Facts)
	if err := unmarshal(jws.payload, facts); err != nil {
		return fmt.Errorf("facts, which a verifier as new as the node might know: %w", err)
	}
	known := anchors.keys[jws.header.Kid]
	if len(known) == 0 {
		return fmt.Errorf("the key set does not have key %.60q, which signed: give the key set of the node that answered, or fetch the whole receipt, which carries its certificates: GET /v1/receipts/%.64s", jws.header.Kid, facts.RequestID)
	}
	// Each renewal of the node's certificate vouched for the key again.
	id := identity.ID{}
	for _, delegation := range known {
		v.Checked = nil
		if id, err = v.signer(jws, delegation, anchors, time.UnixMilli(facts.At)); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	if err := v.stated(facts, id); err != nil {
		return err
	}
	v.Checked = append([]string{"the facts are signed as they stand, byte for byte, in no batch"}, v.Checked...)
	v.NotChecked = append(v.NotChecked, "whether all of the answer was sent: this was signed right before; GET /v1/receipts/"+facts.RequestID+" says")
	return nil
}

// signer verifies that jws was signed by a key which, at that time, a node's
// certificate under the anchors vouched for.
func (v *Verdict) signer(jws *signed, delegationText string, anchors *Anchors, at time.Time) (identity.ID, error) {
	d, chain, err := parseDelegation(delegationText)
	if err != nil {
		return identity.ID{}, fmt.Errorf("the delegation of the signing key: %w", err)
	}
	key, err := d.key()
	if err != nil {
		return identity.ID{}, fmt.Errorf("the delegation of the signing key: %w", err)
	}
	if jws.header.Kid != d.Key.Kid || len(jws.header.X5c) != 0 {
		return identity.ID{}, errors.New("it was signed by another key than the one delegated to")
	}
	if err := jws.verify(key); err != nil {
		return identity.ID{}, err
	}
	id, err := identity.VerifyStatement(chain, anchors.trusted, at)
	if err != nil {
		return identity.ID{}, fmt.Errorf("the node's certificate, as of %s: %w", stamp(at), err)
	}
	if id.Role != identity.RoleData || id.String() != d.Subject {
		return identity.ID{}, fmt.Errorf("the delegation is for %.200q, its certificate is that of %s", d.Subject, id)
	}
	if s := at.Unix(); s < d.NotBefore-int64(skew/time.Second) || s > d.NotAfter {
		return identity.ID{}, fmt.Errorf("the key was not delegated to as of %s", stamp(at))
	}
	v.Signer, v.Key, v.At = id.String(), d.Key.Kid, stamp(at)
	v.checked("signed by key %s, for node %s of region %s, as of %s", d.Key.Kid, id.Node, id.Region, stamp(at))
	v.checked("at that time (not now: certificates live for a day) the node's certificate vouched for the key, the issuer of region %s for the certificate, and the anchor given for the issuer", id.Region)
	return id, nil
}

// stated checks what a node may say of itself.
func (v *Verdict) stated(f *Facts, id identity.ID) error {
	if f.EntryRegion != id.Region || f.EntryNode != id.Node {
		return fmt.Errorf("the facts are of node %.64q of %.64q, and signed by %s", f.EntryNode, f.EntryRegion, id)
	}
	if !strings.HasPrefix(f.Leaf, LeafPrefix(v.Key)) {
		return errors.New("the leaf's id is not one that the signing key's log gives out")
	}
	v.Facts = f
	return nil
}

func (v *Verdict) bodies(have Bodies) error {
	f := v.Facts
	for _, b := range []struct {
		name   string
		none   string // why nothing is stated of it
		body   []byte
		stated []Digest
		size   int64 // of what is stated; 0 = all
	}{
		{"request", "the node read none", have.Request, digests(f.RequestSalt, f.Request, f.RequestBLAKE3), 0},
		{"response", "no answer had begun", have.Response, digests(f.ResponseSalt, f.Response, f.ResponseBLAKE3), f.Written},
	} {
		switch {
		case len(b.stated) == 0 && b.body != nil:
			return fmt.Errorf("%s, so the receipt states no %s body: the one given proves nothing", b.none, b.name)
		case len(b.stated) == 0:
			v.NotChecked = append(v.NotChecked, "the "+b.name+" body: "+b.none+", so none is stated")
		case b.body == nil:
			v.NotChecked = append(v.NotChecked, "the "+b.name+" body: no file was given")
		}
		for _, d := range b.stated {
			v.ByHand = append(v.ByHand, ByHand{
				Body: b.name, Algorithm: d.Algorithm, Command: d.byHand(strings.ToUpper(b.name), b.size), Prints: fmt.Sprintf("%x", d.Hash),
			})
			if b.body == nil {
				continue
			}
			part, err := upTo(b.body, b.size)
			if err != nil {
				return fmt.Errorf("the %s body given %w", b.name, err)
			}
			if !d.fits(part) {
				return fmt.Errorf("the %s body given is not the one the receipt is for: its salted %s is another", b.name, d.Algorithm)
			}
			v.checked("the %s body given, %s, is the one the node hashed, by its salted %s", b.name, sizeOf(b.body, part), d.Algorithm)
			if rest := len(b.body) - len(part); rest > 0 {
				v.NotChecked = append(v.NotChecked, fmt.Sprintf("the last %d bytes of the %s body given: the receipt states nothing of them", rest, b.name))
			}
		}
	}
	return nil
}

// upTo is what a digest of so many bytes can be checked on; 0 = of all. More may
// have been under way when the answer was broken off.
func upTo(body []byte, size int64) ([]byte, error) {
	if size <= 0 {
		return body, nil
	}
	if int64(len(body)) < size {
		return nil, fmt.Errorf("has %d bytes, and the receipt states the first %d, which the node had written when the answer was broken off: what did not arrive cannot be checked", len(body), size)
	}
	return body[:size], nil
}

func sizeOf(body, part []byte) string {
	if len(part) < len(body) {
		return fmt.Sprintf("the first %d bytes of %d", len(part), len(body))
	}
	return fmt.Sprintf("%d bytes", len(body))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }
