package neighbours

import (
	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/dataplane/keeper/trial"
	"ringmain/gossip/bulletin"
)

// PublishTrials puts into the digest how this node fares with the configuration:
// of the changes that are left out or suspected the newest, since packets are small.
func PublishTrials(d *bulletin.Digest, r trial.Report) {
	d.Proven, d.Suspects, d.LeftOut = "", nil, nil
	if r.Proven != (controlplane.Point{}) {
		d.Proven = api.FormatPoint(r.Proven)
	}
	for _, s := range r.Suspects[max(0, len(r.Suspects)-trial.MaxSaid):] {
		d.Suspects = append(d.Suspects, s.String())
	}
	for _, s := range r.Isolated[max(0, len(r.Isolated)-trial.MaxSaid):] {
		d.LeftOut = append(d.LeftOut, s.String())
	}
}

// TrialNodes reads the data nodes out of the table. What does not parse, as of
// another release, says nothing.
func TrialNodes(all []bulletin.NodeView) []trial.Node {
	var out []trial.Node
	for _, n := range all {
		if n.Role != string(config.Data) {
			continue
		}
		// One that is heard counts even while it says that it is not ready: it says so
		// for a moment after it began, and when its worker just died.
		node := trial.Node{Region: n.Region, Name: n.Node, Ready: n.Alive && !n.Draining, Left: n.Left}
		if _, p, err := api.ParsePosition(string(controlplane.ShardGlobal) + "=" + n.Proven); err == nil {
			node.Proven = p
		}
		node.Suspects, node.Isolated = spans(n.Suspects), spans(n.LeftOut)
		out = append(out, node)
	}
	return out
}

func spans(texts []string) (all []trial.Span) {
	for _, text := range texts {
		if s, err := trial.ParseSpan(text); err == nil {
			all = append(all, s)
		}
	}
	return all
}
