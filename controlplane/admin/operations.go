package admin

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
)

// Operations are what a region's Raft lets its operators do. Refusals are
// *controlplane.RuleError; followers answer changes with ErrNotLeader.
type Operations interface {
	Members() api.MemberList
	Add(ctx context.Context, node, address string, reader bool) error
	Move(ctx context.Context, node, address string) error
	Remove(ctx context.Context, node string, force bool) error
	Transfer(ctx context.Context, to string) error
	// Backup writes a sealed backup of this node's copy.
	Backup(ctx context.Context, w io.Writer) error
}

// backupIn bounds the writing of one backup.
const backupIn = 30 * time.Minute

func (a *API) operations() {
	const tag = "Raft"
	gate.Add(a.gate, gate.Operation{
		ID: "list-members", Method: http.MethodGet, Path: "/members", Tag: tag, Summary: "List the nodes of a region's Raft", Place: gate.InRegion,
		Description: "As the region's leader knows them: who votes, who answers, how far behind each is.",
	}, func(context.Context, *gate.AtRegion) (*gate.Answer[api.MemberList], error) { return a.members(nil) })
	gate.Add(a.gate, gate.Operation{
		ID: "add-member", Method: http.MethodPost, Path: "/members", Tag: tag, Summary: "Add a node to a region's Raft", Place: gate.InRegion,
		Description: "The node must run, with an empty directory and its own address in its configuration. It copies the state and votes once it has kept up for ten seconds. Adding a member again does nothing.",
	}, func(ctx context.Context, in *struct {
		gate.AtRegion
		Body api.MemberInput
	}) (*gate.Answer[api.MemberList], error) {
		return a.operate(ctx, in.Body.Node, a.audit.MemberAdded, func(o Operations) error { return o.Add(ctx, in.Body.Node, in.Body.Address, in.Body.Reader) })
	})
	gate.Add(a.gate, gate.Operation{
		ID: "move-member", Method: http.MethodPut, Path: "/members/{node}/address", Tag: tag, Summary: "Note that a node of a region's Raft is at another address", Place: gate.InRegion,
		Description: "The node must run there, with its own configuration saying so. Everybody else learns it from here.",
	}, func(ctx context.Context, in *struct {
		gate.AtRegion
		Node string `path:"node" doc:"Name of the node"`
		Body api.MemberAddress
	}) (*gate.Answer[api.MemberList], error) {
		return a.operate(ctx, in.Node, a.audit.MemberMoved, func(o Operations) error { return o.Move(ctx, in.Node, in.Body.Address) })
	})
	gate.Add(a.gate, gate.Operation{
		ID: "remove-member", Method: http.MethodDelete, Path: "/members/{node}", Tag: tag, Summary: "Remove a node from a region's Raft", Place: gate.InRegion,
		Description: "Refused if the voters left that answer would be no majority, unless forced. Removing a node that is no member does nothing.",
	}, func(ctx context.Context, in *struct {
		gate.AtRegion
		Node  string `path:"node" doc:"Name of the node"`
		Force bool   `query:"force" doc:"Even if the region can commit nothing afterwards"`
	}) (*gate.Answer[api.MemberList], error) {
		told := func(actor, node, region string) { a.audit.MemberRemoved(actor, node, region, in.Force) }
		return a.operate(ctx, in.Node, told, func(o Operations) error { return o.Remove(ctx, in.Node, in.Force) })
	})
	gate.Add(a.gate, gate.Operation{
		ID: "transfer-leadership", Method: http.MethodPost, Path: "/members/transfer", Tag: tag, Summary: "Have another node lead a region", Place: gate.InRegion,
		Description: "Takes some milliseconds, in which writes are refused with nothing written.",
	}, func(ctx context.Context, in *struct {
		gate.AtRegion
		Body *api.TransferInput
	}) (*gate.Answer[api.MemberList], error) {
		to := ""
		if in.Body != nil {
			to = in.Body.To
		}
		return a.operate(ctx, to, a.audit.LeadershipTransferred, func(o Operations) error { return o.Transfer(ctx, to) })
	})
	a.gate.HandleFunc("GET /admin/v1/backup", a.backup)
}

func (a *API) members(err error) (*gate.Answer[api.MemberList], error) {
	if err != nil {
		return nil, err
	}
	if a.cfg.Operations == nil {
		return nil, problem.New(http.StatusServiceUnavailable, api.CodeNoLeader, "", "This node has no part in a region's Raft.")
	}
	list := a.cfg.Operations.Members()
	slices.SortFunc(list.Items, func(x, y api.Member) int { return cmp.Compare(x.Node, y.Node) })
	return &gate.Answer[api.MemberList]{Body: list}, nil
}

// operate does one thing to the region's Raft, and tells the auditors.
func (a *API) operate(ctx context.Context, node string, told func(actor, node, region string), do func(Operations) error) (*gate.Answer[api.MemberList], error) {
	if a.cfg.Operations == nil {
		return a.members(nil)
	}
	if err := do(a.cfg.Operations); err != nil {
		return nil, err
	}
	told(records.RequestOf(ctx).Actor, node, a.cfg.Region)
	return a.members(nil)
}

// backup streams a sealed backup of this node's copy, for longer than other
// answers may take. A trailer says that all of it was sent.
func (a *API) backup(w http.ResponseWriter, r *http.Request) {
	actor := records.RequestOf(r.Context()).Actor
	if actor == "" {
		problem.Write(w, problem.Unauthorized())
		return
	}
	if a.cfg.Operations == nil {
		problem.Write(w, problem.Of(controlplane.ErrNoLeader))
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), backupIn)
	defer cancel()
	rc := http.NewResponseController(w)
	if err := rc.SetWriteDeadline(a.cfg.Now().Add(backupIn)); err != nil {
		problem.Write(w, problem.Of(fmt.Errorf("backup: %w", err)))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", api.TrailerWhole)
	if err := a.cfg.Operations.Backup(ctx, w); err != nil {
		a.cfg.Logger.Error("a backup was not finished", "actor", actor, "err", err)
		return
	}
	w.Header().Set(api.TrailerWhole, "true")
	a.audit.BackupTaken(actor, a.cfg.Region, a.cfg.Node)
}
