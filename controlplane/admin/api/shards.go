package api

import "time"

// ShardMember is one region that holds a shard.
type ShardMember struct {
	Region   string     `json:"region"`
	Position string     `json:"position,omitempty" doc:"How far its copy was when it was last heard; absent if it was not"`
	Heard    *time.Time `json:"heard,omitempty" doc:"When its leader was last heard; absent if not since this one leads"`
}

// Shard is one shard, as a region holds it.
type Shard struct {
	Shard              string        `json:"shard"`
	Home               string        `json:"home" doc:"Region that writes it"`
	Epoch              string        `json:"epoch" doc:"Highest promised here: the home of a lower one is refused"`
	Role               string        `json:"role,omitempty" doc:"Of this region: home, opening, candidate, sealed, follower, outside; absent on a node that does not lead"`
	Position           string        `json:"position" doc:"How far this region's copy is"`
	Confirmed          uint64        `json:"confirmed" doc:"Sequence up to which a majority of the members is known to hold it"`
	Members            []ShardMember `json:"members" nullable:"false"`
	IsolatedSince      *time.Time    `json:"isolated_since,omitempty" doc:"Since when no majority of the members has been heard by this home"`
	Quarantined        int           `json:"quarantined" doc:"Entries of a former home that wait for a decision"`
	SurvivesRegionLoss bool          `json:"survives_region_loss" doc:"More than one region holds it"`
	AutomaticTakeover  bool          `json:"automatic_takeover_possible" doc:"It has the three members without which a lost home cannot be told from a lost network"`
}

// ShardList is all that a region holds.
type ShardList struct {
	Region string  `json:"region" doc:"Whose copies these are"`
	Items  []Shard `json:"items" nullable:"false"`
}

// TakeoverInput loosens what a takeover refuses.
type TakeoverInput struct {
	Live bool     `json:"live,omitempty" doc:"Take the shard from a home that answers: its writes stop"`
	Lost []string `json:"lost,omitempty" doc:"Regions declared lost for ever: nobody waits for them, and they leave the shard until they are added again. Without a majority, records acknowledged multi-region can be lost: lossless says whether. A region that was restored or recovered and that no other member can take in again names itself: what its former life held beyond the backup is given up"`
	Add  []string `json:"add,omitempty" doc:"Regions that become members again, in the life they are in now; they must be up. The home may ask this for its own shard"`
}

// ShardMoved says how a region became home.
type ShardMoved struct {
	Shard           string `json:"shard"`
	Home            string `json:"home"`
	Epoch           string `json:"epoch"`
	Base            string `json:"base" doc:"What the new epoch continues"`
	From            string `json:"from,omitempty" doc:"Region whose copy was the furthest; absent if it was the new home's own"`
	Copied          int    `json:"copied" doc:"Entries taken over from there"`
	Lossless        bool   `json:"lossless" doc:"Every record acknowledged multi-region is in it"`
	SealedMillis    int64  `json:"sealed_ms" doc:"After so long, enough regions had promised"`
	OpenedMillis    int64  `json:"opened_ms"`
	ConfirmedMillis int64  `json:"confirmed_ms" doc:"After so long, writes were taken again"`
}

// QuarantinedEntry is a write of a former home that no later home has.
type QuarantinedEntry struct {
	ID      string             `json:"id" doc:"<epoch counter>/<epoch region>.<sequence>: where it stood"`
	Shard   string             `json:"shard"`
	Level   string             `json:"level,omitempty" doc:"Acknowledgement that its writer asked for; absent where that was not told"`
	Branch  string             `json:"branch" doc:"Last entry that it shares with the history that won"`
	By      string             `json:"by" doc:"Epoch whose history that is"`
	Changes []QuarantineChange `json:"changes" nullable:"false"`
}

// QuarantineChange is one effect that the entry had.
type QuarantineChange struct {
	Op      string `json:"op" doc:"put, delete, revoke, open"`
	Kind    string `json:"kind,omitempty"`
	ID      string `json:"id,omitempty"`
	Name    string `json:"name,omitempty"`
	Present string `json:"present,omitempty" doc:"What the shard has of this record now: absent, as before (nobody else changed it), the same, changed (by the present home since), revoked (a revocation is in force already)"`
}

// QuarantineList is what a region keeps in quarantine.
type QuarantineList struct {
	Region string             `json:"region"`
	Items  []QuarantinedEntry `json:"items" nullable:"false"`
}

// QuarantineVerdict is what to do with quarantined entries.
type QuarantineVerdict struct {
	IDs []string `json:"ids,omitempty" doc:"Which; absent = all of the shard's, to replay them. To discard, they are named"`
}

// QuarantineResult says what came of each entry.
type QuarantineResult struct {
	Items []QuarantineOutcome `json:"items" nullable:"false"`
}

// QuarantineOutcome is what came of one entry.
type QuarantineOutcome struct {
	ID      string `json:"id"`
	Outcome string `json:"outcome" doc:"replayed, discarded, already there, refused"`
	Detail  string `json:"detail,omitempty"`
}
