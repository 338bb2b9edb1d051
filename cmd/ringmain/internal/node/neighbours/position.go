package neighbours

import (
	"context"
	"slices"
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/gossip/bulletin"
)

const (
	positionEvery = 200 * time.Millisecond
	positionBytes = 256 // what a digest may say of it
)

// PublishPosition says in gossip how far the state is that the worker was
// given, so that who revokes a key can tell who refuses it.
func PublishPosition(ctx context.Context, publish func(func(*bulletin.Digest)), given func() controlplane.Position) {
	ticker := time.NewTicker(positionEvery)
	defer ticker.Stop()
	for last := ""; ; {
		if text := wholePosition(given()); text != last {
			publish(func(d *bulletin.Digest) { d.Position = text })
			last = text
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// wholePosition names shards with epoch and sequence, as many as fit: of those
// left out nothing is known, which is true as well.
func wholePosition(p controlplane.Position) string {
	shards := make([]controlplane.Shard, 0, len(p))
	for s := range p {
		shards = append(shards, s)
	}
	slices.Sort(shards)
	var parts []string
	size := -1
	for _, s := range shards {
		part := api.FormatPosition(s, p[s])
		if size += 1 + len(part); size > positionBytes {
			break
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " ")
}
