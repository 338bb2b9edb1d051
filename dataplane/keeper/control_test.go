package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// dialControl watches a control by its plain test protocol: the position as a
// line of JSON one way, frames the other.
func dialControl(addr string) func(context.Context, func() controlplane.Position, func(*feed.Frame) error) error {
	return func(ctx context.Context, from func() controlplane.Position, sink func(*feed.Frame) error) error {
		for ctx.Err() == nil {
			if err := watchOnce(ctx, addr, from, sink); errors.Is(err, controlplane.ErrUnknownEntry) {
				return err
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		return nil
	}
}

func watchOnce(ctx context.Context, addr string, from func() controlplane.Position, sink func(*feed.Frame) error) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := json.NewEncoder(c).Encode(from()); err != nil {
		return err
	}
	for r := feed.NewReader(c); ; {
		f, err := r.Next()
		if err == nil {
			err = sink(f)
		}
		if err != nil {
			return err
		}
	}
}

const testShard = controlplane.Shard("any-us-east")

var testEpoch = controlplane.Epoch{Counter: 1, Region: "us-east"}

// control is a control node with one shard of keys.
type control struct {
	t     *testing.T
	l     net.Listener
	shard controlplane.Shard

	mu      sync.Mutex
	down    bool
	entries []*feed.Frame // number i has sequence i+1
	keys    map[string]*registry.Record
	revoked []registry.Revocation
	watches []controlplane.Position
	change  chan struct{}
	wg      sync.WaitGroup
	conns   map[net.Conn]bool
}

func newControl(t *testing.T) *control {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &control{t: t, l: l, shard: testShard, keys: map[string]*registry.Record{}, change: make(chan struct{}), conns: map[net.Conn]bool{}}
	c.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			c.wg.Go(func() { c.serve(nc) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		c.setDown(true)
		c.wg.Wait()
	})
	return c
}

// setDown cuts all watchers off and refuses new ones.
func (c *control) setDown(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
	if down {
		for nc := range c.conns {
			_ = nc.Close()
		}
	}
}

func (c *control) serve(nc net.Conn) {
	c.mu.Lock()
	if c.down {
		c.mu.Unlock()
		_ = nc.Close()
		return
	}
	c.conns[nc] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.conns, nc)
		c.mu.Unlock()
		_ = nc.Close()
	}()
	var from controlplane.Position
	if json.NewDecoder(nc).Decode(&from) != nil {
		return
	}
	c.mu.Lock()
	c.watches = append(c.watches, from)
	c.mu.Unlock()
	send := func(f *feed.Frame) bool {
		b, err := feed.EncodeFrame(f)
		if err != nil {
			return false
		}
		n := uint32(len(b))
		_, err = nc.Write(append([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, b...))
		return err == nil
	}
	at := from[c.shard].Seq
	if at == 0 {
		frames, seq := c.snapshot()
		at = seq
		for _, f := range frames {
			if !send(f) {
				return
			}
		}
	}
	for {
		c.mu.Lock()
		var next *feed.Frame
		if at < uint64(len(c.entries)) {
			next = c.entries[at]
		}
		seq, change := uint64(len(c.entries)), c.change
		c.mu.Unlock()
		if next != nil {
			if !send(next) {
				return
			}
			at++
			continue
		}
		if !send(&feed.Frame{Type: feed.FrameHeartbeat, At: time.Now().UnixMilli(), Position: controlplane.Position{c.shard: {Epoch: testEpoch, Seq: seq}}}) {
			return
		}
		select {
		case <-change:
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *control) snapshot() ([]*feed.Frame, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	frames := []*feed.Frame{{Type: feed.FrameReset, Shard: c.shard}}
	for _, rec := range c.keys {
		b, err := registry.EncodeRecord(rec)
		if err != nil {
			c.t.Error(err)
		}
		frames = append(frames, &feed.Frame{Type: feed.FrameRecord, Shard: c.shard, Record: b})
	}
	for i := range c.revoked {
		frames = append(frames, &feed.Frame{Type: feed.FrameRevocation, Shard: c.shard, Revocation: &c.revoked[i]})
	}
	seq := uint64(len(c.entries))
	return append(frames, &feed.Frame{Type: feed.FrameEnd, Shard: c.shard, Point: controlplane.Point{Epoch: testEpoch, Seq: seq}}), seq
}

// commit appends one entry.
func (c *control) commit(changes ...registry.Change) uint64 {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	e := &registry.Entry{Shard: c.shard, Epoch: testEpoch, Seq: uint64(len(c.entries)) + 1, Changes: changes}
	if e.Seq > 1 {
		e.Prev = testEpoch
	}
	b, err := registry.EncodeEntry(e)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := range changes {
		if changes[i].Op == registry.OpPut {
			changes[i].Record.Meta.Revision = e.Seq
			c.keys[changes[i].Record.Meta.ID] = changes[i].Record
		} else {
			c.revoked = append(c.revoked, registry.Revocation{Kind: changes[i].Kind, ID: changes[i].ID, Shard: c.shard, At: changes[i].At})
		}
	}
	c.entries = append(c.entries, &feed.Frame{Type: feed.FrameEntry, Shard: c.shard, Sender: testEpoch, Entry: b})
	close(c.change)
	c.change = make(chan struct{})
	return e.Seq
}

func (c *control) addKey(id string) uint64 {
	c.t.Helper()
	return c.putKey(id, "prj")
}

func (c *control) putKey(id, project string) uint64 {
	c.t.Helper()
	return c.commit(registry.Change{Op: registry.OpPut, Record: &registry.Record{
		Kind: registry.KindKey, Meta: registry.Meta{ID: id, Shard: c.shard, Updated: time.Now().UnixMilli()},
		Key: &registry.Key{Project: project, Class: "live", Hash: make([]byte, 60)},
	}})
}

func (c *control) revokeKey(id string) uint64 {
	c.t.Helper()
	return c.commit(registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: id, At: 7})
}
