package manage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/cmd/ringmain/internal/residency"
)

func (t *tool) residencyCommand() *cobra.Command {
	return cli.Group("residency", "see what stays where", "  ringmain residency report",
		t.Command("report", "which models each jurisdiction serves, and what survives the loss of a region", "  ringmain residency report\n  ringmain residency report -o json", func(ctx context.Context, c *adminclient.Client, _ []string) error {
			regions, err := c.Regions(ctx)
			if err != nil {
				return err
			}
			upstreams, err := c.Upstreams(ctx)
			if err != nil {
				return err
			}
			routes, err := c.Routes(ctx)
			if err != nil {
				return err
			}
			report := residency.Of(regions, upstreams, routes)
			if !t.Table() {
				return t.Encode(report)
			}
			return t.showResidency(&report)
		}))
}

// showResidency prints a table per jurisdiction, with a column for the loss of
// each of its regions.
func (t *tool) showResidency(report *residency.Report) error {
	for i := range report.Jurisdictions {
		j := &report.Jurisdictions[i]
		if i > 0 {
			_, _ = fmt.Fprintln(t.Env.Stdout) // the table's own error tells
		}
		if _, err := fmt.Fprintln(t.Env.Stdout, heading(j)); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		if all := append(slices.Clone(j.Regions), j.Drained...); len(all) == 1 {
			if _, err := fmt.Fprintln(t.Env.Stdout, "  "+cli.Clean(residency.OneRegion(j.Jurisdiction, all[0]))); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		if len(j.Models) == 0 {
			continue
		}
		w := tabwriter.NewWriter(t.Env.Stdout, 0, 0, 2, ' ', 0)
		heads := []string{"  MODEL", "SERVED-IN", "ZERO-RETENTION"}
		for _, region := range j.Regions {
			heads = append(heads, "WITHOUT-"+strings.ToUpper(region))
		}
		cli.Line(w, heads)
		for k := range j.Models {
			cli.Line(w, row(j, k))
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

// heading says in a line what the jurisdiction can count on.
func heading(j *residency.Jurisdiction) string {
	name := cli.Clean(j.Jurisdiction)
	if j.Jurisdiction == residency.Unpinned {
		name = "not pinned"
	}
	where := "no region is in service"
	if len(j.Regions) > 0 {
		where = cli.Clean(strings.Join(j.Regions, ", "))
	}
	if len(j.Drained) > 0 {
		where += " (drained: " + cli.Clean(strings.Join(j.Drained, ", ")) + ")"
	}
	why := ""
	switch alone := alone(j); {
	case j.SurvivesRegionLoss:
	case len(j.Regions) < 2:
		why = " (there is no second region)"
	default:
		why = " (without a second home: " + cli.Clean(strings.Join(alone, ", ")) + ")"
	}
	return fmt.Sprintf("%s: %s; survives the loss of any one region: %s%s", name, where, cli.YesNo(j.SurvivesRegionLoss), why)
}

// alone lists the models that not more than one region serves.
func alone(j *residency.Jurisdiction) []string {
	var models []string
	for i := range j.Models {
		if m := &j.Models[i]; !m.SurvivesRegionLoss {
			models = append(models, m.Model)
		}
	}
	return slices.Compact(models)
}

// row is a model's line: where it is served, and what the loss of each region leaves.
func row(j *residency.Jurisdiction, k int) []string {
	m := &j.Models[k]
	name := m.Model
	for i := range j.Models {
		if i != k && j.Models[i].Model == m.Model && j.Models[i].Dialect != m.Dialect {
			name += " (" + m.Dialect + ")"
			break
		}
	}
	switch n := len(m.Endpoints); n {
	case 0:
	case 1:
		name += " at " + m.Endpoints[0]
	default:
		name += fmt.Sprintf(" at %s and %d more", m.Endpoints[0], n-1)
	}
	served := strings.Join(m.Regions, ", ")
	if len(m.CrossProvider) > 0 {
		served += " (other providers: " + strings.Join(m.CrossProvider, ", ") + ")"
	}
	for _, org := range slices.Sorted(maps.Keys(m.Dedicated)) {
		served += " (" + org + " only: " + strings.Join(m.Dedicated[org], ", ") + ")"
	}
	cells := []string{"  " + cli.Clean(name), cli.Clean(strings.TrimSpace(served)), cli.Clean(strings.Join(m.ZeroRetention, ", "))}
	for _, lost := range j.Regions {
		without := func(list []string) bool {
			return slices.ContainsFunc(list, func(r string) bool { return r != lost })
		}
		left := "served"
		switch {
		case len(m.Regions) == 0:
			left = "not served"
		case !without(m.Regions):
			left = "LOST"
		case len(m.ZeroRetention) > 0 && !without(m.ZeroRetention):
			left = "served, but not with zero retention"
		}
		cells = append(cells, left)
	}
	return cells
}
