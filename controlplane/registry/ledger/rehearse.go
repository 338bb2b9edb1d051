package ledger

import (
	"errors"
	"fmt"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// ErrPoison means that applying a command would have killed every node of the
// region: what it carries must not get into the log.
var ErrPoison = errors.New("applying this would kill every control node of the region: it is refused; leave it out, or upgrade the nodes")

// Rehearse applies cmd to a copy of s, which stays as it is. The error is a
// *StructureError, which unwraps to ErrPoison and names the entry, if that
// panics. What Apply refuses is not an error here: Apply says it again.
func (s *State) Rehearse(cmd *registry.Command) error {
	err := s.Clone().rehearse(cmd)
	if err == nil || len(cmd.Entries) < 2 {
		return err
	}
	// One by one, to say which it is.
	step := s.Clone()
	for i, b := range cmd.Entries {
		one := *cmd
		one.Entries, one.Levels = [][]byte{b}, nil
		if len(cmd.Levels) > 0 {
			one.Levels = cmd.Levels[i : i+1]
		}
		if err := step.rehearse(&one); err != nil {
			return err
		}
	}
	return err
}

// rehearse applies cmd to s.
func (s *State) rehearse(cmd *registry.Command) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = s.poison(cmd, r)
		}
	}()
	s.Apply(cmd)
	return nil
}

// poison names what cmd would do. It looks at no more than it must: what it
// reads made a panic.
func (s *State) poison(cmd *registry.Command, cause any) *StructureError {
	shard, what := controlplane.Shard(""), fmt.Sprintf("command of type %d", cmd.Type)
	switch {
	case cmd.Stage != nil:
		shard, what = cmd.Stage.Shard, fmt.Sprintf("chunk %d of snapshot %s", cmd.Stage.Chunk, cmd.Stage.Snapshot)
	case cmd.Adopt != nil:
		shard, what = cmd.Adopt.Shard, "snapshot "+cmd.Adopt.Snapshot
	case len(cmd.Entries) > 0:
		if e, err := decodeQuietly(cmd.Entries[0]); err == nil {
			shard, what = e.Shard, fmt.Sprintf("entry %s.%d", e.Epoch, e.Seq)
		}
	}
	return s.orNew(shard).misfit(ErrPoison, "%s: %v (%v)", what, ErrPoison, cause)
}

func decodeQuietly(b []byte) (e *registry.Entry, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = ErrPoison
		}
	}()
	return registry.DecodeEntry(b)
}
