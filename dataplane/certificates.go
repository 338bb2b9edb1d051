package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/edge"
	"ringmain/dataplane/link"
)

// certificates are what the worker shows its clients and other nodes. New
// connections use what is current; those that are open go on.
type certificates struct {
	api  *identity.PublicCert
	node *identity.Bundle

	mu  sync.Mutex
	now link.Setup // whose certificates, keys and roots are in use
}

func openCertificates(s *link.Setup) (*certificates, error) {
	node, err := identity.NewBundle(s.NodeCert, s.NodeKey, s.Roots)
	if err != nil {
		return nil, fmt.Errorf("dataplane: node certificate: %w", err)
	}
	api, err := identity.NewPublicCert(s.APICert, s.APIKey)
	if err != nil {
		return nil, fmt.Errorf("dataplane: certificate of the API: %w", err)
	}
	return &certificates{api: api, node: node, now: *s}, nil
}

// revoke refuses a node that was revoked, and ends what this one has with it.
func (c *certificates) revoke(r registry.Revocation) {
	if region, role, node, ok := registry.ParseNodeID(r.ID); ok && r.Kind == registry.KindNode {
		c.node.Revoke(identity.ID{Cluster: c.node.ID().Cluster, Region: region, Role: role, Node: node})
	}
}

// revoked reports whether this node itself is.
func (c *certificates) revoked() bool {
	select {
	case <-c.node.Revoked():
		return true
	default:
		return false
	}
}

// Renew takes the certificates, keys, roots and limits of the edge of a newer
// setup, without touching a connection, and ignores all else in it. Of the API's and the
// node's each is taken alone; one that cannot be used is an error, and what
// was in use stays.
func (w *Worker) Renew(s *link.Setup) error {
	c := w.certs
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	if s.Edge != c.now.Edge {
		w.guard.Set(edge.Limits(s.Edge))
		c.now.Edge = s.Edge
		w.log.Info("the limits of the edge are changed")
	}
	if !bytes.Equal(s.APICert, c.now.APICert) || !bytes.Equal(s.APIKey, c.now.APIKey) {
		if err := c.api.Replace(s.APICert, s.APIKey, time.Now()); err != nil {
			errs = append(errs, fmt.Errorf("certificate of the API: %w", err))
		} else {
			c.now.APICert, c.now.APIKey = s.APICert, s.APIKey
			w.log.Info("the API's certificate is renewed", "expires", c.api.Expires())
		}
	}
	if !bytes.Equal(s.NodeCert, c.now.NodeCert) || !bytes.Equal(s.NodeKey, c.now.NodeKey) || !bytes.Equal(s.Roots, c.now.Roots) {
		err := c.node.Replace(s.NodeCert, s.NodeKey, s.Roots)
		if err == nil {
			err = w.receipts.Renew(s.NodeCert, s.NodeKey, s.Roots)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("node certificate: %w", err))
		} else {
			c.now.NodeCert, c.now.NodeKey, c.now.Roots = s.NodeCert, s.NodeKey, s.Roots
			w.log.Info("the node's certificate is renewed", "expires", c.node.Expires())
		}
	}
	return errors.Join(errs...)
}

var workerExpires = prometheus.NewDesc("ringmain_worker_certificate_expires",
	"When the certificate that the worker shows expires, in Unix seconds.", []string{"certificate"}, nil)

// Describe and Collect make the certificates a family of metrics.
func (c *certificates) Describe(ch chan<- *prometheus.Desc) { ch <- workerExpires }

func (c *certificates) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(workerExpires, prometheus.GaugeValue, float64(c.api.Expires().Unix()), "api")
	ch <- prometheus.MustNewConstMetric(workerExpires, prometheus.GaugeValue, float64(c.node.Expires().Unix()), "node")
}
