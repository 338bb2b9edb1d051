package registry

import "ringmain/controlplane"

// Revocation is one member of the grow-only safety set. Nothing undoes it.
type Revocation struct {
	_       struct{} `cbor:",toarray"`
	Kind    Kind
	ID      string
	Shard   controlplane.Shard
	At      int64 // Unix milliseconds
	Expires int64 // Unix milliseconds when the credential would have ended by itself; 0 = never
}
