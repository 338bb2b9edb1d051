package receipt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"ringmain/dataplane/receipt/proof"
)

// Where the node's tag stands in a request id, and how long it is.
const (
	TagAt   = proof.TagAt
	TagSize = proof.TagSize
)

// NodeTag is what a node's request ids carry at TagAt.
func NodeTag(region, node string) string { return proof.NodeTag(region, node) }

// AnsweredBy reports whether that node may have answered the request: ask it.
func AnsweredBy(requestID, region, node string) bool {
	return proof.AnsweredBy(requestID, region, node)
}

// ValidID reports whether a request id has the form of ours.
func ValidID(id string) bool { return proof.ValidID(id) }

// ParseConfinement reads what a node said of its worker: Confinement.String.
func ParseConfinement(s string) (c Confinement, ok bool) { return proof.ParseConfinement(s) }

// find gives nil if this node has none, and an error if that is not known.
func (l *Log) find(ctx context.Context, requestID string) (*proof.Entry, error) {
	if id := l.signer.ID(); !AnsweredBy(requestID, id.Region, id.Node) {
		return nil, nil //nolint:nilnil // there is none
	}
	e, err := l.recentEntry(ctx, requestID)
	if err != nil {
		return nil, err
	}
	if e == nil && l.cfg.Ask != nil {
		b, err := l.ask(ctx, requestID)
		if err == nil && b != nil {
			e, err = proof.DecodeEntry(b)
		}
		if err != nil {
			l.log.Warn("the keeper could not be asked for a receipt", "request", requestID, "error", err)
			return nil, err
		}
	}
	if e == nil || e.Facts().RequestID != requestID {
		return nil, nil //nolint:nilnil // there is none
	}
	return e, nil
}

func (l *Log) document(e *proof.Entry) ([]byte, error) {
	doc, err := e.Document()
	if err != nil {
		l.log.Error("a receipt could not be written out", "request", e.Facts().RequestID, "error", err)
	}
	return doc, err //nolint:wrapcheck // logged
}

// ask puts one question to the keeper, among a few at a time.
func (l *Log) ask(ctx context.Context, requestID string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	select {
	case l.asks <- struct{}{}:
		defer func() { <-l.asks }()
		return l.cfg.Ask(ctx, requestID)
	case <-ctx.Done():
		return nil, ctx.Err() //nolint:wrapcheck // Find says of what
	}
}

// askWait bounds the wait for the keeper, which may have to read its disk.
const askWait = 2 * time.Second

// signWait bounds the wait for the checkpoint of a leaf that was committed.
const signWait = 1200 * time.Millisecond

var errNotSigned = errors.New("receipt: it waits for a checkpoint that is late: ask again shortly")

// recentEntry looks in memory. None is (nil, nil).
func (l *Log) recentEntry(ctx context.Context, requestID string) (*proof.Entry, error) {
	key := proof.RequestKey(requestID)
	var timeout <-chan time.Time
	for {
		l.mu.Lock()
		recent := slices.Clone(l.recent)
		waits := slices.Contains(l.open.keys, key)
		for _, p := range l.waiting {
			waits = waits || slices.Contains(p.keys, key)
		}
		signed := l.signed
		l.mu.Unlock()
		for _, k := range slices.Backward(recent) {
			if e := k.batch.Find(requestID); e != nil {
				return e, nil
			}
		}
		if !waits {
			return nil, nil //nolint:nilnil // there is none
		}
		if timeout == nil {
			timer := time.NewTimer(signWait)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case <-signed:
		case <-timeout:
			return nil, errNotSigned
		case <-ctx.Done():
			return nil, errNotSigned
		}
	}
}

// Unpinned is the residency of a request that may run anywhere, as facts name it.
const Unpinned = "unpinned"

// Within returns the receipt of a request that this node answered, for a caller
// of org or key, to be read in jurisdiction: one of another org, or that is
// pinned to another jurisdiction, is as if there were none. Empty = it does not
// leave this node's. It waits for a checkpoint that is due, and for the keeper
// at most as long as ctx. None is (nil, nil); an error: there may be one.
func (l *Log) Within(ctx context.Context, requestID, org, key, jurisdiction string) ([]byte, error) {
	e, err := l.find(ctx, requestID)
	if e == nil || err != nil {
		return nil, err
	}
	f := e.Facts()
	if (org == "" || org != f.Org) && (key == "" || key != f.Key) {
		return nil, nil
	}
	if r := f.Residency; jurisdiction != "" && r != "" && r != Unpinned && r != jurisdiction {
		return nil, nil
	}
	return l.document(e)
}

// PeerPath is where a worker answers other workers' questions for receipts,
// on its peer listener: PeerPath + request id, with PeerOrg and PeerKey.
const (
	PeerPath = "/internal/v1/receipts/"
	PeerOrg  = "Ringmain-Org"
	PeerKey  = "Ringmain-Key"
)

// maxDocument bounds a receipt, in bytes.
const maxDocument = 64 << 10

// ServePeer answers AskPeer. Mutual TLS has said who asks: a data node, which
// asks for a caller that it identified, and whose jurisdiction that is.
func (l *Log) ServePeer(rw http.ResponseWriter, r *http.Request, jurisdiction string) {
	id := strings.TrimPrefix(r.URL.Path, PeerPath)
	var doc []byte
	var err error
	if r.Method == http.MethodGet && ValidID(id) && jurisdiction != "" {
		doc, err = l.Within(r.Context(), id, r.Header.Get(PeerOrg), r.Header.Get(PeerKey), jurisdiction)
	}
	if err != nil {
		http.Error(rw, "it cannot be asked for at the moment", http.StatusServiceUnavailable)
		return
	}
	if doc == nil {
		http.Error(rw, "no such receipt", http.StatusNotFound)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	_, _ = rw.Write(doc) //nolint:gosec // G705: JSON, and declared as such; a peer that left is noticed there
}

// AskPeer asks the worker at base ("https://host", as the transport dials it)
// for a receipt that this caller may see. No such receipt is (nil, nil).
func AskPeer(ctx context.Context, transport http.RoundTripper, base, requestID, org, key string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+PeerPath+url.PathEscape(requestID), nil)
	if err != nil {
		return nil, fmt.Errorf("receipt: ask a peer: %w", err)
	}
	r.Header[PeerOrg], r.Header[PeerKey] = []string{org}, []string{key}
	res, err := transport.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("receipt: ask a peer: %w", err)
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or given up
	if res.StatusCode == http.StatusNotFound {
		return nil, nil
	}
	doc, err := io.ReadAll(io.LimitReader(res.Body, maxDocument+1))
	if err == nil && (res.StatusCode != http.StatusOK || len(doc) > maxDocument) {
		err = fmt.Errorf("status %d, %d bytes", res.StatusCode, len(doc))
	}
	if err != nil {
		return nil, fmt.Errorf("receipt: ask a peer: %w", err)
	}
	return doc, nil
}
