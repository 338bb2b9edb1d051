// Command commit measures what one committed write costs: a region's log beside
// etcd, three members each, in processes of their own, on one disk and over
// loopback without TLS, in one interleaved run. With -ringmain or -cluster
// it measures the management API of a cluster in the same run. No rule of ringmain is
// decided here.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.node, "node", "", "internal: be one node of the region")
	flag.StringVar(&o.peers, "peers", "", "internal: addresses of all nodes")
	flag.StringVar(&o.dir, "dir", "", "where the data goes, on the disk to be measured [a new directory under .]")
	flag.StringVar(&o.etcd, "etcd", "etcd", "the etcd program; absent = not run")
	flag.StringVar(&o.cluster, "cluster", "", "cluster.json of a running cluster, whose management API is measured too")
	flag.StringVar(&o.ringmain, "ringmain", "", "program to start a cluster with, whose management API is measured too")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds, in rotated order; one more warms up and is dropped")
	flag.DurationVar(&o.window, "window", 3*time.Second, "of one measurement")
	flag.IntVar(&o.port, "port", 36000, "first of seven loopback ports")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := bench
	if o.node != "" {
		run = serveNode
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "commit:", err)
		os.Exit(1)
	}
}

type options struct {
	node, peers, dir, etcd, cluster, ringmain string
	rounds, port                              int
	window                                    time.Duration
	json                                      bool
}

// writers are the loads: one write at a time, and many at once.
var writers = []int{1, 128}

// Names of our own contenders.
const (
	regionName = "ringmain"
	apiName    = "management API"
)

// valueBytes is the size of what one write carries.
const valueBytes = 256

// contender commits writes, one call each, until its context ends.
type contender interface {
	name() string
	// load writes with n writers for window.
	load(ctx context.Context, n int, window time.Duration) (sample, error)
	close() error
}

// sample is one measurement.
type sample struct {
	P50, P99  time.Duration
	PerSecond float64
	N         int
}

func summarize(times []time.Duration, window time.Duration) (sample, error) {
	if len(times) == 0 {
		return sample{}, errors.New("no write was acknowledged")
	}
	slices.Sort(times)
	return sample{P50: times[len(times)/2], P99: times[len(times)*99/100], N: len(times), PerSecond: float64(len(times)) / window.Seconds()}, nil
}

// hammer calls write with n writers for window. The first failure ends it.
func hammer(ctx context.Context, n int, window time.Duration, write func(ctx context.Context, writer, i int) error) (sample, error) {
	times := make([][]time.Duration, n)
	begin := time.Now()
	end := begin.Add(window)
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			for i := 0; time.Now().Before(end) && failed.Load() == nil; i++ {
				start := time.Now()
				if err := write(ctx, w, i); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				times[w] = append(times[w], time.Since(start))
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return sample{}, *err
	}
	return summarize(slices.Concat(times...), time.Since(begin))
}

type key struct {
	contender string
	writers   int
}

func bench(ctx context.Context, o options) (err error) {
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp(".", ".commit-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	var all []contender
	defer func() {
		for _, c := range all {
			err = errors.Join(err, c.close())
		}
	}()
	region, err := startRegion(ctx, o)
	if err != nil {
		return fmt.Errorf("region: %w", err)
	}
	all = append(all, region)
	switch etcd, err := startEtcd(ctx, o); {
	case errors.Is(err, errNotInstalled):
		fmt.Fprintln(os.Stderr, "etcd is NOT RUN: install it (apt-get install etcd-server)")
	case err != nil:
		return fmt.Errorf("etcd: %w", err)
	default:
		all = append(all, etcd)
	}
	if o.cluster != "" || o.ringmain != "" {
		api, err := openAPI(ctx, o)
		if err != nil {
			return fmt.Errorf("management API: %w", err)
		}
		all = append(all, api)
	}
	results := make(map[key][]sample)
	for round := range o.rounds + 1 {
		for i := range all {
			c := all[(round+i)%len(all)]
			for _, n := range writers {
				fmt.Fprintf(os.Stderr, "\rround %d of %d: %s, %d writers      ", round, o.rounds, c.name(), n)
				s, err := c.load(ctx, n, o.window)
				if err != nil {
					return fmt.Errorf("%s, %d writers: %w", c.name(), n, err)
				}
				if round > 0 {
					results[key{c.name(), n}] = append(results[key{c.name(), n}], s)
				}
			}
		}
	}
	fmt.Fprintln(os.Stderr)
	return report(o, all, results)
}

// line is one row of the result: medians over the rounds.
type line struct {
	Contender   string     `json:"contender"`
	Writers     int        `json:"writers"`
	N           int        `json:"n"`
	P50Millis   float64    `json:"p50_ms"`
	P99Millis   float64    `json:"p99_ms"`
	PerSecond   float64    `json:"writes_per_second"`
	P50OfEtcd   float64    `json:"p50_of_etcd,omitempty"`
	RateOfEtcd  float64    `json:"rate_of_etcd,omitempty"`
	P50OfEtcdIn [2]float64 `json:"p50_of_etcd_range,omitzero"`
}

func report(o options, all []contender, results map[key][]sample) error {
	var lines []line
	for _, n := range writers {
		reference := results[key{"etcd", n}]
		for _, c := range all {
			ss := results[key{c.name(), n}]
			l := line{Contender: c.name(), Writers: n, P50Millis: median(ss, p50), P99Millis: median(ss, p99), PerSecond: median(ss, rate)}
			for _, s := range ss {
				l.N += s.N
			}
			if c.name() != "etcd" && len(reference) == len(ss) {
				var p, r []float64
				for i := range ss {
					p, r = append(p, p50(ss[i])/p50(reference[i])), append(r, rate(ss[i])/rate(reference[i]))
				}
				slices.Sort(p)
				slices.Sort(r)
				l.P50OfEtcd, l.RateOfEtcd, l.P50OfEtcdIn = p[len(p)/2], r[len(r)/2], [2]float64{p[0], p[len(p)-1]}
			}
			lines = append(lines, l)
		}
	}
	if o.json {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return errors.Join(enc.Encode(lines), missed(lines))
	}
	return errors.Join(table(os.Stdout, lines), missed(lines))
}

// missed says which bounds were: one proposal at a time as fast as etcd's, many
// as many, and one write through the API at most twice as long.
func missed(lines []line) (err error) {
	for _, l := range lines {
		most, least := 0.0, 0.0
		switch {
		case l.P50OfEtcd == 0: // nothing to compare with
		case l.Contender == apiName && l.Writers == 1:
			most = 2
		case l.Contender == regionName && l.Writers == 1:
			most = 1
		case l.Contender == regionName:
			least = 1
		}
		if most > 0 && l.P50OfEtcd > most {
			err = errors.Join(err, fmt.Errorf("missed: %s, %d writers: p50 %.2f of etcd's, at most %.0f", l.Contender, l.Writers, l.P50OfEtcd, most))
		}
		if l.RateOfEtcd < least {
			err = errors.Join(err, fmt.Errorf("missed: %s, %d writers: %.2f of etcd's writes a second, at least %.0f", l.Contender, l.Writers, l.RateOfEtcd, least))
		}
	}
	return err
}

func table(w io.Writer, lines []line) error {
	const row = "| %s | %d | %.2f ms | %.2f ms | %.0f | %s | %s | %d |\n"
	_, err := fmt.Fprint(w, "| who | writers | p50 | p99 | writes/s | p50 of etcd | rate of etcd | n |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, l := range lines {
		p, r := "", ""
		if l.P50OfEtcd != 0 {
			p = fmt.Sprintf("**%.2f** (%.2f-%.2f)", l.P50OfEtcd, l.P50OfEtcdIn[0], l.P50OfEtcdIn[1])
			r = fmt.Sprintf("**%.2f**", l.RateOfEtcd)
		}
		_, e := fmt.Fprintf(w, row, l.Contender, l.Writers, l.P50Millis, l.P99Millis, l.PerSecond, p, r, l.N)
		err = errors.Join(err, e)
	}
	return err
}

func p50(s sample) float64  { return float64(s.P50) / float64(time.Millisecond) }
func p99(s sample) float64  { return float64(s.P99) / float64(time.Millisecond) }
func rate(s sample) float64 { return s.PerSecond }

func median(ss []sample, of func(sample) float64) float64 {
	var vs []float64
	for _, s := range ss {
		vs = append(vs, of(s))
	}
	slices.Sort(vs)
	if len(vs) == 0 {
		return 0
	}
	return vs[len(vs)/2]
}

func addresses(first, n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("127.0.0.1:%d", first+i))
	}
	return strings.Join(out, ",")
}
