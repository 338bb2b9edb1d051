package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const repository = "../.."

var documents = []string{"README.md", "RUNBOOK.md", "SECURITY.md"}

// source is all production code, as one text.
func source(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, room := range []string{"cmd", "controlplane", "dataplane", "gossip"} {
		err := filepath.WalkDir(filepath.Join(repository, room), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			all.Write(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}

func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repository, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Somebody who reads the runbook at night must find what it names.
func TestDocumentsNameMetricsThatExist(t *testing.T) {
	code, found := source(t), 0
	for _, doc := range documents {
		for _, metric := range regexp.MustCompile(`ringmain_[a-z_]+`).FindAllString(document(t, doc), -1) {
			found++
			if !strings.Contains(code, `"`+metric+`"`) {
				t.Errorf("%s names the metric %s, which no node has", doc, metric)
			}
		}
	}
	if found < 10 {
		t.Errorf("found %d metrics in the documents: the search is broken", found)
	}
}

// A metric that nobody has written a word about helps nobody at night.
func TestEveryMetricIsDocumented(t *testing.T) {
	text, found := document(t, "RUNBOOK.md"), 0
	for _, m := range regexp.MustCompile(`"(ringmain_[a-z_]+)"`).FindAllStringSubmatch(source(t), -1) {
		found++
		if !strings.Contains(text, "`"+m[1]+"`") && !strings.Contains(text, "`"+m[1]+"{") {
			t.Errorf("RUNBOOK.md, \"Metrics\", does not name %s", m[1])
		}
	}
	if found < 60 {
		t.Errorf("found %d metrics in the code: the search is broken", found)
	}
}

// The tests that the documents name exist, where they say.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	shown := regexp.MustCompile("`go test ([^`]+)`")
	found := 0
	for _, doc := range documents {
		for _, m := range shown.FindAllStringSubmatch(document(t, doc), -1) {
			found++
			var tests, name string
			words := strings.Fields(m[1])
			for i, w := range words {
				switch {
				case w == "-run" && i+1 < len(words):
					name = words[i+1]
				case strings.HasPrefix(w, "./"):
					files, err := filepath.Glob(filepath.Join(repository, w, "*_test.go"))
					if err != nil || len(files) == 0 {
						t.Errorf("%s shows `go test %s`: no tests in %s", doc, m[1], w)
					}
					for _, file := range files {
						b, err := os.ReadFile(file)
						if err != nil {
							t.Fatal(err)
						}
						tests += string(b)
					}
				}
			}
			if !regexp.MustCompile(`(?m)^func Test\w*` + strings.TrimPrefix(name, "Test")).MatchString(tests) {
				t.Errorf("%s shows `go test %s`: no test %s there", doc, m[1], name)
			}
		}
	}
	if found < 10 {
		t.Errorf("found %d tests in the documents: the search is broken", found)
	}
}

// The codes that the runbook looks up symptoms by are those that nodes answer.
func TestRunbookNamesCodesThatExist(t *testing.T) {
	code, found := source(t), 0
	for _, m := range regexp.MustCompile("\\b[45][0-9][0-9]\\s+`([a-z_]+)`").FindAllStringSubmatch(document(t, "RUNBOOK.md"), -1) {
		found++
		if !strings.Contains(code, `"`+m[1]+`"`) {
			t.Errorf("the runbook names the error code %s, which no node answers", m[1])
		}
	}
	if found < 10 {
		t.Errorf("found %d codes in the runbook: the search is broken", found)
	}
}

// The table at the top of the runbook leads to every page, and nowhere else.
func TestRunbookIndexIsWhole(t *testing.T) {
	text := document(t, "RUNBOOK.md")
	pages := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^## (.+)$`).FindAllStringSubmatch(text, -1) {
		anchor := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		pages["["+m[1]+"](#"+strings.ReplaceAll(anchor, " ", "-")+")"] = false
	}
	for _, link := range regexp.MustCompile(`\[[^]]+\]\(#[^)]+\)`).FindAllString(text, -1) {
		if _, ok := pages[link]; !ok {
			t.Errorf("the runbook leads to %s, which is not there", link)
		}
		pages[link] = true
	}
	for page, found := range pages {
		if !found {
			t.Errorf("the table at the top of the runbook does not lead to %s", page)
		}
	}
}

func TestRunbookQuotesWhatNodesLog(t *testing.T) {
	_, table, _ := strings.Cut(document(t, "RUNBOOK.md"), "| the log says |")
	code, found := source(t)+"address already in use", 0 // the kernel's words
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]+) \\|").FindAllStringSubmatch(table, -1) {
		for _, quote := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			found++
			if !strings.Contains(code, quote[1]) {
				t.Errorf("the runbook quotes %q, which no node says", quote[1])
			}
		}
	}
	if found < 6 {
		t.Fatalf("found %d log texts: the search is broken", found)
	}
}

// shown lists what the documents have somebody type that begins with tool: in
// quotes, in blocks, and in place of a word.
func shown(t *testing.T, doc, tool string) [][]string {
	t.Helper()
	text := strings.NewReplacer("\\\n", " ", `\|`, "|").Replace(document(t, doc))
	of := regexp.MustCompile("`(?:bin/)?" + tool + " ([^`]+)`|(?m:^ {4}(?:bin/)?" + tool + " ([^#&\n]*))|(?:&& |\\$\\()bin/" + tool + " ([^&)\n]*)")
	var all [][]string
	for _, m := range of.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.Fields(m[1]+m[2]+m[3]))
	}
	return all
}

// commandsOf are those that the words name, a|b naming two.
func commandsOf(words []string) [][]string {
	noun := regexp.MustCompile(`^[a-z][a-z-]*(\|[a-z][a-z-]*)*$`)
	all := [][]string{nil}
	for _, w := range words {
		// A command and, for a noun, its verb; what follows are arguments.
		first := all[0]
		if !noun.MatchString(w) || len(first) == 2 || len(first) == 1 && slices.Contains([]string{"dev", "status", "apply", "rollout", "version"}, first[0]) {
			break
		}
		var longer [][]string
		for _, path := range all {
			for one := range strings.SplitSeq(w, "|") {
				longer = append(longer, append(slices.Clone(path), one))
			}
		}
		all = longer
	}
	return all
}

var flags = regexp.MustCompile(`--[a-z][a-z-]*`)

// Every command in the documents exists, and has the flags shown with it.
func TestDocumentsShowCommandsThatExist(t *testing.T) {
	found := 0
	for _, doc := range append(documents, "CHANGELOG.md") {
		for _, words := range shown(t, doc, "ringmain") {
			text, help := strings.Join(words, " "), ""
			for _, path := range commandsOf(words) {
				found++
				var stdout, stderr bytes.Buffer
				code := run(t.Context(), append(slices.Clone(path), "--help"), &stdout, &stderr)
				if full := strings.Join(append([]string{"ringmain"}, path...), " "); code != 0 || !strings.Contains(stdout.String(), "\n  "+full) {
					t.Errorf("%s shows `ringmain %s`: no command %s (exit %d, %s)", doc, text, full, code, &stderr)
				}
				help += stdout.String()
			}
			for _, f := range flags.FindAllString(text, -1) {
				if !strings.Contains(help, f+" ") {
					t.Errorf("%s shows `ringmain %s`: no flag %s", doc, text, f)
				}
			}
		}
	}
	if found < 100 {
		t.Errorf("found %d commands in the documents: the search is broken", found)
	}
}

// The same of the drills tool, whose flags are read from its code, and of make.
func TestDocumentsShowToolsThatExist(t *testing.T) {
	code, makefile, found := document(t, "cmd/drills/main.go"), document(t, "Makefile"), 0
	for _, doc := range append(documents, "CHANGELOG.md") {
		for _, words := range shown(t, doc, "drills") {
			found++
			if !strings.Contains(code, `Use:   "`+words[0]+" ") && !strings.Contains(code, `Use: "`+words[0]+`"`) {
				t.Errorf("%s shows `drills %s`: no such command", doc, words[0])
			}
			for _, w := range words {
				if name := strings.TrimPrefix(w, "--"); name != w && !strings.Contains(code, `"`+name+`", `) {
					t.Errorf("%s shows `drills %s`: no flag %s", doc, words[0], w)
				}
				if strings.HasSuffix(w, ".yaml") {
					document(t, w)
				}
			}
		}
		for _, words := range shown(t, doc, "make") {
			found++
			if !strings.Contains(makefile, "\n"+words[0]+":") {
				t.Errorf("%s shows `make %s`: no such target", doc, words[0])
			}
		}
	}
	if found < 8 {
		t.Errorf("found %d calls of drills and make in the documents: the search is broken", found)
	}
}

// Each command stands in one group of the help.
func TestEveryCommandIsInAGroup(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, &stdout, &stderr); code != 0 || strings.Contains(stdout.String(), "Additional Commands") {
		t.Errorf("exit %d, %s: a command is in no group:\n%s", code, &stderr, &stdout)
	}
}
