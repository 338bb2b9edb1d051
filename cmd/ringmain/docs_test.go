package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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

// Every command in the documents exists, and has the flags shown with it.
func TestDocumentsShowCommandsThatExist(t *testing.T) {
	shown := regexp.MustCompile("(?:bin/|`|\\$\\()ringmain ([a-z][^`\n|)&#]*)")
	word, flag := regexp.MustCompile(`^[a-z]+$`), regexp.MustCompile(`--[a-z-]+`)
	found := 0
	for _, doc := range documents {
		for _, m := range shown.FindAllStringSubmatch(document(t, doc), -1) {
			var path []string
			for _, w := range strings.Fields(m[1]) {
				// A command and, for a noun, its verb; what follows are arguments.
				if !word.MatchString(w) || len(path) == 2 || len(path) == 1 && (path[0] == "dev" || path[0] == "status" || path[0] == "apply") {
					break
				}
				path = append(path, w)
			}
			found++
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), append(path, "--help"), &stdout, &stderr)
			if full := "ringmain " + strings.Join(path, " "); code != 0 || !strings.Contains(stdout.String(), "\n  "+full) {
				t.Errorf("%s shows `%s`: no such command (exit %d, %s)", doc, full, code, &stderr)
			}
			for _, f := range flag.FindAllString(m[1], -1) {
				if !strings.Contains(stdout.String(), f) {
					t.Errorf("%s shows `ringmain %s`: no flag %s", doc, m[1], f)
				}
			}
		}
	}
	if found < 10 {
		t.Errorf("found %d commands in the documents: the search is broken", found)
	}
}
