// Command keys measures a region that holds very many API keys: what they take
// on disk and in memory, and how long backup, restore, restarts and a data
// node's start take. Every node is a process of its own. No rule of ringmain is
// decided here.
//
// The many come by `ringmain backup restore` of a backup that is made here. All
// but a few of them have text in the place of their hash that is as long and as
// random as one, so that nothing is smaller than it would be: hashing a million
// takes 13 hours of CPU. How fast keys are made by the API is measured beside
// none and beside the many.
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
	"syscall"
	"time"
)

type options struct {
	ringmain, dir, output string
	port, keys, projects  int
	window                time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.ringmain, "ringmain", "bin/ringmain", "the program")
	flag.StringVar(&o.dir, "dir", "", "where the data goes, on the disk to be measured, about 4 KB a key [a new directory under .]")
	flag.StringVar(&o.output, "o", "table", "table or json")
	flag.IntVar(&o.port, "port", 33000, "first of 300 loopback ports")
	flag.IntVar(&o.keys, "keys", 1_000_000, "how many")
	flag.IntVar(&o.projects, "projects", 20_000, "that they are spread over")
	flag.DurationVar(&o.window, "window", 4*time.Second, "of one measurement of the API's rate")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "keys:", err)
		os.Exit(1) //nolint:gocritic // the deferred stop only restores signal handling
	}
}

func run(ctx context.Context, out io.Writer, o options) (err error) {
	if o.output != "table" && o.output != "json" || o.keys < known || o.projects < 1 {
		return fmt.Errorf("-o: table or json; -keys: at least %d; -projects: at least 1", known)
	}
	if o.ringmain, err = filepath.Abs(o.ringmain); err != nil {
		return err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp(".", ".keys-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	t := &table{Keys: o.keys, Projects: o.projects}
	if err := measure(ctx, t, o); err != nil {
		return err
	}
	if o.output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return errors.Join(enc.Encode(t), t.missed())
	}
	return errors.Join(t.print(out), t.missed())
}

// table is the result.
type table struct {
	Keys     int   `json:"keys"`
	Projects int   `json:"projects"`
	Rows     []row `json:"rows"`
}

// row is one figure.
type row struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Most  float64 `json:"most,omitempty"` // what is promised; 0 = nothing
	How   string  `json:"how,omitempty"`
}

func (t *table) add(r row) {
	fmt.Fprintf(os.Stderr, "keys: %s: %s\n", r.What, r.text())
	t.Rows = append(t.Rows, r)
}

func (t *table) took(what string, d time.Duration, most float64, how string) {
	t.add(row{What: what, Value: d.Seconds(), Unit: "s", Most: most, How: how})
}

func (t *table) bytes(what string, n int64, how string) {
	t.add(row{What: what, Value: float64(n) / (1 << 20), Unit: "MiB", How: how})
}

func (r row) text() string {
	switch {
	case r.Value < 10:
		return fmt.Sprintf("%.3f %s", r.Value, r.Unit)
	case r.Value < 100:
		return fmt.Sprintf("%.1f %s", r.Value, r.Unit)
	}
	return fmt.Sprintf("%.0f %s", r.Value, r.Unit)
}

func (t *table) print(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%d keys in %d projects\n\n| what | | at most | how |\n| --- | --- | --- | --- |\n", t.Keys, t.Projects)
	for _, r := range t.Rows {
		most := ""
		if r.Most > 0 {
			most = fmt.Sprintf("%g %s", r.Most, r.Unit)
		}
		_, e := fmt.Fprintf(w, "| %s | %s | %s | %s |\n", r.What, r.text(), most, r.How)
		err = errors.Join(err, e)
	}
	return err
}

func (t *table) missed() (err error) {
	for _, r := range t.Rows {
		if r.Most > 0 && r.Value > r.Most {
			err = errors.Join(err, fmt.Errorf("missed: %s: %s, at most %g", r.What, r.text(), r.Most))
		}
	}
	return err
}
