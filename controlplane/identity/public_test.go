package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"ringmain/controlplane/identity"
)

// TestPublicCert: connections made after a renewal show the new certificate,
// and what cannot be used leaves the one before.
func TestPublicCert(t *testing.T) {
	ca := newCA(t, "prod")
	issue := func(ttl time.Duration) *identity.Issued {
		t.Helper()
		issued, err := ca.IssueServer([]string{"api.example.com"}, nil, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return issued
	}
	first, second := issue(time.Hour), issue(2*time.Hour)
	p, err := identity.NewPublicCert(first.Chain, first.Key)
	if err != nil {
		t.Fatal(err)
	}
	server := p.Server([]string{"h2"})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(first.Roots)
	shown := func() time.Time {
		t.Helper()
		var leaf *x509.Certificate
		client := &tls.Config{RootCAs: roots, ServerName: "api.example.com", NextProtos: []string{"h2"}, VerifyConnection: func(cs tls.ConnectionState) error {
			leaf = cs.PeerCertificates[0]
			return nil
		}}
		if cs, err, clientErr := call(t, server, client); err != nil || clientErr != nil || cs.Version != tls.VersionTLS13 || len(cs.PeerCertificates) != 0 {
			t.Fatal(err, clientErr)
		}
		return leaf.NotAfter
	}
	if got := shown(); !got.Equal(p.Expires()) || time.Until(got) > time.Hour {
		t.Error(got)
	}
	if err := p.Replace(second.Chain, second.Key, time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := shown(); !got.Equal(p.Expires()) || time.Until(got) < time.Hour {
		t.Error(got)
	}
	if err := p.Replace(first.Chain, second.Key, time.Now()); err == nil {
		t.Error("a key of another certificate was taken")
	}
	for _, at := range []time.Duration{-time.Hour, 90 * time.Minute} {
		if err := p.Replace(first.Chain, first.Key, time.Now().Add(at)); !errors.Is(err, identity.ErrOutOfDate) {
			t.Error(at, err)
		}
	}
	if got := shown(); time.Until(got) < time.Hour {
		t.Errorf("what was refused is shown: %s", got)
	}
	if _, err := identity.NewPublicCert(first.Chain, second.Key); err == nil {
		t.Error("a key of another certificate was taken")
	}
}

// TestReplaceRefusesWhatPeersWould: a node certificate that is out of date by
// now does not take the place of one that holds.
func TestReplaceRefusesWhatPeersWould(t *testing.T) {
	ca := newCA(t, "prod")
	id := node("prod", "eu-fra", "data", "eu-fra-d1")
	b := bundle(t, ca, id)
	issued, err := ca.IssueNode(id, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Duration{2 * time.Hour, -time.Hour} {
		b.SetNow(func() time.Time { return time.Now().Add(at) })
		if err := b.Replace(issued.Chain, issued.Key, issued.Roots); !errors.Is(err, identity.ErrBadChain) {
			t.Errorf("%s: %v", at, err)
		}
	}
	if d := time.Until(b.Expires()); d < 23*time.Hour {
		t.Error(d)
	}
	b.SetNow(time.Now)
	if err := b.Replace(issued.Chain, issued.Key, issued.Roots); err != nil || time.Until(b.Expires()) > time.Hour {
		t.Error(err)
	}
}
