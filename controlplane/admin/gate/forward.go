package gate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry/ledger"
)

// redirect tells another control node whom to ask instead.
func (g *Gate) redirect(w http.ResponseWriter, v verdict) {
	if v.regions[0] == g.cfg.Region && v.leader == "" {
		problem.Write(w, controlplane.ErrNoLeader)
		return
	}
	w.Header().Set(api.HeaderHome, v.regions[0])
	if v.leader != "" {
		w.Header().Set(api.HeaderLeader, v.leader)
	}
	problem.Write(w, problem.New(http.StatusMisdirectedRequest, api.CodeMisdirected, "", "Another control node writes this shard: ask that one."))
}

// Headers that go with a forwarded request and come back with its answer.
var (
	requestHeaders  = []string{"Accept", "Content-Type", "If-Match", api.HeaderIdempotency, api.HeaderAcknowledge, api.HeaderConsistency}
	responseHeaders = []string{"Content-Type", "Etag", "Retry-After", api.HeaderErrorCode, api.HeaderPosition, api.HeaderAnswered, api.HeaderReplayed, api.HeaderAcknowledged, api.HeaderConsistency, api.HeaderAge}
)

// forward sends the whole request to one of regions and passes the answer on.
// Before it passes on an acknowledged write, it waits for this node's own copy,
// so that the caller's next read here sees what was written.
func (g *Gate) forward(w http.ResponseWriter, r *http.Request, x *exchange, v verdict, write bool, here func()) {
	ctx := r.Context()
	if v.orHere {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, leaderIn)
		defer cancel()
	}
	resp, err := g.ask(w, r.WithContext(ctx), x, v.regions)
	var answer []byte
	if err == nil {
		defer resp.Body.Close()
		if answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer)); err != nil {
			// The answer was cut. A read can simply be repeated; of a write nobody knows.
			err = fmt.Errorf("%w: %w", controlplane.ErrUnreachable, err)
			if write {
				err = fmt.Errorf("%w: %w", controlplane.ErrUncertain, err)
			}
		}
	}
	if err != nil {
		g.cfg.Logger.Warn("management request not forwarded", "to", v.regions, "err", err, "request_id", w.Header().Get(api.HeaderRequestID))
		if v.orHere {
			here()
			return
		}
		problem.Write(w, err)
		return
	}
	for _, name := range responseHeaders {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	if position := resp.Header.Get(api.HeaderPosition); position != "" {
		w.Header().Set(api.HeaderVisible, g.visible(r.Context(), position))
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(answer) // the client is gone: nobody to tell
}

// ask tries the regions in turn until one can be reached.
func (g *Gate) ask(w http.ResponseWriter, r *http.Request, x *exchange, regions []string) (*http.Response, error) {
	if g.cfg.Forwarder == nil {
		return nil, controlplane.ErrUnreachable
	}
	header := make(http.Header)
	for _, name := range requestHeaders {
		if v := r.Header.Get(name); v != "" {
			header.Set(name, v)
		}
	}
	header.Set(api.HeaderRequestID, w.Header().Get(api.HeaderRequestID))
	header.Set(api.HeaderActor, x.Actor)
	header.Set(api.HeaderEntry, g.cfg.Region+"/"+g.cfg.Node)
	err := controlplane.ErrUnreachable
	for _, region := range regions {
		g.metrics.forwarded.WithLabelValues(region).Inc()
		out := r.Clone(r.Context())
		out.Header, out.ContentLength = header, int64(len(x.body))
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(x.body)), nil }
		out.Body, _ = out.GetBody()
		var resp *http.Response
		if resp, err = g.cfg.Forwarder.Forward(r.Context(), region, out); err == nil {
			return resp, nil
		}
		if !errors.Is(err, controlplane.ErrUnreachable) {
			break
		}
	}
	return nil, err
}

// visible waits until this node's copy has reached position, for a second at
// most, and says whether it has.
func (g *Gate) visible(ctx context.Context, position string) string {
	const here, home = "here", "home"
	shard, point, err := api.ParsePosition(position)
	if err != nil {
		return home
	}
	var held bool
	g.cfg.Store.View(func(s *ledger.State) { _, held = s.Shard(shard) })
	if !held {
		return home
	}
	ctx, cancel := context.WithTimeout(ctx, visibleIn)
	defer cancel()
	if g.cfg.Store.Wait(ctx, shard, point) != nil {
		return home
	}
	return here
}

// Ask posts in to the leader of region, in the name of the present actor and at
// the level that he asked for, and reads the answer into out. If something was
// written, it returns once this node's copy shows it. Path is below /admin/v1.
func (g *Gate) Ask(ctx context.Context, region, path string, in, out any) error {
	if g.cfg.Forwarder == nil {
		return controlplane.ErrUnreachable
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://leader.invalid/admin/v1"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	x := records.RequestOf(ctx)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(api.HeaderActor, x.Actor)
	r.Header.Set(api.HeaderEntry, g.cfg.Region+"/"+g.cfg.Node)
	if x.Level.RegionOnly() {
		r.Header.Set(api.HeaderAcknowledge, api.AcknowledgedRegion)
	}
	resp, err := g.cfg.Forwarder.Forward(ctx, region, r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody))
	if err != nil {
		return fmt.Errorf("%w: %w", controlplane.ErrUncertain, err)
	}
	if resp.StatusCode/100 != 2 {
		p := new(api.Problem)
		if json.Unmarshal(answer, p) != nil || p.Code == "" {
			return fmt.Errorf("%w: region %s answers %s", controlplane.ErrUncertain, region, resp.Status)
		}
		return p
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%w: region %s: %w", controlplane.ErrUncertain, region, err)
	}
	if shard, point, err := api.ParsePosition(resp.Header.Get(api.HeaderPosition)); err == nil {
		if err := g.cfg.Store.Wait(ctx, shard, point); err != nil {
			return fmt.Errorf("%w: this region has not heard of the step yet: %w", controlplane.ErrUncertain, err)
		}
	}
	return nil
}
