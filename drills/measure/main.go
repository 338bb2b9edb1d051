// Command measure holds a development cluster against what it promises in time:
// keys and revocations known everywhere, writes after a leader was killed or
// handed over, a lost home taken over, a dead node known, no election under
// full load. It exits with 1 where a bound is missed. -ringmain starts a cluster
// for it, -cluster names one that runs.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/cluster"
	"ringmain/drills/fault"
	"ringmain/internal/clusterfile"
)

type options struct {
	ringmain, file, dir                                          string
	port, changes, revokes, leaders, handovers, takeovers, nodes int
	idle, load                                                   time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.ringmain, "ringmain", "", "program to start a cluster with; it is gone afterwards")
	flag.StringVar(&o.dir, "dir", "", "where that cluster's data goes, on the disk to be measured [a new directory under .]")
	flag.IntVar(&o.port, "port", 17440, "first port of that cluster")
	flag.StringVar(&o.file, "cluster", ".ringmain/dev/cluster.json", "the cluster to measure, without -ringmain")
	flag.IntVar(&o.changes, "changes", 200, "orgs to suspend, or to let in again")
	flag.IntVar(&o.revokes, "revocations", 200, "keys to make and revoke")
	flag.IntVar(&o.leaders, "leaders", 30, "leaders to kill")
	flag.IntVar(&o.handovers, "handovers", 30, "leaders to hand over")
	flag.IntVar(&o.takeovers, "takeovers", 10, "homes to lose")
	flag.IntVar(&o.nodes, "nodes", 30, "data nodes to kill")
	flag.DurationVar(&o.idle, "idle", 30*time.Second, "how long to watch idle CPU")
	flag.DurationVar(&o.load, "load", 0, "how long to load everything fully, data nodes and load below the control nodes, and to count elections")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(1) //nolint:gocritic // the deferred stop only restores signal handling
	}
}

type meter struct {
	*clusterfile.Cluster
	http  *http.Client
	token string
	sup   *fault.Supervisor

	customers map[string]*customer // by region
}

// begin finds the cluster, or starts one that end takes away.
func begin(ctx context.Context, o options) (c *cluster.Cluster, end func() error, err error) {
	if o.ringmain == "" {
		c, err := cluster.Open(ctx, o.file)
		if err != nil {
			return nil, nil, err
		}
		return c, c.Supervisor.Close, nil
	}
	dir := o.dir
	remove := func() error { return nil }
	if dir == "" {
		if dir, err = os.MkdirTemp(".", ".measure-"); err != nil {
			return nil, nil, err
		}
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, nil, err
		}
		remove = func() error { return os.RemoveAll(dir) }
	}
	if c, err = cluster.Start(ctx, o.ringmain, dir, o.port, 2); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return c, func() error { return errors.Join(c.Stop(), remove()) }, nil
}

// part is one thing to be timed, often.
type part struct {
	name string
	n    int
	once func(ctx context.Context, i int) ([]time.Duration, error)
	of   []timed // what once returns
}

// timed is one of the times that a part yields, with the bounds it must keep; 0 = none.
type timed struct {
	name     string
	p50, p99 time.Duration
	max      time.Duration
}

func run(ctx context.Context, out io.Writer, o options) (err error) {
	c, end, err := begin(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	m := &meter{Cluster: c.Cluster, token: c.Token, http: c.HTTP(), sup: c.Supervisor, customers: map[string]*customer{}}
	m.http.Timeout = 15 * time.Second
	defer m.http.CloseIdleConnections()
	if o.idle > 0 {
		cores, err := m.idle(ctx, o.idle)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(out, "idle CPU of all nodes over %v: %.3f cores\n", o.idle, cores) // stdout gone: nothing to tell
	}
	var missed []string
	for _, p := range []part{
		{"change", o.changes, m.change, []timed{
			{name: "change of a key's org, until in force on every data node of its region", p99: 100 * time.Millisecond},
			{name: "and on every data node elsewhere (round trip ~0)", p99: 150 * time.Millisecond}}},
		{"revocation", o.revokes, m.revocation, []timed{{name: "key revoked, until every data node of every region refuses it", p99: 100 * time.Millisecond}}},
		{"handover", o.handovers, m.handover, []timed{{name: "leader handed over, call to an acknowledged write", max: 100 * time.Millisecond}}},
		{"leader kill", o.leaders, m.leaderKill, []timed{{name: "leader killed, until a write is acknowledged", p50: 1200 * time.Millisecond, max: 2 * time.Second}}},
		{"takeover", o.takeovers, m.takeover, []timed{{name: "takeover of a lost home, command to a write acknowledged multi-region", max: 5 * time.Second}}},
		{"node kill", o.nodes, m.nodeKill, []timed{{name: "data node killed, until gossip of its region calls it dead", p50: 1500 * time.Millisecond, max: 2500 * time.Millisecond}}},
	} {
		took := make([][]time.Duration, len(p.of))
		for i := range p.n {
			ts, err := p.once(ctx, i)
			if err != nil {
				return fmt.Errorf("%s, number %d: %w", p.name, i+1, err)
			}
			for j, t := range ts {
				took[j] = append(took[j], t)
			}
			fmt.Fprintf(os.Stderr, "measure: %s: %d of %d: %v\n", p.name, i+1, p.n, ts)
		}
		for j, t := range p.of {
			if len(took[j]) > 0 {
				missed = append(missed, t.judge(out, took[j])...)
			}
		}
	}
	if o.load > 0 {
		elections, err := m.fullLoad(ctx, out, o.load)
		if err != nil {
			return err
		}
		if elections > 0 {
			missed = append(missed, fmt.Sprintf("%d elections under full load", elections))
		}
	}
	if len(missed) > 0 {
		return errors.New("missed: " + strings.Join(missed, "; "))
	}
	return nil
}

// judge prints the times and says which bounds they miss.
func (t timed) judge(out io.Writer, took []time.Duration) (missed []string) {
	slices.Sort(took)
	say := func(name string, is, bound time.Duration) string {
		text := fmt.Sprintf("%s %v", name, is.Round(time.Millisecond/10))
		if bound == 0 {
			return text
		}
		if is > bound {
			missed = append(missed, t.name+": "+text)
			return text + fmt.Sprintf(" (MISSED: %v)", bound)
		}
		return text + fmt.Sprintf(" (of %v)", bound)
	}
	line := fmt.Sprintf("%s: n %d, %s", t.name, len(took), say("p50", took[len(took)/2], t.p50))
	if len(took) >= 100 {
		line += ", " + say("p99", took[len(took)*99/100], t.p99)
	}
	_, _ = fmt.Fprintln(out, line+", "+say("max", took[len(took)-1], t.max)) // as above
	return missed
}

func (m *meter) call(ctx context.Context, method, url string, body, into any) error {
	_, err := m.send(ctx, method, url, body, into, "")
	return err
}

// send asks for an acknowledgement, "" = the operation's own, and returns the one
// that was reached.
func (m *meter) send(ctx context.Context, method, url string, body, into any, level string) (reached string, err error) {
	header, err := m.exchange(ctx, method, url, body, into, level)
	return header.Get(api.HeaderAcknowledged), err
}

// answeredBy gives an org another name, and says which node did it.
func (m *meter) answeredBy(ctx context.Context, admin, org string, i int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	header, err := m.exchange(ctx, http.MethodPut, admin+"/admin/v1/orgs/"+org, api.OrgInput{Name: "measured " + strconv.Itoa(i), State: "verified"}, nil, api.AcknowledgedRegion)
	return header.Get(api.HeaderAnswered), err
}

// exchange returns the header of the answer, if there is one.
func (m *meter) exchange(ctx context.Context, method, url string, body, into any, level string) (http.Header, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	if err != nil {
		return nil, err
	}
	if level != "" {
		req.Header.Set(api.HeaderAcknowledge, level)
	}
	req.Header.Set("Authorization", "Bearer "+m.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, text)
	}
	if into != nil {
		err = json.Unmarshal(text, into)
	}
	return resp.Header, err
}

// models asks a data node with a key and returns the status.
func (m *meter) models(ctx context.Context, base, key string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/models", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := m.http.Do(req)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close() // read side
	return resp.StatusCode, err
}

// dataNodes are those of region, and those of all others; "" has none of its own.
func (m *meter) dataNodes(region string) (own, others []clusterfile.Node) {
	for _, r := range m.Regions {
		for _, n := range r.Nodes {
			switch {
			case n.Role != "data":
			case r.Name == region:
				own = append(own, n)
			default:
				others = append(others, n)
			}
		}
	}
	return own, others
}

const poll = 5 * time.Millisecond

// forgiven is how long a data node takes to forgive the wrong keys of one revocation.
const forgiven = 200 * time.Millisecond

// until polls nodes with key until each has answered status.
func (m *meter) until(ctx context.Context, nodes []clusterfile.Node, key string, status int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		g.Go(func() error {
			for tick := time.NewTicker(poll); ; {
				got, err := m.models(ctx, n.API, key)
				if err == nil && got == status {
					tick.Stop()
					return nil
				}
				select {
				case <-ctx.Done():
					return fmt.Errorf("%s answers %d, %w, not %d", n.Name, got, err, status)
				case <-tick.C:
				}
			}
		})
	}
	return g.Wait()
}

func (m *meter) project(ctx context.Context) (string, error) {
	var orgs api.OrgList
	if err := m.call(ctx, http.MethodGet, m.Regions[0].Admin+"/admin/v1/orgs", nil, &orgs); err != nil {
		return "", err
	}
	for _, o := range orgs.Items {
		var projects api.ProjectList
		if err := m.call(ctx, http.MethodGet, m.Regions[0].Admin+"/admin/v1/orgs/"+o.ID+"/projects", nil, &projects); err != nil {
			return "", err
		}
		if o.Name == "dev" && len(projects.Items) > 0 {
			return projects.Items[0].ID, nil
		}
	}
	return "", errors.New("the dev org and its project are missing")
}

// settled waits until all of region's control nodes agree on a leader and returns it.
func (m *meter) settled(ctx context.Context, region clusterfile.Region) (string, error) {
	var last error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(250 * time.Millisecond) {
		leaders := map[string]int{}
		controls := 0
		for _, n := range region.Nodes {
			if n.Role != "control" {
				continue
			}
			controls++
			var st api.Status
			if last = m.call(ctx, http.MethodGet, n.Admin+"/admin/v1/status", nil, &st); last == nil {
				leaders[st.Leader]++
			}
		}
		for leader, n := range leaders {
			if leader != "" && n == controls {
				return leader, nil
			}
		}
	}
	return "", fmt.Errorf("region %s did not settle: %w", region.Name, last)
}

func (m *meter) nodeKill(ctx context.Context, i int) (took []time.Duration, err error) {
	region := m.Regions[i%len(m.Regions)]
	var victim clusterfile.Node
	var admin string
	for _, n := range region.Nodes {
		if n.Role == "data" {
			victim = n
		} else {
			admin = n.Admin
		}
	}
	if err := m.waitAlive(ctx, admin, victim.Name, true, 30*time.Second); err != nil {
		return nil, err
	}
	time.Sleep(2 * time.Second) // probes of both memberlists have gone round
	procs, err := m.sup.Status(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.sup.Hold(ctx, region.Name); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.sup.Release(ctx, region.Name)) }()
	for _, p := range procs {
		if p.Name == victim.Name {
			if err := errors.Join(syscall.Kill(p.PID, syscall.SIGKILL), syscall.Kill(p.WorkerPID, syscall.SIGKILL)); err != nil {
				return nil, err
			}
		}
	}
	began := time.Now()
	if err := m.waitAlive(ctx, admin, victim.Name, false, 20*time.Second); err != nil {
		return nil, err
	}
	return []time.Duration{time.Since(began)}, nil
}

func (m *meter) waitAlive(ctx context.Context, admin, name string, alive bool, within time.Duration) error {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(poll) {
		var list api.NodeList
		if err := m.call(ctx, http.MethodGet, admin+"/admin/v1/nodes", nil, &list); err != nil {
			continue
		}
		for _, n := range list.Items {
			if n.Name == name && n.Alive == alive && (!alive || n.Ready) {
				return nil
			}
		}
	}
	return fmt.Errorf("%s is not alive=%v in the node list after %v", name, alive, within)
}

// idle returns the cores that all nodes' processes use while nothing is asked.
func (m *meter) idle(ctx context.Context, span time.Duration) (float64, error) {
	procs, err := m.sup.Status(ctx)
	if err != nil {
		return 0, err
	}
	sum := func() (ticks int64, err error) {
		for _, p := range procs {
			for _, pid := range []int{p.PID, p.WorkerPID} {
				if pid == 0 {
					continue
				}
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
				if err != nil {
					return 0, err
				}
				_, rest, _ := strings.Cut(string(b), ") ")
				f := strings.Fields(rest)
				for _, i := range []int{11, 12} {
					n, err := strconv.ParseInt(f[i], 10, 64)
					if err != nil {
						return 0, err
					}
					ticks += n
				}
			}
		}
		return ticks, nil
	}
	before, err := sum()
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(span):
	}
	after, err := sum()
	return float64(after-before) / 100 / span.Seconds(), err // USER_HZ is 100 on Linux
}
