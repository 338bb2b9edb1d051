package manage

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

func (t *tool) checkOutput() error {
	switch t.output {
	case "table", "json", "yaml":
		return nil
	}
	return usagef("--output %q: use table, json or yaml", t.output)
}

// column is one column of a table.
type column[T any] struct {
	head string
	cell func(T) string
}

// show prints records as -o asks: a list, or the record alone.
func show[T any](t *tool, records []T, single bool, columns []column[T]) error {
	if t.output != "table" {
		if single {
			return t.encode(records[0])
		}
		if records == nil {
			records = []T{}
		}
		return t.encode(records)
	}
	w := tabwriter.NewWriter(t.env.Stdout, 0, 0, 2, ' ', 0)
	var heads []string
	for _, c := range columns {
		heads = append(heads, c.head)
	}
	line(w, heads)
	for _, r := range records {
		var cells []string
		for _, c := range columns {
			cells = append(cells, clean(c.cell(r)))
		}
		line(w, cells)
	}
	return w.Flush()
}

// line writes one row; tabwriter keeps its first error for Flush.
func line(w io.Writer, cells []string) {
	_, _ = fmt.Fprintln(w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

// clean keeps names from steering the terminal or reordering its text, and
// empty cells visible.
func clean(s string) string {
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

// encode prints v as JSON or YAML.
func (t *tool) encode(v any) error {
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
	_, err = fmt.Fprintln(t.env.Stdout, string(b))
	return err
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func when(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
