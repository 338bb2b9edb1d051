package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/seal"
)

// shard is held by the region alone, so that its log is all that is measured.
const shard = controlplane.Shard("any-bench")

// serveNode is one node of the region, in a process of its own. It takes orders
// from stdin, a line of JSON each, and answers on stdout.
func serveNode(ctx context.Context, o options) (err error) {
	var peers []quorum.Peer
	self := ""
	for i, addr := range strings.Split(o.peers, ",") {
		name := fmt.Sprintf("c%d", i+1)
		peers = append(peers, quorum.Peer{Node: name, Addr: addr})
		if name == o.node {
			self = addr
		}
	}
	holder, err := seal.OpenFileHolder(filepath.Join(o.dir, "key"))
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", self)
	if err != nil {
		return err
	}
	var dialer net.Dialer
	q, err := quorum.Open(ctx, quorum.Config{
		Cluster: "bench", Region: "bench", Node: o.node, Dir: filepath.Join(o.dir, "ringmain-"+o.node), Peers: peers,
		Homes:    []quorum.ShardSpec{{Shard: shard, Members: []string{"bench"}}},
		Listener: listener, Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", addr)
		},
		Sealer: seal.New(holder),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close(context.WithoutCancel(ctx))) }()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var ask order
		if err := in.Decode(&ask); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := out.Encode(obey(ctx, q, ask)); err != nil {
			return err
		}
	}
}

// order is to load the log, or only to say who leads.
type order struct {
	Writers int
	Window  time.Duration
}

type answer struct {
	Leads  bool
	Sample sample
	Error  string
}

func obey(ctx context.Context, q *quorum.Quorum, ask order) (a answer) {
	if a.Leads = q.IsLeader(); !a.Leads || ask.Writers == 0 {
		return a
	}
	org := func(writer int) string { return fmt.Sprintf("org_any_%016d", writer) }
	for w := range ask.Writers {
		if _, err := q.Propose(ctx, shard, []registry.Change{{Op: registry.OpPut, Record: &registry.Record{
			Kind: registry.KindOrg, Meta: registry.Meta{ID: org(w), Shard: shard, Created: 1, Updated: 1},
			Org: &registry.Org{Name: "bench", Plan: "build", State: "verified", Jurisdiction: "any"},
		}}}); err != nil {
			return answer{Leads: true, Error: err.Error()}
		}
	}
	s, err := hammer(ctx, ask.Writers, ask.Window, func(ctx context.Context, writer, i int) error {
		_, err := q.Propose(ctx, shard, []registry.Change{{Op: registry.OpPut, Record: policyRecord(org(writer), writer, i)}})
		return err
	})
	if a.Sample = s; err != nil {
		a.Error = err.Error()
	}
	return a
}

// policyRecord is a record whose encoding has valueBytes bytes.
func policyRecord(org string, writer, i int) *registry.Record {
	r := &registry.Record{
		Kind: registry.KindPolicy, Meta: registry.Meta{ID: fmt.Sprintf("pol_any_%016d", writer), Shard: shard, Created: 1, Updated: 1},
		Policy: &registry.Policy{Org: org, Models: []string{fmt.Sprintf("model-%08d", i)}},
	}
	for {
		b, err := registry.EncodeRecord(r)
		if err != nil || len(b) >= valueBytes {
			return r
		}
		r.Policy.Models = append(r.Policy.Models, strings.Repeat("x", min(90, max(1, valueBytes-len(b)-2))))
	}
}

// region is the parent's end of the three nodes.
type region struct{ nodes []*node }

type node struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
}

func startRegion(ctx context.Context, o options) (_ *region, err error) {
	if err := seal.CreateKeyFile(filepath.Join(o.dir, "key")); err != nil {
		return nil, err
	}
	r := &region{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for i := range 3 {
		cmd := exec.Command(self, "-node", fmt.Sprintf("c%d", i+1), "-peers", addresses(o.port, 3), "-dir", o.dir) //nolint:noctx // itself; it ends with its stdin
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		r.nodes = append(r.nodes, &node{cmd, in, json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))})
	}
	_, err = r.leader(ctx)
	return r, err
}

func (n *node) ask(o order) (a answer, err error) {
	if err := n.enc.Encode(o); err != nil {
		return a, err
	}
	if err := n.dec.Decode(&a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

func (r *region) leader(ctx context.Context) (*node, error) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		for _, n := range r.nodes {
			if a, err := n.ask(order{}); err != nil {
				return nil, err
			} else if a.Leads {
				return n, nil
			}
		}
	}
	return nil, errors.New("no node leads")
}

func (r *region) name() string { return regionName }

func (r *region) load(ctx context.Context, n int, window time.Duration) (sample, error) {
	lead, err := r.leader(ctx)
	if err != nil {
		return sample{}, err
	}
	a, err := lead.ask(order{Writers: n, Window: window})
	if err == nil && !a.Leads {
		err = errors.New("leadership changed between two measurements: run again")
	}
	return a.Sample, err
}

func (r *region) close() (err error) {
	for _, n := range r.nodes {
		err = errors.Join(err, n.in.Close())
	}
	for _, n := range r.nodes {
		err = errors.Join(err, n.cmd.Wait())
	}
	return err
}
