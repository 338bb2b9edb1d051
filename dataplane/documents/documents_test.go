package documents

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/receipt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)

const good = "# where to report\nContact: mailto:security@example.com\nContact: https://example.com/report\nExpires: 2027-06-30T00:00:00Z\nPreferred-Languages: en, de\n"

func TestSecurityText(t *testing.T) {
	signed := "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n" + strings.ReplaceAll(good, "# where", "- # where") +
		"-----BEGIN PGP SIGNATURE-----\n\niHUEARYKAB\n-----END PGP SIGNATURE-----\n"
	for name, text := range map[string]string{"plain": good, "signed": signed, "CRLF": strings.ReplaceAll(good, "\n", "\r\n"), "other case": strings.ToLower(good)} {
		expires, err := CheckSecurity([]byte(text), now)
		if name == "other case" { // RFC 3339 allows t and z in lower case, Go's parser does not
			text = strings.ReplaceAll(good, "Contact", "CONTACT")
			expires, err = CheckSecurity([]byte(text), now)
		}
		if err != nil || expires != time.Date(2027, 6, 30, 0, 0, 0, 0, time.UTC) {
			t.Errorf("%s: %v, %v", name, expires, err)
		}
	}
	for name, tc := range map[string]struct{ from, to, want string }{
		"no contact":       {"Contact", "Policy", "Contact is missing"},
		"no expiry":        {"Expires: 2027-06-30T00:00:00Z\n", "", "Expires is missing"},
		"expired":          {"2027", "2025", "it expired at 2025-06-30"},
		"expiry is a date": {"2027-06-30T00:00:00Z", "2027-06-30", "line 4: Expires must be"},
		"two expiries":     {"Preferred-Languages: en, de", "Expires: 2028-06-30T00:00:00Z", "line 5: Expires is given twice"},
		"plain http":       {"https://", "http://", "line 3: Contact names a page over http"},
		"no URI":           {"mailto:security@example.com", "security@example.com", "line 2: Contact must be a URI"},
		"prose":            {"# where", "where", "line 1 is neither"},
	} {
		if _, err := CheckSecurity([]byte(strings.ReplaceAll(good, tc.from, tc.to)), now); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if err := Check(Security, "text/plain", []byte(good), now.AddDate(2, 0, 0)); err == nil {
		t.Error("an expired security.txt passes")
	}
	if err := Check(DPA, "text/plain", []byte("\xff"), now); err == nil {
		t.Error("text that is not UTF-8 passes")
	}
}

// TestEveryFieldIsDeclared: what is published is what the records hold, no
// more and no less. Of the metadata record, package meter tests the same.
func TestEveryFieldIsDeclared(t *testing.T) {
	d := dataKept()
	if len(d.Metadata) != reflect.TypeFor[meter.Record]().NumField() {
		t.Errorf("%d fields of the metadata record are published", len(d.Metadata))
	}
	published := map[string]bool{}
	for _, f := range append(d.Metadata, d.Receipt...) {
		if f.Description == "" || f.Name == "" || f.Name == "-" {
			t.Errorf("the field %q has no description in data.go", f.Name)
		}
	}
	for _, f := range d.Receipt {
		published[f.Name] = true
	}
	for name := range receiptFields {
		if !published[name] {
			t.Errorf("data.go describes %s, which receipts do not have", name)
		}
	}
	b, err := json.Marshal(&receipt.Facts{})
	if err != nil {
		t.Fatal(err)
	}
	var facts map[string]any
	if err := json.Unmarshal(b, &facts); err != nil {
		t.Fatal(err)
	}
	for name := range facts {
		if !published[name] {
			t.Errorf("receipts have a field %s that is not published", name)
		}
	}
}

func TestSubprocessors(t *testing.T) {
	terms := registry.Terms{Retention: "zero", PromptCache: "memory", Training: "never", BAA: true, Contract: strings.Repeat("ab", 32), Dated: "2026-01-31"}
	list := ListSubprocessors([]*registry.Record{
		{Upstream: &registry.Upstream{Name: "z-us", Provider: "zed", Region: "us-east", Terms: terms, Credential: []byte("sk-secret"), Dedicated: "org_1"}},
		{Upstream: &registry.Upstream{Name: "off", Provider: "gone", Region: "us-east", Terms: terms, Disabled: true}},
		{Upstream: &registry.Upstream{Name: "a-eu", Provider: `a<b>"`, Region: "eu-fra", Terms: terms, Simulated: true}},
	}, func(region string) string { return region[:2] }, now)
	if len(list.Subprocessors) != 2 || list.Subprocessors[0].Upstream != "a-eu" || list.Subprocessors[1].Jurisdiction != "us" || !list.Subprocessors[1].Dedicated {
		t.Fatalf("%+v", list)
	}
	for _, b := range [][]byte{list.JSON(), list.HTML()} {
		if strings.Contains(string(b), "sk-secret") || strings.Contains(string(b), "org_1") {
			t.Errorf("the page tells too much: %s", b)
		}
	}
	if h := string(list.HTML()); strings.Contains(h, "a<b>") || !strings.Contains(h, "a&lt;b&gt;") || !strings.Contains(h, "2026-01-31") {
		t.Error(h)
	}
	var back Subprocessors
	if err := json.Unmarshal(list.JSON(), &back); err != nil || back.Subprocessors[1] != list.Subprocessors[1] {
		t.Errorf("%v %+v", err, back)
	}
}

func TestPrefersHTML(t *testing.T) {
	for accept, want := range map[string]bool{
		"":    false,
		"*/*": false,
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": true,
		"text/html":                               true,
		"text/html, */*":                          true,
		"application/json":                        false,
		"application/json, text/html":             false,
		"application/json;q=0.1, text/html;q=0.5": true,
		"text/html;q=0":                           false,
		"text/html;q=0.2, */*;q=0.9":              false,
		"TEXT/HTML; charset=utf-8":                true,
		"text/html;q=nonsense, */*":               false,
	} {
		if got := prefersHTML(accept); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}
