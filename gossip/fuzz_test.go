package gossip

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"ringmain/gossip/bulletin"
)

// FuzzMerge: whatever a peer broadcasts or exchanges, the node lives on, and
// what it then tells others can be read.
func FuzzMerge(f *testing.F) {
	own := bulletin.Digest{Region: "us-east", Node: "us-east-d1", Role: "data", Incarnation: 5}
	other := bulletin.Digest{Region: "eu-fra", Node: "eu-fra-c1", Role: "control", Incarnation: 7, Seq: 2, Ready: true,
		Pools: []string{"standard"}, Position: "1/eu-fra.5", Breakers: map[string]string{"openai-eu": "open"}}
	dead := bulletin.Obituary{Region: "eu-fra", Node: "eu-fra-c1", Incarnation: 7, Seq: 2, By: "eu-fra-c2"}
	claim := bulletin.Claim{Region: "eu-fra", Node: "eu-fra-c1", Subject: "us-east", Up: true, Incarnation: 7}
	for kind, body := range map[byte]any{kindDigest: other, kindObituary: dead, kindClaim: claim} {
		b, err := encode(kind, body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte{})
	}
	taken, err := encode(kindDigest, bulletin.Digest{Region: own.Region, Node: own.Node, Incarnation: 1 << 63})
	if err != nil {
		f.Fatal(err)
	}
	whole, err := cbor.Marshal(full{Digests: []bulletin.Digest{own, other}, Obituaries: []bulletin.Obituary{dead}, Claims: []bulletin.Claim{claim}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(taken, whole)
	f.Add([]byte{99}, []byte{0xa0})
	f.Fuzz(func(t *testing.T, broadcast, exchange []byte) {
		_, cancel := context.WithCancel(t.Context())
		defer cancel()
		g := &Gossip{
			log: slog.New(slog.DiscardHandler), self: own.Key(), own: own, started: time.Now(), cancel: cancel, table: bulletin.New(),
			inbox: make(chan []byte, 4), changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
			claims: map[string]*ownClaim{}, shown: map[string]bool{},
		}
		g.lan, g.wan = newMember(g, lan, Timing{}), newMember(g, wan, Timing{})
		g.metrics = newMetrics(g)
		g.wan.NotifyMsg(broadcast)
		select {
		case msg := <-g.inbox:
			g.merge(g.memberOf(group(msg[0])), msg[1:])
		default:
		}
		g.wan.MergeRemoteState(exchange, false)
		var told full
		if err := cbor.Unmarshal(g.wan.LocalState(false), &told); err != nil {
			t.Errorf("what it tells cannot be read: %v", err)
		}
		for _, d := range told.Digests {
			if _, ok := g.table.Node(d.Key()); !ok {
				t.Errorf("it tells of %s, whom it does not know", d.Key())
			}
		}
	})
}
