package documents

import (
	"cmp"
	"slices"
	"strings"

	"ringmain/dataplane/link"
)

// Names of the pages that follow from the running state, and of the path that
// all but security.txt are under.
const (
	subprocessors = "subprocessors"
	data          = "data"
	legal         = "/legal/"
)

var titles = map[string]string{
	DPA: "Data processing agreement", AUP: "Acceptable use policy", Compliance: "Compliance",
}

// Find gives the name of the page that path names; ok is false if none does.
func Find(path string) (name string, ok bool) {
	if path == "/.well-known/security.txt" {
		return Security, true
	}
	name, ok = strings.CutPrefix(path, legal)
	return name, ok && slices.Contains([]string{DPA, AUP, Compliance, subprocessors, data}, name)
}

// Pages are all that a node publishes about itself.
type Pages struct {
	supplied map[string]link.Document
}

// NewPages publishes what the operator supplies beside what is written here.
func NewPages(supplied []link.Document) *Pages {
	p := &Pages{supplied: make(map[string]link.Document, len(supplied))}
	for _, d := range supplied {
		d.Type = cmp.Or(d.Type, "application/octet-stream")
		p.supplied[d.Name] = d
	}
	return p
}

// Page is the page name in the form that an Accept header prefers. ok is false
// for one that the operator has not supplied. list is called for the page of
// that name only.
func (p *Pages) Page(name, accept string, list func() Subprocessors) (contentType string, b []byte, ok bool) {
	html := prefersHTML(accept)
	const htmlType, jsonType = "text/html; charset=utf-8", "application/json"
	written := func(json, page func() []byte) (string, []byte, bool) {
		if html {
			return htmlType, page(), true
		}
		return jsonType, json(), true
	}
	switch name {
	case subprocessors:
		s := list()
		return written(s.JSON, s.HTML)
	case data:
		d := dataKept()
		return written(d.JSON, d.HTML)
	}
	doc, ok := p.supplied[name]
	text := strings.HasPrefix(doc.Type, "text/plain") || strings.HasPrefix(doc.Type, "text/markdown")
	if html && text && name != Security { // RFC 9116: security.txt is plain text
		return htmlType, textPage(titles[name], doc.Body), true
	}
	return doc.Type, doc.Body, ok
}
