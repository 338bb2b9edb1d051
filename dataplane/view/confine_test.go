package view

import (
	"errors"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

const confinedOrg = "org_any_1xV3rn0000000001"

func orgRecord(shard controlplane.Shard) *registry.Record {
	return &registry.Record{Kind: registry.KindOrg, Meta: registry.Meta{ID: confinedOrg, Shard: shard},
		Org: &registry.Org{Name: "Acme", State: "verified", Jurisdiction: "any", Roaming: true}}
}

// A pin of the safety set holds before its org's record arrives, in whatever
// way it comes, and whatever comes after it.
func TestAPinOutlivesEverything(t *testing.T) {
	pinTo := func(jurisdiction string) *registry.Revocation {
		return &registry.Revocation{Kind: registry.KindPin, ID: registry.PinID(confinedOrg, jurisdiction), Shard: "any-us-east", At: 7}
	}
	revoke := registry.Change{Op: registry.OpRevoke, Kind: registry.KindPin, ID: pinTo("eu").ID, At: 7}
	for name, come := range map[string]func(*Store){
		"alone": func(s *Store) { apply(t, s, &feed.Frame{Type: feed.FrameRevocation, Revocation: pinTo("eu")}) },
		"in an entry": func(s *Store) {
			apply(t, s, entryFrame(t, "any-us-east", 1, revoke))
		},
		"in an entry that does not fit": func(s *Store) {
			if err := s.Apply(entryFrame(t, "any-us-east", 9, revoke)); !errors.Is(err, ErrGap) {
				t.Errorf("a gap: %v", err)
			}
			apply(t, s, entryFrame(t, "any-us-east", 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Config{})
			come(s)
			want := func(when, jurisdiction string) {
				t.Helper()
				if s.View().Position()["any-us-east"].Seq == 0 {
					return
				}
				org, ok := s.View().Org(confinedOrg)
				if !ok || org.Org.Jurisdiction != jurisdiction || org.Org.Roaming || org.Org.State != "verified" {
					t.Errorf("%s: %+v, want pinned to %s", when, org, jurisdiction)
				}
			}
			seq := s.View().Position()["any-us-east"].Seq
			apply(t, s, entryFrame(t, "any-us-east", seq+1, put(orgRecord("any-us-east"))))
			want("with its record", "eu")
			apply(t, s, entryFrame(t, "any-us-east", seq+2, put(orgRecord("any-us-east"))))
			want("with another", "eu")
			b, err := registry.EncodeRecord(orgRecord("any-us-east"))
			if err != nil {
				t.Fatal(err)
			}
			apply(t, s, &feed.Frame{Type: feed.FrameReset, Shard: "any-us-east"}, &feed.Frame{Type: feed.FrameRecord, Shard: "any-us-east", Record: b},
				&feed.Frame{Type: feed.FrameEnd, Shard: "any-us-east", Point: controlplane.Point{Epoch: epoch1, Seq: seq + 9}})
			want("after a snapshot without it", "eu")
			held := s.View()
			apply(t, s, &feed.Frame{Type: feed.FrameRevocation, Revocation: pinTo("us")})
			want("pinned twice", nowhere)
			if org, _ := held.Org(confinedOrg); org.Org.Jurisdiction != "eu" {
				t.Error("a view that a request holds must not change")
			}
		})
	}
}

// Relocations are the management API's: a data node passes over them.
func TestRelocationsPass(t *testing.T) {
	s := New(Config{})
	rel := &registry.Record{Kind: registry.KindRelocation, Meta: registry.Meta{ID: registry.RelocationID(confinedOrg), Shard: "any-us-east"},
		Relocation: &registry.Relocation{Org: confinedOrg, To: "org_eu_1xV3rp0000000001", Shard: "eu"}}
	apply(t, s, entryFrame(t, "any-us-east", 1, put(orgRecord("any-us-east")), put(rel)))
	if org, ok := s.View().Org(confinedOrg); !ok || org.Org.Jurisdiction != "any" {
		t.Errorf("a relocation alone pins: %+v", org)
	}
	apply(t, s, entryFrame(t, "any-us-east", 2, registry.Change{Op: registry.OpDelete, Kind: registry.KindRelocation, ID: rel.Meta.ID}))
	b, err := registry.EncodeRecord(rel)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, s, &feed.Frame{Type: feed.FrameReset, Shard: "any-us-east"}, &feed.Frame{Type: feed.FrameRecord, Shard: "any-us-east", Record: b},
		&feed.Frame{Type: feed.FrameEnd, Shard: "any-us-east", Point: controlplane.Point{Epoch: epoch1, Seq: 3}})
}
