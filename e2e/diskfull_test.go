package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ringmain/internal/clusterfile"
)

// ontoSmallDisk moves a stopped node's data to a file system of size bytes. It
// is unmounted at the end of the test, after the cluster has stopped.
func ontoSmallDisk(t *testing.T, d *devCluster, n clusterfile.Node, size int) {
	t.Helper()
	moved := copied(t, d, n)
	if err := syscall.Mount("ringmain-e2e", n.DataDir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(n.DataDir, os.DirFS(moved)); err != nil {
		t.Fatal(err)
	}
}

// fill leaves no room on the file system of dir, until free is called.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
			chunk = chunk[:len(chunk)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A full disk refuses what cannot be kept, says so, and loses nothing that was
// acknowledged; with space again, everything works again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	probe := t.TempDir()
	if err := syscall.Mount("ringmain-e2e", probe, "tmpfs", 0, "size=65536"); err != nil {
		t.Skipf("no file system can be mounted here, which a full disk needs (run as root, outside a restricted container): %v", err)
	}
	if err := syscall.Unmount(probe, 0); err != nil {
		t.Fatal(err)
	}
	var mounts []string
	dir := t.TempDir()
	t.Cleanup(func() { // after the cluster has stopped, before dir is removed
		for _, m := range mounts {
			if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	d, err := startDev(dir, 29440, "--regions", "us-east:us", "--control", "1", "--data", "1")
	if err != nil {
		t.Fatal(err)
	}
	d.tells(t)
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	data, control := d.node(t, 0, "data"), d.node(t, 0, "control")
	release := d.hold(t, 0)
	end(t, syscall.SIGTERM, d.now(t, data.Name).PID)
	end(t, syscall.SIGTERM, d.now(t, control.Name).PID)
	// A control node allots its log in files of 16 MiB.
	ontoSmallDisk(t, d, control, 40<<20)
	mounts = append(mounts, control.DataDir)
	ontoSmallDisk(t, d, data, 4<<20)
	mounts = append(mounts, data.DataDir)
	// Little memory for records, so that it is soon full.
	small := variant(t, data, "record_memory: 0", "record_memory: 16384")
	b, err := os.ReadFile(small)
	if err == nil {
		err = os.WriteFile(nodeFile(data), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	release()
	d.ready(t, data.API, 20*time.Second)
	eventually(t, 10*time.Second, func() error {
		return asked(d.ask(t, "POST", data.API+"/v1/chat/completions", chat(d.Model), d.bearer()...), 200, "unpinned")
	})

	t.Run("data node", func(t *testing.T) {
		free := fill(t, data.DataDir)
		c := d.client(false)
		defer c.CloseIdleConnections()
		var answered []*request
		var refused *request
		for i := 0; i < 400 && refused == nil; i += 8 {
			var batch []*request
			for range 8 {
				batch = append(batch, &request{entry: data, model: d.Model, stream: i%16 == 0})
			}
			sendAll(t, d, batch, 8, nil)
			for _, r := range batch {
				switch {
				case r.whole:
					answered = append(answered, r)
				case r.stream && r.status == http.StatusOK:
					// It had begun: ended with an error event and a broken connection.
				case r.status == http.StatusServiceUnavailable && r.header.Get("idc-error-code") == "metering_unavailable" && r.header.Get("retry-after") != "":
					refused = r
				default:
					t.Fatalf("%s: %d %v %v", r.describe(), r.status, r.header, r.err)
				}
			}
		}
		if refused == nil || len(answered) < 16 {
			t.Fatalf("%d answered, refused %v", len(answered), refused)
		}
		// It is alive and still knows its keys. For one by itself there may be room
		// where eight had none.
		eventually(t, 10*time.Second, func() error {
			a := d.ask(t, "POST", data.API+"/v1/chat/completions", chat(d.Model), d.bearer()...)
			if a.status == http.StatusOK {
				r := &request{entry: data, model: d.Model, status: a.status, header: a.header}
				r.read(a.body)
				answered = append(answered, r)
				return errors.New("every request was answered")
			}
			wantError(t, a, "/v1/chat/completions", 503, "metering_unavailable")
			return nil
		})
		wantError(t, d.ask(t, "POST", data.API+"/v1/chat/completions", chat(d.Model), "authorization", "Bearer "+flipped(d.APIKey)), "/v1/chat/completions", 401, "invalid_api_key")
		free()
		eventually(t, 15*time.Second, func() error {
			return asked(d.ask(t, "POST", data.API+"/v1/chat/completions", chat(d.Model), d.bearer()...), 200, "unpinned")
		})
		books := settled(t, d, answered)
		for _, r := range answered {
			books.check(t, r)
		}
		if log := d.nodeLog(t, data); !strings.Contains(log, "metadata records cannot be written") || !strings.Contains(log, "metadata records are written again") {
			t.Errorf("the log does not tell of the full disk:\n%s", log)
		}
		badInput(t, "data node: full disk", fmt.Sprintf("%d answers, then 503 metering_unavailable; all recorded once there was room", len(answered)), firstError(d.nodeLog(t, data)))
	})

	t.Run("control node", func(t *testing.T) {
		stdout, stderr, code := d.cli(t, "org", "create", "full-disk", "--plan", "enterprise", "--state", "verified", "-o", "json")
		if code != 0 {
			t.Fatal(stderr)
		}
		org := field(t, stdout, "id")
		free := fill(t, control.DataDir)
		// Every write is large, so that the log's file that was allotted ahead is soon full.
		var models []string
		for i := range 250 {
			models = append(models, fmt.Sprintf("%q", fmt.Sprintf("%s-%03d", strings.Repeat("m", 90), i)))
		}
		allowed := "[" + strings.Join(models, ",") + "]"
		var mu sync.Mutex // guards acked and refused
		var acked []string
		var refused answer
		create := func(name string) answer {
			a, err := d.tryAdmin(t, "POST", "/admin/v1/orgs/"+org+"/projects", fmt.Sprintf(`{"name":%q}`, name))
			if err != nil || a.status/100 != 2 {
				return a
			}
			id := field(t, a.body, "id")
			mu.Lock()
			acked = append(acked, id)
			mu.Unlock()
			a, _ = d.tryAdmin(t, "POST", "/admin/v1/orgs/"+org+"/policies", fmt.Sprintf(`{"project":%q,"models":%s}`, id, allowed))
			return a // without a status, if the connection broke
		}
		var writers sync.WaitGroup
		for w := range 8 {
			writers.Go(func() {
				for i := range 150 {
					a := create(fmt.Sprintf("p%d-%d", w, i))
					mu.Lock()
					if a.status/100 != 2 && refused.status == 0 {
						refused = a
					}
					full := refused.status != 0
					mu.Unlock()
					if full {
						return
					}
				}
			})
		}
		writers.Wait()
		t.Logf("%d projects, then %d %s", len(acked), refused.status, refused.body)
		// The write that met the full disk may be in the log or not; it says so.
		code = map[string]int{"disk_full": 1, "uncertain": 1}[refused.header.Get("ringmain-error-code")]
		if refused.status != 503 || code != 1 || !strings.Contains(refused.body, "disk of the control node is full") || !strings.Contains(refused.body, "ree space") {
			t.Errorf("%d %s", refused.status, refused.body)
		}
		badInput(t, "control node: full disk", fmt.Sprintf("%d %s", refused.status, refused.header.Get("ringmain-error-code")), field(t, refused.body, "detail"))
		if a := create("refused"); a.status != 503 {
			t.Errorf("another write on a full disk: %d %s", a.status, a.body)
		} else {
			badInput(t, "control node: full disk, the next write", fmt.Sprintf("%d %s", a.status, a.header.Get("ringmain-error-code")), field(t, a.body, "detail"))
		}
		// Requests go on, and so does the process.
		if is := d.now(t, control.Name); is.State != "running" {
			t.Errorf("the control node: %+v", is)
		}
		if a := d.ask(t, "POST", data.API+"/v1/chat/completions", chat(d.Model), d.bearer()...); a.status != 200 {
			t.Errorf("request on a full disk: %d %s", a.status, a.body)
		}
		free()
		eventually(t, 15*time.Second, func() error {
			if a := create(fmt.Sprint("after", len(acked))); a.status/100 != 2 {
				return fmt.Errorf("with space again: %d %s", a.status, a.body)
			}
			return nil
		})
		// All that was acknowledged is there, also after a crash.
		end(t, syscall.SIGKILL, d.now(t, control.Name).PID)
		eventually(t, 20*time.Second, func() error {
			for _, id := range acked {
				a, err := d.tryAdmin(t, "GET", "/admin/v1/projects/"+id, "")
				if err != nil || a.status != 200 {
					return fmt.Errorf("acknowledged project %s: %w %d %s", id, err, a.status, a.body)
				}
			}
			return nil
		})
	})
}

func (d *devCluster) nodeLog(t testing.TB, n clusterfile.Node) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(nodeDir(n), "node.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
