package exchange

import (
	"net/http"
	"strings"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/documents"
)

// pageCache lets browsers keep a page for a while; it changes with the node's
// state or its configuration.
var pageCache = []string{"public, max-age=300"}

// document answers with a page about this service. None needs a key.
func (x *exchange) document(name string) {
	kind, b, ok := x.node.pages.Page(name, strings.Join(x.r.Header["Accept"], ","), func() documents.Subprocessors {
		return documents.ListSubprocessors(x.view.Upstreams(), x.jurisdictionOf, x.view.HeardAt())
	})
	h := x.rw.Header()
	h["X-Content-Type-Options"] = x.node.fixed.noSniff
	if !ok {
		x.fail(dialect.Fail(dialect.NotFound, "The operator of this service has not published this document: ask them for it."), 0)
		return
	}
	h["Cache-Control"], h["Vary"] = pageCache, []string{"Accept"}
	h["Content-Security-Policy"] = []string{"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:"}
	x.writeOK(kind, b)
}

func (x *exchange) jurisdictionOf(region string) string {
	rec, ok := x.view.Region(region)
	if !ok {
		return ""
	}
	return rec.Region.Jurisdiction
}

// readMethods of what this node answers by itself.
var readMethods = []string{http.MethodGet, http.MethodHead}
