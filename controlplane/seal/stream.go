package seal

import (
	"bufio"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// MaxFrame is the most plaintext bytes one frame holds.
const MaxFrame = 16 << 20

// A stream is a header and then frames, each u32 length (big endian) and that
// many sealed bytes. A frame's nonce is its number, and its additional data
// bind context, number and whether it is the last: frames cannot be dropped,
// swapped or cut off unnoticed. Close writes an empty last frame.
//
// A stream is never appended to after a restart: a lost tail would make two
// frames share a number and so a nonce. Open a new one instead.

// Writer writes one stream. It belongs to one goroutine.
type Writer struct {
	w      io.Writer
	frames frames
	buf    []byte
	err    error // the first failure; later calls repeat it
}

// NewWriter writes a stream's header to w and returns its Writer. Every frame
// is one Write to w; flushing and syncing w is the caller's business.
func (s *Sealer) NewWriter(w io.Writer, context string) (*Writer, error) {
	block, prefix, header, err := s.create(flagStream, context)
	if err != nil {
		return nil, err
	}
	frames, err := newFrames(block, prefix)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(header); err != nil {
		return nil, fmt.Errorf("seal: write header: %w", err)
	}
	return &Writer{w: w, frames: frames}, nil
}

// Frame seals p as the next frame. After an error the stream is lost: write
// another from the start.
func (w *Writer) Frame(p []byte) error {
	if len(p) > MaxFrame {
		return fmt.Errorf("seal: frame of %d bytes, at most %d fit: split it", len(p), MaxFrame)
	}
	return w.frame(p, false)
}

// Close writes the end mark. It does not close the underlying writer. A stream
// left without Close reads as truncated.
func (w *Writer) Close() error {
	if err := w.frame(nil, true); err != nil {
		return err
	}
	w.err = errors.New("seal: the stream is closed")
	return nil
}

func (w *Writer) frame(p []byte, final bool) error {
	if w.err != nil {
		return w.err
	}
	w.buf = binary.BigEndian.AppendUint32(w.buf[:0], uint32(len(p)+tagLen))
	nonce, aad := w.frames.next(final)
	w.buf = w.frames.aead.Seal(w.buf, nonce, p, aad)
	if _, err := w.w.Write(w.buf); err != nil {
		w.err = fmt.Errorf("seal: write frame: %w", err)
	}
	return w.err
}

// Reader reads one stream. It belongs to one goroutine.
type Reader struct {
	r      *bufio.Reader
	frames frames
	offset int64
	buf    []byte
	err    error
}

// NewReader reads a stream's header from r.
func (s *Sealer) NewReader(r io.Reader, context string) (*Reader, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	header, err := readHeader(br)
	if err != nil {
		return nil, err
	}
	block, prefix, _, err := s.open(flagStream, header, context)
	if err != nil {
		return nil, err
	}
	frames, err := newFrames(block, prefix)
	if err != nil {
		return nil, err
	}
	return &Reader{r: br, frames: frames, offset: int64(len(header))}, nil
}

// Next returns the next frame's plaintext, valid until the next call. It
// returns io.EOF only after the end mark; ErrTruncated if the stream ends
// before it, which is how the tail of a log in use looks; ErrTampered if a
// whole frame does not open or something follows the end mark.
func (r *Reader) Next() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	plain, err := r.read()
	r.err = err
	return plain, err
}

// Offset is how many bytes of the stream, from its header, read well so far.
func (r *Reader) Offset() int64 { return r.offset }

func (r *Reader) read() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return nil, endsEarly(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	switch {
	case n == 0:
		// A crash can leave a tail of zeros where the file had grown.
		return nil, ErrTruncated
	case n < tagLen || n > MaxFrame+tagLen:
		return nil, ErrTampered
	}
	if cap(r.buf) < int(n) {
		r.buf = make([]byte, n)
	}
	sealed := r.buf[:n]
	if _, err := io.ReadFull(r.r, sealed); err != nil {
		return nil, endsEarly(err)
	}
	return r.unseal(sealed)
}

// unseal opens one frame. Only an empty one can be the end mark, so only that
// is tried both ways.
func (r *Reader) unseal(sealed []byte) ([]byte, error) {
	nonce, aad := r.frames.next(false)
	if len(sealed) == tagLen {
		end := append([]byte(nil), aad...)
		end[len(end)-1] = 1
		if _, err := r.frames.aead.Open(nil, nonce, sealed, end); err == nil {
			return nil, r.atEnd()
		}
	}
	plain, err := r.frames.aead.Open(sealed[:0], nonce, sealed, aad)
	if err != nil {
		return nil, ErrTampered
	}
	r.offset += int64(4 + len(sealed))
	return plain, nil
}

func (r *Reader) atEnd() error {
	r.offset += 4 + tagLen
	switch _, err := r.r.ReadByte(); {
	case errors.Is(err, io.EOF):
		return io.EOF
	case err != nil:
		return err
	default:
		return fmt.Errorf("seal: data after the end mark: %w", ErrTampered)
	}
}

// frames numbers the frames of one stream, for writing or for reading.
type frames struct {
	aead   cipher.AEAD
	number uint64
	nonce  [nonceLen]byte
	aad    []byte // bound prefix | number u64 | final u8
	fixed  int
}

func newFrames(block cipher.Block, prefix []byte) (frames, error) {
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return frames{}, fmt.Errorf("seal: %w", err)
	}
	return frames{aead: aead, aad: append(prefix, make([]byte, 9)...), fixed: len(prefix)}, nil
}

func (f *frames) next(final bool) (nonce, aad []byte) {
	binary.BigEndian.PutUint64(f.nonce[nonceLen-8:], f.number)
	binary.BigEndian.PutUint64(f.aad[f.fixed:], f.number)
	f.aad[f.fixed+8] = 0
	if final {
		f.aad[f.fixed+8] = 1
	}
	f.number++
	return f.nonce[:], f.aad
}
