package store

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft"

	"ringmain/controlplane/seal"
)

func (l *Log) newBox() error {
	box, header, err := l.sealer.NewBox(l.context)
	if err != nil {
		return fmt.Errorf("quorum: raft log: %w", err)
	}
	l.box, l.seals = box, 0
	l.header = append(binary.BigEndian.AppendUint16(nil, uint16(len(header))), header...)
	return nil
}

// seal returns header and sealed payload in one slice.
func (l *Log) seal(plain, aad []byte) ([]byte, error) {
	if l.seals++; l.seals > sealMax {
		if err := l.newBox(); err != nil {
			return nil, err
		}
	}
	out := make([]byte, len(l.header), len(l.header)+len(plain)+seal.BoxOverhead)
	copy(out, l.header)
	return l.box.Seal(out, plain, aad), nil
}

func (l *Log) open(sealed, aad []byte) ([]byte, error) {
	if len(sealed) < 2 || len(sealed) < 2+int(binary.BigEndian.Uint16(sealed)) {
		return nil, seal.ErrTruncated
	}
	header, rest := sealed[2:2+binary.BigEndian.Uint16(sealed)], sealed[2+binary.BigEndian.Uint16(sealed):]
	box, err := l.boxFor(header)
	if err != nil {
		return nil, err
	}
	return box.Open(nil, rest, aad)
}

func (l *Log) boxFor(header []byte) (*seal.Box, error) {
	l.boxesMu.Lock()
	defer l.boxesMu.Unlock()
	if box, ok := l.boxes[string(header)]; ok {
		return box, nil
	}
	box, rest, err := l.sealer.OpenBox(header, l.context)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, seal.ErrTampered
	}
	if len(l.boxes) >= 64 {
		clear(l.boxes)
	}
	l.boxes[string(header)] = box
	return box, nil
}

func entryAAD(e *raft.Log) []byte {
	aad := make([]byte, 0, 17)
	aad = binary.BigEndian.AppendUint64(aad, e.Index)
	aad = binary.BigEndian.AppendUint64(aad, e.Term)
	return append(aad, byte(e.Type))
}
