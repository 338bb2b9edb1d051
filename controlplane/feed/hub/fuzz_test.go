package hub

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// FuzzRequest: whatever body a peer sends is refused, or means the same when it
// is sent on; nobody of another cluster is read.
func FuzzRequest(f *testing.F) {
	at := controlplane.Position{"any-us-east": {Epoch: controlplane.Epoch{Counter: 2, Region: "eu-fra"}, Seq: 7}}
	batch := feed.Batch{Cluster: "c", Revocations: []registry.Revocation{{Kind: registry.KindKey, ID: "key_any_0000000000000000", Shard: "any-us-east", At: 1}}}
	for _, v := range []any{feed.WatchRequest{Cluster: "c", From: at, Homed: true}, batch, feed.Batch{Cluster: "another"}, at, map[int]any{1: "c", 99: true}} {
		b, err := feed.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, 0))
	}
	h := &Hub{cfg: Config{Cluster: "c"}}
	read := func(t *testing.T, b []byte, cluster *string, v any) error {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Body = io.NopCloser(bytes.NewReader(b))
		err := h.decode(r, cluster, v)
		if err == nil && *cluster != "c" {
			t.Errorf("%x of cluster %q was read", b, *cluster)
		}
		return err
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var w, w2 feed.WatchRequest
		var batch, batch2 feed.Batch
		for _, c := range []struct {
			into, again     any
			cluster, second *string
		}{{&w, &w2, &w.Cluster, &w2.Cluster}, {&batch, &batch2, &batch.Cluster, &batch2.Cluster}} {
			if read(t, b, c.cluster, c.into) != nil {
				continue
			}
			first, err := feed.Marshal(c.into)
			if err != nil {
				t.Fatal(err)
			}
			if err := read(t, first, c.second, c.again); err != nil {
				t.Fatalf("%x was accepted, its re-encoding %x is not: %v", b, first, err)
			}
			if second, _ := feed.Marshal(c.again); !bytes.Equal(first, second) {
				t.Fatalf("%x and %x", first, second)
			}
		}
	})
}
