package identity

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// VerifyStatement checks offline who made a signed statement: certs is the
// signer's chain, leaf first and then its region's issuer, and at is when the
// statement was made. Node certificates live for a day, so a statement is
// verified as of then, not as of now. Anchors are the cluster's roots, or
// issuers that are trusted by themselves. Every certificate given must be
// part of the chain found, so that none rides along unverified.
func VerifyStatement(certs, anchors []*x509.Certificate, at time.Time) (ID, error) {
	if len(certs) != 2 {
		return ID{}, fmt.Errorf("identity: a statement carries %d certificates, want the node's and its issuer's: %w", len(certs), ErrBadChain)
	}
	id, err := leafID(certs[0])
	if err != nil {
		return ID{}, err
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	opts.Intermediates.AddCert(certs[1])
	for _, c := range anchors {
		opts.Roots.AddCert(c)
	}
	chains, err := certs[0].Verify(opts)
	if err != nil {
		return ID{}, fmt.Errorf("identity: signer %s: %w: %w", id, err, ErrBadChain)
	}
	want := issuerURI(id.Cluster, id.Region).String()
	for _, chain := range chains {
		// leaf, issuer, and a root unless the issuer is an anchor itself.
		if (len(chain) == 2 || len(chain) == 3) && chain[1].Equal(certs[1]) && len(chain[1].URIs) == 1 && chain[1].URIs[0].String() == want {
			return id, nil
		}
	}
	return ID{}, fmt.Errorf("identity: signer %s was not certified by %s: %w", id, want, ErrBadChain)
}

// Signer is what a node makes statements with: its name, its key, and the
// chain VerifyStatement wants.
type Signer struct {
	ID    ID
	Key   crypto.Signer
	Chain []*x509.Certificate // the node's, then its issuer's
	Roots []*x509.Certificate
}

// NewSigner reads the PEM text that NewBundle reads, and refuses what it refuses.
func NewSigner(certPEM, keyPEM, rootsPEM []byte) (*Signer, error) {
	c, id, err := parseCredentials(certPEM, keyPEM, rootsPEM)
	if err != nil {
		return nil, err
	}
	key, ok := c.cert.PrivateKey.(crypto.Signer)
	if !ok || len(c.cert.Certificate) < 2 {
		return nil, errors.New("identity: the node certificate comes without its issuer, or its key cannot sign: issue a new one")
	}
	s := &Signer{ID: id, Key: key}
	for _, der := range c.cert.Certificate[:2] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("identity: node certificate: %w", err)
		}
		s.Chain = append(s.Chain, cert)
	}
	if s.Roots, err = ParseCerts(rootsPEM); err != nil {
		return nil, err
	}
	return s, nil
}

// ParseCerts reads every certificate of PEM text; none is an error.
func ParseCerts(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("identity: certificate: %w", err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("identity: no certificate found: give one in PEM")
	}
	return certs, nil
}
