package view

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"testing"

	"ringmain/controlplane/registry"
)

// TestKeyTable drives one crowded table and a map with the same changes, and
// looks back at versions that were published in between.
func TestKeyTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	seed := maphash.MakeSeed()
	var table *keyTable
	want := map[string]uint64{}
	type version struct {
		table *keyTable
		want  map[string]uint64
	}
	var versions []version
	check := func(v version) {
		t.Helper()
		count := 0
		v.table.each(func(packed) { count++ })
		if count != len(v.want) || v.table.count != count {
			t.Fatalf("%d entries, counted %d, want %d", count, v.table.count, len(v.want))
		}
		for id, revision := range v.want {
			p := v.table.find(maphash.String(seed, id), id)
			if p == nil {
				t.Fatalf("%s is lost", id)
			}
			var k KeyRef
			project, shard := p.unpack(&k)
			if k.Revision != revision || string(project) != "p"+id || shard != 3 || !bytes.Equal(k.Hash, []byte(id)) {
				t.Fatalf("%s is %+v of %s", id, k, project)
			}
		}
		if v.table.find(maphash.String(seed, "absent"), "absent") != nil {
			t.Fatal("found what was never there")
		}
	}
	for edit := range uint64(3000) {
		for range rng.IntN(8) {
			id := fmt.Sprint("key", rng.IntN(1500))
			if rng.IntN(3) == 0 {
				table = table.remove(edit, seed, id)
				delete(want, id)
				continue
			}
			revision := rng.Uint64()
			p, err := packKey(nil, 3, registry.Meta{ID: id, Revision: revision}, &registry.Key{Project: "p" + id, Class: "live", Hash: []byte(id)})
			if err == nil {
				table, err = table.put(edit, seed, p)
			}
			if err != nil {
				t.Fatal(err)
			}
			want[id] = revision
		}
		if rng.IntN(100) == 0 && table != nil {
			versions = append(versions, version{table, maps.Clone(want)})
			check(versions[len(versions)-1])
		}
	}
	for _, v := range versions {
		check(v)
	}
	if len(table.arena) > 4*table.count*60 {
		t.Errorf("an arena of %d bytes for %d keys: waste is never collected", len(table.arena), table.count)
	}
}
