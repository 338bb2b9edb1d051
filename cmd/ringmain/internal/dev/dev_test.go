package dev

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/internal/clusterfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseRegions(t *testing.T) {
	got, err := ParseRegions("us-east:us, eu-fra:eu,eu-ams:eu")
	if err != nil || len(got) != 3 || got[2] != (RegionShape{"eu-ams", "eu"}) {
		t.Fatalf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "us-east", "us-east:any", "us-east:US", "US:us", "a1:us,a1:eu", "us east:us", "x:us"} {
		if got, err := ParseRegions(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

// Every address of the largest shape is its own: regions' blocks do not overlap.
func TestPortsNeverCollide(t *testing.T) {
	s := Shape{Cluster: "x", Control: 5, Data: 9, Port: 8440}
	for i := range 9 {
		s.Regions = append(s.Regions, RegionShape{Name: fmt.Sprintf("region-%d", i), Jurisdiction: "eu"})
	}
	if err := s.check(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	add := func(what, addr string) {
		if other, ok := seen[addr]; ok {
			t.Errorf("%s is both %s and %s", addr, other, what)
		}
		seen[addr] = what
	}
	add("front door", s.addr(0))
	for r := range s.Regions {
		add("api", s.api(r))
		add("admin", s.admin(r))
		add("model", s.model(r))
		for i := range s.Control {
			for w := range 5 {
				add(fmt.Sprintf("control %d %d %d", r, i, w), s.control(r, i, w))
			}
		}
		for i := range s.Data {
			for w := range 4 {
				add(fmt.Sprintf("data %d %d %d", r, i, w), s.data(r, i, w))
			}
			add(fmt.Sprintf("data wan %d %d", r, i), s.dataWAN(r, i))
		}
	}
}

func TestPrepareRemembersItsShape(t *testing.T) {
	dir := t.TempDir()
	opts := Options{Now: time.Now, Shape: Shape{Regions: []RegionShape{{"us-east", "us"}}, Control: 1, Data: 1, Port: 30440}}
	made, err := prepare(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	again, err := prepare(dir, opts)
	if err != nil || again.Cluster != made.Cluster {
		t.Fatalf("%v, %v: a second start must resume the same cluster", again, err)
	}
	for _, n := range made.nodes(dir) {
		if _, err := config.Load(n.configFile(), nil); err != nil {
			t.Errorf("%s: %v", n.name, err)
		}
	}
	opts.Shape.Data = 2
	if _, err := prepare(dir, opts); err == nil || !strings.Contains(err.Error(), "FRESH=1") {
		t.Errorf("another shape: %v", err)
	}
	stranger := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(stranger, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := prepare(stranger, opts); err == nil {
		t.Error("a directory with somebody else's files was taken")
	}
	if err := clear(stranger); err == nil {
		t.Error("--fresh emptied a directory that holds no cluster")
	}
}

func TestTwoOnOneDirectory(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); err == nil || !strings.Contains(err.Error(), "another `ringmain dev`") {
		t.Errorf("the second got %v", err)
	}
	unlock()
	unlock, err = lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// A hold lasts as long as the connection that asked for it.
func TestHoldEndsWithItsConnection(t *testing.T) {
	s := newSupervisor("", nil, func(*node) string { return "eu-fra" }, t.Logf)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, l, []string{"eu-fra"}) }()
	held := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.holds["eu-fra"]
	}
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(conn)
	say := func(text string) (ans supervisorAnswer) {
		t.Helper()
		fmt.Fprintln(conn, text)
		if !lines.Scan() {
			t.Fatal("no answer")
		}
		if err := json.Unmarshal(lines.Bytes(), &ans); err != nil {
			t.Fatal(err)
		}
		return ans
	}
	for _, bad := range []string{`{"op":"hold","region":"mars"}`, `{"op":"release","region":"eu-fra"}`, `nonsense`, `{"op":"dance","region":"eu-fra"}`} {
		if say(bad).OK {
			t.Errorf("%s was accepted", bad)
		}
	}
	if !say(`{"op":"hold","region":"eu-fra"}`).OK || held() != 1 {
		t.Fatal("not held")
	}
	_ = conn.Close()
	for deadline := time.Now().Add(3 * time.Second); held() != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still held after the connection is gone")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestPathTooLongForASocketIsNamed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 110))
	opts := Options{Dir: dir, Now: time.Now, Shape: Shape{Regions: []RegionShape{{"us-east", "us"}}, Control: 1, Data: 1, Port: 30440}}
	if err := Run(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory was made all the same")
	}
}

// A worker that is gone leaves no pid behind that a drill could signal.
func TestClusterFileForgetsDeadWorkers(t *testing.T) {
	n := &node{name: "us-east-d1", role: config.Data}
	c := &cluster{sup: newSupervisor("", nil, func(*node) string { return "us-east" }, t.Logf)}
	c.file.Regions = []clusterfile.Region{{Nodes: []clusterfile.Node{{Name: n.name}}}}
	me := os.Getpid()
	for _, p := range []struct {
		worker proc
		want   int
	}{{proc{me, startTime(me)}, me}, {proc{me, "1"}, 0}, {proc{}, 0}} {
		c.sup.procs[n.name] = &process{node: n, worker: p.worker}
		c.notePIDs()
		if got := c.file.Regions[0].Nodes[0].WorkerPID; got != p.want {
			t.Errorf("worker %+v: pid %d in cluster.json, want %d", p.worker, got, p.want)
		}
	}
}

// A first start that fails, on a full disk say, leaves nothing in the way of the next.
func TestPrepareLeavesNoHalfCluster(t *testing.T) {
	dir := t.TempDir()
	opts := Options{Now: time.Now, Shape: Shape{Regions: []RegionShape{{strings.Repeat("r", 300), "us"}}, Control: 1, Data: 1, Port: 30440}}
	if _, err := prepare(dir, opts); err == nil {
		t.Fatal("an impossible region was prepared")
	}
	opts.Shape.Regions[0].Name = "us-east"
	if _, err := prepare(dir, opts); err != nil {
		t.Errorf("after a start that failed: %v", err)
	}
}

func TestQuoted(t *testing.T) {
	for path, want := range map[string]string{"/a/b-c.pem": "/a/b-c.pem", "/a b/c": "'/a b/c'", "/it's": `'/it'\''s'`, "/$x": "'/$x'"} {
		if got := quoted(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}
