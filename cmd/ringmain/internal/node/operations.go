package node

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/backup"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/seal"
)

// operations lets operators at this node's part in its region's Raft.
type operations struct {
	quorum *quorum.Quorum
	source backup.Source
	sealer *seal.Sealer // of backups
}

var _ admin.Operations = (*operations)(nil)

func (o *operations) Members() api.MemberList {
	list := api.MemberList{Region: o.source.Region, Answered: o.source.Node, Problem: o.quorum.Stats().Problem, Items: []api.Member{}}
	if at, lost := o.quorum.MayHaveLost(); lost {
		list.MayHaveLost = utc(at)
	}
	for _, m := range o.quorum.Members() {
		list.Items = append(list.Items, api.Member{
			Node: m.Node, Address: m.Addr, Role: string(m.Role), Leader: m.Leader,
			Heard: utc(m.Heard), Behind: m.Behind, Steady: utc(m.Steady),
		})
	}
	return list
}

func utc(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func (o *operations) Add(ctx context.Context, node, address string, reader bool) error {
	return o.quorum.Add(ctx, quorum.Peer{Node: node, Addr: address}, reader)
}

func (o *operations) Move(ctx context.Context, node, address string) error {
	return o.quorum.Move(ctx, quorum.Peer{Node: node, Addr: address})
}

func (o *operations) Remove(ctx context.Context, node string, force bool) error {
	return o.quorum.Remove(ctx, node, force)
}

// Transfer also waits until this node knows who leads instead, so that what it
// answers next says so.
func (o *operations) Transfer(ctx context.Context, to string) error {
	if err := o.quorum.Transfer(ctx, to); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, knownIn)
	defer cancel()
	tick := time.NewTicker(knownIn / 100)
	defer tick.Stop()
	for {
		if _, _, ok := o.quorum.Leader(); ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil // leadership is gone from here, which is what was asked
		}
	}
}

// knownIn is how long an answer waits for word of the new leader.
const knownIn = time.Second

// Backup writes this node's copy as it is now. On the leader it holds every
// write acknowledged before.
func (o *operations) Backup(ctx context.Context, w io.Writer) error {
	if err := o.quorum.Read(ctx); err != nil && o.quorum.IsLeader() {
		return err
	}
	state, applied, term := o.quorum.Freeze()
	from := o.source
	from.Taken, from.Contact = time.Now(), o.quorum.Contact()
	from.Applied, from.Term, from.Since = applied, term, o.quorum.Since()
	_, err := backup.Create(w, o.sealer, from, state)
	return err
}

// operations are this node's, for the admin API.
func (c *control) operations() (*operations, error) {
	file := cmp.Or(c.cfg.BackupKeyFile, c.cfg.SealKeyFile)
	holder, err := seal.OpenFileHolder(file)
	if err != nil {
		return nil, fmt.Errorf("backup_key_file: put the key of backups at %s, or name none: %w", file, err)
	}
	return &operations{quorum: c.quorum, sealer: seal.New(holder), source: backup.Source{
		Cluster: c.cfg.Cluster, Region: c.cfg.Region, Node: c.cfg.Node, Program: c.env.Version,
	}}, nil
}
