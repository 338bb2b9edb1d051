package controlplane

import (
	"errors"
	"fmt"
)

// Sentinels. Each names the caller's next move.
var (
	// ErrNotLeader: ask the region's leader. Nothing was written.
	ErrNotLeader = errors.New("this node does not lead its region: ask the leader")
	// ErrNoLeader: the region is electing; retry after a second. Nothing was written.
	ErrNoLeader = errors.New("the region has no leader at the moment: retry in a second")
	// ErrNotHome: another region writes this shard; forward to it.
	ErrNotHome = errors.New("another region is the home of this shard: forward to it")
	// ErrNoHome: the shard's home is sealed, or not confirmed yet; retry after a second. Nothing was written.
	ErrNoHome = errors.New("the shard's home is being changed or confirmed: retry in a second")
	// ErrTailFull: the other regions must confirm before more is written; see to their connection. Nothing was written.
	ErrTailFull = errors.New("too many writes wait for other regions to confirm them: restore the connection to those, then retry")
	// ErrUncertain: the write may or may not have been committed; read before retrying.
	ErrUncertain = errors.New("the write may or may not have been committed: read before retrying")
	// ErrUnreachable: the region that must answer cannot be reached; retry later.
	ErrUnreachable = errors.New("the region that must answer cannot be reached: retry later")
	// ErrOverloaded: too many writes are waiting; retry after a second. Nothing was written.
	ErrOverloaded = errors.New("too many writes are waiting: retry in a second")
	// ErrWrongCluster: the data directory or peer belongs to another cluster; fix the configuration.
	ErrWrongCluster = errors.New("belongs to another cluster: point to the right directory or peer")
	// ErrUnknownEntry: the log holds an entry this version cannot read; upgrade the node. Never skip it.
	ErrUnknownEntry = errors.New("the log holds an entry this version does not know: upgrade this node")
	// ErrDiskFull: free space on the data directory's disk, then retry.
	ErrDiskFull = errors.New("the disk is full: free space, then retry")
)

// RuleCode classifies why the registry's rules refused a change.
type RuleCode string

// Reasons for which a change is refused.
const (
	RuleInvalid   RuleCode = "invalid"   // a field is wrong: 422
	RuleNotFound  RuleCode = "not_found" // the record, or one it refers to, is absent: 404
	RuleConflict  RuleCode = "conflict"  // the record exists already, or is still referred to: 409
	RuleRevision  RuleCode = "revision"  // the record moved on since it was read: 412
	RuleForbidden RuleCode = "forbidden" // the plan or state of the org does not allow it: 403
)

// RuleError is a refusal by the registry's rules. It is the same on every node.
type RuleError struct {
	_       struct{} `cbor:",toarray"`
	Code    RuleCode
	Field   string // path of the offending field, such as "upstreams[1].terms.retention"; may be empty
	Message string // says what to do; safe to show to the caller
}

func (e *RuleError) Error() string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + ": " + e.Message
}

// Refuse builds a RuleError.
func Refuse(code RuleCode, field, format string, args ...any) *RuleError {
	return &RuleError{Code: code, Field: field, Message: fmt.Sprintf(format, args...)}
}
