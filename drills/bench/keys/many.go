package main

import (
	"bufio"
	crand "crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/backup"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
)

const (
	known = 16  // keys with a hash of their own, whose secret is known here
	orgs  = 200 // that the projects are spread over
)

// knownKey is a key that must be let in, and the same with another secret, which must not.
type knownKey struct{ right, wrong string }

// multiply writes to the file `to` the backup in the file `from`, with the
// projects and keys that o asks for.
func multiply(from, to, keyFile string, o options) (_ []knownKey, records int, err error) {
	holder, err := seal.OpenFileHolder(keyFile)
	if err != nil {
		return nil, 0, err
	}
	sealer := seal.New(holder)
	f, err := os.Open(from)
	if err != nil {
		return nil, 0, err
	}
	info, state, err := backup.Read(bufio.NewReader(f), sealer)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, 0, err
	}
	l := ledger.NewLoader()
	if err := l.Version(state.Version()); err != nil {
		return nil, 0, err
	}
	add := func(r *registry.Record) {
		records++
		err = errors.Join(err, l.Record(r))
	}
	for _, s := range state.Copies() {
		err = errors.Join(err, l.Shard(s))
		if snap, ok := state.ShardSnapshot(s.Shard); ok {
			for r := range snap.Records {
				add(r)
			}
			for v := range snap.Revocations {
				err = errors.Join(err, l.Revocation(v))
			}
		}
	}
	m := maker{at: time.Now(), random: rand.NewChaCha8([32]byte{1}), shard: controlplane.ShardAny(info.Region)}
	at, _ := state.Shard(m.shard)
	m.revision = at.Last.Seq
	keys := m.make(o, add, &err)
	if err != nil {
		return nil, 0, err
	}
	if state, err = l.State(); err != nil {
		return nil, 0, err
	}
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, 0, err
	}
	_, err = backup.Create(w, sealer, info.Source, state)
	return keys, records, errors.Join(err, w.Close())
}

// maker makes records as the management API does.
type maker struct {
	at       time.Time
	random   *rand.ChaCha8
	shard    controlplane.Shard
	revision uint64
}

func (m *maker) meta(prefix string) registry.Meta {
	return m.metaOf(registry.NewID(prefix, "any", m.at, m.random))
}

func (m *maker) metaOf(id string) registry.Meta {
	return registry.Meta{ID: id, Shard: m.shard, Revision: m.revision, Created: m.at.UnixMilli(), Updated: m.at.UnixMilli()}
}

func (m *maker) make(o options, add func(*registry.Record), failed *error) (keys []knownKey) {
	var in, projects []string
	for i := range orgs {
		r := &registry.Record{Kind: registry.KindOrg, Meta: m.meta("org"),
			Org: &registry.Org{Name: fmt.Sprintf("Customer %d", i), Plan: "build", State: "verified", Jurisdiction: "any"}}
		add(r)
		in = append(in, r.Meta.ID)
	}
	for i := range o.projects {
		r := &registry.Record{Kind: registry.KindProject, Meta: m.meta("prj"),
			Project: &registry.Project{Org: in[i%orgs], Name: fmt.Sprintf("service-%d", i)}}
		add(r)
		projects = append(projects, r.Meta.ID)
	}
	for i := range o.keys {
		k := &registry.Key{Project: projects[i%len(projects)], Name: fmt.Sprintf("server %d", i), Class: apikey.ClassLive}
		meta := m.meta("key")
		if i%(o.keys/known) == 0 && len(keys) < known { // spread over all
			whole, parsed, err := apikey.New(k.Class, "any", m.at, crand.Reader)
			other, otherErr := apikey.NewSecretFor(parsed, crand.Reader)
			hash, hashErr := apikey.Hash(whole)
			*failed = errors.Join(*failed, err, otherErr, hashErr)
			meta, k.Hash = m.metaOf(parsed.RecordID()), hash
			keys = append(keys, knownKey{whole.Reveal(), other.Reveal()})
		} else {
			k.Hash = m.hash()
		}
		k.Hint = meta.ID[len(meta.ID)-4:]
		add(&registry.Record{Kind: registry.KindKey, Meta: meta, Key: k})
	}
	return keys
}

// hash has the length and the entropy of a hash, 16 bytes of salt and 23 of
// digest, but no secret.
func (m *maker) hash() []byte {
	var b [16 + 23]byte
	_, _ = m.random.Read(b[:]) // never fails
	hash := fmt.Appendf(make([]byte, 0, 60), "$2a$%02d$", apikey.Cost)
	hash = base64.RawStdEncoding.AppendEncode(hash, b[:16])
	return base64.RawStdEncoding.AppendEncode(hash, b[16:])
}
