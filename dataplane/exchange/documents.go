package dataplane

import (
	"cmp"
	"net/http"
	"strings"
	"time"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/documents"
	"ringmain/dataplane/link"
)

const (
	pathSecurity = "/.well-known/security.txt"
	pathLegal    = "/legal/"
)

// documentNames of the pages that answer under pathLegal.
var documentNames = [...]string{documents.DPA, documents.AUP, documents.Compliance, "subprocessors", "data"}

// documentPath finds the document that path names; label is the path as
// metrics know it.
func documentPath(path string) (name, label string, ok bool) {
	if path == pathSecurity {
		return documents.Security, path, true
	}
	rest, ok := strings.CutPrefix(path, pathLegal)
	if !ok {
		return "", "", false
	}
	for _, name := range documentNames {
		if rest == name {
			return name, path, true
		}
	}
	return "", "", false
}

// pageCache lets browsers keep a page for a while; it changes with the node's
// state or its configuration.
var pageCache = []string{"public, max-age=300"}

// document answers with a page about this service. None needs a key.
func (x *exchange) document(name string) {
	h := x.rw.Header()
	h["Cache-Control"], h["Vary"], h["X-Content-Type-Options"] = pageCache, []string{"Accept"}, x.w.fixed.noSniff
	h["Content-Security-Policy"] = []string{"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:"}
	html := documents.PrefersHTML(strings.Join(x.r.Header["Accept"], ","))
	generated := func(json, page func() []byte) {
		if html {
			x.writeOK("text/html; charset=utf-8", page())
		} else {
			x.writeOK("application/json", json())
		}
	}
	switch name {
	case "subprocessors":
		list := documents.ListSubprocessors(x.view.Upstreams(), x.jurisdictionOf, x.view.HeardAt())
		generated(list.JSON, list.HTML)
		return
	case "data":
		data := documents.DataKept()
		generated(data.JSON, data.HTML)
		return
	}
	doc, ok := x.w.documents[name]
	if !ok {
		for _, header := range []string{"Cache-Control", "Vary", "Content-Security-Policy"} {
			h.Del(header)
		}
		x.fail(dialect.Fail(dialect.NotFound, "The operator of this service has not published this document: ask them for it."), 0)
		return
	}
	text := strings.HasPrefix(doc.Type, "text/plain") || strings.HasPrefix(doc.Type, "text/markdown")
	if html && text && name != documents.Security { // RFC 9116: security.txt is plain text
		x.writeOK("text/html; charset=utf-8", documents.TextPage(titles[name], doc.Body))
		return
	}
	x.writeOK(doc.Type, doc.Body)
}

var titles = map[string]string{
	documents.DPA: "Data processing agreement", documents.AUP: "Acceptable use policy", documents.Compliance: "Compliance",
}

func (x *exchange) jurisdictionOf(region string) string {
	rec, ok := x.view.Region(region)
	if !ok {
		return ""
	}
	return rec.Region.Jurisdiction
}

// takeDocuments makes a table of what the operator supplied, and shows in
// metrics until when security.txt holds: it was good when the node started.
func (w *Worker) takeDocuments(list []link.Document) {
	w.documents = make(map[string]link.Document, len(list))
	for _, d := range list {
		d.Type = cmp.Or(d.Type, "application/octet-stream")
		w.documents[d.Name] = d
		if d.Name != documents.Security {
			continue
		}
		if expires, err := documents.CheckSecurity(d.Body, time.Now()); err == nil {
			w.metrics.security.WithLabelValues().Set(float64(expires.Unix()))
		} else {
			w.log.Error("security.txt does not hold: renew it", "error", err)
		}
	}
}

// readMethods of what this node answers by itself.
var readMethods = []string{http.MethodGet, http.MethodHead}
