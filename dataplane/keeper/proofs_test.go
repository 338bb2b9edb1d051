package keeper

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/dataplane/link"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/receipt/proof"
)

// playReceipts lets a played worker sign receipts, if it was given a certificate.
func playReceipts(mux *http.ServeMux, a *link.Attendant) error {
	text := os.Getenv("KEEPER_TEST_CERT")
	if text == "" {
		return nil
	}
	var issued identity.Issued
	if err := json.Unmarshal([]byte(text), &issued); err != nil {
		return err
	}
	l, err := receipt.Open(context.Background(), receipt.Config{
		Cert: issued.Chain, Key: issued.Key, Roots: issued.Roots, Keep: a.KeepReceipts, Ask: a.AskReceipt,
		Tunables: receipt.Tunables{Every: 20 * time.Millisecond},
	})
	if err != nil {
		return err
	}
	a.WatchReceipts(l.Acked, l.Again)
	mux.HandleFunc("/answer", func(_ http.ResponseWriter, r *http.Request) {
		l.Commit(l.Reserve(), &receipt.Facts{
			RequestID: r.URL.Query().Get("id"), At: time.Now().UnixMilli(), Org: "org_1", EntryRegion: "us-east", EntryNode: "d1", Status: 200,
		})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(l.KeySet()) })
	mux.HandleFunc("/receipt", func(w http.ResponseWriter, r *http.Request) {
		doc, err := l.Within(r.Context(), r.URL.Query().Get("id"), "org_1", "", "")
		if doc == nil || err != nil {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(doc)
	})
	return nil
}

// A receipt is found after its worker was killed, after its keeper was, and
// after the keeper was away when it was signed.
func TestReceiptsSurvive(t *testing.T) {
	ca, err := identity.CreateCA(t.TempDir()+"/ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.IssueNode(identity.ID{Region: "us-east", Role: identity.RoleData, Node: "d1"}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := json.Marshal(issued)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("KEEPER_TEST_CERT", string(cert))
	anchors, err := proof.AnchorsOfPEM(ca.Roots())
	if err != nil {
		t.Fatal(err)
	}
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	n.startKeeper()
	first := n.state("loaded", func(s workerState) bool { return s.Loaded })
	answered := 0
	answer := func() string {
		t.Helper()
		answered++
		id := fmt.Sprintf("req_%s%s%012d", timeOf(time.Now()), receipt.NodeTag("us-east", "d1"), answered)
		if status, _, err := n.get("/answer?id=" + id); err != nil || status != http.StatusOK {
			t.Fatal(status, err)
		}
		return id
	}
	kept := func(ids ...string) {
		t.Helper()
		for _, id := range ids {
			var doc string
			within(t, "the receipt of "+id, func() bool {
				status, body, err := n.get("/receipt?id=" + id)
				doc = body
				return err == nil && status == http.StatusOK
			})
			if v := proof.Verify([]byte(doc), anchors, proof.Bodies{}); !v.Verified || v.Facts.RequestID != id {
				t.Fatalf("%s: %s", id, v.Reason)
			}
		}
	}
	sizes := func() (sizes []int64) { // of the segments on disk
		entries, err := os.ReadDir(n.args.Dir + "/receipts")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), ".rcp") {
				sizes = append(sizes, info.Size())
			}
		}
		return sizes
	}
	one := answer()
	kept(one)
	within(t, "it is on disk", func() bool { sizes := sizes(); return len(sizes) == 1 && sizes[0] > 1000 })
	n.killKeeper()
	two := answer() // signed while no keeper is there
	time.Sleep(50 * time.Millisecond)
	kept(one, two)
	n.startKeeper()
	kept(one, two)
	three := answer()
	kept(three)
	// The second keeper has two and three, which the worker kept for it.
	within(t, "both are on disk", func() bool { sizes := sizes(); return len(sizes) == 2 && sizes[1] > sizes[0]+500 }, func() string { return fmt.Sprint(sizes()) })
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.state("replaced", func(s workerState) bool { return s.PID != first.PID && s.Loaded })
	kept(one, two, three)
	if status, _, err := n.get("/receipt?id=" + one[:29] + "Z"); err != nil || status != http.StatusNotFound {
		t.Errorf("a receipt of no request: %d, %v", status, err)
	}
	within(t, "the key set names the key of the worker that was killed", func() bool {
		_, keys, err := n.get("/keys")
		return err == nil && strings.Count(keys, `"idc_role":"node"`) == 2
	})
	four := answer()
	kept(four)
	if err := n.stopKeeper(); err != nil {
		t.Error(err)
	}
}

// timeOf is how a request id begins.
func timeOf(at time.Time) string {
	const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	var b [10]byte
	ms := uint64(at.UnixMilli())
	for i := 9; i >= 0; i-- {
		b[i] = crockford[ms&31]
		ms >>= 5
	}
	return string(b[:])
}
