package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/config"
	"ringmain/cmd/ringmain/internal/declare"
	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
)

// becomeReady waits for every node, applies the seed, makes the key, waits
// until every data node serves it, and writes cluster.json.
func (c *cluster) becomeReady(ctx context.Context, began time.Time) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("not ready in time"))
	defer cancel()
	if err := c.await(ctx, "leaders", c.leadersKnown); err != nil {
		return err
	}
	c.logf("every region has a leader (%.1f s)", c.opts.Now().Sub(began).Seconds())
	client, err := c.client(0)
	if err != nil {
		return err
	}
	seed, err := c.seed()
	if err != nil {
		return err
	}
	plan, err := declare.Apply(ctx, client, seed, declare.Options{Progress: io.Discard})
	if err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	c.logf("seed applied: %s", plan.Summary())
	if err := c.ensureKey(ctx, client); err != nil {
		return err
	}
	if err := c.await(ctx, "data nodes", c.keyServed); err != nil {
		return err
	}
	if err := c.await(ctx, "configuration", func(ctx context.Context) error { return c.configured(ctx, client) }); err != nil {
		return err
	}
	c.sup.learnWorkers(ctx)
	c.notePIDs()
	c.file.Ready = true
	if err := c.file.Write(c.clusterFile()); err != nil {
		return err
	}
	c.logf("ready (%.1f s)", c.opts.Now().Sub(began).Seconds())
	return nil
}

// await polls f until it is nil; its last error says what was missing.
func (c *cluster) await(ctx context.Context, what string, f func(context.Context) error) error {
	for told := c.opts.Now(); ; {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if now := c.opts.Now(); now.Sub(told) > 5*time.Second {
			c.logf("waiting for %s: %v", what, err)
			told = now
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w (last: %w); the nodes' logs are in %s/*/*/node.log", what, context.Cause(ctx), err, c.dir)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *cluster) token() (string, error) {
	b, err := os.ReadFile(c.file.AdminTokenFile)
	return strings.TrimSpace(string(b)), err
}

func (c *cluster) client(region int) (*adminclient.Client, error) {
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	return adminclient.New(adminclient.Config{Servers: []string{c.file.Regions[region].Admin}, Token: token, Roots: c.roots})
}

// get asks one admin address.
func (c *cluster) get(ctx context.Context, base, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	token, err := c.token()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := c.probes.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s%s: %s", base, path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// leadersKnown is nil once every region has a leader and every region's global
// shard has been opened here: then a write succeeds.
func (c *cluster) leadersKnown(ctx context.Context) error {
	for _, r := range c.file.Regions {
		var st api.Status
		if err := c.get(ctx, r.Admin, "/admin/v1/status", &st); err != nil {
			return err
		}
		if st.Leader == "" {
			return fmt.Errorf("%s has no leader", r.Name)
		}
		// global, an any-shard per region, and this region's own jurisdiction.
		if want := 2 + len(c.file.Regions); len(st.Shards) < want {
			return fmt.Errorf("%s holds %d of %d shards", r.Name, len(st.Shards), want)
		}
	}
	return nil
}

// keyServed is nil once every data node is ready, also to the front door, and
// accepts the key, and so does whoever is asked at the region's own address.
func (c *cluster) keyServed(ctx context.Context) error {
	for _, n := range c.nodes {
		if n.role != config.Data {
			continue
		}
		if err := c.listModels(ctx, "https://"+n.api); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		if !c.backends[n.name].Ready() { // the front door is open only then
			return fmt.Errorf("%s: the front door has not found it ready yet", n.name)
		}
	}
	for _, r := range c.file.Regions { // a balancer listens some time after it found a node ready
		if err := c.listModels(ctx, r.API); err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
	}
	return nil
}

// configured is nil once every data node lives with the configuration, which
// they take one after the other.
func (c *cluster) configured(ctx context.Context, client *adminclient.Client) error {
	list, err := client.Shards(ctx, "")
	if err != nil {
		return err
	}
	nodes, err := client.Nodes(ctx)
	if err != nil {
		return err
	}
	global := string(controlplane.ShardGlobal)
	for _, s := range list.Items {
		if s.Shard != global {
			continue
		}
		_, want, err := api.ParsePosition(global + "=" + s.Position)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.Role != string(config.Data) {
				continue
			}
			if _, has, err := api.ParsePosition(global + "=" + n.Proven); err != nil || has.Compare(want) < 0 {
				return fmt.Errorf("%s is at %q of the configuration, which is at %s", n.Name, n.Proven, s.Position)
			}
		}
	}
	return nil
}

func (c *cluster) listModels(ctx context.Context, base string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/models", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.file.APIKey)
	resp, err := c.probes.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var models struct {
		Data []json.RawMessage `json:"data"`
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET /v1/models: %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&models); err != nil {
		return fmt.Errorf("GET /v1/models: %w", err)
	}
	if len(models.Data) == 0 {
		return errors.New("GET /v1/models: no model yet")
	}
	return nil
}

const (
	devOrg     = "dev"
	devProject = "playground"
)

// ensureKey keeps the key of an earlier run if it is still in force, else makes one.
func (c *cluster) ensureKey(ctx context.Context, client *adminclient.Client) error {
	org, err := client.OrgByName(ctx, devOrg)
	if err != nil {
		return fmt.Errorf("the manifest must define an org %q with a project %q: %w", devOrg, devProject, err)
	}
	project, err := client.ProjectByName(ctx, org.ID, devProject)
	if err != nil {
		return fmt.Errorf("the manifest must define a project %q of org %q: %w", devProject, devOrg, err)
	}
	if parts := strings.Split(c.file.APIKey, "_"); len(parts) == 5 {
		k, err := client.GetKey(ctx, "key_"+parts[2]+"_"+parts[3])
		if err == nil && k.Revoked == nil {
			return nil
		}
	}
	k, err := client.CreateKey(ctx, project.ID, api.KeyInput{Name: "dev"})
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	c.file.APIKey = k.Whole
	return nil
}

// notePIDs copies what runs now into cluster.json's shape.
func (c *cluster) notePIDs() {
	pids := map[string]process{}
	for _, p := range c.sup.list() {
		pids[p.node.name] = p
	}
	for r := range c.file.Regions {
		for i := range c.file.Regions[r].Nodes {
			n := &c.file.Regions[r].Nodes[i]
			n.PID, n.WorkerPID = pids[n.Name].pid, pids[n.Name].worker.alive()
		}
	}
}

// seed is the manifest to apply: the built-in one, with the given one after it.
func (c *cluster) seed() ([]byte, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "orgs:\n  - name: %s\n    plan: enterprise\n    state: verified\n    roaming: true\n    projects:\n      - name: %s\n", devOrg, devProject)
	b.WriteString("regions:\n")
	for r, region := range c.shape.Regions {
		fmt.Fprintf(&b, "  - name: %s\n    jurisdiction: %s\n    endpoint: https://%s\n", region.Name, region.Jurisdiction, c.shape.api(r))
	}
	b.WriteString("upstreams:\n")
	for r, region := range c.shape.Regions {
		for _, dialect := range []string{"openai", "anthropic"} {
			name := upstreamName(region.Name, dialect)
			fmt.Fprintf(&b, "  - name: %s\n    provider: simulated\n    region: %s\n    dialect: %s\n    base_url: https://%s\n    auth: none\n    simulated: true\n"+
				"    terms: {retention: zero, prompt_cache: none, training: never, contract: %q, dated: \"2026-01-01\"}\n",
				name, region.Name, dialect, c.shape.model(r), strings.Repeat("0", 64))
		}
	}
	b.WriteString("routes:\n")
	for _, m := range []struct{ model, dialect string }{{chatModel, "openai"}, {messagesModel, "anthropic"}} {
		fmt.Fprintf(&b, "  - model: %s\n    targets:\n", m.model)
		for _, region := range c.shape.Regions {
			fmt.Fprintf(&b, "      - {upstream: %s, model: %s}\n", upstreamName(region.Name, m.dialect), m.model)
		}
	}
	last := c.shape.Regions[len(c.shape.Regions)-1].Name
	fmt.Fprintf(&b, "  - model: %s\n    targets:\n      - {upstream: %s, model: %s}\n", remoteModel, upstreamName(last, "openai"), remoteModel)
	if c.opts.SeedFile != "" {
		own, err := os.ReadFile(filepath.Clean(c.opts.SeedFile))
		if err != nil {
			return nil, fmt.Errorf("--seed: %w", err)
		}
		return []byte(b.String() + "---\n" + string(own)), nil
	}
	return []byte(b.String()), nil
}

const (
	chatModel     = "sim-chat"
	messagesModel = "sim-messages"
	remoteModel   = "sim-far" // its only upstream is in the last region
)

func upstreamName(region, dialect string) string {
	if dialect == "openai" {
		return "sim-" + region
	}
	return "sim-" + region + "-" + dialect
}
