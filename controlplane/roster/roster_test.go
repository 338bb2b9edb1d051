package roster

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane/identity"
	"ringmain/internal/testkit/synckit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const cluster = "test"

func bundle(t *testing.T, ca *identity.CA, region, role, node string) *identity.Bundle {
	t.Helper()
	issued, err := ca.IssueNode(identity.ID{Cluster: cluster, Region: region, Role: role, Node: node}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b, err := issued.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// node is a control node with a book, and a listener.
type node struct {
	book *Book
	addr string
	own  atomic.Pointer[List]
	http *http.Client
}

func start(t *testing.T, ca *identity.CA, region, name string, first map[string][]Node, file string) *node {
	t.Helper()
	n := &node{}
	b := bundle(t, ca, region, identity.RoleControl, name)
	n.http = &http.Client{Transport: &http.Transport{TLSClientConfig: b.Client([]string{"http/1.1"}, identity.AllowControl(""))}}
	n.book = Open(Config{Cluster: cluster, Region: region, First: first, HTTP: n.http, File: file, Every: 20 * time.Millisecond,
		Own: func() List {
			if l := n.own.Load(); l != nil {
				return *l
			}
			return List{Region: region}
		}})
	srv := httptest.NewUnstartedServer(n.book.Handler())
	srv.TLS = b.Server([]string{"http/1.1"}, identity.AnyOf(identity.AllowControl(""), identity.AllowData(region)))
	srv.StartTLS()
	n.addr = srv.Listener.Addr().String()
	t.Cleanup(func() { n.http.CloseIdleConnections(); srv.Close() })
	return n
}

func follow(t *testing.T, b *Book) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.Follow(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in 20 s: %s", what)
		}
	}
}

// Two regions exchange lists. Then all addresses of one are others, while only
// that one can find the other: it is found again, from disk too.
func TestExchange(t *testing.T) {
	ca, err := identity.CreateCA(t.TempDir(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "control-nodes.json")
	gone := []Node{{Node: "us-c1", Addr: "127.0.0.1:1"}}
	eu := start(t, ca, "eu", "eu-c1", map[string][]Node{"eu": nil, "us": gone}, file)
	us := start(t, ca, "us", "us-c9", map[string][]Node{"us": nil, "eu": {{Node: "eu-c1", Addr: eu.addr}}}, "")
	eu.own.Store(&List{Region: "eu", Applied: 7, Nodes: []Node{{Node: "eu-c1", Addr: eu.addr}, {Node: "eu-r1", Addr: "10.0.0.1:1", Reader: true}}})
	if got := us.book.Addresses("eu"); !slices.Equal(got, []string{eu.addr}) {
		t.Errorf("before anything was said: %v", got)
	}
	follow(t, eu.book) // which finds nobody
	follow(t, us.book)
	eventually(t, "us knows eu's reader", func() bool { return len(us.book.Nodes("eu")) == 2 && us.book.Nodes("eu")[1].Reader })
	if got := eu.book.Addresses("us"); !slices.Equal(got, []string{"127.0.0.1:1"}) {
		t.Errorf("a node that is no member of its region was listed: %v", got)
	}
	us.own.Store(&List{Region: "us", Applied: 9, Nodes: []Node{{Node: "us-c9", Addr: us.addr}}})
	eventually(t, "eu is told where us is", func() bool { return slices.Equal(eu.book.Addresses("us"), []string{us.addr}) })
	// What a node that was removed remembers does not count.
	eu.book.Learn(&List{Region: "us", Applied: 8, Nodes: gone})
	if got := eu.book.Addresses("us"); !slices.Equal(got, []string{us.addr}) {
		t.Errorf("an older list was taken: %v", got)
	}
	// A region that begins anew counts from the start.
	eu.book.Learn(&List{Region: "us", Life: 1, Applied: 2, Nodes: []Node{{Node: "us-c1", Addr: "10.0.0.7:7"}}})
	if got := eu.book.Addresses("us"); got[0] != "10.0.0.7:7" {
		t.Errorf("a later life was not taken: %v", got)
	}
	// After a restart: what was learned first, then what is configured.
	again := Open(Config{Cluster: cluster, Region: "eu", First: map[string][]Node{"us": gone}, File: file})
	if got := again.Addresses("us"); !slices.Equal(got, []string{"10.0.0.7:7", "127.0.0.1:1"}) {
		t.Errorf("from disk: %v", got)
	}
	again.Learn(&List{Region: "us", Applied: 1, Nodes: gone}) // anything heard is newer than the file
	if got := again.Addresses("us"); !slices.Equal(got, []string{"127.0.0.1:1"}) {
		t.Errorf("the file outlasted what was heard: %v", got)
	}
}

// A list stands for itself while it is heard; after that whoever is configured
// is asked as well.
func TestFirstContactsComeBack(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		b := Open(Config{Cluster: cluster, Region: "eu", First: map[string][]Node{"eu": {{Node: "c1", Addr: "a:1"}}}})
		b.Learn(&List{Region: "eu", Nodes: []Node{{Node: "c2", Addr: "b:1"}}})
		if got := b.Addresses("eu"); !slices.Equal(got, []string{"b:1"}) {
			t.Errorf("at first: %v", got)
		}
		time.Sleep(fresh + time.Second)
		if got := b.Addresses("eu"); !slices.Equal(got, []string{"b:1", "a:1"}) {
			t.Errorf("once nobody was heard: %v", got)
		}
		b.Learn(&List{Region: "mars", Nodes: []Node{{Node: "c2", Addr: "b:1"}}})
		if got := b.Addresses("mars"); len(got) != 0 {
			t.Errorf("a region that is not configured was learned: %v", got)
		}
	})
}

// Nobody speaks for another region, and who asks or answers must be a control node.
func TestWhoMaySpeak(t *testing.T) {
	ca, err := identity.CreateCA(t.TempDir(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	us := start(t, ca, "us", "us-c1", map[string][]Node{"us": nil, "eu": nil, "ap": nil}, "")
	us.own.Store(&List{Region: "us", Nodes: []Node{{Node: "us-c1", Addr: us.addr}}})
	as := func(region, role, body string) int {
		t.Helper()
		tr := &http.Transport{TLSClientConfig: bundle(t, ca, region, role, "n1").Client([]string{"http/1.1"}, identity.AllowControl(""))}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Post("https://"+us.addr+Path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	good := func(region string) string {
		b, _ := json.Marshal(List{Region: region, Nodes: []Node{{Node: "x", Addr: "10.0.0.1:1"}}})
		return string(b)
	}
	for _, tc := range []struct {
		region, role, body string
		want               int
	}{
		{"eu", identity.RoleControl, good("ap"), 400},
		{"us", identity.RoleData, "", 400},
		{"eu", identity.RoleControl, `{"region":"eu","nodes":[]}`, 400},
		{"eu", identity.RoleControl, `{"region":"eu","nodes":[{"node":"x","addr":"nowhere"}]}`, 400},
		{"eu", identity.RoleControl, good("eu") + "x", 400},
		{"eu", identity.RoleControl, fmt.Sprintf(`{"region":"eu","nodes":[%s{"node":"x","addr":"a:1"}]}`, strings.Repeat(`{"node":"x","addr":"a:1"},`, 70)), 400},
		{"eu", identity.RoleControl, strings.Repeat(" ", maxList+1), 400},
		{"eu", identity.RoleControl, "", 200},
		{"eu", identity.RoleControl, good("eu"), 200},
	} {
		if got := as(tc.region, tc.role, tc.body); got != tc.want {
			t.Errorf("a %s node of %s says %.60s: %d, want %d", tc.role, tc.region, tc.body, got, tc.want)
		}
	}
	if got := us.book.Addresses("ap"); len(got) != 0 {
		t.Errorf("eu spoke for ap: %v", got)
	}
	if got := us.book.Addresses("eu"); len(got) != 1 {
		t.Errorf("eu did not speak for itself: %v", got)
	}
	// An answer by a node of another region is not taken either, whatever it says.
	us.own.Store(&List{Region: "eu", Applied: 99, Nodes: []Node{{Node: "us-c1", Addr: us.addr}}})
	ap := start(t, ca, "ap", "ap-c1", map[string][]Node{"eu": nil}, "")
	if err := ap.book.askOne(t.Context(), "eu", us.addr); err == nil {
		t.Error("us answered for eu")
	}
}

// A damaged file is no reason not to start.
func TestDamagedFile(t *testing.T) {
	for _, text := range []string{"", "{}", "[{", `[{"region":"us","nodes":[{"node":"a","addr":"b"}]}]`, `[{"region":"us","nodes":[{"node":"a","addr":"b:1"}]}]x`} {
		file := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b := Open(Config{Cluster: cluster, Region: "eu", First: map[string][]Node{"us": {{Node: "c1", Addr: "a:1"}}}, File: file})
		if got := b.Addresses("us"); !slices.Equal(got, []string{"a:1"}) {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte(`{"region":"us","life":1,"applied":2,"nodes":[{"node":"a","addr":"b:1","reader":true}]}`))
	f.Add([]byte(`{"region":"us","nodes":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseList(b)
		if err != nil {
			return
		}
		text, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseList(text); err != nil || !slices.Equal(again.Nodes, l.Nodes) {
			t.Fatalf("%s: %v", text, err)
		}
	})
}
