// Package identity says who a node is and proves it: SPIFFE-style names, the
// certificate chain root -> region issuer -> node, mutual TLS 1.3 between
// nodes, the TLS settings of client-facing listeners, and a development CA.
//
// Customers, operators and their keys have no place here.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"ringmain/controlplane"
)

// Roles of a node.
const (
	RoleControl = "control"
	RoleData    = "data"
)

// Errors. A handshake refused for one of them names it in its text.
var (
	// ErrNoIdentity: the peer shows no node certificate. Point the client to a
	// bundle made by ca.IssueNode.
	ErrNoIdentity = errors.New("the peer shows no node identity: give it a node certificate")
	// ErrBadChain: the certificate was not issued by the peer's own region's
	// issuer under a trusted root, or is out of date. Issue a new one.
	ErrBadChain = errors.New("the peer's certificate is not from its region's issuer, or out of date: issue a new one")
	// ErrNotAllowed: this node may not call that listener. Check role and region.
	ErrNotAllowed = errors.New("the peer may not be used for this: check its role and region")
)

// ID names a node: spiffe://<cluster>/region/<region>/<role>/<node>.
type ID struct{ Cluster, Region, Role, Node string }

// label is what cluster, region and node names look like.
var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Check reports the first part of the ID that no certificate may carry.
func (id ID) Check() error {
	for part, name := range map[string]string{"cluster": id.Cluster, "region": id.Region, "node": id.Node} {
		if !label.MatchString(name) {
			return fmt.Errorf("identity: %s name %q: use 1 to 63 of a-z, 0-9 and '-'", part, name)
		}
	}
	if id.Role != RoleControl && id.Role != RoleData {
		return fmt.Errorf("identity: role %q: use %q or %q", id.Role, RoleControl, RoleData)
	}
	return nil
}

// URI is the form a certificate carries.
func (id ID) URI() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.Cluster, Path: "/region/" + id.Region + "/" + id.Role + "/" + id.Node}
}

// String gives the URI's text.
func (id ID) String() string { return id.URI().String() }

// ParseID reads the URI form, strictly: what URI would not write is refused.
func ParseID(u *url.URL) (ID, error) {
	parts := strings.Split(u.Path, "/")
	if len(parts) != 5 || parts[1] != "region" {
		return ID{}, fmt.Errorf("identity: %q is not spiffe://<cluster>/region/<region>/<role>/<node>", u)
	}
	id := ID{Cluster: u.Host, Region: parts[2], Role: parts[3], Node: parts[4]}
	if err := id.Check(); err != nil {
		return ID{}, err
	}
	if id.String() != u.String() {
		return ID{}, fmt.Errorf("identity: %q is not %q", u, id)
	}
	return id, nil
}

// issuerURI names the one CA that may sign nodes of region.
func issuerURI(cluster, region string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: cluster, Path: "/region/" + region + "/issuer"}
}

// PeerID is the identity at the other end of a connection made with a Bundle's
// configuration, which verified it. It is meaningless on any other connection.
func PeerID(cs tls.ConnectionState) (ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return ID{}, ErrNoIdentity
	}
	return leafID(cs.PeerCertificates[0])
}

// leafID is the one URI of a node certificate. A second name of any kind that
// could be read as another node is refused.
func leafID(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 {
		return ID{}, fmt.Errorf("identity: certificate carries %d URIs, want 1: %w", len(cert.URIs), ErrNoIdentity)
	}
	id, err := ParseID(cert.URIs[0])
	if err != nil {
		return ID{}, fmt.Errorf("%w: %w", err, ErrNoIdentity)
	}
	return id, nil
}

// verify checks a peer's chain as sent, leaf first, and returns who it is. The
// frozen shape is root -> the leaf's own region's issuer -> leaf.
func verify(certs []*x509.Certificate, cluster string, opts x509.VerifyOptions) (ID, error) {
	if len(certs) == 0 {
		return ID{}, ErrNoIdentity
	}
	id, err := leafID(certs[0])
	if err != nil {
		return ID{}, err
	}
	if id.Cluster != cluster {
		return ID{}, fmt.Errorf("identity: peer %s, this is cluster %s: %w", id, cluster, controlplane.ErrWrongCluster)
	}
	opts.Intermediates = x509.NewCertPool()
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := certs[0].Verify(opts)
	if err != nil {
		return ID{}, fmt.Errorf("identity: peer %s: %w: %w", id, err, ErrBadChain)
	}
	want := issuerURI(id.Cluster, id.Region).String()
	for _, chain := range chains {
		if len(chain) == 3 && len(chain[1].URIs) == 1 && chain[1].URIs[0].String() == want {
			return id, nil
		}
	}
	return ID{}, fmt.Errorf("identity: peer %s was not signed by %s: %w", id, want, ErrBadChain)
}

// AllowControl allows control nodes of region, "" meaning any.
func AllowControl(region string) func(ID) error { return allowRole(RoleControl, region) }

// AllowData allows data nodes of region, "" meaning any.
func AllowData(region string) func(ID) error { return allowRole(RoleData, region) }

// AllowNode allows exactly one node.
func AllowNode(want ID) func(ID) error {
	return func(id ID) error {
		if id != want {
			return fmt.Errorf("identity: peer is %s, want %s: %w", id, want, ErrNotAllowed)
		}
		return nil
	}
}

// AnyOf allows what one of the given tables allows. AnyOf() allows nobody.
func AnyOf(tables ...func(ID) error) func(ID) error {
	return func(id ID) error {
		err := fmt.Errorf("identity: peer %s: %w", id, ErrNotAllowed)
		for _, allow := range tables {
			if err = allow(id); err == nil {
				return nil
			}
		}
		return err
	}
}

func allowRole(role, region string) func(ID) error {
	return func(id ID) error {
		if id.Role != role || (region != "" && id.Region != region) {
			return fmt.Errorf("identity: peer %s, want a %s node of %q: %w", id, role, region, ErrNotAllowed)
		}
		return nil
	}
}
