package proof

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"ringmain/controlplane/strict"
)

// checkpoint is the payload a node signs for each batch.
type checkpoint struct {
	Node   string `json:"node"`   // spiffe://<cluster>/region/<region>/data/<node>
	Number uint64 `json:"number"` // from 1 for each key
	Size   int    `json:"size"`   // leaves
	Root   Hash   `json:"root"`   // RFC 6962 tree head
	At     int64  `json:"at"`     // Unix milliseconds when it was signed
	// Previous is the SHA-256 of the checkpoint before this one, as the text
	// it was given out in; all zero for the first.
	Previous Hash `json:"previous"`
}

// Batch is a batch of leaves under a signed checkpoint.
type Batch struct {
	Key        string    // thumbprint of the key that signed it
	Number     uint64    // of its checkpoint, from 1 for each key
	At         time.Time // when it was signed
	Delegation string    // by which the key signs; the same for many batches, so that it may be kept apart

	checkpoint string
	leaves     []byte // one after another
	ends       []uint32
	byKey      []keyed // sorted by key
}

// Len is how many receipts the batch holds.
func (b *Batch) Len() int { return len(b.ends) }

// Requests calls each with the RequestKey of every receipt, in ascending order.
func (b *Batch) Requests(each func(key uint64)) {
	for _, k := range b.byKey {
		each(k.key)
	}
}

// keyed finds a leaf by the key of its request.
type keyed struct {
	key  uint64
	leaf uint32
}

// RequestKey is FNV-1a of a request id: what batches find it by. It spreads
// evenly and proves nothing.
func RequestKey(id string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return h
}

func (b *Batch) leaf(i int) []byte {
	start := uint32(0)
	if i > 0 {
		start = b.ends[i-1]
	}
	return b.leaves[start:b.ends[i]:b.ends[i]]
}

// Size is how many bytes of memory b takes, nearly.
func (b *Batch) Size() int64 {
	return int64(len(b.leaves)+4*len(b.ends)+16*len(b.byKey)+len(b.Delegation)+len(b.checkpoint)) + 200
}

// Seal signs a batch of at least one leaf: leaves as AppendLeaf wrote them one
// after another, where each ends, and the RequestKey of each. Number counts
// from 1 for each key, and previous is Chained of the batch before.
func Seal(s *Signer, number uint64, previous Hash, now time.Time, leaves []byte, ends []uint32, keys []uint64) (*Batch, error) {
	b := &Batch{Key: s.public.Kid, Number: number, At: now, Delegation: s.delegation(), leaves: leaves, ends: ends}
	hashes := b.hashes()
	b.byKey = make([]keyed, len(ends))
	for i := range ends {
		b.byKey[i] = keyed{keys[i], uint32(i)}
	}
	slices.SortFunc(b.byKey, func(x, y keyed) int { return cmp.Compare(x.key, y.key) })
	payload, err := marshal(checkpoint{
		Node: s.state.Load().id.String(), Number: number, Size: len(ends), Root: rootOf(hashes), At: now.UnixMilli(), Previous: previous,
	})
	if err == nil {
		b.checkpoint, err = sign(s.private, header{Typ: typCheckpoint, Kid: s.public.Kid}, payload)
	}
	return b, err
}

func (b *Batch) hashes() []node {
	var h leafHasher
	out := make([]node, len(b.ends))
	for i := range out {
		out[i] = h.of(b.leaf(i))
	}
	return out
}

// Chained is what the checkpoint after this one points back with.
func (b *Batch) Chained() Hash { return sha256.Sum256([]byte(b.checkpoint)) }

// Find returns the entry of a request; nil if none of the leaves is its.
func (b *Batch) Find(requestID string) *Entry {
	key := RequestKey(requestID)
	i, _ := slices.BinarySearchFunc(b.byKey, key, func(k keyed, key uint64) int { return cmp.Compare(k.key, key) })
	for ; i < len(b.byKey) && b.byKey[i].key == key; i++ {
		at := int(b.byKey[i].leaf)
		f, err := decodeLeaf(b.leaf(at))
		if err != nil || f.RequestID != requestID {
			continue
		}
		return b.entry(at, f)
	}
	return nil
}

func (b *Batch) entry(at int, f *Facts) *Entry {
	e := &Entry{Version: formatVersion, Delegation: b.Delegation, Checkpoint: b.checkpoint, Index: at, Leaf: b.leaf(at), facts: f}
	for _, h := range pathOf(b.hashes(), at) {
		e.Path = append(e.Path, Hash(h))
	}
	return e
}

// Entry is all that makes one receipt.
type Entry struct {
	Version    int    `cbor:"1,keyasint"`
	Delegation string `cbor:"2,keyasint"`
	Checkpoint string `cbor:"3,keyasint"`
	Index      int    `cbor:"4,keyasint"`
	Path       []Hash `cbor:"5,keyasint"`
	Leaf       []byte `cbor:"6,keyasint"`

	facts *Facts
}

// Facts are what the entry's leaf says.
func (e *Entry) Facts() *Facts { return e.facts }

// Encode is the entry as the keeper answers with it.
func (e *Entry) Encode() ([]byte, error) {
	out, err := strict.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("receipt: encode entry: %w", err)
	}
	return out, nil
}

// stored is a batch as it goes to the keeper and its disk.
type stored struct {
	Version    int    `cbor:"1,keyasint"`
	Delegation string `cbor:"2,keyasint,omitempty"` // left out where it is kept apart
	Checkpoint string `cbor:"3,keyasint"`
	Leaves     []byte `cbor:"4,keyasint"` // one after another
	Index      []byte `cbor:"5,keyasint"` // for each leaf: key of its request u64 | end u32, big endian
}

const (
	formatVersion = 1
	indexSize     = 12
)

// ErrBatch says that bytes are no batch of this version.
var ErrBatch = errors.New("not a batch of receipts of this version: upgrade this node")

func (b *Batch) encode(delegation string) ([]byte, error) {
	index := make([]byte, indexSize*len(b.ends))
	for _, k := range b.byKey {
		at := index[indexSize*k.leaf:]
		binary.BigEndian.PutUint64(at, k.key)
		binary.BigEndian.PutUint32(at[8:], b.ends[k.leaf])
	}
	out, err := strict.Marshal(stored{
		Version: formatVersion, Delegation: delegation, Checkpoint: b.checkpoint, Leaves: b.leaves, Index: index,
	})
	if err != nil {
		return nil, fmt.Errorf("receipt: encode batch: %w", err)
	}
	return out, nil
}

// ParseBatch reads what Encode or Bare gave, or ErrBatch. It verifies no
// signature: whoever is shown a receipt does.
func ParseBatch(b []byte) (*Batch, error) {
	s := new(stored)
	if err := strict.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBatch, err)
	}
	if s.Version != formatVersion || len(s.Index) == 0 || len(s.Index)%indexSize != 0 {
		return nil, fmt.Errorf("%w: version %d, an index of %d bytes", ErrBatch, s.Version, len(s.Index))
	}
	jws, err := parseJWS(s.Checkpoint, typCheckpoint)
	if err != nil {
		return nil, fmt.Errorf("%w: checkpoint: %w", ErrBatch, err)
	}
	var point checkpoint
	if err := unmarshal(jws.payload, &point); err != nil {
		return nil, fmt.Errorf("%w: checkpoint: %w", ErrBatch, err)
	}
	out := &Batch{
		Key: jws.header.Kid, Number: point.Number, At: time.UnixMilli(point.At), Delegation: s.Delegation,
		checkpoint: s.Checkpoint, leaves: s.Leaves,
	}
	last := uint32(0)
	for i := uint32(0); len(s.Index) > 0; i++ {
		end := binary.BigEndian.Uint32(s.Index[8:])
		if end < last || uint64(end) > uint64(len(s.Leaves)) {
			return nil, fmt.Errorf("%w: leaf %d lies outside", ErrBatch, i)
		}
		out.byKey = append(out.byKey, keyed{binary.BigEndian.Uint64(s.Index), i})
		out.ends = append(out.ends, end)
		last, s.Index = end, s.Index[indexSize:]
	}
	slices.SortFunc(out.byKey, func(x, y keyed) int { return cmp.Compare(x.key, y.key) })
	return out, nil
}

// Encode is the batch as it goes to the keeper.
func (b *Batch) Encode() ([]byte, error) { return b.encode(b.Delegation) }

// Bare is Encode without the delegation. ParseBatch reads it; set Delegation
// before Find is called.
func (b *Batch) Bare() ([]byte, error) { return b.encode("") }

// DecodeEntry reads what Entry.Encode gave.
func DecodeEntry(b []byte) (*Entry, error) {
	e := new(Entry)
	if err := strict.Unmarshal(b, e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBatch, err)
	}
	f, err := decodeLeaf(e.Leaf)
	if err != nil {
		return nil, err
	}
	e.facts = f
	return e, nil
}

// format names a receipt file's layout.
const format = "ringmain-receipt/1"

// file is a receipt as a client gets it: one JSON object and a line break.
type file struct {
	Format     string `json:"format"`
	Facts      *Facts `json:"facts"` // the leaf, readable
	Leaf       string `json:"leaf"`  // base64url
	Index      int    `json:"index"` // of the leaf in its batch
	Path       []Hash `json:"path"`  // audit path (RFC 6962, 2.1.1), from the leaf up
	Checkpoint string `json:"checkpoint"`
	Key        string `json:"key"` // the delegation by which the node's certificate lets the key sign
}

// Document is the receipt as a client gets it: one line of JSON.
func (e *Entry) Document() ([]byte, error) {
	doc := file{Format: format, Facts: e.facts, Leaf: encode64(e.Leaf), Index: e.Index, Path: e.Path, Checkpoint: e.Checkpoint, Key: e.Delegation}
	if doc.Path == nil {
		doc.Path = []Hash{}
	}
	b, err := marshal(doc)
	return append(b, '\n'), err
}

// parseFile reads a file that Document made. A missing line break at the end
// is forgiven, as tools that copy text drop it; nothing else is.
func parseFile(b []byte) (*file, *Facts, error) {
	doc := new(file)
	if err := unmarshal(bytes.TrimSuffix(b, []byte{'\n'}), doc); err != nil {
		return nil, nil, err
	}
	if doc.Format != format || doc.Facts == nil {
		return nil, nil, fmt.Errorf("format %.40q, this verifier knows %q", doc.Format, format)
	}
	leaf, err := decode64(doc.Leaf)
	if err != nil {
		return nil, nil, fmt.Errorf("leaf: %w", err)
	}
	f, err := decodeLeaf(leaf)
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(AppendLeaf(nil, doc.Facts), leaf) {
		return nil, nil, errors.New("the facts shown are not those of the leaf that is signed")
	}
	return doc, f, nil
}
