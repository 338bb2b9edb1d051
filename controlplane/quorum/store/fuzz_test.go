package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"

	"ringmain/internal/testkit/diskkit"
)

// FuzzOwner: whatever says whose a directory is, it is read as of this format
// or named, and never taken for a file that is not there.
func FuzzOwner(f *testing.F) {
	f.Add([]byte(`{"format":1,"cluster":"test","region":"us-east","node":"us-east-c1"}`))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte("null"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, nameOwner), b, 0o600); err != nil {
			t.Fatal(err)
		}
		own, err := ReadOwner(dir)
		if err == nil && own.Format != 1 || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %+v, %v", b, own, err)
		}
	})
}

// FuzzVoucher: a snapshot whose description is not what its voucher vouches for
// is never listed.
func FuzzVoucher(f *testing.F) {
	const id = "2-5-1700000000000"
	cfg := Config{Cluster: "test", Region: "us-east", Sealer: diskkit.Sealer(f), Logger: hclog.NewNullLogger()}
	meta := []byte(`{"Version":1,"ID":"` + id + `","Index":5,"Term":2,"Peers":"","Configuration":{"Servers":[]},"ConfigurationIndex":1,"Size":0,"CRC":"AAAAAAAAAAA="}`)
	f.Add(meta, []byte(nil), true)
	f.Add(meta, []byte("no voucher"), false)
	f.Add(bytes.Replace(meta, []byte(`"Index":5`), []byte(`"Index":6`), 1), []byte(nil), false)
	f.Add([]byte("{}"), []byte{1}, false)
	f.Fuzz(func(t *testing.T, text, voucher []byte, vouched bool) {
		cfg := cfg
		cfg.Dir = t.TempDir()
		s, err := OpenSnapshots(cfg)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(s.dir, id)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if vouched {
			sum := sha256.Sum256(text)
			if voucher, err = s.sealer.SealBlob(s.context, sum[:], []byte(id)); err != nil {
				t.Fatal(err)
			}
		}
		for name, b := range map[string][]byte{nameMeta: text, nameVoucher: voucher, "state.bin": nil} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		metas, err := s.List()
		for _, m := range metas {
			if m.ID == id && !vouched {
				t.Errorf("%q is listed", text)
			}
		}
		if vouched && bytes.Equal(text, meta) && (err != nil || len(metas) != 1) {
			t.Errorf("%d listed, %v", len(metas), err)
		}
	})
}
