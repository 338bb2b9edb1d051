package node

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/dataplane/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestEdgeOfConfig: each field of the configuration is one of the worker's.
func TestEdgeOfConfig(t *testing.T) {
	cfg := new(config.Config)
	fields := reflect.ValueOf(&cfg.Tunables.Edge).Elem()
	for i := range fields.NumField() {
		if f := fields.Field(i); f.CanUint() {
			f.SetUint(uint64(i) + 1)
		} else {
			f.SetInt(int64(i) + 1)
		}
	}
	got := reflect.ValueOf(edgeOf(cfg))
	if got.NumField() != fields.NumField() {
		t.Fatalf("%d fields of %d", got.NumField(), fields.NumField())
	}
	for i := range got.NumField() {
		if n := got.Field(i).Int(); n != int64(i)+1 {
			t.Errorf("%s is %d, want %d", got.Type().Field(i).Name, n, i+1)
		}
	}
}

// TestDocumentsAreCheckedBeforeTheStart: a node does not start with a document
// that it could not publish, and names the field and the file.
func TestDocumentsAreCheckedBeforeTheStart(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	security := "Contact: mailto:security@example.com\nExpires: 2027-01-01T00:00:00Z\n"
	cfg := &config.Config{}
	if docs, err := ReadDocuments(cfg, now); err != nil || len(docs) != 0 {
		t.Fatalf("none configured: %v, %v", docs, err)
	}
	cfg.Documents = config.Documents{SecurityTxt: file("security.txt", security), DPA: file("dpa.pdf", "%PDF-1.7"), AUP: file("aup.md", "# Use")}
	docs, err := ReadDocuments(cfg, now)
	if err != nil || len(docs) != 3 || docs[0].Name != "security.txt" || string(docs[0].Body) != security || docs[1].Type != "application/pdf" {
		t.Fatalf("%v %+v", err, docs)
	}
	for want, change := range map[string]config.Documents{
		"documents.security_txt: " + dir + "/old.txt: it expired at 2020":  {SecurityTxt: file("old.txt", strings.Replace(security, "2027", "2020", 1))},
		"documents.security_txt: " + dir + "/none.txt: Contact is missing": {SecurityTxt: file("none.txt", "Expires: 2027-01-01T00:00:00Z\n")},
		"documents.security_txt: " + dir + "/security.html cannot":         {SecurityTxt: file("security.html", security)},
		"documents.dpa: " + dir + "/dpa.docx cannot be published":          {DPA: file("dpa.docx", "x")},
		"documents.aup: open ": {AUP: dir + "/absent.md"},
		"documents.compliance: " + dir + "/empty.txt: the document is empty": {Compliance: file("empty.txt", "")},
	} {
		if _, err := ReadDocuments(&config.Config{Documents: change}, now); err == nil || !strings.Contains(err.Error()+" ", strings.TrimSuffix(want, "open ")) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestPoolsFollowTheConfinement(t *testing.T) {
	all := []string{"standard", "zero-retention", "dedicated:org_1"}
	held := link.Confinement{Landlock: 1, NoFileWrite: true, NoDump: true, NoSwap: true}
	if got := poolsOf(all, held); !slices.Equal(got, all) {
		t.Error(got)
	}
	held.NoDump = false
	if got := poolsOf(all, held); !slices.Equal(got, []string{"standard", "dedicated:org_1"}) || len(all) != 3 || all[1] != "zero-retention" {
		t.Error(got, all)
	}
}
