package rules_test

import (
	"bytes"
	"errors"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/recordkit"
)

const (
	anyEast = recordkit.AnyEast
	pinEU   = recordkit.PinEU
	pinUS   = recordkit.PinUS
	orgAny  = recordkit.OrgAny
	orgNew  = recordkit.OrgNew
	orgEU   = recordkit.OrgEU
	prjAny  = recordkit.PrjAny
	prjNew  = recordkit.PrjNew
	prjEU   = recordkit.PrjEU
	keyAny  = recordkit.KeyAny
	keyEU   = recordkit.KeyEU
	upsUS   = recordkit.UpsUS
	upsEU   = recordkit.UpsEU
	rteOne  = recordkit.RteOne
	polAny  = recordkit.PolAny
)

var (
	org      = recordkit.Org
	project  = recordkit.Project
	key      = recordkit.Key
	upstream = recordkit.Upstream
	route    = recordkit.Route
	policy   = recordkit.Policy
	region   = recordkit.Region
	put      = recordkit.Put
	revoke   = recordkit.Revoke
	open     = recordkit.Open
	entry    = recordkit.Entry
	del      = recordkit.Delete
)

// world returns two regions with a little of everything.
func world(t testing.TB) *ledger.State {
	s := ledger.New()
	for _, step := range recordkit.World() {
		mustPropose(t, s, step.Shard, step.Changes...)
	}
	return s
}

// mustPropose has the changes checked and applied at their home.
func mustPropose(t testing.TB, s *ledger.State, shard controlplane.Shard, changes ...registry.Change) {
	t.Helper()
	if err := s.Check(shard, changes); err != nil {
		t.Fatalf("check: %v", err)
	}
	e, err := s.Next(shard, changes)
	if err != nil {
		t.Fatal(err)
	}
	if out := s.Apply(&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, e)}}); out.Err != nil {
		t.Fatalf("apply: %v", out.Err)
	}
}

func ruleError(t testing.TB, err error) *controlplane.RuleError {
	t.Helper()
	var rule *controlplane.RuleError
	if err != nil && !errors.As(err, &rule) {
		t.Fatalf("%v (%T) is not a rule error", err, err)
	}
	return rule
}

func snapshot(t testing.TB, s *ledger.State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
