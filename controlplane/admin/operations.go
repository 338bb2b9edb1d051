package admin

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
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

func (a *API) operations(h huma.API) {
	const tag = "Raft"
	add(a, h, operation{
		id: "list-members", method: http.MethodGet, path: "/members", tag: tag, summary: "List the nodes of a region's Raft", place: inRegion,
		description: "As the region's leader knows them: who votes, who answers, how far behind each is.",
	}, func(context.Context, *AtRegion) (*answer[api.MemberList], error) { return a.members(nil) })
	add(a, h, operation{
		id: "add-member", method: http.MethodPost, path: "/members", tag: tag, summary: "Add a node to a region's Raft", place: inRegion,
		description: "The node must run, with an empty directory and its own address in its configuration. It copies the state and votes once it has kept up for ten seconds. Adding a member again does nothing.",
	}, func(ctx context.Context, in *struct {
		AtRegion
		Body api.MemberInput
	}) (*answer[api.MemberList], error) {
		return a.operate(ctx, "member_added", in.Body.Node, func(o Operations) error { return o.Add(ctx, in.Body.Node, in.Body.Address, in.Body.Reader) })
	})
	add(a, h, operation{
		id: "move-member", method: http.MethodPut, path: "/members/{node}/address", tag: tag, summary: "Note that a node of a region's Raft is at another address", place: inRegion,
		description: "The node must run there, with its own configuration saying so. Everybody else learns it from here.",
	}, func(ctx context.Context, in *struct {
		AtRegion
		Node string `path:"node" doc:"Name of the node"`
		Body api.MemberAddress
	}) (*answer[api.MemberList], error) {
		return a.operate(ctx, "member_moved", in.Node, func(o Operations) error { return o.Move(ctx, in.Node, in.Body.Address) })
	})
	add(a, h, operation{
		id: "remove-member", method: http.MethodDelete, path: "/members/{node}", tag: tag, summary: "Remove a node from a region's Raft", place: inRegion,
		description: "Refused if the voters left that answer would be no majority, unless forced. Removing a node that is no member does nothing.",
	}, func(ctx context.Context, in *struct {
		AtRegion
		Node  string `path:"node" doc:"Name of the node"`
		Force bool   `query:"force" doc:"Even if the region can commit nothing afterwards"`
	}) (*answer[api.MemberList], error) {
		return a.operate(ctx, "member_removed", in.Node, func(o Operations) error { return o.Remove(ctx, in.Node, in.Force) }, slog.Bool("force", in.Force))
	})
	add(a, h, operation{
		id: "transfer-leadership", method: http.MethodPost, path: "/members/transfer", tag: tag, summary: "Have another node lead a region", place: inRegion,
		description: "Takes some milliseconds, in which writes are refused with nothing written.",
	}, func(ctx context.Context, in *struct {
		AtRegion
		Body *api.TransferInput
	}) (*answer[api.MemberList], error) {
		to := ""
		if in.Body != nil {
			to = in.Body.To
		}
		return a.operate(ctx, "leadership_transferred", to, func(o Operations) error { return o.Transfer(ctx, to) })
	})
	a.mux.HandleFunc("GET /admin/v1/backup", a.backup)
}

func (a *API) members(err error) (*answer[api.MemberList], error) {
	if err != nil {
		return nil, err
	}
	if a.cfg.Operations == nil {
		return nil, problem(http.StatusServiceUnavailable, api.CodeNoLeader, "", "This node has no part in a region's Raft.")
	}
	list := a.cfg.Operations.Members()
	slices.SortFunc(list.Items, func(x, y api.Member) int { return cmp.Compare(x.Node, y.Node) })
	return &answer[api.MemberList]{Body: list}, nil
}

// operate does one thing to the region's Raft, and tells the auditors.
func (a *API) operate(ctx context.Context, fact, node string, do func(Operations) error, more ...slog.Attr) (*answer[api.MemberList], error) {
	if a.cfg.Operations == nil {
		return a.members(nil)
	}
	if err := do(a.cfg.Operations); err != nil {
		return nil, err
	}
	a.audit.fact(exchangeOf(ctx).actor, fact, node, append(more, slog.String("region", a.cfg.Region))...)
	return a.members(nil)
}

// backup streams a sealed backup of this node's copy, for longer than other
// answers may take. A trailer says that all of it was sent.
func (a *API) backup(w http.ResponseWriter, r *http.Request) {
	x := exchangeOf(r.Context())
	if x.actor == "" {
		writeProblem(w, unauthorized())
		return
	}
	if a.cfg.Operations == nil {
		writeProblem(w, explain(controlplane.ErrNoLeader))
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), backupIn)
	defer cancel()
	rc := http.NewResponseController(w)
	if err := rc.SetWriteDeadline(a.cfg.Now().Add(backupIn)); err != nil {
		writeProblem(w, explain(fmt.Errorf("backup: %w", err)))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", api.TrailerWhole)
	if err := a.cfg.Operations.Backup(ctx, w); err != nil {
		a.cfg.Logger.Error("a backup was not finished", "actor", x.actor, "err", err)
		return
	}
	w.Header().Set(api.TrailerWhole, "true")
	a.audit.fact(x.actor, "backup_taken", "", slog.String("region", a.cfg.Region), slog.String("node", a.cfg.Node))
}
