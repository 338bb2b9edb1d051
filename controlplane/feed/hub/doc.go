// Package hub is the serving side of the feed. A Hub sits beside the state of
// every control node, is told of each applied entry, and keeps the recent ones
// in a bounded ring per shard. A watcher says how far it is; the hub resumes
// from there, or sends reset, snapshot and end first. Beside the history it
// carries what never waits for a commit: shared key verdicts, revocation hints,
// and what data nodes say that they hold.
//
// What may not enter: Raft, disks, gossip, how a stream is received, and what a
// record means.
package hub
