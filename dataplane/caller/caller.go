// Package caller turns a presented API key into the key, project and org it
// stands for, or into the reason why not. It answers from memory: nothing here
// waits for a disk, the control plane or another node.
//
// Whole keys exist in this room only as arguments; they are never kept, logged
// or put into an error.
package caller

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"hash"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/view"
)

// Refusal says why a caller is turned away. Code is one of the wire contract's.
type Refusal struct {
	Code    string
	Message string
	// Jurisdiction, with wrong_jurisdiction, is where the key may be used.
	Jurisdiction string
	// Stranger: nothing shows that a customer asks. Whoever makes up keys gets
	// such refusals only, so a source that gets many may be made to wait.
	Stranger bool
}

// One text for a key that is missing, wrong, revoked or expired: which of them
// it is helps nobody but a thief.
var (
	errInvalid    = &Refusal{Code: "invalid_api_key", Stranger: true, Message: "The API key is missing or not valid: send a current key as `Authorization: Bearer idc_...` or `x-api-key`."}
	errNotReady   = &Refusal{Code: "not_ready", Message: "This node cannot judge the API key yet: retry shortly."}
	errStale      = &Refusal{Code: "not_ready", Message: "This node has heard nothing of its control plane for too long to judge the API key: retry shortly."}
	errUnheard    = &Refusal{Code: "not_ready", Stranger: true, Message: errNotReady.Message}
	errBusy       = &Refusal{Code: "capacity_shed", Stranger: true, Message: "Too many keys are being checked for the first time: retry shortly."}
	errBudget     = &Refusal{Code: "rate_limit_exceeded", Stranger: true, Message: "Too many failed attempts with this key id: check the key, and retry later."}
	errTwoKeys    = &Refusal{Code: "invalid_header", Stranger: true, Message: "`authorization` and `x-api-key` must each be given at most once, and agree: send one key."}
	errSuspended  = &Refusal{Code: "account_suspended", Message: "The organisation of this key is suspended: ask its owner to contact support."}
	errUnverified = &Refusal{Code: "account_unverified", Message: "The organisation of this key is not verified yet: complete verification, or use a test key."}
)

// States of an org that let live keys through, or not.
const (
	orgVerified   = "verified"
	orgUnverified = "unverified"
)

// grace is how much older than the state a key may be and still not have
// arrived here, and how old the state may be for a secret to be wrong by it.
const grace = time.Minute

// Config of a Checker.
type Config struct {
	Store        *view.Store
	Jurisdiction string // of this node's region
	// VerdictSecret is shared by the cluster; empty = verdicts are local to this checker.
	VerdictSecret []byte
	// Emit is told of each new verdict, to share it; it must not block. May be nil.
	Emit func(feed.Verdict)
	// Counted is told the result of each bcrypt: good, bad, error. May be nil.
	Counted func(result string)
	Now     func() time.Time // nil = time.Now
	// MaxAge is, by class, how old the state may be before keys of the class are
	// refused with not_ready: one may have been revoked meanwhile. 0 = any age.
	MaxAge map[string]time.Duration
	// Workers bounds bcrypts at once [half the CPUs], Queue those that wait [64].
	Workers, Queue int
}

// Checker checks keys. It is safe for concurrent use.
type Checker struct {
	cfg    Config
	keys   atomic.Pointer[dayKeys]
	slow   *slowLane
	former *formers
}

// dayKeys are the two verdict keys of one UTC day.
type dayKeys struct {
	day               int64
	current, previous [32]byte
	macs              sync.Pool // of hash.Hash under current, to spare the set-up
}

// verdict is apikey.Verdict under current.
func (k *dayKeys) verdict(key string) (v [32]byte) {
	m, ok := k.macs.Get().(*macState)
	if !ok {
		m = &macState{Hash: hmac.New(sha256.New, k.current[:])}
	}
	m.Reset()
	m.in = append(m.in[:0], key...)
	_, _ = m.Write(m.in) // never fails
	m.Sum(v[:0])
	clear(m.in)
	k.macs.Put(m)
	return v
}

type macState struct {
	hash.Hash
	in []byte
}

// New makes a Checker.
func New(cfg Config) *Checker {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Emit == nil {
		cfg.Emit = func(feed.Verdict) {}
	}
	if cfg.Counted == nil {
		cfg.Counted = func(string) {}
	}
	if cfg.Workers <= 0 {
		cfg.Workers = max(1, runtime.NumCPU()/2)
	}
	if cfg.Queue <= 0 {
		cfg.Queue = 64
	}
	return &Checker{cfg: cfg, slow: newSlowLane(cfg.Workers, cfg.Queue), former: newFormers()}
}

// Caller is who asks. The records belong to the view.
type Caller struct {
	Key     view.KeyRef
	Project *registry.Record
	Org     *registry.Record
}

// Presented takes the key from the request's headers. It may be empty.
func Presented(h http.Header) (string, *Refusal) {
	auth, other := h["Authorization"], h["X-Api-Key"]
	if len(auth) > 1 || len(other) > 1 {
		return "", errTwoKeys
	}
	key := ""
	if len(auth) == 1 {
		scheme, rest, _ := strings.Cut(auth[0], " ")
		if strings.EqualFold(scheme, "bearer") {
			key = strings.TrimSpace(rest)
		} else if len(other) == 1 {
			return "", errTwoKeys
		}
	}
	if len(other) == 1 {
		if key != "" && key != other[0] {
			return "", errTwoKeys
		}
		key = other[0]
	}
	return key, nil
}

// Check says who presented key. remote is the peer address of the connection;
// failures are budgeted by it.
func (c *Checker) Check(v *view.View, key, remote string) (Caller, *Refusal) {
	p, err := apikey.Parse(key)
	if err != nil {
		return Caller{}, errInvalid
	}
	if p.Jurisdiction != controlplane.JurisdictionAny && p.Jurisdiction != c.cfg.Jurisdiction {
		refused := WrongJurisdiction(p.Jurisdiction)
		refused.Stranger = true // what a key says of itself is easily made up
		return Caller{}, refused
	}
	if !v.Loaded() || v.SafetyUnknown() {
		return Caller{}, errNotReady
	}
	now := c.cfg.Now()
	ref, ok := v.Key(p.RecordID())
	if !ok {
		return Caller{}, c.unknown(v, p, now)
	}
	if ref.Class != p.Class || ref.Revoked != 0 || ref.Expires != 0 && now.UnixMilli() >= ref.Expires {
		return Caller{}, errInvalid
	}
	if c.stale(v, p.Class, p.Jurisdiction, now) {
		return Caller{}, errStale
	}
	refused := c.secret(&ref, key, remote, now)
	if refused == errInvalid {
		// It may be a new secret whose record came while the former was hashed,
		// or one whose record has no way here at the moment.
		latest := c.cfg.Store.View()
		if is, ok := latest.Key(ref.ID); ok && is.Revision != ref.Revision {
			return c.Check(latest, key, remote)
		}
		if now.After(latest.AsOf(p.Jurisdiction).Add(grace)) {
			return Caller{}, errUnheard
		}
	}
	if refused != nil {
		return Caller{}, refused
	}
	return resolve(v, ref)
}

// WrongJurisdiction is the refusal of a request that entered outside the
// jurisdiction it is pinned to.
func WrongJurisdiction(jurisdiction string) *Refusal {
	return &Refusal{
		Code:         "wrong_jurisdiction",
		Message:      "This request is pinned to jurisdiction `" + jurisdiction + "` and entered elsewhere: use the host that `idc-endpoint` names.",
		Jurisdiction: jurisdiction,
	}
}

// unknown tells a key that never was from one that has not arrived here yet.
func (c *Checker) unknown(v *view.View, p apikey.Parsed, now time.Time) *Refusal {
	if _, gone := v.Revoked(registry.KindKey, p.RecordID()); gone {
		return errInvalid // its record is deleted
	}
	created, asOf := p.Created(), v.AsOf(p.Jurisdiction)
	if created.After(now.Add(grace)) && created.After(asOf.Add(grace)) {
		return errInvalid // nobody can have issued it, by no clock
	}
	if asOf.IsZero() || created.After(asOf.Add(-grace)) {
		return errUnheard
	}
	return errInvalid
}

// Known finds the caller of a request that another node of the cluster
// authenticated. behind: this node's state lacks a record of it.
func (c *Checker) Known(v *view.View, keyID string) (caller Caller, refused *Refusal, behind bool) {
	if !v.Loaded() || v.SafetyUnknown() {
		return Caller{}, errNotReady, true
	}
	ref, ok := v.Key(keyID)
	if !ok {
		return Caller{}, errNotReady, true
	}
	if ref.Revoked != 0 || ref.Expires != 0 && c.cfg.Now().UnixMilli() >= ref.Expires {
		return Caller{}, errInvalid, false
	}
	if parts := strings.SplitN(keyID, "_", 3); len(parts) == 3 && c.stale(v, ref.Class, parts[1], c.cfg.Now()) {
		return Caller{}, errStale, true
	}
	caller, refused = resolve(v, ref)
	return caller, refused, refused != nil && refused.Code == errNotReady.Code
}

// stale reports whether the state is too old to judge a key of the class.
func (c *Checker) stale(v *view.View, class, jurisdiction string, now time.Time) bool {
	most := c.cfg.MaxAge[class]
	return most > 0 && v.Age(jurisdiction, now) > most
}

func resolve(v *view.View, ref view.KeyRef) (Caller, *Refusal) {
	project, ok := v.Project(ref.Project)
	if !ok {
		return Caller{}, errNotReady // dangling: the record is on its way
	}
	org, ok := v.Org(project.Project.Org)
	if !ok {
		return Caller{}, errNotReady
	}
	switch {
	case org.Org.State == orgVerified:
	case org.Org.State == orgUnverified && ref.Class == apikey.ClassTest:
	case org.Org.State == orgUnverified:
		return Caller{}, errUnverified
	default: // suspended, or a state of a later version
		return Caller{}, errSuspended
	}
	return Caller{Key: ref, Project: project, Org: org}, nil
}

// verdictKeys gives the keys of now's day.
func (c *Checker) verdictKeys(now time.Time) *dayKeys {
	day := now.Unix() / 86400
	if k := c.keys.Load(); k != nil && k.day == day {
		return k
	}
	k := &dayKeys{day: day}
	k.current, k.previous = apikey.VerdictKeys(c.cfg.VerdictSecret, now)
	c.keys.Store(k)
	return k
}

// secret checks key against what ref holds: remembered verdicts first, a hash
// only if there is none.
func (c *Checker) secret(ref *view.KeyRef, key, remote string, now time.Time) *Refusal {
	keys := c.verdictKeys(now)
	mac := keys.verdict(key)
	if set, ok := c.cfg.Store.Verdicts().Get(ref.ID); ok && set.Revision == ref.Revision {
		if holds(&set, &mac) {
			return nil
		}
		old := apikey.Verdict(keys.previous, key)
		if holds(&set, &old) {
			c.remember(ref, mac)
			return nil
		}
	}
	inGrace := len(ref.PrevHash) > 0 && now.UnixMilli() < ref.PrevUntil
	if inGrace && c.former.has(ref, mac) {
		return nil
	}
	return c.hash(ref, key, remote, mac, inGrace, now)
}

// remembers reports whether a verdict of ref's revision is known of mac.
func (c *Checker) remembers(ref *view.KeyRef, mac [32]byte) bool {
	set, ok := c.cfg.Store.Verdicts().Get(ref.ID)
	return ok && set.Revision == ref.Revision && holds(&set, &mac)
}

func holds(set *view.VerdictSet, mac *[32]byte) bool {
	found := 0
	for i := range set.Count {
		found |= subtle.ConstantTimeCompare(set.MACs[i][:], mac[:])
	}
	return found == 1
}

func (c *Checker) remember(ref *view.KeyRef, mac [32]byte) {
	verdict := feed.Verdict{Key: ref.ID, Revision: ref.Revision, MAC: mac}
	if c.cfg.Store.Verdicts().Put(verdict) {
		c.cfg.Emit(verdict)
	}
}

// source is what failures are budgeted by: the address, or for IPv6 its /64.
func source(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if addr = addr.Unmap(); addr.Is6() {
		if prefix, err := addr.Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return addr.String()
}
