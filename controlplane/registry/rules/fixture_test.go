package rules_test

import (
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	kit "ringmain/internal/testkit/recordkit"
)

// world returns two regions with a little of everything.
func world(t testing.TB) *ledger.State {
	s := ledger.New()
	for _, step := range kit.World() {
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
	if out := s.Apply(kit.Command(t, s, shard, changes...)); out.Err != nil {
		t.Fatalf("apply: %v", out.Err)
	}
}
