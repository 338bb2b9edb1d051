package ledger

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"strconv"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/content"
)

// ErrDamaged says that what was read is not a whole snapshot: use another copy.
var ErrDamaged = errors.New("the snapshot is damaged: use another copy")

// A snapshot is the magic, then items: u32 length of the payload, a type byte,
// the payload. The last item holds the SHA-256 of all bytes before it. The last
// byte of the magic is the digit of the cluster version.
const snapshotMagic = "rmR"

// maxItem bounds an item's payload, in bytes.
const maxItem = 4 << 20

type itemType byte

const (
	itemShard            itemType = iota + 1 // EncodeShard; records and revocations of the shard follow
	itemRecord                               // EncodeRecord
	itemRevocation                           // Revocation
	itemStage                                // stageHeader; what is staged for the shard follows
	itemStagedRecord                         // EncodeRecord
	itemStagedRevocation                     // Revocation
	itemEnd                                  // SHA-256
	itemHeld                                 // Held of the shard before it, from cluster version 2
	itemQuarantined                          // Quarantined of the shard before it, from cluster version 2
)

type stageHeader struct {
	_        struct{} `cbor:",toarray"`
	Shard    controlplane.Shard
	Snapshot string
	Chunks   uint64
}

// Snapshot writes all of s, staged snapshots included. Call it on a Clone to
// write while the original moves on.
func (s *State) Snapshot(w io.Writer) error {
	bw := bufio.NewWriterSize(w, 64<<10)
	out := &itemWriter{sum: sha256.New()}
	out.w = io.MultiWriter(bw, out.sum)
	_, out.err = io.WriteString(out.w, snapshotMagic+strconv.FormatUint(s.Version(), 10))
	for _, sh := range s.shards {
		if sh.present() {
			out.put(itemShard)(registry.EncodeShard(sh.info, s.Version()))
			out.content(&sh.content, itemRecord, itemRevocation)
			out.beside(sh)
		}
		if g := sh.stage; g != nil {
			out.encode(itemStage, stageHeader{Shard: sh.info.Shard, Snapshot: g.snapshot, Chunks: g.chunks})
			content := g.Content()
			out.content(&content, itemStagedRecord, itemStagedRevocation)
		}
	}
	out.item(itemEnd, out.sum.Sum(nil))
	if out.err == nil {
		out.err = bw.Flush()
	}
	if out.err != nil {
		return fmt.Errorf("write snapshot: %w", out.err)
	}
	return nil
}

// itemWriter keeps its first error.
type itemWriter struct {
	w   io.Writer
	sum hash.Hash
	err error
}

func (o *itemWriter) content(sh *content.Shard, record, revocation itemType) {
	for r := range sh.Records() {
		if o.err != nil {
			return
		}
		o.encode(record, r)
	}
	for v := range sh.Revocations() {
		if o.err != nil {
			return
		}
		o.encode(revocation, v)
	}
}

// beside writes what a shard has beside its content.
func (o *itemWriter) beside(sh *shard) {
	for h := range sh.tail.All() {
		if o.err != nil {
			return
		}
		o.put(itemHeld)(h.Encode())
	}
	for q := range sh.lost.All() {
		if o.err != nil {
			return
		}
		o.put(itemQuarantined)(q.Encode())
	}
}

func (o *itemWriter) encode(t itemType, v any) { o.put(t)(registry.Encode(v)) }

func (o *itemWriter) put(t itemType) func([]byte, error) {
	return func(b []byte, err error) {
		if err != nil && o.err == nil {
			o.err = err
		}
		o.item(t, b)
	}
}

func (o *itemWriter) item(t itemType, payload []byte) {
	if o.err == nil && len(payload) > maxItem {
		o.err = fmt.Errorf("an item of %d bytes exceeds %d", len(payload), maxItem)
	}
	if o.err != nil {
		return
	}
	var head [5]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(payload)))
	head[4] = byte(t)
	if _, o.err = o.w.Write(head[:]); o.err == nil {
		_, o.err = o.w.Write(payload)
	}
}

// Restore reads what Snapshot wrote, to the end of r. A damaged or incomplete
// snapshot is ErrDamaged; one of a newer version is controlplane.ErrUnknownEntry.
func Restore(r io.Reader) (*State, error) {
	in := &restorer{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New(), loader: NewLoader()}
	magic := make([]byte, len(snapshotMagic)+1)
	if _, err := io.ReadFull(in.r, magic); err != nil {
		return nil, readError(err)
	}
	version := uint64(magic[len(magic)-1] - '0')
	if err := in.loader.Version(version); err != nil || string(magic[:len(snapshotMagic)]) != snapshotMagic {
		return nil, fmt.Errorf("%w: snapshot begins with %q", controlplane.ErrUnknownEntry, magic)
	}
	_, _ = in.sum.Write(magic)
	for !in.ended {
		if err := in.next(); err != nil {
			return nil, err
		}
	}
	if _, err := in.r.ReadByte(); err == nil {
		return nil, fmt.Errorf("%w: more follows its end", ErrDamaged)
	} else if !errors.Is(err, io.EOF) {
		return nil, readError(err)
	}
	s, err := in.loader.State()
	if err != nil {
		return nil, err
	}
	for _, g := range in.stages {
		content := g.Content()
		s.stage(s.orNew(content.Name()), g)
	}
	return s, nil
}

// readError calls an early end damage; other failures are the reader's own.
func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends early", ErrDamaged)
	}
	return fmt.Errorf("read snapshot: %w", err)
}

type restorer struct {
	r       *bufio.Reader
	sum     hash.Hash
	payload bytes.Buffer
	loader  *Loader
	shard   controlplane.Shard // whose items come
	stages  []*stage
	ended   bool
}

func (in *restorer) next() error {
	var head [5]byte
	if _, err := io.ReadFull(in.r, head[:]); err != nil {
		return readError(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxItem {
		return fmt.Errorf("%w: an item of %d bytes", ErrDamaged, n)
	}
	in.payload.Reset()
	if _, err := io.CopyN(&in.payload, in.r, int64(n)); err != nil {
		return readError(err)
	}
	payload := in.payload.Bytes()
	if itemType(head[4]) == itemEnd {
		if !bytes.Equal(payload, in.sum.Sum(nil)) {
			return fmt.Errorf("%w: its checksum does not match", ErrDamaged)
		}
		in.ended = true
		return nil
	}
	_, _ = in.sum.Write(head[:])
	_, _ = in.sum.Write(payload)
	if err := in.item(itemType(head[4]), payload); err != nil {
		if errors.Is(err, controlplane.ErrUnknownEntry) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

func (in *restorer) item(t itemType, payload []byte) error {
	switch t {
	case itemShard:
		info, err := registry.DecodeShard(payload, in.loader.version)
		if err != nil {
			return err
		}
		in.shard = info.Shard
		return in.loader.Shard(info)
	case itemHeld, itemQuarantined:
		if in.loader.version < 2 || in.shard == "" {
			return fmt.Errorf("item of type %d in a snapshot of version %d", t, in.loader.version)
		}
		if t == itemHeld {
			return in.loader.Held(in.shard, payload)
		}
		return in.loader.Quarantined(in.shard, payload)
	case itemRecord:
		r, err := registry.DecodeRecord(payload)
		if err != nil {
			return err
		}
		return in.loader.Record(r)
	case itemRevocation:
		var v registry.Revocation
		if err := registry.Decode(payload, &v); err != nil {
			return err
		}
		return in.loader.Revocation(v)
	case itemStage:
		var h stageHeader
		if err := registry.Decode(payload, &h); err != nil {
			return err
		}
		if !registry.IsShard(h.Shard) {
			return fmt.Errorf("staged shard %q", h.Shard)
		}
		g := newStage(h.Shard, h.Snapshot)
		g.chunks = h.Chunks
		in.stages = append(in.stages, g)
		return nil
	}
	if t != itemStagedRecord && t != itemStagedRevocation {
		return fmt.Errorf("%w: snapshot item of type %d", controlplane.ErrUnknownEntry, t)
	}
	if len(in.stages) == 0 {
		return errors.New("staged content without its header")
	}
	g := in.stages[len(in.stages)-1]
	if t == itemStagedRecord {
		return g.Record(payload)
	}
	var v registry.Revocation
	if err := registry.Decode(payload, &v); err != nil {
		return err
	}
	return g.Revocation(v)
}

// ShardSnapshot is one shard at one moment. It stays valid, and may be read
// from other goroutines, while the State moves on: take it under the lock that
// guards the State, stream it outside.
type ShardSnapshot struct {
	Info        registry.ShardInfo
	Records     iter.Seq[*registry.Record]    // by id
	Revocations iter.Seq[registry.Revocation] // by (kind, id)
}

// ShardSnapshot returns the shard as it is now; false if it was never opened.
// It takes no time, whatever the number of records.
func (s *State) ShardSnapshot(name controlplane.Shard) (ShardSnapshot, bool) {
	sh, ok := s.shard(name)
	if !ok || !sh.known() {
		return ShardSnapshot{}, false
	}
	return sh.snapshot(), true
}

func (sh *shard) snapshot() ShardSnapshot {
	content := sh.content
	return ShardSnapshot{
		Info:    sh.info,
		Records: content.Records(),
		Revocations: func(yield func(registry.Revocation) bool) {
			for v := range content.Revocations() {
				if !yield(*v) {
					return
				}
			}
		},
	}
}

// Digest is State.Digest of the snapshot. It encodes every record: whoever
// encodes them anyway should use a Digester.
func (p ShardSnapshot) Digest() [32]byte { return registry.DigestOf(p.Records, p.Revocations) }

// Digest sums up the shard's records and revocations, not its point: two
// copies with the same content have the same digest.
func (s *State) Digest(name controlplane.Shard) [32]byte {
	return s.orNew(name).snapshot().Digest()
}
