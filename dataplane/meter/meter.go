// Package meter holds the metadata record: the declared list of fields that is
// all ringmain keeps about a request. Content, whole keys, addresses and
// header values have no field here, and must not get one.
package meter

import (
	"errors"
	"fmt"

	"ringmain/controlplane/strict"
)

// Version is the first byte of every encoded Record. Fields that are left out
// when empty may be added without changing it: what was written before decodes.
const Version = 1

// Role says which node made a record.
type Role string

// Roles. The front record is what an answer is billed by; the witness record
// carries the same id and is made by the node that executed a forwarded request.
const (
	RoleFront   Role = "front"
	RoleWitness Role = "witness"
)

// Source says where token counts come from.
type Source string

// Sources. Estimated counts stand for four bytes of text a token.
const (
	SourceProvider  Source = "provider"
	SourceEstimated Source = "estimated"
	SourceNone      Source = "none" // nothing was generated
)

// End says how the answer ended.
type End string

// Ends.
const (
	EndComplete   End = "complete"    // all of it was written; whether the last of that arrived, nobody knows
	EndTruncated  End = "truncated"   // it began, and ended with an in-band error, or the connection with it
	EndClientGone End = "client_gone" // the client went away first, or took nothing for too long
	EndError      End = "error"       // an error answer
)

// Record is the metadata of one answered request.
type Record struct {
	Role         Role   `cbor:"1,keyasint" json:"role"`
	RequestID    string `cbor:"2,keyasint" json:"request_id"`
	At           int64  `cbor:"3,keyasint" json:"at"` // Unix milliseconds when the request arrived
	Endpoint     string `cbor:"4,keyasint" json:"endpoint"`
	Key          string `cbor:"5,keyasint,omitempty" json:"key,omitempty"` // record id of the key, never the key
	Org          string `cbor:"6,keyasint,omitempty" json:"org,omitempty"`
	Project      string `cbor:"7,keyasint,omitempty" json:"project,omitempty"` // billed
	Model        string `cbor:"8,keyasint,omitempty" json:"model,omitempty"`   // asked for; only a name that a route has
	Served       string `cbor:"9,keyasint,omitempty" json:"served,omitempty"`  // the model's name at the upstream
	Upstream     string `cbor:"10,keyasint,omitempty" json:"upstream,omitempty"`
	EntryRegion  string `cbor:"11,keyasint" json:"entry_region"`
	EntryNode    string `cbor:"12,keyasint" json:"entry_node"`
	Region       string `cbor:"13,keyasint" json:"region"` // where it was executed
	Node         string `cbor:"14,keyasint" json:"node"`
	Residency    string `cbor:"15,keyasint,omitempty" json:"residency,omitempty"` // jurisdiction, or unpinned
	Status       int    `cbor:"16,keyasint" json:"status"`
	Code         string `cbor:"17,keyasint,omitempty" json:"code,omitempty"`
	Streamed     bool   `cbor:"18,keyasint,omitempty" json:"streamed,omitempty"`
	TokensIn     int64  `cbor:"19,keyasint,omitempty" json:"tokens_in,omitempty"`
	TokensOut    int64  `cbor:"20,keyasint,omitempty" json:"tokens_out,omitempty"`
	CacheRead    int64  `cbor:"21,keyasint,omitempty" json:"cache_read,omitempty"`  // tokens the provider read from its prompt cache
	CacheWrite   int64  `cbor:"22,keyasint,omitempty" json:"cache_write,omitempty"` // tokens it wrote there
	Source       Source `cbor:"23,keyasint" json:"source"`
	LatencyMS    int64  `cbor:"24,keyasint" json:"latency_ms"` // until the record was made, right before the last byte
	FirstTokenMS int64  `cbor:"25,keyasint,omitempty" json:"first_token_ms,omitempty"`
	Attempts     int    `cbor:"26,keyasint" json:"attempts"`
	Refused      bool   `cbor:"27,keyasint,omitempty" json:"refused,omitempty"`
	Ended        End    `cbor:"28,keyasint" json:"ended"`
	Pool         string `cbor:"29,keyasint,omitempty" json:"pool,omitempty"`
	Retention    string `cbor:"30,keyasint,omitempty" json:"retention,omitempty"` // zero or metadata
	Plan         string `cbor:"31,keyasint,omitempty" json:"plan,omitempty"`
	Fallback     string `cbor:"32,keyasint,omitempty" json:"fallback,omitempty"` // the model that stood in for Model
	Splices      int    `cbor:"33,keyasint,omitempty" json:"splices,omitempty"`
	ReplayIn     int64  `cbor:"34,keyasint,omitempty" json:"replay_in,omitempty"`
	ReplayOut    int64  `cbor:"35,keyasint,omitempty" json:"replay_out,omitempty"`
	Receipt      string `cbor:"36,keyasint,omitempty" json:"receipt,omitempty"` // leaf id
}

// ErrFormat says that bytes are no record of this version.
var ErrFormat = errors.New("not a metadata record of this version: upgrade the reader")

// Decode reads what Append wrote; anything else is ErrFormat.
func Decode(b []byte) (*Record, error) {
	if len(b) == 0 || b[0] != Version {
		return nil, fmt.Errorf("%w: version byte %.1x", ErrFormat, b)
	}
	r := new(Record)
	if err := strict.Unmarshal(b[1:], r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return r, nil
}
