package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// Files of a node's directory.
const (
	certFile  = "node.pem" // leaf, then its region's issuer
	keyFile   = "node.key"
	rootsFile = "roots.pem"
)

// Bundle is a node's certificate and whom it trusts. Both may be replaced
// while connections are made: new handshakes use what is current. A Bundle is
// safe for concurrent use.
type Bundle struct {
	id      ID
	dir     string // "" if not loaded from files
	now     func() time.Time
	current atomic.Pointer[credentials]
	revoked revoked
}

type credentials struct {
	cert  tls.Certificate
	chain []*x509.Certificate // of cert
	roots *x509.CertPool
}

// LoadBundle reads node.pem, node.key and roots.pem of dir.
func LoadBundle(dir string) (*Bundle, error) {
	c, id, err := readCredentials(dir)
	if err != nil {
		return nil, err
	}
	return newBundle(c, id, dir), nil
}

// NewBundle makes a Bundle of PEM text: leaf and issuer, key, trusted roots.
func NewBundle(certPEM, keyPEM, rootsPEM []byte) (*Bundle, error) {
	c, id, err := parseCredentials(certPEM, keyPEM, rootsPEM)
	if err != nil {
		return nil, err
	}
	return newBundle(c, id, ""), nil
}

func newBundle(c *credentials, id ID, dir string) *Bundle {
	b := &Bundle{id: id, dir: dir, now: time.Now}
	b.revoked.ids, b.revoked.conns, b.revoked.own = make(map[ID]struct{}), make(map[ID]map[*tracked]struct{}), make(chan struct{})
	b.current.Store(c)
	return b
}

// ID is who this node is. It never changes.
func (b *Bundle) ID() ID { return b.id }

// Expires is when the current certificate ends. An expired one is loaded all
// the same, so that a node can serve its clients; its peers refuse it.
func (b *Bundle) Expires() time.Time { return b.current.Load().cert.Leaf.NotAfter }

// Reload reads the directory again. On any error what was current stays.
func (b *Bundle) Reload() error {
	if b.dir == "" {
		return errors.New("identity: the bundle was not loaded from a directory: use Replace")
	}
	c, id, err := readCredentials(b.dir)
	if err != nil {
		return err
	}
	return b.replace(c, id)
}

// Replace takes other PEM text for the same node, which peers would accept by
// now. On any error what was current stays.
func (b *Bundle) Replace(certPEM, keyPEM, rootsPEM []byte) error {
	c, id, err := parseCredentials(certPEM, keyPEM, rootsPEM)
	if err != nil {
		return err
	}
	return b.replace(c, id)
}

func (b *Bundle) replace(c *credentials, id ID) error {
	select {
	case <-b.Revoked():
		return fmt.Errorf("identity: %s takes no new certificate: %w", b.id, ErrRevoked)
	default:
	}
	if id != b.id {
		return fmt.Errorf("identity: the new certificate is for %s, this node is %s: issue one for it", id, b.id)
	}
	opts := x509.VerifyOptions{Roots: c.roots, CurrentTime: b.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := verify(c.chain, id.Cluster, opts); err != nil {
		return err
	}
	b.current.Store(c)
	return nil
}

// Server configures a listener for nodes: TLS 1.3, mutual, and allow decides
// who may call. A nil allow refuses everybody. Over a listener of Listen, the
// connections of a node that is revoked are closed. What its GetConfigForClient
// returns is in force, so changes to a clone are not.
func (b *Bundle) Server(nextProtos []string, allow func(ID) error) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: nextProtos,
		ClientAuth: tls.RequireAnyClientCert, // VerifyConnection verifies it, under the roots of the moment
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &b.current.Load().cert, nil
		},
		VerifyConnection:       b.verifier(usageClient, allow, nil),
		SessionTicketsDisabled: true, // every connection is verified in full
	}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		own := config.Clone()
		own.VerifyConnection = b.verifier(usageClient, allow, hello.Conn)
		return own, nil
	}
	return config
}

// Client configures calls to nodes: TLS 1.3, mutual, and want decides who may
// answer. Addresses prove nothing here, so none is verified. A nil want
// refuses everybody.
func (b *Bundle) Client(nextProtos []string, want func(ID) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: nextProtos,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &b.current.Load().cert, nil
		},
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies chain and SPIFFE name instead of a host name
		VerifyConnection:   b.verifier(usageServer, want, nil),
	}
}

// What the peer's certificate must be good for.
const (
	usageClient = x509.ExtKeyUsageClientAuth
	usageServer = x509.ExtKeyUsageServerAuth
)

// verifier checks the peer at the other end of conn; nil = a connection that
// outlives its peer's revocation.
func (b *Bundle) verifier(usage x509.ExtKeyUsage, allow func(ID) error, conn net.Conn) func(tls.ConnectionState) error {
	if allow == nil {
		allow = AnyOf()
	}
	return func(cs tls.ConnectionState) error {
		id, err := verify(cs.PeerCertificates, b.id.Cluster, x509.VerifyOptions{
			Roots:       b.current.Load().roots,
			CurrentTime: b.now(),
			KeyUsages:   []x509.ExtKeyUsage{usage},
		})
		if err == nil {
			err = allow(id)
		}
		if err != nil {
			return err
		}
		return b.revoked.admit(id, conn)
	}
}

func readCredentials(dir string) (*credentials, ID, error) {
	var text [3][]byte
	for i, name := range []string{certFile, keyFile, rootsFile} {
		var err error
		if text[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, ID{}, fmt.Errorf("identity: read node certificate: %w", err)
		}
	}
	c, id, err := parseCredentials(text[0], text[1], text[2])
	if err != nil {
		return nil, ID{}, fmt.Errorf("%s: %w", dir, err)
	}
	return c, id, nil
}

// parseCredentials accepts only what peers with the same roots would accept on
// the day the certificate was issued.
func parseCredentials(certPEM, keyPEM, rootsPEM []byte) (*credentials, ID, error) {
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, ID{}, fmt.Errorf("identity: node certificate: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(rootsPEM) {
		return nil, ID{}, errors.New("identity: no root certificate found: copy the cluster's roots.pem")
	}
	certs := make([]*x509.Certificate, len(cert.Certificate))
	for i, der := range cert.Certificate {
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, ID{}, fmt.Errorf("identity: node certificate: %w", err)
		}
	}
	id, err := leafID(certs[0])
	if err != nil {
		return nil, ID{}, err
	}
	opts := x509.VerifyOptions{Roots: roots, CurrentTime: certs[0].NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := verify(certs, id.Cluster, opts); err != nil {
		return nil, ID{}, err
	}
	return &credentials{cert: cert, chain: certs, roots: roots}, id, nil
}
