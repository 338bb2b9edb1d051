package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// holder is a node's certificates, and the files that they come from.
type holder struct {
	t      *testing.T
	ca     *identity.CA
	cfg    *config.Config
	bundle *identity.Bundle
	api    *identity.PublicCert

	mu    sync.Mutex
	log   bytes.Buffer
	taken []string
}

func (h *holder) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(b)
}

func (h *holder) logged(text string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Count(h.log.String(), text)
}

func (h *holder) note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.taken = append(h.taken, what)
}

var renewedID = identity.ID{Cluster: "test", Region: "eu-fra", Role: identity.RoleData, Node: "eu-fra-d1"}

func (h *holder) issueNode(id identity.ID, ttl time.Duration) {
	h.t.Helper()
	issued, err := h.ca.IssueNode(id, nil, ttl)
	if err == nil {
		err = issued.Write(h.cfg.Identity.Dir)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *holder) put(path string, b []byte) {
	h.t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *holder) issueAPI(ttl time.Duration) {
	h.t.Helper()
	issued, err := h.ca.IssueServer([]string{"localhost"}, nil, ttl)
	if err != nil {
		h.t.Fatal(err)
	}
	h.put(h.cfg.Identity.TLSCert, issued.Chain)
	h.put(h.cfg.Identity.TLSKey, issued.Key)
}

func newHolder(t *testing.T) (*holder, *Renewal, *prometheus.Registry) {
	t.Helper()
	ca, err := identity.CreateCA(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	h := &holder{t: t, ca: ca, cfg: &config.Config{Cluster: "test", Region: "eu-fra", Node: "eu-fra-d1"}}
	h.cfg.Identity.Dir = filepath.Join(dir, "node")
	h.cfg.Identity.TLSCert, h.cfg.Identity.TLSKey = filepath.Join(dir, "api.pem"), filepath.Join(dir, "api.key")
	h.issueNode(renewedID, time.Hour)
	h.issueAPI(time.Hour)
	if h.bundle, err = identity.LoadBundle(h.cfg.Identity.Dir); err != nil {
		t.Fatal(err)
	}
	if h.api, err = ReadAPI(h.cfg); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	r, err := Open(slog.New(slog.NewTextHandler(h, nil)), registry,
		OfNode(h.cfg, h.bundle, func(_, _, _ []byte) { h.note("node") }),
		OfAPI(h.cfg, h.api, func(_, _ []byte) { h.note("api") }))
	if err != nil {
		t.Fatal(err)
	}
	return h, r, registry
}

func (r *Renewal) lookAll() {
	for _, s := range r.sets {
		s.look(r.logger)
	}
}

// TestCertificatesFollowTheirFiles: what is put there whole and valid is used
// and passed on once; what is not changes nothing, is logged once for each
// change, keeps no other set, and is taken when it is mended.
func TestCertificatesFollowTheirFiles(t *testing.T) {
	h, r, registry := newHolder(t)
	const refused = "cannot be used"
	hours := func(at time.Time) int { return int(time.Until(at).Round(time.Minute).Hours()) }
	look := func(node, api, refusals int, taken string) {
		t.Helper()
		r.lookAll()
		r.lookAll() // changes nothing more
		if hours(h.bundle.Expires()) != node || hours(h.api.Expires()) != api {
			t.Errorf("node %s, api %s, want %d and %d hours", h.bundle.Expires(), h.api.Expires(), node, api)
		}
		if got := strings.Join(h.taken, " "); got != taken || h.logged(refused) != refusals {
			t.Errorf("taken %q, want %q; %d refusals, want %d: %s", got, taken, h.logged(refused), refusals, h.log.String())
		}
		h.taken = nil
		families, err := registry.Gather()
		if err != nil || len(families) != 1 || families[0].GetName() != "ringmain_certificate_expires" {
			t.Fatal(families, err)
		}
		for _, m := range families[0].GetMetric() {
			want := map[string]time.Time{"node": h.bundle.Expires(), "api": h.api.Expires()}[m.GetLabel()[0].GetValue()]
			if int64(m.GetGauge().GetValue()) != want.Unix() {
				t.Errorf("%v, want %s", m, want)
			}
		}
	}
	look(1, 1, 0, "node api")
	h.issueNode(renewedID, 2*time.Hour)
	look(2, 1, 0, "node")
	h.issueAPI(3 * time.Hour)
	look(2, 3, 0, "api")

	// Of another node, out of date, torn between two sets, gone.
	other := renewedID
	other.Node = "eu-fra-d2"
	h.issueNode(other, 4*time.Hour)
	look(2, 3, 1, "")
	h.ca.Now = func() time.Time { return time.Now().Add(-3 * time.Hour) }
	h.issueNode(renewedID, time.Hour)
	h.issueAPI(time.Hour)
	h.ca.Now = nil
	look(2, 3, 3, "")
	old, err := os.ReadFile(filepath.Join(h.cfg.Identity.Dir, "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	h.issueNode(renewedID, 5*time.Hour)
	whole, err := os.ReadFile(filepath.Join(h.cfg.Identity.Dir, "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	h.put(filepath.Join(h.cfg.Identity.Dir, "node.key"), old)
	h.issueAPI(6 * time.Hour) // is taken all the same
	look(2, 6, 4, "api")
	h.put(filepath.Join(h.cfg.Identity.Dir, "node.key"), whole)
	look(5, 6, 4, "node")
	if err := os.Remove(h.cfg.Identity.TLSKey); err != nil {
		t.Fatal(err)
	}
	look(5, 6, 5, "")
	h.put(filepath.Join(h.cfg.Identity.Dir, "roots.pem"), []byte("none"))
	look(5, 6, 6, "")
	if r.sets[0].used == [sha256.Size]byte{} {
		t.Error("what is in use was forgotten")
	}
}

// TestCertificatesOnSIGHUP: the signal has the files looked at before it is time.
func TestCertificatesOnSIGHUP(t *testing.T) {
	h, r, _ := newHolder(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.follow(ctx, time.Hour)
	}()
	defer func() {
		cancel()
		<-done
	}()
	until := func(what string, ok func() bool) {
		t.Helper()
		for start := time.Now(); !ok(); time.Sleep(2 * time.Millisecond) {
			if time.Since(start) > 10*time.Second {
				t.Fatal("waited in vain for " + what)
			}
		}
	}
	until("the first look", func() bool { return h.logged("certificate=api") == 1 })
	h.issueNode(renewedID, 5*time.Hour)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	until("the new certificate", func() bool { return time.Until(h.bundle.Expires()) > 4*time.Hour })
}

// TestConfigurationIsLookedAtAgain: what is wrong with it is logged once, and
// again only after it was well.
func TestConfigurationIsLookedAtAgain(t *testing.T) {
	var log strings.Builder
	wrong := errors.New("line 3: no")
	r := &Renewal{logger: slog.New(slog.NewTextHandler(&log, nil)), Also: func() error { return wrong }}
	r.lookElsewhere()
	r.lookElsewhere()
	wrong = nil
	r.lookElsewhere()
	wrong = errors.New("line 3: no")
	r.lookElsewhere()
	if n := strings.Count(log.String(), "line 3: no"); n != 2 {
		t.Errorf("logged %d times: %s", n, log.String())
	}
}
