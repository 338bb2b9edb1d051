package image

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"go.etcd.io/bbolt"

	"ringmain/controlplane"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
)

// A dump is a consistent copy of the image as raft ships it: a magic, the
// image's box header and sealed summary, then its rows as they are, each
// bucket u8, key and value with u32 lengths. Its end is the end of the file;
// the summary says how many rows there must be.
const dumpMagic = "rmQ1"

const maxDumpPart = 64 << 20 // bytes of one key or value

// View is the image as it was when taken, whatever is written after.
type View struct {
	tx   *bbolt.Tx
	once sync.Once
}

// View opens a view. While it is open the file cannot shrink or be closed.
func (m *Image) View() (*View, error) {
	if m.db == nil {
		return nil, errors.New("the image is closed")
	}
	tx, err := m.db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("view of the image: %w", err)
	}
	return &View{tx: tx}, nil
}

// Release ends the view. It may be called again.
func (v *View) Release() {
	v.once.Do(func() { _ = v.tx.Rollback() }) // read only: there is nothing to lose
}

// Dump writes the view for Replace on this or another node of the region. The
// rows leave as they are sealed.
func (v *View) Dump(to io.Writer) error { return DiskError(dump(v.tx, to)) }

// DumpMark reads how far the dump at the start of r is.
func (m *Image) DumpMark(r io.Reader) (Mark, error) {
	head := m.cfg.image("")
	err := head.dumpHead(bufio.NewReader(r))
	return head.Mark(), err
}

func dump(tx *bbolt.Tx, to io.Writer) error {
	w := bufio.NewWriterSize(to, 256<<10)
	meta := tx.Bucket([]byte(bucketMeta))
	if _, err := w.WriteString(dumpMagic); err != nil {
		return err
	}
	for _, part := range [][]byte{meta.Get(keyBox), meta.Get(keySummary)} {
		if err := writePart(w, part); err != nil {
			return err
		}
	}
	for i, name := range dataBuckets {
		b := tx.Bucket([]byte(name))
		if b == nil {
			continue // of a file of format 1
		}
		err := b.ForEach(func(k, v []byte) error {
			if err := w.WriteByte(byte(i)); err != nil {
				return err
			}
			if err := writePart(w, k); err != nil {
				return err
			}
			return writePart(w, v)
		})
		if err != nil {
			return err
		}
	}
	return w.Flush()
}

func writePart(w *bufio.Writer, part []byte) error {
	if _, err := w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part)))); err != nil {
		return err
	}
	_, err := w.Write(part)
	return err
}

func readPart(r *bufio.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, noEOF(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxDumpPart {
		return nil, seal.ErrTampered
	}
	part := make([]byte, n)
	_, err := io.ReadFull(r, part)
	return part, noEOF(err)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// dumpHead opens the beginning of a dump.
func (m *Image) dumpHead(r *bufio.Reader) error {
	magic := make([]byte, len(dumpMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return noEOF(err)
	}
	if string(magic) != dumpMagic {
		return fmt.Errorf("%w: snapshot of another format", controlplane.ErrUnknownEntry)
	}
	header, err := readPart(r)
	if err != nil {
		return err
	}
	if m.box, err = m.openBox(header); err != nil {
		return err
	}
	m.header = header
	sealed, err := readPart(r)
	if err != nil {
		return err
	}
	return m.readSummary(sealed)
}

// Replace makes the dump read from r the new image, and loads it. Until it is
// whole and durable the old one stays. A dump from before least is refused:
// state never goes back.
func (m *Image) Replace(r io.Reader, least Mark) (*ledger.State, error) {
	n := m.cfg.image(m.path + ".new")
	state, err := n.build(bufio.NewReaderSize(r, 256<<10), least)
	if err == nil {
		err = m.swap(n)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("restore a snapshot: %w", DiskError(err)), n.Close())
	}
	m.kept = state.Clone()
	return state, nil
}

func (m *Image) build(r *bufio.Reader, least Mark) (*ledger.State, error) {
	if err := os.Remove(m.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	head := *m
	if err := head.dumpHead(r); err != nil {
		return nil, err
	}
	if head.sum.Applied < least.Applied {
		return nil, fmt.Errorf("it ends at entry %d, and entry %d is applied here", head.sum.Applied, least.Applied)
	}
	if err := m.create(m.path); err != nil {
		return nil, err
	}
	// Rows keep their seal: the box of the dump becomes the image's.
	m.box, m.header, m.sum = head.box, head.header, head.sum
	for done := false; !done; {
		err := m.db.Update(func(tx *bbolt.Tx) (err error) {
			done, err = copyRows(tx, r)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	err := m.db.Update(func(tx *bbolt.Tx) error {
		if err := tx.Bucket([]byte(bucketMeta)).Put(keyBox, m.header); err != nil {
			return err
		}
		return m.putSummary(tx, &m.sum)
	})
	if err != nil {
		return nil, err
	}
	if err := m.Close(); err != nil {
		return nil, err
	}
	return m.load()
}

// copyRows copies up to 50,000 rows and says whether they were the last.
func copyRows(tx *bbolt.Tx, r *bufio.Reader) (done bool, err error) {
	for range 50_000 {
		b, err := r.ReadByte()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if int(b) >= len(dataBuckets) {
			return false, seal.ErrTampered
		}
		key, err := readPart(r)
		if err != nil {
			return false, err
		}
		value, err := readPart(r)
		if err != nil {
			return false, err
		}
		bucket := tx.Bucket([]byte(dataBuckets[b]))
		bucket.FillPercent = dense
		if err := bucket.Put(key, value); err != nil {
			return false, err
		}
	}
	return false, nil
}

// swap puts n, which is complete, in the place of m.
func (m *Image) swap(n *Image) error {
	if err := errors.Join(n.Close(), m.Close()); err != nil {
		return err
	}
	err := os.Rename(n.path, m.path)
	if err == nil {
		m.box, m.header, m.sum, m.infos, m.life = n.box, n.header, n.sum, nil, n.life
		err = SyncDir(filepath.Dir(m.path))
	}
	return errors.Join(err, m.openFile(m.path))
}

// reseal rewrites the image under a new data key.
func (m *Image) reseal() error {
	n := m.cfg.image(m.path + ".new")
	if err := os.Remove(n.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := n.create(n.path); err != nil {
		return err
	}
	next := n.sum
	next.Applied, next.Term, next.Format = m.sum.Applied, m.sum.Term, m.sum.Format
	err := n.db.Update(func(to *bbolt.Tx) error {
		err := m.db.View(func(from *bbolt.Tx) error {
			for _, name := range dataBuckets {
				b := from.Bucket([]byte(name))
				if b == nil {
					continue
				}
				err := b.ForEach(func(k, v []byte) error {
					r := row{name, string(k)}
					plain, err := m.box.Open(nil, v, r.aad())
					if err != nil {
						return fmt.Errorf("row %q of %s: %w", k, name, err)
					}
					return n.putRow(to, r, plain, &next)
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		return n.putSummary(to, &next)
	})
	if err == nil {
		n.sum, n.life = next, m.life
		err = m.swap(n)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("reseal the image: %w", DiskError(err)), n.Close())
	}
	return nil
}
