// Package image keeps the durable copy of a region's registry: one bbolt file
// of sealed rows, with a summary that vouches for all of them.
//
// It knows rows, records and snapshots, but neither raft nor time: quorum says
// when to write and up to which index.
package image

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
	"ringmain/controlplane/strict"
)

// Buckets of the image. A row's value is sealed and bound to bucket and key.
const (
	bucketMeta        = "meta"
	bucketShards      = "shards"      // shard -> registry.EncodeShard
	bucketRecords     = "records"     // shard 0 kind id -> record
	bucketRevocations = "revocations" // shard 0 kind id -> registry.Revocation
	bucketStaged      = "staged"      // shard 0 chunk -> encoded CmdStage, replayed at load
	bucketTail        = "tail"        // shard 0 seq -> ledger.Held; from format 2
	bucketQuarantine  = "quarantine"  // shard 0 seq counter region -> ledger.Quarantined; from format 2
)

// dataBuckets in the order in which a snapshot carries them. A file of format 1
// may lack the last two.
var dataBuckets = []string{bucketShards, bucketRecords, bucketRevocations, bucketStaged, bucketTail, bucketQuarantine}

var (
	keyBox     = []byte("box")     // header of the box that seals the rows
	keySummary = []byte("summary") // sealed summary
)

// Mark says how far an image is: the index and term of the last raft entry it
// holds the effect of.
type Mark struct{ Applied, Term uint64 }

// summary is written in every flush beside the rows it vouches for.
type summary struct {
	_       struct{} `cbor:",toarray"`
	Format  uint64   // cluster version of the state that the rows hold
	Cluster string
	Region  string
	Applied uint64         // raft index up to which the rows are complete
	Term    uint64         // of that entry
	Rows    uint64         // number of rows in the data buckets
	Tags    [tagBytes]byte // exclusive or of their authentication tags: a row lost, left over or rolled back shows
	Seals   uint64         // messages sealed under the image's box, at least
}

const (
	tagBytes    = 16
	resealAfter = seal.BoxLimit / 2 // messages under one data key
)

// row names one row of the image.
type row struct{ bucket, key string }

func (r row) aad() []byte { return append(append([]byte(r.bucket), 0), r.key...) }

func rowPrefix(shard controlplane.Shard) string { return string(shard) + "\x00" }

func recordKey(ref registry.Ref) string {
	return rowPrefix(ref.Shard) + string([]byte{byte(ref.Kind)}) + ref.ID
}

func stagedKey(shard controlplane.Shard, chunk uint64) string {
	return string(binary.BigEndian.AppendUint64([]byte(rowPrefix(shard)), chunk))
}

func tailRow(h *ledger.Held) row {
	return row{bucketTail, stagedKey(h.Entry.Shard, h.Entry.Seq)}
}

func quarantineRow(q *ledger.Quarantined) row {
	e := q.Entry
	return row{bucketQuarantine, string(binary.BigEndian.AppendUint64([]byte(stagedKey(e.Shard, e.Seq)), e.Epoch.Counter)) + e.Epoch.Region}
}

// shardOf is the shard that a row's key begins with.
func shardOf(key []byte) controlplane.Shard {
	name, _, _ := bytes.Cut(key, []byte{0})
	return controlplane.Shard(name)
}

// Image is the open file. Its methods are for one goroutine at a time; a View
// taken from it may be read beside them.
type Image struct {
	cfg     Config
	path    string
	context string
	db      *bbolt.DB
	box     *seal.Box
	header  []byte
	sum     summary
	infos   map[controlplane.Shard]string // encoded shard infos in the file, as far as known
	kept    *ledger.State                 // whose tails and quarantines the file has
	life    uint64                        // see Life
}

// Config says where the image is and whose.
type Config struct {
	Path    string // its file; Path + ".new" is used while it is rebuilt
	Cluster string
	Region  string
	Sealer  *seal.Sealer // the same for all nodes of the region: they exchange dumps
}

func (c Config) image(path string) *Image {
	return &Image{
		cfg:     c,
		path:    path,
		context: fmt.Sprintf("quorum/image/%s/%s", c.Cluster, c.Region),
		sum:     summary{Format: 1, Cluster: c.Cluster, Region: c.Region},
		kept:    ledger.New(),
	}
}

// Open opens the image, or makes an empty one, and loads all of it. Any byte
// that is not as it was written is an error that says what to do.
func Open(cfg Config) (*Image, *ledger.State, error) {
	m := cfg.image(cfg.Path)
	// What a crash left of a rebuild was never in use.
	if err := os.Remove(m.path + ".new"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("image: %w", err)
	}
	if _, err := os.Stat(m.path); errors.Is(err, os.ErrNotExist) {
		if err := m.create(m.path); err != nil {
			return nil, nil, err
		}
		return m, ledger.New(), nil
	}
	state, err := m.load()
	switch {
	case err == nil:
		return m, state, nil
	case errors.Is(err, controlplane.ErrUnknownEntry), errors.Is(err, controlplane.ErrWrongCluster), errors.Is(err, seal.ErrUnknownKey), IsFull(err):
		err = fmt.Errorf("image %s: %w", m.path, err)
	default:
		err = fmt.Errorf("the image %s is damaged: %w: move that one file away and start again; the node rebuilds it from its snapshot and log", m.path, err)
	}
	return nil, nil, errors.Join(err, m.Close())
}

func (m *Image) openFile(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:      time.Second,
		FreelistType: bbolt.FreelistMapType, // the array type grows slow with the file
		// Growing the map waits for readers, and a snapshot is a long one:
		// take address space, which costs nothing, ahead.
		InitialMmapSize: 1 << 30,
	})
	if err != nil {
		return err
	}
	db.AllocSize = 2 << 20 // the file grows by this much
	m.db = db
	return nil
}

// create makes an empty image at path and opens it.
func (m *Image) create(path string) error {
	var err error
	if m.box, m.header, err = m.cfg.Sealer.NewBox(m.context); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if err := m.openFile(path); err != nil {
		return fmt.Errorf("image: %w", DiskError(err))
	}
	m.sum.Rows, m.sum.Tags, m.sum.Seals = 0, [tagBytes]byte{}, 0
	m.sum.Applied, m.sum.Term, m.sum.Format = 0, 0, 1
	err = m.db.Update(func(tx *bbolt.Tx) error {
		if err := makeBuckets(tx); err != nil {
			return err
		}
		if err := tx.Bucket([]byte(bucketMeta)).Put(keyBox, m.header); err != nil {
			return err
		}
		return m.putSummary(tx, &m.sum)
	})
	if err != nil {
		return fmt.Errorf("image: %w", DiskError(err))
	}
	return nil
}

func makeBuckets(tx *bbolt.Tx) error {
	for _, name := range append([]string{bucketMeta}, dataBuckets...) {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	return nil
}

func (m *Image) putSummary(tx *bbolt.Tx, sum *summary) error {
	sum.Seals++
	plain, err := strict.Marshal(sum)
	if err != nil {
		return err
	}
	sealed := m.box.Seal(nil, plain, row{bucketMeta, string(keySummary)}.aad())
	return tx.Bucket([]byte(bucketMeta)).Put(keySummary, sealed)
}

// load opens the file, reads every row and builds the state. A byte that is
// not as it was written is an error, whatever it belongs to.
func (m *Image) load() (state *ledger.State, err error) {
	// bbolt trusts its file: damage can make it panic, or touch memory past
	// the file's end.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("bbolt: %v", r)
		}
	}()
	if err := CheckPages(m.path); err != nil {
		return nil, err
	}
	if err := m.openFile(m.path); err != nil {
		return nil, DiskError(err)
	}
	err = m.db.View(func(tx *bbolt.Tx) (err error) {
		if err := m.readMeta(tx); err != nil {
			return err
		}
		state, err = m.readRows(tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	m.kept = state.Clone()
	return state, nil
}

func (m *Image) readMeta(tx *bbolt.Tx) error {
	meta := tx.Bucket([]byte(bucketMeta))
	if meta == nil {
		return errors.New("it has no summary")
	}
	m.header = bytes.Clone(meta.Get(keyBox))
	var err error
	if m.box, err = m.openBox(m.header); err != nil {
		return err
	}
	return m.readSummary(meta.Get(keySummary))
}

func (m *Image) openBox(header []byte) (*seal.Box, error) {
	box, rest, err := m.cfg.Sealer.OpenBox(header, m.context)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, seal.ErrTampered
	}
	return box, nil
}

func (m *Image) readSummary(sealed []byte) error {
	plain, err := m.box.Open(nil, sealed, row{bucketMeta, string(keySummary)}.aad())
	if err != nil {
		return fmt.Errorf("summary: %w", err)
	}
	want := m.sum
	if err := strict.Unmarshal(plain, &m.sum); err != nil {
		return fmt.Errorf("summary: %w", err)
	}
	switch {
	case m.sum.Format < 1 || m.sum.Format > registry.Version:
		return fmt.Errorf("image format %d: %w", m.sum.Format, controlplane.ErrUnknownEntry)
	case m.sum.Cluster != want.Cluster || m.sum.Region != want.Region:
		return fmt.Errorf("image of cluster %q, region %q: %w", m.sum.Cluster, m.sum.Region, controlplane.ErrWrongCluster)
	}
	return nil
}

func (m *Image) readRows(tx *bbolt.Tx) (*ledger.State, error) {
	loader := ledger.NewLoader()
	if err := loader.Version(m.sum.Format); err != nil {
		return nil, err
	}
	var tags [tagBytes]byte
	var rows uint64
	var staged [][]byte
	for _, name := range dataBuckets {
		b := tx.Bucket([]byte(name))
		if b == nil && m.sum.Format == 1 && (name == bucketTail || name == bucketQuarantine) {
			continue
		}
		if b == nil {
			return nil, fmt.Errorf("bucket %s is missing", name)
		}
		err := b.ForEach(func(k, v []byte) error {
			plain, err := m.box.Open(nil, v, row{name, string(k)}.aad())
			if err == nil {
				foldTag(&tags, v)
				rows++
				err = m.loadRow(loader, row{name, string(k)}, plain, &staged)
			}
			if err != nil {
				return fmt.Errorf("row %q of %s: %w", k, name, err)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if rows != m.sum.Rows || tags != m.sum.Tags {
		return nil, fmt.Errorf("it holds %d rows of %d, or an older version of one", rows, m.sum.Rows)
	}
	state, err := loader.State()
	if err != nil {
		return nil, err
	}
	return state, restage(state, staged)
}

func (m *Image) loadRow(loader *ledger.Loader, at row, plain []byte, staged *[][]byte) error {
	if at == rowLife {
		return strict.Unmarshal(plain, &m.life)
	}
	switch at.bucket {
	case bucketShards:
		info, err := registry.DecodeShard(plain, m.sum.Format)
		if err != nil {
			return err
		}
		return loader.Shard(info)
	case bucketTail:
		return loader.Held(shardOf([]byte(at.key)), plain)
	case bucketQuarantine:
		return loader.Quarantined(shardOf([]byte(at.key)), plain)
	case bucketRecords:
		r, err := registry.DecodeRecord(plain)
		if err != nil {
			return err
		}
		return loader.Record(r)
	case bucketRevocations:
		var r registry.Revocation
		if err := strict.Unmarshal(plain, &r); err != nil {
			return err
		}
		return loader.Revocation(r)
	default:
		*staged = append(*staged, plain)
		return nil
	}
}

// restage replays the chunks of unfinished shard snapshots.
func restage(state *ledger.State, staged [][]byte) error {
	for _, b := range staged {
		cmd, err := registry.DecodeCommand(b)
		if err != nil {
			return err
		}
		if out := state.Apply(cmd); out.Err != nil {
			return fmt.Errorf("staged chunk: %w", out.Err)
		}
	}
	return nil
}

// foldTag adds or removes the authentication tag that ends every sealed value.
func foldTag(into *[tagBytes]byte, sealed []byte) {
	if len(sealed) >= tagBytes {
		subtle.XORBytes(into[:], into[:], sealed[len(sealed)-tagBytes:])
	}
}

// Mark returns how far the image is.
func (m *Image) Mark() Mark { return Mark{m.sum.Applied, m.sum.Term} }

// write makes b durable: all of it, or none.
func (m *Image) write(b *batch) error {
	if m.db == nil {
		return errors.New("the image is closed")
	}
	next := m.sum
	next.Applied, next.Term, next.Format = b.at.Applied, b.at.Term, b.format
	err := m.db.Update(func(tx *bbolt.Tx) error {
		if err := makeBuckets(tx); err != nil {
			return err
		}
		for _, c := range b.clear {
			if err := clearRows(tx, c, &next); err != nil {
				return err
			}
		}
		if len(b.clear) > 0 { // whole shards, in order
			for _, name := range dataBuckets {
				tx.Bucket([]byte(name)).FillPercent = dense
			}
		}
		// In key order, pages are written once.
		for _, r := range slices.SortedFunc(maps.Keys(b.rows), compareRows) {
			if err := m.putRow(tx, r, b.rows[r], &next); err != nil {
				return err
			}
		}
		return m.putSummary(tx, &next)
	})
	if err != nil {
		return fmt.Errorf("write the image %s: %w", m.path, DiskError(err))
	}
	m.sum = next
	if m.sum.Seals >= resealAfter {
		return m.reseal()
	}
	return nil
}

// dense is how full pages become of rows that come in order.
const dense = 0.9

func compareRows(a, b row) int {
	if c := bytes.Compare([]byte(a.bucket), []byte(b.bucket)); c != 0 {
		return c
	}
	return bytes.Compare([]byte(a.key), []byte(b.key))
}

func clearRows(tx *bbolt.Tx, c row, sum *summary) error {
	b := tx.Bucket([]byte(c.bucket))
	cur, prefix := b.Cursor(), []byte(c.key)
	var keys [][]byte // a cursor loses its place when its rows go
	for k, v := cur.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = cur.Next() {
		foldTag(&sum.Tags, v)
		sum.Rows--
		keys = append(keys, k)
	}
	for _, k := range keys {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

func (m *Image) putRow(tx *bbolt.Tx, r row, plain []byte, sum *summary) error {
	b := tx.Bucket([]byte(r.bucket))
	if old := b.Get([]byte(r.key)); old != nil {
		foldTag(&sum.Tags, old)
		sum.Rows--
	}
	if plain == nil {
		return b.Delete([]byte(r.key))
	}
	sealed := m.box.Seal(nil, plain, r.aad())
	foldTag(&sum.Tags, sealed)
	sum.Rows++
	sum.Seals++
	return b.Put([]byte(r.key), sealed)
}

// Close waits for views and closes the file. A closed Image may be closed again.
func (m *Image) Close() error {
	if m.db == nil {
		return nil
	}
	err := m.db.Close()
	m.db = nil
	return err
}
