package ledger

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

const benchOrgs = 100

// seeded returns a state with n live keys, spread over 1,000 projects.
func seeded(tb testing.TB, n int) *State {
	l := NewLoader()
	epoch := controlplane.Epoch{Counter: 1, Region: "us-east"}
	err := l.Shard(registry.ShardInfo{Shard: anyEast, Members: []string{"us-east"}, Home: "us-east", Epoch: epoch,
		Last: controlplane.Point{Epoch: epoch, Seq: 1}, Spans: []registry.Span{{Epoch: epoch, Start: 1}}})
	add := func(r *registry.Record) {
		b, encErr := registry.EncodeRecord(r)
		if encErr == nil {
			r, encErr = registry.DecodeRecord(b) // as it comes from a disk, sharing nothing
		}
		if encErr == nil {
			encErr = l.Record(r)
		}
		if encErr != nil {
			tb.Fatal(encErr)
		}
	}
	for i := range benchOrgs {
		add(org(benchID("org", i), anyEast, "any", "build", "verified"))
	}
	for i := range 10 * benchOrgs {
		add(project(benchID("prj", i), anyEast, benchID("org", i%benchOrgs), "web"+fmt.Sprint(i)))
	}
	for i := range n {
		add(benchKey(i))
	}
	s, stateErr := l.State()
	if err != nil || stateErr != nil {
		tb.Fatal(err, stateErr)
	}
	return s
}

func benchID(prefix string, i int) string { return fmt.Sprintf("%s_any_%016d", prefix, i) }

func benchKey(i int) *registry.Record {
	at := time.Unix(1_800_000_000+int64(i/10), 0)
	random := rand.NewChaCha8([32]byte{byte(i), byte(i >> 8), byte(i >> 16)})
	return key(registry.NewID("key", "any", at, random), anyEast, benchID("prj", i%(10*benchOrgs)), "live")
}

// BenchmarkApplyKeyPut is one committed key creation, from the command's bytes.
func BenchmarkApplyKeyPut(b *testing.B) {
	for _, n := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("beside %d", n), func(b *testing.B) {
			s := seeded(b, n)
			info, _ := s.Shard(anyEast)
			at := info.Last
			commands := make([][]byte, b.N)
			for i := range commands {
				e := registry.NextAfter(anyEast, at, []registry.Change{{Op: registry.OpPut, Record: benchKey(n + i), IfRevision: registry.RevisionAbsent}})
				at = e.Point()
				c, err := registry.EncodeCommand(&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(b, e)}})
				if err != nil {
					b.Fatal(err)
				}
				commands[i] = c
			}
			b.ReportAllocs()
			b.ResetTimer()
			for _, c := range commands {
				cmd, err := registry.DecodeCommand(c)
				if err != nil {
					b.Fatal(err)
				}
				if out := s.Apply(cmd); out.Err != nil {
					b.Fatal(out.Err)
				}
			}
		})
	}
}

// BenchmarkRehearse is what the trial of imported entries costs the leader that
// proposes them, beside 100,000 keys.
func BenchmarkRehearse(b *testing.B) {
	s := seeded(b, 100_000)
	info, _ := s.Shard(anyEast)
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("%d at once", n), func(b *testing.B) {
			cmd := &registry.Command{Type: registry.CmdAccept, Sender: info.Epoch}
			for i, at := 0, info.Last; i < n; i++ {
				e := registry.NextAfter(anyEast, at, []registry.Change{{Op: registry.OpPut, Record: benchKey(100_000 + i), IfRevision: registry.RevisionAbsent}})
				at = e.Point()
				cmd.Entries = append(cmd.Entries, entry(b, e))
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Rehearse(cmd); err != nil {
					b.Fatal(err)
				}
			}
			if now, _ := s.Shard(anyEast); now.Last != info.Last {
				b.Fatal("the state changed")
			}
		})
	}
}

// BenchmarkTail is BenchmarkApplyKeyPut beside 100,000 at cluster version 2:
// where one region is the only member; where two are, and every 100th command
// confirms what came before; and what an entry costs for as long as nobody
// confirms it, and when it is cut.
func BenchmarkTail(b *testing.B) {
	const n = 100_000
	run := func(b *testing.B, confirmEvery int, members ...string) *State {
		s := seeded(b, n)
		sh := *s.orNew(anyEast)
		sh.info.Members = members
		s.set(&sh)
		raise(b, s)
		var commands []*registry.Command
		at := s.Copy(anyEast).Last
		for i := range b.N {
			e := registry.NextAfter(anyEast, at, []registry.Change{{Op: registry.OpPut, Record: benchKey(n + i), IfRevision: registry.RevisionAbsent}})
			at = e.Point()
			commands = append(commands, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(b, e)}, Levels: []registry.Level{registry.LevelMultiRegion}})
			if confirmEvery > 0 && i%confirmEvery == 0 {
				commands = append(commands, &registry.Command{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: anyEast, Epoch: at.Epoch, Seq: at.Seq}})
			}
		}
		encoded := make([][]byte, len(commands))
		for i, c := range commands {
			var err error
			if encoded[i], err = registry.EncodeCommand(c); err != nil {
				b.Fatal(err)
			}
		}
		before := heap()
		b.ReportAllocs()
		b.ResetTimer()
		for _, c := range encoded {
			cmd, err := registry.DecodeCommand(c)
			if err != nil {
				b.Fatal(err)
			}
			if out := s.Apply(cmd); out.Err != nil {
				b.Fatal(out.Err)
			}
		}
		b.StopTimer()
		b.ReportMetric(float64(heap()-before)/float64(b.N), "B-held/op")
		runtime.KeepAlive(encoded)
		return s
	}
	b.Run("alone", func(b *testing.B) { run(b, 0, "us-east") })
	b.Run("confirmed", func(b *testing.B) { run(b, 100, "eu-fra", "us-east") })
	b.Run("unconfirmed", func(b *testing.B) { run(b, 0, "eu-fra", "us-east") })
	b.Run("cut", func(b *testing.B) {
		s := run(b, 0, "eu-fra", "us-east")
		opened := &registry.Entry{Shard: anyEast, Epoch: controlplane.Epoch{Counter: 2, Region: "eu-fra"}, Seq: 2, Prev: s.Copy(anyEast).Last.Epoch,
			Changes: []registry.Change{open("eu-fra", "eu-fra", "us-east")}}
		cmd := &registry.Command{Type: registry.CmdAccept, Sender: opened.Epoch, Entries: [][]byte{entry(b, opened)}}
		b.ResetTimer()
		b.StartTimer()
		if out := s.Apply(cmd); out.Err != nil {
			b.Fatal(out.Err)
		}
	})
}

func BenchmarkGet(b *testing.B) {
	s := seeded(b, 100_000)
	ids := make([]string, 1<<10)
	for i := range ids {
		ids[i] = benchKey(i * 97).Meta.ID
	}
	b.ResetTimer()
	for i := range b.N {
		if _, ok := s.Get(registry.KindKey, ids[i%len(ids)]); !ok {
			b.Fatal("not found")
		}
	}
}

// BenchmarkSnapshot reports per state of 100,000 keys: writing, restoring,
// digesting, and the memory held per key.
func BenchmarkSnapshot(b *testing.B) {
	const n = 100_000
	before := heap()
	s := seeded(b, n)
	perKey := float64(heap()-before) / n
	var buf bytes.Buffer
	if err := s.Snapshot(&buf); err != nil {
		b.Fatal(err)
	}
	b.Run("write", func(b *testing.B) {
		for range b.N {
			if err := s.Snapshot(io.Discard); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(perKey, "B/key")
		b.ReportMetric(float64(buf.Len())/n, "disk-B/key")
	})
	b.Run("restore", func(b *testing.B) {
		for range b.N {
			if _, err := Restore(bytes.NewReader(buf.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("digest", func(b *testing.B) {
		for range b.N {
			s.Digest(anyEast)
		}
	})
	b.Run("clone", func(b *testing.B) {
		for range b.N {
			s.Clone()
		}
	})
	runtime.KeepAlive(s)
}

// BenchmarkStage stages a snapshot of 100,000 keys as another region does, on a
// node, and on its leader, which rehearses each chunk first.
func BenchmarkStage(b *testing.B) {
	const n, perChunk = 100_000, 400 // some 128 KiB
	s := seeded(b, n)
	snap, _ := s.ShardSnapshot(anyEast)
	var chunks []*registry.Command
	var records [][]byte
	cut := func() {
		chunks = append(chunks, &registry.Command{Type: registry.CmdStage, Stage: &registry.Stage{Shard: anyEast, Snapshot: "s", Chunk: uint64(len(chunks)), Records: records}})
		records = nil
	}
	for r := range snap.Records {
		encoded, err := registry.EncodeRecord(r)
		if err != nil {
			b.Fatal(err)
		}
		if records = append(records, encoded); len(records) == perChunk {
			cut()
		}
	}
	cut()
	for _, leads := range []bool{false, true} {
		b.Run(map[bool]string{false: "apply", true: "rehearse and apply"}[leads], func(b *testing.B) {
			for range b.N {
				to := New()
				for _, c := range chunks {
					if leads {
						if err := to.Rehearse(c); err != nil {
							b.Fatal(err)
						}
					}
					if out := to.Apply(c); out.Err != nil {
						b.Fatal(out.Err)
					}
				}
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N*n)*1e6, "us/record")
		})
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
