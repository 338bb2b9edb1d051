package trial

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fxamacker/cbor/v2"

	"ringmain/controlplane/seal"
)

// FileName is the ledger's, in a data node's directory.
const FileName = "trials.sealed"

// File keeps a ledger, sealed, as one blob that each change replaces.
type File struct {
	Dir    string // the node's data directory
	Name   string // "<cluster>/<node>", bound into the file
	Sealer *seal.Sealer
}

func (f File) context() string { return "trials/" + f.Name }

// Load reads the ledger; an empty one if there is none. With an error that is
// not of seal's keys or versions it may be started anew: it holds nothing that
// cannot be found out again.
func (f File) Load() (*Ledger, error) {
	b, err := os.ReadFile(filepath.Join(f.Dir, FileName))
	if errors.Is(err, fs.ErrNotExist) {
		return new(Ledger), nil
	}
	l := new(Ledger)
	if err == nil {
		b, err = f.Sealer.OpenBlob(f.context(), b, nil)
	}
	if err == nil {
		l, err = decode(b)
	}
	if err != nil {
		return new(Ledger), fmt.Errorf("ledger of crashes %s: %w", filepath.Join(f.Dir, FileName), err)
	}
	return l, nil
}

// Save puts l in the file's place, on the medium: it counts before the next try.
func (f File) Save(l *Ledger) error {
	b, err := encode(l)
	if err == nil {
		b, err = f.Sealer.SealBlob(f.context(), b, nil)
	}
	if err != nil {
		return fmt.Errorf("ledger of crashes: %w", err)
	}
	if err := replace(filepath.Join(f.Dir, FileName), b); err != nil {
		return fmt.Errorf("ledger of crashes: %w", err)
	}
	return nil
}

var encMode, decMode = func() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // the options are constant
	}
	dec, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
}()

func encode(l *Ledger) ([]byte, error) { return encMode.Marshal(l) }

// decode reads a ledger that makes sense.
func decode(b []byte) (*Ledger, error) {
	l := new(Ledger)
	if err := decMode.Unmarshal(b, l); err != nil {
		return nil, err
	}
	for _, s := range l.Suspects {
		if s.From > s.To || s.Deaths < 1 {
			return nil, fmt.Errorf("suspect %+v", s)
		}
	}
	for _, i := range l.Isolated {
		if i.From > i.To {
			return nil, fmt.Errorf("isolated %s", i.Span)
		}
	}
	return l, nil
}

func replace(path string, b []byte) (err error) {
	tmp := path + ".new"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}
