package node

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/backup"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/seal"
)

// What operators do reaches the real thing: three nodes, real files, loopback.
func TestOperations(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := seal.CreateKeyFile(key); err != nil {
		t.Fatal(err)
	}
	holder, err := seal.OpenFileHolder(key)
	if err != nil {
		t.Fatal(err)
	}
	sealer := seal.New(holder)
	var listeners []net.Listener
	var peers []quorum.Peer
	for i := range 3 {
		var lc net.ListenConfig
		l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		peers = append(peers, quorum.Peer{Node: "c" + strconv.Itoa(i+1), Addr: l.Addr().String()})
	}
	var nodes []*operations
	for i, p := range peers {
		q, err := quorum.Open(context.Background(), quorum.Config{
			Cluster: "test", Region: "us-east", Node: p.Node, Dir: filepath.Join(t.TempDir(), p.Node), Peers: peers, Sealer: sealer,
			Homes:    []quorum.ShardSpec{{Shard: "us", Members: []string{"us-east"}}},
			Listener: listeners[i],
			Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "tcp", addr)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := q.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}()
		nodes = append(nodes, &operations{quorum: q, sealer: sealer, source: backup.Source{Cluster: "test", Region: "us-east", Node: p.Node}})
	}
	leader := func() (lead, other *operations) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			for i, o := range nodes {
				if o.quorum.IsLeader() {
					return o, nodes[(i+1)%3]
				}
			}
		}
		t.Fatal("nobody leads")
		return nil, nil
	}
	lead, other := leader()
	if l := lead.Members(); len(l.Items) != 3 || l.Region != "us-east" || l.MayHaveLost != nil {
		t.Errorf("members %+v", l)
	}
	if err := lead.Transfer(t.Context(), other.source.Node); err != nil {
		t.Fatal(err)
	}
	if now, _ := leader(); now != other {
		t.Errorf("%s leads", now.source.Node)
	}
	if err := lead.Add(t.Context(), "c9", "127.0.0.1:1", false); !errors.Is(err, controlplane.ErrNotLeader) && !errors.Is(err, controlplane.ErrNoLeader) {
		t.Errorf("added at a follower: %v", err)
	}
	if err := other.Add(t.Context(), "c9", "127.0.0.1:1", true); err != nil {
		t.Error(err)
	}
	if l := other.Members(); len(l.Items) != 4 || l.Items[3].Role != "reader" {
		t.Errorf("members %+v", l)
	}
	if err := other.Remove(t.Context(), "c9", false); err != nil {
		t.Error(err)
	}
	for _, o := range nodes {
		var file bytes.Buffer
		if err := o.Backup(t.Context(), &file); err != nil {
			t.Fatal(err)
		}
		info, err := backup.Inspect(&file, sealer)
		if err != nil || info.Node != o.source.Node || len(info.Shards) != 1 || info.Applied == 0 || time.Since(info.Contact) > 5*time.Second {
			t.Errorf("%+v, %v", info, err)
		}
	}
}
