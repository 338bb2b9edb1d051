package admin_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/api"
	"ringmain/internal/testkit/controlkit"
)

// raft is a region's Raft as far as the API sees it.
type raft struct {
	mu      sync.Mutex
	members map[string]api.Member
	refuse  error
	cut     bool // backups end early
}

func (r *raft) Members() api.MemberList {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := api.MemberList{Region: "us-east", Items: []api.Member{}}
	for _, m := range r.members {
		list.Items = append(list.Items, m)
	}
	return list
}

func (r *raft) Add(_ context.Context, node, address string, reader bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	role := "joining"
	if reader {
		role = "reader"
	}
	if r.refuse == nil {
		r.members[node] = api.Member{Node: node, Address: address, Role: role}
	}
	return r.refuse
}

func (r *raft) Move(_ context.Context, node, address string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[node]
	m.Address = address
	r.members[node] = m
	return r.refuse
}

func (r *raft) Remove(_ context.Context, node string, force bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse != nil && !force {
		return r.refuse
	}
	delete(r.members, node)
	return nil
}

func (r *raft) Transfer(_ context.Context, to string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, m := range r.members {
		m.Leader = name == to
		r.members[name] = m
	}
	return r.refuse
}

func (r *raft) Backup(_ context.Context, w io.Writer) error {
	if _, err := io.WriteString(w, "sealed"); err != nil {
		return err
	}
	if r.cut {
		return errors.New("the disk went away")
	}
	return nil
}

func TestOperations(t *testing.T) {
	r := &raft{members: map[string]api.Member{"us-east-c1": {Node: "us-east-c1", Address: "a:1", Role: "voter", Leader: true}}}
	c, base, _, logs := one(t, func(cfg *admin.Config) { cfg.Operations = r })
	if got := c.want(200, "GET", base+"/members", "").items(); len(got) != 1 || got[0]["role"] != "voter" {
		t.Errorf("members %v", got)
	}
	if got := c.want(200, "POST", base+"/members", `{"node":"us-east-c2","address":"10.0.0.2:1","reader":true}`).items(); len(got) != 2 || got[1]["role"] != "reader" {
		t.Errorf("after an addition %v", got)
	}
	if got := c.want(200, "POST", base+"/members/transfer?region=us-east", `{"to":"us-east-c2"}`).items(); got[1]["leader"] != true {
		t.Errorf("after a transfer %v", got)
	}
	if got := c.want(200, "PUT", base+"/members/us-east-c2/address", `{"address":"10.0.0.9:1"}`).items(); got[1]["address"] != "10.0.0.9:1" {
		t.Errorf("after a move %v", got)
	}
	c.want(404, "GET", base+"/members?region=nowhere", "")
	c.want(422, "POST", base+"/members", `{"node":"","address":"x"}`)
	r.refuse = controlplane.Refuse(controlplane.RuleConflict, "node", "it could commit nothing")
	if got := c.want(409, "DELETE", base+"/members/us-east-c2", ""); !strings.Contains(got.str("detail"), "commit nothing") {
		t.Errorf("a refusal says %s", got.text)
	}
	if got := c.want(200, "DELETE", base+"/members/us-east-c2?force=true", "").items(); len(got) != 1 {
		t.Errorf("after a removal %v", got)
	}
	r.refuse = controlplane.ErrNoLeader
	c.want(503, "POST", base+"/members/transfer", `{}`)
	for _, fact := range []string{"member_added", "member_moved", "member_removed", "leadership_transferred"} {
		if !strings.Contains(logs.String(), fact) {
			t.Errorf("the auditors were not told: %s", fact)
		}
	}
}

func TestBackupSaysWhetherItIsWhole(t *testing.T) {
	for _, cut := range []bool{false, true} {
		c, base, _, logs := one(t, func(cfg *admin.Config) { cfg.Operations = &raft{cut: cut} })
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/backup", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("without a token: %s", resp.Status)
		}
		req.Header.Set("Authorization", "Bearer "+controlkit.Token)
		if resp, err = c.client.Do(req); err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil || string(body) != "sealed" {
			t.Errorf("%q, %v", body, err)
		}
		if whole := resp.Trailer.Get(api.TrailerWhole) == "true"; whole == cut {
			t.Errorf("cut: %v, said to be whole: %v", cut, whole)
		}
		if told := strings.Contains(logs.String(), "backup_taken"); told == cut {
			t.Errorf("cut: %v, the auditors were told: %v", cut, told)
		}
	}
}
