package api_test

import (
	"testing"

	"pgregory.net/rapid"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
)

func TestPositionsAndCursorsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shard := controlplane.Shard(rapid.StringMatching(`[a-z][a-z0-9-]{0,30}`).Draw(t, "shard"))
		point := controlplane.Point{
			Epoch: controlplane.Epoch{Counter: rapid.Uint64().Draw(t, "counter"), Region: rapid.StringMatching(`[a-z][a-z0-9-]{0,30}`).Draw(t, "region")},
			Seq:   rapid.Uint64().Draw(t, "seq"),
		}
		if s, p, err := api.ParsePosition(api.FormatPosition(shard, point)); err != nil || s != shard || p != point {
			t.Fatalf("%s came back as %s %v, %v", api.FormatPosition(shard, point), s, p, err)
		}
		id := rapid.String().Draw(t, "id")
		if got, err := api.ParseCursor(api.FormatCursor(id)); err != nil || got != id {
			t.Fatalf("cursor of %q came back as %q, %v", id, got, err)
		}
	})
}

func TestNonsenseIsRefused(t *testing.T) {
	for _, text := range []string{"", "global", "global=", "global=1", "=1/a.2", "global=1/a", "global=x/a.2", "global=1/a.x", "global=1/a.-2"} {
		if s, p, err := api.ParsePosition(text); err == nil {
			t.Errorf("%q read as %s %v", text, s, p)
		}
	}
	for _, text := range []string{"x", "!", "b3JnX2FueQ"} {
		if id, err := api.ParseCursor(text); err == nil {
			t.Errorf("cursor %q read as %q", text, id)
		}
	}
}
