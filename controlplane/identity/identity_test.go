package identity_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCA(t *testing.T, cluster string) *identity.CA {
	t.Helper()
	ca, err := identity.CreateCA(t.TempDir(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func node(cluster, region, role, name string) identity.ID {
	return identity.ID{Cluster: cluster, Region: region, Role: role, Node: name}
}

func bundle(t *testing.T, ca *identity.CA, id identity.ID) *identity.Bundle {
	t.Helper()
	issued, err := ca.IssueNode(id, []net.IP{net.IPv4(127, 0, 0, 1)}, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b, err := issued.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// call makes one connection, exchanges a byte both ways and gives each side's
// error. The server's is the one that matters: a TLS 1.3 client believes the
// handshake done before its certificate was judged.
func call(t *testing.T, server, client *tls.Config) (cs tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inner.Close() }()
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			raw, err := inner.Accept()
			if err != nil {
				return err
			}
			defer func() { _ = raw.Close() }()
			_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
			conn := tls.Server(raw, server)
			if err := conn.Handshake(); err != nil {
				return err
			}
			cs = conn.ConnectionState()
			_, err = io.CopyN(conn, conn, 1)
			return err
		}()
	}()
	clientErr = func() error {
		raw, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			return err
		}
		defer func() { _ = raw.Close() }()
		_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
		conn := tls.Client(raw, client)
		if _, err := conn.Write([]byte{1}); err != nil {
			return err
		}
		_, err = io.ReadFull(conn, make([]byte, 1))
		return err
	}()
	serverErr = <-done // after which cs is set
	return cs, serverErr, clientErr
}

func TestWhoMayCallWhom(t *testing.T) {
	const cluster = "prod"
	ca, other, twin := newCA(t, cluster), newCA(t, "staging"), newCA(t, cluster)
	server := bundle(t, ca, node(cluster, "eu-fra", "control", "eu-fra-c1"))
	anyone := identity.AnyOf(identity.AllowControl(""), identity.AllowData(""))
	protos := []string{"h2"}

	peer := func(id identity.ID) *tls.Config { return bundle(t, ca, id).Client(protos, anyone) }
	control := peer(node(cluster, "eu-fra", "control", "eu-fra-c2"))
	data := peer(node(cluster, "eu-fra", "data", "eu-fra-d1"))
	away := peer(node(cluster, "us-east", "control", "us-east-c1"))
	awayData := peer(node(cluster, "us-east", "data", "us-east-d1"))

	old := control.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	bare := control.Clone()
	bare.GetClientCertificate = nil
	forged := control.Clone()
	forged.GetClientCertificate = certificate(t, func() (*identity.Issued, error) {
		return ca.SignWith("us-east", node(cluster, "eu-fra", "control", "eu-fra-c2"), time.Hour)
	})
	public := control.Clone()
	public.GetClientCertificate = certificate(t, func() (*identity.Issued, error) {
		return ca.IssueServer([]string{"api.example"}, nil, time.Hour)
	})
	twinned := control.Clone()
	twinned.GetClientCertificate = certificate(t, func() (*identity.Issued, error) {
		return twin.IssueNode(node(cluster, "eu-fra", "control", "eu-fra-c2"), nil, time.Hour)
	})
	foreign := bundle(t, other, node("staging", "eu-fra", "control", "eu-fra-c2")).Client(protos, anyone)
	foreign.VerifyConnection = nil // it does not mind whom it calls

	own := identity.AllowControl("eu-fra")
	anyControl := identity.AllowControl("")
	ownRegion := identity.AnyOf(identity.AllowControl("eu-fra"), identity.AllowData("eu-fra"))

	cases := []struct {
		name   string
		allow  func(identity.ID) error
		client *tls.Config
		want   error  // of the server; nil allows
		text   string // or a part of its text, where there is no sentinel
	}{
		{"raft: control of the region", own, control, nil, ""},
		{"raft: data node", own, data, identity.ErrNotAllowed, ""},
		{"raft: control of another region", own, away, identity.ErrNotAllowed, ""},
		{"feed: control of the region", identity.AnyOf(anyControl, identity.AllowData("eu-fra")), control, nil, ""},
		{"feed: control of another region", identity.AnyOf(anyControl, identity.AllowData("eu-fra")), away, nil, ""},
		{"feed: data node of the region", identity.AnyOf(anyControl, identity.AllowData("eu-fra")), data, nil, ""},
		{"feed: data node of another region", identity.AnyOf(anyControl, identity.AllowData("eu-fra")), awayData, identity.ErrNotAllowed, ""},
		{"own region: control", ownRegion, control, nil, ""},
		{"own region: data", ownRegion, data, nil, ""},
		{"peer: data of any region", identity.AllowData(""), awayData, nil, ""},
		{"peer: control", identity.AllowData(""), control, identity.ErrNotAllowed, ""},
		{"one node: it", identity.AllowNode(node(cluster, "eu-fra", "data", "eu-fra-d1")), data, nil, ""},
		{"one node: its neighbour", identity.AllowNode(node(cluster, "eu-fra", "data", "eu-fra-d2")), data, identity.ErrNotAllowed, ""},
		{"nobody named", nil, control, identity.ErrNotAllowed, ""},
		{"an empty table", identity.AnyOf(), control, identity.ErrNotAllowed, ""},
		{"TLS 1.2", anyone, old, nil, "unsupported versions"},
		{"no certificate", anyone, bare, nil, "didn't provide a certificate"},
		{"another cluster", anyone, foreign, controlplane.ErrWrongCluster, ""},
		{"a cluster of the same name", anyone, twinned, identity.ErrBadChain, ""},
		{"another region's issuer", anyone, forged, identity.ErrBadChain, ""},
		{"a server certificate", anyone, public, identity.ErrNoIdentity, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err, clientErr := call(t, server.Server(protos, c.allow), c.client)
			switch {
			case c.want == nil && c.text == "":
				if err != nil || clientErr != nil {
					t.Errorf("refused: %v; %v", err, clientErr)
				}
			case c.want != nil && !errors.Is(err, c.want):
				t.Errorf("server error %v, want %v", err, c.want)
			case c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)):
				t.Errorf("server error %v, want %q in it", err, c.text)
			case clientErr == nil:
				t.Error("the client noticed nothing")
			}
		})
	}
}

func certificate(t *testing.T, issue func() (*identity.Issued, error)) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	t.Helper()
	issued, err := issue()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(issued.Chain, issued.Key)
	if err != nil {
		t.Fatal(err)
	}
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
}

// A client judges servers as servers judge clients.
func TestClientRefusesWrongServer(t *testing.T) {
	const cluster = "prod"
	ca := newCA(t, cluster)
	client := bundle(t, ca, node(cluster, "eu-fra", "control", "eu-fra-c1"))
	anyone := identity.AnyOf(identity.AllowControl(""), identity.AllowData(""))
	c2 := node(cluster, "eu-fra", "control", "eu-fra-c2")

	good := bundle(t, ca, c2).Server(nil, anyone)
	if _, err, clientErr := call(t, good, client.Client(nil, identity.AllowNode(c2))); err != nil || clientErr != nil {
		t.Errorf("the node asked for: %v; %v", err, clientErr)
	}
	if _, _, err := call(t, good, client.Client(nil, identity.AllowNode(node(cluster, "eu-fra", "control", "eu-fra-c3")))); !errors.Is(err, identity.ErrNotAllowed) {
		t.Errorf("another node of the region: %v", err)
	}
	if _, _, err := call(t, good, client.Client(nil, nil)); !errors.Is(err, identity.ErrNotAllowed) {
		t.Errorf("nobody named: %v", err)
	}
	forged, err := ca.SignWith("us-east", c2, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := forged.Bundle(); !errors.Is(err, identity.ErrBadChain) {
		t.Errorf("a node loads a certificate its peers would refuse: %v", err)
	}
	cert, err := tls.X509KeyPair(forged.Chain, forged.Key)
	if err != nil {
		t.Fatal(err)
	}
	bad := good.Clone()
	bad.GetConfigForClient = nil
	bad.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
	if _, _, err := call(t, bad, client.Client(nil, anyone)); !errors.Is(err, identity.ErrBadChain) {
		t.Errorf("a server under another region's issuer: %v", err)
	}
	foreign := bundle(t, newCA(t, "staging"), node("staging", "eu-fra", "control", "eu-fra-c2")).Server(nil, anyone)
	if _, _, err := call(t, foreign, client.Client(nil, anyone)); !errors.Is(err, controlplane.ErrWrongCluster) {
		t.Errorf("a server of another cluster: %v", err)
	}
}

func TestExpiredIsRefused(t *testing.T) {
	ca := newCA(t, "prod")
	server := bundle(t, ca, node("prod", "eu-fra", "control", "eu-fra-c1"))
	client := bundle(t, ca, node("prod", "eu-fra", "control", "eu-fra-c2"))
	allow := identity.AllowControl("eu-fra")
	for _, c := range []struct {
		when time.Duration
		want error
	}{{23 * time.Hour, nil}, {25 * time.Hour, identity.ErrBadChain}, {-time.Hour, identity.ErrBadChain}} {
		server.SetNow(func() time.Time { return time.Now().Add(c.when) })
		if _, err, _ := call(t, server.Server(nil, allow), client.Client(nil, allow)); !errors.Is(err, c.want) {
			t.Errorf("after %s: %v, want %v", c.when, err, c.want)
		}
	}
	if d := time.Until(client.Expires()); d < 23*time.Hour || d > 24*time.Hour {
		t.Errorf("Expires in %s", d)
	}
}

func TestPeerIDAndKeyExchange(t *testing.T) {
	ca := newCA(t, "prod")
	c1, c2 := node("prod", "eu-fra", "control", "c1"), node("prod", "eu-fra", "data", "d1")
	cs, _, err := call(t, bundle(t, ca, c1).Server(nil, identity.AllowData("")), bundle(t, ca, c2).Client(nil, identity.AllowControl("")))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := identity.PeerID(cs); err != nil || id != c2 {
		t.Errorf("PeerID = %v, %v", id, err)
	}
	if cs.Version != tls.VersionTLS13 || cs.CurveID != tls.X25519MLKEM768 {
		t.Errorf("version %x, curve %v", cs.Version, cs.CurveID)
	}
	if _, err := identity.PeerID(tls.ConnectionState{}); !errors.Is(err, identity.ErrNoIdentity) {
		t.Errorf("PeerID of nothing: %v", err)
	}
}

func TestPublic(t *testing.T) {
	ca := newCA(t, "prod")
	issued, err := ca.IssueServer([]string{"api.example"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(issued.Chain, issued.Key)
	if err != nil {
		t.Fatal(err)
	}
	server := identity.Public(cert, []string{"h2", "http/1.1"})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.ServerRoots())
	client := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: "127.0.0.1", NextProtos: []string{"h2"}}
	if cs, err, clientErr := call(t, server, client); err != nil || clientErr != nil || cs.NegotiatedProtocol != "h2" {
		t.Errorf("a client: %v; %v; %q", err, clientErr, cs.NegotiatedProtocol)
	}
	old := client.Clone()
	old.MaxVersion = tls.VersionTLS12
	if _, err, _ := call(t, server, old); err == nil {
		t.Error("a TLS 1.2 client was let in")
	}
	nodes := x509.NewCertPool()
	nodes.AppendCertsFromPEM(ca.Roots())
	crossed := client.Clone()
	crossed.RootCAs = nodes
	if _, _, err := call(t, server, crossed); err == nil {
		t.Error("the nodes' root vouches for a public server")
	}
}

func TestReload(t *testing.T) {
	ca := newCA(t, "prod")
	dir := t.TempDir()
	id := node("prod", "eu-fra", "data", "eu-fra-d1")
	write := func(ca *identity.CA, id identity.ID, ttl time.Duration) {
		t.Helper()
		issued, err := ca.IssueNode(id, nil, ttl)
		if err != nil {
			t.Fatal(err)
		}
		if err := issued.Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	write(ca, id, time.Hour)
	b, err := identity.LoadBundle(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"node.pem", "node.key", "roots.pem"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
	// Configurations made before a reload use what came after it.
	config := b.Server(nil, identity.AllowControl(""))
	client := bundle(t, ca, node("prod", "eu-fra", "control", "c1")).Client(nil, identity.AllowData(""))
	write(ca, id, 2*time.Hour)
	if err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	if d := time.Until(b.Expires()); d < 90*time.Minute {
		t.Errorf("after Reload the certificate ends in %s", d)
	}
	if _, err, clientErr := call(t, config, client); err != nil || clientErr != nil {
		t.Errorf("after Reload: %v; %v", err, clientErr)
	}

	// A reload that cannot be used leaves the current certificate.
	write(ca, node("prod", "eu-fra", "data", "eu-fra-d2"), time.Hour)
	if err := b.Reload(); err == nil || b.ID() != id {
		t.Errorf("another node's certificate: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "node.key"), []byte("gone"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Reload(); err == nil {
		t.Error("a broken key file was taken")
	}
	if _, err, clientErr := call(t, config, client); err != nil || clientErr != nil {
		t.Errorf("after failed reloads: %v; %v", err, clientErr)
	}

	// Trust changes too: after another root takes over, the old peers are refused.
	next := newCA(t, "prod")
	write(next, id, time.Hour)
	if err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := call(t, config, client); !errors.Is(err, identity.ErrBadChain) {
		t.Errorf("a peer that trusts the former root: %v", err)
	}
	trusting := client.Clone()
	trusting.VerifyConnection = nil
	if _, err, _ := call(t, config, trusting); !errors.Is(err, identity.ErrBadChain) {
		t.Errorf("a peer under the former root: %v", err)
	}
	memory := bundle(t, ca, id)
	if err := memory.Reload(); err == nil {
		t.Error("a bundle without a directory reloaded")
	}
}

func TestCA(t *testing.T) {
	dir := t.TempDir()
	ca, err := identity.CreateCA(dir, "prod")
	if err != nil {
		t.Fatal(err)
	}
	id := node("prod", "eu-fra", "data", "d1")
	first, err := ca.IssueNode(id, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.CreateCA(dir, "prod"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second create: %v", err)
	}
	again, err := identity.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := again.IssueNode(identity.ID{Region: "eu-fra", Role: "data", Node: "d2"}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if again.Cluster() != "prod" || !bytes.Equal(ca.Roots(), again.Roots()) || !bytes.Equal(issuerOf(t, first), issuerOf(t, second)) {
		t.Error("an opened CA is not the one created")
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
	// Two years on, the region has another issuer, and the first leaf still verifies.
	ca.Now = func() time.Time { return time.Now().AddDate(2, 0, 0) }
	third, err := ca.IssueNode(id, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(issuerOf(t, first), issuerOf(t, third)) {
		t.Error("an issuer past its end signed a leaf")
	}
	if _, err := first.Bundle(); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]func() (*identity.Issued, error){
		"outlives the root": func() (*identity.Issued, error) { return ca.IssueNode(id, nil, 20*365*24*time.Hour) },
		"no lifetime":       func() (*identity.Issued, error) { return ca.IssueNode(id, nil, 0) },
		"another cluster": func() (*identity.Issued, error) {
			return ca.IssueNode(node("staging", "eu-fra", "data", "d1"), nil, time.Hour)
		},
		"a bad role": func() (*identity.Issued, error) {
			return ca.IssueNode(node("prod", "eu-fra", "issuer", "d1"), nil, time.Hour)
		},
		"a path as a name": func() (*identity.Issued, error) {
			return ca.IssueNode(node("prod", "../eu-fra", "data", "d1"), nil, time.Hour)
		},
		"no host name": func() (*identity.Issued, error) { return ca.IssueServer(nil, nil, time.Hour) },
	} {
		if _, err := bad(); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
}

func issuerOf(t *testing.T, i *identity.Issued) []byte {
	t.Helper()
	_, rest := pem.Decode(i.Chain)
	block, _ := pem.Decode(rest)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	// The frozen shape of an issuer.
	if !cert.IsCA || !cert.MaxPathLenZero || cert.URIs[0].String() != "spiffe://prod/region/eu-fra/issuer" {
		t.Errorf("issuer %v, CA %v", cert.URIs, cert.IsCA)
	}
	return cert.Raw
}

func TestParseID(t *testing.T) {
	for text, ok := range map[string]bool{
		"spiffe://prod/region/eu-fra/control/eu-fra-c1":               true,
		"spiffe://prod/region/eu-fra/data/d1":                         true,
		"https://prod/region/eu-fra/data/d1":                          false,
		"spiffe://prod/region/eu-fra/issuer":                          false,
		"spiffe://prod/region/eu-fra/admin/d1":                        false,
		"spiffe://prod/region/eu-fra/data/":                           false,
		"spiffe://prod/region/eu-fra/data/d1/x":                       false,
		"spiffe://prod:1/region/eu-fra/data/d1":                       false,
		"spiffe://u@prod/region/eu-fra/data/d1":                       false,
		"spiffe://prod/region/eu-fra/data/d1?x":                       false,
		"spiffe://prod/region/eu-fra/data/d1#x":                       false,
		"spiffe://prod/region/eu-fra/data/d%31":                       false,
		"spiffe://Prod/region/eu-fra/data/d1":                         false,
		"spiffe://prod/regions/eu-fra/data/d1":                        false,
		"spiffe:///region/eu-fra/data/d1":                             false,
		"spiffe://prod/region/eu_fra/data/d1":                         false,
		"spiffe://prod/region/eu-fra/data/" + strings.Repeat("a", 64): false,
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		id, err := identity.ParseID(u)
		if (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
		if ok && id.String() != text {
			t.Errorf("%s came back as %s", text, id)
		}
	}
}
