package age

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/feedkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answering is a node that answers nothing but how far it is.
type answering struct{ *Copy }

func (answering) Applied(ledger.Outcome, controlplane.Epoch) {}
func (answering) Close() error                               { return nil }

// TestAge: a copy is as old as the last question to the leader that it has
// caught up with, also while the leader answers and heartbeats arrive.
func TestAge(t *testing.T) {
	ca := feedkit.NewCA(t)
	var leads atomic.Bool
	leads.Store(true)
	lead := ca.Node("eu-fra", "c1", func(n *feedkit.Node) feedkit.Hub {
		return answering{New(Config{Cluster: feedkit.Cluster, Region: "eu-fra", Node: "c1", Source: n, Leader: func() (string, string, bool) { return "c1", "", leads.Load() }})}
	})
	own := ca.Node("eu-fra", "c2", func(n *feedkit.Node) feedkit.Hub { return answering{New(Config{})} })
	h := feedkit.NewHistory("eu", "eu-fra", 1)
	e := h.Open("eu-fra", "eu-fra")
	lead.Accept(e)
	var leader atomic.Pointer[string]
	other := "c1"
	leader.Store(&other)
	a := New(Config{Cluster: feedkit.Cluster, Region: "eu-fra", Node: "c2", Source: own, Every: 5 * time.Millisecond,
		HTTP:   ca.Caller("eu-fra", identity.RoleControl, "c2").Client,
		Leader: func() (string, string, bool) { l := leader.Load(); return *l, lead.Addr, *l != "" }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	defer func() { cancel(); <-done }()
	stands := func(why string) {
		t.Helper()
		feedkit.Eventually(t, func() string { // what was asked before is through
			before := a.Contact()
			time.Sleep(30 * time.Millisecond)
			if a.Contact() != before {
				return "its age does not grow although " + why
			}
			return ""
		})
	}
	follows := func() {
		t.Helper()
		begun := time.Now()
		feedkit.Eventually(t, func() string {
			if !a.Contact().After(begun) {
				return "its copy stays old"
			}
			return ""
		})
	}
	stands("its copy is empty")
	if !a.Contact().IsZero() {
		t.Error("a copy that never was current has an age")
	}
	own.Accept(e)
	follows()
	late := h.Entry()
	lead.Accept(late)
	stands("the last entry does not arrive")
	own.Accept(late)
	follows()
	leads.Store(false)
	stands("nobody leads")
	leads.Store(true)
	follows()
	nobody := ""
	leader.Store(&nobody)
	stands("no leader is known")
	self := "c2"
	leader.Store(&self)
	follows()

	// Nobody else is told, and an answer by another node does not count.
	resp, err := ca.Caller("us-east", identity.RoleControl, "x1").Get("https://" + lead.Addr + feed.PathPosition)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("another region is answered %d", resp.StatusCode)
	}
	if _, err := a.position(t.Context(), "c3", lead.Addr); err == nil {
		t.Error("c1's answer was taken for c3's")
	}
	if at, err := a.position(t.Context(), "c1", lead.Addr); err != nil || at["eu"].Compare(controlplane.Point{}) <= 0 {
		t.Errorf("position %v, %v", at, err)
	}
}
