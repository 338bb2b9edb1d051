// Command measure times a development cluster at the three things it promises
// in milliseconds (a revoked key refused everywhere, writes after a leader is
// killed, a dead node known in its region) and its idle CPU.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/admin/api"
	"ringmain/internal/clusterfile"
)

func main() {
	var (
		file    = flag.String("cluster", ".ringmain/dev/cluster.json", "the cluster to measure")
		revokes = flag.Int("revocations", 200, "keys to make and revoke")
		leaders = flag.Int("leaders", 30, "leaders to kill")
		nodes   = flag.Int("nodes", 30, "data nodes to kill")
		idle    = flag.Duration("idle", 30*time.Second, "how long to watch idle CPU")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *file, *revokes, *leaders, *nodes, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(1) //nolint:gocritic // the deferred stop only restores signal handling
	}
}

type meter struct {
	*clusterfile.Cluster
	http  *http.Client
	token string
	sup   net.Conn
	lines *bufio.Scanner
}

func run(ctx context.Context, file string, revokes, leaders, nodes int, idle time.Duration) error {
	c, err := clusterfile.Read(file)
	if err != nil {
		return err
	}
	if !c.Ready {
		return fmt.Errorf("%s: the cluster is not running", file)
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	token, err := os.ReadFile(c.AdminTokenFile)
	if err != nil {
		return err
	}
	m := &meter{Cluster: c, token: strings.TrimSpace(string(token)), http: &http.Client{Timeout: 5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 8}}}
	var d net.Dialer
	if m.sup, err = d.DialContext(ctx, "unix", c.Supervisor); err != nil {
		return err
	}
	defer m.sup.Close()
	m.lines = bufio.NewScanner(m.sup)

	out := os.Stdout
	if idle > 0 {
		cores, err := m.idle(ctx, idle)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(out, "idle CPU of all nodes over %v: %.3f cores\n", idle, cores) // stdout gone: nothing to tell
	}
	for _, part := range []struct {
		name string
		n    int
		f    func(context.Context, int) (time.Duration, error)
	}{
		{"revocation until refused by every data node of every region", revokes, m.revocation},
		{"leader kill until a write is acknowledged", leaders, m.leaderKill},
		{"data node kill until gossip of its region calls it dead", nodes, m.nodeKill},
	} {
		var took []time.Duration
		for i := range part.n {
			t, err := part.f(ctx, i)
			if err != nil {
				return fmt.Errorf("%s, number %d: %w", part.name, i+1, err)
			}
			took = append(took, t)
			fmt.Fprintf(os.Stderr, "measure: %s: %d of %d: %v\n", part.name, i+1, part.n, t.Round(time.Millisecond))
		}
		if len(took) == 0 {
			continue
		}
		slices.Sort(took)
		p99 := "-"
		if len(took) >= 100 {
			p99 = took[len(took)*99/100].Round(time.Millisecond).String()
		}
		_, _ = fmt.Fprintf(out, "%s: n %d, p50 %v, p99 %s, max %v\n", part.name, len(took),
			took[len(took)/2].Round(time.Millisecond), p99, took[len(took)-1].Round(time.Millisecond)) // as above
	}
	return nil
}

func (m *meter) call(ctx context.Context, method, url string, body, into any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+m.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, text)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
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

func (m *meter) dataNodes() (all []clusterfile.Node) {
	for _, r := range m.Regions {
		for _, n := range r.Nodes {
			if n.Role == "data" {
				all = append(all, n)
			}
		}
	}
	return all
}

const poll = 5 * time.Millisecond

// until polls every node with key until each has answered status.
func (m *meter) until(ctx context.Context, key string, status int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range m.dataNodes() {
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

func (m *meter) revocation(ctx context.Context, i int) (time.Duration, error) {
	project, err := m.project(ctx)
	if err != nil {
		return 0, err
	}
	admin := m.Regions[i%len(m.Regions)].Admin
	var key api.Key
	if err := m.call(ctx, http.MethodPost, admin+"/admin/v1/projects/"+project+"/keys", api.KeyInput{Name: "measure-" + strconv.Itoa(i)}, &key); err != nil {
		return 0, err
	}
	if err := m.until(ctx, key.Whole, http.StatusOK); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := m.call(ctx, http.MethodPost, admin+"/admin/v1/keys/"+key.ID+"/revoke", nil, nil); err != nil {
		return 0, err
	}
	if err := m.until(ctx, key.Whole, http.StatusUnauthorized); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

type processStatus struct {
	Name      string `json:"name"`
	Region    string `json:"region"`
	PID       int    `json:"pid"`
	WorkerPID int    `json:"worker_pid"`
}

// supervise sends one request to the supervisor's socket.
func (m *meter) supervise(op, region string) ([]processStatus, error) {
	if err := json.NewEncoder(m.sup).Encode(map[string]string{"op": op, "region": region}); err != nil {
		return nil, err
	}
	if !m.lines.Scan() {
		return nil, fmt.Errorf("supervisor: %w", m.lines.Err())
	}
	var ans struct {
		OK        bool            `json:"ok"`
		Error     string          `json:"error"`
		Processes []processStatus `json:"processes"`
	}
	if err := json.Unmarshal(m.lines.Bytes(), &ans); err != nil {
		return nil, err
	}
	if !ans.OK {
		return nil, errors.New("supervisor: " + ans.Error)
	}
	return ans.Processes, nil
}

func (m *meter) leaderKill(ctx context.Context, i int) (time.Duration, error) {
	region := m.Regions[0] // home of the global shard
	leader, err := m.settled(ctx, region)
	if err != nil {
		return 0, err
	}
	procs, err := m.supervise("status", "")
	if err != nil {
		return 0, err
	}
	var survivor string
	for _, n := range region.Nodes {
		if n.Role == "control" && n.Name != leader {
			survivor = n.Admin
		}
	}
	for _, p := range procs {
		if p.Name == leader {
			if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
				return 0, err
			}
		}
	}
	began := time.Now()
	project, err := m.project(ctx)
	for ; time.Since(began) < 20*time.Second; time.Sleep(10 * time.Millisecond) {
		if err != nil {
			project, err = m.project(ctx)
			continue
		}
		tryCtx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		err = m.call(tryCtx, http.MethodPost, survivor+"/admin/v1/projects/"+project+"/keys", api.KeyInput{Name: "after-leader-" + strconv.Itoa(i)}, nil)
		cancel()
		if err == nil {
			return time.Since(began), nil
		}
		err = nil // the project is still the right one
	}
	return 0, errors.New("no write was acknowledged in 20 s")
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

func (m *meter) nodeKill(ctx context.Context, i int) (d time.Duration, err error) {
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
		return 0, err
	}
	time.Sleep(2 * time.Second) // probes of both memberlists have gone round
	procs, err := m.supervise("status", "")
	if err != nil {
		return 0, err
	}
	if _, err := m.supervise("hold", region.Name); err != nil {
		return 0, err
	}
	defer func() {
		_, rerr := m.supervise("release", region.Name)
		err = errors.Join(err, rerr)
	}()
	for _, p := range procs {
		if p.Name == victim.Name {
			if err := errors.Join(syscall.Kill(p.PID, syscall.SIGKILL), syscall.Kill(p.WorkerPID, syscall.SIGKILL)); err != nil {
				return 0, err
			}
		}
	}
	began := time.Now()
	if err := m.waitAlive(ctx, admin, victim.Name, false, 20*time.Second); err != nil {
		return 0, err
	}
	return time.Since(began), nil
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
	procs, err := m.supervise("status", "")
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
