package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper"
	"ringmain/dataplane/meter"
	"ringmain/drills/simmodel"
	"ringmain/internal/clusterfile"
)

// secretWord is part of every prompt below, and may be in no record.
const secretWord = "heliotrope"

// faultRoutes gives the first region's provider and its faults names of their
// own: asked in the second region, they are forwarded.
func faultRoutes(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("routes:\n")
	route := func(model, upstream, served string) {
		fmt.Fprintf(&b, "  - model: %s\n    targets: [{upstream: %s, model: %q}]\n", model, upstream, served)
		if served == simmodel.FaultStall { // no other: what a provider has sent whole is to be read whole
			fmt.Fprintln(&b, "    timeouts: {between_events_ms: 400}")
		}
	}
	for _, fault := range []string{simmodel.Fault429, simmodel.Fault500Once, simmodel.Fault503, simmodel.FaultReset,
		simmodel.FaultCut, simmodel.FaultCutClean, simmodel.FaultStall, simmodel.FaultRefusal, simmodel.FaultLateError} {
		route(fault, "sim-us-east", fault)
		route(fault+"-messages", "sim-us-east-anthropic", fault)
	}
	route("slow", "sim-us-east", "sim-slow:tps=20")
	route("far-messages", "sim-eu-fra-anthropic", "sim-far-messages")
	path := filepath.Join(t.TempDir(), "faults.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// request is one to send and, afterwards, what its client saw.
type request struct {
	entry    clusterfile.Node
	model    string
	messages bool // Anthropic's dialect
	stream   bool
	usage    bool // ask a stream for its usage
	leave    bool // go away after the first bytes

	status  int
	header  http.Header
	whole   bool // a complete answer, by its dialect's rules
	in, out int64
	tokens  bool // in and out were shown
	err     error
}

func (r *request) id() string { return r.header.Get("idc-request-id") }
func (r *request) forwarded() bool {
	return r.header.Get("idc-region") != r.header.Get("idc-entry-region")
}
func (r *request) answered() bool { return r.err == nil && r.status != 0 }
func (r *request) describe() string {
	return fmt.Sprintf("%s %s (stream %v) at %s", r.id(), r.model, r.stream, r.entry.Name)
}

// send asks and notes what came back.
func (r *request) send(ctx context.Context, d *devCluster, c *http.Client, i int) {
	path, prompt := "/v1/chat/completions", fmt.Sprintf("%s %d: which region feeds the ring?", secretWord, i)
	body := map[string]any{"model": r.model, "messages": []any{map[string]string{"role": "user", "content": prompt}}, "stream": r.stream}
	if r.messages {
		path, body["max_tokens"] = "/v1/messages", 64
	} else if r.usage {
		body["stream_options"] = map[string]bool{"include_usage": true}
	}
	b, err := json.Marshal(body)
	if err != nil {
		r.err = err
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.entry.API+path, bytes.NewReader(b))
	if err != nil {
		r.err = err
		return
	}
	req.Header.Set("authorization", "Bearer "+d.APIKey)
	resp, err := c.Do(req)
	if err != nil {
		r.err = err
		return
	}
	defer resp.Body.Close()
	r.status, r.header = resp.StatusCode, resp.Header
	if r.leave {
		_, r.err = io.ReadFull(resp.Body, make([]byte, 16))
		return // cancels
	}
	text, err := io.ReadAll(resp.Body)
	r.err = err
	r.read(string(text))
}

// read finds the end mark and the usage.
func (r *request) read(text string) {
	if r.status != http.StatusOK {
		return
	}
	type usage struct {
		Prompt     int64 `json:"prompt_tokens"`
		Completion int64 `json:"completion_tokens"`
		Input      int64 `json:"input_tokens"`
		Output     int64 `json:"output_tokens"`
	}
	note := func(u *usage) {
		if u == nil {
			return
		}
		r.tokens = true
		r.in, r.out = max(r.in, u.Prompt, u.Input), max(r.out, u.Completion, u.Output)
	}
	type event struct {
		Type    string `json:"type"`
		Usage   *usage `json:"usage"`
		Message *struct {
			Usage *usage `json:"usage"`
		} `json:"message"`
		Error any `json:"error"`
	}
	if !r.stream {
		var e event
		r.whole = r.err == nil && json.Unmarshal([]byte(text), &e) == nil
		note(e.Usage)
		return
	}
	for line := range strings.Lines(text) {
		data, ok := strings.CutPrefix(strings.TrimSpace(line), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			r.whole = true
			continue
		}
		var e event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			r.err = errors.Join(r.err, fmt.Errorf("event %q: %w", data, err))
			continue
		}
		note(e.Usage)
		if e.Message != nil {
			note(e.Message.Usage)
		}
		r.whole = r.whole || e.Type == "message_stop"
	}
}

// sendAll runs the requests, a few at a time, and calls after with how many
// have ended.
func sendAll(t *testing.T, d *devCluster, requests []*request, atOnce int, after func(ended int)) {
	t.Helper()
	c := d.client(false)
	defer c.CloseIdleConnections()
	work, ended := make(chan int), make(chan struct{})
	var clients sync.WaitGroup
	for range atOnce {
		clients.Go(func() {
			for i := range work {
				requests[i].send(t.Context(), d, c, i)
				ended <- struct{}{}
			}
		})
	}
	go func() {
		for i := range requests {
			work <- i
		}
		close(work)
		clients.Wait()
		close(ended)
	}()
	n := 0
	for range ended {
		n++
		if after != nil {
			after(n)
		}
	}
}

// books are the records of a cluster's data nodes.
type books struct {
	front, witness map[string][]kept // by request id
	n              int
}

type kept struct {
	node string
	meter.Record
}

// readBooks reads every data node's spool.
func readBooks(t testing.TB, d *devCluster) books {
	t.Helper()
	b := books{front: map[string][]kept{}, witness: map[string][]kept{}}
	for region := range d.Regions {
		n := d.node(t, region, "data")
		conf := readNodeYAML(t, n)
		holder, err := seal.OpenFileHolder(conf.SealKeyFile)
		if err != nil {
			t.Fatal(err)
		}
		err = keeper.ReadSpool(n.DataDir, conf.Cluster, conf.Node, seal.New(holder), func(raw []byte) error {
			if bytes.Contains(raw, []byte(secretWord)) || bytes.Contains(raw, []byte("feeds the ring")) {
				t.Errorf("%s: a record holds text of a prompt: %q", n.Name, raw)
			}
			if bytes.Contains(raw, []byte(strings.Split(d.APIKey, "_")[4])) {
				t.Errorf("%s: a record holds a key", n.Name)
			}
			rec, err := meter.Decode(raw)
			if err != nil {
				return err
			}
			to := b.front
			if rec.Role == meter.RoleWitness {
				to = b.witness
			}
			to[rec.RequestID] = append(to[rec.RequestID], kept{n.Name, *rec})
			b.n++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// settled reads the books once every request of want has its record, and the
// number of records stands still.
func settled(t testing.TB, d *devCluster, want []*request) (b books) {
	t.Helper()
	last := -1
	eventually(t, 10*time.Second, func() error {
		b = readBooks(t, d)
		for _, r := range want {
			if len(b.front[r.id()]) == 0 {
				return fmt.Errorf("%s: status %d, no record", r.describe(), r.status)
			}
			if r.whole && r.forwarded() && len(b.witness[r.id()]) == 0 {
				return fmt.Errorf("%s: no witness", r.describe())
			}
		}
		if b.n != last {
			last = b.n
			return fmt.Errorf("%d records, still growing", b.n)
		}
		return nil
	})
	return b
}

// check compares one answered request with its records.
func (b books) check(t testing.TB, r *request) {
	t.Helper()
	front, witness := b.front[r.id()], b.witness[r.id()]
	if len(front) != 1 {
		t.Errorf("%s: %d records", r.describe(), len(front))
		return
	}
	f := front[0]
	if f.node != r.entry.Name || f.EntryNode != r.entry.Name {
		t.Errorf("%s: recorded at %s for entry %s", r.describe(), f.node, f.EntryNode)
	}
	if f.Status != r.status || f.Code != r.header.Get("idc-error-code") && r.status != http.StatusOK {
		t.Errorf("%s: recorded %d %s, the client saw %d %s", r.describe(), f.Status, f.Code, r.status, r.header.Get("idc-error-code"))
	}
	if f.Region != r.header.Get("idc-region") {
		t.Errorf("%s: recorded in %s, the client was told %s", r.describe(), f.Region, r.header.Get("idc-region"))
	}
	if attempts := r.header.Get("idc-attempts"); attempts != strconv.Itoa(f.Attempts) && !r.stream {
		t.Errorf("%s: recorded %d attempts, the client was told %s", r.describe(), f.Attempts, attempts)
	}
	if complete := f.Ended == meter.EndComplete; complete != r.whole {
		t.Errorf("%s: recorded as %s, the client saw a complete answer: %v (%v)", r.describe(), f.Ended, r.whole, r.err)
	}
	if r.whole && f.Source != meter.SourceProvider {
		t.Errorf("%s: complete, with token counts by %s", r.describe(), f.Source)
	}
	if r.tokens && r.whole && (f.TokensIn != r.in || f.TokensOut != r.out) {
		t.Errorf("%s: recorded %d + %d tokens, the client saw %d + %d", r.describe(), f.TokensIn, f.TokensOut, r.in, r.out)
	}
	switch {
	case len(witness) > 1 && r.whole:
		t.Errorf("%s: %d witness records", r.describe(), len(witness))
	case r.whole && r.forwarded() != (len(witness) == 1):
		t.Errorf("%s: executed in %s, %d witness records", r.describe(), r.header.Get("idc-region"), len(witness))
	case r.whole && len(witness) == 1:
		w := witness[0]
		if w.node != f.Node || w.EntryNode != f.EntryNode || w.TokensIn != f.TokensIn || w.TokensOut != f.TokensOut || w.Ended != f.Ended || w.Upstream != f.Upstream {
			t.Errorf("%s: the witness differs:\n%+v\n%+v", r.describe(), f, w)
		}
	}
}

// served adds up the providers' own counts.
func served(t testing.TB, d *devCluster) (total simmodel.ModelCounts) {
	t.Helper()
	for _, u := range d.Upstreams {
		a := d.ask(t, "GET", u.URL+"/sim/counts", "")
		var c simmodel.Counts
		if err := json.Unmarshal([]byte(a.body), &c); err != nil {
			t.Fatal(err)
		}
		total.Requests += c.Total.Requests
		total.Completed += c.Total.Completed
		total.PromptTokens += c.Total.PromptTokens
		total.CompletionTokens += c.Total.CompletionTokens
		total.ClientGone += c.Total.ClientGone
	}
	return total
}

// tokens adds up what the records bill for complete answers.
func (b books) tokens(requests []*request) (complete, in, out int64) {
	for _, r := range requests {
		for _, f := range b.front[r.id()] {
			if f.Ended == meter.EndComplete {
				complete, in, out = complete+1, in+f.TokensIn, out+f.TokensOut
			}
		}
	}
	return complete, in, out
}

func (b books) attempts(requests []*request) (n int64) {
	for _, r := range requests {
		for _, f := range b.front[r.id()] {
			n += int64(f.Attempts)
		}
	}
	return n
}

// Every answered request is recorded exactly once, by what its client saw and
// by what its provider counted; also when a worker or a keeper is killed.
func TestMetering(t *testing.T) {
	t.Parallel()
	d := small(t, 32440, "us-east:us,eu-fra:eu", "--seed", faultRoutes(t))
	us, eu := d.node(t, 0, "data"), d.node(t, 1, "data")

	t.Run("mixed", func(t *testing.T) {
		before := served(t, d)
		var requests []*request
		for i := 0; len(requests) < 200; i++ {
			entry := us
			if i%2 == 1 {
				entry = eu
			}
			add := func(r request) { r.entry = entry; requests = append(requests, &r) }
			stream, usage := i%4 < 2, i%3 == 0
			add(request{model: d.Model, stream: stream, usage: usage})
			add(request{model: d.Model})
			add(request{model: d.RemoteModel, stream: stream, usage: usage})
			add(request{model: d.MessagesModel, messages: true, stream: stream})
			add(request{model: "far-messages", messages: true, stream: !stream})
			add(request{model: simmodel.FaultRefusal, stream: stream})
			add(request{model: simmodel.FaultRefusal + "-messages", messages: true, stream: !stream})
			switch i % 10 {
			case 0, 1:
				add(request{model: simmodel.Fault429})
				add(request{model: simmodel.FaultStall, stream: true})
			case 2, 3:
				add(request{model: simmodel.Fault503 + "-messages", messages: true, stream: true})
				add(request{model: simmodel.FaultCutClean, stream: true})
			case 4, 5:
				add(request{model: simmodel.FaultCut, stream: true})
				add(request{model: simmodel.FaultCut + "-messages", messages: true})
			case 6, 7:
				add(request{model: simmodel.Fault500Once})
				add(request{model: "slow", stream: true, leave: true})
			default:
				add(request{model: "no-such-model"})
				add(request{model: simmodel.FaultLateError + "-messages", messages: true, stream: true})
			}
		}
		sendAll(t, d, requests, 16, nil)
		ends := map[string]int{}
		for _, r := range requests {
			if r.status == 0 {
				t.Fatalf("%s: not answered: %v", r.describe(), r.err)
			}
			ends[fmt.Sprintf("%d whole=%v", r.status, r.whole)]++
		}
		b := settled(t, d, requests)
		for _, r := range requests {
			b.check(t, r)
		}
		ids := map[string]bool{}
		for _, r := range requests {
			if ids[r.id()] {
				t.Errorf("request id %s came twice", r.id())
			}
			ids[r.id()] = true
		}
		after := served(t, d)
		complete, in, out := b.tokens(requests)
		t.Logf("%d requests, %d records; answers %v; complete %d, tokens %d + %d", len(requests), b.n, ends, complete, in, out)
		if c, p, o := after.Completed-before.Completed, after.PromptTokens-before.PromptTokens, after.CompletionTokens-before.CompletionTokens; c != complete || p != in || o != out {
			t.Errorf("recorded %d complete answers with %d + %d tokens; the providers served %d with %d + %d", complete, in, out, c, p, o)
		}
		if asked, attempts := after.Requests-before.Requests, b.attempts(requests); asked != attempts {
			t.Errorf("recorded %d attempts; the providers were asked %d times", attempts, asked)
		}
		if complete < 120 || len(ends) < 4 {
			t.Errorf("the mix did not happen: %v", ends)
		}
		stray(t, b, requests)
	})

	// under runs streams and plain requests at us, calls kill after some have
	// ended, and gives the requests.
	under := func(t *testing.T, kill func()) []*request {
		var requests []*request
		for i := range 120 {
			r := &request{entry: us, model: d.Model, stream: i%2 == 0, usage: true}
			if i%3 == 0 {
				r.model = d.RemoteModel
			}
			requests = append(requests, r)
		}
		sendAll(t, d, requests, 8, func(ended int) {
			if ended == 40 {
				kill()
			}
		})
		return requests
	}
	once := func(t *testing.T, requests []*request, mayFail bool) {
		var answered []*request
		failed := 0
		for _, r := range requests {
			if r.answered() && (r.whole || r.status != http.StatusOK) {
				answered = append(answered, r)
			} else {
				failed++
			}
			if !mayFail && !r.whole {
				t.Errorf("%s: %d %v", r.describe(), r.status, r.err)
			}
		}
		b := settled(t, d, answered)
		for _, r := range answered {
			b.check(t, r)
		}
		for id, f := range b.front {
			if len(f) > 1 {
				t.Errorf("%s is recorded %d times", id, len(f))
			}
		}
		for id, w := range b.witness {
			if len(w) > 1 {
				t.Errorf("%s is witnessed %d times", id, len(w))
			}
		}
		t.Logf("%d answered, %d not", len(answered), failed)
	}

	t.Run("worker killed", func(t *testing.T) {
		was := d.now(t, us.Name)
		requests := under(t, func() { end(t, syscall.SIGKILL, was.WorkerPID) })
		d.ready(t, us.API, 10*time.Second)
		if is := d.now(t, us.Name); is.WorkerPID == was.WorkerPID || is.PID != was.PID {
			t.Errorf("was %+v, is %+v", was, is)
		}
		once(t, requests, true)
	})
	t.Run("keeper killed", func(t *testing.T) {
		was := d.now(t, us.Name)
		requests := under(t, func() { end(t, syscall.SIGKILL, was.PID) })
		eventually(t, 10*time.Second, func() error {
			is := d.now(t, us.Name)
			if is.PID == 0 || is.PID == was.PID || is.WorkerPID == 0 {
				return fmt.Errorf("was %+v, is %+v", was, is)
			}
			if is.WorkerPID != was.WorkerPID {
				t.Fatalf("the worker was replaced: was %+v, is %+v", was, is)
			}
			return nil
		})
		once(t, requests, false)
	})
}

// stray looks for records of requests that nobody sent.
func stray(t testing.TB, b books, requests []*request) {
	t.Helper()
	sent := map[string]bool{}
	for _, r := range requests {
		sent[r.id()] = true
	}
	for _, records := range []map[string][]kept{b.front, b.witness} {
		for id, r := range records {
			if !sent[id] {
				t.Errorf("a record of %s, which nobody sent: %+v", id, r)
			}
		}
	}
}
