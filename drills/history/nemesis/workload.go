package nemesis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/cluster"
	"ringmain/drills/history"
	"ringmain/drills/history/client"
)

// Load says how hard the clients work.
type Load struct {
	Registers int           // per region, in the shard whose first home it is
	Clients   int           // per region, on those registers: a dead home holds up its own clients only
	Pause     time.Duration // of each of them between two requests
	Answered  int           // requests to be answered for certain before it ends
	Seed      uint64
}

// level picks one, half and half.
func level(r *rand.Rand) string {
	if r.IntN(2) == 0 {
		return api.AcknowledgedRegion
	}
	return api.AcknowledgedMultiRegion
}

// workload is what the clients work on.
type workload struct {
	c         *cluster.Cluster
	rec       *history.Recorder
	http      *http.Client
	load      Load
	nodes     []client.Node
	registers map[string][]string // by region
	projects  map[string]string   // by region
}

func (w *workload) client(id int) *client.Client {
	return &client.Client{ID: id, HTTP: w.http, Token: w.c.Token, Rec: w.rec}
}

func (w *workload) random(id int) *rand.Rand { return rand.New(rand.NewPCG(w.load.Seed, uint64(id))) } //nolint:gosec // G404, G115: a schedule to be replayed, no secret

// of lists the nodes of a region.
func (w *workload) of(region string) []client.Node {
	var all []client.Node
	for _, n := range w.nodes {
		if n.Region == region {
			all = append(all, n)
		}
	}
	return all
}

// insist repeats f until it says that it is done.
func insist(ctx context.Context, what string, within time.Duration, f func() (bool, string)) error {
	for deadline := time.Now().Add(within); ; {
		ok, why := f()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %s", what, within, why)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %s", what, ctx.Err(), why)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// prepare makes the registers, and a project for keys, safely.
func (w *workload) prepare(ctx context.Context) error {
	w.registers, w.projects = map[string][]string{}, map[string]string{}
	c := &client.Client{HTTP: w.http, Token: w.c.Token, Rec: history.NewRecorder(time.Now())} // no part of the history
	for _, r := range w.c.Regions {
		for i := range w.load.Registers {
			name := fmt.Sprintf("register %s %d", r.Name, i)
			var op history.Op
			n := w.of(r.Name)[0]
			if err := insist(ctx, "create "+name, 30*time.Second, func() (bool, string) {
				op = c.Create(ctx, n, "/admin/v1/orgs", "register-"+r.Name+fmt.Sprintf("-%06d", i), name, api.AcknowledgedMultiRegion, api.OrgInput{Name: name, State: "verified"})
				return op.Reached == api.AcknowledgedMultiRegion, op.String() + " " + op.Detail
			}); err != nil {
				return err
			}
			w.registers[r.Name] = append(w.registers[r.Name], op.Record)
			first := history.Op{Kind: history.Write, Object: op.Record, Entry: n.String(), Value: name, Level: api.AcknowledgedMultiRegion, Outcome: history.Done, Reached: op.Reached, Position: op.Position, Begin: 0, End: 1}
			w.rec.Op(first)
		}
		name := "keys of " + r.Name
		if err := insist(ctx, name, 30*time.Second, func() (bool, string) {
			op := c.Create(ctx, w.of(r.Name)[0], "/admin/v1/orgs/"+w.registers[r.Name][0]+"/projects", "project-of-"+r.Name+"-1", name, api.AcknowledgedMultiRegion, api.ProjectInput{Name: name})
			w.projects[r.Name] = op.Record
			return op.Reached == api.AcknowledgedMultiRegion, op.String() + " " + op.Detail
		}); err != nil {
			return err
		}
	}
	return nil
}

// run works until ctx ends.
func (w *workload) run(ctx context.Context) error {
	g := new(errgroup.Group)
	id := 1
	for _, r := range w.c.Regions {
		for range w.load.Clients {
			c, random := w.client(id), w.random(id)
			g.Go(func() error { w.onRegisters(ctx, c, random, w.registers[r.Name]); return nil })
			id++
		}
		creator, keys := id, id+1
		id += 2
		g.Go(func() error { w.onCreations(ctx, w.client(creator), w.random(creator), r.Name); return nil })
		g.Go(func() error { w.onKeys(ctx, w.client(keys), w.random(keys), r.Name); return nil })
	}
	return g.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (w *workload) onRegisters(ctx context.Context, c *client.Client, random *rand.Rand, registers []string) {
	for i := 0; ctx.Err() == nil; i++ {
		n, org := w.nodes[random.IntN(len(w.nodes))], registers[random.IntN(len(registers))]
		// Requests outlive ctx: the last ones are answered like all others.
		var op history.Op
		if random.IntN(2) == 0 {
			op = c.Read(context.WithoutCancel(ctx), n, org)
		} else {
			op = c.Write(context.WithoutCancel(ctx), n, org, fmt.Sprintf("c%d-%d", c.ID, i), level(random))
		}
		wait := w.load.Pause/2 + time.Duration(random.Int64N(int64(w.load.Pause)))
		if op.Outcome == history.Nothing && op.Status == 0 {
			wait += 50 * time.Millisecond // nobody listens there
		}
		pause(ctx, wait)
	}
}

// probers ask a home that may not know yet that it is none any more.
const probers = 8

// probe reads the registers of a shard through the nodes of region, as fast as
// they answer, until ctx ends. The function returned waits for the last answer.
func (w *workload) probe(ctx context.Context, shard, region string) (wait func()) {
	g := new(errgroup.Group)
	registers, nodes := w.registers[strings.TrimPrefix(shard, "any-")], w.of(region)
	for i := range probers {
		c, random := w.client(-1-i), w.random(-1-i)
		g.Go(func() error {
			for ctx.Err() == nil {
				op := c.Read(context.WithoutCancel(ctx), nodes[random.IntN(len(nodes))], registers[random.IntN(len(registers))])
				if op.Outcome != history.Done {
					pause(ctx, 20*time.Millisecond)
				}
			}
			return nil
		})
	}
	return func() { _ = g.Wait() } // no prober fails
}

// known repeats a request through nodes until its outcome is known, and gives up
// only when ctx has ended for long, or what it is about is not safe and gone.
func (w *workload) known(ctx context.Context, request func(n client.Node) history.Op, random *rand.Rand, nodes []client.Node, safe bool) (op history.Op, ok bool) {
	var over time.Time
	for {
		op = request(nodes[random.IntN(len(nodes))])
		if op.Outcome == history.Done {
			return op, true
		}
		if op.Kind == history.Revoke && op.Status == http.StatusNotFound && !safe {
			return op, false // the key went into quarantine with its home
		}
		if ctx.Err() != nil && over.IsZero() {
			over = time.Now().Add(20 * time.Second)
		}
		if !over.IsZero() && time.Now().After(over) {
			return op, false
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (w *workload) onCreations(ctx context.Context, c *client.Client, random *rand.Rand, region string) {
	nodes := w.of(region) // an unpinned org belongs to the region that is asked
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("made c%d-%d", c.ID, i)
		key, l := fmt.Sprintf("creation-of-client-%d-%d", c.ID, i), level(random)
		create := func(n client.Node) history.Op {
			return c.Create(context.WithoutCancel(ctx), n, "/admin/v1/orgs", key, name, l, api.OrgInput{Name: name})
		}
		if _, ok := w.known(ctx, create, random, nodes, true); ok && random.IntN(2) == 0 {
			w.known(ctx, create, random, nodes, true)
		}
		pause(ctx, 200*time.Millisecond)
	}
}

func (w *workload) onKeys(ctx context.Context, c *client.Client, random *rand.Rand, region string) {
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("key c%d-%d", c.ID, i)
		create := func(n client.Node) history.Op {
			return c.Create(context.WithoutCancel(ctx), n, "/admin/v1/projects/"+w.projects[region]+"/keys", fmt.Sprintf("key-of-client-%d-%d", c.ID, i), name, "", api.KeyInput{Name: name})
		}
		made, ok := w.known(ctx, create, random, w.nodes, true)
		if ok && random.IntN(2) == 0 {
			w.known(ctx, create, random, w.nodes, true)
		}
		if ok {
			_, ok = w.known(ctx, func(n client.Node) history.Op { return c.Revoke(context.WithoutCancel(ctx), n, made.Record) }, random, w.nodes, made.Reached == api.AcknowledgedMultiRegion)
		}
		for range 5 {
			if !ok || ctx.Err() != nil {
				break
			}
			c.Look(context.WithoutCancel(ctx), w.nodes[random.IntN(len(w.nodes))], made.Record, api.ConsistencyLinearizable)
			pause(ctx, 50*time.Millisecond)
		}
		pause(ctx, 500*time.Millisecond)
	}
}

// last reads every register and key once more, linearizable and in every
// region's own copy, and lists what was created.
func (w *workload) last(ctx context.Context) ([]history.Found, error) {
	c := w.client(0)
	keys := w.rec.Revoked()
	for _, r := range w.c.Regions {
		for _, org := range w.registers[r.Name] {
			if err := insist(ctx, "read "+org, 20*time.Second, func() (bool, string) {
				op := c.Read(ctx, w.of(r.Name)[0], org)
				return op.Outcome == history.Done, op.String() + " " + op.Detail
			}); err != nil {
				return nil, err
			}
		}
		for key := range keys {
			if err := insist(ctx, "look at "+key, 20*time.Second, func() (bool, string) {
				op := c.Look(ctx, w.of(r.Name)[0], key, api.ConsistencyStale)
				return op.Outcome == history.Done && op.Value == history.Revoked || op.Status == http.StatusNotFound, op.String()
			}); err != nil {
				break // the checker says what this means
			}
		}
	}
	var found []history.Found
	for _, path := range w.lists() {
		for cursor := ""; ; {
			var page struct {
				api.Page
				Items []struct {
					ID   string `json:"id"`
					Name string `json:"name"`
				} `json:"items"`
			}
			if err := insist(ctx, path, 20*time.Second, func() (bool, string) {
				r := c.Ask(ctx, http.MethodGet, w.nodes[0].Admin+path+"?limit=500&cursor="+url.QueryEscape(cursor), nil)
				if r.Outcome() != history.Done {
					return false, fmt.Sprint(r.Status, r.Code(), r.Err)
				}
				return r.Decode(&page) == nil, "no list"
			}); err != nil {
				return nil, err
			}
			for _, item := range page.Items {
				found = append(found, history.Found{Record: item.ID, Name: item.Name})
			}
			if cursor = page.NextCursor; cursor == "" {
				break
			}
		}
	}
	return found, nil
}

func (w *workload) lists() []string {
	all := []string{"/admin/v1/orgs"}
	for _, p := range w.projects {
		all = append(all, "/admin/v1/projects/"+p+"/keys")
	}
	return all
}
