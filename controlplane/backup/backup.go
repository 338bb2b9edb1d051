// Package backup writes a region's whole state to one sealed file, says what
// such a file holds, and makes a new region of it.
//
// It knows State and files, but no HTTP and no consensus: quorum makes the
// directory that a region begins from. Keys stay with whoever gives the Sealer.
package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
	"ringmain/controlplane/strict"
)

// A backup is one sealed stream. Its first frame is the format byte and the
// Info in CBOR; the others are a registry snapshot, cut anywhere. Frames are
// numbered and the last is marked: a byte that was altered, a part that was
// left out or moved and an early end all show.
const (
	formatVersion = 1
	boundTo       = "backup/1" // what the stream's seal is bound to
	frameBytes    = 1 << 20
)

// ErrDamaged says that the file was altered or is not whole: use another copy.
var ErrDamaged = errors.New("the backup is damaged or not whole: use another copy")

// Source says where a backup comes from.
type Source struct {
	Cluster string    `cbor:"1,keyasint" json:"cluster"`
	Region  string    `cbor:"2,keyasint" json:"region"`
	Node    string    `cbor:"3,keyasint" json:"node"`
	Program string    `cbor:"4,keyasint" json:"program"` // version of the program that wrote it
	Taken   time.Time `cbor:"5,keyasint" json:"taken"`
	Contact time.Time `cbor:"6,keyasint" json:"contact"` // when the node last knew that its state was current
	Applied uint64    `cbor:"7,keyasint" json:"applied"` // index and term of the region's raft log
	Term    uint64    `cbor:"8,keyasint" json:"term"`
	Since   uint64    `cbor:"9,keyasint" json:"since"` // which life of the region: 0 = the first
}

// Info is what a backup says of itself.
type Info struct {
	Source
	StateVersion uint64  `cbor:"20,keyasint" json:"cluster_version"`
	Shards       []Shard `cbor:"21,keyasint" json:"shards"`
}

// Shard is one shard's part of a backup.
type Shard struct {
	Shard       controlplane.Shard `cbor:"1,keyasint" json:"shard"`
	Home        string             `cbor:"2,keyasint" json:"home"`
	Members     []string           `cbor:"3,keyasint" json:"members"`
	Last        controlplane.Point `cbor:"4,keyasint" json:"last"`
	Records     map[string]int     `cbor:"5,keyasint" json:"records"` // by kind
	Revocations int                `cbor:"6,keyasint" json:"revocations"`
	Digest      []byte             `cbor:"7,keyasint" json:"digest"` // State.Digest
}

var (
	encMode = must(func() cbor.EncOptions {
		o := cbor.CoreDetEncOptions()
		o.Time = cbor.TimeRFC3339Nano
		return o
	}().EncMode())
	decMode = strict.Decoder(strict.Bounds{Depth: 8, Elements: 1 << 16, Pairs: 1 << 8})
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Create writes a backup of state, which must not change meanwhile: pass a
// Clone. It returns what Inspect will say of it.
func Create(w io.Writer, sealer *seal.Sealer, from Source, state *ledger.State) (Info, error) {
	from.Taken, from.Contact = from.Taken.UTC(), from.Contact.UTC()
	info := Info{Source: from, StateVersion: state.Version(), Shards: shardsOf(state)}
	head, err := encMode.Marshal(info)
	if err != nil {
		return info, fmt.Errorf("backup: %w", err)
	}
	sealed, err := sealer.NewWriter(w, boundTo)
	if err != nil {
		return info, fmt.Errorf("backup: %w", err)
	}
	if err := sealed.Frame(append([]byte{formatVersion}, head...)); err != nil {
		return info, fmt.Errorf("backup: %w", err)
	}
	frames := &framer{to: sealed}
	if err := state.Snapshot(frames); err != nil {
		return info, fmt.Errorf("backup: %w", err)
	}
	if err := errors.Join(frames.flush(), sealed.Close()); err != nil {
		return info, fmt.Errorf("backup: %w", err)
	}
	return info, nil
}

func shardsOf(state *ledger.State) []Shard {
	shards := []Shard{}
	for _, i := range state.Shards() {
		s := Shard{Shard: i.Shard, Home: i.Home, Members: slices.Clone(i.Members), Last: i.Last, Records: make(map[string]int)}
		snap, _ := state.ShardSnapshot(i.Shard) // listed, so it is there
		for r := range snap.Records {
			s.Records[r.Kind.String()]++
		}
		for range snap.Revocations {
			s.Revocations++
		}
		digest := snap.Digest()
		s.Digest = digest[:]
		shards = append(shards, s)
	}
	return shards
}

// framer cuts what is written into frames.
type framer struct {
	to  *seal.Writer
	buf []byte
}

func (f *framer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		room := min(frameBytes-len(f.buf), len(p))
		f.buf, p = append(f.buf, p[:room]...), p[room:]
		if len(f.buf) == frameBytes {
			if err := f.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (f *framer) flush() error {
	if len(f.buf) == 0 {
		return nil
	}
	err := f.to.Frame(f.buf)
	f.buf = f.buf[:0]
	return err
}

// Inspect reads the whole backup, checks every byte of it, and says what it
// holds. Errors: ErrDamaged; seal.ErrUnknownKey if it is sealed under another
// key; seal.ErrNotSealed if it is no backup; controlplane.ErrUnknownEntry or
// seal.ErrUnsupported if a newer version wrote it.
func Inspect(r io.Reader, sealer *seal.Sealer) (Info, error) {
	info, _, err := Read(r, sealer)
	return info, err
}

// Read is Inspect, and returns the state as well.
func Read(r io.Reader, sealer *seal.Sealer) (Info, *ledger.State, error) {
	sealed, err := sealer.NewReader(r, boundTo)
	if err != nil {
		return Info{}, nil, broken(err)
	}
	head, err := sealed.Next()
	if err != nil {
		return Info{}, nil, broken(err)
	}
	info, err := parseInfo(head)
	if err != nil {
		return Info{}, nil, err
	}
	state, err := ledger.Restore(&unframer{from: sealed})
	if err != nil {
		return Info{}, nil, broken(err)
	}
	got, err := encMode.Marshal(Info{Source: info.Source, StateVersion: state.Version(), Shards: shardsOf(state)})
	if err != nil {
		return Info{}, nil, fmt.Errorf("backup: %w", err)
	}
	if want, err := encMode.Marshal(info); err != nil || !bytes.Equal(got, want) {
		return Info{}, nil, fmt.Errorf("%w: it does not hold what it says it holds", ErrDamaged)
	}
	return info, state, nil
}

func parseInfo(b []byte) (info Info, err error) {
	if len(b) == 0 || b[0] != formatVersion {
		return info, fmt.Errorf("backup: %w: format %.1x", controlplane.ErrUnknownEntry, b)
	}
	if err := decMode.Unmarshal(b[1:], &info); err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return info, nil
}

// broken calls damage what is damage, and leaves the other errors as they are.
func broken(err error) error {
	for _, other := range []error{seal.ErrUnknownKey, seal.ErrUnsupported, seal.ErrNotSealed, controlplane.ErrUnknownEntry} {
		if errors.Is(err, other) {
			return fmt.Errorf("backup: %w", err)
		}
	}
	for _, damage := range []error{seal.ErrTampered, seal.ErrTruncated, ledger.ErrDamaged, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, damage) {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	return fmt.Errorf("read the backup: %w", err)
}

// unframer reads the frames as one.
type unframer struct {
	from *seal.Reader
	rest []byte
}

func (u *unframer) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		frame, err := u.from.Next()
		if err != nil {
			return 0, err // io.EOF only after the end mark
		}
		u.rest = frame
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}
