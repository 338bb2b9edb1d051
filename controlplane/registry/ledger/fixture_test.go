package ledger

import (
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
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
	prjEU   = recordkit.PrjEU
	keyAny  = recordkit.KeyAny
	keyEU   = recordkit.KeyEU
	polAny  = recordkit.PolAny
	created = recordkit.Created
)

var (
	org       = recordkit.Org
	project   = recordkit.Project
	key       = recordkit.Key
	upstream  = recordkit.Upstream
	route     = recordkit.Route
	policy    = recordkit.Policy
	region    = recordkit.Region
	put       = recordkit.Put
	revoke    = recordkit.Revoke
	open      = recordkit.Open
	entry     = recordkit.Entry
	golden    = recordkit.Golden
	frozen    = recordkit.Frozen
	commands2 = recordkit.Commands2
	del       = recordkit.Delete
	ruleError = recordkit.RuleError
)

// propose applies changes as the home's leader would, through the bytes.
func propose(t testing.TB, s *State, shard controlplane.Shard, changes ...registry.Change) Outcome {
	t.Helper()
	return apply(t, s, recordkit.Command(t, s, shard, changes...))
}

// apply applies what cmd is after a way through the log.
func apply(t testing.TB, s *State, cmd *registry.Command) Outcome {
	t.Helper()
	b, err := registry.EncodeCommand(cmd)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err = registry.DecodeCommand(b)
	if err != nil {
		t.Fatal(err)
	}
	return s.Apply(cmd)
}

func mustPropose(t testing.TB, s *State, shard controlplane.Shard, changes ...registry.Change) Outcome {
	t.Helper()
	if err := s.Check(shard, changes); err != nil {
		t.Fatalf("check: %v", err)
	}
	out := propose(t, s, shard, changes...)
	if out.Err != nil {
		t.Fatalf("apply: %v", out.Err)
	}
	return out
}

// world returns two regions with a little of everything.
func world(t testing.TB) *State {
	s := New()
	for _, step := range recordkit.World() {
		mustPropose(t, s, step.Shard, step.Changes...)
	}
	return s
}
