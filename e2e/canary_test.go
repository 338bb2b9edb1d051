package e2e

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane/seal"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/keeper"
)

// What no process may write anywhere but into an encrypted connection: text of
// a prompt, and text of an answer.
const (
	promptCanary = "kestrelprompt7f3a9c51d2"
	answerCanary = "kestrelanswer4b8e0d66f7"
)

// needles are the forms in which a canary might lie about.
func needles() map[string][]byte {
	all := make(map[string][]byte)
	for name, c := range map[string]string{"prompt": promptCanary, "answer": answerCanary} {
		all[name] = []byte(c)
		all[name+" in hex"] = []byte(hex.EncodeToString([]byte(c)))
		for shift := range 3 {
			enc := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + c + "xx"))
			all[fmt.Sprintf("%s in base64 (%d)", name, shift)] = []byte(enc[4 : len(enc)-8])
		}
	}
	return all
}

// scan adds to found what of the needles is in b.
func scan(found map[string]string, where string, b []byte) {
	for form, n := range needles() {
		if i := bytes.Index(b, n); i >= 0 {
			found[where+": "+form] = fmt.Sprintf("%q", b[max(0, i-60):min(len(b), i+60)])
		}
	}
}

// memfds reads what the processes share in memory.
func memfds(found map[string]string, pids []int) (n int) {
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if to, err := os.Readlink(filepath.Join(dir, e.Name())); err != nil || !strings.HasPrefix(to, "/memfd:") {
				continue
			}
			if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
				scan(found, "shared memory of a data node", b)
				n++
			}
		}
	}
	return n
}

// unseen are the calls that move bytes from one descriptor to another, or write
// by a ring of requests: a trace cannot show what. No node makes any; the front
// door of `ringmain dev` does, between connections that it cannot decrypt.
const unseen = "splice,tee,sendfile,copy_file_range,io_uring_setup"

// scanReceipts reads what the nodes keep as receipts, which are sealed on the disk.
func scanReceipts(t *testing.T, d *devCluster, found map[string]string, ids []string) {
	t.Helper()
	read := 0
	eventually(t, 15*time.Second, func() error { // the last one's batch is signed within a second
		if a, err := d.tryAsk(t.Context(), d.client(true), "GET", d.node(t, 0, "data").API+"/v1/receipts/"+ids[len(ids)-1], "", d.bearer()...); err != nil || a.status != 200 {
			return fmt.Errorf("the last receipt: %w %d", err, a.status)
		}
		return nil
	})
	c := d.client(true)
	for _, id := range ids {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.node(t, 0, "data").API+"/v1/receipts/"+id, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+d.APIKey)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK {
			read++
		}
		scan(found, "a receipt", b)
	}
	if read < 100 {
		t.Errorf("only %d of %d receipts could be read", read, len(ids))
	}
}

// canaryRun starts a cluster of bin under strace, sends the canaries through
// it, and gives what of them was found outside of encrypted connections.
func canaryRun(t *testing.T, bin string, port int) (found map[string]string) {
	t.Helper()
	found = make(map[string]string)
	t.Setenv("GODEBUG", "http2debug=2") // makes net/http print headers and frames
	provider, url, ca := startCanaryProvider(t)
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace")
	d, err := startDevAs([]string{"strace", "-f", "-qq", "--seccomp-bpf", "-s", "2000000", "-o", trace,
		"-e", "trace=write,pwrite64,writev,pwritev,pwritev2,sendto,sendmsg,sendmmsg,vmsplice,process_vm_writev," + unseen, bin},
		dir, port, "--regions", "eu-fra:eu,eu-ams:eu,us-east:us", "--control", "1", "--data", "1", "--seed", canaryManifest(t, url), "--upstream-ca", ca)
	if err != nil {
		t.Fatal(err)
	}
	d.tells(t)
	stopped := false
	defer func() {
		if !stopped {
			_ = d.stop()
		}
	}()
	eventually(t, 15*time.Second, func() error {
		a, err := d.tryAsk(t.Context(), d.client(false), "GET", d.node(t, 0, "data").API+"/v1/models/far-"+modelEcho, "", d.bearer()...)
		if err != nil || a.status != 200 {
			return fmt.Errorf("far-echo: %w %d", err, a.status)
		}
		return nil
	})
	heard, ids := canaryTraffic(t, d)
	provider.mu.Lock()
	t.Logf("the provider received the canary: %v; %d answers brought theirs back", provider.prompts, heard)
	for _, ep := range dialect.Endpoints() {
		if !ep.Stores && provider.prompts[ep.Path] == 0 {
			t.Errorf("no canary reached the provider over %s: the run proves nothing about it", ep.Path)
		}
	}
	provider.mu.Unlock()
	if heard < 100 {
		t.Errorf("only %d answers reached the client", heard)
	}
	scanReceipts(t, d, found, ids)
	var pids []int
	metrics, threads := "", map[string]int{} // of the threads of the nodes, the process
	for i := range d.Regions {
		for _, n := range d.Regions[i].Nodes {
			p := d.now(t, n.Name)
			pids = append(pids, p.PID)
			if p.WorkerPID != 0 {
				pids = append(pids, p.WorkerPID)
			}
			a, err := d.tryAsk(t.Context(), http.DefaultClient, "GET", n.Metrics, "")
			if err != nil || a.status != 200 {
				t.Errorf("metrics of %s: %v %d", n.Name, err, a.status)
			}
			scan(found, "metrics of "+n.Name, []byte(a.body))
			metrics += a.body
		}
	}
	for _, pid := range pids {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, task := range tasks {
			threads[task.Name()] = pid
		}
	}
	for _, sign := range []string{`ringmain_splices_total{result="spliced"} `, `ringmain_splices_total{result="diverged"} `} {
		if !strings.Contains(metrics, sign) {
			t.Errorf("no %s: the run proves nothing about it", sign)
		}
	}
	shared := memfds(found, pids)
	if shared == 0 {
		t.Error("no piece of shared memory could be read: the run proves nothing about it")
	}
	stopped = true
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	scan(found, "what ringmain dev printed", []byte(d.out.String()))
	files, size := 0, int64(0)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files, size = files+1, size+int64(len(b))
		where := strings.TrimPrefix(path, dir+"/")
		scan(found, "the name of a file", []byte(where))
		if path == trace {
			where = "a system call that writes"
			if bytes.Count(b, []byte("write(")) < 1000 {
				t.Errorf("the trace holds hardly any writes: %d", bytes.Count(b, []byte("write(")))
			}
			traced := map[int]bool{}
			for line := range bytes.Lines(b) {
				thread, call, _ := strings.Cut(string(line[:min(len(line), 80)]), " ")
				name, _, _ := strings.Cut(strings.TrimLeft(call, " "), "(")
				pid, node := threads[thread]
				if slices.Contains(strings.Split(unseen, ","), name) && node {
					t.Errorf("a node moved bytes by a call whose trace does not show them: %s", call)
				}
				traced[pid] = true
			}
			for _, pid := range pids {
				if !traced[pid] {
					t.Errorf("process %d of a node is not in the trace: the run proves nothing about it", pid)
				}
			}
		}
		scan(found, where, b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	records := 0
	for i := range d.Regions {
		n := d.node(t, i, "data")
		conf := readNodeYAML(t, n)
		holder, err := seal.OpenFileHolder(conf.SealKeyFile)
		if err != nil {
			t.Fatal(err)
		}
		err = keeper.ReadSpool(n.DataDir, conf.Cluster, conf.Node, seal.New(holder), func(raw []byte) error {
			scan(found, "a metadata record", raw)
			records++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if records < 50 {
		t.Errorf("only %d metadata records", records)
	}
	t.Logf("scanned %d files (%d MiB, the trace of every write among them), %d records, %d pieces of shared memory", files, size>>20, records, shared)
	return found
}

// edit changes one place of a source file, or adds a file where before is empty.
type edit struct{ file, before, after string }

// planted builds ringmain with its source changed, such as by the leak that a
// scan must find.
func planted(t *testing.T, edits ...edit) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for i, e := range edits {
		path, err := filepath.Abs(filepath.Join("..", e.file))
		if err != nil {
			t.Fatal(err)
		}
		source := []byte(e.after)
		if e.before != "" {
			if source, err = os.ReadFile(cmp.Or(replace[path], path)); err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(source), e.before); n != 1 {
				t.Fatalf("%s holds the place to change %d times: %s", e.file, n, e.before)
			}
			source = []byte(strings.Replace(string(source), e.before, e.after, 1))
		}
		replace[path] = filepath.Join(dir, fmt.Sprintf("changed%d.go", i))
		if err := os.WriteFile(replace[path], source, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "ringmain")
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", bin, "ringmain/cmd/ringmain").CombinedOutput(); err != nil {
		t.Fatalf("build with changed source: %v\n%s", err, out)
	}
	return bin
}

// Prompts and answers pass through every endpoint, error path, failover and
// splice. No process writes them to a file, a pipe or a socket in the clear, no
// file, log, record or metric holds them, and the same search finds two leaks
// that were planted.
func TestContentIsKeptNowhere(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("strace is needed in CI")
		}
		t.Skip("NOT RUN: no strace on this machine")
	}
	t.Run("as built", func(t *testing.T) {
		for where, text := range canaryRun(t, binary, 27440) {
			t.Errorf("%s\n\t%s", where, text)
		}
	})
	t.Run("with planted leaks", func(t *testing.T) {
		bin := planted(t, leaks...)
		found := canaryRun(t, bin, 27440)
		for _, want := range []string{"node.log: prompt", "a system call that writes: prompt", "a metadata record: prompt"} {
			seen := false
			for where := range found {
				seen = seen || strings.Contains(where, want)
			}
			if !seen {
				t.Errorf("the planted leak was not found in %q; found: %v", want, found)
			}
		}
	})
}

// leaks are the planted ones: prompts in the log, and in the metadata record. They
// are taken while the request's memory is lent, since it is given back early.
var leaks = []edit{
	{"dataplane/exchange/serve.go", "\tbody  *body.Body\n", "\tbody  *body.Body\n\tleak  string\n"},
	{"dataplane/exchange/inference.go", "\tx.model = query.Model\n", `	x.model = query.Model
	x.leak = string(x.body.Bytes())
	x.leak = x.leak[:min(len(x.leak), 400)]
`},
	{"dataplane/exchange/record.go", "\trec.Receipt = x.leaf()\n", `	rec.Receipt = x.leaf()
	if x.leak != "" {
		x.node.Log.Warn("planted", "prompt", x.leak)
		rec.Upstream = x.leak
	}
`},
}
