package identity_test

import (
	"bytes"
	"net/url"
	"testing"
	"time"

	"ringmain/controlplane/identity"
)

// FuzzID: a name in a certificate is read as exactly one node, or as none.
func FuzzID(f *testing.F) {
	for _, s := range []string{
		"spiffe://c/region/us-east/control/us-east-c1", "spiffe://c/region/us-east/data/d%2F1", "spiffe://c:1/region/us-east/data/d1",
		"spiffe://u@c/region/us-east/data/d1", "spiffe://c/region/us-east/issuer", "spiffe://c//region/us-east/data/d1", "https://c/region/a/data/b?x#y", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		id, err := identity.ParseID(u)
		if err != nil {
			return
		}
		if id.String() != u.String() {
			t.Errorf("%q was read as %q", u, id)
		}
		again, err := url.Parse(id.String())
		if err != nil {
			t.Fatal(err)
		}
		if same, err := identity.ParseID(again); err != nil || same != id {
			t.Errorf("%q becomes %q: %v", id, same, err)
		}
	})
}

// FuzzCerts: whatever is in a file of certificates, or in what a peer presents,
// is read or refused.
func FuzzCerts(f *testing.F) {
	ca, err := identity.CreateCA(f.TempDir(), "c")
	if err != nil {
		f.Fatal(err)
	}
	issued, err := ca.IssueNode(identity.ID{Cluster: "c", Region: "us-east", Role: identity.RoleData, Node: "d1"}, nil, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(issued.Chain)
	f.Add(issued.Key)
	f.Add(append(bytes.Clone(issued.Key), issued.Chain...))
	f.Add(issued.Chain[:len(issued.Chain)/2])
	f.Add(bytes.Replace(issued.Chain, []byte("CERTIFICATE"), []byte("CERTIFICATF"), 1))
	f.Fuzz(func(t *testing.T, text []byte) {
		certs, err := identity.ParseCerts(text)
		if (err == nil) != (len(certs) > 0) {
			t.Errorf("%d certificates, %v", len(certs), err)
		}
	})
}
