package keeper

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/controlplane"
)

func inProcess(t *testing.T, n *node, change func(*Config)) (*Keeper, error) {
	t.Helper()
	cfg, err := n.args.config(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	return Open(t.Context(), cfg)
}

func closeKeeper(t *testing.T, k *Keeper) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := k.Close(ctx); err != nil {
		t.Error(err)
	}
}

// TestRefusedAtOnce lists what Open does not try to live with.
func TestRefusedAtOnce(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c)
	k, err := inProcess(t, n, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inProcess(t, n, nil); err == nil || !strings.Contains(err.Error(), "used by another keeper") {
		t.Errorf("two keepers in one directory: %v", err)
	}
	closeKeeper(t, k)
	if _, err := inProcess(t, n, func(cfg *Config) { cfg.Setup.Cluster = "other" }); !errors.Is(err, controlplane.ErrWrongCluster) {
		t.Errorf("another cluster's directory: %v", err)
	}
	if _, err := inProcess(t, n, func(cfg *Config) { cfg.Setup.Node = "d2" }); !errors.Is(err, controlplane.ErrWrongCluster) {
		t.Errorf("another node's directory: %v", err)
	}
	l, err := net.Listen("tcp", n.args.API)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inProcess(t, n, nil); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), n.args.API) {
		t.Errorf("a port in use: %v", err)
	}
	_ = l.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := inProcess(t, n, func(cfg *Config) { cfg.Dir = filepath.Join(file, "data") }); err == nil {
		t.Error("a data directory under a file was taken")
	}
}

func TestMetrics(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	k, err := inProcess(t, n, func(cfg *Config) { cfg.Metrics, cfg.Gatherer, cfg.Registerer = l, reg, reg })
	if err != nil {
		t.Fatal(err)
	}
	defer closeKeeper(t, k)
	if api, _, err := k.Addrs(); err != nil || api.String() != n.args.API {
		t.Errorf("api is bound to %v, %v", api, err)
	}
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	var text string
	within(t, "the metrics tell", func() bool {
		resp, err := client.Get("http://" + l.Addr().String() + "/metrics")
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		text = string(b)
		for _, line := range []string{
			"ringmain_lkg_generation 1", `ringmain_confinement{control="no_file_write"} 1`, "ringmain_worker_restarts_total 0",
			"ringmain_spool_bytes 0", "ringmain_safety_unknown 0", "ringmain_worker_up 1", `ringmain_lkg_damaged_files{file="generation"} 0`,
		} {
			if !strings.Contains(text, line+"\n") {
				return false
			}
		}
		return resp.StatusCode == http.StatusOK
	}, func() string { return text })
	if strings.Contains(text, "ringmain_data_position_age_seconds +Inf") {
		t.Error("no position age after a heartbeat")
	}
}
