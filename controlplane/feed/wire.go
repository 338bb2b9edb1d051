package feed

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// Paths of protocol version 1.
const (
	PathWatch    = "/feed/v1/watch"    // POST WatchRequest; the answer is a stream of frames
	PathVerdicts = "/feed/v1/verdicts" // POST Batch; GET answers with the table, as frames
	PathRevoke   = "/feed/v1/revoke"   // POST Batch, from control nodes only
	PathHeld     = "/feed/v1/held"     // POST Batch
	PathPosition = "/feed/v1/position" // GET: where the state of the region's leader is; 421 of another node
)

// HeaderStanding on a watch asks for FrameStanding. It is a header because
// servers of the first release refuse a request with a field they do not know.
const HeaderStanding = "Ringmain-Feed-Standing"

// HeaderMembers on a watch asks for FrameMembers.
const HeaderMembers = "Ringmain-Feed-Members"

// HeaderAge of an answer says how old the server's copy is, in milliseconds.
const HeaderAge = "Ringmain-Feed-Age"

// WatchRequest asks for a feed.
type WatchRequest struct {
	Cluster  string                `cbor:"1,keyasint"`
	From     controlplane.Position `cbor:"2,keyasint,omitempty"` // what the watcher holds already
	Homed    bool                  `cbor:"3,keyasint,omitempty"` // only shards whose home is the serving region
	Verdicts bool                  `cbor:"4,keyasint,omitempty"` // key verdicts too
}

// Batch carries verdicts, revocation hints or what data nodes hold to a control
// node, each to a path of its own.
type Batch struct {
	Cluster     string                `cbor:"1,keyasint"`
	Verdicts    []Verdict             `cbor:"2,keyasint,omitempty"`
	Revocations []registry.Revocation `cbor:"3,keyasint,omitempty"`
	Held        []Held                `cbor:"4,keyasint,omitempty"`
}

// Held says that a data node's worker was given a shard up to a point. Gossip
// says so too, within a second; this is said at once, of entries that revoke.
type Held struct {
	Region string             `cbor:"1,keyasint"`
	Node   string             `cbor:"2,keyasint"`
	Shard  controlplane.Shard `cbor:"3,keyasint"`
	Point  controlplane.Point `cbor:"4,keyasint"`
}

// Limits of what is asked, and of what is told in one piece.
const (
	MaxBody  = 1 << 20 // of a request, in bytes
	MaxBatch = 2048    // verdicts, revocations or what is held, in one batch or frame
)

// AppendFrame appends f to dst as it travels: u32 length, then CBOR.
func AppendFrame(dst []byte, f *Frame) ([]byte, error) {
	b, err := EncodeFrame(f)
	if err != nil {
		return dst, fmt.Errorf("encode feed frame: %w", err)
	}
	if len(b) > MaxFrame {
		return dst, fmt.Errorf("feed frame of %d bytes is over the limit of %d", len(b), MaxFrame)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(b)))
	return append(dst, b...), nil
}

// Reader takes frames off a stream.
type Reader struct {
	r   *bufio.Reader
	buf []byte
}

// NewReader reads frames from r.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 32<<10)} }

// Next returns the next frame. At a clean end it returns io.EOF, within a
// frame io.ErrUnexpectedEOF, and controlplane.ErrUnknownEntry for a frame of
// a type this version does not know.
func (r *Reader) Next() (*Frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxFrame {
		return nil, fmt.Errorf("feed frame claims %d bytes; 1 to %d are possible", n, MaxFrame)
	}
	if int(n) > cap(r.buf) {
		r.buf = make([]byte, n)
	}
	b := r.buf[:n]
	if _, err := io.ReadFull(r.r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if cap(r.buf) > 1<<20 {
		r.buf = nil
	}
	return DecodeFrame(b)
}
