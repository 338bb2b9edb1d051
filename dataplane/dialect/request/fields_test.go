package request

import (
	"math/bits"
	"strings"
	"testing"

	"ringmain/dataplane/dialect"
)

// served finds what a test names.
func served(t testing.TB, path string) *dialect.Endpoint {
	t.Helper()
	ep, ok := dialect.EndpointOf(path)
	if !ok {
		t.Fatalf("no endpoint %s", path)
	}
	return ep
}

func TestFieldsHaveNames(t *testing.T) {
	if got := bits.TrailingZeros64(uint64(fieldEnd)); got != len(fieldNames) {
		t.Errorf("%d fields, %d names", got, len(fieldNames))
	}
	for _, ep := range dialect.Endpoints() {
		if fields := fieldsOf(ep); (fields&fModel == 0) != ep.Stores {
			t.Errorf("%s: of a body is read %b", ep.Path, fields)
		}
	}
}

func TestFieldsAreFound(t *testing.T) {
	for f := fModel; f != fieldEnd; f <<= 1 {
		name := f.name()
		if one, folded := (fieldEnd - 1).find([]byte(name)); one != f || folded {
			t.Errorf("%s finds %s, folded %t", name, one.name(), folded)
		}
		if one, folded := (fieldEnd - 1).find([]byte(strings.ToUpper(name))); one != f || !folded {
			t.Errorf("%s in capitals finds %d, folded %t", name, one, folded)
		}
		if one, _ := (fieldEnd - 1 - f).find([]byte(name)); one != 0 {
			t.Errorf("%s finds %s though it is not in the set", name, one.name())
		}
	}
	if one, _ := (fieldEnd - 1).find([]byte("modelx")); one != 0 {
		t.Errorf("modelx finds %s", one.name())
	}
}
