// Package certs takes over what is put into the files of certificates while a node
// runs. Who issues them, and what else a new one must reach, is the caller's.
package certs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane/identity"
)

// lookEvery is how often the files of certificates are looked at.
const lookEvery = 30 * time.Second

// Set are files that only fit together: a certificate, its key, and for
// a node's the roots.
type Set struct {
	name    string // as logs and metrics say
	paths   []string
	take    func(text [][]byte) error // puts them in use, or leaves what is
	expires func() time.Time          // of what is in use

	used, refused [sha256.Size]byte // what was found last
}

// OfNode are those of the node's certificate. Once taken they go to then.
func OfNode(cfg *config.Config, bundle *identity.Bundle, then func(cert, key, roots []byte)) *Set {
	dir := cfg.Identity.Dir
	return &Set{
		name:  "node",
		paths: []string{filepath.Join(dir, "node.pem"), filepath.Join(dir, "node.key"), filepath.Join(dir, "roots.pem")},
		take: func(text [][]byte) error {
			if err := bundle.Replace(text[0], text[1], text[2]); err != nil {
				return err
			}
			then(text[0], text[1], text[2])
			return nil
		},
		expires: bundle.Expires,
	}
}

// OfAPI are those of the certificate that clients or operators see.
func OfAPI(cfg *config.Config, api *identity.PublicCert, then func(cert, key []byte)) *Set {
	return &Set{
		name:  "api",
		paths: []string{cfg.Identity.TLSCert, cfg.Identity.TLSKey},
		take: func(text [][]byte) error {
			if err := api.Replace(text[0], text[1], time.Now()); err != nil {
				return err
			}
			then(text[0], text[1])
			return nil
		},
		expires: api.Expires,
	}
}

// Renewal takes over what is put into the files of certificates while the node
// runs. Each set is taken alone, so that one that is broken keeps no other.
type Renewal struct {
	sets   []*Set
	logger *slog.Logger
	Also   func() error // looks at what else may change while the node runs; nil = nothing does

	failed string // what Also said last, so that it is logged once
}

// Open registers when the certificates in use expire.
func Open(logger *slog.Logger, registerer prometheus.Registerer, sets ...*Set) (*Renewal, error) {
	for _, s := range sets {
		err := registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ringmain_certificate_expires", Help: "When the certificate in use expires, in Unix seconds.",
			ConstLabels: prometheus.Labels{"certificate": s.name},
		}, func() float64 { return float64(s.expires().Unix()) }))
		if err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return &Renewal{sets: sets, logger: logger.With("room", "certificates")}, nil
}

// Follow looks at once, then every 30 s and on SIGHUP, until ctx ends.
func (r *Renewal) Follow(ctx context.Context) { r.follow(ctx, lookEvery) }

func (r *Renewal) follow(ctx context.Context, every time.Duration) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGHUP)
	defer signal.Stop(asked)
	for {
		for _, s := range r.sets {
			s.look(r.logger)
		}
		r.lookElsewhere()
		// Apart by chance, so that a cluster's nodes do not look all at once.
		wait := time.NewTimer(every - every/10 + rand.N(every/5)) //nolint:gosec // G404: no secret
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-asked:
			wait.Stop()
			r.logger.Info("asked to look at the certificates")
		case <-wait.C:
		}
	}
}

func (r *Renewal) lookElsewhere() {
	if r.Also == nil {
		return
	}
	said := ""
	if err := r.Also(); err != nil {
		said = err.Error()
	}
	if said != "" && said != r.failed {
		r.logger.Error("the configuration cannot be used, and what is in use stays: mend the file, it is looked at again", "error", said)
	}
	r.failed = said
}

// look takes what the files hold if it is not in use yet. What is refused is
// tried again at each look, since it may be for a later time, and logged once.
func (s *Set) look(logger *slog.Logger) {
	text, found, err := s.read()
	if err == nil && found == s.used {
		return
	}
	if err == nil {
		err = s.take(text)
	}
	if err == nil {
		s.used, s.refused = found, [sha256.Size]byte{}
		logger.Info("a certificate is in use", "certificate", s.name, "expires", s.expires())
		return
	}
	if found != s.refused {
		s.refused = found
		logger.Error("the files of a certificate cannot be used, and what is in use stays: mend the files, they are looked at again",
			"certificate", s.name, "in_use_expires", s.expires(), "error", err)
	}
}

// read gives the files' texts and what tells them from others. What cannot be
// read is told apart by its error.
func (s *Set) read() (text [][]byte, found [sha256.Size]byte, err error) {
	sum := sha256.New()
	for _, path := range s.paths {
		b, readErr := os.ReadFile(path)
		err = errors.Join(err, readErr)
		text = append(text, b)
		part := sha256.Sum256(b)
		_, _ = sum.Write(part[:]) // never fails
	}
	if err != nil {
		_, _ = sum.Write([]byte(err.Error()))
	}
	sum.Sum(found[:0])
	return text, found, err
}

// ReadAPI reads the certificate that clients or operators see.
func ReadAPI(cfg *config.Config) (*identity.PublicCert, error) {
	cert, err := os.ReadFile(cfg.Identity.TLSCert)
	if err != nil {
		return nil, fmt.Errorf("identity.tls_cert: %w", err)
	}
	key, err := os.ReadFile(cfg.Identity.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("identity.tls_key: %w", err)
	}
	api, err := identity.NewPublicCert(cert, key)
	if err != nil {
		return nil, fmt.Errorf("identity.tls_cert, identity.tls_key: %w", err)
	}
	return api, nil
}
