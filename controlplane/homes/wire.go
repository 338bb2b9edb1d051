package homes

import (
	"errors"
	"fmt"
	"io"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/strict"
)

// Paths of protocol version 1: POST, CBOR in and out.
const (
	Prefix       = "/ownership/v1/"
	pathWord     = Prefix + "word"
	pathSeal     = Prefix + "seal"
	pathTail     = Prefix + "tail"
	pathSnapshot = Prefix + "snapshot" // answered with feed frames
	pathRevoke   = Prefix + "revoke"
	pathDigest   = Prefix + "digest"
)

// headerLeader names the leader's internal address in an answer 421.
const headerLeader = "Ringmain-Leader"

// Word is what a region says of its own copy of a shard. To the home it
// follows it means "accepted so far", to a home it follows no more "refused";
// and that it can be heard at all.
type Word struct {
	Shard    controlplane.Shard `cbor:"1,keyasint"`
	Since    uint64             `cbor:"2,keyasint,omitempty"` // the member's, as its copy says
	Promised controlplane.Epoch `cbor:"3,keyasint"`
	Last     controlplane.Point `cbor:"4,keyasint"`
}

// words travel both ways: the answer to words is words on the same shards.
type words struct {
	Cluster string `cbor:"1,keyasint"`
	Words   []Word `cbor:"2,keyasint,omitempty"`
}

// sealRequest asks a member to commit seal(Epoch). The answer is a report.
type sealRequest struct {
	Cluster string             `cbor:"1,keyasint"`
	Shard   controlplane.Shard `cbor:"2,keyasint"`
	Epoch   controlplane.Epoch `cbor:"3,keyasint"`
}

// report is a sealed copy. With status 409 it is the refusal: Promised is the
// higher epoch.
type report struct {
	Shard     controlplane.Shard `cbor:"1,keyasint"`
	Since     uint64             `cbor:"2,keyasint,omitempty"`
	Promised  controlplane.Epoch `cbor:"3,keyasint"`
	Last      controlplane.Point `cbor:"4,keyasint"`
	Spans     []ownership.Span   `cbor:"5,keyasint,omitempty"`
	Confirmed uint64             `cbor:"6,keyasint,omitempty"`
}

func (m *report) copy() ownership.Copy {
	return ownership.Copy{Promised: m.Promised, Last: m.Last, Spans: m.Spans, Confirmed: m.Confirmed}
}

// tailRequest asks a sealed member for what follows After, a point of the
// candidate's copy; with status 410 the answer is that only a snapshot helps.
type tailRequest struct {
	Cluster string             `cbor:"1,keyasint"`
	Shard   controlplane.Shard `cbor:"2,keyasint"`
	Epoch   controlplane.Epoch `cbor:"3,keyasint"` // the seal under which the member reported
	Base    controlplane.Point `cbor:"4,keyasint"` // the end it reported
	After   controlplane.Point `cbor:"5,keyasint"`
}

type tailAnswer struct {
	Entries [][]byte `cbor:"1,keyasint"` // the last one is at Base
}

// revokeRequest brings revocations that a region accepted and cut to the home.
type revokeRequest struct {
	Cluster     string                `cbor:"1,keyasint"`
	Shard       controlplane.Shard    `cbor:"2,keyasint"`
	Revocations []registry.Revocation `cbor:"3,keyasint"`
}

// digestRequest asks the home for the digest of a shard at a point.
type digestRequest struct {
	Cluster string             `cbor:"1,keyasint"`
	Shard   controlplane.Shard `cbor:"2,keyasint"`
	At      controlplane.Point `cbor:"3,keyasint"`
}

// digestAnswer is empty if the home is at another point.
type digestAnswer struct {
	Digest []byte `cbor:"1,keyasint,omitempty"`
}

const (
	maxBody        = 256 << 10 // of a request, in bytes
	maxAnswer      = 4 << 20   // of an answer
	maxWords       = 1024
	maxRevocations = 1024
	maxTail        = 3 << 20 // of encoded entries in a tailAnswer: they have to fit one command
)

var decMode = strict.Decoder(strict.Bounds{Depth: 8, Elements: 1 << 17, Pairs: 64})

// message is what travels. Check reports the first part that cannot be meant.
type message interface{ check() error }

var errMalformed = errors.New("malformed")

// decode reads at most limit bytes of r into m, strictly.
func decode(r io.Reader, limit int64, m message) error {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return err
	}
	if int64(len(b)) > limit {
		return fmt.Errorf("%w: more than %d bytes", errMalformed, limit)
	}
	if err := decMode.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	return m.check()
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, args...))
}

// checkEpoch refuses counters that no history reaches: who promised one could
// never promise a higher one.
func checkEpoch(e controlplane.Epoch) error {
	if e.Counter > 1<<48 || (e.Counter == 0) != (e.Region == "") || len(e.Region) > 63 {
		return malformed("epoch %.80s", e)
	}
	return nil
}

func checkShard(s controlplane.Shard) error {
	if s == "" || len(s) > 80 {
		return malformed("shard %.80q", s)
	}
	return nil
}

func checkPoint(p controlplane.Point) error {
	if p.Seq > 1<<60 || (p.Seq == 0) != (p.Epoch == controlplane.Epoch{}) {
		return malformed("point %.80s.%d", p.Epoch, p.Seq)
	}
	return checkEpoch(p.Epoch)
}

func (w Word) check() error {
	if w.Last.Epoch.Compare(w.Promised) > 0 {
		return malformed("shard %.80s ends in an epoch above the one promised", w.Shard)
	}
	return errors.Join(checkShard(w.Shard), checkEpoch(w.Promised), checkPoint(w.Last))
}

func (m *words) cluster() string         { return m.Cluster }
func (m *sealRequest) cluster() string   { return m.Cluster }
func (m *tailRequest) cluster() string   { return m.Cluster }
func (m *revokeRequest) cluster() string { return m.Cluster }
func (m *digestRequest) cluster() string { return m.Cluster }

func (m *words) check() error {
	if len(m.Words) > maxWords {
		return malformed("%d words, at most %d at once", len(m.Words), maxWords)
	}
	for _, w := range m.Words {
		if err := w.check(); err != nil {
			return err
		}
	}
	return nil
}

func (m *sealRequest) check() error {
	if m.Epoch.Counter == 0 {
		return malformed("a seal needs an epoch")
	}
	return errors.Join(checkShard(m.Shard), checkEpoch(m.Epoch))
}

func (m *report) check() error {
	if len(m.Spans) > 1<<16 || m.Confirmed > m.Last.Seq {
		return malformed("report on shard %.80s", m.Shard)
	}
	for i, s := range m.Spans {
		if s.Start == 0 || s.Start > m.Last.Seq || i > 0 && (s.Start <= m.Spans[i-1].Start || s.Epoch.Compare(m.Spans[i-1].Epoch) <= 0) {
			return malformed("spans of shard %.80s", m.Shard)
		}
	}
	if n := len(m.Spans); n > 0 && m.Spans[n-1].Epoch != m.Last.Epoch {
		return malformed("spans of shard %.80s end elsewhere", m.Shard)
	}
	return Word{Shard: m.Shard, Promised: m.Promised, Last: m.Last}.check()
}

func (m *tailRequest) check() error {
	return errors.Join(checkShard(m.Shard), checkEpoch(m.Epoch), checkPoint(m.Base), checkPoint(m.After))
}

func (m *tailAnswer) check() error { return nil }

func (m *revokeRequest) check() error {
	if len(m.Revocations) == 0 || len(m.Revocations) > maxRevocations {
		return malformed("%d revocations, 1 to %d at once", len(m.Revocations), maxRevocations)
	}
	return checkShard(m.Shard)
}

func (m *digestRequest) check() error {
	return errors.Join(checkShard(m.Shard), checkPoint(m.At))
}

func (m *digestAnswer) check() error {
	if len(m.Digest) != 0 && len(m.Digest) != 32 {
		return malformed("a digest of %d bytes", len(m.Digest))
	}
	return nil
}
