package roster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
)

// Path of protocol version 1, served by Handler: POST the own region's List,
// or nothing; the answer is the answering region's.
const Path = "/roster/v1/exchange"

const askIn = 3 * time.Second // one node

// Handler serves Path on a mutual-TLS listener made by identity.
func (b *Book) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := b.exchange(w, r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
}

func (b *Book) exchange(w http.ResponseWriter, r *http.Request) error {
	if r.TLS == nil {
		return errors.New("lists of control nodes are exchanged over mutual TLS only")
	}
	id, err := identity.PeerID(*r.TLS)
	if err != nil {
		return err
	}
	if id.Cluster != b.cfg.Cluster {
		return controlplane.ErrWrongCluster
	}
	if err := identity.AllowControl("")(id); err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(r.Body, maxList+1))
	if err != nil {
		return err
	}
	if len(text) > 0 {
		if err := b.take(text, id.Region); err != nil {
			return err
		}
	}
	own := b.Encoded()
	if own == nil {
		http.Error(w, "this node is no member of its region yet: ask another", http.StatusServiceUnavailable)
		return nil
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(own) // the asker is gone: it asks again
	return nil
}

// take learns what a control node of region says of its region.
func (b *Book) take(text []byte, region string) error {
	l, err := ParseList(text)
	if err != nil {
		return err
	}
	if l.Region != region {
		return fmt.Errorf("roster: a node of %s speaks for region %q", region, l.Region)
	}
	b.Learn(l)
	return nil
}

// Encoded is this region's list as ParseList reads it; nil on a node that is no
// member, or of another kind.
func (b *Book) Encoded() []byte {
	if b.cfg.Own == nil {
		return nil
	}
	l := b.cfg.Own()
	if len(l.Nodes) == 0 {
		return nil
	}
	text, err := json.Marshal(&l)
	if err != nil {
		return nil // of strings and numbers: it can be encoded
	}
	return text
}

// Follow asks the other regions, until ctx ends.
func (b *Book) Follow(ctx context.Context) {
	var all sync.WaitGroup
	for region := range b.cfg.First {
		if region != b.cfg.Region {
			all.Go(func() { b.follow(ctx, region) })
		}
	}
	all.Wait()
}

func (b *Book) follow(ctx context.Context, region string) {
	const soon = 500 * time.Millisecond
	for window := soon; ; window = min(2*window, b.cfg.Every) {
		wait := rand.N(window) //nolint:gosec // spreads questions, guards nothing
		if err := b.ask(ctx, region); err == nil {
			window, wait = soon, b.cfg.Every/2+rand.N(b.cfg.Every) //nolint:gosec // as above
		} else if ctx.Err() == nil {
			b.cfg.Logger.Debug("no control node of a region says who they are", "of", region, "err", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// ask exchanges lists with one node of the region, whichever answers.
func (b *Book) ask(ctx context.Context, region string) error {
	addrs := slices.Clone(b.Addresses(region))
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] }) //nolint:gosec // spreads questions, guards nothing
	var errs error
	for _, addr := range addrs {
		err := b.askOne(ctx, region, addr)
		if err == nil {
			return nil
		}
		errs = errors.Join(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return errs
}

func (b *Book) askOne(ctx context.Context, region, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, askIn)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+Path, bytes.NewReader(b.Encoded()))
	if err != nil {
		return err
	}
	resp, err := b.cfg.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.TLS == nil {
		return errors.New("it answers without TLS")
	}
	id, err := identity.PeerID(*resp.TLS)
	if err != nil {
		return err
	}
	if err := identity.AllowControl(region)(id); err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxList+1))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK { // 404: a release that says nothing of its members
		return fmt.Errorf("%s answers %d", id, resp.StatusCode)
	}
	return b.take(text, region)
}
