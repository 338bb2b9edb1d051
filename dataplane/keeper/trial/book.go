package trial

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
)

// Book is the ledger of a running node. It is safe for concurrent use.
type Book struct {
	file   File
	log    *slog.Logger
	tell   func(Report) // called with each change, one at a time; must not block
	shard  controlplane.Shard
	lives  time.Duration
	looks  []look
	report Report

	mu     sync.Mutex // also held while the ledger goes to the disk
	ledger *Ledger
	heard  time.Time          // when last another node was; or the first look
	said   map[Span]time.Time // when last another node said so of what is left out for that
	known  atomic.Pointer[[]Peer]
	screen atomic.Bool // something may be left out: else frames wait for no lock, that is, no disk
}

// look is how far the worker was at a moment.
type look struct {
	at       time.Time
	position controlplane.Position
}

// Proof is how long a worker has to live with a state before others may try it.
const Proof = 300 * time.Millisecond

// Open reads the book of a node. Shard is the one that is rolled out node by
// node. A worker that lived for so long with a state dies of something else
// than that. A ledger that cannot be read is begun anew, and the log says so.
func Open(file File, shard controlplane.Shard, lives time.Duration, log *slog.Logger, tell func(Report)) *Book {
	l, err := file.Load()
	if err != nil {
		log.Error("what this node had found out about changes that crash it cannot be read; it begins anew", "error", err)
	}
	b := &Book{file: file, log: log, tell: tell, shard: shard, lives: lives, ledger: l}
	if l.Begin() {
		log.Warn("a shard of which this node could take nothing is tried again", "isolated", len(l.Isolated))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.screen.Store(len(l.Isolated) > 0)
	peers := l.Peers
	b.known.Store(&peers)
	b.say(l.Proven[shard])
	return b
}

// save keeps the ledger. A disk that takes nothing costs this node a few deaths
// more after its next start. b.mu is held.
func (b *Book) save() {
	if err := b.file.Save(b.ledger); err != nil {
		b.log.Error("what this node found out about changes that crash it is not on disk", "error", err)
	}
}

// say tells how this node is doing, if that changed. b.mu is held.
func (b *Book) say(proven controlplane.Point) {
	r := Report{Proven: proven}
	for _, s := range b.ledger.Suspects {
		r.Suspects = append(r.Suspects, s.Span)
	}
	for _, i := range b.ledger.Isolated {
		if i.Own {
			r.Isolated = append(r.Isolated, i.Span)
		}
	}
	if r.Proven == b.report.Proven && slices.Equal(r.Suspects, b.report.Suspects) && slices.Equal(r.Isolated, b.report.Isolated) {
		return
	}
	b.report = r
	b.tell(r)
}

// Report is what this node says of itself.
func (b *Book) Report() Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.report
}

// Counts are the suspects, and what is left out.
func (b *Book) Counts() (suspects, isolated int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ledger.Suspects), len(b.ledger.Isolated)
}

// Hollow is Ledger.Hollow.
func (b *Book) Hollow() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.Hollow()
}

// Started notes that a worker of build begins, which gets all that another
// build or another node's word had left out.
func (b *Book) Started(build string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.looks = nil
	if b.ledger.Release(build) {
		b.log.Warn("the worker is of another build than the one that crashed: it gets what was left out", "build", build)
		b.save()
		b.say(b.report.Proven)
	}
}

// Seen notes at a moment how far the state is that the worker has applied, and
// which it lives with.
func (b *Book) Seen(now time.Time, position controlplane.Position) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.looks); n == 0 || b.looks[n-1].position[b.shard] != position[b.shard] || now.Sub(b.looks[n-1].at) >= time.Second {
		b.looks = append(b.looks, look{now, position})
	}
	old := -1
	proven := b.report.Proven
	for i, l := range b.looks {
		if now.Sub(l.at) >= Proof {
			proven = l.position[b.shard]
		}
		if now.Sub(l.at) >= b.lives {
			old = i
		}
	}
	if old >= 0 {
		if b.ledger.prove(b.looks[old].position, b.shard) {
			b.save()
		}
		b.looks = slices.Delete(b.looks, 0, old)
	}
	b.say(proven)
}

// Load is Ledger.Load, on disk before it returns.
func (b *Book) Load(generation uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	may := b.ledger.Load(generation)
	b.save()
	if !may {
		b.log.Error("keepers died while they read a generation of the last known good state: the one before it is used", "generation", generation)
	}
	return may
}

// Loaded is Ledger.Loaded.
func (b *Book) Loaded(oldest uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ledger.Loaded(oldest)
	b.save()
}

// Skipped is how many generations on disk are not read.
func (b *Book) Skipped() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ledger.Skipped)
}

// Since is what the worker was given of the shard that is rolled out, beyond
// what one lived with; false if none has lived yet, since then nothing is there
// to go back to.
func (b *Book) Since(given controlplane.Position) (Span, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger.Proven[b.shard] == (controlplane.Point{}) {
		return Span{}, false
	}
	return Since(b.shard, b.ledger.Proven, given)
}

// SpanOf is SpanOf for a process that died at frame f.
func (b *Book) SpanOf(f *feed.Frame, given controlplane.Position) (Span, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return SpanOf(f, b.ledger.Proven, given)
}

// Died notes that a process of build died on s, on disk before it returns. The
// last time it leaves s out, with what past finds of the records before it.
func (b *Book) Died(s Span, build string, now time.Time, past func(Span) map[string][]byte) {
	b.mu.Lock()
	found := b.ledger.Died(s)
	b.looks = nil
	if found.Deaths < MaxDeaths {
		b.save()
		b.log.Error("a process died on a change of the state, which is tried once more",
			"change", found.Span, "from", found.From, "deaths", found.Deaths)
		b.say(b.report.Proven)
		b.mu.Unlock()
		return
	}
	b.mu.Unlock()
	b.Isolate(Isolated{Span: found.Span, Own: true, Build: build, At: now.UnixMilli(), Before: past(found.Span)})
}

// Isolate leaves i out.
func (b *Book) Isolate(i Isolated) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ledger.Isolate(i) {
		return
	}
	b.screen.Store(true)
	b.save()
	why := "processes of this node died on it"
	if !i.Own {
		why = "another node says that its processes died on it"
	}
	b.log.Error("a change of the state is left out: what was before it stays, all else goes on; write its records anew to have them tried again, with `ringmain rollout` to see where",
		"change", i.Span, "from", i.From, "records_before", len(i.Before), "why", why)
	b.say(b.report.Proven)
}

// LeavesOut reports whether what others say of s needs no heed: all of it is
// left out, or as much as may be.
func (b *Book) LeavesOut(s Span) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.leavesOut(s) || b.ledger.heardEnough()
}

// Screen is Ledger.Screen.
func (b *Book) Screen(f *feed.Frame) (*feed.Frame, error) {
	if !b.screen.Load() {
		return f, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ledger.screens(f.Shard) {
		return f, nil
	}
	return b.ledger.Screen(f)
}

// ScreenAll screens encoded frames, and returns the very slice if nothing is
// left out anywhere.
func (b *Book) ScreenAll(frames [][]byte) ([][]byte, error) {
	if !b.screen.Load() {
		return frames, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ledger.Isolated) == 0 {
		return frames, nil
	}
	out := make([][]byte, 0, len(frames))
	for _, raw := range frames {
		f, err := feed.DecodeFrame(raw)
		if err != nil {
			return nil, err
		}
		screened, err := b.ledger.Screen(f)
		switch {
		case err != nil:
			return nil, err
		case screened == nil:
			continue
		case screened != f:
			if raw, err = feed.EncodeFrame(screened); err != nil {
				return nil, err
			}
		}
		out = append(out, raw)
	}
	return out, nil
}
