package identity

import (
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Public configures every listener that clients or operators reach: TLS 1.3
// with one certificate, no client certificates.
func Public(cert tls.Certificate, nextProtos []string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   nextProtos,
		Certificates: []tls.Certificate{cert},
	}
}

// PublicCert is the certificate of listeners that clients or operators reach.
// It may be replaced while connections are made: new handshakes use what is
// current. It is safe for concurrent use.
type PublicCert struct {
	current atomic.Pointer[tls.Certificate]
}

// NewPublicCert reads PEM text: the chain, leaf first, and the key. One that is
// out of date is taken, and left to the clients to judge.
func NewPublicCert(certPEM, keyPEM []byte) (*PublicCert, error) {
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("identity: public certificate: %w", err)
	}
	p := new(PublicCert)
	p.current.Store(&cert)
	return p, nil
}

// ErrOutOfDate means that a certificate cannot be used at this time: issue a new one.
var ErrOutOfDate = errors.New("the certificate is not valid at this time: issue a new one, or mend this machine's clock")

// Replace takes other PEM text, whose certificate must be valid at now. On any
// error what was current stays. Names are not compared, since they may change.
func (p *PublicCert) Replace(certPEM, keyPEM []byte, now time.Time) error {
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("identity: public certificate: %w", err)
	}
	if now.Before(cert.Leaf.NotBefore) || now.After(cert.Leaf.NotAfter) {
		return fmt.Errorf("identity: public certificate, from %s to %s: %w",
			cert.Leaf.NotBefore.Format(time.RFC3339), cert.Leaf.NotAfter.Format(time.RFC3339), ErrOutOfDate)
	}
	p.current.Store(&cert)
	return nil
}

// Expires is when the current certificate ends.
func (p *PublicCert) Expires() time.Time { return p.current.Load().Leaf.NotAfter }

// Server is Public with the certificate of the moment.
func (p *PublicCert) Server(nextProtos []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: nextProtos,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return p.current.Load(), nil
		},
	}
}
