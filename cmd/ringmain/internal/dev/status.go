package dev

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane/admin/api"
)

const (
	refreshTerminal = 2 * time.Second
	refreshFile     = 10 * time.Second // only the pids in cluster.json are kept current
)

// showStatus prints what to copy, then keeps the table current until ctx ends.
func (c *cluster) showStatus(ctx context.Context) error {
	c.print(c.banner())
	table := c.table(ctx)
	refresh := refreshFile
	if c.opts.Terminal {
		refresh = refreshTerminal
		c.print(unwrapped(table))
	} else {
		c.print(table)
	}
	lines := strings.Count(table, "\n")
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(refresh):
		}
		c.sup.learnWorkers(ctx)
		c.notePIDs()
		if err := c.file.Write(c.clusterFile()); err != nil {
			c.logf("the pids in cluster.json are stale: %v", err) // a full disk must not end the cluster
		}
		if c.opts.Terminal {
			table = c.table(ctx)
			c.print(fmt.Sprintf("\x1b[%dA\x1b[J", lines) + unwrapped(table))
			lines = strings.Count(table, "\n")
		}
	}
}

// unwrapped has a narrow terminal cut long lines, so that the table is as many
// lines high there as it is here.
func unwrapped(table string) string { return "\x1b[?7l" + table + "\x1b[?7h" }

func (c *cluster) print(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = fmt.Fprint(c.opts.Stdout, text) // a closed terminal is no reason to stop
}

func (c *cluster) banner() string {
	var b strings.Builder
	ca, token := quoted(c.file.CAFile), quoted(c.file.AdminTokenFile)
	fmt.Fprintf(&b, "\nringmain %s: %d regions\n\n  front door  %s\n", c.shape.Cluster, len(c.shape.Regions), c.file.FrontDoor)
	for _, r := range c.file.Regions {
		fmt.Fprintf(&b, "  %-11s %s   admin %s   (%s)\n", r.Name, r.API, r.Admin, r.Jurisdiction)
	}
	body := func(extra string) string {
		return fmt.Sprintf(`{"model":"%s"%s,"messages":[{"role":"user","content":"What feeds the ring?"}]}`, chatModel, extra)
	}
	chat := func(flags, extra string) string {
		return fmt.Sprintf("  curl %s--cacert %s %s/v1/chat/completions \\\n    -H 'authorization: Bearer %s' \\\n    -H 'content-type: application/json' \\\n    -d '%s'\n",
			flags, ca, c.file.FrontDoor, c.file.APIKey, body(extra))
	}
	fmt.Fprintf(&b, "\nAsk:\n%s\nAsk for a stream:\n%s", chat("-i ", ""), chat("-N ", `,"stream":true`))
	fmt.Fprintf(&b, "\nManage (or: ringmain status, ringmain org list, …):\n  curl --cacert %s -H \"authorization: Bearer $(cat %s)\" %s/admin/v1/status\n", ca, token, c.file.Regions[0].Admin)
	fmt.Fprintf(&b, "\nLose a region:\n  bin/drills run drills/scenarios/region-loss.yaml --cluster %s --region %s\n\nCtrl-C stops everything.\n\n",
		quoted(c.clusterFile()), c.file.Regions[min(1, len(c.file.Regions)-1)].Name)
	return b.String()
}

// quoted makes a path one word of a shell.
func quoted(path string) string {
	if !strings.ContainsFunc(path, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/._-", r)
	}) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// table asks every region what it is; what does not answer is shown as such.
func (c *cluster) table(ctx context.Context) string {
	published := map[string]string{}
	for _, r := range c.file.Regions { // the first region that answers speaks for all
		var list api.RegionList
		if c.get(ctx, r.Admin, "/admin/v1/regions", &list) == nil {
			for _, item := range list.Items {
				published[item.Name] = item.Published
			}
			break
		}
	}
	running := map[string]bool{}
	for _, p := range c.sup.list() {
		running[p.node.name] = p.pid != 0
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "REGION\tPUBLISHED\tLEADER\tCONTROL\tDATA READY\tPOSITION")
	for r, region := range c.file.Regions {
		var st api.Status
		leader, position := "-", "-"
		if c.get(ctx, region.Admin, "/admin/v1/status", &st) == nil {
			leader = st.Leader
			var parts []string
			for _, s := range st.Shards {
				parts = append(parts, s.Shard+"="+s.Position[strings.LastIndexByte(s.Position, '.')+1:])
			}
			position = strings.Join(parts, " ")
		}
		var control, controls, data, datas int
		for _, n := range c.nodes {
			switch {
			case n.region != r:
			case n.role == config.Control:
				controls++
				if running[n.name] {
					control++
				}
			default:
				datas++
				if c.backends[n.name].Ready() {
					data++
				}
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d/%d\t%d/%d\t%s\n", region.Name, orDash(published[region.Name]), orDash(leader), control, controls, data, datas, position)
	}
	_ = w.Flush() // into memory
	return b.String()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
