package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ringmain/internal/clusterfile"
)

// The state on a data node's disk is damaged while the control plane is down:
// a good key goes on working or gets 503, never 401; a revoked one stays so.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	d := small(t, 26440, "us-east:us")
	data, control := d.node(t, 0, "data"), d.node(t, 0, "control")
	use := func(key string) (answer, error) {
		return d.tryAsk(t.Context(), d.client(false), "POST", data.API+"/v1/chat/completions", chat(d.Model), "authorization", "Bearer "+key)
	}
	want := func(key string, statuses ...int) {
		t.Helper()
		eventually(t, 5*time.Second, func() error {
			a, err := use(key)
			if err != nil || !slices.Contains(statuses, a.status) {
				return fmt.Errorf("%d %s %w, want %v", a.status, a.body, err, statuses)
			}
			return nil
		})
	}
	good, revoked := newKey(t, d, "any"), newKey(t, d, "any")
	want(good, 200)
	want(revoked, 200)

	// Three generations: a lost safety file makes the keeper write a new one.
	release := d.hold(t, 0)
	was := d.now(t, data.Name)
	end(t, syscall.SIGTERM, was.PID)
	safety := filepath.Join(data.DataDir, "safety.log")
	for range 2 {
		damage(t, safety, "flip")
		p := startNode(t, "data", nodeFile(data))
		eventually(t, 15*time.Second, func() error {
			if !strings.Contains(p.out.String(), "wrote a new generation") {
				return fmt.Errorf("no new generation:\n%s", p.out)
			}
			return nil
		})
		want(good, 200)
		p.stop(t)
	}
	p := startNode(t, "data", nodeFile(data))
	want(revoked, 200)
	if _, stderr, code := d.cli(t, "key", "revoke", keyID(t, d, revoked)); code != 0 {
		t.Fatal(stderr)
	}
	want(revoked, 401)
	p.stop(t)
	end(t, syscall.SIGTERM, d.now(t, control.Name).PID)
	whole := t.TempDir()
	_ = os.Remove(filepath.Join(data.DataDir, "worker.sock")) // CopyFS takes no sockets
	if err := os.CopyFS(filepath.Join(whole, "data"), os.DirFS(data.DataDir)); err != nil {
		t.Fatal(err)
	}
	snaps := stateFiles(t, data, "*.snap")
	if len(snaps) != 3 {
		t.Fatalf("want three generations, found %v", snaps)
	}
	deltas := stateFiles(t, data, strings.TrimSuffix(snaps[0], ".snap")+".*.delta")

	for _, tc := range []struct {
		name  string
		files []string // in lkg/, or safety.log
		how   string
		good  int // status of the good key; the revoked one then has 401 or 503
		says  []string
	}{
		{"newest generation, a byte flipped", snaps[:1], "flip", 200, []string{snaps[0], "the next older is tried"}},
		{"newest generation, cut", snaps[:1], "cut", 200, []string{snaps[0], "the next older is tried"}},
		{"newest generation, empty", snaps[:1], "empty", 200, []string{snaps[0], "the next older is tried"}},
		{"second generation, a byte flipped", snaps[1:2], "flip", 200, nil},
		{"two newest generations, a byte flipped", snaps[:2], "flip", 200, []string{snaps[0], snaps[1]}},
		{"all generations, empty", snaps, "empty", 503, snaps},
		{"newest deltas, a byte flipped", deltas, "flip", 200, []string{"the feed will bring the rest"}},
		{"file of revocations, a byte flipped", []string{"safety.log"}, "flip", 503, []string{"safety.log", "until a control node has sent the full state"}},
		{"file of revocations, cut", []string{"safety.log"}, "cut", 503, []string{"safety.log", "until a control node has sent the full state"}},
		{"file of revocations, empty", []string{"safety.log"}, "empty", 503, []string{"safety.log", "until a control node has sent the full state"}},
		{"file of revocations, missing", []string{"safety.log"}, "remove", 503, []string{"safety.log", "until a control node has sent the full state"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := os.RemoveAll(data.DataDir); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(data.DataDir, os.DirFS(filepath.Join(whole, "data"))); err != nil {
				t.Fatal(err)
			}
			for _, f := range tc.files {
				if f != "safety.log" {
					f = filepath.Join("lkg", f)
				}
				damage(t, filepath.Join(data.DataDir, f), tc.how)
			}
			p := startNode(t, "data", nodeFile(data))
			want(good, tc.good)
			for range 3 {
				a, err := use(good)
				if err != nil || a.status != tc.good {
					t.Errorf("a good key: %v %d %s", err, a.status, a.body)
				}
				if tc.good == 503 && a.header.Get("idc-error-code") != "not_ready" {
					t.Errorf("a good key: %s", a.body)
				}
				if a, err := use(revoked); err != nil || a.status != 401 && a.status != 503 {
					t.Errorf("a revoked key: %v %d %s", err, a.status, a.body)
				}
			}
			if a, err := use(revoked); err != nil || tc.good == 200 && a.status != 401 {
				t.Errorf("a revoked key: %v %d", err, a.status)
			}
			p.kill(t, data)
			log := p.out.String()
			for _, s := range tc.says {
				if !strings.Contains(log, s) {
					t.Errorf("the log does not say %q:\n%s", s, log)
				}
			}
			badInput(t, tc.name, fmt.Sprintf("good key %d", tc.good), firstError(log))
		})
	}

	// With everything damaged, the control plane brings it all back.
	for _, f := range stateFiles(t, data, "*") {
		damage(t, filepath.Join(data.DataDir, "lkg", f), "flip")
	}
	release()
	eventually(t, 30*time.Second, func() error {
		g, err := use(good)
		if err != nil || g.status != 200 {
			return fmt.Errorf("good key: %w %d %s", err, g.status, g.body)
		}
		return nil
	})
	want(revoked, 401)
}

// stateFiles are the names in a data node's lkg directory, newest first.
func stateFiles(t *testing.T, n clusterfile.Node, pattern string) (names []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(n.DataDir, "lkg", pattern))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range slices.Backward(paths) {
		names = append(names, filepath.Base(p))
	}
	return names
}

func damage(t *testing.T, path, how string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch how {
	case "flip":
		b[len(b)/2] ^= 0x40
	case "cut":
		b = b[:len(b)/2]
	case "empty":
		b = nil
	case "remove":
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// firstError is the first error in a log, shortened.
func firstError(log string) string {
	for line := range strings.Lines(log) {
		var e struct{ Level, Msg, File, Error string }
		if json.Unmarshal([]byte(line), &e) == nil && e.Level == "ERROR" {
			return fmt.Sprintf("%s: %s: %s", e.Msg, filepath.Base(e.File), filepath.Base(e.Error))
		}
	}
	return "nothing logged as an error"
}
