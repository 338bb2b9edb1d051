// Command bench measures one data node (keeper and worker together) beside
// net/http's own reverse proxy with a buffer pool: same bytes, same TLS
// settings, same provider, in one interleaved run. It gates nothing.
package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"ringmain/internal/clusterfile"
)

func main() {
	var (
		binary   = flag.String("ringmain", "bin/ringmain", "the binary under test")
		rounds   = flag.Int("rounds", 5, "windows per contender, protocol and concurrency")
		span     = flag.Duration("window", 2*time.Second, "length of one window")
		streams  = flag.Int("idle", 1000, "idle streams to hold open")
		asProxy  = flag.String("as-proxy", "", "internal: run the plain proxy in front of this URL")
		proxyDir = flag.String("proxy-dir", "", "internal: where the proxy's certificate is")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if *asProxy != "" {
		err = runProxy(ctx, *asProxy, *proxyDir)
	} else {
		err = run(ctx, *binary, *rounds, *span, *streams)
	}
	stop()
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

const (
	certFile = "server.pem"
	keyFile  = "server.key"
)

// certificate writes a self-signed loopback certificate that is its own root.
func certificate(dir string) (tls.Certificate, *x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ringmain bench"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := errors.Join(os.WriteFile(filepath.Join(dir, certFile), certPEM, 0o600), os.WriteFile(filepath.Join(dir, keyFile), keyPEM, 0o600)); err != nil {
		return tls.Certificate{}, nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	return pair, roots, err
}

// serveTLS serves h on a free loopback port until ctx ends and returns its URL.
func serveTLS(ctx context.Context, pair tls.Certificate, h http.Handler) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // binding does not wait
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}}}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	go func() { _ = srv.ServeTLS(l, "", "") }() // ends with ctx; a failure shows as failing requests
	return "https://" + l.Addr().String(), nil
}

func runProxy(ctx context.Context, upstream, dir string) error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return err
	}
	rootPEM, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(rootPEM)
	h, err := plainProxy(upstream, roots)
	if err != nil {
		return err
	}
	url, err := serveTLS(ctx, pair, h)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, url); err != nil {
		return err
	}
	// Standard input ends with the bench, however it ends.
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// startProxy runs the plain proxy in a process of its own.
func startProxy(ctx context.Context, upstream, dir string) (url string, pid int, err error) {
	exe, err := os.Executable()
	if err != nil {
		return "", 0, err
	}
	cmd := exec.CommandContext(ctx, exe, "-as-proxy", upstream, "-proxy-dir", dir)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil { // held open until this process ends
		return "", 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", 0, err
	}
	if err := cmd.Start(); err != nil {
		return "", 0, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	return strings.TrimSpace(line), cmd.Process.Pid, err
}

const manifest = `upstreams:
  - name: bench
    provider: bench
    region: us-east
    dialect: openai
    base_url: %s
    auth: none
    simulated: true
    terms: {retention: zero, prompt_cache: none, training: never, contract: "%064d", dated: "2026-01-01"}
routes:
  - model: bench
    targets: [{upstream: bench, model: bench}]
`

// startRingmain runs a one-region cluster with one data node and returns its file.
func startRingmain(ctx context.Context, binary, dir, upstream string) (*clusterfile.Cluster, func() error, error) {
	seed := filepath.Join(dir, "seed.yaml")
	if err := os.WriteFile(seed, fmt.Appendf(nil, manifest, upstream, 0), 0o600); err != nil {
		return nil, nil, err
	}
	data := filepath.Join(dir, "ring")
	//nolint:noctx // ended below, by SIGTERM first
	cmd := exec.Command(binary, "dev", "--regions", "us-east:us", "--control", "1", "--data", "1",
		"--dir", data, "--port", "28440", "--seed", seed, "--upstream-ca", filepath.Join(dir, certFile))
	log, err := os.Create(filepath.Join(dir, "dev.log"))
	if err != nil {
		return nil, nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop := func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		return <-ended
	}
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		if c, err := clusterfile.Read(filepath.Join(data, "cluster.json")); err == nil && c.Ready {
			return c, stop, nil
		}
		select {
		case err := <-ended:
			text, _ := os.ReadFile(log.Name()) // best effort: it explains the failure
			return nil, nil, fmt.Errorf("ringmain dev ended: %w\n%s", err, text)
		default:
		}
	}
	return nil, nil, errors.Join(errors.New("ringmain dev was not ready in 60 s"), stop())
}

func run(ctx context.Context, binary string, rounds int, span time.Duration, streams int) (err error) {
	dir, err := os.MkdirTemp("", "ringmain-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	pair, roots, err := certificate(dir)
	if err != nil {
		return err
	}
	upstream, err := serveTLS(ctx, pair, http.HandlerFunc(provider))
	if err != nil {
		return err
	}
	proxyURL, proxyPID, err := startProxy(ctx, upstream, dir)
	if err != nil {
		return err
	}
	cluster, stop, err := startRingmain(ctx, binary, dir, upstream)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	ca, err := os.ReadFile(cluster.CAFile)
	if err != nil {
		return err
	}
	roots.AppendCertsFromPEM(ca)
	var node clusterfile.Node
	for _, n := range cluster.Regions[0].Nodes {
		if n.Role == "data" {
			node = n
		}
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	if err := measure(ctx, out, roots, rounds, span, []contender{
		{name: "direct", url: upstream},
		{name: "reverse proxy", url: proxyURL, pids: []int{proxyPID}},
		{name: "ringmain", url: node.API, key: cluster.APIKey, pids: []int{node.PID, node.WorkerPID}},
	}); err != nil {
		return err
	}
	return measureIdle(ctx, out, roots, streams, []contender{
		{name: "reverse proxy", url: proxyURL, pids: []int{proxyPID}},
		{name: "ringmain", url: node.API, key: cluster.APIKey, pids: []int{node.PID, node.WorkerPID}},
	})
}

func measure(ctx context.Context, out io.Writer, roots *x509.CertPool, rounds int, span time.Duration, all []contender) error {
	pf := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format, args...) } // buffered; flushed by the caller
	pf("CPU seconds per 1,000 requests (user+kernel of the contender's processes), medians of %d interleaved windows of %v\n\n", rounds, span)
	pf("| protocol | callers | contender | CPU s/1k | of reverse proxy, window by window | req/s | p50 ms | p99 ms | added p50 ms | requests |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, h2 := range []bool{false, true} {
		proto := map[bool]string{false: "HTTP/1.1", true: "HTTP/2"}[h2]
		for i := range all {
			all[i].http = newClient(roots, h2)
		}
		for _, callers := range []int{1, 32} {
			got := make([][]window, len(all))
			for r := range rounds + 1 {
				for k := range all {
					i := (k + r) % len(all) // rotate, so that none always runs first
					w, err := all[i].load(ctx, callers, span)
					if err != nil {
						return err
					}
					if r > 0 { // the first round warms up
						got[i] = append(got[i], w)
					}
				}
				fmt.Fprintf(os.Stderr, "bench: %s, %d callers, round %d of %d\n", proto, callers, r, rounds)
			}
			direct := median(got[0], func(w window) float64 { return ms(quantile(w.latency, .5)) })
			for i, c := range all {
				ratios := make([]float64, 0, rounds)
				for r := range got[i] {
					ratios = append(ratios, got[i][r].cpuPerThousand()/got[1][r].cpuPerThousand())
				}
				slices.Sort(ratios)
				p50 := median(got[i], func(w window) float64 { return ms(quantile(w.latency, .5)) })
				cpu, ratio := "-", "-"
				if len(c.pids) > 0 {
					cpu = fmt.Sprintf("%.3f", median(got[i], window.cpuPerThousand))
					ratio = fmt.Sprintf("%.2f (%.2f-%.2f)", ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1])
				}
				n := 0
				for _, w := range got[i] {
					n += w.requests
				}
				pf("| %s | %d | %s | %s | %s | %.0f | %.2f | %.2f | %.2f | %d |\n", proto, callers, c.name, cpu, ratio,
					median(got[i], func(w window) float64 { return float64(w.requests) / w.wall.Seconds() }), p50,
					median(got[i], func(w window) float64 { return ms(quantile(w.latency, .99)) }), p50-direct, n)
			}
		}
	}
	return nil
}

func measureIdle(ctx context.Context, out io.Writer, roots *x509.CertPool, n int, all []contender) error {
	if _, err := fmt.Fprintf(out, "\nResident memory of %d idle streams (HTTP/1.1, TLS 1.3)\n\n| contender | KiB per stream | MiB in all |\n|---|---|---|\n", n); err != nil {
		return err
	}
	for _, c := range all {
		c.http = newClient(roots, false)
		per, total, err := c.idle(ctx, n)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "| %s | %.1f | %.1f |\n", c.name, float64(per)/1024, float64(total)/(1<<20)); err != nil {
			return err
		}
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(ws []window, f func(window) float64) float64 {
	v := make([]float64, len(ws))
	for i, w := range ws {
		v[i] = f(w)
	}
	slices.Sort(v)
	return v[len(v)/2]
}
