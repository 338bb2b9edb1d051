package api

import "time"

// TrailerWhole follows a backup that was sent to its end.
const TrailerWhole = "Ringmain-Whole"

// Member is one node of a region's Raft.
type Member struct {
	Node    string     `json:"node"`
	Address string     `json:"address" doc:"host:port of its internal listener"`
	Role    string     `json:"role" enum:"voter,joining,reader" doc:"A joining node votes once it has kept up for ten seconds; a reader never does"`
	Leader  bool       `json:"leader"`
	Heard   *time.Time `json:"heard,omitempty" doc:"When it last answered the leader; absent = not since this one leads"`
	Behind  uint64     `json:"behind" doc:"Log entries that it lacked then"`
	Steady  *time.Time `json:"steady_since,omitempty" doc:"Since when it has answered and kept up; absent = it does not"`
}

// MemberList is a region's Raft.
type MemberList struct {
	Region      string     `json:"region"`
	Answered    string     `json:"answered_by"`
	MayHaveLost *time.Time `json:"may_have_lost,omitempty" doc:"When the region last began anew, from a minority's copies or a backup: what it had acknowledged before may be missing"`
	Problem     string     `json:"problem,omitempty" doc:"What ails the node that answered"`
	Items       []Member   `json:"items" nullable:"false"`
}

// MemberInput names a node to be added.
type MemberInput struct {
	Node    string `json:"node" minLength:"1" maxLength:"63"`
	Address string `json:"address" doc:"host:port of its internal listener"`
	Reader  bool   `json:"reader,omitempty" doc:"It holds the state and serves feeds, and never votes"`
}

// MemberAddress is where a node is from now on.
type MemberAddress struct {
	Address string `json:"address" doc:"host:port of its internal listener"`
}

// TransferInput says who is to lead.
type TransferInput struct {
	To string `json:"to,omitempty" doc:"A voter; absent = whichever is furthest"`
}
