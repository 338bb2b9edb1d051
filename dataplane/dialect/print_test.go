package dialect_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a log line, an error or a panic in the data plane is made of may not
// have one of these in it: they are, or give, what clients and upstreams sent.
var sent = []string{
	"Body", "body", "Bytes", "bytes", "Content", "content", "Text", "data", "event", "Event", "delta", "raw", "rest",
	"Header", "Trailer", "ContentType", "buf", "buffer", "Append", "AppendParts",
}

// Where one of these may be printed, and what it is there.
var mayPrint = map[string]string{
	"../keeper/process.go: Text": "what a worker's runtime prints when it dies",
	"../keeper/proofs.go: Bytes": "the id of a request whose receipt was asked for",
}

// TestNobodyPrintsWhatWasSent reads the source of the data plane: nobody uses
// the printing packages' own outputs, and what goes into a log line, an error
// or a panic bears no name of something that holds content.
func TestNobodyPrintsWhatWasSent(t *testing.T) {
	set := token.NewFileSet()
	calls := 0
	used := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		for _, imported := range file.Imports {
			if imported.Path.Value == `"log"` && path != "../listen.go" {
				t.Errorf("%s imports log, whose output nobody has looked at", path)
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			where := set.Position(call.Pos()).String()
			kind, args := printing(call)
			if kind == "" {
				return true
			}
			calls++
			if kind == "print" {
				t.Errorf("%s prints", where)
			}
			for _, arg := range args {
				name := suspect(arg)
				if mayPrint[path+": "+name] != "" {
					used[path+": "+name] = true
				} else if name != "" {
					t.Errorf("%s: %s may hold what was sent", where, name)
				}
			}
			return true
		})
		return nil
	})
	if err != nil || calls < 150 {
		t.Errorf("%d calls seen, %v", calls, err)
	}
	for at := range mayPrint {
		if !used[at] {
			t.Errorf("%s: is not printed any more", at)
		}
	}
}

// printing tells whether a call writes a log line, makes an error, or panics,
// and gives what goes into it beside its text.
func printing(call *ast.CallExpr) (kind string, args []ast.Expr) {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		switch f.Name {
		case "panic":
			return "panic", call.Args
		case "print", "println":
			return "print", nil
		}
	case *ast.SelectorExpr:
		of, _ := f.X.(*ast.Ident)
		switch name := f.Sel.Name; {
		case of != nil && of.Name == "fmt" && strings.HasPrefix(name, "Print"):
			return "print", nil
		case of != nil && of.Name == "fmt" && name == "Errorf" && len(call.Args) > 0:
			return "error", call.Args[1:]
		case of != nil && of.Name == "errors" && name == "New":
			return "error", call.Args
		case logger(f.X) && slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, name) && len(call.Args) > 0:
			return "log", call.Args[1:]
		}
	}
	return "", nil
}

// logger tells whether an expression is a logger, by its name.
func logger(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		return e.Sel.Name == "log" || e.Sel.Name == "Logger"
	case *ast.Ident:
		return e.Name == "log" || e.Name == "slog"
	case *ast.CallExpr:
		f, ok := e.Fun.(*ast.SelectorExpr)
		return ok && (f.Sel.Name == "New" || f.Sel.Name == "With")
	}
	return false
}

// suspect gives the first name in e that may be of something that was sent.
// Lengths of it may be told.
func suspect(e ast.Expr) (found string) {
	ast.Inspect(e, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if f, ok := call.Fun.(*ast.Ident); ok && f.Name == "len" {
				return false
			}
		}
		if id, ok := n.(*ast.Ident); ok && slices.Contains(sent, id.Name) && found == "" {
			found = id.Name
		}
		return true
	})
	return found
}

func TestSuspects(t *testing.T) {
	for text, want := range map[string]string{
		`x.w.log.Info("broke", "request", x.body.bytes())`:          "body",
		`slog.New(a.LogHandler()).Warn("odd", "what", string(raw))`: "raw",
		`fmt.Errorf("read %q: %w", event, err)`:                     "event",
		`panic(r.Body())`:                                           "Body",
		`x.w.log.Warn("odd", "type", res.ContentType)`:              "ContentType",
		`fmt.Errorf("the body has %d bytes", len(body))`:            "",
		`x.w.log.Info("broke", "request", x.id, "error", err)`:      "",
		`append(body, data...)`:                                     "",
	} {
		e, err := parser.ParseExpr(text)
		call, ok := e.(*ast.CallExpr)
		if err != nil || !ok {
			t.Fatal(text, err)
		}
		got := ""
		_, args := printing(call)
		for _, arg := range args {
			got = max(got, suspect(arg))
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
