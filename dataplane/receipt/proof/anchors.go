package proof

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"ringmain/controlplane/identity"
)

// Anchors are whom a verifier trusts, and keys it was told of. No key counts
// for itself: what counts is the certificate chain that vouches for it.
type Anchors struct {
	trusted []*x509.Certificate
	keys    map[string][]string // thumbprint -> delegations, for signatures that carry none
}

// AnchorsOfPEM trusts the certificates of PEM text: the cluster's roots.
func AnchorsOfPEM(text []byte) (*Anchors, error) {
	certs, err := identity.ParseCerts(text)
	if err != nil {
		return nil, fmt.Errorf("receipt: anchors: %w", err)
	}
	return &Anchors{trusted: certs}, nil
}

// AnchorsOfKeySet trusts the roots and issuers of a /.well-known/jwks.json,
// fetched from a host that you trust, and takes over its nodes' keys.
func AnchorsOfKeySet(document []byte) (*Anchors, error) {
	a := new(Anchors)
	trusted, err := a.read(document)
	if err == nil && len(trusted) == 0 {
		err = errors.New("it names no root and no issuer: fetch /.well-known/jwks.json again")
	}
	if err != nil {
		return nil, fmt.Errorf("receipt: key set: %w", err)
	}
	a.trusted = trusted
	return a, nil
}

// Learn takes over the nodes' keys of a key set, and trusts nothing more.
func (a *Anchors) Learn(document []byte) error {
	if _, err := a.read(document); err != nil {
		return fmt.Errorf("receipt: key set: %w", err)
	}
	return nil
}

// read takes over keys, and returns the certificates of roots and issuers.
func (a *Anchors) read(document []byte) ([]*x509.Certificate, error) {
	var set jwks
	if err := json.Unmarshal(document, &set); err != nil {
		return nil, err //nolint:wrapcheck // the callers wrap
	}
	var trusted []*x509.Certificate
	for i, k := range set.Keys {
		switch k.Role {
		case "root", "issuer":
			if len(k.X5c) != 1 {
				return nil, fmt.Errorf("key %d: x5c with %d certificates, want 1", i, len(k.X5c))
			}
			der, err := base64.StdEncoding.DecodeString(k.X5c[0])
			if err != nil {
				return nil, fmt.Errorf("key %d: x5c: %w", i, err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, fmt.Errorf("key %d: x5c: %w", i, err)
			}
			own, err := certKey(cert, k.Role)
			if err != nil {
				return nil, fmt.Errorf("key %d: %w", i, err)
			}
			if own.X != k.X || own.Y != k.Y || own.Kid != k.Kid || !cert.IsCA {
				return nil, fmt.Errorf("key %d: the certificate in x5c is not over this key, or of no authority", i)
			}
			trusted = append(trusted, cert)
		case "node":
			if a.keys == nil {
				a.keys = make(map[string][]string)
			}
			a.keys[k.Kid] = append(a.keys[k.Kid], k.Delegations...)
		}
	}
	return trusted, nil
}
