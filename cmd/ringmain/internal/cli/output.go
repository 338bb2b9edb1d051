package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"
)

func (t *Tool) checkOutput() error {
	switch t.output {
	case "table", "json", "yaml":
		return nil
	}
	return Usagef("--output %q: use table, json or yaml", t.output)
}

// Column is one column of a table.
type Column[T any] struct {
	head string
	cell func(T) string
}

// Col makes a Column.
func Col[T any](head string, cell func(T) string) Column[T] { return Column[T]{head, cell} }

// Show prints records as -o asks: a list, or the record alone.
func Show[T any](t *Tool, records []T, single bool, columns []Column[T]) error {
	if !t.Table() {
		if single {
			return t.Encode(records[0])
		}
		if records == nil {
			records = []T{}
		}
		return t.Encode(records)
	}
	w := tabwriter.NewWriter(t.Env.Stdout, 0, 0, 2, ' ', 0)
	var heads []string
	for _, c := range columns {
		heads = append(heads, c.head)
	}
	Line(w, heads)
	for _, r := range records {
		var cells []string
		for _, c := range columns {
			cells = append(cells, Clean(c.cell(r)))
		}
		Line(w, cells)
	}
	return w.Flush()
}

// Line writes one row; tabwriter keeps its first error for Flush.
func Line(w io.Writer, cells []string) {
	_, _ = fmt.Fprintln(w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

// Clean keeps names from steering the terminal or reordering its text, and
// empty cells visible.
func Clean(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return '?'
		}
		return r
	}, s)
}

// Encode prints v as JSON or YAML.
func (t *Tool) Encode(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if t.output == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		b = []byte(strings.TrimSuffix(string(b), "\n"))
	}
	_, err = fmt.Fprintln(t.Env.Stdout, string(b))
	return err
}

// YesNo is a bool in a table.
func YesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// When is a time in a table; empty for nil.
func When(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// Table reports whether -o asks for tables; otherwise it is for programs.
func (t *Tool) Table() bool { return t.output == "table" }

// Deleted reports a deletion.
func (t *Tool) Deleted(err error, id string) error {
	if err == nil {
		t.Say("deleted %s", id)
	}
	return err
}
