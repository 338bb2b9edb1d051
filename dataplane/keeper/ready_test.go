package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/lkg"
	"ringmain/dataplane/keeper/trial"
	"ringmain/dataplane/link"
	"ringmain/dataplane/link/ring"
	"ringmain/dataplane/view"
)

// BenchmarkReadyFromDisk measures how long a worker takes to hold a million
// keys when its keeper starts with them on disk: verification, unsealing,
// socket and view, all in this one process.
func BenchmarkReadyFromDisk(b *testing.B) {
	const keys = 1_000_000
	dir := b.TempDir()
	keyFile := b.TempDir() + "/kek"
	if err := seal.CreateKeyFile(keyFile); err != nil {
		b.Fatal(err)
	}
	h, err := seal.OpenFileHolder(keyFile)
	if err != nil {
		b.Fatal(err)
	}
	cfg := lkg.Config{Dir: dir, Name: "c/n", Sealer: seal.New(h)}
	writeKeys(b, cfg, keys)
	for b.Loop() {
		began := time.Now()
		disk, err := lkg.Open(cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(began).Seconds(), "s/verify")
		k := &Keeper{cfg: Config{Logger: slog.New(slog.DiscardHandler)}, log: slog.New(slog.DiscardHandler), disk: disk}
		k.trials = trial.Open(trial.File{}, controlplane.ShardGlobal, time.Second, k.log, func(trial.Report) {})
		k.flow.init(k)
		fillWorker(b, k, keys)
		b.ReportMetric(time.Since(began).Seconds(), "s/ready")
		if err := disk.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// workerFiles are what a worker inherits, without listeners to accept from.
func workerFiles(t testing.TB) link.Files {
	t.Helper()
	records, err := ring.Create(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(records.Close(), null.Close()) })
	return link.Files{API: null, Peer: null, Ring: records}
}

// strictState notes when a frame does not fit.
type strictState struct {
	*view.Store
	misfits atomic.Int64
}

func (s *strictState) Apply(f *feed.Frame) error {
	err := s.Store.Apply(f)
	if err != nil {
		s.misfits.Add(1)
	}
	return err
}

// TestFillWhileTheFeedMoves: a worker that is being filled misses nothing of
// what arrives meanwhile, and is given nothing out of order.
func TestFillWhileTheFeedMoves(t *testing.T) {
	const keys, entries = 20_000, 2000
	dir, keyFile := t.TempDir(), t.TempDir()+"/kek"
	if err := seal.CreateKeyFile(keyFile); err != nil {
		t.Fatal(err)
	}
	h, err := seal.OpenFileHolder(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	cfg := lkg.Config{Dir: dir, Name: "c/n", Sealer: seal.New(h)}
	writeKeys(t, cfg, keys)
	disk, err := lkg.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	k := &Keeper{cfg: Config{Logger: slog.New(slog.DiscardHandler)}, log: slog.New(slog.DiscardHandler), disk: disk}
	k.trials = trial.Open(trial.File{}, controlplane.ShardGlobal, time.Second, k.log, func(trial.Report) {})
	k.flow.init(k)
	f, err := link.ListenSocket(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	state := &strictState{Store: view.New(view.Config{})}
	a, err := link.Attend(t.Context(), link.AttendConfig{Listener: l, Files: workerFiles(t), State: state, Measure: MeasureConfinement})
	if err != nil {
		t.Fatal(err)
	}
	conn, hello, files, err := link.DialWorker(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if at := k.Given(); at != nil {
		t.Errorf("no worker takes state, and yet it was given %v", at)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for seq := uint64(1_000_001); seq <= 1_000_000+entries; seq++ {
			b, err := registry.EncodeEntry(&registry.Entry{Shard: testShard, Epoch: testEpoch, Seq: seq, Prev: testEpoch})
			if err == nil {
				err = k.sink(t.Context(), &feed.Frame{Type: feed.FrameEntry, Shard: testShard, Sender: testEpoch, Entry: b})
			}
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(20 * time.Microsecond)
		}
	})
	w := &worker{conn: conn, hello: hello}
	if err := k.fill(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if at := k.Given()[testShard]; at != (controlplane.Point{Epoch: testEpoch, Seq: 1_000_000 + entries}) {
		t.Errorf("all was given, and yet %v", at)
	}
	within(t, "the worker has all of it", func() bool { return state.Position()[testShard].Seq == 1_000_000+entries })
	if n := state.misfits.Load(); n != 0 || state.View().Keys() != keys {
		t.Errorf("%d frames did not fit, %d keys", n, state.View().Keys())
	}
	if k.detach(w); k.Given() != nil {
		t.Error("the worker is gone, and yet state was given")
	}
	files.Close()
	_ = conn.Close()
	if err := errors.Join(a.Close(), disk.Close()); err != nil {
		t.Fatal(err)
	}
}

func fillWorker(b *testing.B, k *Keeper, keys int) {
	b.Helper()
	dir := b.TempDir()
	f, err := link.ListenSocket(dir)
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		b.Fatal(err)
	}
	_ = f.Close()
	store := view.New(view.Config{})
	a, err := link.Attend(b.Context(), link.AttendConfig{Listener: l, Files: workerFiles(b), State: store, Measure: MeasureConfinement})
	if err != nil {
		b.Fatal(err)
	}
	conn, hello, files, err := link.DialWorker(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	if err := k.fill(b.Context(), &worker{conn: conn, hello: hello}); err != nil {
		b.Fatal(err)
	}
	<-a.Loaded()
	if n := store.View().Keys(); n != keys {
		b.Fatalf("the worker holds %d keys", n)
	}
	files.Close()
	_ = conn.Close()
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
}

func writeKeys(b testing.TB, cfg lkg.Config, keys int) {
	b.Helper()
	disk, err := lkg.Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	g, err := disk.Begin()
	if err != nil {
		b.Fatal(err)
	}
	add := func(f *feed.Frame) {
		raw, err := feed.EncodeFrame(f)
		if err == nil {
			err = g.Append(f, raw)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	add(&feed.Frame{Type: feed.FrameReset, Shard: testShard})
	rec := &registry.Record{Kind: registry.KindKey, Meta: registry.Meta{Shard: testShard, Revision: 1_000_000, Created: 1_795_300_000_000, Updated: 1_795_300_000_000}, Key: &registry.Key{
		Project: "prj_any_0123456789", Name: "some name of a key", Class: "live", Hash: make([]byte, 60), Hint: "abcd",
	}}
	for i := range keys {
		rec.Meta.ID = fmt.Sprintf("key_any_%016d", i)
		raw, err := registry.EncodeRecord(rec)
		if err != nil {
			b.Fatal(err)
		}
		add(&feed.Frame{Type: feed.FrameRecord, Shard: testShard, Record: raw})
	}
	add(&feed.Frame{Type: feed.FrameEnd, Shard: testShard, Point: controlplane.Point{Epoch: testEpoch, Seq: 1_000_000}})
	if err := g.Commit(); err != nil {
		b.Fatal(err)
	}
	if err := disk.Close(); err != nil {
		b.Fatal(err)
	}
}

// TestCommon: an adopted worker is given what came to the disk while nothing
// was forwarded, a shard that it lacks from the beginning.
func TestCommon(t *testing.T) {
	at := func(seq uint64) controlplane.Point { return controlplane.Point{Epoch: testEpoch, Seq: seq} }
	got := common(controlplane.Position{"a": at(5), "b": at(2), "new": at(1)}, controlplane.Position{"a": at(3), "b": at(4), "gone": at(9)})
	if len(got) != 2 || got["a"] != at(3) || got["b"] != at(2) {
		t.Errorf("%v", got)
	}
}
