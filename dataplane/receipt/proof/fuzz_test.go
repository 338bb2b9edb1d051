package proof

import "testing"

// FuzzBatch: a keeper parses what a worker sends, and looks receipts up in it.
func FuzzBatch(f *testing.F) {
	ca, now := newAuthority(f)
	b := sealSome(f, newTestSigner(f, ca.node(f, "eu-fra", "eu-fra-d1")), now, 3)
	for _, encode := range []func() ([]byte, error){b.Encode, b.Bare} {
		raw, err := encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, requestID(now, 1))
	}
	f.Fuzz(func(t *testing.T, raw []byte, id string) {
		b, err := ParseBatch(raw)
		if err != nil {
			return
		}
		if e := b.Find(id); e != nil {
			if e.Facts().RequestID != id {
				t.Fatalf("asked for %q, found %q", id, e.Facts().RequestID)
			}
			raw, err := e.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if e, err = DecodeEntry(raw); err != nil {
				t.Fatal(err)
			}
			if _, err := e.Document(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
