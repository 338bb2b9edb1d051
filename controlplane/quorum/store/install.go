package store

import "github.com/hashicorp/raft"

// Installed is told of a snapshot from the leader that is in place. Raft will
// call DeleteRange for the whole log next.
func (l *Log) Installed(meta *raft.SnapshotMeta) {
	l.Follows(meta)
	l.stateMu.Lock()
	l.install = meta
	l.stateMu.Unlock()
}

// Follows is told of the newest snapshot. Its last entry may be gone from the
// log, and a leader asks for that entry's term before it sends what follows.
func (l *Log) Follows(meta *raft.SnapshotMeta) {
	l.stateMu.Lock()
	l.base = raft.Log{Index: meta.Index, Term: meta.Term, Type: raft.LogNoop}
	l.stateMu.Unlock()
}

// snapshotEnd stands for the last entry of the newest snapshot. Only its index
// and term are asked for: a leader sends no entry whose predecessor is gone.
func (l *Log) snapshotEnd(index uint64, into *raft.Log) bool {
	l.stateMu.Lock()
	defer l.stateMu.Unlock()
	if index < 2 || index != l.base.Index {
		return false
	}
	*into = l.base
	return true
}

// Continues reports whether the log, from first to last, goes on where the
// snapshot ends.
func (l *Log) Continues(meta *raft.SnapshotMeta, first, last uint64) bool {
	if first > meta.Index || last < meta.Index {
		return last >= meta.Index
	}
	var e raft.Log
	return l.GetLog(meta.Index, &e) == nil && e.Term == meta.Term
}

// afterInstall decides what DeleteRange(lo, hi) is to do right after a snapshot
// was installed. Raft goes on counting the entries it deletes, if they reach
// beyond the snapshot: it would claim them in elections, and refuse what
// follows the snapshot. So entries that continue it stay, which is as good; if
// others are to go, the node must restart once they are gone.
func (l *Log) afterInstall(meta *raft.SnapshotMeta, lo, hi uint64) (keep, restart bool) {
	switch {
	case meta == nil || hi < meta.Index:
		return false, false
	case l.Continues(meta, lo, hi):
		return true, false
	}
	return false, hi > meta.Index
}
