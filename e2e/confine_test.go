package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Somebody with the right to do so loosens a running worker: it notices, says
// so in metrics, receipts and the list of nodes, and serves no zero retention
// from then on; all else it serves. Confined again, it serves that again.
func TestALoosenedWorkerServesNoZeroRetention(t *testing.T) {
	d, err := startDev(t.TempDir(), 20840, "--regions", "eu-fra:eu", "--control", "1", "--data", "2")
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
	const loosened, other = 0, 1
	type node struct {
		name, api, metrics string
		worker             int
	}
	var nodes []node
	for _, n := range d.Regions[0].Nodes {
		if n.Role == "data" {
			nodes = append(nodes, node{n.Name, n.API, n.Metrics, d.now(t, n.Name).WorkerPID})
		}
	}
	ask := func(at int, header ...string) answer {
		t.Helper()
		a, err := d.tryAsk(t.Context(), d.client(false), "POST", nodes[at].api+"/v1/chat/completions", chat(d.Model), append(d.bearer(), header...)...)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	zero := func(at, status int, code string) error {
		a := ask(at, "idc-no-retention", "true")
		if a.status != status || a.header.Get("idc-error-code") != code || status == 200 && a.header.Get("idc-pool") != "zero-retention" {
			return fmt.Errorf("zero retention at %s: %d %s %s", nodes[at].name, a.status, a.header.Get("idc-error-code"), a.body)
		}
		return nil
	}
	states := func(at int, holds bool) error {
		a, err := d.tryAsk(t.Context(), http.DefaultClient, "GET", nodes[at].metrics, "")
		if err != nil {
			return err
		}
		value := map[bool]string{true: " 1\n", false: " 0\n"}[holds]
		for _, name := range []string{"ringmain_confined", "ringmain_confinement"} {
			if !strings.Contains(a.body, name+`{control="no_file_write"}`+value) {
				return fmt.Errorf("%s of %s is not%s", name, nodes[at].name, value)
			}
		}
		list, _, _ := d.cli(t, "node", "list")
		for line := range strings.Lines(list) {
			if strings.Contains(line, nodes[at].name) && strings.Contains(line, "zero-retention") != holds {
				return fmt.Errorf("the list says %s", line)
			}
		}
		return nil
	}
	receipt := func(at int, holds bool) {
		t.Helper()
		a := ask(at)
		if a.status != 200 {
			t.Fatalf("without zero retention: %d %s", a.status, a.body)
		}
		eventually(t, 10*time.Second, func() error {
			r, err := d.tryAsk(t.Context(), d.client(false), "GET", nodes[at].api+"/v1/receipts/"+a.header.Get("idc-request-id"), "", d.bearer()...)
			if err != nil || r.status != 200 || !strings.Contains(r.body, fmt.Sprintf(`"no_file_write":%t`, holds)) {
				return fmt.Errorf("receipt: %w %d %s", err, r.status, r.body)
			}
			return nil
		})
	}
	limit := func(bytes uint64) {
		t.Helper()
		err := unix.Prlimit(nodes[loosened].worker, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: bytes}, nil)
		if errors.Is(err, unix.EPERM) {
			t.Skip("NOT RUN: only root may raise another process's limits")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// A worker measures every second; the rest is gossip and the keeper's ear.
	const soon = 4 * time.Second

	eventually(t, 15*time.Second, func() error {
		return errors.Join(zero(loosened, 200, ""), zero(other, 200, ""), states(loosened, true))
	})
	receipt(loosened, true)

	limit(1 << 20)
	eventually(t, soon, func() error { return zero(loosened, 503, "zero_retention_unavailable") })
	eventually(t, soon, func() error { return states(loosened, false) })
	receipt(loosened, false)
	if err := errors.Join(zero(other, 200, ""), states(other, true)); err != nil {
		t.Error(err)
	}

	limit(0)
	eventually(t, soon, func() error { return zero(loosened, 200, "") })
	eventually(t, soon, func() error { return states(loosened, true) })
	receipt(loosened, true)
	stopped = true
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}
