package cli

import (
	"strings"
	"time"

	"ringmain/controlplane/admin/api"
)

var revokedThing = []Column[api.Revoked]{
	Col("KIND", func(r api.Revoked) string { return r.Kind }),
	Col("REVOKED", func(r api.Revoked) string { return r.Subject }),
	Col("SINCE", func(r api.Revoked) string { return r.Revoked.Format(time.RFC3339) }),
	Col("UPSTREAMS", func(r api.Revoked) string { return strings.Join(r.Upstreams, ",") }),
	Col("ACKNOWLEDGED", func(r api.Revoked) string { return r.Acknowledged }),
}

// ShowRevoked prints what came of a revocation.
func (t *Tool) ShowRevoked(r *api.Revoked, err error) error {
	if err != nil {
		return err
	}
	if r.Unseen {
		t.Say("gossip knows no node %s: if the name is misspelt, the node that you mean is not revoked", Clean(r.Subject))
	}
	if r.Held != nil {
		t.SayHeld(r.Held)
	}
	return Show(t, []api.Revoked{*r}, true, revokedThing)
}

// SayHeld tells who holds a revocation, and who is not known to.
func (t *Tool) SayHeld(h *api.Held) {
	t.Say("%s", h)
	for _, l := range []struct {
		what  string
		names []string
	}{
		{"regions that do not hold it yet", h.RegionsMissing}, {"regions not heard, so that nothing is known", h.RegionsUnknown},
		{"data nodes that do not hold it yet", h.NodesMissing}, {"silent data nodes, of which nothing is known", h.NodesUnknown},
	} {
		if len(l.names) > 0 {
			t.Say("%s: %s", l.what, Clean(strings.Join(l.names, ", ")))
		}
	}
}
