// Package feed carries the registry's history from where it was written to
// everybody who may hold it: from a home region to the other member regions,
// and from a control node to the keepers of its own region.
//
// The Hub is the serving side. It sits beside the state of every control node,
// is told of each applied entry, and keeps the recent ones in a bounded ring
// per shard. A watcher says how far it is; the hub resumes from there, or sends
// reset, snapshot and end first. Watch is the receiving side, and the Importer
// turns what another region sends into commands for the own region's Raft.
// Beside the history, the same streams carry two things that never wait for a
// commit: shared key verdicts and revocation hints.
//
// What may not enter: Raft, disks, gossip, knowledge of what a record means.
// A feed moves and orders; the registry decides. DESIGN.md beside this file
// has the decisions.
package feed
