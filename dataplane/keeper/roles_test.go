package keeper

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/trial"
	"ringmain/dataplane/link"
	"ringmain/dataplane/view"
	"ringmain/internal/testkit/netkit"
)

// The test binary plays all parts: the test itself is the control node, and
// starts keepers in processes of their own, which start it again as worker.
func TestMain(m *testing.M) {
	switch os.Getenv("KEEPER_TEST_ROLE") {
	case "keeper":
		exit(playKeeper())
	case "confine":
		_ = os.Setenv("KEEPER_TEST_ROLE", "worker")
		exit(Confine([]string{os.Args[0]}))
	case "worker":
		exit(playWorker())
	}
	// Workers whose keeper was killed become children of this process, so that
	// it can reap them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		exit(err)
	}
	goleak.VerifyTestMain(m)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// workerCommand starts this binary as a worker, confined.
var workerCommand = []string{"/usr/bin/env", "KEEPER_TEST_ROLE=confine", os.Args[0]}

// playWorker answers questions about itself on the api listener.
func playWorker() error {
	if err := EnterWorker(); err != nil {
		return err
	}
	_, peer, socket, files, err := link.Inherited()
	if err != nil {
		return err
	}
	_ = peer.Close()
	api, err := net.FileListener(files.API)
	if err != nil {
		return err
	}
	store := view.New(view.Config{})
	a, err := link.Attend(context.Background(), link.AttendConfig{
		Listener: socket, Files: files, Build: "test", State: fragile{store}, Measure: MeasureConfinement,
		HealthEvery: 20 * time.Millisecond,
	})
	if err != nil {
		return err
	}
	a.WatchHealth(func() link.Health { return link.Health{Ready: store.Loaded()} })
	slog.New(a.LogHandler()).Info("the worker is up")
	var records atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/state", func(w http.ResponseWriter, _ *http.Request) {
		v := store.View()
		_ = json.NewEncoder(w).Encode(workerState{
			PID: os.Getpid(), Keys: v.Keys(), Loaded: v.Loaded(), Unknown: v.SafetyUnknown(), Seq: max(v.Position()[testShard].Seq, v.Position()[controlplane.ShardGlobal].Seq),
			Confinement: a.Confinement(), Waiting: a.Waiting(), Peers: len(a.Peers().Nodes),
		})
	})
	mux.HandleFunc("/key", func(w http.ResponseWriter, r *http.Request) {
		k, ok := store.View().Key(r.URL.Query().Get("id"))
		_, _ = fmt.Fprint(w, ok, k.Revoked != 0)
	})
	mux.HandleFunc("/upstream", func(w http.ResponseWriter, r *http.Request) {
		rec, ok := store.View().Upstream(r.URL.Query().Get("name"))
		_, _ = fmt.Fprint(w, ok, ok && rec.Upstream.Disabled)
	})
	mux.HandleFunc("/emit", func(w http.ResponseWriter, r *http.Request) {
		if err := a.Emit(fmt.Appendf(nil, "%s:%d:%d", r.URL.Query().Get("name"), os.Getpid(), records.Add(1))); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/write", func(w http.ResponseWriter, r *http.Request) {
		f, err := os.OpenFile(r.URL.Query().Get("path"), os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString("content")
		}
		_, _ = fmt.Fprint(w, err)
	})
	if err := playReceipts(mux, a); err != nil {
		return err
	}
	mux.HandleFunc("/scribble", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, scribble(a))
	})
	mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) {
		go panic("the worker breaks")
	})
	server := &http.Server{Handler: mux}
	go func() {
		<-a.Drain()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = a.Flush(ctx)
		_ = a.Close()
		_ = server.Close()
	}()
	if err := server.Serve(api); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// fragile is a state that some keys break, by their project.
type fragile struct{ *view.Store }

func (f fragile) Apply(fr *feed.Frame) error {
	switch raw := string(fr.Entry) + string(fr.Record); {
	case strings.Contains(raw, "prj_panics"):
		panic("a key that breaks the worker")
	case strings.Contains(raw, "prj_lingers"):
		time.AfterFunc(50*time.Millisecond, func() { panic("a key that breaks the worker later") })
	}
	return f.Store.Apply(fr)
}

// scribble changes a record in the ring before the keeper reads it, as a wild
// write might. See ring's layout: tail at 128, asleep at 256, records at 4096.
func scribble(a *link.Attendant) error {
	mem, err := unix.Mmap(link.RingFD, 0, 4096+(1<<20), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	asleep := (*atomic.Uint32)(unsafe.Pointer(&mem[256]))
	for end := time.Now().Add(5 * time.Second); asleep.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("the keeper does not sleep")
		}
	}
	tail := (*atomic.Uint64)(unsafe.Pointer(&mem[128])).Load()
	asleep.Store(0) // so that it is not woken yet
	if err := a.Emit([]byte("changed")); err != nil {
		return err
	}
	mem[4096+tail%(1<<20)+16] ^= 1
	asleep.Store(1)
	return nil
}

type workerState struct {
	PID, Keys       int
	Loaded, Unknown bool
	Seq             uint64
	Confinement     link.Confinement
	Waiting, Peers  int
}

// keeperArgs is what a keeper process is told through its environment.
type keeperArgs struct {
	Dir, Node, Key, API, Control string

	Region string        // us-east unless it is set
	Gossip string        // directory in which nodes leave their reports; empty = alone
	Lives  time.Duration // that a worker lives with a state is proof; 500 ms unless it is set
	Breaks string        // reading a file that is sealed for a context that ends so ends the keeper
}

func (a keeperArgs) sealer() (*seal.Sealer, error) {
	h, err := seal.OpenFileHolder(a.Key)
	if err != nil {
		return nil, err
	}
	return seal.New(brittle{h, a.Breaks}), nil
}

// brittle is a key that panics on some files.
type brittle struct {
	seal.Holder
	breaks string
}

func (b brittle) Unwrap(wrapped []byte, context string) ([]byte, error) {
	if b.breaks != "" && strings.HasSuffix(context, b.breaks) {
		panic("a file that breaks the keeper: " + context)
	}
	return b.Holder.Unwrap(wrapped, context)
}

func (a keeperArgs) config(logger *slog.Logger) (Config, error) {
	sealer, err := a.sealer()
	cfg := Config{
		Dir: a.Dir, Setup: link.Setup{Cluster: "test", Node: a.Node, Region: cmp.Or(a.Region, "us-east")}, Sealer: sealer,
		APIAddr: a.API, PeerAddr: "127.0.0.1:0", Worker: workerCommand, Watch: dialControl(a.Control),
		Peers:     func() link.Peers { return link.Peers{Nodes: []link.Peer{{Node: "other"}}} },
		WorkerLog: io.Discard, Logger: logger,
		Tunables: Tunables{Retry: 50 * time.Millisecond, SpoolPending: 1 << 20, Survival: cmp.Or(a.Lives, 500*time.Millisecond)},
	}
	if a.Gossip != "" {
		cfg.Nodes, cfg.Trials = a.gossip()
	}
	return cfg, err
}

// gossip spreads reports by files.
func (a keeperArgs) gossip() (func() []trial.Node, func(trial.Report)) {
	nodes := func() (all []trial.Node) {
		files, _ := filepath.Glob(filepath.Join(a.Gossip, "*.json"))
		for _, path := range files {
			var n trial.Node
			b, err := os.ReadFile(path)
			if err == nil && json.Unmarshal(b, &n) == nil {
				all = append(all, n)
			}
		}
		return all
	}
	tell := func(r trial.Report) {
		b, err := json.Marshal(trial.Node{Region: cmp.Or(a.Region, "us-east"), Name: a.Node, Ready: true, Report: r})
		path := filepath.Join(a.Gossip, a.Node)
		if err == nil {
			err = os.WriteFile(path+".new", b, 0o600)
		}
		if err = errors.Join(err, os.Rename(path+".new", path+".json")); err != nil {
			panic(err)
		}
	}
	return nodes, tell
}

func playKeeper() error {
	var args keeperArgs
	if err := json.Unmarshal([]byte(os.Getenv("KEEPER_TEST_ARGS")), &args); err != nil {
		return err
	}
	cfg, err := args.config(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	k, err := Open(context.Background(), cfg)
	if err != nil {
		return err
	}
	<-term
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return k.Close(ctx)
}

// node is a data node under test.
type node struct {
	t    *testing.T
	args keeperArgs
	base string
	cmd  *exec.Cmd
	log  *logFile
}

// logFile collects what keepers print, over several of them.
type logFile struct{ path string }

func (l *logFile) text() string {
	b, _ := os.ReadFile(l.path)
	return string(b)
}

func newNode(t *testing.T, c *control) *node {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(t.TempDir(), "kek")
	if err := seal.CreateKeyFile(key); err != nil {
		t.Fatal(err)
	}
	api := netkit.Address()
	n := &node{t: t, base: "http://" + api, log: &logFile{filepath.Join(t.TempDir(), "log")}, args: keeperArgs{
		Dir: dir, Node: "d1", Key: key, API: api, Control: c.l.Addr().String(),
	}}
	t.Cleanup(n.cleanup)
	return n
}

// startKeeper runs a keeper in a process of its own.
func (n *node) startKeeper() {
	n.t.Helper()
	args, err := json.Marshal(n.args)
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), "KEEPER_TEST_ROLE=keeper", "KEEPER_TEST_ARGS="+string(args))
	f, err := os.OpenFile(n.log.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd.Stdout, n.cmd.Stderr = f, f
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	_ = f.Close()
}

func (n *node) killKeeper() {
	n.t.Helper()
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
	n.cmd = nil
}

// stopKeeper asks the keeper to end and returns how it did.
func (n *node) stopKeeper() error {
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	err := n.cmd.Wait()
	n.cmd = nil
	return err
}

// cleanup ends the keeper and any worker that outlived it, by pid, and reaps them.
func (n *node) cleanup() {
	if n.cmd != nil {
		n.killKeeper()
	}
	for { // until no child is left; a worker that has just started may not answer yet
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if pid < 0 && !errors.Is(err, syscall.EINTR) {
			break
		}
		if s, err := n.ask(); pid == 0 && err == nil {
			_ = syscall.Kill(s.PID, syscall.SIGKILL)
		}
	}
	if n.t.Failed() {
		n.t.Log(n.log.text())
	}
}

var client = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func (n *node) get(path string) (int, string, error) {
	resp, err := client.Get(n.base + path)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func (n *node) ask() (workerState, error) {
	_, body, err := n.get("/state")
	if err != nil {
		return workerState{}, err
	}
	var s workerState
	return s, json.Unmarshal([]byte(body), &s)
}

// state is the worker's, once cond holds.
func (n *node) state(what string, cond func(workerState) bool) workerState {
	n.t.Helper()
	var s workerState
	var err error
	within(n.t, what, func() bool {
		s, err = n.ask()
		return err == nil && cond(s)
	}, func() string { return fmt.Sprintf("%+v, %v", s, err) })
	return s
}

func (n *node) emit(name string) error {
	status, body, err := n.get("/emit?name=" + name)
	if err == nil && status != http.StatusOK {
		err = errors.New(body)
	}
	return err
}

// records reads the spool: how often each record is there.
func (n *node) records() map[string]int {
	n.t.Helper()
	sealer, err := n.args.sealer()
	if err != nil {
		n.t.Fatal(err)
	}
	found := map[string]int{}
	if err := ReadSpool(n.args.Dir, "test", n.args.Node, sealer, func(b []byte) error {
		name, _, _ := cutRecord(string(b))
		found[name]++
		return nil
	}); err != nil {
		n.t.Fatal(err)
	}
	return found
}

func cutRecord(s string) (name string, pid int, ok bool) {
	for i := range len(s) {
		if s[i] == ':' {
			name = s[:i]
			for j := i + 1; j < len(s); j++ {
				if s[j] == ':' {
					pid, err := strconv.Atoi(s[i+1 : j])
					return name, pid, err == nil
				}
			}
		}
	}
	return s, 0, false
}

func within(t *testing.T, what string, cond func() bool, say ...func() string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			more := ""
			for _, f := range say {
				more += " (" + f() + ")"
			}
			t.Fatalf("not within 20 s: %s%s", what, more)
		}
	}
}
