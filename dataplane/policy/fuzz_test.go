package policy

import (
	"bufio"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

var shapes = map[string]*regexp.Regexp{
	"Idc-Project-Id": regexp.MustCompile(`\A[A-Za-z0-9_-]{1,64}\z`), "Openai-Project": regexp.MustCompile(`\A[A-Za-z0-9_-]{1,64}\z`),
	"Idc-Region-Hint": regexp.MustCompile(`\A[A-Za-z0-9_-]{1,63}\z`), "Idc-Residency": regexp.MustCompile(`\A[A-Za-z0-9_-]{2,4}\z`),
	"Idc-No-Retention": regexp.MustCompile(`\Atrue\z`), "Idc-Receipt": regexp.MustCompile(`\Ainline\z`),
}

var meantForUs = regexp.MustCompile(`(?i)\A(x[-_])?idc[-_]`)

// naiveParse is Parse written with regular expressions.
func naiveParse(h http.Header) (a Asked, ok bool) {
	for name, values := range h {
		shape := shapes[name]
		if shape == nil {
			if meantForUs.MatchString(name) {
				return Asked{}, false
			}
			continue
		}
		if len(values) != 1 || !shape.MatchString(values[0]) || values[0] == "any" && name == "Idc-Residency" {
			return Asked{}, false
		}
	}
	a = Asked{Project: h.Get("Idc-Project-Id"), RegionHint: h.Get("Idc-Region-Hint"), Residency: h.Get("Idc-Residency"), NoRetention: h.Get("Idc-No-Retention") == "true"}
	if other := h.Get("Openai-Project"); other != "" && a.Project != "" && other != a.Project {
		return Asked{}, false
	} else if a.Project == "" {
		a.Project = other
	}
	return a, true
}

// FuzzHeaders: whatever fields a request has, they ask for what the twin reads
// in them, or are refused with words of ours alone.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{
		"idc-residency: eu\r\nIDC-NO-RETENTION: true", "idc-project-id: prj_a\r\nopenai-project: prj_a", "openai-project: a\r\nidc-project-id: b",
		"idc-residency: any", "idc-no-retention: TRUE", "idc-no-retention:\ttrue \r\nidc-no-retention: true", "idc-no-retentions: true", "idc-: x", "idc: x",
		"idc_no_retention: true", "x-idc-residency: eu", "x-x-idc-residency: eu", "x-idc-no-retention: true", "x_idc_no_retention: true", "X_Idc-Residency: eu", "idcode: x", "idc-region-hint: " + strings.Repeat("a", 64), "idc-receipt: inline,inline", "Idc-Receipt:", "openai-project: \r\nopenai-project: a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, fields string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n\r\n")))
		if err != nil {
			return
		}
		got, refused := Parse(r.Header)
		want, ok := naiveParse(r.Header)
		if ok != (refused == nil) || ok && got != want {
			t.Fatalf("%q asks for %+v, %v; the twin says %+v, %t", fields, got, refused, want, ok)
		}
		if refused == nil {
			return
		}
		if refused.Code != "invalid_header" {
			t.Fatalf("%q: %+v", fields, refused)
		}
		for name, values := range r.Header {
			for _, v := range values {
				if len(v) > 12 && strings.Contains(refused.Message, v) && !strings.Contains(strings.ToLower(name), v) {
					t.Fatalf("%q: the refusal quotes it: %s", fields, refused.Message)
				}
			}
		}
	})
}
