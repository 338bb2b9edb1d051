package exchange

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/body"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/caller"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/link"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/view"
)

// watched is a client that asks for its receipt as soon as it has the end.
type watched struct {
	*httptest.ResponseRecorder
	end  []byte
	find func() bool
	had  bool
}

func (w *watched) Write(b []byte) (int, error) {
	if bytes.Contains(b, w.end) {
		w.had = w.find()
	}
	return w.ResponseRecorder.Write(b)
}

// TestTheReceiptOfAStreamIsThereBeforeItsEnd: whoever has the closing event, or
// the error in its place, finds the receipt.
func TestTheReceiptOfAStreamIsThereBeforeItsEnd(t *testing.T) {
	ca, err := identity.CreateCA(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.IssueNode(identity.ID{Region: "us-east", Role: identity.RoleData, Node: "d1"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	log, err := receipt.Open(t.Context(), receipt.Config{Cert: issued.Chain, Key: issued.Key, Roots: issued.Roots, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	node := New(Config{
		Setup: &link.Setup{Region: "us-east", Node: "d1"}, Store: view.New(view.Config{}),
		Receipts: log, Metrics: NewMetrics(), Log: slog.New(slog.DiscardHandler), WriteStall: time.Minute,
		Emit: func([]byte) error { return nil }, Confined: func() link.Confinement { return link.Confinement{} },
	})
	for name, b := range map[string]relay.Batch{
		"complete": {Forward: []byte("data: {}\n\n"), Last: []byte("data: [DONE]\n\n")},
		"broken":   {Forward: []byte("data: {}\n\n"), Broken: &relay.Broken{Outcome: breaker.Transport}},
	} {
		t.Run(name, func(t *testing.T) {
			rw := &watched{ResponseRecorder: httptest.NewRecorder(), end: []byte(`"error"`)}
			if b.Last != nil {
				rw.end = b.Last
			}
			x := node.newExchange(rw, httptest.NewRequest(http.MethodPost, "/v1/chat/completions", nil), "/v1/chat/completions")
			x.endpoint, _ = dialect.EndpointOf(x.path)
			x.known, x.caller = true, caller.Caller{Org: &registry.Record{}, Project: &registry.Record{}}
			x.caller.Key.ID = "key_1"
			x.body = body.NewPool(1).Get()
			rw.find = func() bool {
				doc, err := log.Within(context.Background(), x.id, "", "key_1", "")
				return err == nil && doc != nil
			}
			f := &flow{x: x, res: &relay.Result{Stream: &relay.Stream{}}, control: http.NewResponseController(rw), blamed: true}
			func() {
				defer func() {
					if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
						panic(p)
					}
				}()
				if b.Last != nil {
					f.last(b)
				} else {
					f.broken(b)
				}
			}()
			if !bytes.Contains(rw.Body.Bytes(), rw.end) || !rw.had {
				t.Errorf("the receipt was there: %t, of %q", rw.had, rw.Body)
			}
		})
	}
}
