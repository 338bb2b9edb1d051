package documents

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
)

// table is what a page shows below its introduction.
type table struct {
	Caption string
	Head    []string
	Rows    [][]string
}

type page struct {
	Title  string
	Intro  []string
	Tables []table
	Text   string // of a document that is plain text
}

// style keeps to what every browser has; the page needs nothing else.
const style = `
:root { color-scheme: light dark; --line: #d5d9e0; --dim: #667085; }
@media (prefers-color-scheme: dark) { :root { --line: #3a3f4a; --dim: #9aa3b2; } }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 3rem 1.5rem; }
h1 { font-size: 1.6rem; font-weight: 600; margin: 0 0 1rem; }
p { max-width: 44rem; }
.wide { overflow-x: auto; margin: 2rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .5rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem 1rem .45rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 500; white-space: nowrap; }
pre { white-space: pre-wrap; font: 15px/1.55 ui-monospace, monospace; max-width: 50rem; }
`

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Title}}</title>
<style>` + style + `</style>
</head>
<body>
<h1>{{.Title}}</h1>
{{range .Intro}}<p>{{.}}</p>
{{end}}{{range .Tables}}<div class="wide"><table>
<caption>{{.Caption}}</caption>
<thead><tr>{{range .Head}}<th scope="col">{{.}}</th>{{end}}</tr></thead>
<tbody>
{{range .Rows}}<tr>{{range .}}<td>{{.}}</td>{{end}}</tr>
{{end}}</tbody>
</table></div>
{{end}}{{with .Text}}<pre>{{.}}</pre>
{{end}}</body>
</html>
`))

func (p page) html() []byte {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil { // the template and its data are ours
		panic(err)
	}
	return b.Bytes()
}

// textPage shows a document that is plain text, or Markdown, to a browser.
func textPage(title string, b []byte) []byte { return page{Title: title, Text: string(b)}.html() }

func encode(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // strings, numbers and times only
		panic(err)
	}
	return append(b, '\n')
}

// JSON is the list for programs.
func (s Subprocessors) JSON() []byte { return encode(s) }

// HTML is the list for people.
func (s Subprocessors) HTML() []byte {
	p := page{Title: "Subprocessors", Intro: []string{
		"Providers to which a request may be sent, and the terms that hold there. A request reaches one of them only because it names a model that this provider serves; the header idc-upstream of each answer names the one that was asked.",
		fmt.Sprintf("As of %s, from the state that routes requests.", s.AsOf.Format("2 January 2006, 15:04 MST")),
	}}
	t := table{Caption: "In use", Head: []string{"Provider", "Purpose", "Region", "Jurisdiction", "Upstream", "Retention", "Prompt cache", "Training", "BAA", "Terms of", "Contract (SHA-256)", "Notes"}}
	for _, x := range s.Subprocessors {
		notes := ""
		switch {
		case x.Simulated:
			notes = "simulated by this service"
		case x.Dedicated:
			notes = "one customer only"
		}
		t.Rows = append(t.Rows, []string{
			x.Provider, x.Purpose, x.Region, x.Jurisdiction, x.Upstream, x.Retention, x.PromptCache, x.Training,
			map[bool]string{true: "yes", false: "no"}[x.BAA], x.Dated, short(x.Contract), notes,
		})
	}
	p.Tables = []table{t}
	return p.html()
}

// short shows the beginning of a hash; the JSON has all of it.
func short(hash string) string {
	if len(hash) > 16 {
		return hash[:16] + "…"
	}
	return hash
}

// JSON is the list for programs.
func (d Data) JSON() []byte { return encode(d) }

// HTML is the list for people.
func (d Data) HTML() []byte {
	rows := func(fields []Field) (all [][]string) {
		for _, f := range fields {
			all = append(all, []string{f.Name, f.Type, f.Description})
		}
		return all
	}
	head := []string{"Field", "Type", "Description"}
	return page{
		Title: "Data that is kept of a request", Intro: []string{d.Content},
		Tables: []table{
			{Caption: "Metadata record, one per answered request", Head: head, Rows: rows(d.Metadata)},
			{Caption: "Signed receipt, one per answered request", Head: head, Rows: rows(d.Receipt)},
		},
	}.html()
}
