package importer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// session turns the frames of one connection into commands. A refusal or
// failure ends it; the next one starts from the state's own position.
type session struct {
	cfg    *Config
	watch  *importWatch
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelCauseFunc
	frames chan *feed.Frame
	done   chan struct{}

	receiving controlplane.Shard // the sink's: shard whose snapshot is arriving, or ""

	// The consumer's.
	pending  []batch // per shard and sender, in order of arrival
	count    int
	bytes    int
	snapshot *staged
	deposed  map[controlplane.Shard]controlplane.Epoch // senders that this region has promised not to follow any more
	spans    map[controlplane.Shard][]registry.Span    // of the snapshot to come
}

type batch struct {
	shard   controlplane.Shard
	sender  controlplane.Epoch
	entries [][]byte
}

// staged is a snapshot on its way into Raft.
type staged struct {
	name   string // of this attempt, unique
	reset  *feed.Frame
	chunk  uint64
	stage  *registry.Stage
	bytes  int
	staged bool // something was staged: chunk 0 must be, even of an empty shard
}

// staging reports whether a revocation frame is part of a snapshot. The server
// sends hints only between snapshots.
func (s *session) staging(f *feed.Frame) bool { return s.receiving != "" && f.Shard == s.receiving }

// note checks the order of the frames of a snapshot.
func (s *session) note(f *feed.Frame) error {
	switch f.Type {
	case feed.FrameReset:
		if s.receiving != "" {
			return fmt.Errorf("feed: reset of %s within the snapshot of %s", f.Shard, s.receiving)
		}
		s.receiving = f.Shard
	case feed.FrameRecord, feed.FrameEnd:
		if f.Shard != s.receiving {
			return fmt.Errorf("feed: frame %d of %s outside its snapshot", f.Type, f.Shard)
		}
		if f.Type == feed.FrameEnd {
			s.receiving = ""
		}
	case feed.FrameEntry:
		if f.Shard == s.receiving {
			return fmt.Errorf("feed: entry within the snapshot of %s", f.Shard)
		}
	}
	return nil
}

func (s *session) run() {
	defer close(s.done)
	if err := s.consume(); err != nil {
		s.cancel(err)
	}
}

// consume proposes entries in batches: what arrives while a command is being
// committed forms the next one, and a first entry waits BatchDelay for others.
func (s *session) consume() error {
	timer := time.NewTimer(s.cfg.BatchDelay)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case f := <-s.frames:
			idle := s.count == 0
			if err := s.accept(f); err != nil {
				return err
			}
			switch {
			case s.count >= s.cfg.BatchEntries || s.bytes >= s.cfg.BatchBytes:
				if err := s.flush(); err != nil {
					return err
				}
			case idle && s.count > 0:
				timer.Reset(s.cfg.BatchDelay)
			}
		case <-timer.C:
			if err := s.flush(); err != nil {
				return err
			}
		case <-s.ctx.Done():
			return nil
		}
	}
}

func (s *session) accept(f *feed.Frame) error {
	if former, ok := s.deposed[f.Shard]; ok && f.Sender.Compare(former) <= 0 {
		return nil // it hears of it from this region's homes
	}
	if st := s.watch.stuck[f.Shard]; !st.until.IsZero() {
		if time.Now().Before(st.until) {
			return nil
		}
		s.watch.note(f.Shard, stuck{at: st.at, whole: true})
		return fmt.Errorf("feed: shard %s is tried again", f.Shard)
	}
	switch f.Type {
	case feed.FrameEntry:
		s.add(f)
		return nil
	case feed.FrameReset:
		if err := s.flush(); err != nil {
			return err
		}
		s.snapshot = &staged{name: rand.Text(), reset: f}
		s.snapshot.next()
		s.log.Info("feed: a shard is taken over as a whole", "shard", f.Shard)
		return nil
	case feed.FrameRecord, feed.FrameRevocation, feed.FrameEnd:
		return s.restage(f)
	case feed.FrameStanding:
		if len(f.Spans) > 0 {
			s.spans[f.Shard] = f.Spans
			return nil
		}
		return s.confirm(f)
	}
	return fmt.Errorf("%w: feed frame of type %d", controlplane.ErrUnknownEntry, f.Type)
}

func (s *session) add(f *feed.Frame) {
	s.count++
	s.bytes += len(f.Entry)
	for i := range s.pending {
		if b := &s.pending[i]; b.shard == f.Shard && b.sender == f.Sender {
			b.entries = append(b.entries, f.Entry)
			return
		}
	}
	s.pending = append(s.pending, batch{f.Shard, f.Sender, [][]byte{f.Entry}})
}

// flush proposes the entries at hand, a command per shard: the order among
// shards means nothing, and one shard's gap must not hold up another.
func (s *session) flush() error {
	for _, b := range s.pending {
		if err := s.propose(b.shard, &registry.Command{Type: registry.CmdAccept, Sender: b.sender, Entries: b.entries}); err != nil {
			return err
		}
	}
	s.pending, s.count, s.bytes = nil, 0, 0
	return nil
}

// diverged reports a sender that would have a confirmed entry cut: a former home
// whose successor this copy has not heard of, but for what is confirmed.
func diverged(err error) bool {
	var refused *ownership.Refused
	return errors.As(err, &refused) && refused.Reason == ownership.Diverged
}

// restage takes a frame of the snapshot that is arriving.
func (s *session) restage(f *feed.Frame) error {
	sn := s.snapshot
	if sn == nil {
		return nil // given up in the middle
	}
	switch f.Type {
	case feed.FrameRecord:
		sn.stage.Records = append(sn.stage.Records, f.Record)
		sn.bytes += len(f.Record)
	case feed.FrameRevocation:
		sn.stage.Revocations = append(sn.stage.Revocations, *f.Revocation)
		sn.bytes += len(f.Revocation.ID) + 32
	case feed.FrameEnd:
		if len(sn.stage.Records)+len(sn.stage.Revocations) > 0 || !sn.staged {
			if err := s.stage(); err != nil {
				return err
			}
		}
		s.snapshot = nil
		adopt := &registry.Adopt{Shard: f.Shard, Snapshot: sn.name, Members: sn.reset.Members, Home: sn.reset.Home, Point: f.Point, Digest: f.Digest}
		if s.owned() { // not before every node of this region reads it
			adopt.Spans, adopt.Repair, adopt.Now = s.spans[f.Shard], s.watch.repairs(f.Shard), time.Now().UnixMilli()
		}
		return s.propose(f.Shard, &registry.Command{Type: registry.CmdAdopt, Sender: f.Sender, Adopt: adopt})
	}
	if sn.bytes >= s.cfg.BatchBytes {
		return s.stage()
	}
	return nil
}

func (s *session) stage() error {
	sn := s.snapshot
	if err := s.propose(sn.reset.Shard, &registry.Command{Type: registry.CmdStage, Sender: sn.reset.Sender, Stage: sn.stage}); err != nil {
		return err
	}
	sn.staged = true
	sn.next()
	return nil
}

func (sn *staged) next() {
	sn.stage = &registry.Stage{Shard: sn.reset.Shard, Snapshot: sn.name, Chunk: sn.chunk}
	sn.chunk++
	sn.bytes = 0
}

// owned reports that this region's log carries the ownership protocol.
func (s *session) owned() (yes bool) {
	s.cfg.State.View(func(st *ledger.State) { yes = st.Version() >= registry.VersionOwnership })
	return yes
}

// confirm takes the home's word on what is confirmed, as far as this copy holds it.
func (s *session) confirm(f *feed.Frame) error {
	at, news := f.Point, false
	s.cfg.State.View(func(st *ledger.State) {
		info, _ := st.Shard(f.Shard)
		if at.Epoch == info.Last.Epoch {
			at.Seq = min(at.Seq, info.Last.Seq)
		}
		_, news = info.Copy().Confirm(at)
		news = news && st.Version() >= registry.VersionOwnership
	})
	if !news {
		return nil
	}
	return s.propose(f.Shard, &registry.Command{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: f.Shard, Epoch: at.Epoch, Seq: at.Seq}})
}

// propose commits a command about shard. A sender that was deposed loses the
// one shard; anything else that does not fit ends the session, and the next one
// asks for what does.
func (s *session) propose(shard controlplane.Shard, cmd *registry.Command) error {
	out, err := s.cfg.Propose(s.ctx, cmd)
	if err == nil {
		err = out.Err
	}
	var rule *controlplane.RuleError
	if err == nil || errors.As(err, &rule) { // refused by a rule, an entry advances its shard all the same
		if cmd.Type == registry.CmdAccept || cmd.Type == registry.CmdAdopt {
			s.watch.settled(shard, cmd)
		}
		return nil
	}
	var misfit *ledger.StructureError
	switch {
	case !errors.As(err, &misfit) || errors.Is(err, controlplane.ErrUnknownEntry):
	case errors.Is(err, controlplane.ErrNotHome), diverged(err):
		s.log.Info("feed: a former home still sends a shard: not taken", "shard", shard, "sender", cmd.Sender, "promised", misfit.Promised)
		s.deposed[shard], s.snapshot = cmd.Sender, nil
		return nil
	case s.watch.unfit(shard, misfit):
		s.log.Error("feed: a shard cannot be imported, neither by entries nor as a whole; it is left alone for a while, the others go on",
			"shard", shard, "for", isolation, "err", misfit)
		s.snapshot = nil
		return nil
	}
	return fmt.Errorf("what the feed brought did not get into this region: %w", err)
}
