// Package feed is the stream by which the registry's history gets from where it
// was written to everybody who may hold it, from a home region to the other
// member regions and from a control node to the keepers of its own region: the
// frames, the requests, and the receiving end, Watch.
//
// The serving end is hub, with push for what never waits for a commit. Importer
// turns what another region sends into commands for the own region's Raft, and
// age knows how old a copy is.
//
// What may not enter: Raft, disks, gossip, how a stream is served, and what a
// record means. A feed moves and orders; the registry decides. DESIGN.md beside
// this file has the decisions.
package feed
