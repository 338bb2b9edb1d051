package feed

import (
	"fmt"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/strict"
)

// FrameType says which fields of a Frame are set.
type FrameType uint8

// Frames of protocol version 1. A receiver that meets another type must stop.
const (
	FrameReset      FrameType = iota + 1 // forget all of Shard; its records, then End, follow
	FrameRecord                          // one record of the snapshot of Shard
	FrameRevocation                      // one member of the grow-only safety set; also pushed outside snapshots, on receipt
	FrameEnd                             // Shard is complete as of Point
	FrameEntry                           // the next entry of Shard, sent by a home whose epoch is Sender
	FrameVerdicts                        // shared key verdicts; never written to disk
	FrameHeartbeat                       // the server's Position at At; sent when idle, each second
	FrameStanding                        // how Shard stands at its home; only for watchers that ask (HeaderStanding)
	FrameMembers                         // who runs the region's control plane, in Record; only for watchers that ask (HeaderMembers)
)

// Verdict says that whoever presents a key with this MAC was checked against
// the bcrypt hash that record revision Revision of the key held.
type Verdict struct {
	_        struct{} `cbor:",toarray"`
	Key      string   // record id
	Revision uint64
	MAC      [32]byte // apikey.Verdict under one of the two current verdict keys
}

// Frame is one message of a feed. The same frames go from region to region,
// from control node to keeper, from keeper to worker, and, but for verdicts
// and heartbeats, into a data node's last-known-good files.
type Frame struct {
	Type       FrameType             `cbor:"1,keyasint"`
	Shard      controlplane.Shard    `cbor:"2,keyasint,omitempty"`
	Sender     controlplane.Epoch    `cbor:"3,keyasint,omitempty"`
	Members    []string              `cbor:"4,keyasint,omitempty"` // FrameReset
	Home       string                `cbor:"5,keyasint,omitempty"` // FrameReset
	Record     []byte                `cbor:"6,keyasint,omitempty"` // registry.EncodeRecord; FrameMembers: a list that the feed does not read
	Entry      []byte                `cbor:"7,keyasint,omitempty"` // registry.EncodeEntry
	Point      controlplane.Point    `cbor:"8,keyasint,omitempty"` // FrameEnd; FrameStanding: through which Shard is confirmed
	Digest     []byte                `cbor:"9,keyasint,omitempty"` // FrameEnd: ledger.State.Digest(Shard)
	Revocation *registry.Revocation  `cbor:"10,keyasint,omitempty"`
	Verdicts   []Verdict             `cbor:"11,keyasint,omitempty"`
	Position   controlplane.Position `cbor:"12,keyasint,omitempty"` // FrameHeartbeat
	At         int64                 `cbor:"13,keyasint,omitempty"` // FrameHeartbeat: Unix milliseconds at the server
	Spans      []registry.Span       `cbor:"14,keyasint,omitempty"` // FrameStanding before a FrameReset: epochs of the snapshot's history
}

// MaxFrame bounds an encoded frame, in bytes.
const MaxFrame = 4 << 20

// Marshal encodes whatever travels, deterministically.
func Marshal(v any) ([]byte, error) { return strict.Marshal(v) }

// Unmarshal reads what Marshal wrote into v; anything else is an error, a
// field that v does not have too.
func Unmarshal(b []byte, v any) error { return strict.Unmarshal(b, v) }

// EncodeFrame returns f in deterministic CBOR, without a length prefix.
func EncodeFrame(f *Frame) ([]byte, error) { return strict.Marshal(f) }

// DecodeFrame reads what EncodeFrame wrote; anything else is an error.
func DecodeFrame(b []byte) (*Frame, error) {
	f := new(Frame)
	if err := strict.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("feed frame: %w", err)
	}
	if f.Type < FrameReset || f.Type > FrameMembers {
		return nil, fmt.Errorf("feed frame of type %d: %w", f.Type, controlplane.ErrUnknownEntry)
	}
	if !f.whole() {
		return nil, fmt.Errorf("feed frame of type %d lacks a part", f.Type)
	}
	return f, nil
}

// whole reports whether the parts are there that receivers rely on.
func (f *Frame) whole() bool {
	switch f.Type {
	case FrameReset:
		return f.Shard != ""
	case FrameRecord:
		return f.Shard != "" && len(f.Record) > 0
	case FrameRevocation:
		return f.Revocation != nil
	case FrameEnd:
		return f.Shard != "" && (len(f.Digest) == 0 || len(f.Digest) == 32)
	case FrameEntry:
		return f.Shard != "" && len(f.Entry) > 0
	case FrameMembers:
		return len(f.Record) > 0
	case FrameStanding:
		return f.Shard != "" && f.Sender != controlplane.Epoch{}
	case FrameVerdicts, FrameHeartbeat:
	}
	return true
}
