package registry

import (
	"fmt"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/strict"
)

// First bytes of an encoded Command: the cluster version that it needs. What
// the first release could read keeps the first; the others are unknown to it,
// so that it halts.
const (
	CommandVersion       = 1
	commandVersionLevels = 2
	commandVersionSafety = 3
)

// Cluster versions: what the region's log may carry from each on.
const (
	VersionOwnership = 2 // seal, take, confirm, and what is cut goes to the quarantine
	VersionSafety    = 3 // all kinds of the safety set, and forgetting

	Version = VersionSafety // the newest that this code knows
)

// CommandType says what a Command asks of Apply.
type CommandType uint8

// Commands. Those after CmdAdopt need cluster version 2, but for CmdVersion.
const (
	CmdEntry   CommandType = iota + 1 // entries that this region proposes as their shards' home
	CmdAccept                         // entries of another home, whose epoch is Sender; what conflicts with them is cut
	CmdStage                          // one chunk of another home's shard snapshot
	CmdAdopt                          // the staged snapshot replaces the shard
	CmdSeal                           // lower epochs are refused from now on
	CmdTake                           // this region, which sealed an epoch, becomes home: the copied tail and the opening at once
	CmdConfirm                        // a majority of the members holds the shard up to here
	CmdResolve                        // entries leave the quarantine
	CmdVersion                        // every node of the region reads this cluster version
)

// Command is what a region's Raft log carries.
type Command struct {
	Type    CommandType        `cbor:"1,keyasint"`
	Sender  controlplane.Epoch `cbor:"2,keyasint"`           // CmdAccept, CmdAdopt: epoch of the home that sent it; ignored otherwise
	Entries [][]byte           `cbor:"3,keyasint,omitempty"` // CmdEntry, CmdAccept: EncodeEntry
	Stage   *Stage             `cbor:"4,keyasint,omitempty"`
	Adopt   *Adopt             `cbor:"5,keyasint,omitempty"`

	Levels    []Level  `cbor:"6,keyasint,omitempty"` // CmdEntry: which acknowledgement the writer of each entry asked for; empty = not told
	Confirmed uint64   `cbor:"7,keyasint,omitempty"` // CmdAccept (of one shard), CmdAdopt: how far the sender knows the shard confirmed; 0 = not told
	Seal      *Seal    `cbor:"8,keyasint,omitempty"`
	Take      *Take    `cbor:"9,keyasint,omitempty"`
	Confirm   *Confirm `cbor:"10,keyasint,omitempty"`
	Resolve   *Resolve `cbor:"11,keyasint,omitempty"`
	Version   uint64   `cbor:"12,keyasint,omitempty"` // CmdVersion
}

// Level is the acknowledgement that a writer asks for.
type Level uint8

// Levels of acknowledgement.
const (
	LevelRegion      Level = iota + 1 // committed at home
	LevelMultiRegion                  // confirmed: committed in a majority of the members
)

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
	Point    controlplane.Point `cbor:"5,keyasint"` // the sender's last entry; in CmdAdopt its epoch must be Sender
	Digest   []byte             `cbor:"6,keyasint"` // the sender's State.Digest, 32 bytes

	Spans  []Span `cbor:"7,keyasint,omitempty"` // the sender's: what they do not name is not history; empty = not told, by a sender of cluster version 1
	Repair bool   `cbor:"8,keyasint,omitempty"` // replace the content also of a copy that ends in Point itself, but has another digest
	Now    int64  `cbor:"9,keyasint,omitempty"` // Unix milliseconds: what is spent and not in the snapshot is forgotten; 0 = nothing, needs cluster version 3
}

// Seal promises to refuse epochs below Epoch.
type Seal struct {
	Shard controlplane.Shard `cbor:"1,keyasint"`
	Epoch controlplane.Epoch `cbor:"2,keyasint"`
}

// Take makes this region home: its copy ends in exactly Base, the highest end
// that a majority of the members reported, and the opening of Epoch follows.
type Take struct {
	Shard    controlplane.Shard `cbor:"1,keyasint"`
	Epoch    controlplane.Epoch `cbor:"2,keyasint"` // sealed here, and this region's own
	Base     controlplane.Point `cbor:"3,keyasint"`
	Entries  [][]byte           `cbor:"4,keyasint,omitempty"` // EncodeEntry: what this copy lacks up to Base, in order; it may begin earlier
	Snapshot *Adopt             `cbor:"5,keyasint,omitempty"` // instead of Entries: staged, and ends in Base
	Members  []ownership.Member `cbor:"6,keyasint"`           // of the new epoch, by region
	Forced   bool               `cbor:"7,keyasint,omitempty"` // without the word of members declared lost
	Known    controlplane.Point `cbor:"8,keyasint"`           // the highest that any report knew to be confirmed
}

// Confirm says that the entry at (Epoch, Seq) and all before it are confirmed.
type Confirm struct {
	Shard controlplane.Shard `cbor:"1,keyasint"`
	Epoch controlplane.Epoch `cbor:"2,keyasint"`
	Seq   uint64             `cbor:"3,keyasint"`
}

// Resolve takes entries out of the quarantine. Those that are not there (any
// more) are passed over.
type Resolve struct {
	Shard   controlplane.Shard   `cbor:"1,keyasint"`
	Entries []controlplane.Point `cbor:"2,keyasint"`
	Verdict Verdict              `cbor:"3,keyasint"`
}

// Verdict is what became of quarantined entries.
type Verdict uint8

// Verdicts.
const (
	VerdictReplayed  Verdict = iota + 1 // they were written anew
	VerdictDiscarded                    // somebody decided that they are not wanted
)

// EncodeCommand returns the version byte and the command in deterministic CBOR.
func EncodeCommand(c *Command) ([]byte, error) {
	if err := c.WellFormed(); err != nil {
		return nil, err
	}
	b, err := strict.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	return append([]byte{byte(c.Needs())}, b...), nil
}

// DecodeCommand reads what EncodeCommand wrote. Anything else is
// controlplane.ErrUnknownEntry: the node must halt, never skip.
func DecodeCommand(b []byte) (*Command, error) {
	if len(b) == 0 || b[0] < CommandVersion || b[0] > commandVersionSafety {
		return nil, fmt.Errorf("%w: command version byte %.1x", controlplane.ErrUnknownEntry, b)
	}
	c := new(Command)
	if err := decMode.Unmarshal(b[1:], c); err != nil {
		return nil, fmt.Errorf("%w: command: %w", controlplane.ErrUnknownEntry, err)
	}
	if err := c.WellFormed(); err != nil {
		return nil, err
	}
	if v := c.Needs(); v != uint64(b[0]) {
		return nil, fmt.Errorf("%w: a command of version %d under version byte %d", controlplane.ErrUnknownEntry, v, b[0])
	}
	return c, nil
}

// Needs is the oldest cluster version that can read all that the command says;
// the first byte of its encoding.
func (c *Command) Needs() uint64 {
	if c.needsSafety() {
		return commandVersionSafety
	}
	news := c.Type > CmdAdopt || len(c.Levels) > 0 || c.Confirmed != 0
	if a := c.Adopt; a != nil {
		news = news || len(a.Spans) > 0 || a.Repair
	}
	if news {
		return commandVersionLevels
	}
	return CommandVersion
}

// needsSafety reports content that only cluster version 3 knows.
func (c *Command) needsSafety() bool {
	news := func(entry []byte) bool { return len(entry) > 0 && entry[0] == formatVersionSafety }
	if slices.ContainsFunc(c.Entries, news) || c.Take != nil && slices.ContainsFunc(c.Take.Entries, news) {
		return true
	}
	if c.Adopt != nil && c.Adopt.Now != 0 {
		return true
	}
	return c.Stage != nil && (slices.ContainsFunc(c.Stage.Revocations, func(v Revocation) bool { return !v.Kind.Known() }) ||
		slices.ContainsFunc(c.Stage.Records, recentRecord))
}

// At returns the command as a region at the cluster version takes it: imports
// without what that version does not know, others as they are or not at all.
func (c *Command) At(version uint64) (*Command, error) {
	if c.Needs() <= version || c.Type == CmdVersion {
		return c, nil
	}
	plain := *c
	if c.Type == CmdAdopt {
		adopt := *c.Adopt
		adopt.Now = 0
		plain.Adopt = &adopt
	}
	if version < VersionOwnership {
		plain.Confirmed = 0
		if c.Type == CmdAdopt {
			plain.Adopt.Spans, plain.Adopt.Repair = nil, false
		}
	}
	if need := plain.Needs(); need > version {
		return nil, fmt.Errorf("the command needs cluster version %d, and the region is at %d: upgrade all of its nodes", need, version)
	}
	return &plain, nil
}

// WellFormed reports a command whose parts do not fit its type.
func (c *Command) WellFormed() error {
	parts := [...]bool{
		CmdEntry: len(c.Entries) > 0 && c.Type != CmdAccept, CmdAccept: len(c.Entries) > 0 && c.Type == CmdAccept,
		CmdStage: c.Stage != nil, CmdAdopt: c.Adopt != nil, CmdSeal: c.Seal != nil, CmdTake: c.Take != nil,
		CmdConfirm: c.Confirm != nil, CmdResolve: c.Resolve != nil, CmdVersion: c.Version != 0,
	}
	if c.Type == 0 || int(c.Type) >= len(parts) {
		return fmt.Errorf("%w: command type %d", controlplane.ErrUnknownEntry, c.Type)
	}
	fits := len(c.Levels) == 0 || c.Type == CmdEntry && len(c.Levels) == len(c.Entries)
	for _, l := range c.Levels {
		fits = fits && l <= LevelMultiRegion
	}
	for t, there := range parts[1:] {
		fits = fits && there == (CommandType(t+1) == c.Type)
	}
	if c.Confirmed != 0 && c.Type != CmdAccept && c.Type != CmdAdopt {
		fits = false
	}
	if r := c.Resolve; r != nil && (r.Verdict == 0 || r.Verdict > VerdictDiscarded) {
		fits = false
	}
	if !fits {
		return fmt.Errorf("%w: the parts of a command do not fit its type %d", controlplane.ErrUnknownEntry, c.Type)
	}
	return nil
}

// Readable reports, as controlplane.ErrUnknownEntry, content that this version
// cannot read. Call it before proposing what another region sent: once such a
// command is in the log, every node of the region must halt.
func (c *Command) Readable() error {
	if err := c.WellFormed(); err != nil {
		return err
	}
	entries := c.Entries
	if c.Take != nil {
		entries = c.Take.Entries
	}
	for _, b := range entries {
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
