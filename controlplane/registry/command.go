package registry

import (
	"fmt"

	"ringmain/controlplane"
)

// CommandVersion is the first byte of every encoded Command.
const CommandVersion = 1

// CommandType says what a Command asks of Apply.
type CommandType uint8

// Commands of version 1.
const (
	CmdEntry  CommandType = iota + 1 // entries that this region proposes as their shards' home
	CmdAccept                        // entries of another home, whose epoch is Sender
	CmdStage                         // one chunk of another home's shard snapshot
	CmdAdopt                         // the staged snapshot replaces the shard
)

// Command is what a region's Raft log carries.
type Command struct {
	Type    CommandType        `cbor:"1,keyasint"`
	Sender  controlplane.Epoch `cbor:"2,keyasint"`           // CmdAccept, CmdAdopt: epoch of the home that sent it; ignored otherwise
	Entries [][]byte           `cbor:"3,keyasint,omitempty"` // CmdEntry, CmdAccept: EncodeEntry
	Stage   *Stage             `cbor:"4,keyasint,omitempty"`
	Adopt   *Adopt             `cbor:"5,keyasint,omitempty"`
}

// Stage is one chunk of a shard snapshot. Chunk 0 of a new Snapshot replaces
// whatever was staged for the shard; a chunk that is held already is ignored.
// Over all chunks, records ascend by id and revocations by (kind, id).
type Stage struct {
	Shard       controlplane.Shard `cbor:"1,keyasint"`
	Snapshot    string             `cbor:"2,keyasint"` // names this attempt; unique
	Chunk       uint64             `cbor:"3,keyasint"` // 0, 1, 2, …
	Records     [][]byte           `cbor:"4,keyasint,omitempty"`
	Revocations []Revocation       `cbor:"5,keyasint,omitempty"`
}

// Adopt makes a staged snapshot take effect.
type Adopt struct {
	Shard    controlplane.Shard `cbor:"1,keyasint"`
	Snapshot string             `cbor:"2,keyasint"`
	Members  []string           `cbor:"3,keyasint"`
	Home     string             `cbor:"4,keyasint"`
	Point    controlplane.Point `cbor:"5,keyasint"` // the sender's last entry; its epoch must be Sender
	Digest   []byte             `cbor:"6,keyasint"` // the sender's State.Digest, 32 bytes
}

// EncodeCommand returns the version byte and the command in deterministic CBOR.
func EncodeCommand(c *Command) ([]byte, error) {
	if err := c.wellFormed(); err != nil {
		return nil, err
	}
	b, err := encMode.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	return append([]byte{CommandVersion}, b...), nil
}

// DecodeCommand reads what EncodeCommand wrote. Anything else is
// controlplane.ErrUnknownEntry: the node must halt, never skip.
func DecodeCommand(b []byte) (*Command, error) {
	if len(b) == 0 || b[0] != CommandVersion {
		return nil, fmt.Errorf("%w: command version byte %.1x", controlplane.ErrUnknownEntry, b)
	}
	c := new(Command)
	if err := decMode.Unmarshal(b[1:], c); err != nil {
		return nil, fmt.Errorf("%w: command: %w", controlplane.ErrUnknownEntry, err)
	}
	if err := c.wellFormed(); err != nil {
		return nil, err
	}
	return c, nil
}

// wellFormed reports a command whose parts do not fit its type.
func (c *Command) wellFormed() error {
	var entries, stage, adopt bool
	switch c.Type {
	case CmdEntry, CmdAccept:
		entries = true
	case CmdStage:
		stage = true
	case CmdAdopt:
		adopt = true
	default:
		return fmt.Errorf("%w: command type %d", controlplane.ErrUnknownEntry, c.Type)
	}
	if entries != (len(c.Entries) > 0) || stage != (c.Stage != nil) || adopt != (c.Adopt != nil) {
		return fmt.Errorf("%w: the parts of a command do not fit its type %d", controlplane.ErrUnknownEntry, c.Type)
	}
	return nil
}

// Readable reports, as controlplane.ErrUnknownEntry, content that this version
// cannot read. Call it before proposing what another region sent: once such a
// command is in the log, every node of the region must halt.
func (c *Command) Readable() error {
	if err := c.wellFormed(); err != nil {
		return err
	}
	for _, b := range c.Entries {
		if _, err := DecodeEntry(b); err != nil {
			return err
		}
	}
	if c.Stage == nil {
		return nil
	}
	for _, b := range c.Stage.Records {
		if _, err := DecodeRecord(b); err != nil {
			return err
		}
	}
	return nil
}
