package image

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/strict"
)

// rowLife is where the image says which life of its region this is, among the
// shards: so dumps carry it to nodes that come later. No shard has that name,
// and a version that does not know the row refuses the image.
var rowLife = row{bucketShards, "\x00life"}

// Life is which life of the region the image belongs to: 0 is the first, in
// which it cannot have lost commits; another is the time of its beginning, in
// Unix milliseconds.
func (m *Image) Life() uint64 { return m.life }

// Begin makes the image one of another life, durably.
func (m *Image) Begin(life uint64) error {
	enc, err := strict.Marshal(life)
	if err != nil {
		return err
	}
	b := &batch{rows: map[row][]byte{rowLife: enc}, at: m.Mark(), format: m.sum.Format}
	if err := m.write(b); err != nil {
		return err
	}
	m.life = life
	return nil
}

// Build makes an image of state, of the given life, where there is none yet.
func Build(cfg Config, state *ledger.State, at Mark, life uint64) (err error) {
	m, empty, err := Open(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if len(empty.Copies()) > 0 || m.Mark() != (Mark{}) {
		return fmt.Errorf("image: %s holds a region's state already", cfg.Path)
	}
	d := NewDirty()
	shards := make(map[controlplane.Shard]struct{})
	for _, info := range state.Copies() {
		shards[info.Shard] = struct{}{}
	}
	// A shard at a time bounds what one transaction holds.
	for _, s := range slices.Sorted(maps.Keys(shards)) {
		d.resets = map[controlplane.Shard]struct{}{s: {}}
		if err := m.Flush(d, state, at); err != nil {
			return err
		}
	}
	if err := m.Flush(NewDirty(), state, at); err != nil {
		return err
	}
	return m.Begin(life)
}
