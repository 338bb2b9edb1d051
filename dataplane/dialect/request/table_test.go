package request

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of DESIGN.md and STORAGE.md anew")

func rewriteTable() string {
	var b strings.Builder
	b.WriteString("| dialect | field | where | when | becomes |\n| --- | --- | --- | --- | --- |\n")
	for _, r := range Rewrites() {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.Dialect, r.Field, r.Where, r.When, r.To)
	}
	return b.String()
}

func storageText() string {
	var b strings.Builder
	b.WriteString("# What providers would keep, and what is done about it without retention\n\n" +
		"Printed from `request.Storage`; a test compares. Where no source is given, the row is our own caution: the provider does not say, or the row is stricter than what it says. `shared`: refused with retention too, where the provider's account is not the caller's own; of a container, its id and skills that are not the provider's; of diagnostics, the id.\n\n" +
		"| where | field | values | action | shared | why | source |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, r := range Storage() {
		source := "our caution"
		if r.Source != "" {
			source = "[" + strings.Split(r.Source, "/")[2] + "](" + r.Source + ")"
		} else if r.Action == Pass {
			source = "our reading"
		}
		shared := ""
		if r.Shared {
			shared = "refused"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", r.Where, r.Field, r.Values, r.Action, shared, r.Reason, source)
	}
	b.WriteString("\n## Other fields\n\nThese shape the answer, or name who asks; a field that is neither here nor above is refused without retention, whatever its value, until somebody has looked at what it keeps.\n\n| where | fields |\n| --- | --- |\n")
	for _, r := range Harmless() {
		fmt.Fprintf(&b, "| %s | %s |\n", r.Where, strings.ReplaceAll(r.Names, " ", ", "))
	}
	return b.String()
}

// TestTablesArePrinted: what the pages say is what the code does.
func TestTablesArePrinted(t *testing.T) {
	page, err := os.ReadFile("../../DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	head := strings.SplitAfter(rewriteTable(), "\n")[0]
	before, rest, found := strings.Cut(string(page), head)
	_, after, ended := strings.Cut(rest, "\n\n")
	if !found || !ended {
		t.Fatal("DESIGN.md has no table of rewrites")
	}
	for path, text := range map[string]string{"../../DESIGN.md": before + rewriteTable() + "\n" + after, "../STORAGE.md": storageText()} {
		if *update {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%s does not say what the code does (%v): go test ./dataplane/dialect -run TestTablesArePrinted -update", path, err)
		}
	}
}
