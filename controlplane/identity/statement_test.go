package identity

import (
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"time"
)

func TestVerifyStatement(t *testing.T) {
	ca, err := CreateCA(t.TempDir()+"/ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	other, err := CreateCA(t.TempDir()+"/ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	signer := func(ca *CA, region string) *Signer {
		t.Helper()
		issued, err := ca.IssueNode(ID{Region: region, Role: RoleData, Node: region + "-d1"}, nil, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewSigner(issued.Chain, issued.Key, issued.Roots)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b, stranger := signer(ca, "eu-fra"), signer(ca, "us-east"), signer(other, "eu-fra")
	if a.ID != (ID{"test", "eu-fra", RoleData, "eu-fra-d1"}) || len(a.Chain) != 2 || len(a.Roots) != 1 {
		t.Errorf("%+v", a.ID)
	}
	// No honest authority does this.
	forged, err := ca.SignWith("us-east", ID{"test", "eu-fra", RoleData, "eu-fra-d1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	forgedChain, err := ParseCerts(forged.Chain)
	if err != nil {
		t.Fatal(err)
	}
	issuers := []*x509.Certificate{a.Chain[1], b.Chain[1]}
	for name, c := range map[string]struct {
		chain, anchors []*x509.Certificate
		at             time.Time
		ok             bool
	}{
		"under the root":          {a.Chain, a.Roots, now, true},
		"under the issuer":        {a.Chain, issuers, now, true},
		"later":                   {a.Chain, a.Roots, now.Add(2 * time.Hour), false},
		"earlier":                 {a.Chain, a.Roots, now.Add(-time.Hour), false},
		"another root":            {a.Chain, stranger.Roots, now, false},
		"nobody trusted":          {a.Chain, nil, now, false},
		"without its issuer":      {a.Chain[:1], a.Roots, now, false},
		"nothing":                 {nil, a.Roots, now, false},
		"the issuer for the node": {[]*x509.Certificate{a.Chain[1], a.Roots[0]}, a.Roots, now, false},
		"another region's issuer": {[]*x509.Certificate{a.Chain[0], b.Chain[1]}, issuers, now, false},
		"by another region":       {forgedChain, a.Roots, now, false},
		"a third certificate":     {append([]*x509.Certificate{a.Chain[0], a.Chain[1]}, b.Chain[1]), a.Roots, now, false},
		"the root for the issuer": {[]*x509.Certificate{a.Chain[0], a.Roots[0]}, append(issuers, a.Roots...), now, false},
	} {
		id, err := VerifyStatement(c.chain, c.anchors, c.at)
		switch {
		case c.ok && (err != nil || id != a.ID):
			t.Errorf("%s: %v, %v", name, id, err)
		case !c.ok && !errors.Is(err, ErrBadChain) && !errors.Is(err, ErrNoIdentity):
			t.Errorf("%s: %v, %v", name, id, err)
		}
	}
}

func TestNewSignerAndParseCerts(t *testing.T) {
	ca, err := CreateCA(t.TempDir()+"/ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.IssueNode(ID{Region: "eu-fra", Role: RoleData, Node: "d1"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.IssueServer([]string{"localhost"}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][3][]byte{
		"a server certificate": {server.Chain, server.Key, server.Roots},
		"another key":          {issued.Chain, server.Key, issued.Roots},
		"another root":         {issued.Chain, issued.Key, server.Roots},
	} {
		if s, err := NewSigner(c[0], c[1], c[2]); err == nil {
			t.Errorf("%s: %v", name, s.ID)
		}
	}
	if certs, err := ParseCerts(append(issued.Key, issued.Chain...)); err != nil || len(certs) != 2 {
		t.Errorf("%d certificates beside a key, %v", len(certs), err)
	}
	for _, bad := range []string{"", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if certs, err := ParseCerts([]byte(bad)); err == nil {
			t.Errorf("%q: %d certificates", bad, len(certs))
		}
	}
}
