package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	rootLife   = 10 * 365 * 24 * time.Hour
	issuerLife = 365 * 24 * time.Hour
	// skew is how far certificates are valid before they were made.
	skew = 5 * time.Minute

	rootName   = "root"
	serverName = "server-root"
)

// CA is a certificate authority in a directory, for development clusters. It
// keeps two roots apart: one for nodes, over an issuer per region, and one for
// the server certificates that clients see, which no node trusts. It is safe
// for concurrent use by one process.
type CA struct {
	// Now is the clock certificates are dated by; nil means time.Now.
	Now func() time.Time

	dir     string
	cluster string
	mu      sync.Mutex
	root    *authority
	server  *authority
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Issued is a certificate with its key, as PEM text. Chain begins with the
// leaf. Roots are those that verify it.
type Issued struct{ Chain, Key, Roots []byte }

// CreateCA makes the roots of a new cluster in dir, mode 0600. It replaces no
// file: fs.ErrExist.
func CreateCA(dir, cluster string) (*CA, error) {
	if !label.MatchString(cluster) {
		return nil, fmt.Errorf("identity: cluster name %q: use 1 to 63 of a-z, 0-9 and '-'", cluster)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("identity: create CA: %w", err)
	}
	ca := &CA{dir: dir, cluster: cluster}
	if _, err := os.Stat(ca.path(rootName, ".key")); err == nil {
		return nil, fmt.Errorf("identity: %s holds a CA already: %w", dir, fs.ErrExist)
	}
	var err error
	if ca.server, err = ca.newRoot(serverName, "clients of "+cluster); err != nil {
		return nil, err
	}
	// Last, since its presence says that the CA is whole.
	if ca.root, err = ca.newRoot(rootName, "nodes of "+cluster); err != nil {
		return nil, err
	}
	return ca, nil
}

// OpenCA reads the CA that CreateCA left in dir.
func OpenCA(dir string) (*CA, error) {
	ca := &CA{dir: dir}
	var err error
	if ca.root, err = ca.load(rootName); err != nil {
		return nil, err
	}
	if ca.server, err = ca.load(serverName); err != nil {
		return nil, err
	}
	if len(ca.root.cert.URIs) != 1 {
		return nil, fmt.Errorf("identity: %s names no cluster: create the CA anew", ca.path(rootName, ".pem"))
	}
	ca.cluster = ca.root.cert.URIs[0].Host
	return ca, nil
}

// Cluster is the name every certificate carries.
func (ca *CA) Cluster() string { return ca.cluster }

// Roots is the PEM text nodes verify each other by.
func (ca *CA) Roots() []byte { return encodeCerts(ca.root.cert) }

// ServerRoots is the PEM text clients verify servers by.
func (ca *CA) ServerRoots() []byte { return encodeCerts(ca.server.cert) }

// IssueNode makes a node's certificate, valid for ttl, under its region's
// issuer, which it creates as needed. The ips are for the reader's eye: peers
// verify the name. An empty Cluster means the CA's own.
func (ca *CA) IssueNode(id ID, ips []net.IP, ttl time.Duration) (*Issued, error) {
	if id.Cluster == "" {
		id.Cluster = ca.cluster
	}
	if err := id.Check(); err != nil {
		return nil, err
	}
	if id.Cluster != ca.cluster {
		return nil, fmt.Errorf("identity: this CA is for cluster %s, not %s", ca.cluster, id.Cluster)
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	issuer, err := ca.issuer(id.Region, ca.now().Add(ttl))
	if err != nil {
		return nil, err
	}
	return ca.leaf(issuer, id, ips, ttl)
}

func (ca *CA) leaf(issuer *authority, id ID, ips []net.IP, ttl time.Duration) (*Issued, error) {
	cert, key, err := ca.sign(issuer, &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.Node},
		URIs:        []*url.URL{id.URI()},
		IPAddresses: ips,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ttl)
	if err != nil {
		return nil, err
	}
	return newIssued(encodeCerts(cert, issuer.cert), key, ca.Roots())
}

// IssueServer makes a certificate for a client-facing listener, valid for ttl,
// for the given host names and addresses.
func (ca *CA) IssueServer(names []string, ips []net.IP, ttl time.Duration) (*Issued, error) {
	if len(names)+len(ips) == 0 {
		return nil, errors.New("identity: a server certificate needs a host name or an address")
	}
	leaf, key, err := ca.sign(ca.server, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "server of " + ca.cluster},
		DNSNames:    names,
		IPAddresses: ips,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ttl)
	if err != nil {
		return nil, err
	}
	return newIssued(encodeCerts(leaf), key, ca.ServerRoots())
}

// Bundle makes the issued node certificate ready for use.
func (i *Issued) Bundle() (*Bundle, error) { return NewBundle(i.Chain, i.Key, i.Roots) }

// Write stores an issued node certificate in dir as LoadBundle reads it, mode
// 0600, each file whole. A Bundle that is in use wants Reload afterwards.
func (i *Issued) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("identity: write node certificate: %w", err)
	}
	for name, data := range map[string][]byte{rootsFile: i.Roots, keyFile: i.Key, certFile: i.Chain} {
		if err := writeFile(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	return nil
}

// issuer returns region's issuer, making one if there is none that outlives
// until. An issuer replaced leaves the certificates it signed valid.
func (ca *CA) issuer(region string, until time.Time) (*authority, error) {
	name := "issuer-" + region
	a, err := ca.load(name)
	switch {
	case err == nil && !a.cert.NotAfter.Before(until):
		return a, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	cert, key, err := ca.sign(ca.root, &x509.Certificate{
		Subject:               pkix.Name{CommonName: "issuer of " + region},
		URIs:                  []*url.URL{issuerURI(ca.cluster, region)},
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, max(issuerLife, until.Sub(ca.now())))
	if err != nil {
		return nil, err
	}
	return ca.store(name, cert, key)
}

func (ca *CA) newRoot(file, name string) (*authority, error) {
	cert, key, err := ca.sign(nil, &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: ca.cluster}},
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, rootLife)
	if err != nil {
		return nil, err
	}
	return ca.store(file, cert, key)
}

// sign dates and signs a certificate over a new key; a nil parent means by
// itself. It refuses to outlive the parent, which would surprise later.
func (ca *CA) sign(parent *authority, template *x509.Certificate, ttl time.Duration) (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("identity: make key: %w", err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, fmt.Errorf("identity: make serial number: %w", err)
	}
	now := ca.now()
	template.NotBefore, template.NotAfter = now.Add(-skew), now.Add(ttl)
	if parent == nil {
		parent = &authority{cert: template, key: key}
	}
	if template.NotAfter.After(parent.cert.NotAfter) || ttl <= 0 {
		return nil, nil, fmt.Errorf("identity: a certificate for %s would end after its issuer's, %s: ask for less",
			ttl, parent.cert.NotAfter.Format(time.RFC3339))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		return nil, nil, fmt.Errorf("identity: sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("identity: sign certificate: %w", err)
	}
	return cert, key, nil
}

func (ca *CA) now() time.Time {
	if ca.Now != nil {
		return ca.Now()
	}
	return time.Now()
}

func (ca *CA) path(name, ext string) string { return filepath.Join(ca.dir, name+ext) }

func (ca *CA) store(name string, cert *x509.Certificate, key crypto.Signer) (*authority, error) {
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	// One file, so that no crash leaves a certificate with another's key.
	if err := writeFile(ca.path(name, ".key"), append(encodeCerts(cert), keyPEM...)); err != nil {
		return nil, err
	}
	if err := writeFile(ca.path(name, ".pem"), encodeCerts(cert)); err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key}, nil
}

func (ca *CA) load(name string) (*authority, error) {
	path := ca.path(name, ".key")
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("identity: open CA: %w", err)
	}
	damaged := fmt.Errorf("identity: %s is damaged: restore it from its backup", path)
	certBlock, rest := pem.Decode(text)
	keyBlock, _ := pem.Decode(rest)
	if certBlock == nil || keyBlock == nil {
		return nil, damaged
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, errors.Join(damaged, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, errors.Join(damaged, err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok || !signer.PublicKey.Equal(cert.PublicKey) {
		return nil, damaged
	}
	return &authority{cert: cert, key: signer}, nil
}

func newIssued(chain []byte, key crypto.Signer, roots []byte) (*Issued, error) {
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &Issued{Chain: chain, Key: keyPEM, Roots: roots}, nil
}

func encodeCerts(certs ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("identity: encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// writeFile replaces path with data, mode 0600, whole or not at all.
func writeFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("identity: write %s: %w", path, err)
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("identity: write %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}
